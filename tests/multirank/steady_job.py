"""One rank of test_steady_state.py's job: steady_job.py RANK WORLD_SIZE STORE. Prints what 1000 steps allocated."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from training import Net, batch_of, everything, loss_of, make

import lgreco
from lgreco import _C

WIDTH = 48
STEPS = 1000
CHOICES = ("quantize(bits=4, block=128)", "quantize(bits=4, block=128, rounding=stochastic)", "dense(dtype=bf16)")
COUNTERS = ("direct_in_lanes", "direct_elsewhere", "storages_in_lanes", "storages_elsewhere")

counters = ctypes.CDLL(None)  # the functions of count_allocations.cpp, and glibc's
for counter in COUNTERS:
    getattr(counters, counter).restype = ctypes.c_long


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def _live_bytes() -> int:
    """Bytes that the process has allocated and not freed."""
    gc.collect()
    counters.mallinfo2.restype = _MallInfo
    info = counters.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def _held(state: lgreco.State) -> dict[str, float]:
    return {
        "live_bytes": _live_bytes(),
        "memory_bytes_per_parameter": state.stats()["memory_bytes_per_parameter"],
        "threads": len(os.listdir("/proc/self/task")),
    }


def _code_of_lgreco() -> tuple[int, int]:
    """Addresses of the native module's code."""
    spans = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(_C.__file__) and "x" in line.split()[1]
    ]
    return spans[0][0], spans[-1][1]


def _step(ddp: Any, rank: int, step: int) -> None:
    ddp.zero_grad()
    loss_of(ddp, batch_of(rank, step % 7, WIDTH)).backward()


def _count(ddp: Any, rank: int, steps: int) -> dict[str, float]:
    """Allocations a step, over the next `steps` steps."""
    begin, end = _code_of_lgreco()
    counters.count_allocations_of(ctypes.c_size_t(begin), ctypes.c_size_t(end))
    for step in range(steps):
        _step(ddp, rank, step)
    dist.barrier()  # lanes have come to rest
    counts = {name: getattr(counters, name)() / steps for name in COUNTERS}
    counters.count_allocations_of(ctypes.c_size_t(0), ctypes.c_size_t(0))
    return counts


def _steady(ddp: Any, rank: int) -> dict[str, float]:
    for step in range(5):
        _step(ddp, rank, step)
    return _count(ddp, rank, 50)


def main() -> None:
    """Prints one line of JSON."""
    rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    result: dict[str, Any] = {"plain": _steady(make(lambda: Net(WIDTH), bucket_cap_mb=0.02), rank)}
    for choice in CHOICES:
        ddp = make(lambda: Net(WIDTH), bucket_cap_mb=0.02)
        state = lgreco.attach(ddp, everything(choice))
        result["first_step"] = _count(ddp, rank, 1)
        result[choice] = {**_steady(ddp, rank), "buckets": len(ddp.reducer._get_zeros_like_grad_buckets())}
        if choice == CHOICES[0]:
            weights = {n: p for n, p in ddp.module.named_parameters() if p.dim() > 1}
            state.set_masks({name: torch.arange(w.numel()).view_as(w) % 3 == 0 for name, w in weights.items()})
            result["masked"] = {**_steady(ddp, rank), "buckets": result[choice]["buckets"]}
    for step in range(100):
        _step(ddp, rank, step)
    before = _held(state)
    for step in range(STEPS):
        _step(ddp, rank, step)
    after = _held(state)
    result["growth"] = {name: (before[name], after[name]) for name in before}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
