"""Masks: which elements of a layer are exchanged; checked, packed into bits, and agreed over all ranks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from lgreco import _C
from lgreco.layer import LayerInfo, matrix_shape

_DTYPES = (torch.bool, torch.uint8)


@dataclass(frozen=True, eq=False)
class LayerMask:
    """A layer's mask, one bit an element.

    Attributes:
        bits: uint8 [ceil(numel / 8)] on the CPU, the lowest bit first, 1 where an element is kept; row-major.
        numel: elements of the layer.
        kept: of them.
    """

    bits: torch.Tensor
    numel: int
    kept: int

    @classmethod
    def of(cls, mask: torch.Tensor) -> LayerMask:
        """Of a bool or uint8 tensor of any shape and device, true where kept."""
        bits, kept = _C.pack_mask(mask)
        return cls(bits, mask.numel(), kept)

    @functools.cached_property
    def digest(self) -> str:
        """Equal for equal masks."""
        return hashlib.sha256(self.bits.numpy().tobytes()).hexdigest()[:16]

    def tensor(self) -> torch.Tensor:
        """Bool [numel] on the CPU."""
        return _C.unpack_mask(self.bits, self.numel)

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns that it keeps of a layer of this shape; None where it keeps other than whole ones."""
        return _C.kept_matrix(self.bits, self.numel, matrix_shape(shape)[1])

    def in_memory(self, layer: LayerInfo) -> LayerMask:
        """Of the layer's elements as they follow each other in a bucket."""
        if layer.order is None:
            return self
        return LayerMask.of(self.tensor().view(layer.shape).permute(layer.order).contiguous())

    def packed(self) -> tuple[int, torch.Tensor]:
        """As the native engine takes it."""
        return self.numel, self.bits


def masked(layer: LayerInfo, masks: Mapping[str, LayerMask]) -> LayerInfo:
    """The layer as it is under these masks."""
    mask = masks.get(layer.name)
    if mask is None:
        return replace(layer, kept=None, kept_matrix=None)
    return replace(layer, kept=mask.kept, kept_matrix=mask.matrix(layer.shape))


def update(
    present: Mapping[str, LayerMask], changes: Mapping[str, torch.Tensor], layers: Iterable[LayerInfo]
) -> dict[str, LayerMask]:
    """The masks after some of them have changed; a layer of which everything is kept has none.

    Raises:
        ValueError: for a name that is no layer, another shape or dtype; says what is allowed.
    """
    masks = dict(present)
    shapes = {layer.name: layer.shape for layer in layers}
    for name, mask in changes.items():
        if name not in shapes:
            raise ValueError(f'mask of "{name}": no layer has this name; layers are {_some(shapes)}')
        if not isinstance(mask, torch.Tensor) or mask.dtype not in _DTYPES:
            got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(f'mask of layer "{name}" must be a bool or uint8 tensor, got {got}')
        if tuple(mask.shape) != shapes[name]:
            raise ValueError(f'mask of layer "{name}" must have the shape {shapes[name]}, got {tuple(mask.shape)}')
        made = LayerMask.of(mask)
        if made.kept < made.numel:
            masks[name] = made
        else:
            masks.pop(name, None)
    return masks


def update_on_all(
    group: dist.ProcessGroup | None,
    present: Mapping[str, LayerMask],
    changes: Mapping[str, torch.Tensor],
    layers: Iterable[LayerInfo],
) -> dict[str, LayerMask]:
    """`update` on every rank at once; collective over `group`, which must reach the CPU (None: a single rank).

    Raises:
        ValueError: on every rank, where `update` raises on one of them, or masks differ; then it names their layers and
            the ranks that hold other ones than rank 0.
    """
    updated, problem = None, None
    try:
        updated = update(present, changes, layers)
    except ValueError as error:
        problem = str(error)
    if group is not None:
        _agree(group, updated, problem)
    if updated is None:
        raise ValueError(problem)
    return updated


def digests(masks: Mapping[str, LayerMask]) -> dict[str, str]:
    """Equal for equal masks."""
    return {name: mask.digest for name, mask in masks.items()}


def pack(masks: Mapping[str, LayerMask]) -> dict[str, torch.Tensor]:
    """Plain containers, for a checkpoint: one bit a weight of those layers that have a mask."""
    return {name: mask.bits for name, mask in masks.items()}


def unpack(saved: Any, layers: Iterable[LayerInfo]) -> dict[str, LayerMask]:
    """The inverse of `pack`.

    Raises:
        ValueError: for masks of another model, or damaged ones; names the layer.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"the state of lgreco is damaged: masks must be a mapping, got {type(saved).__name__}")
    numels = {layer.name: layer.numel for layer in layers}
    masks = {}
    for name, bits in saved.items():
        if name not in numels:
            raise ValueError(
                f'the checkpoint is of another model: it has a mask for layer "{name}", the model lacks it'
            )
        expected = -(-numels[name] // 8)
        if not isinstance(bits, torch.Tensor) or bits.dtype != torch.uint8 or tuple(bits.shape) != (expected,):
            raise ValueError(
                f'layer "{name}": its saved mask must be uint8 [{expected}]: damaged, or another model\'s?'
            )
        mask = LayerMask.of(_C.unpack_mask(bits.cpu().contiguous(), numels[name]))
        if mask.kept < mask.numel:
            masks[name] = mask
    return masks


def _agree(group: dist.ProcessGroup, masks: Mapping[str, LayerMask] | None, problem: str | None) -> None:
    mine = {"problem": problem, "digests": digests(masks or {})}
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    for rank, other in enumerate(everyone):
        if other["problem"] is not None:
            own = rank == dist.get_rank(group)
            raise ValueError(other["problem"] if own else f"rank {rank}: {other['problem']}")
    first = everyone[0]["digests"]
    ranks = [rank for rank, other in enumerate(everyone) if other["digests"] != first]
    if ranks:
        names = {name for other in everyone for name in {**first, **other["digests"]}}
        differing = sorted(
            name for name in names if any(other["digests"].get(name) != first.get(name) for other in everyone)
        )
        raise ValueError(
            f"masks must be the same on all ranks: rank {', '.join(map(str, ranks))} and rank 0 hold different masks "
            f"for {_some(differing)}"
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(f'"{name}"' for name in listed[:5]) + more
