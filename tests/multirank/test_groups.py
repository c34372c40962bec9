"""lgreco's own process groups are no business of torch's: a job makes groups as if there were none."""

from __future__ import annotations

import datetime
import gc
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import eventually, run
from test_close import threads_and_sockets
from training import everything, make, same_on_all_ranks, train

import lgreco
from lgreco.agreement import leave_cpu_group, make_cpu_group

LIMIT = datetime.timedelta(seconds=15)
SOLVER = {"reference": "lowrank(rank=4, factors=int8)", "interval": 8, "window": 3, "lag": 2}
CONFIGS = {"quantize": everything("quantize(bits=4, block=128)"), "solver": {"warmup_steps": 4, "solver": SOLVER}}


def _sum(group: Any) -> float:
    ones = torch.ones(1)
    dist.all_reduce(ones, group=group)
    return float(ones)


def _groups_after(rank: int, world_size: int, config: dict[str, Any]) -> Any:
    members = {
        name: dist.new_group(ranks, LIMIT) for name, ranks in (("pair", [0, 2]), ("other", [1, 2]), ("one", [1]))
    }
    mine = {name: group for name, group in members.items() if isinstance(group, dist.ProcessGroup)}
    modules = {name: make(process_group=group) for name, group in mine.items()}
    states = {name: lgreco.attach(ddp, config) for name, ddp in modules.items()}
    digests = {name: train(ddp, 0, range(6)) for name, ddp in modules.items()}  # the same batches everywhere
    assert all(states[name].world_size == dist.get_world_size(group) for name, group in mine.items())
    # Each of these waits for a rank that never comes, where ranks have come to different names.
    assert _sum(dist.new_group(timeout=LIMIT)) == world_size
    assert _sum(dist.new_group([0, 1, 2], LIMIT, use_local_synchronization=True)) == world_size
    everyone = make(process_group=dist.new_group(timeout=LIMIT))
    state = lgreco.attach(everyone, config)
    digests["all"] = train(everyone, rank, range(6))
    assert _sum(dist.new_group(timeout=LIMIT)) == world_size
    for each in (state, *states.values()):
        each.close()
    assert _sum(dist.new_group(timeout=LIMIT)) == world_size
    return digests


def _made_late(rank: int, world_size: int, folder: str) -> None:
    made = Path(folder) / "made"
    connect = dist.ProcessGroupGloo

    def connect_late(*args: Any, **kwargs: Any) -> Any:
        group = connect(*args, **kwargs)
        time.sleep(0.5)
        made.touch()
        return group

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(dist, "ProcessGroupGloo", connect_late)
        group = make_cpu_group(dist.group.WORLD)
    assert made.exists(), "rank 0 could have left before rank 1 was connected"
    leave_cpu_group(group)


def test_a_group_is_there_once_every_rank_is_connected(tmp_path: Path) -> None:
    """Gloo's own rendezvous ends on one rank before another, which then fails where the first leaves at once."""
    run(2, _made_late, str(tmp_path))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_groups_are_made_and_attached_to_after_attaching_to_a_part_of_the_job(config: dict[str, Any]) -> None:
    """Ranks are in different numbers of attached modules; later groups still meet, and lgreco attaches to them."""
    first, second, third = run(3, _groups_after, config)
    assert first["pair"] == third["pair"]
    assert second["other"] == third["other"]
    assert len(set(second["one"])) == 6
    same_on_all_ranks([first["all"], second["all"], third["all"]])


def _attach_and_close(rank: int, world_size: int, config: dict[str, Any]) -> None:
    groups = [dist.new_group(ranks, LIMIT) for ranks in ([0, 1], [1, 2], [2, 0])]
    mine = [group for group in groups if isinstance(group, dist.ProcessGroup)]
    modules = [make(process_group=group) for group in mine]
    for ddp in modules:
        train(ddp, rank, range(2))  # what DDP and torch start once
    before = threads_and_sockets()
    states = [lgreco.attach(make(process_group=group), config) for group in mine]
    states += [lgreco.attach(ddp, config) for ddp in modules]
    for ddp in modules:
        train(ddp, rank, range(6))
    for state in states:
        state.close()
    gc.collect()
    assert eventually(lambda: threads_and_sockets() == before), (threads_and_sockets(), before)
    assert [_sum(group) for group in mine] == [2, 2]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_close_leaves_nothing_of_overlapping_groups(config: dict[str, Any]) -> None:
    """Two modules each on two groups that share a rank: closed, none leaves a thread or a connection."""
    run(3, _attach_and_close, config)
