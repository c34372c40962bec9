"""When a rank dies, stalls or leaves, the others say which one, in time, and nobody stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import LOSS_LIMIT_S, Ranks, eventually
from scripts import outputs_of, start_script
from training import attach_faulty, batch_of, everything, loss_of, make, train, train_for_ever

import lgreco
from lgreco import _C

CONFIG = everything("quantize(bits=4, block=128)")


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_survivors_name_the_rank_that_is_lost(number: signal.Signals, culprit: int) -> None:
    """Killed or stopped, rank 0 included: the others raise within the group's timeout and name it; none hangs."""
    limit_s = LOSS_LIMIT_S[number]
    with Ranks(3, train_for_ever, CONFIG, timeout_s=limit_s, store_on_rank_0=True) as ranks:
        for rank in range(3):
            assert ranks.answer(rank) == ("said", "going")
        ranks.signal(culprit, number)
        begin = time.monotonic()
        for rank in {0, 1, 2} - {culprit}:
            status, message = ranks.answer(rank, patience_s=3 * limit_s)
            assert status == "error"
            assert re.search(rf"compressed exchange failed on rank {rank} at .*rank {culprit} ", message), message
        # Some of a loaded machine's time beside the limit itself.
        assert time.monotonic() - begin < (limit_s / 2 if number == signal.SIGKILL else 2 * limit_s)
        for rank in {0, 1, 2} - {culprit}:
            ranks.processes[rank].join(10)
            assert ranks.processes[rank].exitcode == 0
        ranks.processes[culprit].kill()
    assert not any(process.is_alive() for process in ranks.processes)


def _come_late(rank: int, world_size: int, folder: str) -> str:
    ddp = make(bucket_cap_mb=0.05)
    state = lgreco.attach(ddp, CONFIG)
    said = Path(folder) / "said"
    train(ddp, rank, range(3))  # until DDP's own group is silent
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:  # the first that rank 2 waits for is rank 1
        assert eventually(said.exists, LOSS_LIMIT_S[signal.SIGKILL])
        time.sleep(0.5)  # for the other to be on its way out
    with pytest.raises(RuntimeError) as raised:
        train(ddp, rank, range(3, 10))
    said.touch()
    state.close()
    return str(raised.value)


def test_a_slower_survivor_names_the_rank_that_is_lost(tmp_path: Path) -> None:
    """And not the one that has found out before and is leaving."""
    with Ranks(3, _come_late, str(tmp_path), timeout_s=LOSS_LIMIT_S[signal.SIGKILL], store_on_rank_0=True) as ranks:
        for rank in (0, 2):
            status, message = ranks.answer(rank)
            assert status == "ok", message
            assert "rank 1 is lost" in message


def _save_after_a_failure(rank: int, world_size: int) -> list[str]:
    ddp = make()
    solver = {"reference": "lowrank(rank=4, factors=int8)", "interval": 8, "window": 3, "lag": 1}
    state = lgreco.attach(ddp, {"warmup_steps": 0, "solver": solver})
    train(ddp, rank, range(10))
    saved = state.state_dict()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    errors = []
    for act in (lambda: train(ddp, rank, [10, 11]), state.state_dict, lambda: state.load_state_dict(saved)):
        with pytest.raises(RuntimeError) as raised:
            act()
        errors.append(str(raised.value))
    assert state.plan["wide.weight"] is not None  # the next one, which is due, is not waited for
    state.close()
    return errors


def test_what_is_asked_of_a_failed_exchange_raises() -> None:
    """An emergency checkpoint in mid-table says what has happened, and waits for nothing that never comes."""
    with Ranks(2, _save_after_a_failure, timeout_s=LOSS_LIMIT_S[signal.SIGKILL]) as ranks:
        status, errors = ranks.answer(0)
        assert status == "ok", errors
        assert all("rank 1 is lost" in error for error in errors), errors


def _fail_in_backward(rank: int, world_size: int) -> str:
    ddp = make(bucket_cap_mb=0.05)
    state = lgreco.attach(ddp, CONFIG)
    loss_of(ddp, batch_of(rank, 0)).backward()
    loss = loss_of(ddp, batch_of(rank, 1))
    if rank == 1:
        ddp.module.odd.weight.register_hook(_raise)
    try:
        loss.backward()
        state.close()
    except (ZeroDivisionError, RuntimeError) as error:
        if rank == 1:
            state.close()  # as a script that ends does
        return str(error)
    return "nothing happened"


def _raise(gradient: torch.Tensor) -> None:
    raise ZeroDivisionError("on purpose")


def test_an_error_in_one_ranks_backward_reaches_the_others() -> None:
    """A rank that leaves in mid-backward takes nobody into a hang: the others raise and name it."""
    with Ranks(3, _fail_in_backward) as ranks:
        answers = [ranks.answer(rank) for rank in range(3)]
    assert answers[1] == ("ok", "on purpose")
    for rank in (0, 2):
        assert re.search(rf"compressed exchange failed on rank {rank} at .*rank 1 ", answers[rank][1]), answers[rank]


def _close_while_blocked(rank: int, world_size: int) -> str:
    ddp = make(bucket_cap_mb=0.05)
    faults = _C.Faults()
    state = attach_faulty(ddp, CONFIG, faults)
    faults.gate_closed = True

    def close() -> None:
        if rank == 0:
            torch.autograd.Variable._execution_engine.queue_callback(state.close)

    output = ddp(batch_of(rank, 0))
    output.register_hook(lambda gradient: close())
    with pytest.raises(RuntimeError) as raised:
        output.square().mean().backward()
    dist.barrier()  # who leaves first takes the default group with it
    return str(raised.value)


def test_closing_ends_a_blocked_exchange() -> None:
    """state.close() with messages held back by the network returns; every rank's waiting backward raises."""
    with Ranks(2, _close_while_blocked, timeout_s=60) as ranks:
        closer, peer = (ranks.answer(rank, patience_s=30) for rank in range(2))
    assert closer[0] == peer[0] == "ok", (closer, peer)
    assert "was closed while a bucket was in flight" in closer[1]
    assert "rank 0 is lost" in peer[1]


def _group_is_gone(job: subprocess.Popen[str]) -> bool:
    try:
        os.killpg(job.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_exit_in_mid_backward_leaves_nothing(tmp_path: Path) -> None:
    """sys.exit on one rank in mid-backward: it ends with its own status, the other raises and names it."""
    jobs = start_script("leaving_job.py", tmp_path, "exit")
    outputs = outputs_of(jobs)
    assert jobs[1].returncode == 7, outputs[1]
    assert jobs[0].returncode == 1, outputs[0]
    assert "rank 1 " in outputs[0].split("compressed exchange failed on rank 0")[1]
    assert eventually(lambda: all(_group_is_gone(job) for job in jobs))


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT to all ranks in the middle of training ends all of them, promptly and without a crash."""
    jobs = start_script("leaving_job.py", tmp_path, "train")
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "going\n"
    for job in jobs:
        job.send_signal(signal.SIGINT)
    begin = time.monotonic()
    outputs = outputs_of(jobs)
    assert time.monotonic() - begin < 30
    for job, output in zip(jobs, outputs, strict=True):
        # Python's own status of an interrupted program, or of one that heard first that its peer had left.
        assert job.returncode in (-signal.SIGINT, 130, 1), output
        assert "KeyboardInterrupt" in output or "compressed exchange failed" in output
    assert any("KeyboardInterrupt" in output for output in outputs)
    assert eventually(lambda: all(_group_is_gone(job) for job in jobs))


def _never_attached(rank: int, world_size: int) -> Any:
    state = lgreco.attach(make(), CONFIG)
    del state
    return None


def test_an_attached_model_that_never_trains_ends() -> None:
    """Processes that attach and end at once end."""
    with Ranks(2, _never_attached) as ranks:
        assert [ranks.answer(rank) for rank in range(2)] == [("ok", None)] * 2
        for process in ranks.processes:
            process.join(10)
            assert process.exitcode == 0
