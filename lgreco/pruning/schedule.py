"""Schedules: how sparse a model is to be after a number of optimizer steps; pure functions of the step.

A schedule has updates, the steps at which masks change: `begin`, every `every` steps after it, and `end`, which is
always one, also where `every` does not divide the ramp. Between updates the level stays; before `begin` nothing is
pruned; from `end` on the level is exactly `final`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any


def check_level(name: str, level: float) -> None:
    """Refuses what is no share of pruned weights.

    Raises:
        ValueError: unless 0 <= level < 1.
    """
    if not isinstance(level, int | float) or isinstance(level, bool) or not 0.0 <= level < 1.0:
        raise ValueError(f"{name} must be a sparsity from 0 to below 1, got {level!r}")


def _check_step(name: str, step: object, least: int) -> None:
    if not isinstance(step, int) or isinstance(step, bool) or step < least:
        raise ValueError(f"{name} must be a whole number of steps from {least}, got {step!r}")


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Sparsity as a function of the optimizer steps done.

    Attributes:
        final: the level from `end` on.
        begin: step of the first update.
        end: step of the last one.
        every: steps between updates.

    Raises:
        ValueError: for steps out of order, or a level outside 0 to below 1.
    """

    final: float
    begin: int
    end: int
    every: int

    def __post_init__(self) -> None:
        check_level("final", self.final)
        _check_step("begin", self.begin, 0)
        _check_step("end", self.end, self.begin)
        _check_step("every", self.every, 1)

    def __call__(self, step: int) -> float:
        """The level in force after `step` optimizer steps: that of the last update, 0 before the first."""
        update = self.last_update(step)
        return 0.0 if update is None else self._level(update)

    def last_update(self, step: int) -> int | None:
        """The step of the newest update that is due after `step` steps; None before the first."""
        if step < self.begin:
            return None
        if step >= self.end:
            return self.end
        return self.begin + (step - self.begin) // self.every * self.every

    def next_update(self, step: int) -> int | None:
        """The step of the first update after `step`; None where there is none."""
        if step < self.begin:
            return self.begin
        if step >= self.end:
            return None
        return min(self.end, self.begin + ((step - self.begin) // self.every + 1) * self.every)

    @abstractmethod
    def _level(self, update: int) -> float:
        """The level of an update's step."""

    def to_dict(self) -> dict[str, Any]:
        """Its kind and settings, as `of_dict` reads them."""
        kind = next(name for name, made in SCHEDULES.items() if made is type(self))
        return {"kind": kind, **{field.name: getattr(self, field.name) for field in fields(self)}}


@dataclass(frozen=True, kw_only=True)
class PolynomialSchedule(Schedule):
    """From `initial` at `begin` to `final` at `end`, fast first: s_f + (s_i - s_f) (1 - x)^power.

    x is the share of the ramp that is done. Power 3 is equation 1 of Zhu & Gupta, arXiv 1710.01878.
    """

    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("initial", self.initial)
        if not isinstance(self.power, int | float) or isinstance(self.power, bool) or not self.power > 0:
            raise ValueError(f"power must be a number above 0, got {self.power!r}")

    def _level(self, update: int) -> float:
        if update >= self.end:
            return self.final
        if update == self.begin:
            return self.initial
        left = 1.0 - (update - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * math.pow(left, self.power)


def CubicSchedule(initial: float, final: float, begin: int, end: int, every: int) -> PolynomialSchedule:  # noqa: N802  # it makes a schedule, as the classes beside it do
    """Gradual pruning of Zhu & Gupta: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3."""
    return PolynomialSchedule(initial=initial, final=final, begin=begin, end=end, every=every, power=3.0)


def LinearSchedule(initial: float, final: float, begin: int, end: int, every: int) -> PolynomialSchedule:  # noqa: N802  # likewise
    """As much more at each update."""
    return PolynomialSchedule(initial=initial, final=final, begin=begin, end=end, every=every, power=1.0)


@dataclass(frozen=True, kw_only=True)
class ExponentialSchedule(Schedule):
    """At each update the same share of what is left is pruned: the density falls geometrically."""

    initial: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("initial", self.initial)

    def _level(self, update: int) -> float:
        if update >= self.end:
            return self.final
        if update == self.begin:
            return self.initial
        done = (update - self.begin) / (self.end - self.begin)
        return 1.0 - (1.0 - self.initial) * math.pow((1.0 - self.final) / (1.0 - self.initial), done)


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule(Schedule):
    """One level from `begin` to `end`; masks are chosen anew at each update, which regrowth makes use of."""

    def _level(self, update: int) -> float:
        return self.final


def OneShotSchedule(final: float, at: int = 0) -> ConstantSchedule:  # noqa: N802  # likewise
    """All at once after `at` steps, and never again."""
    return ConstantSchedule(final=final, begin=at, end=at, every=1)


@dataclass(frozen=True, kw_only=True)
class CyclicSchedule(Schedule):
    """Prune and recover: periods of `every` steps, of which each first part has level `low`, the rest `final`.

    A period begins at an update with the level `low`; after `recover_steps` it is pruned to `final` again. The last
    update, at `end`, is `final`.
    """

    low: float = 0.0
    recover_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level("low", self.low)
        _check_step("recover_steps", self.recover_steps, 1)
        if self.recover_steps >= self.every:
            raise ValueError(f"recover_steps must be below every ({self.every}), got {self.recover_steps}")

    def last_update(self, step: int) -> int | None:
        """See Schedule; each period has two updates."""
        update = super().last_update(step)
        if update is None or update == self.end or step < update + self.recover_steps:
            return update
        return update + self.recover_steps

    def next_update(self, step: int) -> int | None:
        """See Schedule."""
        begun = super().last_update(step)
        following = super().next_update(step)
        if begun is None or following is None:
            return following
        return min(self.end, begun + self.recover_steps) if step < begun + self.recover_steps else following

    def _level(self, update: int) -> float:
        return self.low if update < self.end and (update - self.begin) % self.every == 0 else self.final


SCHEDULES: dict[str, type[Schedule]] = {
    "polynomial": PolynomialSchedule,
    "exponential": ExponentialSchedule,
    "constant": ConstantSchedule,
    "cyclic": CyclicSchedule,
}


def of_dict(settings: dict[str, Any]) -> Schedule:
    """The schedule that `kind` and further settings name; also cubic, linear and one_shot.

    Raises:
        ValueError: for an unknown kind, or settings that it does not take or lacks.
    """
    settings = dict(settings)
    kind = settings.pop("kind", "cubic")
    makers: dict[str, Any] = {
        **SCHEDULES,
        "cubic": CubicSchedule,
        "linear": LinearSchedule,
        "one_shot": OneShotSchedule,
    }
    if not isinstance(kind, str) or kind not in makers:
        raise ValueError(f"schedule must be one of {', '.join(makers)}, got {kind!r}")
    if kind in ("cubic", "linear"):
        settings.setdefault("initial", 0.0)
    try:
        made: Schedule = makers[kind](**settings)
    except TypeError as error:
        raise ValueError(f"{kind} schedule: {str(error).partition(') ')[2] or error}") from None
    return made


def mean_density(schedule: Schedule) -> float:
    """Mean share of kept weights over the ramp, its updates `every` apart; 1 - 0.75 s_f for a fine cubic from 0."""
    steps = range(schedule.begin, max(schedule.end, schedule.begin + 1))
    return math.fsum(1.0 - schedule(step) for step in steps) / len(steps)
