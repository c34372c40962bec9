"""Criteria: how much each weight matters. Greater scores are kept; the scores are the same on every rank."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist

Tensors = Mapping[str, torch.Tensor]


class Criterion(ABC):
    """Scores of weights.

    Attributes:
        order: value, or magnitude where only the absolute score counts (then a layer's weights may be its scores).
        watches: whether `observe` wants the averaged gradient of each step, which takes an optimizer.
    """

    order: Literal["magnitude", "value"] = "value"
    watches = False

    def join(self, group: dist.ProcessGroup | None) -> None:  # noqa: B027  # most need none
        """Hears once of the ranks that hold the pruner's model; None: the default group."""

    def observe(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> None:  # noqa: B027  # most need none
        """Takes a step's weights and gradient, averaged over ranks and unscaled, before the optimizer uses them."""

    def prepare(self, layers: Tensors, masks: Tensors, step: int) -> None:  # noqa: B027  # most need none
        """Called before the scores of an update are asked for; collective where ranks must agree."""

    @abstractmethod
    def scores(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Scores of the weight's shape."""

    def settle(self, layers: Tensors, masks: Tensors) -> None:  # noqa: B027  # most need none
        """Called with the new masks after the pruned weights have been zeroed; may move the kept ones alone."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, the same on every rank."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most need none
        """The inverse of `state`."""


class Magnitude(Criterion):
    """|w|."""

    order = "magnitude"

    def scores(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """See Criterion."""
        return weight.detach()


class Random(Criterion):
    """Drawn anew at each update, a function of the seed, the layer's name and the step.

    Weights that are pruned stay so, so the draws only decide among those that are left.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._step = 0

    def prepare(self, layers: Tensors, masks: Tensors, step: int) -> None:
        """See Criterion."""
        self._step = step

    def scores(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """See Criterion; drawn on the CPU, so that every device gets the same."""
        digest = hashlib.sha256(f"{self._seed} {self._step} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.rand(weight.shape, generator=generator).to(weight.device)


class _Summed(Criterion):
    """Sums something of each step's weight and gradient; a checkpoint holds the sums."""

    watches = True

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def observe(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        """See Criterion."""
        product = weight.detach().float() * gradient.detach().float()
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(product)
        self._add(self._sums[name], product)

    def prepare(self, layers: Tensors, masks: Tensors, step: int) -> None:
        """See Criterion.

        Raises:
            ValueError: before any gradient was seen, when all scores would be equal.
        """
        if not self._sums:
            name = type(self).__name__.lower()
            raise ValueError(
                f"criterion {name} scores weights by the gradients of training and has seen none yet: prune after "
                "steps of the pruner's optimizer, or by magnitude"
            )

    @abstractmethod
    def _add(self, total: torch.Tensor, product: torch.Tensor) -> None:
        """Adds a step, `product` being weight times gradient."""

    def scores(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """See Criterion; zeros for a layer that has had no gradient."""
        total = self._sums.get(name)
        return torch.zeros_like(weight.detach(), dtype=torch.float32) if total is None else total

    def state(self) -> dict[str, Any]:
        """See Criterion."""
        return {"sums": {name: total.clone() for name, total in self._sums.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """See Criterion."""
        self._sums = {name: total.clone() for name, total in state["sums"].items()}


class Movement(_Summed):
    """How far weights move away from zero: minus the sum of w * gradient over all steps (arXiv 2005.07683)."""

    def _add(self, total: torch.Tensor, product: torch.Tensor) -> None:
        total.sub_(product)


class Taylor(_Summed):
    """What removing a weight changes in the loss, to first order: |w * gradient|, an exponential mean over steps.

    Args:
        decay: of the mean, per step (arXiv 1611.06440 averages over the data since the last update).
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be from 0 to below 1, got {decay!r}")
        self._decay = decay

    def _add(self, total: torch.Tensor, product: torch.Tensor) -> None:
        total.lerp_(product.abs_(), 1.0 - self._decay)

    def scores(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """See Criterion."""
        return super().scores(name, weight).to(weight.device)


def make_criterion(criterion: str | Criterion, seed: int = 0) -> Criterion:
    """The criterion of a name.

    Raises:
        ValueError: for an unknown name, or `obert`, which needs gradients of samples and so is made by hand.
    """
    if isinstance(criterion, Criterion):
        return criterion
    made: dict[str, Any] = {
        "magnitude": Magnitude,
        "movement": Movement,
        "taylor": Taylor,
        "random": lambda: Random(seed),
    }
    if criterion == "obert":
        raise ValueError("criterion obert needs the losses of samples: pass lgreco.pruning.OBert(losses, count)")
    if criterion not in made:
        raise ValueError(f"criterion must be {', '.join(made)} or a Criterion, got {criterion!r}")
    built: Criterion = made[criterion]()
    return built
