"""Each framework's example under torchrun: the hook runs, few bytes travel, the framework's checkpoints carry it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def _torchrun(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("framework", ["lightning", "accelerate", "transformers"])
def test_a_framework_trains_saves_and_resumes_with_the_hook(tmp_path: Path, framework: str) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"no {framework}; pip install 'lgreco[frameworks]'")
    _torchrun(Path(__file__).with_name("job.py"), framework, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert rank["calls"] > 0
        assert 0 < rank["wire_bytes"] < rank["dense_bytes"] / 4
        assert rank["resumed"] == rank["straight"]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["straight"] != ranks[1]["straight"]  # residuals are each rank's own
