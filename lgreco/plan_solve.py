"""Solving a saved error table, and what that gains over the best uniform choice of each family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lgreco import solver
from lgreco.choice import Choice
from lgreco.error_table import Array, ErrorTable
from lgreco.family import family, in_order
from lgreco.norm import additive_errors, gradient_total
from lgreco.plan import Plan, PlannedLayer
from lgreco.record_kinds import ring_bytes


@dataclass(frozen=True)
class Spent:
    """A plan's columns with its totals: bytes that a rank sends in a step, and error in the norm asked for."""

    columns: tuple[int, ...]
    cost: float
    error: float


@dataclass(frozen=True)
class Uniform:
    """The best uniform choice of a family: cheapest within the limit, or None where none is within it."""

    family: str
    choice: Choice | None
    spent: Spent | None


@dataclass(frozen=True)
class Solved:
    """A solved table.

    Attributes:
        table: that was solved.
        spent: by the plan.
        plan: its choices.
        limit: error that uniform choices may spend when compared: the budget; under a budget of bytes the plan's own.
        gap: relative distance from the proven lower bound of what was minimised.
        uniforms: one for each family of the table, in order.
    """

    table: ErrorTable
    spent: Spent
    plan: Plan
    limit: float
    gap: float
    uniforms: tuple[Uniform, ...]

    @property
    def dense_bytes(self) -> float:
        """Sent by a rank per step of a ring allreduce of the same gradients."""
        return ring_bytes(self.table.layers, self.table.world_size)


@dataclass(frozen=True)
class Budget:
    """What a plan may spend: `alpha` times the reference's error, a relative error, or bytes per step.

    Attributes:
        reference: uniform choice; None where the budget does not come from one.
        alpha: factor on its error.
        relative_error: share of the gradient's norm, both summed over layers in the norm asked for.
        bytes: that ranks may send in a step, on the mean; the error is minimised then.
    """

    reference: Choice | None = None
    alpha: float = 1.0
    relative_error: float | None = None
    bytes: float | None = None


def solve_table(table: ErrorTable, budget: Budget, norm: str = "adam", method: str | None = None) -> Solved:
    """Solves a table as the controller does in training, and compares.

    Args:
        table: `monotone()`, as the controller solves it too.
        budget: what may be spent.
        norm: how errors of layers add up, one of lgreco.norm.NORMS.
        method: of the solver; None for its own default.

    Raises:
        ValueError: for a reference that is not in the table, or a budget that no plan meets.
    """
    errors = additive_errors(table, norm)
    reference = None if budget.reference is None else table.uniform(budget.reference)
    settings: dict[str, Any] = {} if method is None else {"method": method}
    if reference is not None:
        settings["reference"] = np.array(reference, dtype=np.int32)
    if budget.bytes is not None:
        solution = solver.minimise_error(errors, table.costs, budget.bytes, **settings)
        limit = _spent(table, errors, solution.choices.tolist()).error
    else:
        if budget.relative_error is not None:
            limit = budget.relative_error * gradient_total(table, norm)
        elif reference is not None:
            limit = budget.alpha * _spent(table, errors, reference).error
        else:
            raise ValueError("a budget is a reference, a relative error or bytes, got none of them")
        solution = solver.solve(errors, table.costs, limit, **settings)
    columns = [int(column) for column in solution.choices]
    chosen = [table.choices[column] for column in columns]
    plan = Plan(PlannedLayer(layer, choice, "solved") for layer, choice in zip(table.layers, chosen, strict=True))
    uniforms = _best_uniforms(table, errors, limit)
    return Solved(table, _spent(table, errors, columns), plan, limit, float(solution.gap), uniforms)


def _spent(table: ErrorTable, errors: Array, columns: Sequence[int]) -> Spent:
    cells = list(enumerate(columns))
    cost, error = (math.fsum(values[cell] for cell in cells) for values in (table.costs, errors))
    return Spent(tuple(columns), cost, error)


def _best_uniforms(table: ErrorTable, errors: Array, limit: float) -> tuple[Uniform, ...]:
    best: dict[str, Uniform] = {}
    for choice in in_order(table.choices):
        spent = _spent(table, errors, table.uniform(choice))
        now = best.setdefault(family(choice), Uniform(family(choice), None, None))
        if spent.error <= limit * (1 + 1e-12) and (now.spent is None or spent.cost < now.spent.cost):
            best[family(choice)] = Uniform(family(choice), choice, spent)
    return tuple(best.values())
