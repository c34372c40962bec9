"""The link watch: compares exchanges with their forecast while training runs, and lets prices follow the link.

In a few steps before each table is measured, the engine's counters are read; when the table is concluded, ranks agree
on what they saw and change their prices alike. So a link that changes speed changes the next plan, on every rank, at
the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import torch

from lgreco.arrivals import ArrivalClock
from lgreco.pricing import Pricing
from lgreco.record_kinds import Forecast


class _Gather(Protocol):
    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, in rank order."""


class LinkWatch:
    """Watches for one controller, on its thread.

    Args:
        pricing: follows.
        figures: the engine's counters of the last step (busy_ms, exposed_ms).
        peers: to agree with.
        layers: in the model.
        arrivals: notes when gradients become ready; None where that is known already.
    """

    def __init__(
        self,
        pricing: Pricing,
        figures: Callable[[], Mapping[str, float]],
        peers: _Gather,
        layers: int,
        arrivals: ArrivalClock | None,
    ) -> None:
        self.pricing = pricing
        self._figures, self._peers, self._layers, self._arrivals = figures, peers, layers, arrivals
        self._busy_ms: list[float] = []
        self._exposed_ms: list[float] = []

    def sample(self) -> None:
        """Reads the counters of the last step that is counted; there is none yet just after the first."""
        figures = self._figures()
        if figures.get("busy_ms", 0.0) > 0:
            self._busy_ms.append(float(figures["busy_ms"]))
            self._exposed_ms.append(float(figures["exposed_ms"]))

    def agree(self, step: int, columns: Sequence[int] | None) -> Forecast:
        """Brings together what ranks saw since the last time; collective. Prices follow.

        Args:
            step: of the last sample.
            columns: the plan that was in force; None: dense steps.

        Returns:
            What was predicted, beside what was measured.
        """
        busy_s, measured_exposed_s, ready_s = self._gathered()
        if ready_s is not None and not self.pricing.knows_arrivals:
            self.pricing.learn_arrivals(ready_s)
        predicted_busy_s, predicted_exposed_s = self.pricing.busy_s(columns), self.pricing.exposed_s(columns)
        before = self.pricing.bytes_per_s
        changed = self.pricing.observe(busy_s, columns)
        text = ""
        if changed and before == self.pricing.bytes_per_s:
            text = f"latencies and codecs: {self.pricing.overhead:.3g} times as calibrated"
        elif changed:
            text = f"link: {before / 1e6:.3g} -> {self.pricing.bytes_per_s / 1e6:.3g} MB/s"
        return Forecast(
            step,
            way="lgreco",
            bytes_per_s=self.pricing.bytes_per_s,
            predicted_busy_ms=predicted_busy_s * 1e3,
            busy_ms=busy_s * 1e3 if busy_s > 0 else None,
            predicted_exposed_ms=predicted_exposed_s * 1e3,
            exposed_ms=measured_exposed_s * 1e3 if busy_s > 0 else None,
            text=text,
        )

    def _gathered(self) -> tuple[float, float, list[float] | None]:
        """Busy and exposed seconds of the rank that waited least for others, arrivals of the slowest."""
        ready_s = None if self._arrivals is None else self._arrivals.ready_s()
        mine = [median(self._busy_ms or [0.0]) * 1e-3, median(self._exposed_ms or [0.0]) * 1e-3]
        mine += ready_s if ready_s is not None else [float("nan")] * self._layers
        self._busy_ms.clear()
        self._exposed_ms.clear()
        everyone = torch.stack(self._peers.gather(torch.tensor(mine, dtype=torch.float64)))
        ready = everyone[:, 2:].amax(dim=0)  # NaN where a rank does not know
        known = bool(torch.isfinite(ready).all())
        return float(everyone[:, 0].min()), float(everyone[:, 1].min()), ready.tolist() if known else None

    def state(self) -> dict[str, Any]:
        """Of the pricing, for a checkpoint."""
        return self.pricing.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` gave."""
        self.pricing.load(state)
