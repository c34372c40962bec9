"""The solver: one choice a layer, of least total cost within an error budget, or the other way round.

A multiple-choice knapsack (L-GreCo, arXiv 2210.17357), solved in C++ with the GIL released. The same input gives the
same plan on every rank: no clock, no threads, and of equal plans the one of lowest indices among what was searched.

The rule of the budget: a plan is within it where its errors, added in float64 in the order of the layers, are at most
budget * (1 + 1e-12). So the total of any plan, however it was added up, is a budget within which that plan is.

Methods:
    lagrangian: linear relaxation on the choices' convex hulls, then a search that closes the gap; says how far from
        best the plan can be. 10 000 layers of 32 choices take about 10 ms.
    dp: the paper's dynamic programme over error in 10 000 cells. Slow, for comparison; never over the budget, and at
        most as costly as the best plan of a budget smaller by one cell a layer.
    exhaustive: every plan, for tests; at most 10 million plans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lgreco import _C

Table = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solution:
    """A plan and what is known of it.

    Attributes:
        choices: int32 [layers], a choice of each layer.
        cost: the plan's total cost, added in the order of the layers.
        error: likewise its total error.
        lower_bound: of what was minimised (cost, or error for `minimise_error`): no plan within the budget has less.
        gap: (what was minimised - lower_bound) / lower_bound; 0 where the plan is proven best, to 1e-9.
    """

    choices: npt.NDArray[np.int32]
    cost: float
    error: float
    lower_bound: float
    gap: float


def solve(
    errors: npt.ArrayLike,
    costs: npt.ArrayLike,
    budget: float,
    method: str = "lagrangian",
    reference: npt.ArrayLike | None = None,
) -> Solution:
    """The plan of least total cost among those of total error <= budget.

    Args:
        errors: float64 [layers, choices], from 0. NaN or infinity: that layer does not offer that choice.
        costs: likewise.
        budget: a real number from 0; infinity for none.
        method: lagrangian, dp or exhaustive.
        reference: int [layers], an offered choice of each layer; where it is within the budget, the plan costs no more.

    Raises:
        ValueError: for a layer without a choice, a negative value, shapes that differ, what are no real numbers, a
            budget that is NaN or negative, a reference that is not offered, an unknown method; or where no plan is
            within the budget, with the least attainable total error.
    """
    tables = _tables(errors, costs)
    limit = _number("budget", budget)
    return Solution(*_solved(method, *tables, limit, _reference(reference, tables), ("error", "cost")))


def minimise_error(
    errors: npt.ArrayLike,
    costs: npt.ArrayLike,
    cost_budget: float,
    method: str = "lagrangian",
    reference: npt.ArrayLike | None = None,
) -> Solution:
    """The plan of least total error among those of total cost <= cost_budget: `solve` with the tables exchanged.

    Args and errors as for `solve`; the rule of the budget holds for the cost.
    """
    tables = _tables(errors, costs)
    limited, minimised = tables[1], tables[0]
    given = _reference(reference, tables)
    found = _solved(method, limited, minimised, _number("cost_budget", cost_budget), given, ("cost", "error"))
    choices, error, cost, lower_bound, gap = found
    return Solution(choices, cost, error, lower_bound, gap)


def _solved(
    method: str,
    limited: Table,
    minimised: Table,
    budget: float,
    reference: npt.NDArray[np.int32] | None,
    names: tuple[str, str],
) -> tuple[npt.NDArray[np.int32], float, float, float, float]:
    """Solves near 1 what is near the ends of float64, where savings (cost over error) overflow and products lose bits.

    Scaling by powers of two is exact; what overflows then is 2^500 budgets large, in no plan, and so not offered.
    """
    spend, save = _exponent(budget), _exponent(float(np.max(minimised, where=np.isfinite(minimised), initial=0.0)))
    if spend or save:
        with np.errstate(over="ignore", under="ignore"):
            near = np.ldexp(limited, spend), np.ldexp(minimised, save), float(np.ldexp(budget, spend))
        try:
            choices, cost, error, lower_bound, gap = _C.solve(method, *near, reference, *names)
            return choices, math.ldexp(cost, -save), math.ldexp(error, -spend), math.ldexp(lower_bound, -save), gap
        except ValueError:
            pass  # to be said in the caller's own numbers
    found: tuple[npt.NDArray[np.int32], float, float, float, float]
    found = _C.solve(method, limited, minimised, budget, reference, *names)
    return found


def _exponent(size: float) -> int:
    """Of the power of two that brings a size near 1; 0 for one that is near enough, 0 or infinite."""
    exponent = math.frexp(size)[1]
    return -exponent if math.isfinite(size) and abs(exponent) > 500 else 0


def _tables(errors: npt.ArrayLike, costs: npt.ArrayLike) -> tuple[Table, Table]:
    tables = _table("errors", errors), _table("costs", costs)
    if tables[0].ndim != 2 or tables[0].shape != tables[1].shape:
        raise ValueError(
            f"errors and costs must both be [layers, choices], got {list(np.shape(errors))} and {list(np.shape(costs))}"
        )
    return tables


def _number(name: str, value: object) -> float:
    array = _table(name, value)
    if array.shape != ():
        raise ValueError(f"{name} must be one number, got {list(array.shape)}")
    return float(array)


def _table(name: str, values: Any) -> Table:
    """float64 of real numbers; of others numpy would take a part (complex, "3", True), or not say whose they are."""
    array = _array(name, values)
    if array.dtype.kind not in "fiuO":  # O: exact numbers (Fraction, whole ones beyond 64 bits), or what is none
        raise ValueError(f"{name} must be real numbers, got {array.dtype if array.shape else repr(values)}")
    return np.asarray(_array(name, array, np.float64), order="C")


def _array(name: str, values: Any, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """What numpy makes of it.

    Raises:
        ValueError: for what numpy cannot read: rows of different lengths, tensors in autograd, on a device or in bf16.
    """
    try:
        return np.asarray(values, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as numbers: {error}") from None


def _reference(reference: npt.ArrayLike | None, tables: tuple[Table, Table]) -> npt.NDArray[np.int32] | None:
    if reference is None:
        return None
    given = _array("reference", reference)
    layers, choices = tables[0].shape
    if given.shape != (layers,) or given.dtype.kind not in "iu":
        raise ValueError(f"reference must be whole numbers [{layers}], got {given.dtype} {list(given.shape)}")
    outside = np.flatnonzero((given < 0) | (given >= choices))
    if outside.size:  # before the conversion, which would wrap it
        layer = outside[0]
        raise ValueError(f"the reference choice of layer {layer} must be 0..{choices - 1}, got {given[layer]}")
    return given.astype(np.int32)
