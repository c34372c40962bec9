"""The methods of the proof suite, each as one rank's pass in real training on text."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_methods import Job, Step
from step_turns import UNSYNCHRONISED, Variant
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.demo.text import Corpus, training_windows, validation_windows

_BETAS, _WEIGHT_DECAY, _CLIP = (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class TextJob(Job):
    """What is trained, the same for every method.

    Attributes:
        text: as `lgreco.demo.text.Corpus.load` takes it.
        seed: of weights and data.
        lr: of AdamW, reached after `lr_warmup_steps` optimizer steps, then constant: no method knows its end.
        lr_warmup_steps: optimizer steps.
        accumulate: passes for each optimizer step of the method `accumulate`.
        warmup_steps: dense steps of lgreco's methods.
        solver: of the methods `lgreco` and `accordion`; its reference is the choice of the method `lowrank`.
        windows: of validation text, dealt to ranks.
        folder: for records, and for calibrations of this lab alone.
    """

    text: str
    seed: int
    lr: float
    lr_warmup_steps: int
    accumulate: int
    warmup_steps: int
    solver: Mapping[str, Any]
    windows: int
    folder: str


class TextStep(Step):
    """One rank's pass: forward, backward, exchange; and AdamW where the method steps."""

    def __init__(self, job: TextJob, variant: Variant, port: int) -> None:
        """Builds all but lgreco's part, which waits for `prepare`: it may measure, and others build now."""
        self._text_job = job
        self._passes = 0
        self._attach: Callable[[], lgreco.State] | None = None
        self._name = variant.name
        self._every = job.accumulate if variant.method == "accumulate" else 1
        super().__init__(job, variant, port)
        torch.manual_seed(job.seed)
        self._alone = variant.method == UNSYNCHRONISED
        self._corpus = Corpus.load(job.text)
        parameters = list(self._model.parameters())
        groups = [
            {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": _WEIGHT_DECAY},
            {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=job.lr, betas=_BETAS, fused=True)

    def prepare(self) -> None:
        """Attaches lgreco, once; collective."""
        if self._attach is not None:
            state, self._attach = self._attach(), None
            self._sent_bytes = lambda steps: float(state.stats()["wire_bytes"])

    def run(self) -> None:
        """Takes one pass on this rank's windows of the text."""
        job, step, part = self._text_job, *divmod(self._passes, self._every)
        last = part == self._every - 1
        if part == 0:
            self._optimizer.zero_grad()
        tokens, targets = training_windows(
            self._corpus, seed=job.seed, rank=self._rank, step=step, part=part, batch=job.batch, context=job.context
        )
        waits = isinstance(self._model, DistributedDataParallel) and not last
        with self._model.no_sync() if waits else contextlib.nullcontext():
            (self._model(tokens, targets) / self._every).backward()
        if last:
            for group in self._optimizer.param_groups:
                group["lr"] = job.lr * min(1.0, (step + 1) / job.lr_warmup_steps)
            nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP)
            self._optimizer.step()
        self._passes += 1

    def validation_loss(self) -> float | None:
        """Mean over this rank's windows; None for hosts that do not exchange, whose models are not one."""
        if self._alone:
            return None
        job = self._text_job
        module = self._model.module if isinstance(self._model, DistributedDataParallel) else self._model
        losses, counts = 0.0, 0
        module.eval()
        with torch.no_grad():
            for tokens, targets in validation_windows(
                self._corpus, windows=job.windows, batch=job.batch, context=job.context,
                rank=self._rank, world_size=self._hosts,
            ):  # fmt: skip
                losses += float(module(tokens, targets)) * len(tokens)
                counts += len(tokens)
        module.train()
        return losses / counts

    def _use_accumulate(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        dense = self._use_dense(ddp)
        return lambda steps: dense(steps) / self._every

    def _later(self, ddp: DistributedDataParallel, **config: Any) -> Callable[[int], float]:
        settings = {"warmup_steps": self._text_job.warmup_steps, **config}
        self._attach = lambda: lgreco.attach(ddp, settings)
        return lambda steps: 0.0

    def _use_uniform(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return self._later(ddp, default=self._text_job.plan)

    def _use_lowrank(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return self._later(ddp, default=self._text_job.solver["reference"])

    def _use_lgreco(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return self._later(ddp, solver=self._solver())

    def _use_accordion(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return self._later(ddp, solver=self._solver(accordion={"threshold": 0.5, "tight": 1.0, "loose": 2.0}))

    def _use_auto(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        # Another lab's links are not this one's.
        os.environ["XDG_CACHE_HOME"] = self._text_job.folder
        return self._later(ddp, default=self._text_job.plan, auto=True)

    def _solver(self, **more: Any) -> dict[str, Any]:
        record = Path(self._text_job.folder, f"{self._name}.jsonl")
        return {**self._text_job.solver, **more, "record": str(record)}
