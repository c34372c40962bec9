"""Masks that keep whole rows and columns of `Net`'s matrices, and others to compare with; the same on every rank."""

from __future__ import annotations

from typing import Any

import torch

NAMES = ("wide.weight", "odd.weight", "narrow.weight")

# What each step's masks keep: share of rows, share of columns, and of what lies in both.
KINDS = {
    "all": (1.0, 1.0, 1.0),
    "rows": (0.4, 1.0, 1.0),
    "both": (0.5, 0.6, 1.0),
    "columns": (1.0, 0.5, 1.0),
    "scattered": (1.0, 1.0, 0.6),
    "nothing": (0.0, 1.0, 1.0),
}


def mask_of(shape: tuple[int, ...], kind: str, seed: int = 0) -> torch.Tensor:
    """Bool of that shape, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns, elements = KINDS[kind]
    kept = torch.rand(shape[0], 1, generator=generator) < rows
    kept = kept & (torch.rand(1, shape[1], generator=generator) < columns)
    return kept & (torch.rand(shape, generator=generator) < elements)


def masks_of(ddp: Any, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of the matrices that are factored."""
    parameters = dict(ddp.module.named_parameters())
    return {name: mask_of(parameters[name].shape, kind, seed) for name in NAMES}
