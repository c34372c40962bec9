#!/usr/bin/env python3
"""Trains a small model under several ranks, dense and compressed: checks what must hold, times the steps.

    torchrun --standalone --nproc-per-node 2 benchmarks/multirank.py --backend nccl --json ranks.json

Checked for each choice: replicas are equal bit for bit after every step; a second run gives the same losses bit for
bit; the result differs from dense; the loss falls; a step with an inf on the last rank is skipped on all ranks and
leaves no trace. Ranks share GPUs where there are fewer of them; the step times are then of ranks that wait for each
other. `--device cpu --backend gloo` checks the same without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import report
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lgreco

CHOICES = (
    "dense(dtype=bf16)",
    "quantize(bits=4, block=512)",
    "quantize(bits=8, block=256, grid=symmetric, rounding=stochastic, scales=bf16)",
    "topk(density=0.3)",
    "lowrank(rank=8, factors=int8)",
    "lowrank(rank=16, factors=int6, iterate=alternate)",
)
_WIDTH = 1024
_WARMUP_STEPS = 2
_COLUMNS = (
    "method",
    "world_size",
    "step_ms_median",
    "first_loss",
    "final_loss",
    "wire_bytes",
    "dense_bytes",
    "failures",
)


@dataclass
class Run:
    """What one training run left behind.

    Attributes:
        losses: mean over ranks, one for each step that counted.
        parameters: all of them, flat, fp32, at the end.
        step_ms: wall time of each step on this rank.
        replicas_equal: whether all ranks held the same bits after every step.
        stats: `State.stats()` at the end; empty for plain DDP.
    """

    losses: list[float] = field(default_factory=list)
    parameters: Tensor = field(default_factory=lambda: torch.empty(0))
    step_ms: list[float] = field(default_factory=list)
    replicas_equal: bool = True
    stats: dict[str, Any] = field(default_factory=dict)


def model_on(device: torch.device) -> nn.Module:
    """A residual-free MLP whose layers have odd sizes too, so that not every layer starts at an aligned address."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(256, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 1023), nn.GELU(), nn.Linear(1023, _WIDTH), nn.GELU(),
        nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 33),
    ).to(device)  # fmt: skip


def batch_of(step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """This rank's inputs [64, 256] and targets [64, 33] of a step: a fixed function of the inputs, to be learnt."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    inputs = torch.randn(64, 256, generator=generator)
    return inputs.to(device), torch.sin(3 * inputs[:, :33] + inputs[:, 33:66]).to(device)


def train(choice: str | None, steps: int, device: torch.device, *, bad_step: int | None = None) -> Run:
    """Trains for `steps` steps; before `bad_step` comes one more, whose loss is inf on the last rank.

    Args:
        choice: for every layer; None trains with plain DDP.
        steps: that count.
        device: of the model.
        bad_step: index of the step that the bad one precedes; None for none.
    """
    ddp = DistributedDataParallel(model_on(device), bucket_cap_mb=2)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, growth_interval=10**6)
    state = None
    if choice is not None:
        config = {"default": choice, "min_numel": 1, "warmup_steps": _WARMUP_STEPS, "seed": 1}
        state = lgreco.attach(ddp, config, scaler)
    run = Run()
    for step in range(steps):
        if step == bad_step:
            one_step(ddp, optimizer, scaler, step, device, bad=dist.get_rank() == dist.get_world_size() - 1)
        began = time.perf_counter()
        loss = one_step(ddp, optimizer, scaler, step, device, bad=False)
        synchronize(device)
        run.step_ms.append(1e3 * (time.perf_counter() - began))
        dist.all_reduce(loss)
        run.losses.append(float(loss) / dist.get_world_size())
        run.parameters = torch.cat([p.detach().float().flatten() for p in ddp.parameters()])
        run.replicas_equal &= replicas_equal(run.parameters)
    if state is not None:
        run.stats = state.stats()
        state.close()
    return run


def one_step(
    ddp: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    device: torch.device,
    *,
    bad: bool,
) -> Tensor:
    """One step on the batch of `step`; returns this rank's loss. A bad one has infinite gradients here."""
    inputs, targets = batch_of(step, device)
    loss = nn.functional.mse_loss(ddp(inputs), targets)
    optimizer.zero_grad()
    scaler.scale(loss * (float("inf") if bad else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def synchronize(device: torch.device) -> None:
    """Waits for what was launched on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_for(kind: str) -> torch.device:
    """This rank's device; makes it the current one."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def replicas_equal(parameters: Tensor) -> bool:
    """Whether every rank holds the same bits."""
    gathered = [torch.empty_like(parameters) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, parameters)
    return all(torch.equal(other.view(torch.int32), parameters.view(torch.int32)) for other in gathered)


def examine(choice: str, steps: int, device: torch.device, dense: Run) -> tuple[Run, list[str]]:
    """Trains with a choice three times. Returns the first run, and what did not hold."""
    first, second = train(choice, steps, device), train(choice, steps, device)
    disturbed = train(choice, steps, device, bad_step=_WARMUP_STEPS + 3)
    held = {
        "replicas differ": first.replicas_equal and second.replicas_equal and disturbed.replicas_equal,
        "a second run differs": first.losses == second.losses and torch.equal(first.parameters, second.parameters),
        "the result is dense's": not torch.equal(first.parameters, dense.parameters),
        "the loss does not fall": first.losses[-1] < 0.8 * first.losses[0],
        "the loss is far from dense's": first.losses[-1] < 1.2 * dense.losses[-1],
        # Losses are of scaled gradients; the scale is a power of two, so halving it changes no bit.
        "a step with inf leaves a trace": torch.equal(disturbed.parameters, first.parameters),
    }
    return first, [what for what, holds in held.items() if not holds]


def row_of(method: str, run: Run, failures: Sequence[str]) -> dict[str, Any]:
    """A run as a row of the report."""
    return {
        "method": method,
        "world_size": dist.get_world_size(),
        "step_ms_median": median(run.step_ms[len(run.step_ms) // 2 :]),
        "first_loss": run.losses[0],
        "final_loss": run.losses[-1],
        "wire_bytes": run.stats.get("wire_bytes"),
        "dense_bytes": run.stats.get("dense_bytes"),
        "failures": "; ".join(failures) or None,
    }


def main() -> int:
    """Runs every choice; rank 0 prints and writes. Returns 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("nccl", "gloo"), default="nccl")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    device = device_for(arguments.device)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group(arguments.backend)
    dense = train(None, arguments.steps, device)
    rows = [row_of("dense", dense, () if dense.replicas_equal else ("replicas differ",))]
    for choice in CHOICES:
        rows.append(row_of(choice, *examine(choice, arguments.steps, device, dense)))
    if dist.get_rank() == 0:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        report.print_table(rows, _COLUMNS, title=f"{arguments.backend}, {name}")
        if arguments.json:
            report.write_json(arguments.json, settings={**vars(arguments), "device_name": name}, rows=rows)
    dist.destroy_process_group()
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
