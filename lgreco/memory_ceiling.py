"""A second limit: the least cost within the error budget and within so much memory.

Memory is given a price, added to the cost, and the price is sought at which the plan just fits (Handler and Zang 1980):
between a plan that is too large and one that fits, the next price is the one at which both are worth the same.

What is guaranteed: the plan is within both limits, each by the rule of the budget; the same input gives the same plan;
and one is found wherever the plan of least memory that `solve` finds fits. The plan need not be the best one: no price
leads to some plans. `lower_bound` and `gap` say how far from best it can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lgreco.solver import Solution, solve

# Each price at least halves what is in doubt, as a rule; a few suffice.
_MOST_PRICES = 40
_SMALL_GAP = 1e-6
_TOLERANCE = 1e-12

Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Problem:
    """Tables of one shape [layers, choices], NaN where a choice is not offered."""

    errors: Table
    costs: Table
    memory_bytes: Table
    budget: float
    ceiling_bytes: float

    def total_bytes(self, plan: Solution) -> float:
        """Added in the order of the layers."""
        return float(np.cumsum(self.memory_bytes[np.arange(len(plan.choices)), plan.choices])[-1])

    def total_cost(self, plan: Solution) -> float:
        """Likewise."""
        return float(np.cumsum(self.costs[np.arange(len(plan.choices)), plan.choices])[-1])

    def fits(self, plan: Solution) -> bool:
        """Whether it is within the ceiling."""
        return self.total_bytes(plan) <= self.ceiling_bytes * (1 + _TOLERANCE)


def solve_within_memory(
    errors: npt.ArrayLike,
    costs: npt.ArrayLike,
    budget: float,
    memory_bytes: npt.ArrayLike,
    ceiling_bytes: float,
) -> Solution:
    """A plan of little total cost with total error <= budget and total memory <= ceiling_bytes.

    Args:
        errors: as for `lgreco.solver.solve`.
        costs: likewise.
        budget: of the error.
        memory_bytes: [layers, choices], from 0; NaN or infinity: not offered.
        ceiling_bytes: from 0; infinity for none.

    Raises:
        ValueError: as `solve`, for memory that is negative or of another shape, or where no plan was found within both
            limits, with the least memory found.
    """
    problem = _problem(errors, costs, budget, memory_bytes, ceiling_bytes)
    large = solve(problem.errors, problem.costs, budget)
    if problem.fits(large):
        return large
    small = solve(problem.errors, problem.memory_bytes, budget)
    if not problem.fits(small):
        raise ValueError(
            f"the memory ceiling of {ceiling_bytes:g} bytes is below {problem.total_bytes(small):g} bytes, the least "
            f"found within the error budget {budget:g} (none takes less than {small.lower_bound:g})"
        )
    return _close_in(problem, large, small)


def _close_in(problem: _Problem, large: Solution, small: Solution) -> Solution:
    """The cheapest plan that fits among those that prices lead to, with the best bound that prices give."""
    best, bound = small, large.lower_bound
    for _ in range(_MOST_PRICES):
        saved_bytes = problem.total_bytes(large) - problem.total_bytes(small)
        price = (problem.total_cost(small) - problem.total_cost(large)) / saved_bytes
        if price <= 0:  # the small plan is no costlier: no price is needed
            break
        found = solve(problem.errors, problem.costs + price * problem.memory_bytes, problem.budget)
        bound = max(bound, found.lower_bound - price * problem.ceiling_bytes)
        fits = problem.fits(found)
        if fits and problem.total_cost(found) < problem.total_cost(best):
            best = found
        worth = problem.total_cost(large) + price * problem.total_bytes(large)
        if found.cost >= worth * (1 - _TOLERANCE) or problem.total_cost(best) - bound <= _SMALL_GAP * bound:
            break
        if fits:
            small = found
        else:
            large = found
    cost = problem.total_cost(best)
    bound = min(bound, cost)
    gap = 0.0 if bound == cost else (cost - bound) / bound if bound > 0 else np.inf
    return Solution(best.choices, cost, best.error, bound, gap)


def _problem(
    errors: npt.ArrayLike, costs: npt.ArrayLike, budget: float, memory_bytes: npt.ArrayLike, ceiling_bytes: float
) -> _Problem:
    tables = [np.array(table, np.float64) for table in (errors, costs, memory_bytes)]
    shapes = [list(table.shape) for table in tables]
    if tables[0].ndim != 2 or shapes[1] != shapes[0] or shapes[2] != shapes[0]:
        raise ValueError(
            "errors, costs and memory_bytes must all be [layers, choices], "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    if np.any(tables[2] < 0):
        raise ValueError(f"memory must not be negative, got {np.nanmin(tables[2])}")
    if not ceiling_bytes >= 0:
        raise ValueError(f"the memory ceiling must be a number of bytes from 0, got {ceiling_bytes}")
    # A choice is offered where all three tables offer it, for each of the problems that are solved.
    errors_offered = np.where(np.isfinite(tables[1]) & np.isfinite(tables[2]), tables[0], np.nan)
    return _Problem(errors_offered, tables[1], tables[2], float(budget), float(ceiling_bytes))
