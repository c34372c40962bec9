"""What a job prints: lines without a terminal, the plan with like layers together, the final table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lgreco.demo.display import Display
from lgreco.demo.history import History, Row
from lgreco.demo.results import Result
from lgreco.quantities import bytes_text


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(screen: io.StringIO) -> Display:
    return Display(Console(file=screen, width=80))


def _result(method: str, seed: int, val_loss: float, *, equal: bool = True) -> Result:
    history = History([2.0], [1e-3], [3.0], [100], [(1, val_loss)], replicas_equal=equal)
    return Result(Row.of(history, method=method, seed=seed, warmup_steps=0, dense_bytes=800), history)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_700, "1 MB"), (13_293_568, "13.3 MB")]
)
def test_bytes_text(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_without_a_terminal_a_line_comes_with_each_evaluation(display: Display, screen: io.StringIO) -> None:
    history = _result("small", 0, 2.5).history
    with display.run("small, seed 0", 9, 0):
        display.step("small, seed 0", 1, 9, history, evaluated=False)
        assert screen.getvalue() == ""
        display.step("small, seed 0", 2, 9, history, evaluated=True)
    assert screen.getvalue() == "small, seed 0  step 2/9  loss 2.000  val 2.500  3 ms  100 B sent\n"


def test_in_a_terminal_a_bar_shows_the_figures() -> None:
    screen = io.StringIO()
    display = Display(Console(file=screen, width=100, force_terminal=True))
    with display.run("small, seed 0", 9, 0):
        display.step("small, seed 0", 2, 9, _result("small", 0, 2.5).history, evaluated=False)
    assert "2/9" in screen.getvalue()
    assert "loss 2.000  val 2.500  3 ms  100 B sent" in screen.getvalue()


def test_layers_that_differ_in_a_number_share_a_line(display: Display, screen: io.StringIO) -> None:
    plan = {"blocks.0.weight": "dense(dtype=bf16)", "blocks.11.weight": "dense(dtype=bf16)", "head": "dense()"}
    display.plan("small", plan, dict.fromkeys(plan, 500))
    lines = [line.split() for line in screen.getvalue().splitlines()]
    assert ["blocks.*.weight", "2", "1,000", "dense(dtype=bf16)"] in lines
    assert ["head", "1", "500", "dense()"] in lines


def test_the_table_pairs_seeds_and_shows_the_spread(display: Display, screen: io.StringIO) -> None:
    display.results([_result("dense", 0, 2.0), _result("dense", 1, 2.2), _result("small", 0, 2.01)], "dense")
    text = screen.getvalue()
    assert "+0.50%" in text
    assert "8.00 x" in text
    assert "dense differs from itself by 10.00% over 2 seeds (validation loss 2.0000 to 2.2000)." in text


def test_unequal_replicas_and_a_lone_seed_are_said(display: Display, screen: io.StringIO) -> None:
    display.results([_result("dense", 0, 2.0, equal=False)], "dense")
    assert "DIFFER" in screen.getvalue()
    assert "not known from one seed" in screen.getvalue()
