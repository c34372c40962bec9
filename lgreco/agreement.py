"""Agreement: before the first step all ranks compare what must be the same on each of them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lgreco.config import Config
from lgreco.layer import LayerInfo

_made: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()
"""How many groups were made of a group's ranks so far, the same on each of them."""


def make_cpu_group(
    group: dist.ProcessGroup, purpose: str = "lgreco", ranks: Sequence[int] | None = None
) -> dist.ProcessGroup:
    """A Gloo group of the same ranks and time limit, for lgreco's messages alone; collective over `group`.

    dist.new_group would count it on these ranks alone; torch names later groups by that count, so the job's ranks would
    no longer find each other in them. This one is counted nowhere but here, and ranks meet under `group`'s own name.

    Args:
        group: whose ranks and time limit it gets.
        purpose: its name.
        ranks: those of the group's ranks that it has, ascending, this one among them; None: all.
    """
    everyone = dist.get_process_group_ranks(group)
    members = range(len(everyone)) if ranks is None else ranks
    count = _made.get(group, 0)
    _made[group] = count + 1
    name = f"{purpose}/{count}/{'_'.join(map(str, members))}"
    store = dist.PrefixStore(name, c10d._world.pg_map[group][1])
    place = members.index(dist.get_rank(group))
    made = dist.ProcessGroup(store, place, len(members))
    gloo = dist.ProcessGroupGloo(store, place, len(members), timeout=timeout_of(group))
    made._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    made._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    # What torch's collectives look up; names and counts of groups stay as they are.
    c10d._world.pg_map[made] = ("gloo", store)
    c10d._world.pg_group_ranks[made] = {everyone[member]: i for i, member in enumerate(members)}
    made.barrier().wait()  # else one that leaves at once takes connections from those that are still making them
    return made


def leave_cpu_group(group: dist.ProcessGroup) -> None:
    """Gives up the group that `make_cpu_group` made, its connections and threads; waits for no other rank.

    They end with its last reference; the default group may have gone before.
    """
    c10d._world.pg_map.pop(group, None)
    c10d._world.pg_group_ranks.pop(group, None)
    group.shutdown()


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
        "layers": [(layer.name, layer.shape, layer.dtype, layer.order) for layer in layers],
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
