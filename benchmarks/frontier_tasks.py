"""The two things that the frontier trains, and how: the quickstart's GPT on text, and a convolutional net on digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from frontier_digits import Digits, DigitsNet
from torch import Tensor, nn, optim

from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.demo.settings import JobSettings, TrainSettings, load_settings
from lgreco.demo.text import Corpus, training_windows, validation_windows

OPTIMIZERS = ("adamw", "sgd")
_QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
_MOMENTUM = 0.9
# Images of a forward pass that keeps no gradient.
_VALIDATION_BATCH = 64


class Task(Protocol):
    """A model and its data. Called with inputs alone the model gives logits, with targets the mean cross-entropy."""

    def module(self) -> nn.Module:
        """The model; torch's global seed decides the weights."""

    def batch(self, *, seed: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one rank and step, a function of the arguments alone."""

    def validation(self, *, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the validation data, in batches; the same at every call."""


class GptTask:
    """Text, read by the model that the quickstart trains."""

    def __init__(self, train: TrainSettings) -> None:
        """Reads the text."""
        settings = _quickstart()
        self._train, self._model = train, settings.model
        self._corpus = Corpus.load(settings.data.source, settings.data.validation_every, settings.data.max_mb)

    def module(self) -> nn.Module:
        """See Task."""
        return GPT(GPTConfig(**self._model.model_dump()))

    def batch(self, *, seed: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """See Task."""
        size, context = self._train.batch, self._model.context
        return training_windows(self._corpus, seed=seed, rank=rank, step=step, part=0, batch=size, context=context)

    def validation(self, *, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See Task."""
        return validation_windows(
            self._corpus,
            windows=self._train.eval_windows,
            batch=self._train.batch,
            context=self._model.context,
            rank=rank,
            world_size=world_size,
        )


class DigitsTask:
    """Images of digits, read by a net of unlike layers."""

    def __init__(self, train: TrainSettings) -> None:
        """Reads the images."""
        self._train, self._digits = train, Digits()

    def module(self) -> nn.Module:
        """See Task."""
        return DigitsNet()

    def batch(self, *, seed: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """See Task."""
        return self._digits.training_batch(seed=seed, rank=rank, step=step, batch=self._train.batch)

    def validation(self, *, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See Task."""
        images, labels = (part[rank::world_size] for part in self._digits.validation)
        return zip(images.split(_VALIDATION_BATCH), labels.split(_VALIDATION_BATCH), strict=True)


TASKS: dict[str, Callable[[TrainSettings], Task]] = {"gpt": GptTask, "digits": DigitsTask}


def settings_of(model: str, optimizer: str, steps: int | None) -> TrainSettings:
    """How a model is trained.

    Args:
        model: a key of TASKS.
        optimizer: one of OPTIMIZERS.
        steps: None for the model's own number.

    Raises:
        ValueError: no learning rate is known for this model with this optimizer, or a wrong number of steps.
    """
    changed = {} if steps is None else {"steps": steps}
    digits = {"steps": 400, "batch": 16, "lr_end": 0.02, "lr_warmup_steps": 20, "clip": 1.0}
    known = {
        ("gpt", "adamw"): _quickstart().train.model_dump(),
        ("digits", "adamw"): {**digits, "lr": 1e-3, "weight_decay": 0.05},
        ("digits", "sgd"): {**digits, "lr": 0.1, "weight_decay": 5e-4},
    }
    if (model, optimizer) not in known:
        pairs = ", ".join(" with ".join(pair) for pair in known)
        raise ValueError(f"model and optimizer must be one of {pairs}, got {model} with {optimizer}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return TrainSettings(**{**known[model, optimizer], **changed})


def optimizer_of(module: nn.Module, name: str, train: TrainSettings) -> optim.Optimizer:
    """AdamW, or SGD with momentum; it decays matrices and leaves biases and norms alone."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return optim.SGD(groups, lr=train.lr, momentum=_MOMENTUM)
    return optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)


def _quickstart() -> JobSettings:
    return load_settings(_QUICKSTART)
