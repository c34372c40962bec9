"""Leaving a process group that was joined with lgreco imported: nothing of it runs on."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os
import lgreco
import torch
import torch.distributed as dist

def threads():
    return sorted(open(f"/proc/self/task/{each}/comm").read().strip() for each in os.listdir("/proc/self/task"))

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import torch.distributed.fsdp  # as optimizers and checkpoints do while training runs
dist.all_reduce(torch.ones(1))
during = threads()
dist.destroy_process_group()
print(any("gloo" in name for name in during), any("gloo" in name for name in threads()))
"""


def test_gloos_threads_end_with_the_group() -> None:
    """Else one of them may let go of a tensor while the interpreter ends, which aborts the process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr
