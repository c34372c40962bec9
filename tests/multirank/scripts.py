"""Ranks as processes of their own from the start, for tests that are about a whole process: a script of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

Jobs = list[subprocess.Popen[str]]


def start_script(name: str, folder: Path, *words: str, **environment: str) -> Jobs:
    """Two ranks of a script of this folder, called with rank, world size, the store's file and `words`."""
    script = Path(__file__).with_name(name)
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(folder / "store"), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]


def outputs_of(jobs: Jobs, timeout_s: float = 60.0) -> list[str]:
    """What each rank has said when it ended; whatever happens, none of them stays."""
    try:
        return [job.communicate(timeout=timeout_s)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
