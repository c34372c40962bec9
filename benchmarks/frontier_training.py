"""One rank of one training run: DistributedDataParallel, lgreco's hook where the run has one, and what is recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from frontier_runs import Job
from frontier_tasks import TASKS, Task, optimizer_of
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.demo.loop import learning_rate
from lgreco.demo.ranks import Ranks, parameter_digest
from lgreco.demo.settings import TrainSettings
from lgreco.ring import ring_allreduce_bytes

_FINAL_STEPS = 50
_EVALUATIONS = 4
# Often enough for a progress bar, and for a run whose loss is lost to end soon.
_REPORTED_EVERY = 10


@dataclass(frozen=True)
class Evaluation:
    """Validation after some steps: loss in nats, accuracy from 0 to 1, both means over all ranks' data."""

    step: int
    loss: float
    accuracy: float


class Recorder:
    """Collects what every step leaves; ranks bring theirs together at `settle`."""

    def __init__(self, ranks: Ranks, dense_bytes: int) -> None:
        self.train_loss: list[float] = []
        self.wire_bytes: list[float] = []
        self.evaluations: list[Evaluation] = []
        self._ranks, self._dense_bytes = ranks, dense_bytes
        self._unsettled: list[tuple[float, float]] = []

    def step(self, loss: float, wire_bytes: float) -> None:
        """Takes this rank's figures of a step."""
        self._unsettled.append((loss, wire_bytes))

    def settle(self) -> None:
        """Means over ranks; collective.

        Raises:
            RuntimeError: if a loss is not finite.
        """
        if not self._unsettled:
            return
        means = self._ranks.mean(torch.tensor(self._unsettled, dtype=torch.float64)).tolist()
        self._unsettled.clear()
        for loss, wire_bytes in means:
            self.train_loss.append(loss)
            self.wire_bytes.append(wire_bytes)
            if not math.isfinite(loss):
                raise RuntimeError(f"loss must be finite, got {loss} at step {len(self.train_loss)}")

    def record(self, warmup_steps: int) -> dict[str, Any]:
        """All figures, as JSON takes them."""
        last = self.evaluations[-1]
        return {
            "train_loss": sum(self.train_loss[-_FINAL_STEPS:]) / len(self.train_loss[-_FINAL_STEPS:]),
            "val_loss": last.loss,
            "val_accuracy": last.accuracy,
            **traffic(self.wire_bytes, self._dense_bytes, warmup_steps),
            "train_loss_curve": [round(loss, 6) for loss in self.train_loss],
            "validation": [vars(evaluation) for evaluation in self.evaluations],
        }


def traffic(wire_bytes: Sequence[float], dense_bytes: int, warmup_steps: int) -> dict[str, Any]:
    """What was sent, and how many times less than a ring allreduce of fp32 sends.

    Args:
        wire_bytes: of each step, mean over ranks.
        dense_bytes: what a ring allreduce sends per rank and step.
        warmup_steps: dense ones; a run shorter than its warm-up is judged by its last step.
    """
    steady = wire_bytes[min(warmup_steps, len(wire_bytes) - 1) :]
    return {
        "dense_bytes_per_step": dense_bytes,
        "wire_bytes_per_step": sum(steady) / len(steady),
        "wire_bytes_run": sum(wire_bytes),
        "ratio": _ratio(dense_bytes * len(steady), sum(steady)),
        "whole_run_ratio": _ratio(dense_bytes * len(wire_bytes), sum(wire_bytes)),
    }


def train(job: Job, ranks: Ranks, tell: Callable[[int, float], None]) -> dict[str, Any]:
    """Trains a job to its end; collective.

    Args:
        job: what to train.
        ranks: of the job, on the CPU.
        tell: called now and then with steps done and the training loss.

    Returns:
        The record, the same on every rank but for times, which are of this rank.

    Raises:
        ValueError: lgreco refuses the config.
        RuntimeError: a loss is not finite.
    """
    settings = TrainSettings(**job.train)
    task = TASKS[job.model](settings)
    began, cpu_began = time.perf_counter(), time.process_time()
    torch.manual_seed(job.seed)
    ddp = DistributedDataParallel(
        task.module(), bucket_cap_mb=settings.bucket_cap_mb, gradient_as_bucket_view=True, init_sync=False
    )
    state = lgreco.attach(ddp, job.config) if job.config["enabled"] else None
    numel = sum(parameter.numel() for parameter in ddp.parameters())
    dense_bytes = ring_allreduce_bytes(numel, ranks.world_size)
    recorder = Recorder(ranks, dense_bytes)
    optimizer = optimizer_of(ddp.module, job.optimizer, settings)
    evaluate_every = -(-settings.steps // _EVALUATIONS)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = _step(ddp, optimizer, settings.clip, *task.batch(seed=job.seed, rank=ranks.rank, step=step))
        recorder.step(loss, dense_bytes if state is None else state.stats()["wire_bytes"])
        done = step + 1
        evaluates = done % evaluate_every == 0 or done == settings.steps
        if evaluates or done % _REPORTED_EVERY == 0:
            recorder.settle()
            tell(done, recorder.train_loss[-1])
        if evaluates:
            recorder.evaluations.append(evaluate(task, ddp.module, done, ranks))
    record = {
        **recorder.record(job.config["warmup_steps"] if state is not None else 0),
        "replicas_equal": ranks.all_equal(parameter_digest(ddp.module)),
        "parameters": numel,
        "plan": None if state is None else {layer: str(choice) for layer, choice in state.plan.items()},
        "cpu_s": float(ranks.sum(torch.tensor(time.process_time() - cpu_began))),
        "wall_s": time.perf_counter() - began,
    }
    if state is not None:
        state.close()
    return record


def evaluate(task: Task, module: nn.Module, step: int, ranks: Ranks) -> Evaluation:
    """Validation loss and accuracy; collective."""
    total = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for inputs, targets in task.validation(rank=ranks.rank, world_size=ranks.world_size):
            logits, wanted = module(inputs).flatten(0, -2), targets.flatten()
            loss = functional.cross_entropy(logits, wanted, reduction="sum")
            hits = (logits.argmax(-1) == wanted).sum()
            total += torch.tensor([float(loss), float(hits), wanted.numel()], dtype=torch.float64)
    loss_sum, hit_sum, count = ranks.sum(total).tolist()
    return Evaluation(step, loss_sum / count, hit_sum / count)


def _step(
    ddp: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    clip: float,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> float:
    """One optimizer step; this rank's loss."""
    optimizer.zero_grad(set_to_none=True)
    loss: torch.Tensor = ddp(inputs, targets)
    torch.autograd.backward(loss)
    if clip:
        nn.utils.clip_grad_norm_(ddp.parameters(), clip)
    optimizer.step()
    return loss.item()


def _ratio(dense_bytes: float, wire_bytes: float) -> float | None:
    return dense_bytes / wire_bytes if wire_bytes else None
