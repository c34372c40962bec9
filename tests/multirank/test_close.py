"""close() gives back all that attach took, connections and threads included, and never waits for a lost rank."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import LOSS_LIMIT_S, Ranks, eventually, run, say
from training import batch_of, everything, loss_of, make, train

import lgreco

CONFIG = everything("quantize(bits=4, block=128)")


def threads_and_sockets() -> tuple[int, int]:
    """Of this process, now."""
    sockets = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            sockets += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
        except FileNotFoundError:  # that of the listing itself
            continue
    return len(os.listdir("/proc/self/task")), sockets


def _attach_and_close(rank: int, world_size: int) -> None:
    models = [make() for _ in range(3)]  # kept: DDP's reducer holds the hook, and with it the engine
    loss_of(models[0], batch_of(rank, 0)).backward()  # what DDP and torch start once
    before = threads_and_sockets()
    for ddp in models:
        state = lgreco.attach(ddp, CONFIG)
        train(ddp, rank, range(2))
        held = threads_and_sockets()
        assert all(more > less for more, less in zip(held, before, strict=True)), (held, before)
        state.close()
        state.close()
        assert eventually(lambda: threads_and_sockets() == before), (threads_and_sockets(), before)
    with pytest.raises(RuntimeError, match=r"gather\(\) asks all ranks, so it comes before close\(\)"):
        state.gather()
    with pytest.raises(RuntimeError, match=r"was closed \(state.close\(\)\)"):
        loss_of(models[0], batch_of(rank, 0)).backward()
    dist.barrier()  # DDP's own group goes on


def test_close_leaves_neither_threads_nor_connections() -> None:
    """After close(), called twice, a process holds what it held before attach, and DDP's group still works."""
    run(3, _attach_and_close)


def _use_after_close(rank: int, world_size: int, config: dict[str, Any]) -> None:
    ddp = make()
    state = lgreco.attach(ddp, config)
    train(ddp, rank, range(2))
    saved, weight = state.state_dict(), ddp.module.wide.weight
    state.close()
    with pytest.raises(RuntimeError, match=r"the state was closed; state_dict\(\) .* so it comes before close\(\)"):
        state.state_dict()
    with pytest.raises(RuntimeError, match=r"the state was closed; set_masks\(\) .* so it comes before close\(\)"):
        state.set_masks({"wide.weight": torch.ones_like(weight, dtype=torch.bool).tril()})
    with pytest.raises(RuntimeError, match=r"the state was closed; load_state_dict\(\) .* attach to that"):
        state.load_state_dict(saved)
    assert state.stats()["steps"] == (2 if world_size > 1 else 0)
    assert state.plan["wide.weight"] is not None

    conventional = make()
    early = lgreco.State(config, conventional.process_group)
    conventional.register_comm_hook(early, lgreco.hook)
    early.close()
    with pytest.raises(RuntimeError, match="the state was closed; no backward may follow"):
        loss_of(conventional, batch_of(rank, 0)).backward()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("config", [CONFIG, {"solver": {}}], ids=["quantize", "solver"])
def test_a_closed_state_says_what_to_do(config: dict[str, Any], world_size: int) -> None:
    """What needs a running exchange names itself and close(); counters and plan can still be read."""
    run(world_size, _use_after_close, config)


def _close_after_the_default_group(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, CONFIG)
    train(ddp, rank, range(2))
    dist.barrier()
    dist.destroy_process_group()
    state.close()
    state.close()


def test_close_after_the_default_group_was_destroyed() -> None:
    """The usual end of a script, destroy_process_group() and then the exit that closes, raises nothing."""
    run(2, _close_after_the_default_group)


def _refused(rank: int, world_size: int) -> None:
    ddp = make()
    before = threads_and_sockets()
    with pytest.raises(ValueError, match="disagree on seed"):
        lgreco.attach(ddp, {**CONFIG, "seed": rank})
    assert eventually(lambda: threads_and_sockets() == before), (threads_and_sockets(), before)


def test_a_refused_attach_leaves_nothing() -> None:
    """Where ranks disagree, the group that they found it out over is gone again."""
    run(2, _refused)


def _survive_and_close(rank: int, world_size: int) -> Any:
    ddp = make(bucket_cap_mb=0.05)
    before = threads_and_sockets()
    state = lgreco.attach(ddp, CONFIG)
    train(ddp, rank, range(2))
    say("going")
    with pytest.raises(RuntimeError, match="rank 2 "):
        train(ddp, rank, range(100_000))
    begin = time.monotonic()
    state.close()
    seconds = time.monotonic() - begin
    assert eventually(lambda: all(now <= then for now, then in zip(threads_and_sockets(), before, strict=True)))
    return seconds


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_close_does_not_wait_for_a_lost_rank(number: signal.Signals) -> None:
    """After a peer was killed or stopped, close() returns soon on the survivors, with everything given back."""
    limit_s = LOSS_LIMIT_S[number]
    with Ranks(3, _survive_and_close, timeout_s=limit_s) as ranks:
        for rank in range(3):
            assert ranks.answer(rank) == ("said", "going")
        ranks.signal(2, number)
        for rank in (0, 1):
            status, seconds = ranks.answer(rank, patience_s=4 * limit_s)
            assert status == "ok", seconds
            assert seconds < limit_s
        ranks.processes[2].kill()
