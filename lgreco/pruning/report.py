"""How sparse a model is, layer by layer, now and at each change of its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lgreco.pruning.masks import kept_numel


@dataclass(frozen=True)
class Change:
    """The masks after an update.

    Attributes:
        step: optimizer steps done.
        sparsity: of all pruned layers together.
        layers: sparsity of each.
    """

    step: int
    sparsity: float
    layers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class LayerSparsity:
    """A layer's share in the report."""

    name: str
    shape: tuple[int, ...]
    numel: int
    kept_numel: int

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
        return 1.0 - self.kept_numel / self.numel


@dataclass(frozen=True)
class PruningReport:
    """How sparse a model is.

    Attributes:
        step: optimizer steps done.
        layers: what is pruned.
        unfit: layers that stay dense because the structure does not divide them.
        regrowth_bytes: sent by this rank for regrowth so far.
    """

    step: int
    layers: tuple[LayerSparsity, ...]
    unfit: tuple[str, ...]
    regrowth_bytes: int

    @property
    def numel(self) -> int:
        """Weights of the pruned layers."""
        return sum(layer.numel for layer in self.layers)

    @property
    def kept_numel(self) -> int:
        """Kept ones."""
        return sum(layer.kept_numel for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Of the pruned layers together."""
        return 1.0 - self.kept_numel / self.numel


def report_of(
    step: int,
    layers: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    unfit: Sequence[str],
    regrowth_bytes: int,
) -> PruningReport:
    """The report of layers and their masks; one without a mask is dense."""
    lines = tuple(
        LayerSparsity(
            name,
            tuple(weight.shape),
            weight.numel(),
            kept_numel(masks[name]) if name in masks else weight.numel(),
        )
        for name, weight in layers.items()
    )
    return PruningReport(step, lines, tuple(unfit), regrowth_bytes)


def change_of(step: int, masks: Mapping[str, torch.Tensor]) -> Change:
    """What has changed at a step."""
    kept = {name: kept_numel(mask) for name, mask in masks.items()}
    numel = sum(mask.numel() for mask in masks.values())
    layers = {name: 1.0 - kept[name] / mask.numel() for name, mask in masks.items()}
    return Change(step, 1.0 - sum(kept.values()) / numel, layers)
