#!/usr/bin/env python3
"""Times the CUDA kernels on one bucket against the roof `e += g`, which reads 8 and writes 4 bytes an element.

    python benchmarks/codec_cuda.py --mib 25 100 --json codec_cuda.json

Each kernel runs over several sets of buffers in turn, together larger than the GPU's cache, so that every launch works
from memory. A bucket is cut into runs of 64 Ki elements, as a plan cuts it. encode: fp32 gradient + fp32 residual ->
wire and residual. reduce: sum of 4 payloads + residual -> wire and residual. decode: wire -> fp32 gradient. gb_per_s:
bytes that the kernel must read and write, over its time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

import report
import torch
from torch import Tensor

from lgreco import _C

Spec = tuple[int, int, str, bool, bool]
"""bits, block, grid, stochastic, bf16 scales"""

QUANTIZE: dict[str, Spec] = {
    "quantize(bits=2, block=512)": (2, 512, "minmax", False, False),
    "quantize(bits=4, block=512)": (4, 512, "minmax", False, False),
    "quantize(bits=8, block=512)": (8, 512, "minmax", False, False),
    "quantize(bits=3, block=512)": (3, 512, "minmax", False, False),
    "quantize(bits=4, block=64)": (4, 64, "minmax", False, False),
    "quantize(bits=4, block=4096)": (4, 4096, "minmax", False, False),
    "quantize(bits=4, block=512, grid=symmetric, scales=bf16)": (4, 512, "symmetric", False, True),
    "quantize(bits=4, block=512, rounding=stochastic)": (4, 512, "minmax", True, False),
    "quantize(bits=4, block=512, grid=clipped)": (4, 512, "clipped", False, False),
}
DENSE = {"dense(dtype=bf16)": "bf16", "dense(dtype=fp16)": "fp16"}
_RANKS = 4
_RUN_NUMEL = 64 * 1024
_COLUMNS = ("kernel", "choice", "numel", "ms_median", "roof_ms_median", "ratio_to_roof", "gb_per_s")


@dataclass
class Set:
    """One bucket's memory; sets are used in turn.

    Attributes:
        gradient: fp32 [numel].
        arenas: committed and shadow residual, fp32 [numel] each.
        wire: uint8 [wire_bytes].
        inbox: uint8 [4 * wire_bytes]: every rank's payload.
        transaction: int32 [4].
    """

    gradient: Tensor
    arenas: list[Tensor]
    wire: Tensor
    inbox: Tensor
    transaction: Tensor


def runs_of(numel: int, block: int, run_bytes: Callable[[int], int]) -> tuple[list[tuple[int, ...]], int]:
    """The bucket's runs as `_C.cuda.Batch` takes them, and the bytes of their wire, header included."""
    runs: list[tuple[int, ...]] = []
    offset = -(-numel // _RUN_NUMEL) // 8 // 64 * 64 + 64  # the nonzero bits stand first
    for index, first in enumerate(range(0, numel, _RUN_NUMEL)):
        size = min(_RUN_NUMEL, numel - first)
        runs.append((first, first, offset, index, size, first // block, 0))
        offset += (run_bytes(size) + 15) // 16 * 16
    return runs, offset


def sets_of(numel: int, wire_bytes: int) -> list[Set]:
    """Enough sets that a launch finds nothing of the last use of its set in the cache."""
    cache_bytes = torch.cuda.get_device_properties("cuda").L2_cache_size
    count = max(2, -(-3 * cache_bytes // (12 * numel)) + 1)
    return [
        Set(
            gradient=torch.randn(numel, device="cuda"),
            arenas=[torch.randn(numel, device="cuda") / 8 for _ in range(2)],
            wire=torch.zeros(wire_bytes, dtype=torch.uint8, device="cuda"),
            inbox=torch.zeros(_RANKS * wire_bytes, dtype=torch.uint8, device="cuda"),
            transaction=torch.zeros(4, dtype=torch.int32, device="cuda"),
        )
        for _ in range(count)
    ]


def ms_median(work: Callable[[Set], object], sets: Sequence[Set], repeats: int) -> float:
    """Median time of `work` over `repeats` launches, each on the next set, in ms."""
    turns: Iterator[Set] = cycle(sets)
    for _ in range(2 * len(sets)):
        work(next(turns))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for began, ended in events:
        buffers = next(turns)
        began.record()
        work(buffers)
        ended.record()
    torch.cuda.synchronize()
    return median(began.elapsed_time(ended) for began, ended in events)


def quantize_works(spec: Spec, batch: Any, stream: int) -> dict[str, Callable[[Set], object]]:
    """The kernels of a quantising choice by name."""
    cuda = _C.cuda
    return {
        "encode": lambda s: cuda.quantize_encode(
            spec, batch, s.gradient, s.arenas, None, s.transaction, 1, s.wire, stream
        ),
        "reduce": lambda s: cuda.quantize_reduce(
            spec, batch, s.inbox, _RANKS, -1, 1 / _RANKS, s.arenas, None, s.transaction, 1, s.wire, stream
        ),
        "decode": lambda s: cuda.quantize_decode(spec, batch, s.wire, s.gradient, None, s.transaction, stream),
    }


def dense_works(dtype: str, batch: Any, stream: int) -> dict[str, Callable[[Set], object]]:
    """The kernels of a dense choice by name."""
    cuda = _C.cuda
    return {
        "encode": lambda s: cuda.dense_encode(dtype, batch, s.gradient, s.arenas, None, s.transaction, s.wire, stream),
        "reduce": lambda s: cuda.dense_reduce(
            dtype, batch, s.inbox, _RANKS, -1, 1 / _RANKS, s.arenas, None, s.transaction, s.wire, stream
        ),
        "decode": lambda s: cuda.dense_decode(dtype, batch, s.wire, s.gradient, None, s.transaction, stream),
    }


def moved_bytes(kernel: str, numel: int, wire_bytes: int) -> int:
    """What a kernel cannot avoid to read and write."""
    if kernel == "encode":
        return 12 * numel + wire_bytes
    if kernel == "reduce":
        return 8 * numel + (_RANKS + 1) * wire_bytes
    return 4 * numel + wire_bytes


def rows_of(choice: str, numel: int, repeats: int) -> list[dict[str, Any]]:
    """Times one choice's kernels on a bucket of `numel` elements, with the roof right before each."""
    stream = torch.cuda.current_stream().cuda_stream
    if choice in QUANTIZE:
        spec = QUANTIZE[choice]
        runs, wire_bytes = runs_of(numel, spec[1], lambda size: _C.quantize_wire_bytes(spec, size))
        works = quantize_works(spec, _C.cuda.Batch(runs, spec[1], torch.device("cuda")), stream)
    else:
        runs, wire_bytes = runs_of(numel, 512, lambda size: 2 * size)
        works = dense_works(DENSE[choice], _C.cuda.Batch(runs, 512, torch.device("cuda")), stream)
    sets = sets_of(numel, wire_bytes)
    for buffers in sets:  # payloads that were really coded, so that reduce and decode see ordinary numbers
        works["encode"](buffers)
        buffers.inbox.copy_(buffers.wire.repeat(_RANKS))
    rows = []
    for kernel, work in works.items():
        roof = ms_median(lambda s: s.arenas[1].add_(s.gradient), sets, repeats)
        ms = ms_median(work, sets, repeats)
        gb_per_s = moved_bytes(kernel, numel, wire_bytes) / ms / 1e6
        rows.append(
            {
                "kernel": kernel,
                "choice": choice,
                "numel": numel,
                "ms_median": ms,
                "roof_ms_median": roof,
                "ratio_to_roof": ms / roof,
                "gb_per_s": gb_per_s,
            }
        )
    return rows


def main() -> int:
    """Runs the benchmark; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[25, 100], help="sizes of the fp32 bucket")
    parser.add_argument("--choice", nargs="+", choices=[*QUANTIZE, *DENSE], default=[*QUANTIZE, *DENSE])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU; benchmarks/codec.py times the CPU kernels")
    rows = [
        row
        for mib in arguments.mib
        for choice in arguments.choice
        for row in rows_of(choice, mib * 2**20 // 4, arguments.repeats)
    ]
    device = torch.cuda.get_device_name()
    report.print_table(rows, _COLUMNS, title=device)
    if arguments.json:
        report.write_json(arguments.json, settings={**vars(arguments), "device_name": device}, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
