#!/usr/bin/env python3
"""Times the exchange alone, in the lab, against a plain TCP stream over the same links.

    python benchmarks/exchange.py --hosts 4 --rate 1gbit --json exchange.json

One parameter whose gradient costs nothing to compute, so that a step is one bucket's exchange. A host sends and
receives the same bytes, so what it could reach at best is what one TCP stream carries each way: `share_of_stream` is
wire_bytes / time over the stream's goodput in this very lab. wire_mb counts what one rank sends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lgreco

_LAB = Path(__file__).resolve().parent.parent / "launch" / "lab.py"


class Sum(nn.Module):
    """One vector; its gradient is the input's first element everywhere."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(numel // 1024, 1024))

    def forward(self, factor: torch.Tensor) -> torch.Tensor:
        """Scalar loss."""
        return self.weight.sum() * factor


def measure(numel: int, choice: str, steps: int) -> dict[str, Any]:
    """One row: median over steps of the slowest rank's time for one bucket of `numel` elements."""
    group = dist.new_group()
    ddp = DistributedDataParallel(Sum(numel), bucket_cap_mb=4096, gradient_as_bucket_view=True, process_group=group)
    state = lgreco.attach(ddp, {"default": choice})
    times: list[float] = []
    for step in range(steps + 2):
        ddp.zero_grad()
        loss = ddp(torch.tensor(1.0 + step))
        dist.barrier()
        begin = time.perf_counter()
        loss.backward()
        spent = torch.tensor(time.perf_counter() - begin)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        times.append(spent.item())
    wire_bytes = int(state.stats()["wire_bytes"])
    state.close()
    return {"choice": choice, "numel": numel, "wire_bytes": wire_bytes, "ms_median": 1e3 * median(times[2:])}


def on_host(args: argparse.Namespace) -> None:
    """What each simulated host runs; rank 0 writes the rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = [measure(numel * 1024, choice, args.steps) for choice in args.plans for numel in args.numel_ki]
    if dist.get_rank() == 0:
        Path(args.rows).write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


def main() -> int:
    """Runs the command line; returns the exit status."""
    args = _parser().parse_args()
    if args.rows:
        on_host(args)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        check, rows_path = Path(folder, "check.json"), Path(folder, "rows.json")
        command = [sys.executable, str(_LAB), "--hosts", str(args.hosts), "--rate", args.rate, "--check"]
        command += ["--json", str(check), "--", sys.executable, *sys.argv, "--rows", str(rows_path)]
        status = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
        if status != 0:
            return status
        links = json.loads(check.read_text(encoding="utf-8"))
        rows = json.loads(rows_path.read_text(encoding="utf-8"))
    stream_bits = next(row["goodput_bits"] for row in links["rows"] if row["pattern"] == "stream")
    for row in rows:
        row["mbit_per_s"] = row["wire_bytes"] * 8e-3 / row["ms_median"]
        row["share_of_stream"] = row["mbit_per_s"] * 1e6 / stream_bits
    columns = ("choice", "numel", "wire_bytes", "ms_median", "mbit_per_s", "share_of_stream")
    report.print_table(rows, columns, title=f"{args.hosts} hosts, {args.rate}")
    if args.json:
        settings = {"hosts": args.hosts, "rate": args.rate, "steps": args.steps, "link_check": links}
        report.write_json(args.json, settings=settings, rows=rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4, help="simulated hosts (default: %(default)s)")
    add("--rate", default="1gbit", help="of each link, as launch/lab.py takes it (default: %(default)s)")
    add("--plans", nargs="+", default=["dense(dtype=fp32)", "quantize(bits=4, block=512)"], metavar="CHOICE")
    add("--numel-ki", nargs="+", type=int, default=[512, 2048, 8192], metavar="N", help="1024s of elements")
    add("--steps", type=int, default=7, help="measured steps of each row (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures there")
    add("--rows", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
