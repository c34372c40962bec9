"""What the tests of masked layers share: random masks, the choices that are tried, training under masks."""

from __future__ import annotations

from typing import Any

import torch
from training import batch_of, digest, loss_of

import lgreco

MATRICES = ("wide.weight", "odd.weight", "narrow.weight", "out.weight")
CHOICES = [
    "dense(dtype=fp32)",
    "dense(dtype=bf16)",
    "quantize(bits=4, block=64)",
    "topk(density=0.05)",
    "randomk(density=0.05)",
    "lowrank(rank=4, factors=int8)",
    "lowrank(rank=3, factors=fp32, iterate=alternate)",
]


def masks_of(ddp: Any, density: float, seed: int = 0, names: tuple[str, ...] = MATRICES) -> dict[str, torch.Tensor]:
    """Random masks, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(ddp.module.named_parameters())
    return {name: torch.rand(parameters[name].shape, generator=generator) < density for name in names}


def train_masked(ddp: Any, rank: int, steps: range, state: lgreco.State, masks: dict[int, Any]) -> list[str]:
    """Steps of SGD that keep pruned weights zero; `masks` are set after the steps that they are keyed by."""
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    digests = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(ddp, batch_of(rank, step, dtype=next(ddp.parameters()).dtype)).backward()
        optimizer.step()
        digests.append(digest(ddp.parameters()))
        if step in masks:
            state.set_masks(masks[step])
            with torch.no_grad():
                for name, parameter in ddp.module.named_parameters():
                    if name in state.masks:
                        parameter *= state.masks[name]
    return digests


def gradients_of(ddp: Any, rank: int, step: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """What the exchange of one step delivers, by parameter."""
    ddp.zero_grad()
    (loss_of(ddp, batch_of(rank, step, dtype=next(ddp.parameters()).dtype)) * scale).backward()
    return {name: parameter.grad.clone() for name, parameter in ddp.module.named_parameters()}
