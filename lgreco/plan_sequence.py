"""Which plan is in force at which step: the present one, and those that are due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lgreco.candidates import Offers

Columns = tuple[int, ...]
"""A plan as the solver has it: of each layer, the column of its choice."""


@dataclass(frozen=True)
class PlanSequence:
    """Plans with the steps that they take effect at, in their order."""

    plans: tuple[tuple[int, Columns], ...]

    @classmethod
    def of(cls, columns: Columns) -> PlanSequence:
        """One plan, from the first step on."""
        return cls(((0, columns),))

    def at(self, steps: int) -> Columns:
        """The plan in force after so many committed steps."""
        return next((columns for step, columns in reversed(self.plans) if step <= steps), self.plans[0][1])

    def then(self, step: int, columns: Columns) -> PlanSequence:
        """With a plan from that step on; what was in force before the last one is forgotten."""
        return PlanSequence((*self.plans[-1:], (step, columns)))

    def pack(self) -> list[Any]:
        """Plain containers, for a checkpoint."""
        return [[step, list(columns)] for step, columns in self.plans]


def unpack_plans(saved: Sequence[Any], offers: Offers) -> tuple[PlanSequence, set[int]]:
    """Packed plans as far as they are still offered, and the layers that take the reference plan's choice instead.

    Where nothing was packed, the reference plan.
    """
    if not saved:
        return PlanSequence.of(offers.reference), set()
    plans = tuple((step, offers.offered_or_reference(columns)) for step, columns in saved)
    stale = {
        row
        for (_, old), (_, new) in zip(saved, plans, strict=True)
        for row, (before, after) in enumerate(zip(old, new, strict=True))
        if before != after
    }
    return PlanSequence(plans), stale
