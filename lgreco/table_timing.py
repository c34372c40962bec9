"""When tables are measured and their plans take effect: arithmetic on committed steps, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from lgreco.solver_config import SolverConfig

_QUIET_STEPS = 4
"""Steps before a table in which the link is watched."""


@dataclass(frozen=True)
class TableTiming:
    """Tables begin every `interval` steps; a plan takes effect `lag` steps after the last of its table's `window`."""

    interval: int
    window: int
    lag: int
    warmup_steps: int

    @classmethod
    def of(cls, settings: SolverConfig, warmup_steps: int) -> TableTiming:
        """As the solver's settings say, after so many dense steps."""
        return cls(settings.interval, settings.window, settings.lag, warmup_steps)

    def effective_step(self, begin: int) -> int:
        """The first step under the plan of the table that begins at that step."""
        return begin + self.window - 1 + self.lag

    def next_begin(self, steps: int) -> int:
        """The first table that begins after `steps` committed steps; the very first plan is there as warm-up ends."""
        first = max(0, self.warmup_steps - self.effective_step(0))
        late = max(0, steps - first)
        return first + -(-late // self.interval) * self.interval

    def quiet_steps(self, begin: int, steps: int) -> range:
        """Steps before a table, of those after `steps`, that the plan in force at its begin has to itself."""
        swapped = self.effective_step(begin - self.interval)
        return range(max(steps, swapped, begin - _QUIET_STEPS), begin)
