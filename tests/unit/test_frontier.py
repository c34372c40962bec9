"""The frontier's pure parts: which runs are named, what a result is worth, which results may be taken again."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import frontier  # noqa: E402
import frontier_ranks  # noqa: E402
import report  # noqa: E402
from frontier_figure import draw  # noqa: E402
from frontier_runs import Job, Results, Run, config_of, read_runs  # noqa: E402
from frontier_summary import COLUMNS, rows_of, shown, spread  # noqa: E402
from frontier_tasks import optimizer_of, settings_of  # noqa: E402
from frontier_training import traffic  # noqa: E402

DENSE = Run("dense", "dense", {"enabled": False})
FOUR_BITS = Run("quantize(bits=4, block=512)", "quantize", {"warmup_steps": 20, "default": "quantize(bits=4)"})


def record(val_loss: float = 0.2, train_loss: float = 0.1, ratio: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "died": None, "val_loss": val_loss, "train_loss": train_loss, "val_accuracy": 0.95, "ratio": ratio,
        "whole_run_ratio": ratio, "wire_bytes_per_step": 10.0, "wire_bytes_run": 100.0, "replicas_equal": True,
        "wall_s": 3.0, "cpu_s": 4.0, "parameters": 7, "plan": {"a": "dense"}, "train_loss_curve": [1.0], **more,
    }  # fmt: skip


def job(**changed: Any) -> Job:
    fields = {
        "model": "digits", "optimizer": "adamw", "run": "quantize(bits=4, block=512)", "config": {"seed": 0}, "seed": 0,
        "world_size": 4, "train": {"steps": 400, "betas": (0.9, 0.95)},
    }  # fmt: skip
    return Job(**{**fields, **changed})


def test_runs_are_plain_choices_and_named_configs(tmp_path: Path) -> None:
    own, many = tmp_path / "own.yaml", tmp_path / "many.yaml"
    own.write_text('layers: {"head.*": "quantize(bits=8)"}\nwarmup_steps: 3\n')
    many.write_text('solver/40: {default: "quantize(bits=2)"}\nq3: "quantize(bits=3)"\noff: {enabled: false}\n'.replace(
        "off:", '"off":'))  # fmt: skip
    words = ["dense", "quantize( bits = 4 )", "dense(dtype=bf16)", f"mine={own}", "q1=quantize(bits=1)"]
    runs = {run.name: run for run in read_runs(words, [many], 20)}
    families = {name: run.family for name, run in runs.items()}
    assert families == {
        "dense": "dense", "quantize(bits=4, block=512)": "quantize", "dense(dtype=bf16)": "dense", "mine": "named",
        "q1": "quantize", "solver/40": "solver", "q3": "quantize", "off": "dense",
    }  # fmt: skip
    assert [name for name, run in runs.items() if run.plain] == ["dense", "off"]
    assert runs["mine"].config["warmup_steps"] == 3
    assert {runs[name].config["warmup_steps"] for name in ("quantize(bits=4, block=512)", "solver/40", "q3")} == {20}
    assert config_of(runs["q3"], seed=5)["default"] == "quantize(bits=3, block=512)"


def test_a_seed_is_lgrecos_too_unless_the_config_names_one() -> None:
    assert config_of(FOUR_BITS, seed=5)["seed"] == 5
    assert config_of(Run("r", "named", {"seed": 9}), seed=5)["seed"] == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantize(bits=9)"], "bits must be 1..8, got 9"),
        (["dense", "dense"], "each run must stand once, got dense, dense"),
        ([], "at least one run"),
        (["mine=nowhere.yaml"], 'there is no file "nowhere.yaml"'),
        (["a/b/c=dense"], "a run's name must be"),
        (["mine=quantise(bits=4)"], "mine: .*unknown codec 'quantise'"),
    ],
)
def test_a_bad_run_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_runs(words, [], 20)


def test_jobs_take_all_runs_of_a_seed_first() -> None:
    args = argparse.Namespace(model="digits", optimizer="sgd", steps=7, seeds=[3, 1], world_size=2)
    jobs = frontier.jobs_of(args, [DENSE, FOUR_BITS])
    assert [(one.run, one.seed) for one in jobs] == [
        ("dense", 3), (FOUR_BITS.name, 3), ("dense", 1), (FOUR_BITS.name, 1),
    ]  # fmt: skip
    assert {one.train["steps"] for one in jobs} == {7}
    assert [one.config["enabled"] for one in jobs] == [False, True, False, True]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"world_size": 1}, "world-size must be at least 2, got 1"),
        ({"seeds": [0, 0]}, "seeds must be 0 or more and each stand once"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"model": "gpt"}, "model and optimizer must be one of .*got gpt with sgd"),
    ],
)
def test_bad_numbers_are_refused(changed: dict[str, Any], message: str) -> None:
    good = {"model": "digits", "optimizer": "sgd", "steps": 7, "seeds": [0], "world_size": 2}
    with pytest.raises(ValueError, match=message):
        frontier.jobs_of(argparse.Namespace(**{**good, **changed}), [DENSE])


def test_the_gpt_is_trained_as_the_quickstart_says() -> None:
    train = settings_of("gpt", "adamw", None)
    assert (train.steps, train.batch, train.lr, train.lr_warmup_steps, train.clip) == (400, 8, 1e-3, 40, 1.0)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_only_matrices_decay(name: str, kind: type) -> None:
    optimizer = optimizer_of(torch.nn.Linear(3, 2), name, settings_of("digits", name, None))
    assert type(optimizer) is kind
    decays = {group["params"][0].dim(): group["weight_decay"] for group in optimizer.param_groups}
    assert decays[2] > 0.0
    assert decays[1] == 0.0


def test_the_ratio_leaves_the_warm_up_out_and_the_whole_runs_does_not() -> None:
    found = traffic([100.0, 100.0, 10.0, 30.0], 100, 2)
    assert found["wire_bytes_per_step"] == 20.0
    assert found["ratio"] == 5.0
    assert found["wire_bytes_run"] == 240.0
    assert found["whole_run_ratio"] == pytest.approx(400 / 240)


def test_a_run_within_its_warm_up_is_judged_by_its_last_step() -> None:
    assert traffic([100.0, 50.0], 100, 20)["ratio"] == 2.0


def test_nothing_sent_has_no_ratio() -> None:
    assert traffic([0.0, 0.0], 100, 0)["ratio"] is None


def test_gaps_are_to_dense_of_the_same_seed() -> None:
    records = {
        "dense": {0: record(0.2, 0.1), 1: record(0.4, 0.2)},
        FOUR_BITS.name: {0: record(0.22, 0.1, 7.0), 1: record(0.4, 0.21, 7.0), 2: record(9.0, 9.0, 7.0)},
    }
    dense, four_bits = rows_of([DENSE, FOUR_BITS], records)
    assert four_bits["val_gap"] == pytest.approx(0.05)
    assert four_bits["val_gap_by_seed"] == pytest.approx({"0": 0.1, "1": 0.0})
    assert four_bits["train_gap_by_seed"] == pytest.approx({"0": 0.0, "1": 0.05})
    assert four_bits["val_spread"] is None
    assert dense["val_gap"] is None
    assert dense["val_spread"] == pytest.approx([-1 / 3, 1 / 3])
    assert "train_loss_curve" not in four_bits["by_seed"]["0"]
    assert four_bits["config"] == config_of(FOUR_BITS, 0)  # defaults may change
    assert shown(four_bits)["gap to dense"] == "+5.0 % (+10.0, +0.0)"
    assert shown(dense)["gap to dense"] == "spread -33.3 to +33.3 %"
    json.dumps([dense, four_bits], allow_nan=False)


def test_without_dense_there_are_no_gaps() -> None:
    (row,) = rows_of([FOUR_BITS], {FOUR_BITS.name: {0: record()}})
    assert row["val_gap"] is None
    assert row["val_gap_by_seed"] == {}
    assert set(shown(row)) == set(COLUMNS)


def test_a_seed_that_died_counts_in_no_mean() -> None:
    dead = {"died": "rank 1 ended with status 1"}
    records = {"dense": {0: record(0.2), 1: record(0.4)}, FOUR_BITS.name: {0: record(0.22), 1: dead}}
    _, row = rows_of([DENSE, FOUR_BITS], records)
    assert row["died"] == {"1": "rank 1 ended with status 1"}
    assert row["val_loss"] == 0.22
    assert shown(row)["run"] == f"{FOUR_BITS.name} (1 of 2 died)"
    _, row = rows_of([DENSE, FOUR_BITS], {**records, FOUR_BITS.name: {0: dead, 1: dead}})
    assert row["val_loss"] is None
    assert row["val_gap"] is None
    assert row["replicas_equal"] is None
    assert shown(row) == {"run": f"{FOUR_BITS.name} (2 of 2 died)"}


def test_one_dense_run_has_no_spread() -> None:
    assert spread([0.3]) is None
    assert spread([0.3, 0.1, 0.2]) == pytest.approx([-0.5, 0.5])


def test_a_finished_job_is_found_again_and_a_dead_or_changed_one_is_not(tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    assert results.finished(job()) is None
    kept = results.keep(job(), record(val_loss=0.25))
    assert results.finished(job()) == kept
    assert kept["val_loss"] == 0.25
    for changed in ({"seed": 1}, {"world_size": 2}, {"config": {"seed": 1}}, {"train": {"steps": 401}}):
        assert results.finished(job(**changed)) is None
    results.keep(job(seed=1), {"died": "rank 0 was killed by SIGKILL"})
    assert results.finished(job(seed=1)) is None
    assert results.finished(job()) == kept
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".json", ".json"]


def test_results_of_an_earlier_file_are_taken_where_they_are_of_the_same_job(tmp_path: Path) -> None:
    args = argparse.Namespace(model="digits", optimizer="adamw", steps=None, world_size=4, seeds=[0, 1, 2])
    runs = [DENSE, FOUR_BITS]
    zero, one, two, *rest = frontier.jobs_of(args, [FOUR_BITS]) + frontier.jobs_of(args, [DENSE])
    dead = {"died": "rank 0 was killed by SIGKILL"}
    records = {FOUR_BITS.name: {0: record(0.25, commit="then"), 1: dead, 2: record(0.27, plan={"a": "another"})}}
    settings = {"model": "digits", "optimizer": "adamw", "world_size": 4, "train": zero.train}
    report.write_json(tmp_path / "known.json", settings=settings, rows=rows_of(runs, records))
    results = Results(tmp_path / "out")
    results.adopt(tmp_path / "known.json", [zero, one, two, *rest])
    found = results.finished(zero)
    assert found is not None
    assert (found["commit"], found["val_loss"], found["plan"], found["parameters"]) == ("then", 0.25, {"a": "dense"}, 7)
    assert rows_of([FOUR_BITS], {FOUR_BITS.name: {0: found}})[0]["val_loss"] == 0.25
    later = results.finished(two)
    assert later is not None
    assert (later["val_loss"], later["plan"]) == (0.27, None)  # the row holds its first seed's plan alone
    assert [results.finished(missing) for missing in (one, *rest)] == [None] * 4
    others = [
        replace(zero, train={**zero.train, "steps": 401}), replace(zero, world_size=2), replace(zero, optimizer="sgd"),
        replace(zero, config=config_of(Run(zero.run, "quantize", {"default": "quantize(bits=3)"}), 0)),
    ]  # fmt: skip
    results.adopt(tmp_path / "known.json", others)
    assert [results.finished(other) for other in others] == [None] * 4
    results.keep(zero, record(0.3))
    results.adopt(tmp_path / "known.json", [zero])
    assert results.finished(zero)["val_loss"] == 0.3  # What is there stays.
    with pytest.raises(ValueError, match="known must be files that --json wrote"):
        results.adopt(tmp_path / "none.json", [zero])


def test_a_rank_whose_job_is_over_before_it_starts_ends_quietly(tmp_path: Path) -> None:
    """Its job was interrupted: nobody reads what it would say, and it may not say it on the terminal."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    frontier_ranks._serve(0, job(), tmp_path / "gone", 1.0, theirs)
    theirs.close()
    with pytest.raises(EOFError):
        ours.recv()


def test_last_words_begin_with_the_rank_that_died_first(tmp_path: Path) -> None:
    frontier_ranks.log_path(tmp_path, 0).write_text("a peer is gone\n")
    frontier_ranks.log_path(tmp_path, 1).write_text("[W torch warns\none\ntwo\nValueError: no such codec\n")
    frontier_ranks.log_path(tmp_path, 2).write_text("ValueError: no such codec\n")
    words = frontier_ranks.last_words(tmp_path, "rank 1 ended with status 1", 1, 4)
    assert words == "rank 1 ended with status 1; rank 1: one | two | ValueError: no such codec; rank 0: a peer is gone"


def test_a_figure_is_drawn_of_any_rows(tmp_path: Path) -> None:
    records = {
        "dense": {0: record(0.2, 0.1), 1: record(0.4, 0.2)},
        FOUR_BITS.name: {0: record(0.22, 0.1, 7.0), 1: record(0.4, 0.21, 7.0)},
    }
    for name, rows in (("some", rows_of([DENSE, FOUR_BITS], records)), ("none", rows_of([DENSE, FOUR_BITS], {}))):
        path = tmp_path / f"{name}.png"
        draw(rows, "digits", path)
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2
