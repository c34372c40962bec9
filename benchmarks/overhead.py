#!/usr/bin/env python3
"""What error tables and solves cost in training: a run with a solver, beside one that replays the plans it made.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/overhead.py --json overhead.json

A byte-level GPT trains on text under the solver's defaults and leaves a record. Then it trains again, and beside it in
the same processes a twin that replays the record: same plans at the same steps, no tables, no solves. Blocks of one
interval of each, by turns. Both end with the same weights, or the comparison is refused. After the warm-up:
`time_overhead`, `cpu_overhead`: of all steps with the solver over all steps of the twin, minus 1, of wall-clock and of
the processes' processor time. `slow_steps`: share of steps over 1.1 times their own median; `slowest`: the slowest step
over the median; the twin's, beside, are the machine's noise. `table_steps`: median of the steps in which a table was
measured or its plan solved, over the median of the others.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
import torch.distributed as dist
from rich.progress import Progress, TaskID
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.config import Config
from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.demo.text import Corpus, training_windows
from lgreco.record import read

_COLUMNS = ("run", "step_ms_median", "table_steps", "slow_steps", "slowest", "time_overhead", "cpu_overhead")


class _Run:
    """One training run."""

    def __init__(self, corpus: Corpus, config: dict[str, Any], context: int, batch: int) -> None:
        torch.manual_seed(0)
        group = dist.new_group()
        model = GPT(GPTConfig(256, 4, 4, context))
        self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True, process_group=group)
        self.state = lgreco.attach(self._ddp, config)
        self._optimizer = torch.optim.AdamW(self._ddp.parameters(), lr=1e-3, fused=True)
        self._corpus, self._context, self._batch = corpus, context, batch
        self.step_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def train(self, steps: int, bar: Progress, task: TaskID) -> None:
        """Goes on for so many steps."""
        for _ in range(steps):
            tokens, targets = training_windows(
                self._corpus, seed=0, rank=dist.get_rank(), step=len(self.step_ms), part=0,
                batch=self._batch, context=self._context,
            )  # fmt: skip
            begun, cpu_s = time.perf_counter(), _cpu_s()
            self._optimizer.zero_grad()
            self._ddp(tokens, targets).backward()
            self._optimizer.step()
            self.step_ms.append(1e3 * (time.perf_counter() - begun))
            self.cpu_ms.append(1e3 * (_cpu_s() - cpu_s))
            bar.advance(task)

    def weights(self) -> torch.Tensor:
        """All of them, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self._ddp.parameters()])


def measure(corpus: Corpus, args: argparse.Namespace, folder: Path, bar: Progress) -> list[dict[str, Any]]:
    """A row for the run with the solver and one for its twin."""
    record, solver = folder / "record.jsonl", {"reference": args.reference}
    interval = Config.load({"solver": solver}).solver.interval  # type: ignore[union-attr]
    steps = args.intervals * interval
    task = bar.add_task("steps", total=3 * steps)

    def run(**solver_config: Any) -> _Run:
        return _Run(corpus, {"warmup_steps": args.warmup_steps, "solver": solver_config}, args.context, args.batch)

    made = run(**solver, record=str(record))
    made.train(steps, bar, task)
    made.state.close()
    dist.barrier()
    solved = run(**solver, record=str(folder / "solved.jsonl"))
    replayed = run(**solver, plan_replay=str(record))
    for turn in range(args.intervals):
        for each in (solved, replayed) if turn % 2 else (replayed, solved):
            each.train(interval, bar, task)
    if not torch.equal(solved.weights(), replayed.weights()):
        raise RuntimeError("the twin has other weights, so it did not do the same work")
    solved.state.close()
    replayed.state.close()
    busy = _table_steps(record, steps)
    rows = [_row(name, each, busy, args.warmup_steps) for name, each in (("solver", solved), ("replayed", replayed))]
    for name, of_run in (("time_overhead", "step_ms"), ("cpu_overhead", "cpu_ms")):
        with_solver, without = (sum(getattr(each, of_run)[args.warmup_steps :]) for each in (solved, replayed))
        rows[0][name] = with_solver / without - 1
    return rows


def _table_steps(record: Path, steps: int) -> set[int]:
    """Steps from the first that a table was measured in to the one that its plan was put in force at."""
    windows = Config.load({"solver": {}}).solver
    assert windows is not None, "it was asked for"
    busy: set[int] = set()
    for solve in read(record).solves:
        busy.update(range(solve.effective_step - windows.lag - windows.window, min(solve.effective_step + 1, steps)))
    return busy


def _row(name: str, run: _Run, busy: set[int], warmup_steps: int) -> dict[str, Any]:
    counted = list(enumerate(run.step_ms))[warmup_steps:]
    middle = median(ms for _, ms in counted)
    return {
        "run": name,
        "step_ms_median": middle,
        "table_steps": median(ms for step, ms in counted if step in busy)
        / median(ms for step, ms in counted if step not in busy),
        "slow_steps": sum(ms > 1.1 * middle for _, ms in counted) / len(counted),
        "slowest": max(ms for _, ms in counted) / middle,
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--reference", default="lowrank(rank=32, factors=int8)", help="of the budget (default: %(default)s)")
    add("--intervals", type=int, default=4, help="between solves, to train for (default: %(default)s)")
    add("--warmup-steps", type=int, default=20, help="dense, not counted (default: %(default)s)")
    add("--context", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    add("--batch", type=int, default=8, help="sequences per step and rank (default: %(default)s)")
    add("--text", default="stdlib", help="to train on: stdlib, a file or a folder")
    add("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder = [tempfile.mkdtemp(prefix="lgreco-overhead-") if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    with report.progress(seen=dist.get_rank() == 0) as bar:
        rows = measure(Corpus.load(args.text), args, Path(str(folder[0])), bar)
    if dist.get_rank() == 0:
        report.print_table(rows, _COLUMNS, title=f"{dist.get_world_size()} ranks, {args.intervals} intervals")
        if args.json:
            settings = {**vars(args), "world_size": dist.get_world_size()}
            report.write_json(args.json, settings=settings, rows=rows)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
