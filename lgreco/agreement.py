"""Agreement: before the first step all ranks compare what must be the same on each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lgreco.config import Config
from lgreco.layer import LayerInfo


def make_cpu_group(
    group: dist.ProcessGroup, purpose: str = "lgreco", ranks: Sequence[int] | None = None
) -> dist.ProcessGroup:
    """A Gloo group of the same ranks and time limit, for lgreco's messages alone; collective over its ranks.

    Args:
        group: whose ranks and time limit it gets.
        purpose: its name.
        ranks: those of the group's ranks that it has, ascending, this one among them; None: all.
    """
    everyone = dist.get_process_group_ranks(group)
    made = dist.new_group(
        ranks=everyone if ranks is None else [everyone[rank] for rank in ranks],
        timeout=timeout_of(group),
        backend="gloo",
        use_local_synchronization=True,
        group_desc=purpose,
    )
    assert isinstance(made, dist.ProcessGroup), "every rank of the group makes it"
    return made


def leave_cpu_group(group: dist.ProcessGroup) -> None:
    """Gives up the group that `make_cpu_group` made, its connections and threads; waits for no other rank."""
    with contextlib.suppress(ValueError):  # it went before, with the default group
        dist.destroy_process_group(group)


def timeout_of(group: dist.ProcessGroup) -> timedelta:
    """The time limit that the group was made with; where its backends differ, the longest."""
    backends = (group._get_backend(device) for device in group._device_types)
    return max(timedelta(seconds=0), *(backend.options._timeout for backend in backends))


def agree(group: dist.ProcessGroup, config: Config, layers: list[LayerInfo]) -> None:
    """Compares config and layers over all ranks; collective over `group`, which must reach the CPU.

    Raises:
        ValueError: on every rank, naming the first rank that differs from the group's rank 0, and in what.
    """
    mine: dict[str, Any] = {
        "config": config.to_dict(),
        "layers": [(layer.name, layer.shape, layer.dtype) for layer in layers],
    }
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    first = everyone[0]
    for rank, other in enumerate(everyone):
        if other["config"] != first["config"]:
            keys = ", ".join(Config.load(other["config"]).difference(Config.load(first["config"])))
            raise ValueError(f"config differs between ranks: rank {rank} and rank 0 disagree on {keys}")
        if other["layers"] != first["layers"]:
            raise ValueError(
                f"the model differs between ranks: {_first_difference(rank, other['layers'], first['layers'])}"
            )


def _first_difference(rank: int, theirs: list[Any], reference: list[Any]) -> str:
    for one, other in zip(theirs, reference, strict=False):
        if one != other:
            return f"rank {rank} has layer {one}, rank 0 has {other}"
    return f"rank {rank} has {len(theirs)} layers, rank 0 has {len(reference)}"
