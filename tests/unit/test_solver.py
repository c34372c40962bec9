"""The solver: plans against every plan there is, within the budget to the last bit, and refusals that say why."""

from __future__ import annotations

import itertools
import math
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lgreco.solver import Solution, minimise_error, solve

Table = npt.NDArray[np.float64]
METHODS = ("lagrangian", "dp")
NAN, INF = math.nan, math.inf

sizes = st.one_of(
    st.integers(0, 9).map(float),
    st.floats(0, 100, allow_subnormal=False),
    st.floats(-30, 30).map(lambda exponent: 10.0**exponent),
)
missing = st.sampled_from([NAN, INF])


@st.composite
def problems(draw: st.DrawFn, holes: bool = True) -> tuple[Table, Table]:
    """Errors and costs of a few layers and choices; each layer offers its first choice."""
    layers, choices = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    tables = [np.array(draw(st.lists(sizes, min_size=layers * choices, max_size=layers * choices))) for _ in range(2)]
    errors, costs = (table.reshape(layers, choices) for table in tables)
    if holes:
        for layer in range(layers):
            for choice in range(1, choices):
                if draw(st.integers(0, 5)) == 0:
                    (errors if draw(st.booleans()) else costs)[layer, choice] = draw(missing)
    return errors, costs


@st.composite
def solvable(draw: st.DrawFn) -> tuple[Table, Table, float]:
    """A problem and a budget that some plan meets: often exactly some plan's total."""
    errors, costs = draw(problems())
    plans = every_plan(errors, costs)
    error, _, _ = plans[draw(st.integers(0, len(plans) - 1))]
    return errors, costs, error * draw(st.sampled_from([1.0, 1.0, 1.5, 10.0]))


def every_plan(errors: Table, costs: Table) -> list[tuple[float, float, tuple[int, ...]]]:
    """(error, cost, choices) of each plan, added in the order of the layers."""
    offered = np.isfinite(errors) & np.isfinite(costs)
    plans = itertools.product(*(np.flatnonzero(row).tolist() for row in offered))
    return [
        (sum(errors[i, k] for i, k in enumerate(plan)), sum(costs[i, k] for i, k in enumerate(plan)), plan)
        for plan in plans
    ]


def least_cost(errors: Table, costs: Table, budget: float) -> float:
    """By the rule of the budget."""
    return min(cost for error, cost, _ in every_plan(errors, costs) if error <= budget * (1 + 1e-12))


def totals(errors: Table, costs: Table, solution: Solution) -> tuple[float, float]:
    """Added in the order of the layers, in float64."""
    error = cost = 0.0
    for layer, choice in enumerate(solution.choices):
        error += float(errors[layer, choice])
        cost += float(costs[layer, choice])
    return error, cost


def many(layers: int, choices: int = 32, seed: int = 0) -> tuple[Table, Table]:
    """As quantisation makes them: error falls by 4 with each bit, sizes span six decades."""
    random = np.random.default_rng(seed)
    numel = np.round(10 ** random.uniform(2, 8, (layers, 1)))
    bits = np.linspace(1, 8, choices)
    return numel * np.exp(random.normal(0, 1, (layers, 1))) * 4.0**-bits, np.ceil(numel * bits / 8)


@given(solvable())
def test_lagrangian_is_best_or_says_how_far_it_may_be(problem: tuple[Table, Table, float]) -> None:
    errors, costs, budget = problem
    best = least_cost(errors, costs, budget)
    found = solve(errors, costs, budget)
    assert found.cost >= best * (1 - 1e-12)
    assert found.lower_bound <= best * (1 + 1e-9)
    assert found.lower_bound <= found.cost
    if found.gap == 0:
        assert found.cost <= best * (1 + 1e-9)
    elif found.lower_bound > 0:
        assert found.gap == (found.cost - found.lower_bound) / found.lower_bound
    else:
        assert found.gap == INF


@given(solvable())
def test_dp_is_within_one_cell_a_layer_of_best(problem: tuple[Table, Table, float]) -> None:
    errors, costs, budget = problem
    offered = np.isfinite(errors) & np.isfinite(costs)
    least = np.where(offered, errors, INF).min(axis=1).sum()
    smaller = budget - (budget - least) * len(errors) / 10_000
    found = solve(errors, costs, budget, "dp")
    assert found.cost >= least_cost(errors, costs, budget) * (1 - 1e-12)
    assert found.cost <= least_cost(errors, costs, max(smaller, least)) * (1 + 1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(problem=solvable())
def test_no_plan_is_over_the_budget_or_of_choices_not_offered(method: str, problem: tuple[Table, Table, float]) -> None:
    errors, costs, budget = problem
    found = solve(errors, costs, budget, method)
    error, cost = totals(errors, costs, found)  # finite, so every choice is offered
    assert error <= budget * (1 + 1e-12)
    assert (error, cost) == (found.error, found.cost)
    assert math.isfinite(cost)


@given(solvable())
def test_exhaustive_is_best(problem: tuple[Table, Table, float]) -> None:
    errors, costs, budget = problem
    found = solve(errors, costs, budget, "exhaustive")
    assert found.cost == least_cost(errors, costs, budget)
    assert found.gap == 0


@given(solvable(), st.floats(1, 100))
def test_a_larger_budget_never_costs_more(problem: tuple[Table, Table, float], factor: float) -> None:
    errors, costs, budget = problem
    small, large = solve(errors, costs, budget), solve(errors, costs, budget * factor)
    assert large.lower_bound <= small.cost * (1 + 1e-9)
    if large.gap == 0:
        assert large.cost <= small.cost * (1 + 1e-9)


@given(solvable(), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_does_not_count(problem: tuple[Table, Table, float], random: object) -> None:
    errors, costs, budget = problem
    order = list(range(len(errors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found, other = solve(errors, costs, budget), solve(errors[order], costs[order], budget)
    assume(found.gap == 0 and other.gap == 0)
    assert other.cost == pytest.approx(found.cost, rel=1e-9)


@given(problems(), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_byte_target_is_the_same_problem_with_the_tables_exchanged(
    problem: tuple[Table, Table], factor: float
) -> None:
    errors, costs = problem
    budget = factor * max(cost for _, cost, _ in every_plan(errors, costs))
    plans = [(error, cost) for error, cost, _ in every_plan(errors, costs) if cost <= budget * (1 + 1e-12)]
    assume(plans)
    found = minimise_error(errors, costs, budget)
    best = min(error for error, _ in plans)
    assert totals(errors, costs, found) == (found.error, found.cost)
    assert found.cost <= budget * (1 + 1e-12)
    assert found.error >= best * (1 - 1e-12)
    assert found.lower_bound <= best * (1 + 1e-9)
    if found.gap == 0:
        assert found.error <= best * (1 + 1e-9)


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems(), data=st.data())
def test_a_reference_within_the_budget_bounds_the_cost(
    method: str, problem: tuple[Table, Table], data: st.DataObject
) -> None:
    errors, costs = problem
    plans = every_plan(errors, costs)
    error, cost, plan = plans[data.draw(st.integers(0, len(plans) - 1))]
    found = solve(errors, costs, error, method, reference=plan)
    assert found.cost <= cost
    if error > 0:  # over the budget, it is no help and no harm
        least = min(plans)[0]
        assert solve(errors, costs, least, method, reference=plan).error <= least * (1 + 1e-12)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("where", ["errors", "costs"])
@pytest.mark.parametrize("method", METHODS)
def test_nan_or_infinity_in_one_layers_row_leaves_the_others_be(method: str, where: str, value: float) -> None:
    errors = np.array([[1.0, 2.0, 3.0]] * 3)
    costs = np.array([[9.0, 5.0, 1.0]] * 3)
    (errors if where == "errors" else costs)[1, 2] = value
    assert solve(errors, costs, 100.0, method).choices.tolist() == [2, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_layer_takes_its_cheapest_choice(method: str) -> None:
    errors = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    costs = np.array([[9.0, 2.0, 5.0], [9.0, 5.0, 1.0]])
    for budget, choice in ((1.0, 0), (3.0, 1), (4.0, 2)):
        assert solve(errors, costs, budget, method).choices.tolist() == [1, choice]
    frozen = solve(np.zeros((4, 3)), np.tile(costs[:1], (4, 1)), 0.0, method)
    assert frozen.choices.tolist() == [1] * 4
    assert frozen.gap == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_zero_takes_choices_without_error(method: str) -> None:
    found = solve([[1.0, 0.0, 0.0], [0.0, 5.0, 1e-300]], [[1.0, 4.0, 3.0], [7.0, 1.0, 1.0]], 0.0, method)
    assert found.choices.tolist() == [2, 0]
    assert (found.cost, found.error) == (10.0, 0.0)


@pytest.mark.parametrize("method", [*METHODS, "exhaustive"])
def test_a_budget_below_every_plan_is_refused_with_the_least_there_is(method: str) -> None:
    errors, costs = [[0.5, 1.0], [0.25, 1.0]], [[4.0, 2.0], [4.0, 1.0]]
    with pytest.raises(ValueError, match=r"^the error budget 0\.7 is below the least attainable total error 0\.75$"):
        solve(errors, costs, 0.7, method)
    with pytest.raises(ValueError, match=r"^the error budget 0 is below the least attainable total error 0\.75$"):
        solve(errors, costs, 0.0, method)
    with pytest.raises(ValueError, match=r"^the cost budget 2 is below the least attainable total cost 3$"):
        minimise_error(errors, costs, 2.0, method)
    assert solve(errors, costs, 0.75, method).choices.tolist() == [0, 0]


def test_thousands_of_layers_have_a_small_gap() -> None:
    errors, costs = many(10_000)
    budget = errors[:, 12].sum()
    found = solve(errors, costs, budget)
    assert found.gap <= 1e-3
    assert found.error <= budget * (1 + 1e-12)
    assert found.cost < costs[:, 12].sum(), "better than the same choice everywhere"
    again = solve(errors, costs, budget)
    assert np.array_equal(found.choices, again.choices)


def test_dp_takes_thousands_of_layers_too() -> None:
    errors, costs = many(1000, choices=8)
    budget = errors[:, 3].sum()
    found = solve(errors, costs, budget, "dp", reference=np.full(1000, 3))
    assert found.error <= budget * (1 + 1e-12)
    assert found.cost <= costs[:, 3].sum()
    assert solve(errors, costs, budget).cost <= found.cost


@pytest.mark.parametrize("error", [0.1, 1 / 3, 0.7, 1e-30, 1e30])
@pytest.mark.parametrize("layers", [50, 49, 10_000])
@pytest.mark.parametrize("method", METHODS)
def test_equal_layers_at_the_reference_choice_stay_feasible(method: str, layers: int, error: float) -> None:
    if method == "dp" and layers > 50:
        layers = 500
    errors = np.tile([error / 16, error / 4, error, error * 4], (layers, 1))
    costs = np.tile([4.0, 3.0, 2.0, 1.0], (layers, 1))
    budgets = (errors[:, 2].sum(), layers * error, math.fsum(errors[:, 2]), float(np.cumsum(errors[:, 2])[-1]))
    for budget in budgets:
        found = solve(errors, costs, budget, method, reference=np.full(layers, 2))
        assert found.error <= budget * (1 + 1e-12)
        assert found.cost <= 2.0 * layers


def test_fifty_equal_layers_need_no_reference_to_fill_their_budget() -> None:
    errors, costs = np.tile([0.1, 0.3, 0.7], (50, 1)), np.tile([3.0, 2.0, 1.0], (50, 1))
    for method in METHODS:
        assert solve(errors, costs, errors[:, 1].sum(), method).cost <= 100.0


@pytest.mark.parametrize("method", METHODS)
def test_single_choices_and_single_layers(method: str) -> None:
    assert solve([[2.0]], [[3.0]], 2.0, method).choices.tolist() == [0]
    assert solve([[2.0], [1.0]], [[3.0], [1.0]], 3.0, method).cost == 4.0
    one = solve([[5.0, 3.0, 1.0, 4.0]], [[1.0, 2.0, 9.0, 1.5]], 4.0, method)
    assert (one.choices.tolist(), one.gap) == ([3], 0.0 if method == "lagrangian" else one.gap)
    assert solve([[5.0, 3.0]], [[1.0, 2.0]], INF, method).choices.tolist() == [0]


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 2**32), low=st.sampled_from([-323, -306, -200, 200, 300]), share=st.floats(0.1, 3))
def test_sizes_near_the_ends_of_float64_are_solved_as_well(method: str, seed: int, low: int, share: float) -> None:
    """Costs are of another end than errors, so that cost over error would overflow."""
    random = np.random.default_rng(seed)
    errors = 10.0 ** random.uniform(low, low + 6, (4, 4))
    costs = 10.0 ** random.uniform(-low - 20, -low - 17, (4, 4)) if low > -290 else random.integers(0, 4, (4, 4)) * 1.0
    budget = share * float(errors[:, 0].sum())
    assume(min(every_plan(errors, costs))[0] <= budget * (1 + 1e-12))
    best = least_cost(errors, costs, budget)
    found, turned = solve(errors, costs, budget, method), minimise_error(costs, errors, budget, method)
    for minimised, lower_bound in ((found.cost, found.lower_bound), (turned.error, turned.lower_bound)):
        assert lower_bound <= best * (1 + 1e-9)
        if method == "lagrangian":
            assert minimised <= best * (1 + 1e-3)


@given(st.integers(0, 2**32))
def test_ranges_from_1e_minus_30_to_1e30(seed: int) -> None:
    random = np.random.default_rng(seed)
    errors, costs = 10 ** random.uniform(-30, 30, (2, 40, 6))
    budget = float(np.sort(errors.ravel())[random.integers(40, 200)])
    assume(errors.min(axis=1).sum() <= budget)
    for method in METHODS:
        found = solve(errors, costs, budget, method)
        assert found.error <= budget * (1 + 1e-12)
        assert found.lower_bound <= found.cost


def test_integers_other_layouts_and_lists_are_taken() -> None:
    errors, costs = many(20, choices=4)
    budget = errors[:, 2].sum()
    expected = solve(errors, costs, budget).choices
    for other in (np.asfortranarray(errors), np.repeat(errors, 2, axis=0)[::2], errors.tolist()):
        assert np.array_equal(solve(other, costs.astype(np.int64), budget).choices, expected)


def test_the_tables_are_left_as_they_are() -> None:
    errors, costs = many(20)
    copies = errors.copy(), costs.copy()
    solve(errors, costs, errors[:, 9].sum())
    assert np.array_equal(errors, copies[0])
    assert np.array_equal(costs, copies[1])


def test_python_goes_on_while_it_solves() -> None:
    errors, costs = many(2000, choices=8)
    solving = threading.Thread(target=lambda: solve(errors, costs, errors[:, 3].sum(), "dp"))
    solving.start()
    turns = 0
    while solving.is_alive():
        turns += 1
        time.sleep(0)
    assert turns > 100


TWO = ([[1.0, 2.0], [1.0, 2.0]], [[2.0, 1.0], [2.0, 1.0]])


@pytest.mark.parametrize(
    ("errors", "costs", "budget", "message"),
    [
        ([[1.0, 2.0], [NAN, INF]], TWO[1], 5.0, r"^layer 1 \(counted from 0\) offers no choice: each has a NaN or inf"),
        (TWO[0], [[NAN, NAN], [1.0, 2.0]], 5.0, r"^layer 0 \(counted from 0\) offers no choice"),
        ([[1.0, NAN]] * 2, [[NAN, 1.0]] * 2, 5.0, r"^layer 0 \(counted from 0\) offers no choice"),
        (*TWO, NAN, r"^the error budget must be a number from 0, got nan$"),
        (*TWO, -1.0, r"^the error budget must be a number from 0, got -1$"),
        ([[1.0, 2.0], [1.0, -2.0]], TWO[1], 5.0, r"^errors must not be negative, got -2 for choice 1 of layer 1$"),
        (TWO[0], [[-INF, 1.0], [1.0, 2.0]], 5.0, r"^costs must not be negative, got -inf for choice 0 of layer 0$"),
        ([[1.0, 2.0]], TWO[1], 5.0, r"must both be \[layers, choices\], got \[1, 2\] and \[2, 2\]$"),
        ([1.0, 2.0], [1.0, 2.0], 5.0, r"must both be \[layers, choices\], got \[2\] and \[2\]$"),
        (np.zeros((0, 3)), np.zeros((0, 3)), 5.0, r"^there must be at least one layer and one choice, got 0 layers"),
        (np.zeros((3, 0)), np.zeros((3, 0)), 5.0, r"at least one layer and one choice, got 3 layers and 0 choices$"),
        ([[1e308]] * 2, [[1.0]] * 2, 5.0, r"^the sums over layers must be finite in float64"),
    ],
)
def test_problems_that_are_none_are_refused(
    errors: npt.ArrayLike, costs: npt.ArrayLike, budget: float, message: str
) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            solve(errors, costs, budget, method)


@pytest.mark.parametrize(
    ("errors", "costs", "budget", "message"),
    [
        (np.array(TWO[0]) * 1j, TWO[1], 5.0, r"^errors must be real numbers, got complex128$"),
        (TWO[0], [["1", "2"]] * 2, 5.0, r"^costs must be real numbers, got <U1$"),
        ([[1.0], [1.0, 2.0]], TWO[1], 5.0, r"^errors cannot be read as numbers: "),
        (TWO[0], [[1.0, object()]] * 2, 5.0, r"^costs cannot be read as numbers: "),
        (torch.tensor(TWO[0], requires_grad=True), TWO[1], 5.0, r"^errors cannot be read as numbers: .*detach\(\)"),
        (TWO[0], torch.tensor(TWO[1], dtype=torch.bfloat16), 5.0, r"^costs cannot be read as numbers: .*BFloat16"),
        (*TWO, True, r"^(cost_)?budget must be real numbers, got True$"),
        (*TWO, "3", r"^(cost_)?budget must be real numbers, got '3'$"),
        (*TWO, 1j, r"^(cost_)?budget must be real numbers, got 1j$"),
        (*TWO, [1.0, 2.0], r"^(cost_)?budget must be one number, got \[2\]$"),
    ],
)
def test_what_is_no_real_number_is_refused(errors: Any, costs: Any, budget: Any, message: str) -> None:
    for solver in (solve, minimise_error):
        with pytest.raises(ValueError, match=message):
            solver(errors, costs, budget)


def test_tables_may_be_tensors_or_exact_numbers() -> None:
    plain = solve(*TWO, 3.0)
    halves = [[Fraction(value) for value in row] for row in TWO[0]]
    turned = np.array(TWO[0]).T.copy().T
    for errors, budget in ((torch.tensor(TWO[0]), torch.tensor(3.0)), (halves, Fraction(3)), (turned, 3)):
        assert solve(errors, TWO[1], budget).choices.tolist() == plain.choices.tolist()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([0], r"^reference must be whole numbers \[2\], got int64 \[1\]$"),
        ([0.0, 1.0], r"^reference must be whole numbers \[2\], got float64 \[2\]$"),
        ([0, 2], r"^the reference choice of layer 1 must be 0\.\.1, got 2$"),
        ([-1, 0], r"^the reference choice of layer 0 must be 0\.\.1, got -1$"),
        ([2**32, 0], r"^the reference choice of layer 0 must be 0\.\.1, got 4294967296$"),
        ([0, 1], r"^the reference choice of layer 1 must be offered, but choice 1 has error 2 and cost nan$"),
    ],
)
def test_a_reference_that_is_none_is_refused(reference: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(TWO[0], [[2.0, 1.0], [2.0, NAN]], 5.0, reference=reference)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^method must be lagrangian, dp or exhaustive, got greedy$"):
        solve(*TWO, 5.0, method="greedy")
    with pytest.raises(ValueError, match=r"^method exhaustive takes at most 1e\+07 plans, got 1\.0\d*e\+09$"):
        solve(np.ones((30, 2)), np.ones((30, 2)), 50.0, method="exhaustive")
