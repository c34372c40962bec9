"""The planner: a table's rows become an error table, a budget and the plan that spends it; same rows, same plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lgreco import error_table_file, solver
from lgreco.budget import Array, Budget, Detector, make_budget, total, weighted_errors
from lgreco.candidates import Offers
from lgreco.choice import LowRank
from lgreco.error_table import ErrorTable
from lgreco.measurement import Row
from lgreco.pricing import Pricing
from lgreco.solver_config import SolverConfig

_WORTH_A_SWAP = 1e-3
"""Share of its bytes that a new plan must save: swapping moves residuals and cuts warm starts."""

_USUAL_START, _WORST_START = 1.2, 2.0
"""How much of the best rank's error a warm-started iteration leaves: at first sight (a byte-level GPT and a deep tanh
network under AdamW: 1.2), and at most, before it is taken for noise."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What came of one table.

    Attributes:
        table: averaged and monotone.
        columns: the plan: a column of the table for each layer; the present plan's where it stays.
        problem: why no plan was found, None where one was.
        budget: None where there was a problem.
        error: that the plan spends, in the budget's norm; NaN after a problem.
        cost: bytes that a rank sends in a step under the plan.
        gap: relative distance of the solution from its lower bound.
        solve_ms: time of the solver.
        predicted: layer -> squared error of the choice that was in force, as this table predicts it.
        realised: layer -> the same as it came out.
    """

    table: ErrorTable
    columns: tuple[int, ...]
    problem: str | None
    budget: Budget | None
    error: float
    cost: float
    gap: float
    solve_ms: float
    predicted: Mapping[str, float]
    realised: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is solved, whatever plans cost: errors float64 [L, C] and what they may sum up to.

    Layers of `broken` keep their column of `present`, the plan in force; `reference` keeps to the budget.
    """

    errors: Array
    budget: Budget
    reference: Sequence[int]
    broken: Sequence[int]
    present: Sequence[int]


class Planner:
    """Decides plan after plan; what it remembers between them is its state.

    With a pricing, plans are of least exposed time instead of fewest bytes (unless bytes are the budget).
    """

    def __init__(self, offers: Offers, settings: SolverConfig, world_size: int, pricing: Pricing | None = None) -> None:
        self._pricing = pricing
        self._offers = offers
        self._settings = settings
        self._world_size = world_size
        self._measurable = frozenset(offers.measurable())
        self._history: list[ErrorTable] = []
        self._detector = Detector()
        self._corrections = np.full(len(offers.layers), np.nan)  # NaN: nothing learnt yet

    def decide(
        self, rows: Mapping[int, Row], in_force: Sequence[int], present: Sequence[int], step: int, effective_step: int
    ) -> Decision:
        """A plan from the rows of one table.

        Args:
            rows: by layer; a layer that is missing, or has an inf or NaN, keeps its present choice.
            in_force: columns under which the rows were measured; -1 where dense warm-up steps were made instead.
            present: the plan that stays where no better one is found.
            step: of the last measurement.
            effective_step: from which on the plan will be used.
        """
        offers = self._offers
        broken = [row for row in self._measurable if row not in rows or not self._is_sound(row, rows[row])]
        predicted, realised = self._compare(rows, in_force, broken)
        self._learn(rows, in_force, broken)
        newest = self._table(rows, broken, present, step)
        tables = [*self._history, newest][-self._settings.average :]
        self._history = tables[1 - self._settings.average :] if self._settings.average > 1 else []
        table = _only(ErrorTable.averaged(tables), broken, present).monotone()
        reference = [present[row] if row in broken else offers.reference[row] for row in range(len(offers.layers))]
        errors = weighted_errors(table, self._settings)
        budget = make_budget(table, errors, reference, self._settings, effective_step, self._detector)
        begun = time.perf_counter()
        problem, gap = None, 0.0
        columns: tuple[int, ...] = tuple(present)
        try:
            columns, gap = self._cheapest(_Problem(errors, budget, reference, broken, present), table.costs)
        except ValueError as reason:
            problem = str(reason)
        solve_ms = (time.perf_counter() - begun) * 1e3
        error = float("nan") if problem else total(errors, columns)
        cost = total(offers.costs, columns)
        return Decision(
            table, columns, problem, None if problem else budget, error, cost, gap, solve_ms, predicted, realised
        )

    def state(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        return {
            "history": [table.to_json() for table in self._history],
            "corrections": self._corrections.tolist(),
            "norm": self._detector.norm,
            "critical": self._detector.critical,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` gave; tables of other layers, choices, ranks or offers are left out."""
        tables = [ErrorTable(**error_table_file.read(text.encode())) for text in state["history"]]
        self._history = [table for table in tables if self._is_mine(table)]
        self._detector = Detector(state["norm"], state["critical"])
        self._corrections = np.array(state["corrections"], dtype=np.float64)

    def _is_mine(self, table: ErrorTable) -> bool:
        """Whether a table can be averaged with the next: what it alone offers would be offered again."""
        mine = (self._offers.layers, self._offers.choices, self._world_size)
        same = (table.layers, table.choices, table.world_size) == mine
        return same and bool((np.isnan(table.costs) != self._offers.offered).all())

    def _is_sound(self, row: int, measured: Row) -> bool:
        return measured.sound and bool(np.isfinite(measured.errors[self._offers.offered[row]]).all())

    def _correction(self, row: int) -> Array:
        """float64 [C]: factors on the errors that a sketch has given."""
        known = self._corrections[row]
        if np.isnan(known):  # as of the layers that have run under a rank
            others = self._corrections[~np.isnan(self._corrections)]
            known = others.mean() if len(others) else _USUAL_START
        return np.array([known if isinstance(choice, LowRank) else 1.0 for choice in self._offers.choices])

    def _compare(
        self, rows: Mapping[int, Row], in_force: Sequence[int], broken: Sequence[int]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Errors predicted and realised of what was in force, without what is about to be learnt from them."""
        predicted, realised = {}, {}
        for row in sorted(set(rows).difference(broken)):
            if in_force[row] >= 0:
                name = self._offers.layers[row].name
                predicted[name] = float((rows[row].errors * self._correction(row))[in_force[row]])
                realised[name] = rows[row].realised
        return predicted, realised

    def _learn(self, rows: Mapping[int, Row], in_force: Sequence[int], broken: Sequence[int]) -> None:
        """How much worse than a sketch's best rank the warm-started iteration comes out, layer by layer."""
        for row in set(rows).difference(broken):
            column = in_force[row]
            if column < 0 or not isinstance(self._offers.choices[column], LowRank) or rows[row].errors[column] <= 0:
                continue
            ratio = min(max(rows[row].realised / rows[row].errors[column], 1.0), _WORST_START)
            known = self._corrections[row]
            self._corrections[row] = ratio if np.isnan(known) else (known + ratio) / 2

    def _table(self, rows: Mapping[int, Row], broken: Sequence[int], present: Sequence[int], step: int) -> ErrorTable:
        offers = self._offers
        errors = np.where(offers.offered, 0.0, np.nan)
        norms = np.zeros(len(offers.layers))
        for row in self._measurable.difference(broken):
            offered = offers.offered[row]
            errors[row, offered] = (rows[row].errors * self._correction(row))[offered]
            norms[row] = rows[row].squared_norm
        table = ErrorTable(offers.layers, offers.choices, errors, norms, offers.costs, self._world_size, step)
        return _only(table, broken, present)

    def _cheapest(self, problem: _Problem, costs: Array) -> tuple[tuple[int, ...], float]:
        """The plan of fewest bytes, or, with a pricing, of least exposed time among those of several solutions.

        Raises:
            ValueError: where no plan keeps to the budget.
        """
        if self._pricing is None or problem.budget.error is None:
            return self._solve(problem, costs)
        found = [self._solve(problem, prices) for prices in self._pricing.tables(problem.present)]
        exposed = {columns: self._pricing.exposed_s(columns) for columns, _ in found}
        columns, gap = min(found, key=lambda plan: (exposed[plan[0]], total(costs, plan[0])))
        there = tuple(problem.present)
        stays = there in exposed and exposed[there] <= exposed[columns] * (1 + _WORTH_A_SWAP)
        return (there, gap) if stays else (columns, gap)

    def _solve(self, problem: _Problem, costs: Array) -> tuple[tuple[int, ...], float]:
        """The cheapest of: the solver's plan, uniform plans, and the present one where nothing is worth a swap.

        Raises:
            ValueError: where no plan keeps to the budget.
        """
        errors, budget, present = problem.errors, problem.budget, problem.present
        if budget.error is not None:
            spend, save, limit = errors, costs, budget.error
            found = solver.solve(errors, costs, limit, method=self._settings.method, reference=problem.reference)
        else:
            assert budget.bytes is not None, "a budget is of errors or of bytes"
            spend, save, limit = costs, errors, budget.bytes
            found = solver.minimise_error(errors, costs, limit, method=self._settings.method)
        limit *= 1 + 1e-12  # sums in another order must not make the reference's own budget infeasible
        columns = tuple(int(column) for column in found.choices)
        gap = float(found.gap)
        for column in range(costs.shape[1]):
            uniform = [
                present[row] if row in problem.broken else at for row, at in enumerate(self._offers.uniform(column))
            ]
            if total(spend, uniform) <= limit and total(save, uniform) < total(save, columns):
                columns, gap = tuple(uniform), 0.0
        stays = total(spend, present) <= limit and total(save, present) <= total(save, columns) * (1 + _WORTH_A_SWAP)
        return (tuple(present), gap) if stays else (columns, gap)


def _only(table: ErrorTable, rows: Sequence[int], columns: Sequence[int]) -> ErrorTable:
    """The table with one choice, counted as without error, for each of some layers."""
    if not rows:
        return table
    errors: npt.NDArray[np.float64] = table.squared_errors.copy()
    for row in rows:
        errors[row] = np.nan
        errors[row, columns[row]] = 0.0
    return replace(table, squared_errors=errors)
