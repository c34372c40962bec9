"""Budgets and plans: what may be spent, and what the planner makes of a table's rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from lgreco.budget import Detector, alpha_at, make_budget, total, weighted_errors
from lgreco.candidates import Offers
from lgreco.choice import Dense, LowRank, Quantize
from lgreco.error_table import ErrorTable
from lgreco.layer import LayerInfo
from lgreco.measurement import Row
from lgreco.planner import Decision, Planner
from lgreco.solver_config import Accordion, SolverConfig

CHOICES = (Quantize(bits=2), Quantize(bits=4), LowRank(rank=2), LowRank(rank=4), Dense())
ERRORS = np.array([[8.0, 1.0, 9.0, 4.0, 0.0], [4.0, 0.5, 1.0, 0.2, 0.0], [40.0, 5.0, 36.0, 30.0, 0.0]])
COSTS = np.array([[20.0, 40.0, 8.0, 16.0, 320.0]] * 3)
NORMS = np.array([16.0, 4.0, 100.0])
REFERENCE = 3


def offers(layers: int = 3) -> Offers:
    named = tuple(LayerInfo(f"layer{i}", (16, 16), "fp32") for i in range(layers))
    repeat = np.resize(COSTS, (layers, len(CHOICES)))
    return Offers(
        named, CHOICES, np.ones(repeat.shape, dtype=bool), repeat, (REFERENCE,) * layers, np.ones(layers, dtype=bool)
    )


def rows(errors: np.ndarray = ERRORS, realised: float = 1.0) -> dict[int, Row]:
    """`realised` times the error of the reference came true."""
    return {
        i: Row(each.copy(), float(NORMS[i % 3]), realised * float(each[REFERENCE])) for i, each in enumerate(errors)
    }


def decide(settings: SolverConfig, given: dict[int, Row] | None = None, **more: Any) -> Decision:
    made = offers()
    planner = Planner(made, settings, world_size=4)
    arguments = {"in_force": made.reference, "present": made.reference, "step": 9, "effective_step": 20, **more}
    return planner.decide(rows() if given is None else given, **arguments)


def table(step: int = 0) -> ErrorTable:
    made = offers()
    return ErrorTable(made.layers, made.choices, ERRORS, NORMS, COSTS, 4, step)


def test_alpha_follows_its_schedule() -> None:
    points = ((10, 1.0), (20, 3.0))
    assert [alpha_at(points, step) for step in (0, 10, 15, 20, 99)] == [1, 1, 2, 3, 3]
    assert alpha_at(0.5, 7) == 0.5


def test_budgets_of_every_kind() -> None:
    reference, errors = (REFERENCE,) * 3, ERRORS

    def made(**settings: Any) -> Any:
        return make_budget(table(), errors, reference, SolverConfig(**settings), 15, Detector())

    assert made().error == pytest.approx(34.2)
    assert made(alpha=2.0).error == pytest.approx(68.4)
    assert made(alpha=[[10, 1], [20, 3]]).error == pytest.approx(68.4)
    assert made(relative_error=0.1, norm="squared").error == pytest.approx(12)
    assert made(relative_error=0.1).error == pytest.approx(0.1 * 16 * (4 + 2 + 10)), "256 elements: root is 16"
    assert made(relative_error=0.5, norm="l2").error == pytest.approx(0.5 * (4 + 2 + 10))
    assert made(relative_error=0.1, norm="squared", layer_weights={"layer2": 0.5}).error == pytest.approx(7)
    assert (made(bytes=777).error, made(bytes=777).bytes) == (None, 777)
    assert made(ratio=10).bytes == pytest.approx(1.5 * 3 * 256 * 4 / 10)


def test_adam_counts_errors_over_the_layers_root_mean_square() -> None:
    weighted = weighted_errors(table(), SolverConfig())
    assert weighted == pytest.approx(ERRORS / np.sqrt(NORMS / 256)[:, None])
    scaled = ErrorTable(offers().layers, CHOICES, ERRORS * 9, NORMS * 9, COSTS, 4, 0)
    assert weighted_errors(scaled, SolverConfig()) == pytest.approx(3 * weighted)


def test_a_zero_gradient_counts_what_coding_it_costs() -> None:
    """Of a layer whose gradient is zero, an owner may still owe something."""
    still = ErrorTable(offers().layers, CHOICES, ERRORS, NORMS * [0, 1, 1], COSTS, 4, 0)
    assert weighted_errors(still, SolverConfig())[0] == pytest.approx(ERRORS[0] / np.sqrt(ERRORS[0].max() / 256))
    nothing = ErrorTable(offers().layers, CHOICES, ERRORS * 0, NORMS * 0, COSTS, 4, 0)
    assert not weighted_errors(nothing, SolverConfig()).any()


def test_weights_and_norms() -> None:
    settings = SolverConfig(norm="l2", family_weights={"lowrank": 2}, layer_weights={"layer1": 3, "*": 1})
    weighted = weighted_errors(table(), settings)
    assert weighted[0] == pytest.approx([math.sqrt(8), 1, 2 * 3, 2 * 2, 0])
    assert weighted[1] == pytest.approx([6, 3 * math.sqrt(0.5), 6, 6 * math.sqrt(0.2), 0])


def test_accordion_switches_between_tight_and_loose() -> None:
    settings = SolverConfig(accordion=Accordion(threshold=0.5, tight=1, loose=4))
    detector = Detector()
    alphas = []
    for scale in (1.0, 1.1, 4.0, 3.9, 0.5):
        scaled = ErrorTable(offers().layers, CHOICES, ERRORS, NORMS * scale**2, COSTS, 4, 0)
        alphas.append(make_budget(scaled, ERRORS, (REFERENCE,) * 3, settings, 0, detector).alpha)
    assert alphas == [1, 4, 1, 4, 1]


def test_the_plan_keeps_to_the_budget_and_is_cheaper_than_the_reference() -> None:
    decision = decide(SolverConfig(alpha=1.05, norm="squared"))
    assert decision.problem is None
    assert decision.budget is not None
    assert decision.error == pytest.approx(35)
    assert decision.budget.error == pytest.approx(1.05 * 34.2)
    assert (decision.columns, decision.cost) == ((3, 2, 3), 40)
    assert decision.predicted == pytest.approx({"layer0": 1.2 * 4.0, "layer1": 1.2 * 0.2, "layer2": 1.2 * 30.0})
    assert decision.realised == pytest.approx({"layer0": 4.0, "layer1": 0.2, "layer2": 30.0})


def test_a_byte_budget_leaves_the_least_error() -> None:
    decision = decide(SolverConfig(bytes=64, norm="squared"))
    assert decision.cost <= 64
    assert decision.error < total(ERRORS, (REFERENCE,) * 3)


def test_an_infeasible_budget_keeps_the_present_plan_and_says_so() -> None:
    decision = decide(SolverConfig(bytes=5), present=(0, 1, 2))
    assert decision.columns == (0, 1, 2)
    assert decision.problem is not None
    assert decide(SolverConfig(relative_error=0.0)).columns == (4, 4, 4)


def test_nothing_better_keeps_the_present_plan() -> None:
    best = decide(SolverConfig()).columns
    assert decide(SolverConfig(), present=best).columns == best
    equal = {i: Row(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), 4.0, 1.0) for i in range(3)}
    assert decide(SolverConfig(), equal, present=(2, 2, 2)).columns == (2, 2, 2)


def test_equal_layers_at_the_reference_stay_feasible() -> None:
    made = offers(50)
    errors = np.full((50, len(CHOICES)), 0.1) * np.array([9, 2, 5, 1, 0])
    decision = Planner(made, SolverConfig(norm="squared"), 4).decide(
        {i: Row(each, 1.0, 0.1) for i, each in enumerate(errors)}, made.reference, made.reference, 0, 1
    )
    assert decision.problem is None
    assert decision.error <= 50 * 0.1 * (1 + 1e-9)


@pytest.mark.parametrize("damage", ["nan", "inf", "norm", "missing"])
def test_a_broken_layer_keeps_its_present_choice_and_does_not_count(damage: str) -> None:
    given = rows()
    if damage == "missing":
        del given[1]
    elif damage == "norm":
        given[1] = Row(given[1].errors, float("nan"), 0.0)
    else:
        given[1].errors[0] = float(damage)
    for present in (0, 4):
        decision = decide(SolverConfig(norm="squared"), given, present=(REFERENCE, present, REFERENCE))
        assert decision.columns[1] == present
        assert decision.problem is None
        assert decision.budget is not None
        assert decision.budget.error == pytest.approx(34)
        assert "layer1" not in decision.predicted


def test_zero_layers_take_the_cheapest_choice() -> None:
    zeros = {i: Row(np.zeros(len(CHOICES)), 0.0, 0.0) for i in range(3)}
    assert decide(SolverConfig(), zeros).columns == (2, 2, 2)


def test_what_a_warm_start_loses_is_learnt_and_remembered() -> None:
    made = offers()
    planner = Planner(made, SolverConfig(), 4)
    first = planner.decide(rows(realised=1.5), made.reference, made.reference, 0, 10)
    assert first.table.squared_errors[0, 3] == pytest.approx(6)
    assert first.table.squared_errors[0, 1] == pytest.approx(1)
    assert first.predicted["layer0"] == pytest.approx(1.2 * 4)
    again = Planner(made, SolverConfig(), 4)
    again.load(planner.state())
    for each in (planner, again):
        second = each.decide(rows(realised=9), made.reference, made.reference, 100, 110)
        assert second.predicted["layer0"] == pytest.approx(6)
        assert second.table.squared_errors[0, 3] == pytest.approx(4 * 1.75)
    warming = Planner(made, SolverConfig(), 4).decide(rows(realised=9), (-1, -1, -1), made.reference, 0, 10)
    assert warming.table.squared_errors[0, 3] == pytest.approx(1.2 * 4)
    assert warming.predicted == {}


def test_tables_are_averaged() -> None:
    made = offers()
    planner = Planner(made, SolverConfig(average=2), 4)
    planner.decide(rows(ERRORS * 3), (-1,) * 3, made.reference, 0, 10)
    resumed = Planner(made, SolverConfig(average=2), 4)
    resumed.load(planner.state())
    decisions = [each.decide(rows(), (-1,) * 3, made.reference, 100, 110) for each in (planner, resumed)]
    assert decisions[0].table == decisions[1].table
    assert decisions[0].table.squared_errors[2, 1] == pytest.approx(10)
    assert decisions[0].table.tables == 2
    third = planner.decide(rows(), (-1,) * 3, made.reference, 200, 210)
    assert third.table.squared_errors[2, 1] == pytest.approx(5)


def test_saved_tables_of_other_offers_are_left_out() -> None:
    """Averaged with the next table, they would offer again what the config has taken away."""
    made, settings = offers(), SolverConfig(average=2)
    planner = Planner(made, settings, 4)
    planner.decide(rows(), (-1,) * 3, made.reference, 0, 10)
    offered = made.offered.copy()
    offered[1, 2] = False  # what the planner chose there
    less = dataclasses.replace(made, offered=offered, costs=np.where(offered, made.costs, np.nan))
    resumed = Planner(less, settings, 4)
    resumed.load(planner.state())
    decision = resumed.decide(rows(), (-1,) * 3, less.reference, 100, 110)
    assert decision.table.tables == 1
    assert (decision.table.offered == offered).all()
    assert decision.columns[1] != 2


def test_same_rows_same_plan() -> None:
    assert decide(SolverConfig()).columns == decide(SolverConfig()).columns
