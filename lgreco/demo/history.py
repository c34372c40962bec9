"""What a run has recorded, step by step, and the row of the summary that comes of it."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

_FINAL_STEPS = 50


@dataclass
class History:
    """Figures of each step so far.

    Attributes:
        loss: training loss in nats per byte, mean over ranks.
        lr: learning rate.
        step_ms: wall time of the step on rank 0, evaluation and checkpoints left out.
        wire_bytes: sent by rank 0 in that step.
        validation: (steps done, loss in nats per byte), mean over all validation windows.
        sparsity: of the pruned layers together after that step; empty where the run is not pruned.
        replicas_equal: whether all ranks held the same parameters each time they were compared.
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    wire_bytes: list[int] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)
    replicas_equal: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, which load with weights_only=True."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> History:
        """The inverse of as_dict."""
        return cls(**{**saved, "validation": [tuple(point) for point in saved["validation"]]})

    def json_lines(self) -> str:
        """One JSON object for each step, with val_loss where the validation loss was taken after it."""
        validation = dict(self.validation)
        lines = []
        columns = zip(self.loss, self.lr, self.step_ms, self.wire_bytes, strict=True)
        for step, (loss, lr, step_ms, wire_bytes) in enumerate(columns, start=1):
            line = {"step": step, "loss": loss, "lr": lr, "step_ms": round(step_ms, 3), "wire_bytes": wire_bytes}
            if self.sparsity:
                line["sparsity"] = round(self.sparsity[step - 1], 6)
            if step in validation:
                line["val_loss"] = validation[step]
            lines.append(json.dumps(line) + "\n")
        return "".join(lines)


@dataclass(frozen=True)
class Row:
    """One trained run in figures, a row of summary.json.

    Attributes:
        method: the run's name in the settings.
        seed: its seed.
        final_loss: mean training loss of the last 50 steps and of all ranks, nats per byte.
        val_loss: validation loss after the last step, nats per byte.
        wire_bytes_per_step: sent by rank 0 in a step, median over the steps after the dense warm-up.
        wire_bytes_run: sent by rank 0 in the whole run, warm-up included.
        dense_bytes_per_step: what a ring allreduce of the fp32 gradients sends per rank.
        ratio: dense_bytes_per_step / wire_bytes_per_step.
        step_ms: median over the steps after the dense warm-up.
        replicas_equal: whether the bytes of all parameters were the same on all ranks, each time compared.
    """

    method: str
    seed: int
    final_loss: float
    val_loss: float
    wire_bytes_per_step: int
    wire_bytes_run: int
    dense_bytes_per_step: int
    ratio: float | None
    step_ms: float
    replicas_equal: bool

    @classmethod
    def of(cls, history: History, *, method: str, seed: int, warmup_steps: int, dense_bytes: int) -> Row:
        """Draws the figures of a finished run; a run shorter than its warm-up is judged by its last step."""
        steady = min(warmup_steps, len(history.loss) - 1)
        wire_bytes = int(statistics.median_low(history.wire_bytes[steady:]))
        return cls(
            method=method,
            seed=seed,
            final_loss=statistics.fmean(history.loss[-_FINAL_STEPS:]),
            val_loss=history.validation[-1][1],
            wire_bytes_per_step=wire_bytes,
            wire_bytes_run=sum(history.wire_bytes),
            dense_bytes_per_step=dense_bytes,
            ratio=dense_bytes / wire_bytes if wire_bytes else None,
            step_ms=statistics.median(history.step_ms[steady:]),
            replicas_equal=history.replicas_equal,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
