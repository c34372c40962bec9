"""Ranks compare their masks by checksum at every change, so that none ever trains with masks of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from lgreco.pruning.masks import checksum


def distributed(group: dist.ProcessGroup | None) -> bool:
    """Whether there are other ranks to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Where the group's collectives take their tensors from."""
    if "gloo" in str(dist.get_backend(group)) or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def check_equal(masks: Mapping[str, torch.Tensor], step: int, group: dist.ProcessGroup | None) -> None:
    """Compares the masks of all ranks; collective.

    Raises:
        RuntimeError: on every rank, naming the layers that differ and the ranks that differ from rank 0; or those ranks
            alone, where they have masks of other layers.
    """
    if not distributed(group):
        return
    names = int.from_bytes(hashlib.sha256("\n".join(masks).encode()).digest()[:8], "little") >> 1
    others = [str(rank) for rank, equal in enumerate(_equal_to_first([names], group)) if not equal[0]]
    if others:
        raise RuntimeError(
            f"rank {', '.join(others)} and rank 0 prune different layers: the pruner's `layers`, the optimizers and "
            "what is frozen must be the same on every rank"
        )
    wrong: dict[str, list[int]] = {}
    for rank, equal in enumerate(_equal_to_first([checksum(mask) for mask in masks.values()], group)):
        for name, same in zip(masks, equal, strict=True):
            if not same:
                wrong.setdefault(name, []).append(rank)
    if wrong:
        layers = "; ".join(f'"{name}" on rank {", ".join(map(str, ranks))}' for name, ranks in wrong.items())
        raise RuntimeError(
            f"masks differ from rank 0's at step {step}: layer {layers}. Ranks must hold the same weights and the same "
            "settings of the pruner when masks are chosen"
        )


def _equal_to_first(numbers: Sequence[int], group: dist.ProcessGroup | None) -> list[list[bool]]:
    """Which of a rank's numbers are those of rank 0, by rank; as many on each; collective."""
    mine = torch.tensor(numbers, dtype=torch.int64, device=device_of(group))
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    first = everyone[0].cpu()
    return [(other.cpu() == first).tolist() for other in everyone]
