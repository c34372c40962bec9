"""Advice: what a step would take by each way of averaging gradients, and a verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from lgreco.calibration import Calibration
from lgreco.quantities import bytes_text, count_text

_CLOSE = 1.02
"""Steps this close count as equal: then the way that changes least is taken."""
_LOSSY = 1.05
"""What a lossy exchange must gain over a way without residuals to be worth it."""
_LATE, _SPREAD = 1.25, 0.9
"""Accumulation is advised where the best way leaves a step this much above compute, and it would save a tenth."""


@dataclass(frozen=True)
class Option:
    """A way of averaging gradients.

    Attributes:
        name: as a user would say it.
        step_s: of a forward and backward pass with it.
        error_s: half the width of the error bar.
        measured: whether `step_s` was measured; else it is predicted.
        memory_bytes: that a rank needs beyond DDP's own.
    """

    name: str
    step_s: float
    error_s: float
    measured: bool = False
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Advice:
    """What `advise` has found, the same on every rank.

    Attributes:
        calibration: of these hosts.
        numel: elements of the gradient.
        compute_s: of a pass without exchange, its best possible time.
        compute_error_s: half the distance of its quartiles.
        dense: DDP as it is, measured.
        predicted_dense_s: the same by the cost model.
        tuned: dense at the best bucket cap.
        bf16: torch's bf16 hook at its best bucket cap.
        accumulated: gradients exchanged every 2nd, 4th and 8th pass.
        plan: by lgreco, at its best bucket cap.
        verdict: one sentence.
    """

    calibration: Calibration
    numel: int
    compute_s: float
    compute_error_s: float
    dense: Option
    predicted_dense_s: float
    tuned: Option
    bf16: Option
    accumulated: tuple[Option, ...]
    plan: Option
    verdict: str

    @property
    def exposed_s(self) -> float:
        """Communication that backward does not hide, with DDP as it is; measured."""
        return max(0.0, self.dense.step_s - self.compute_s)

    @property
    def prediction_error(self) -> float:
        """Of the dense step, relative."""
        return self.predicted_dense_s / self.dense.step_s - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "calibration": self.calibration.to_dict(), "exposed_s": self.exposed_s}

    def to_table(self) -> Table:
        """For people."""
        table = Table("way", "a pass", "over compute", "memory", title=self._title(), caption=self._caption())
        best = Option("compute alone: the best there is", self.compute_s, self.compute_error_s, measured=True)
        for option in (best, self.dense, self.tuned, self.bf16, *self.accumulated, self.plan):
            how = "measured" if option.measured else "predicted"
            table.add_row(
                option.name,
                f"{option.step_s * 1e3:.1f} +- {option.error_s * 1e3:.1f} ms, {how}",
                f"{option.step_s / self.compute_s:.2f}",
                f"+{bytes_text(option.memory_bytes)}" if option.memory_bytes else "",
            )
        return table

    def _title(self) -> str:
        made = self.calibration
        rates = [bytes_text(line.bytes_per_s) for line in (made.allreduce, made.exchange)]
        sent = f"a rank sends {rates[0]}/s by allreduce, {rates[1]}/s by lgreco"
        return f"{made.world_size} ranks, {count_text(self.numel)} gradients; {sent}"

    def _caption(self) -> str:
        return (
            f"exposed communication {self.exposed_s * 1e3:.1f} ms; "
            f"the model is {self.prediction_error:+.0%} off the measured dense step"
        )


def verdict(
    compute_s: float, dense: Option, tuned: Option, bf16: Option, plan: Option, accumulated: Sequence[Option]
) -> str:
    """One sentence: the way that changes least among those that are about the fastest."""
    exact = _first_close([dense, tuned, bf16])
    chosen = plan if plan.step_s * _LOSSY + _noise(plan, exact) < exact.step_s else exact
    what = "do nothing" if chosen is dense else f"use {chosen.name}"
    saved = 1 - chosen.step_s / dense.step_s
    why = (
        "no other way is faster by more than its error"
        if chosen is dense
        else f"a pass takes {saved:.0%} less than now"
    )
    if chosen.step_s > _LATE * compute_s:
        for option in accumulated:
            passes_s = compute_s + (chosen.step_s - compute_s) / _passes(option)
            if passes_s < _SPREAD * chosen.step_s and passes_s <= _LATE * compute_s:
                also = option.name if chosen is dense else f"{what} and {option.name}"
                return f"{also}: a pass then takes {1 - passes_s / dense.step_s:.0%} less than now."
    return f"{what}: {why}."


def _first_close(options: Sequence[Option]) -> Option:
    """In order of how little they change; an earlier one gives way only to what is faster beyond both's errors."""
    best = min(options, key=lambda option: option.step_s)
    return next(option for option in options if option.step_s <= _CLOSE * best.step_s + _noise(option, best))


def _noise(one: Option, other: Option) -> float:
    return math.hypot(one.error_s, other.error_s) if one is not other else 0.0


def _passes(option: Option) -> int:
    return int(option.name.rsplit(" ", 1)[1])
