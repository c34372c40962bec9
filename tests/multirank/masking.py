"""What the tests of masked layers share: random masks, choices that are tried, training and measuring under masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from training import batch_of, digest, loss_of

import lgreco
from lgreco.candidates import make_offers
from lgreco.choice import parse
from lgreco.layer import LayerInfo
from lgreco.masks import LayerMask
from lgreco.measurement import Gradients, Meter
from lgreco.peers import Peers
from lgreco.plan import Plan, PlannedLayer
from lgreco.solver_config import SolverConfig

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


def measure_kept(
    rank: int, world_size: int, kept: torch.Tensor, candidates: list[str]
) -> tuple[Any, dict[str, float], list[torch.Tensor], torch.Tensor]:
    """A table's row of one layer of which `kept` is kept, whose gradient is of rank 3 and noise of each rank's own.

    Returns:
        The row, its errors by choice, and of what is kept all ranks' gradients and their mean.
    """
    generator, common = torch.Generator().manual_seed(rank), torch.Generator().manual_seed(99)
    signal = torch.randn(kept.shape[0], 3, generator=common) @ torch.randn(3, kept.shape[1], generator=common)
    mask = LayerMask.of(kept)
    layer = LayerInfo("w", tuple(kept.shape), "fp32", mask.kept, mask.matrix(tuple(kept.shape)))
    settings = SolverConfig(candidates=candidates, reference=candidates[0])
    offers = make_offers(settings, Plan([PlannedLayer(layer, parse("dense"), "")]), [True], world_size, "fp32")
    meter = Meter(offers, Peers(dist.new_group(backend="gloo")), 5, {"w": mask})
    own = (signal + torch.randn(kept.shape, generator=generator))[kept]
    everyone = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(everyone, own)
    mean = torch.stack(everyone).double().mean(0).float()
    row = meter.measure(Gradients(3, [0], [own], [mean], [None]))[0]
    errors = {str(choice): float(error) for choice, error in zip(offers.choices, row.errors, strict=True)}
    return row, errors, everyone, mean
