"""A rank is killed under torchrun: training goes on from the newest checkpoint, with as many ranks or with fewer."""

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

import torch

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 180
STEPS = 400
CONFIG = """
model: {{width: 64, layers: 2, heads: 2, context: 32}}
data: {{source: "{text}"}}
train: {{steps: {steps}, batch: 2, lr_warmup_steps: 5, eval_every: 200, eval_windows: 16, checkpoint_every: 20}}
runs:
  small: {{warmup_steps: 5, default: "quantize(bits=4, block=512)"}}
out: "{out}"
"""


def _start(folder: Path, name: str, *options: str) -> subprocess.Popen[str]:
    config = folder / "job.yaml"
    config.write_text(CONFIG.format(text=argparse.__file__, out=folder / "out", steps=STEPS), encoding="utf-8")
    script = [str(REPOSITORY / "launch" / "train.py"), "--config", str(config), "--resume"]
    with (folder / f"{name}.txt").open("w") as output:
        return subprocess.Popen(
            [str(REPOSITORY / "launch" / "torchrun.sh"), *options, "--", *script],
            env={
                **os.environ,
                "PYTHON": sys.executable,
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                # torchrun's own: a lost node is given up within seconds, one that starts later is waited for.
                "PET_RDZV_CONF": "last_call_timeout=15,keep_alive_interval=1,keep_alive_max_attempt=5",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )


def _wait_for_a_checkpoint(job: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(path.suffix != ".partial" for path in folder.glob("out/small-seed0/checkpoint-*")):
        assert job.poll() is None, _told(folder)
        assert time.monotonic() < deadline, _told(folder)
        time.sleep(0.01)


def _told(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))


def _ranks_of(agent: int) -> list[int]:
    """Processes that a torchrun has started and that have become Python scripts."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _end(job: subprocess.Popen[str]) -> None:
    """Takes a node away: torchrun, and its ranks, which are in sessions of their own."""
    if job.poll() is None:
        ranks = _ranks_of(job.pid)
        job.kill()
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)
    job.wait()


def _finished_with(folder: Path, world_size: int) -> None:
    run = folder / "out" / "small-seed0"
    shared = torch.load(run / f"checkpoint-{STEPS:08d}" / "shared.pt", weights_only=True)
    assert shared["world_size"] == world_size
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        *range(1, STEPS + 1)
    ]
    assert json.loads((folder / "out" / "summary.json").read_text())["rows"][0]["replicas_equal"]


def test_a_killed_rank_is_started_again_and_goes_on(tmp_path: Path) -> None:
    job = _start(tmp_path, "node", "--per-node", "2", "--restarts", "2")
    try:
        _wait_for_a_checkpoint(job, tmp_path)
        os.kill(_ranks_of(job.pid)[1], signal.SIGKILL)
        assert job.wait(timeout=PATIENCE_S) == 0, _told(tmp_path)
    finally:
        _end(job)
    assert re.search(r"small, seed 0: goes on from step \d+\n", _told(tmp_path)), _told(tmp_path)
    _finished_with(tmp_path, 2)


def test_a_lost_node_leaves_the_other_to_go_on_alone(tmp_path: Path) -> None:
    meeting = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # outlives both
    options = ("--nodes", "1:2", "--per-node", "1", "--head", f"localhost:{meeting.port}", "--restarts", "3")
    jobs = [_start(tmp_path, name, *options) for name in ("first", "second")]
    try:
        _wait_for_a_checkpoint(jobs[0], tmp_path)
        saved = next(tmp_path.glob("out/small-seed0/checkpoint-*/shared.pt"), None)
        _end(jobs[1])
        assert jobs[0].wait(timeout=PATIENCE_S) == 0, _told(tmp_path)
    finally:
        for job in jobs:
            _end(job)
    assert saved is not None
    assert re.search(r"goes on from step \d+, not bit for bit", _told(tmp_path)), _told(tmp_path)
    _finished_with(tmp_path, 1)
