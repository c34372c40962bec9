"""Pricing: what plans cost in exposed seconds on these links, and how that follows links whose speed changes.

A plan is found by a solver whose costs add up over layers; exposed time does not, because buckets that backward hides
cost nothing. So the solver is asked with several tables of costs (seconds of the layers on the critical path, seconds
of all layers, bytes), and of the plans that come of it the one of least exposed time by the cost model is taken.
Everything here depends on what all ranks share alone, so all take the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lgreco.calibration import Calibration
from lgreco.candidates import Offers
from lgreco.choice import Dense
from lgreco.cost_model import Schedule, exchange_s, exposed_s, fill_buckets, on_critical_path

Array = npt.NDArray[np.float64]

_HIDDEN_WEIGHT = 0.05
"""What a second costs that backward hides: something, so that bytes are not wasted there."""
_DRIFT = 1.3
"""By which factor the exchange must be faster or slower than predicted, twice running, before the link has changed."""
_JUMP = 2.0
"""By which factor once is enough: processors that others use as well do not slow an exchange down so much."""
_OVERHEAD = (0.1, 10.0)
"""Between which factors latencies and codecs may differ in training from what calibration found."""
_LEAST_WIRE_SHARE = 0.02
"""Of the predicted time on the wire that is taken for true however fast an exchange was: no link is infinite."""


class Pricing:
    """Seconds of layers, buckets and plans; see the module.

    Args:
        offers: what the solver may choose.
        calibration: of these hosts.
        cap_mb: DDP's bucket cap in MiB.
    """

    def __init__(self, offers: Offers, calibration: Calibration, cap_mb: float) -> None:
        self._offers = offers
        self._calibrated = calibration
        self._cap_mb = cap_mb
        self._rate = 1.0
        self._overhead: float | None = None
        self._ready_s: list[float] | None = None
        self._suspected = 0  # 1: the last exchange was slower than predicted, -1: faster, but not yet by enough
        self._reprice()

    @property
    def knows_arrivals(self) -> bool:
        """Whether it is known when gradients become ready."""
        return self._ready_s is not None

    @property
    def bytes_per_s(self) -> float:
        """What a rank's link carries in an exchange, as far as is known now."""
        return self._calibrated.exchange.bytes_per_s * self._rate

    @property
    def overhead(self) -> float:
        """How many times as long as calibrated latencies and codecs take."""
        return 1.0 if self._overhead is None else self._overhead

    def learn_arrivals(self, ready_s: Sequence[float]) -> None:
        """Takes when each layer's gradient becomes ready; the same on every rank. Without, nothing is hidden."""
        self._ready_s = [float(each) for each in ready_s]
        self._reprice()

    def adopt(self, offers: Offers) -> None:
        """Other elements of the same layers are exchanged from now on."""
        self._offers = offers
        self._reprice()

    def tables(self, present: Sequence[int]) -> tuple[Array, ...]:
        """Costs [L, C] to solve with: weighted by who is on the critical path of the present plan, seconds, bytes."""
        weights = np.full(len(self._offers.layers), _HIDDEN_WEIGHT)
        critical = on_critical_path(self._schedule.ready_s, self._bucket_s(present))
        for rows, counts in zip(self._schedule.rows, critical, strict=True):
            if counts:
                weights[list(rows)] = 1.0
        return weights[:, None] * self._seconds, self._seconds, self._offers.costs

    def exposed_s(self, columns: Sequence[int] | None) -> float:
        """What backward does not hide of a step's exchange under a plan; None: of dense steps."""
        return exposed_s(self._schedule.ready_s, self._bucket_s(columns))

    def busy_s(self, columns: Sequence[int] | None) -> float:
        """How long a step's exchange keeps the link under a plan; None: dense steps."""
        return sum(self._bucket_s(columns))

    def observe(self, busy_s: float, columns: Sequence[int] | None) -> bool:
        """Compares how long exchanges took with what was predicted, and follows what has changed.

        Under the first compressed plan, what differs is taken for latencies and codecs, which compete with backward
        for processors as they did not in calibration; from then on, as under dense steps, for the link.

        Args:
            busy_s: of one step, agreed over ranks; least over ranks, so that waiting for late ranks does not count.
            columns: the plan that it was measured under; None: dense.

        Returns:
            Whether prices have changed.
        """
        predicted = self.busy_s(columns)
        wire_s = self._sent_bytes(columns) / self.bytes_per_s
        if columns is not None and self._overhead is None and predicted / _DRIFT < busy_s < predicted * _DRIFT:
            self._overhead = 1.0
        if not busy_s > 0 or wire_s <= 0 or predicted / _DRIFT < busy_s < predicted * _DRIFT:
            self._suspected = 0
            return False
        rest_s = predicted - wire_s
        if columns is not None and self._overhead is None:
            low, high = _OVERHEAD
            self._overhead = min(max((busy_s - wire_s) / max(rest_s, 1e-9), low), high)
            self._reprice()
            return True
        before, self._suspected = self._suspected, 1 if busy_s > predicted else -1
        if self._suspected != before and predicted / _JUMP < busy_s < predicted * _JUMP:
            return False
        self._suspected = 0
        self._rate *= wire_s / max(busy_s - rest_s, _LEAST_WIRE_SHARE * wire_s)
        self._reprice()
        return True

    def state(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint; the same on every rank."""
        return {
            "calibration": self._calibrated.to_dict(),
            "rate": self._rate,
            "overhead": self._overhead,
            "ready_s": self._ready_s,
            "suspected": self._suspected,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` gave, so that a resumed run makes the plans of one that was not stopped."""
        self._calibrated = Calibration.from_dict(state["calibration"])
        self._rate, self._overhead, self._ready_s = state["rate"], state["overhead"], state["ready_s"]
        self._suspected = state["suspected"]
        self._reprice()

    def _reprice(self) -> None:
        layers = self._offers.layers
        now = self._calibrated.at_rate(self._rate).with_overhead(self._overhead or 1.0)
        self._line = now.exchange
        self._seconds = np.full(self._offers.costs.shape, np.nan)
        for row, column in np.argwhere(self._offers.offered):
            self._seconds[row, column] = now.layer_s(layers[row], self._offers.choices[column])
        self._dense_s = [now.layer_s(layer, Dense()) for layer in layers]
        sizes = [layer.dense_bytes for layer in layers]
        ready_s = self._ready_s or [0.0] * len(layers)
        self._schedule: Schedule = fill_buckets(ready_s, sizes, self._cap_mb)

    def _bucket_s(self, columns: Sequence[int] | None) -> list[float]:
        layer_s = self._dense_s
        if columns is not None:
            layer_s = [float(self._seconds[row, column]) for row, column in enumerate(columns)]
        return exchange_s(self._schedule, layer_s, self._line)

    def _sent_bytes(self, columns: Sequence[int] | None) -> float:
        if columns is None:
            return sum(self._dense_s) * self.bytes_per_s
        return float(sum(self._offers.costs[row, column] for row, column in enumerate(columns)))
