"""One training run: a GPT under DistributedDataParallel, with or without lgreco, one optimizer step at a time."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.checkpoint import pack_gathered
from lgreco.demo import checkpoint
from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.demo.history import History
from lgreco.demo.ranks import Ranks, parameter_digest
from lgreco.demo.settings import JobSettings, TrainSettings
from lgreco.demo.text import Corpus, training_windows, validation_windows
from lgreco.ring import ring_allreduce_bytes

# Settings that may differ between a checkpoint and the job that resumes it: none of them changes a bit of the weights.
_FREE_TO_CHANGE = {"eval_every", "eval_windows", "log_every", "checkpoint_every"}


class Training:
    """The state of one run between two steps.

    Attributes:
        name: of the run in the settings.
        seed: of the initial weights, of the data order and of dropout.
        ddp: the model.
        state: lgreco's, None in a plain run.
        history: what has been recorded.
        step: optimizer steps done.
        pruner: None where the run is not pruned.
        dense_bytes: what a ring allreduce of the gradients sends per rank and step.
    """

    def __init__(
        self,
        settings: JobSettings,
        name: str,
        seed: int,
        corpus: Corpus,
        ranks: Ranks,
        record: Path | None = None,
    ) -> None:
        """Builds model, hook and optimizer; collective.

        A run whose plans are solved for while it trains writes them to `record`, unless its config names a file.

        Raises:
            ValueError: if lgreco refuses the run's config.
        """
        self.name, self.seed = name, seed
        self._settings, self._corpus, self._ranks = settings, corpus, ranks
        torch.manual_seed(seed)
        module = GPT(GPTConfig(**settings.model.model_dump())).to(ranks.device)
        torch.manual_seed(seed * ranks.world_size + ranks.rank)
        self.ddp = DistributedDataParallel(
            module,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            bucket_cap_mb=settings.train.bucket_cap_mb,
            gradient_as_bucket_view=True,
        )
        self.state = None
        if settings.compressed(name):
            self.state = lgreco.attach(self.ddp, settings.runs[name].recording_to(record))
        self._optimizer = _adamw(module, settings.train)
        self._start_from(settings.start)
        pruning = settings.pruning_of(name)
        self.pruner = None if pruning is None else pruning.make(self.ddp, self._optimizer)
        if self.pruner is not None and self.state is not None:
            self.pruner.attach(self.state)
        self.history = History()
        self.step = 0
        self.dense_bytes = ring_allreduce_bytes(sum(p.numel() for p in module.parameters()), ranks.world_size)
        self._unsettled: list[torch.Tensor] = []

    @property
    def warmup_steps(self) -> int:
        """Dense steps before compression starts."""
        return self._settings.runs[self.name].warmup_steps if self.state is not None else 0

    def advance(self) -> None:
        """Trains one optimizer step."""
        train = self._settings.train
        begun = time.perf_counter()
        lr = learning_rate(self.step, train)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self._ranks.device)
        for part in range(train.accumulate):
            last = part == train.accumulate - 1
            with contextlib.nullcontext() if last else self.ddp.no_sync():
                loss += self._pass(part)
        if train.clip:
            nn.utils.clip_grad_norm_(self.ddp.parameters(), train.clip)
        self._optimizer.step()
        sent_bytes = self._sent_bytes()
        if self.pruner is not None:
            before = self.pruner.regrowth_bytes
            self.pruner.step()
            sent_bytes += self.pruner.regrowth_bytes - before
            self.history.sparsity.append(self.pruner.sparsity)
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self.step += 1
        self._unsettled.append(loss)
        self.history.lr.append(lr)
        self.history.step_ms.append((time.perf_counter() - begun) * 1e3)
        self.history.wire_bytes.append(sent_bytes)
        if self.state is not None:
            self.state.note_step(float(loss), self.history.step_ms[-1])

    def settle(self) -> None:
        """Brings the losses of all ranks together into the history; collective.

        Raises:
            RuntimeError: if a loss is not finite.
        """
        if not self._unsettled:
            return
        losses = self._ranks.mean(torch.stack(self._unsettled)).tolist()
        self._unsettled.clear()
        for loss in losses:
            self.history.loss.append(loss)
            if not math.isfinite(loss):
                lr = self._settings.train.lr
                raise RuntimeError(
                    f"loss must be finite, got {loss} at step {len(self.history.loss)}: lower train.lr ({lr})"
                )

    def evaluate(self) -> None:
        """Takes the validation loss into the history; collective."""
        train, context = self._settings.train, self._settings.model.context
        module = self.ddp.module
        total = torch.zeros(2, dtype=torch.float64)
        module.eval()
        with torch.no_grad():
            for tokens, targets in validation_windows(
                self._corpus,
                windows=train.eval_windows,
                batch=train.batch,
                context=context,
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
            ):
                total += torch.tensor([self._loss(module, tokens, targets).item() * len(tokens), len(tokens)])
        module.train()
        loss_sum, windows = self._ranks.sum(total).tolist()
        self.history.validation.append((self.step, loss_sum / windows))

    def save(self, folder: Path) -> None:
        """Compares the replicas and writes a checkpoint; collective."""
        self.settle()
        self.history.replicas_equal &= self._ranks.all_equal(parameter_digest(self.ddp.module))
        shared = {
            "step": self.step,
            "identity": self._identity(),
            "model": self.ddp.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": self.history.as_dict(),
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
        }
        on_gpu = self._ranks.device.type == "cuda"
        own = {
            "cpu_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if on_gpu else None,
            "compression": None if self.state is None else self.state.state_dict(),
        }
        checkpoint.save(folder, self.step, shared, own, self._ranks)

    def restore(self, path: Path) -> bool:
        """Goes on from a checkpoint.

        Returns:
            Whether it goes on bit for bit, which takes the number of ranks that saved. With another number each rank
            reads windows of its own as ever, and lgreco keeps what the residuals have still to add to the mean.

        Raises:
            ValueError: if the checkpoint is damaged, or of another model, text, run or seed.
        """
        shared, owns = checkpoint.load(path)
        saved = shared["identity"]
        for key, value in self._identity().items():
            if saved.get(key) != value:
                raise ValueError(f"checkpoint {path} was made with {key} {saved.get(key)!r}, this job has {value!r}")
        self.ddp.module.load_state_dict(shared["model"])
        self._optimizer.load_state_dict(shared["optimizer"])
        self.history = History.from_dict(shared["history"])
        self.step = shared["step"]
        exact = len(owns) == self._ranks.world_size
        if exact:
            own = owns[self._ranks.rank]
            torch.set_rng_state(own["cpu_generator"])
            if own["cuda_generator"] is not None and self._ranks.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda_generator"])
        if self.state is not None:
            states = [own["compression"] for own in owns]
            self.state.load_state_dict(states[self._ranks.rank] if exact else pack_gathered(states))
        if self.pruner is not None:
            self.pruner.load_state_dict(shared["pruner"])
        return exact

    def close(self) -> None:
        """Ends lgreco's threads and releases its memory; collective."""
        if self.state is not None:
            self.state.close()

    def _start_from(self, path: Path | None) -> None:
        """Weights of an earlier run's checkpoint; optimizer and history begin anew."""
        if path is None:
            return
        saved = checkpoint.latest(path) or path
        try:
            self.ddp.module.load_state_dict(checkpoint.load(saved)[0]["model"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"start must be a checkpoint of this model, {saved} is not: {error}") from None

    def _sent_bytes(self) -> int:
        return self.dense_bytes if self.state is None else int(self.state.stats()["wire_bytes"])

    def _pass(self, part: int) -> torch.Tensor:
        """Forward and backward of one batch; its share of the step's loss, detached."""
        train = self._settings.train
        tokens, targets = training_windows(
            self._corpus,
            seed=self.seed,
            rank=self._ranks.rank,
            step=self.step,
            part=part,
            batch=train.batch,
            context=self._settings.model.context,
        )
        loss = self._loss(self.ddp, tokens, targets) / train.accumulate
        torch.autograd.backward(loss)
        return loss.detach()

    def _loss(self, module: nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        device = self._ranks.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._settings.train.precision == "bf16"):
            loss: torch.Tensor = module(tokens.to(device), targets.to(device))
        return loss

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the job that resumes it, by the settings' keys."""
        settings = self._settings
        pruning = settings.pruning_of(self.name)
        train = settings.train.model_dump(mode="json", exclude=_FREE_TO_CHANGE)
        return {
            **{f"model.{key}": value for key, value in settings.model.model_dump().items()},
            **{f"train.{key}": value for key, value in train.items()},
            **{f"runs.{self.name}.{key}": value for key, value in settings.runs[self.name].to_dict().items()},
            **({} if pruning is None else {"pruning": pruning.model_dump(mode="json")}),
            "seed": self.seed,
            "text of SHA-256": self._corpus.digest,
        }


def learning_rate(step: int, train: TrainSettings) -> float:
    """Linear warm-up to `lr`, then half a cosine down to `lr * lr_end` at the last step; nothing to checkpoint."""
    if step < train.lr_warmup_steps:
        return train.lr * (step + 1) / train.lr_warmup_steps
    span = max(1, train.steps - 1 - train.lr_warmup_steps)
    progress = min(1.0, (step - train.lr_warmup_steps) / span)
    return train.lr * (train.lr_end + (1.0 - train.lr_end) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def _adamw(module: nn.Module, train: TrainSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
