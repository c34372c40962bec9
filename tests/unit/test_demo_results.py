"""Figures of finished runs: rows, paired gaps, the reference's spread, summary.json and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lgreco.demo.figure import draw
from lgreco.demo.history import History, Row
from lgreco.demo.results import Result, gap_to_reference, reference_spread, write_summary
from lgreco.demo.settings import JobSettings
from lgreco.ring import ring_allreduce_bytes

DENSE_BYTES = 800


def _result(method: str, seed: int, val_loss: float, steps: int = 60, warmup_steps: int = 0) -> Result:
    history = History(
        loss=[5.0] * (steps - 50) + [2.0] * 50,
        lr=[1e-3] * steps,
        step_ms=[9.0] * warmup_steps + [3.0] * (steps - warmup_steps),
        wire_bytes=[DENSE_BYTES] * warmup_steps + [100] * (steps - warmup_steps),
        validation=[(steps // 2, 4.0), (steps, val_loss)],
    )
    return Result(
        Row.of(history, method=method, seed=seed, warmup_steps=warmup_steps, dense_bytes=DENSE_BYTES), history
    )


def test_a_row_judges_the_steps_after_the_warmup() -> None:
    row = _result("small", 0, 2.5, warmup_steps=40).row
    assert (row.wire_bytes_per_step, row.ratio, row.step_ms) == (100, 8.0, 3.0)
    assert row.wire_bytes_run == 40 * DENSE_BYTES + 20 * 100
    assert (row.final_loss, row.val_loss, row.replicas_equal) == (2.0, 2.5, True)


def test_a_run_within_its_warmup_is_judged_by_its_last_step() -> None:
    assert _result("small", 0, 2.5, warmup_steps=60).row.ratio == 1.0


def test_a_lone_rank_sends_nothing_and_has_no_ratio() -> None:
    history = History(loss=[1.0], lr=[1.0], step_ms=[1.0], wire_bytes=[0], validation=[(1, 1.0)])
    assert Row.of(history, method="dense", seed=0, warmup_steps=0, dense_bytes=0).ratio is None


@pytest.mark.parametrize(("world_size", "expected"), [(1, 0), (2, 4000), (4, 6000)])
def test_ring_allreduce_bytes(world_size: int, expected: int) -> None:
    assert ring_allreduce_bytes(1000, world_size) == expected


def test_gaps_are_paired_by_seed() -> None:
    results = [_result("dense", 0, 2.0), _result("dense", 1, 4.0), _result("small", 1, 4.4), _result("small", 7, 9.0)]
    assert gap_to_reference(results, "small", "dense") == pytest.approx(0.1)
    assert gap_to_reference(results, "dense", "dense") is None
    assert gap_to_reference(results, "small", None) is None
    assert reference_spread(results, "dense") == (2.0, 4.0, 2)
    assert reference_spread(results[:1], "dense") is None


def test_history_survives_a_checkpoint_and_lists_its_steps() -> None:
    history = _result("small", 0, 2.5, steps=52).history
    assert History.from_dict(json.loads(json.dumps(history.as_dict()))) == history
    lines = [json.loads(line) for line in history.json_lines().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 53))
    assert [line["step"] for line in lines if "val_loss" in line] == [26, 52]
    assert lines[51] == {"step": 52, "loss": 2.0, "lr": 1e-3, "step_ms": 3.0, "wire_bytes": 100, "val_loss": 2.5}


def test_summary_has_the_rows_of_the_contract(tmp_path: Path) -> None:
    results = [_result("dense", 0, 2.0), _result("small", 0, 2.1)]
    settings = JobSettings.model_validate({"runs": {"dense": {"enabled": False}, "small": {}}})
    write_summary(tmp_path / "summary.json", results, settings, world_size=2)
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    contract = {"method", "final_loss", "wire_bytes_per_step", "ratio", "step_ms", "replicas_equal"}
    assert [row["method"] for row in rows] == ["dense", "small"]
    assert all(contract <= row.keys() for row in rows)
    assert rows[1]["val_gap"] == pytest.approx(0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("methods", [["dense"], ["small"], ["dense", "small", "smaller"]])
@pytest.mark.parametrize("steps", [50, 3])
def test_the_picture_is_a_png(tmp_path: Path, methods: list[str], steps: int) -> None:
    results = [_result(method, seed, 2.0, steps=max(steps, 2)) for method in methods for seed in (0, 1)]
    draw(results, "dense" if "dense" in methods else None, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
