"""Ranks compare their masks by checksum at every change, so that none ever trains with masks of its own."""

from __future__ import annotations

from collections.abc import Mapping

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
        RuntimeError: on every rank, naming the layers that differ and the ranks that differ from rank 0.
    """
    if not distributed(group):
        return
    mine = torch.tensor([len(masks), *(checksum(mask) for mask in masks.values())], device=device_of(group))
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    first = everyone[0].cpu()
    wrong: dict[str, list[int]] = {}
    for rank, other in enumerate(everyone):
        for name, same in zip(masks, (other.cpu() == first).tolist()[1:], strict=True):
            if not same:
                wrong.setdefault(name, []).append(rank)
    if wrong:
        layers = "; ".join(f'"{name}" on rank {", ".join(map(str, ranks))}' for name, ranks in wrong.items())
        raise RuntimeError(
            f"masks differ from rank 0's at step {step}: layer {layers}. Ranks must hold the same weights and the same "
            "settings of the pruner when masks are chosen"
        )
