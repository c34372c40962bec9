"""Advice: what a step takes by each way of averaging gradients, and a verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import Any

import numpy as np
from rich.table import Table

from lgreco.auto import Way
from lgreco.calibration import Calibration
from lgreco.cost_model import accumulated_s
from lgreco.profile import Setup
from lgreco.quantities import bytes_text, count_text

_PASSES = (2, 4, 8)
_NORMAL = 1.96
"""Within so many standard deviations are 95 % of a normal distribution."""
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
        predicted_s: by the cost model; None where there is nothing to predict.
        measured: whether `step_s` was measured; else it is predicted.
        memory_bytes: that a rank needs beyond DDP's own.
        setup: how it is tried; None: nothing to try, it follows from others.
    """

    name: str
    step_s: float
    error_s: float
    predicted_s: float | None = None
    measured: bool = False
    memory_bytes: float = 0.0
    setup: Setup | None = None

    @property
    def way(self) -> Way | None:
        """Who averages; None where nobody does, or not in every pass."""
        return self.setup.way if self.setup else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "setup"}
        return plain | ({"way": self.setup.way, "bucket_cap_mb": self.setup.cap_mb} if self.setup else {})


@dataclass(frozen=True)
class Options:
    """The ways that are worth comparing.

    Attributes:
        compute: a pass without exchange, the best that there is.
        ways: with a setup each, in order of how little they change; the first is DDP as it is.
    """

    compute: Option
    ways: tuple[Option, ...]

    @property
    def dense(self) -> Option:
        """DDP as it is."""
        return self.ways[0]

    def by(self, *ways: Way) -> list[Option]:
        """Those in which one of these averages."""
        return [each for each in self.ways if each.way in ways]

    @property
    def accumulated(self) -> tuple[Option, ...]:
        """Gradients exchanged as now, but in every 2nd, 4th and 8th pass only."""
        late = max(0.0, self.dense.step_s - self.compute.step_s)
        return tuple(
            Option(
                f"accumulate {passes}",
                accumulated_s(self.compute.step_s, late, passes),
                self.compute.error_s + self.dense.error_s / passes,
                accumulated_s(self.compute.step_s, late, passes),
            )
            for passes in _PASSES
        )

    def to_try(self) -> dict[str, Setup | None]:
        """By name, what a trial can measure; None: without exchange."""
        return {each.name: each.setup for each in (self.compute, *self.ways)}

    def tried(self, times: Mapping[str, Sequence[float]]) -> Options:
        """With what each way really took in place of predictions; `times` as `in_blocks` takes them."""
        took = in_blocks(times)

        def measured(option: Option) -> Option:
            step_s, error_s = took[option.name]
            return replace(option, step_s=step_s, error_s=error_s, measured=True)

        return Options(measured(self.compute), tuple(map(measured, self.ways)))


@dataclass(frozen=True)
class Advice:
    """What `advise` has found, the same on every rank.

    Attributes:
        calibration: of these hosts.
        numel: elements of the gradient.
        options: what each way takes.
    """

    calibration: Calibration
    numel: int
    options: Options

    @property
    def best(self) -> Option:
        """What the verdict is about."""
        return best(self.options)

    @property
    def verdict(self) -> str:
        """What to do, in one sentence."""
        return verdict(self.options)

    @property
    def exposed_s(self) -> float:
        """Communication that backward does not hide, with DDP as it is; measured."""
        return max(0.0, self.options.dense.step_s - self.options.compute.step_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "calibration": self.calibration.to_dict(),
            "numel": self.numel,
            "compute": self.options.compute.to_dict(),
            "ways": [option.to_dict() for option in self.options.ways],
            "accumulated": [option.to_dict() for option in self.options.accumulated],
            "exposed_s": self.exposed_s,
            "best": self.best.name,
            "verdict": self.verdict,
        }

    def to_table(self) -> Table:
        """For people."""
        table = Table("way", "predicted", "measured", "over compute", "memory", title=self._title())
        for heading in table.columns[1:]:
            heading.justify = "right"
        table.caption = f"a pass in ms, with its error; exposed communication {self.exposed_s * 1e3:.1f} ms"
        options = self.options
        for option in (options.compute, *options.ways, *options.accumulated):
            took = f"{option.step_s * 1e3:.1f} ± {option.error_s * 1e3:.1f}"
            predicted = "" if option.predicted_s is None else f"{option.predicted_s * 1e3:.1f}"
            table.add_row(
                option.name,
                predicted if option.measured else took,
                took if option.measured else "",
                f"{option.step_s / options.compute.step_s:.2f}",
                f"+{bytes_text(option.memory_bytes)}" if option.memory_bytes else "",
            )
        return table

    def _title(self) -> str:
        made = self.calibration
        rates = [bytes_text(line.bytes_per_s) for line in (made.allreduce, made.exchange)]
        sent = f"a rank sends {rates[0]}/s by allreduce, {rates[1]}/s by lgreco"
        return f"{made.world_size} ranks, {count_text(self.numel)} gradients; {sent}"


def median_of(times: Sequence[float]) -> tuple[float, float]:
    """The median, and half the width of its 95 % interval: 1.57 interquartile ranges / sqrt(n) (McGill et al. 1978)."""
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return middle, 1.57 * (high - low) / math.sqrt(len(times))


def in_blocks(times: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """What each takes, and half the width of its 95 % interval, without what a turn adds to all.

    A randomised block design (Fisher 1935): log(time) = of the way + of the turn + rest; the rest gives the interval.

    Args:
        times: seconds by name, one of each turn; as many turns of each, two or more of two or more ways.

    Raises:
        ValueError: for fewer, from which no interval follows.
    """
    logs = np.log(np.array(list(times.values())))
    ways, turns = logs.shape
    if min(ways, turns) < 2:
        raise ValueError(f"an interval takes two ways and two turns, got {ways} and {turns}")
    of_ways = logs.mean(axis=1)
    rest = logs - of_ways[:, None] - logs.mean(axis=0) + logs.mean()
    freedom = (ways - 1) * (turns - 1)
    error = _student(freedom) * math.sqrt(float((rest**2).sum()) / freedom / turns)
    return {name: (math.exp(each), error * math.exp(each)) for name, each in zip(times, of_ways, strict=True)}


def _student(freedom: int) -> float:
    """Student's t at 95 %, by Fisher's expansion: right to 4 % from 3 degrees of freedom on."""
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def best(options: Options) -> Option:
    """The way that changes least among those that are about the fastest; accumulation is not among them."""
    exact, plan = _first_close(options.by("dense", "bf16")), _first_close(options.by("lgreco"))
    return plan if plan.step_s * _LOSSY + _noise(plan, exact) < exact.step_s else exact


def verdict(options: Options) -> str:
    """The best way in one sentence, with accumulation where much is still exposed."""
    compute_s, dense, chosen = options.compute.step_s, options.dense, best(options)
    what = "do nothing" if chosen is dense else f"use {chosen.name}"
    if chosen.step_s > _LATE * compute_s:
        for passes in _PASSES:
            passes_s = accumulated_s(compute_s, chosen.step_s - compute_s, passes)
            if passes_s < _SPREAD * chosen.step_s and passes_s <= _LATE * compute_s:
                accumulate = f"accumulate {passes}"
                also = accumulate if chosen is dense else f"{what} and {accumulate}"
                return f"{also}: a pass then takes {1 - passes_s / dense.step_s:.0%} less than now."
    if chosen is dense:
        return f"{what}: no other way is faster by more than its error."
    return f"{what}: a pass takes {1 - chosen.step_s / dense.step_s:.0%} less than now."


def _first_close(options: Sequence[Option]) -> Option:
    """In order of how little they change; an earlier one gives way only to what is faster beyond both's errors."""
    best = min(options, key=lambda option: option.step_s)
    return next(option for option in options if option.step_s <= _CLOSE * best.step_s + _noise(option, best))


def _noise(one: Option, other: Option) -> float:
    return math.hypot(one.error_s, other.error_s) if one is not other else 0.0
