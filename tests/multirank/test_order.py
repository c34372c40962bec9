"""Order cannot matter: backward runs ahead of the network, and slow lanes or many buckets change no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run
from training import Deep, attach_faulty, batch_of, digest, everything, loss_of, make, same_on_all_ranks, train

import lgreco
from lgreco import _C

CONFIG = everything("quantize(bits=4, block=128)")
TWO_STAGES = everything("lowrank(rank=4, factors=int8)", layers={"4.*": "quantize(bits=4, block=128)"})


def _blocked_backward(rank: int, world_size: int) -> list[str]:
    ddp = make(bucket_cap_mb=0.05)
    faults = _C.Faults()
    state = attach_faulty(ddp, CONFIG, faults)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    seen: list[bool] = []

    def backward_is_over() -> None:
        # Every bucket's runHook has returned; DDP's own callback, which waits for the averages, was queued after this.
        seen.append(faults.gate_closed and state.stats()["wire_bytes"] == 0)
        faults.gate_closed = False

    def at_the_last_layer(gradient: torch.Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(backward_is_over)

    digests = []
    for step in range(3):
        faults.gate_closed = True
        optimizer.zero_grad()
        output = ddp(batch_of(rank, step))
        output.register_hook(at_the_last_layer)  # the first thing of all in backward
        output.square().mean().backward()
        optimizer.step()
        digests.append(digest(ddp.parameters()))
    assert seen == [True] * 3
    return digests


def _free_backward(rank: int, world_size: int) -> list[str]:
    ddp = make(bucket_cap_mb=0.05)
    lgreco.attach(ddp, CONFIG)
    return train(ddp, rank, range(3))


@pytest.mark.parametrize("world_size", [2, 3])
def test_backward_ends_before_a_byte_is_delivered(world_size: int) -> None:
    """With the network blocked, autograd reaches its end and every runHook returns; opened, the step ends as ever."""
    blocked = same_on_all_ranks(run(world_size, _blocked_backward))
    assert blocked == same_on_all_ranks(run(world_size, _free_backward))


def _blocked_python_hook(rank: int, world_size: int) -> None:
    ddp = make(bucket_cap_mb=0.05)
    state = lgreco.State(CONFIG)
    state._faults = faults = _C.Faults()
    futures: list[Any] = []

    def watched(state, bucket):  # noqa: ANN001, ANN202  # DDP refuses annotations that are text
        futures.append(lgreco.hook(state, bucket))
        if bucket.is_last():
            assert not any(future.done() for future in futures)
            faults.gate_closed = False
        return futures[-1]

    ddp.register_comm_hook(state, watched)
    for step in range(2):  # DDP forms the small buckets after the first step
        futures.clear()
        faults.gate_closed = True
        loss_of(ddp, batch_of(rank, step)).backward()
        assert all(future.done() for future in futures)
    assert len(futures) > 2


def test_the_conventional_hook_returns_before_a_byte_is_delivered() -> None:
    """No future of any bucket is done while the network is blocked, and all of them are once it is not."""
    run(2, _blocked_python_hook)


def _delayed(rank: int, world_size: int, config: dict[str, Any], delays: list[tuple[int, int]]) -> list[str]:
    ddp = make(lambda: Deep(12, 96), bucket_cap_mb=0.02)
    faults = _C.Faults()
    faults.send_delay_ms, faults.receive_delay_ms = delays[rank]
    attach_faulty(ddp, config, faults)
    digests = train(ddp, rank, range(3))
    assert len(ddp.reducer._get_zeros_like_grad_buckets()) >= 12
    return digests


@pytest.mark.parametrize("config", [CONFIG, TWO_STAGES], ids=["one-stage", "two-stages"])
def test_slow_lanes_change_no_bit(config: dict[str, Any]) -> None:
    """Delays in the lanes of single ranks, many buckets, 4 ranks: no hang, no mismatch, the same bits as without."""
    reference = same_on_all_ranks(run(4, _delayed, config, [(0, 0)] * 4))
    for delays in (
        [(9, 0), (0, 0), (0, 0), (0, 0)],
        [(0, 0), (0, 4), (7, 0), (2, 1)],
        [(0, 9), (0, 0), (0, 0), (5, 5)],
    ):
        assert same_on_all_ranks(run(4, _delayed, config, delays)) == reference
