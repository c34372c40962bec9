#!/usr/bin/env python3
"""Which norm should a plan spend? Low-rank plans against a uniform rank, simulated in one process.

    python benchmarks/norms.py --model gpt-small --rank 4 8 --norms adam squared l2 --json runs/norms.json

With factors that are not coded, low rank is linear: what all ranks deliver depends on the mean of their gradients and
on the mean of their residuals alone. So one process trains exactly as W ranks would, at the cost of one, on the batches
of W ranks together. Every `--every` steps the errors of all ranks of all layers are taken from the singular values of
gradient + residual, and a plan is solved:

bytes: of least error, in the norm, at the bytes of the uniform rank;
error: of least bytes at the error of the uniform rank, times --alpha.

ratio: dense bytes over the plan's, of the matrices alone, factors counted at one byte an element (as int8 factors,
whose own loss could not be seen). Gap: loss over dense's of the same seed, less 1, of the validation loss after the
last step. One thread, a minute a run and seed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import report
import torch
from frontier_tasks import DigitsTask, GptTask, Task, optimizer_of, settings_of
from rich.progress import track
from torch import Tensor, nn

from lgreco import solver
from lgreco.choice import LowRank
from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.demo.loop import learning_rate
from lgreco.error_table import ErrorTable
from lgreco.layer import LayerInfo
from lgreco.norm import NORMS, additive_errors

_WORLD_SIZE = 4
_WARMUP_STEPS = 20
_SMALLEST_NUMEL = 1024
_MOST_RANKS = 4  # times the uniform rank
COLUMNS = {"run": "run", "ratio": "ratio", "gap": "gap (each seed)"}


class SmallGpt(GptTask):
    """The quickstart's GPT at half the width, on half the context."""

    def module(self) -> nn.Module:
        """See Task."""
        return GPT(GPTConfig(**{**self._model.model_dump(), "width": 128, "context": self._context}))

    def batch(self, *, seed: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """See Task."""
        inputs, targets = super().batch(seed=seed, rank=rank, step=step)
        return inputs[:, : self._context], targets[:, : self._context]

    def validation(self, *, rank: int, world_size: int) -> Iterable[tuple[Tensor, Tensor]]:  # type: ignore[override]
        """See Task."""
        for inputs, targets in super().validation(rank=rank, world_size=world_size):
            yield inputs[:, : self._context], targets[:, : self._context]

    _context = 64


MODELS: dict[str, Any] = {"digits": DigitsTask, "gpt-small": SmallGpt}


class LowRankExchange:
    """PowerSGD of every large matrix (arXiv 1905.13727) with residual and warm start, on the mean gradient."""

    def __init__(self, module: nn.Module, rank: int, norm: str | None, budget: str, alpha: float) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.dim() >= 2 and p.numel() >= _SMALLEST_NUMEL]
        self._parameters = dict(named)
        self._rank, self._norm, self._budget, self._alpha = rank, norm, budget, alpha
        self._residuals = {name: torch.zeros_like(matrix(p)) for name, p in named}
        self._starts: dict[str, Tensor] = {}
        self._random = torch.Generator().manual_seed(7)
        self.ranks = {name: min(rank, self._limit(name)) for name in self._parameters}
        self.bytes = 0.0
        self.dense_bytes = 4.0 * sum(p.numel() for p in self._parameters.values())

    @torch.no_grad()
    def run(self, solves: bool) -> None:
        """Replaces the gradients by what the exchange delivers."""
        values = {name: matrix(p.grad) + self._residuals[name] for name, p in self._parameters.items()}
        if solves and self._norm is not None:
            self.ranks = self._solve(values)
        for name, value in values.items():
            rank = self.ranks[name]
            p = torch.linalg.qr(value @ self._start(name, rank)).Q
            self._starts[name] = value.T @ p
            delivered = p @ self._starts[name].T
            self._residuals[name] = value - delivered
            self._parameters[name].grad.copy_(delivered.view_as(self._parameters[name]))
            self.bytes += rank * sum(value.shape)

    def _start(self, name: str, rank: int) -> Tensor:
        """The last Q, cut to the rank or filled up with random columns."""
        cols = self._residuals[name].shape[1]
        known = self._starts.get(name, torch.empty(cols, 0))[:, :rank]
        return torch.cat([known, torch.randn(cols, rank - known.shape[1], generator=self._random)], dim=1)

    def _limit(self, name: str) -> int:
        return max(min(matrix(self._parameters[name]).shape) // 2, 1)

    def _solve(self, values: dict[str, Tensor]) -> dict[str, int]:
        names = list(values)
        widest = _MOST_RANKS * self._rank
        choices = tuple(LowRank(rank=rank) for rank in range(1, widest + 1))
        errors = np.full((len(names), widest), np.nan)
        costs, norms = errors.copy(), np.zeros(len(names))
        for row, name in enumerate(names):
            energies = torch.linalg.svdvals(values[name].double()).square().numpy()
            offered = min(widest, self._limit(name))
            norms[row] = energies.sum()
            errors[row, :offered] = np.maximum(norms[row] - np.cumsum(energies)[:offered], 0.0)
            costs[row, :offered] = np.arange(1, offered + 1) * sum(values[name].shape)
        layers = tuple(LayerInfo(name, tuple(self._parameters[name].shape), "fp32") for name in names)
        table = ErrorTable(layers, choices, errors, norms, costs, _WORLD_SIZE, 0)
        spend = additive_errors(table, self._norm or "squared")
        uniform = [min(self._rank, self._limit(name)) - 1 for name in names]
        if self._budget == "bytes":
            found = solver.minimise_error(spend, costs, math.fsum(costs[range(len(names)), uniform]))
        else:
            found = solver.solve(spend, costs, self._alpha * math.fsum(spend[range(len(names)), uniform]))
        return {name: int(column) + 1 for name, column in zip(names, found.choices, strict=True)}


def matrix(tensor: Tensor | None) -> Tensor:
    """Rows of dim 0, columns of the rest."""
    assert tensor is not None, "every matrix has a gradient"
    return tensor.reshape(tensor.shape[0], -1)


def train(args: argparse.Namespace, seed: int, rank: int | None, norm: str | None, budget: str) -> dict[str, Any]:
    """One run; the validation loss in nats and the ratio after warm-up, None for dense."""
    settings = settings_of("digits" if args.model == "digits" else "gpt", "adamw", args.steps)
    task: Task = MODELS[args.model](settings)
    torch.manual_seed(seed)
    module, began = task.module(), time.perf_counter()
    optimizer = optimizer_of(module, "adamw", settings)
    exchange = None if rank is None else LowRankExchange(module, rank, norm, budget, args.alpha)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        batches = [task.batch(seed=seed, rank=each, step=step) for each in range(_WORLD_SIZE)]
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimizer.zero_grad()
        module(inputs, targets).backward()
        if exchange is not None and step >= _WARMUP_STEPS:
            exchange.run(solves=(step - _WARMUP_STEPS) % args.every == 0)
        nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimizer.step()
    loss_sum = count = 0.0
    with torch.no_grad():
        for inputs, targets in task.validation(rank=0, world_size=1):
            loss_sum += float(module(inputs, targets)) * targets.numel()
            count += targets.numel()
    sent = exchange and exchange.bytes / (args.steps - _WARMUP_STEPS)
    return {
        "val_loss": loss_sum / count,
        "ratio": exchange.dense_bytes / sent if exchange and sent else None,
        "ranks": exchange.ranks if exchange else None,
        "wall_s": time.perf_counter() - began,
    }


def runs_of(args: argparse.Namespace) -> dict[str, tuple[int | None, str | None, str]]:
    """Name -> (uniform rank, norm, budget)."""
    runs: dict[str, tuple[int | None, str | None, str]] = {"dense": (None, None, "")}
    for rank in args.rank:
        runs[f"rank {rank}"] = (rank, None, "")
        for budget in args.budgets:
            runs |= {f"{norm}, {budget} of rank {rank}": (rank, norm, budget) for norm in args.norms}
    return runs


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=tuple(MODELS), required=True)
    add("--rank", type=int, nargs="+", default=[4, 8], help="uniform ranks (default: 4 8)")
    add("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    add("--budgets", nargs="+", choices=("bytes", "error"), default=["bytes"])
    add("--alpha", type=float, default=1.0, help="factor on an error budget (default: 1)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    add("--every", type=int, default=50, help="steps between solves (default: 50)")
    add("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = runs_of(args)
    jobs = [(name, seed) for seed in args.seeds for name in runs]
    records = {job: train(args, job[1], *runs[job[0]]) for job in track(jobs, "training")}
    rows, table = [], []
    for name in runs:
        gaps = [records[name, seed]["val_loss"] / records["dense", seed]["val_loss"] - 1 for seed in args.seeds]
        ratios = [records[name, seed]["ratio"] for seed in args.seeds]
        ratio = None if None in ratios else sum(ratios) / len(ratios)
        rows.append(
            {"run": name, "ratio": ratio, "gaps": gaps, "records": [records[name, seed] for seed in args.seeds]}
        )
        each = ", ".join(f"{100 * gap:+.1f}" for gap in gaps)
        shown = {
            "ratio": "" if ratio is None else f"{ratio:.1f}",
            "gap": f"{100 * sum(gaps) / len(gaps):+.2f} % ({each})",
        }
        table.append({"run": name, **shown})
    report.print_table(table, COLUMNS, title=f"{args.model}, {args.steps} steps, seeds {args.seeds}")
    if args.json:
        report.write_json(args.json, settings=vars(args), rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
