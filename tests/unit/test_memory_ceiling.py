"""Plans within an error budget and a memory ceiling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgreco.memory_ceiling import solve_within_memory
from lgreco.solver import solve

Table = npt.NDArray[np.float64]


def random_problem(seed: int, layers: int, choices: int) -> tuple[Table, Table, Table]:
    random = np.random.default_rng(seed)
    errors, costs, memory = random.uniform(0, 1, (3, layers, choices))
    memory[:, 1:][random.uniform(size=(layers, choices - 1)) < 0.1] = np.nan
    return errors, costs, memory


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1))
def test_plans_are_within_both_limits_and_bounds_below_the_best(
    seed: int, layers: int, choices: int, error_share: float, memory_share: float
) -> None:
    errors, costs, memory = random_problem(seed, layers, choices)
    offered = np.isfinite(memory)
    rows = np.arange(layers)
    plans = [np.array(plan) for plan in itertools.product(*(np.flatnonzero(row) for row in offered))]
    totals = np.array([[table[rows, plan].sum() for table in (errors, costs, memory)] for plan in plans])
    budget = np.quantile(totals[:, 0], error_share) + 1e-9
    within = totals[totals[:, 0] <= budget]
    ceiling = np.quantile(within[:, 2], memory_share) + 1e-9
    best = within[within[:, 2] <= ceiling][:, 1].min()
    found = solve_within_memory(errors, costs, budget, memory, ceiling)
    assert errors[rows, found.choices].sum() <= budget + 1e-9
    assert memory[rows, found.choices].sum() <= ceiling + 1e-9
    assert found.cost == pytest.approx(costs[rows, found.choices].sum())
    assert best - 1e-9 <= found.cost
    assert found.lower_bound <= best + 1e-9
    assert found.gap == 0 or found.gap == pytest.approx((found.cost - found.lower_bound) / found.lower_bound)


def test_many_layers_come_close_to_best() -> None:
    errors, costs, memory = random_problem(1, 2000, 8)
    free = solve(errors, np.where(np.isfinite(memory), costs, np.nan), 400.0)
    least = solve(errors, memory, 400.0)
    used = memory[np.arange(2000), free.choices].sum()
    for share in (0.1, 0.5, 0.9):
        ceiling = least.cost + share * (used - least.cost)
        found = solve_within_memory(errors, costs, 400.0, memory, ceiling)
        assert memory[np.arange(2000), found.choices].sum() <= ceiling * (1 + 1e-12)
        assert found.error <= 400.0 * (1 + 1e-12)
        assert found.gap <= 1e-2
        assert np.array_equal(found.choices, solve_within_memory(errors, costs, 400.0, memory, ceiling).choices)


def test_a_ceiling_that_does_not_bind_changes_nothing() -> None:
    errors, costs, memory = random_problem(2, 50, 8)
    free = solve(errors, np.where(np.isfinite(memory), costs, np.nan), 10.0)
    assert np.array_equal(solve_within_memory(errors, costs, 10.0, memory, math.inf).choices, free.choices)


def test_a_ceiling_below_every_plan_is_refused_with_the_least_found() -> None:
    with pytest.raises(ValueError, match=r"memory ceiling of 5 bytes is below 6 bytes, the least found .*less than 6"):
        solve_within_memory([[1.0, 2.0]] * 2, [[2.0, 1.0]] * 2, 4.0, [[3.0, 4.0]] * 2, 5.0)


def test_tables_that_are_none_are_refused() -> None:
    two = [[1.0, 2.0]] * 2
    with pytest.raises(
        ValueError, match=r"^errors, costs and memory_bytes must all be .*\[2, 2\], \[2, 2\] and \[2\]$"
    ):
        solve_within_memory(two, two, 4.0, [1.0, 2.0], 5.0)
    with pytest.raises(ValueError, match=r"^memory must not be negative, got -1\.0$"):
        solve_within_memory(two, two, 4.0, [[1.0, -1.0]] * 2, 5.0)
    with pytest.raises(ValueError, match=r"^the memory ceiling must be a number of bytes from 0, got nan$"):
        solve_within_memory(two, two, 4.0, two, math.nan)
