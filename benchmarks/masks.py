#!/usr/bin/env python3
"""Counts what a masked layer sends over a cubic ramp of sparsity, and what coding it costs.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 4 benchmarks/masks.py --json masks.json

One layer, random masks, one step at each level of the ramp s_t = s_f (1 - (1 - t / n)^3) (Zhu & Gupta, arXiv
1710.01878, equation 1, from zero). `fewer_bytes_ramp` and `fewer_bytes_after`: those of dense fp32 without masks over
those sent, headers included, over the whole ramp and at its end; the closed form for dense values is 1 / (1 - 0.75 s_f)
and 1 / (1 - s_f). `codec_share_after`: time of rank 0's codec thread for a step at the end of the ramp, median, over
that of dense fp32 without masks, steps of both interleaved. `move_ms`: a change of masks, median: packing, agreeing,
moving residuals.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median
from typing import Any

import report
import torch
import torch.distributed as dist
from exchange import Sum
from torch.nn.parallel import DistributedDataParallel

import lgreco

_COLUMNS = ("choice", "fewer_bytes_ramp", "fewer_bytes_after", "codec_share_after", "move_ms")


class _Layer:
    """One layer under one choice."""

    def __init__(self, numel: int, choice: str) -> None:
        self.ddp = DistributedDataParallel(
            Sum(numel), bucket_cap_mb=4096, gradient_as_bucket_view=True, process_group=dist.new_group()
        )
        self.state = lgreco.attach(self.ddp, {"default": choice})
        self.codec_ms: list[float] = []

    def step(self, number: int) -> int:
        """One exchange; bytes that all ranks together have sent."""
        self.ddp.zero_grad()
        self.ddp(torch.tensor(1.0 + number)).backward()
        self.codec_ms.append(float(self.state._binding.engine.stats()["codec_ms"]))
        sent = torch.tensor(float(self.state.stats()["wire_bytes"]))
        dist.all_reduce(sent)
        return int(sent)

    def keep(self, density: float, seed: int) -> float:
        """Sets a random mask; milliseconds that it took."""
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(self.ddp.module.weight.shape, generator=generator) < density
        dist.barrier()
        begin = time.perf_counter()
        self.state.set_masks({"weight": mask})
        return 1e3 * (time.perf_counter() - begin)


def measure(numel: int, choice: str, final: float, levels: int, steps: int) -> dict[str, Any]:
    """One row."""
    dense, masked = _Layer(numel, "dense(dtype=fp32)"), _Layer(numel, choice)
    dense_bytes = dense.step(0)
    ramp_bytes, moves = 0, []
    for level in range(levels):
        sparsity = final * (1 - (1 - level / levels) ** 3)
        moves.append(masked.keep(1 - sparsity, level))
        ramp_bytes += masked.step(level)
    masked.keep(1 - final, levels)
    dense.codec_ms.clear()
    masked.codec_ms.clear()
    for number in range(steps):
        dense.step(number)
        after_bytes = masked.step(number)
    row = {
        "choice": choice,
        "fewer_bytes_ramp": dense_bytes * levels / ramp_bytes,
        "fewer_bytes_after": dense_bytes / after_bytes,
        "codec_share_after": median(masked.codec_ms) / median(dense.codec_ms),
        "move_ms": median(moves[1:]),
    }
    for layer in (dense, masked):
        layer.state.close()
    return row


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--plans", nargs="+", default=["dense(dtype=fp32)", "quantize(bits=4, block=512)"], metavar="CHOICE")
    add("--numel-ki", type=int, default=4096, metavar="N", help="1024s of elements (default: %(default)s)")
    add("--final", type=float, default=0.9, help="sparsity at the ramp's end (default: %(default)s)")
    add("--levels", type=int, default=100, help="of the ramp (default: %(default)s)")
    add("--steps", type=int, default=15, help="at the end of the ramp (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = [measure(1024 * args.numel_ki, choice, args.final, args.levels, args.steps) for choice in args.plans]
    if dist.get_rank() == 0:
        report.print_table(rows, _COLUMNS, title=f"{dist.get_world_size()} ranks, {args.numel_ki} Ki elements")
        if args.json:
            settings = {"world_size": dist.get_world_size(), "numel_ki": args.numel_ki, "final": args.final}
            report.write_json(args.json, settings={**settings, "levels": args.levels, "steps": args.steps}, rows=rows)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
