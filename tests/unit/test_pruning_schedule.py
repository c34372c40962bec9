"""Schedules: exact at their ends, and what they say between."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgreco.pruning import (
    ConstantSchedule,
    CubicSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    mean_density,
)
from lgreco.pruning.schedule import Schedule, of_dict


def test_cubic_is_equation_1_of_zhu_and_gupta() -> None:
    schedule = CubicSchedule(0.1, 0.9, begin=100, end=500, every=10)
    for update in range(100, 501, 10):
        expected = 0.9 + (0.1 - 0.9) * (1 - (update - 100) / (40 * 10)) ** 3
        assert schedule(update) == pytest.approx(expected, abs=1e-12)
        assert update == 500 or schedule(update + 9) == schedule(update), "the level stays between updates"


def test_before_at_and_after_the_ramp() -> None:
    schedule = CubicSchedule(0.3, 0.9, begin=100, end=500, every=30)
    assert schedule(0) == schedule(99) == 0.0
    assert schedule(100) == 0.3
    assert schedule(499) == schedule(490) < 0.9, "every does not divide: the last full update"
    assert schedule(500) == schedule(10**9) == 0.9


@pytest.mark.parametrize(
    "schedule",
    [
        CubicSchedule(0.1, 0.7, 3, 20, 4),
        LinearSchedule(0.1, 0.7, 3, 20, 4),
        PolynomialSchedule(initial=0.1, final=0.7, begin=3, end=20, every=4, power=0.5),
        ExponentialSchedule(initial=0.1, final=0.7, begin=3, end=20, every=4),
        ConstantSchedule(final=0.7, begin=3, end=20, every=4),
        CyclicSchedule(final=0.7, begin=3, end=20, every=8, recover_steps=3),
        OneShotSchedule(0.7, at=20),
    ],
)
def test_updates_follow_one_another_and_the_last_lands_on_final(schedule: Schedule) -> None:
    updates, step = [], -1
    while (following := schedule.next_update(step)) is not None:
        assert following > step
        updates.append(following)
        step = following
    assert updates[-1] == schedule.end == 20
    assert schedule(20) == 0.7
    for at in range(30):
        past = [update for update in updates if update <= at]
        assert schedule.last_update(at) == (past[-1] if past else None)
        assert schedule(at) == (schedule(past[-1]) if past else 0.0)
    assert of_dict(schedule.to_dict()) == schedule


@given(
    initial=st.floats(0, 0.99), final=st.floats(0, 0.99), begin=st.integers(0, 50), length=st.integers(0, 200),
    every=st.integers(1, 60), power=st.floats(0.2, 5),
)  # fmt: skip
def test_levels_are_between_the_ends_and_monotone(
    initial: float, final: float, begin: int, length: int, every: int, power: float
) -> None:
    for schedule in (
        PolynomialSchedule(initial=initial, final=final, begin=begin, end=begin + length, every=every, power=power),
        ExponentialSchedule(initial=initial, final=final, begin=begin, end=begin + length, every=every),
    ):
        levels = [schedule(step) for step in range(begin, begin + length + 2)]
        assert levels[-1] == final
        assert all(min(initial, final) - 1e-12 <= level <= max(initial, final) + 1e-12 for level in levels)
        assert levels in (sorted(levels), sorted(levels, reverse=True)) or _nearly_sorted(levels)


def _nearly_sorted(levels: list[float]) -> bool:
    steps = [b - a for a, b in itertools.pairwise(levels)]
    return all(step > -1e-12 for step in steps) or all(step < 1e-12 for step in steps)


def test_mean_density_of_a_fine_cubic_is_the_closed_form() -> None:
    assert mean_density(CubicSchedule(0.0, 0.9, 0, 10_000, 1)) == pytest.approx(1 - 0.75 * 0.9, abs=1e-3)


def test_cyclic_prunes_and_recovers() -> None:
    schedule = CyclicSchedule(low=0.2, final=0.8, begin=0, end=20, every=10, recover_steps=4)
    assert [schedule(step) for step in (0, 3, 4, 9, 10, 14, 19, 20)] == [0.2, 0.2, 0.8, 0.8, 0.2, 0.8, 0.8, 0.8]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"final": 1.0, "begin": 0, "end": 1, "every": 1}, "final must be a sparsity from 0 to below 1, got 1.0"),
        ({"final": float("nan"), "begin": 0, "end": 1, "every": 1}, "final must be a sparsity"),
        ({"final": 0.5, "initial": -0.1, "begin": 0, "end": 1, "every": 1}, "initial must be a sparsity"),
        ({"final": 0.5, "begin": 5, "end": 4, "every": 1}, "end must be a whole number of steps from 5, got 4"),
        ({"final": 0.5, "begin": 0, "end": 4, "every": 0}, "every must be a whole number of steps from 1, got 0"),
        ({"kind": "cubik", "final": 0.5}, "schedule must be one of .*cubic.*, got 'cubik'"),
        ({"final": 0.5, "begin": 0, "end": 4, "evry": 1}, "evry"),
        ({"kind": "polynomial", "final": 0.5, "begin": 0, "end": 4, "every": 1, "power": 0}, "power must be a number"),
        ({"kind": "polynomial", "final": 0.5, "begin": 0, "end": 4, "every": 1, "power": "x"}, "above 0, got 'x'"),
        ({"kind": [1], "final": 0.5}, r"schedule must be one of .*, got \[1\]"),
        ({"kind": "cyclic", "final": 0.5, "begin": 0, "end": 9, "every": 3, "recover_steps": 3}, "recover_steps"),
    ],
)  # fmt: skip
def test_refuses_what_is_not_allowed(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        of_dict(settings)
