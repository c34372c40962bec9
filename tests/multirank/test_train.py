"""launch/train.py under torchrun, as a user starts it: a dense and a compressed run, stopped, resumed, refused."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 180
CONFIG = """
model: {{width: 64, layers: 2, heads: 2, context: 32}}
data: {{source: "{text}"}}
train: {{steps: 120, batch: 2, lr_warmup_steps: 5, eval_every: 40, eval_windows: 16, checkpoint_every: 20}}
runs:
  dense: {{enabled: false}}
  small: {{warmup_steps: 5, default: "quantize(bits=4, block=512)"}}
out: "{out}"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "job.yaml"
    path.write_text(CONFIG.format(text=argparse.__file__, out=path.parent / "straight"))
    return path


@pytest.fixture(scope="module")
def straight(config: Path) -> Path:
    """Folder of a job that ran from start to end."""
    _finish(_start(config))
    return config.parent / "straight"


def _start(config: Path, *options: str, ranks: int = 2) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*torchrun, str(REPOSITORY / "launch" / "train.py"), "--config", str(config), *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _finish(job: subprocess.Popen[str], *, succeeds: bool = True) -> str:
    try:
        output, _ = job.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGTERM)
        output, _ = job.communicate()
        pytest.fail(f"no end within {TIMEOUT_S} s:\n{output}")
    assert (job.returncode == 0) is succeeds, output
    return output


def _stop_after_a_checkpoint(job: subprocess.Popen[str], run: Path) -> None:
    """Presses Ctrl-C as soon as the run has saved something."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any(path.suffix != ".partial" for path in run.glob("checkpoint-*")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(job.pid, signal.SIGINT)
    _finish(job, succeeds=False)


def _rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in json.loads((out / "summary.json").read_text())["rows"]}


def _final_parts(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (saved,) = run.glob("checkpoint-*")
    assert saved.name == "checkpoint-00000120"
    return torch.load(saved / "shared.pt", weights_only=True), torch.load(saved / "rank1.pt", weights_only=True)


def _same_bits(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same_bits(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same_bits, left, right))
    return bool(left == right)


def _processes_mentioning(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and int(folder.name) != os.getpid():
            found.append(command)
    return found


def test_a_job_writes_its_rows_curves_and_metrics(straight: Path) -> None:
    rows = _rows(straight)
    assert set(rows) == {"dense", "small"}
    assert all(row["replicas_equal"] for row in rows.values())
    assert rows["dense"]["ratio"] == 1.0
    assert rows["small"]["ratio"] > 6.0
    assert rows["small"]["wire_bytes_per_step"] < rows["dense"]["wire_bytes_per_step"] / 6
    assert rows["small"]["final_loss"] != rows["dense"]["final_loss"]
    assert (straight / "curves.png").read_bytes().startswith(b"\x89PNG")
    for run in ("dense-seed0", "small-seed0"):
        metrics = [json.loads(line) for line in (straight / run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in metrics] == list(range(1, 121))
        assert [line["step"] for line in metrics if "val_loss" in line] == [40, 80, 120]
        assert metrics[-1]["val_loss"] < metrics[0]["loss"]


def test_dense_and_compressed_share_weights_data_and_warmup(straight: Path) -> None:
    dense, small = (
        [json.loads(line)["loss"] for line in (straight / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("dense-seed0", "small-seed0")
    )
    assert dense[:5] == pytest.approx(small[:5], rel=1e-5)
    assert dense[5:] != small[5:]


@pytest.mark.parametrize("run", ["dense", "small"])
def test_ctrl_c_leaves_nothing_and_resuming_equals_never_having_stopped(config: Path, straight: Path, run: str) -> None:
    out = config.parent / f"stopped-{run}"
    _stop_after_a_checkpoint(_start(config, "--out", str(out)), out / f"{run}-seed0")
    assert not _processes_mentioning(str(out))
    assert not list(out.rglob("*.partial"))
    assert not (out / "summary.json").exists()
    (saved,) = (out / f"{run}-seed0").glob("checkpoint-*")
    assert saved.name < "checkpoint-00000120"

    output = _finish(_start(config, "--out", str(out), "--resume"))
    assert f"{run}, seed 0: goes on from step {int(saved.name[-8:])}" in output
    for name in ("dense-seed0", "small-seed0"):
        for resumed, never_stopped in zip(_final_parts(out / name), _final_parts(straight / name), strict=True):
            for figures in (resumed.get("history"), never_stopped.get("history")):
                if figures:
                    del figures["step_ms"]
            assert _same_bits(resumed, never_stopped)


def test_another_number_of_ranks_resumes_and_says_so(config: Path) -> None:
    out = config.parent / "fewer"
    _stop_after_a_checkpoint(_start(config, "--out", str(out)), out / "small-seed0")
    output = _finish(_start(config, "--out", str(out), "--resume", ranks=1))
    assert re.search(r"small, seed 0: goes on from step \d+, not bit for bit", output), output
    shared = torch.load(out / "small-seed0" / "checkpoint-00000120" / "shared.pt", weights_only=True)
    assert shared["world_size"] == 1
    assert len(shared["history"]["loss"]) == 120


def test_resuming_a_finished_job_only_reports_it(config: Path, straight: Path) -> None:
    before = _rows(straight)
    output = _finish(_start(config, "--resume"))
    assert "goes on from step 120" in output
    assert _rows(straight) == before


def test_starting_again_keeps_what_was_there(config: Path, straight: Path) -> None:
    one = config.parent / "again"
    for steps in (2, 3):
        _finish(_start(config, "--out", str(one), "--set", f"train.steps={steps}", ranks=1))
    assert (one / "dense-seed0" / "checkpoint-00000003").is_dir()
    assert (one / "dense-seed0.previous" / "checkpoint-00000002").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "train.stepz=3"), 'train.stepz: unknown key, known are .* did you mean "steps"'),
        (("--set", 'runs.small.layers={"nowhere.*": dense}'), r"nowhere\.\*"),
        (("--resume", "--set", "train.lr=0.5"), "was made with train.lr 0.001, this job has 0.5"),
    ],
)
def test_mistakes_are_named_before_training(
    config: Path, straight: Path, options: tuple[str, ...], message: str
) -> None:
    output = _finish(_start(config, *options), succeeds=False)
    assert re.search(message, output), output
    assert "step 40/120" not in output
    assert (straight / "summary.json").is_file()
    assert not list(straight.glob("*.previous"))


def test_accumulation_bf16_and_no_clipping_train_too(config: Path) -> None:
    out = config.parent / "variants"
    changes = ("train.steps=10", "train.accumulate=3", "train.precision=bf16", "train.clip=0", "reference_seeds=[1]")
    output = _finish(_start(config, "--out", str(out), *(part for change in changes for part in ("--set", change))))
    assert "dense differs from itself by" in output
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [("dense", 0), ("small", 0), ("dense", 1)]
    assert all(row["replicas_equal"] for row in rows)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_names_a_mistake_since_the_launcher_ends_the_others(config: Path, rank: int) -> None:
    ranks = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    job = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch" / "train.py"), "--config", str(config), "--set", "train.stepz=3"],
        env={**os.environ, **ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert job.returncode == 2
    assert f"error on rank {rank}: " in job.stderr
    assert "train.stepz: unknown key" in job.stderr
