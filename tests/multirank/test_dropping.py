"""A model that is dropped, not closed, takes along all that attach took; ranks may drop it at different moments."""

from __future__ import annotations

import gc
import os
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks import eventually, run
from scripts import outputs_of, start_script
from test_close import threads_and_sockets
from training import attach_faulty, everything, make, same_on_all_ranks, train

import lgreco
from lgreco import _C
from lgreco.measurement import Meter

SOLVER = {"reference": "lowrank(rank=4, factors=int8)", "interval": 8, "window": 3, "lag": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "quantize": everything("quantize(bits=4, block=128)"),
    "solver": {"warmup_steps": 4, "solver": SOLVER},
    "nodes": {"warmup_steps": 4, "ranks_per_node": 2, "solver": SOLVER},
}


def _drop(rank: int, world_size: int, config: dict[str, Any], conventional: bool) -> None:
    train(make(), rank, range(2))  # what DDP and torch start once
    gc.collect()
    before = threads_and_sockets()
    for steps in (0, 2, 7, 9):  # also where a table is under way
        ddp = make()
        if conventional:
            state = lgreco.State(config, ddp.process_group)
            ddp.register_comm_hook(state, lgreco.hook)
        else:
            state = lgreco.attach(ddp, config)
        train(ddp, rank, range(steps))
        kept = [weakref.ref(each) for each in (ddp, state, ddp.module.wide.weight)]
        del ddp, state
        gc.collect()
        assert eventually(lambda kept=kept: all(each() is None for each in kept))
        assert eventually(lambda: threads_and_sockets() == before), (threads_and_sockets(), before)
    dist.barrier()  # DDP's own group goes on


@pytest.mark.parametrize("conventional", [False, True], ids=["attach", "hook"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_dropped_model_leaves_nothing(config: dict[str, Any], conventional: bool) -> None:
    """Neither threads nor connections nor parameters, however many steps it has done."""
    run(4 if "ranks_per_node" in config else 2, _drop, config, conventional)


def _one_holder(rank: int, world_size: int, config: dict[str, Any]) -> Any:
    ddp = make()
    lgreco.attach(ddp, config)
    gc.collect()
    digests = train(ddp, rank, range(6))
    state = ddp._comm_hooks[0][1]
    del ddp
    gc.collect()
    assert state.state_dict()["steps"] == 6
    assert state.stats()["steps"] == 6
    state.close()
    return digests


@pytest.mark.parametrize("config", list(CONFIGS.values())[:2], ids=list(CONFIGS)[:2])
def test_either_of_model_and_state_keeps_it_running(config: dict[str, Any]) -> None:
    """DDP trains on without the user's state, and the state tells and saves without DDP."""
    same_on_all_ranks(run(2, _one_holder, config))


def _at_different_moments(rank: int, world_size: int, config: dict[str, Any]) -> Any:
    faults = _C.Faults()
    ddp = make(bucket_cap_mb=0.05)
    state = attach_faulty(ddp, config, faults)
    train(ddp, rank, range(6))
    faults.receive_delay_ms = 20 * rank  # the last step takes rank 1 longer
    measure = Meter.measure
    if rank == 1:  # and so does its part of the table
        Meter.measure = lambda *args: time.sleep(0.3) or measure(*args)  # type: ignore[method-assign, func-returns-value]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digests = train(ddp, rank, [6, 7, 8])
        del ddp, state
        gc.collect()
        assert eventually(lambda: not any("lgreco" in name for name in _thread_names()))
    return digests


def _thread_names() -> list[str]:
    return [Path(f"/proc/self/task/{each}/comm").read_text() for each in os.listdir("/proc/self/task")]


@pytest.mark.parametrize("config", list(CONFIGS.values())[:2], ids=list(CONFIGS)[:2])
def test_ranks_drop_a_model_at_different_moments(config: dict[str, Any]) -> None:
    """One that has dropped it takes nothing from another that has not finished the last step, and warns nobody."""
    same_on_all_ranks(run(2, _at_different_moments, config))


def test_a_process_ends_while_a_dropped_model_does(tmp_path: Path) -> None:
    """Dropped with a table under way, then straight to the interpreter's end: no crash, no word, no wait."""
    jobs = start_script("leaving_job.py", tmp_path, "drop")
    outputs = outputs_of(jobs)
    assert [(job.returncode, output) for job, output in zip(jobs, outputs, strict=True)] == [(0, "dropped\n")] * 2
