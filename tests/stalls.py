#!/usr/bin/env python3
"""Runs pytest while its ranks are stopped at random moments, as a busy machine would: what depends on timing fails.

    python tests/stalls.py --seed 1 tests/multirank

Every now and then one or two Python processes below pytest get SIGSTOP, and SIGCONT after a tenth of a second to a
second. Arguments that are not named below go to pytest. Linux only. Open MPI's mpirun is left alone: it passes SIGCONT
on to daemons that do not run yet, and loses the job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_LEFT_ALONE = ("mpirun", "resource_tracker")


def main(words: Sequence[str] | None = None) -> int:
    """Returns pytest's status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and processes (default: 0)")
    parser.add_argument("--longest", type=float, default=1.0, help="seconds that a process stands still (default: 1)")
    settings, others = parser.parse_known_args(words)
    chance = random.Random(settings.seed)
    job = subprocess.Popen([sys.executable, "-m", "pytest", *others])
    stalls = 0
    try:
        while job.poll() is None:
            time.sleep(chance.uniform(0.02, 0.3))
            below = _ranks_below(job.pid)
            _stall(chance.sample(below, min(len(below), chance.choice((1, 1, 2)))), chance, settings.longest)
            stalls += len(below) > 0
    except KeyboardInterrupt:
        job.wait()
    print(f"stalls: {stalls}", file=sys.stderr)
    return job.returncode


def _stall(processes: Sequence[int], chance: random.Random, longest_s: float) -> None:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if number == signal.SIGSTOP and processes:
            time.sleep(min(longest_s, 0.1 * longest_s + chance.expovariate(3.0 / longest_s)))


def _ranks_below(root: int) -> list[int]:
    """Python processes that descend from it, but those that a test has stopped itself."""
    found, parents = [], [root]
    while parents:
        parent = parents.pop()
        for thread in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                parents += map(int, thread.read_text().split())
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")
            state = Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[0]
            alone = any(word in command for word in _LEFT_ALONE)
            if parent != root and "python" in command and not alone and state not in "TtZ":
                found.append(parent)
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
