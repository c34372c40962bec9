"""What an optimizer keeps of a pruned weight is zero too, by one rule for all optimizers.

Every floating tensor of the parameter's shape in the optimizer's state is a moment of it (momentum, first and second
moments, their maxima, averages): it is zeroed where the mask is False.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lgreco.pruning.masks import hold_


def hold_moments(optimizers: Iterable[torch.optim.Optimizer], weight: nn.Parameter, mask: torch.Tensor) -> None:
    """Zeroes the moments of what is pruned, in place.

    Args:
        optimizers: of the model; one that does not hold the weight is left alone.
        weight: the parameter.
        mask: bool, of its shape and on its device.
    """
    for optimizer in optimizers:
        holder = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer keeps its shard's state in there
        for value in holder.state.get(weight, {}).values():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == mask.shape:
                hold_(value, mask.to(value.device))


def optimizers_of(
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None,
) -> list[torch.optim.Optimizer]:
    """One, several or none, as a list; of one that a framework has wrapped, the one whose step is taken.

    Raises:
        ValueError: for what is no optimizer.
    """
    if optimizer is None:
        return []
    listed: list[Any] = [optimizer]
    if isinstance(optimizer, Iterable) and not isinstance(optimizer, torch.optim.Optimizer):
        listed = list(optimizer)
    for each in listed:
        if not isinstance(each, torch.optim.Optimizer):
            raise ValueError(f"optimizer must be a torch optimizer or several of them, got {type(each).__name__}")
    return [_wrapped(each) for each in listed]


def _wrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's or Lightning's, which call its step or leave it out."""
    inner = getattr(optimizer, "optimizer", None)
    return _wrapped(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer
