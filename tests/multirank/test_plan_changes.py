"""Plans that change at a step, and snapshots of what a step exchanged: what the slow path asks of the engine."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from training import (
    batch_of,
    everything,
    local_gradients,
    loss_of,
    make,
    same_on_all_ranks,
    state_digest,
    train,
    undelivered,
)

import lgreco
from lgreco.choice import parse

BEFORE, AFTER = "quantize(bits=3, block=64)", "lowrank(rank=4, factors=int8)"
CHANGES = [
    (BEFORE, AFTER),
    (AFTER, BEFORE),
    ("lowrank(rank=4, factors=int8)", "lowrank(rank=9, factors=int4)"),
    ("lowrank(rank=9, factors=fp32)", "lowrank(rank=2, factors=int8, iterate=alternate)"),
    (BEFORE, "dense(dtype=fp32)"),
]


def _choices(state: lgreco.State, choice: str) -> list[dict[str, Any]]:
    """One a layer: `choice` for matrices, dense for the rest."""
    dense = parse("dense")
    return [(parse(choice) if len(p.layer.shape) > 1 else dense).to_native() for p in state.plan.planned]


def _changed(rank: int, world_size: int, before: str, after: str, late: bool) -> list[str]:
    """Four steps with one plan, four with another; `late`: it comes when the step already waits for it."""
    ddp = make()
    state = lgreco.attach(ddp, everything(before))
    engine = state._binding.engine
    choices = _choices(state, after)
    if late:
        engine.promise_plan(4)
        threading.Thread(target=lambda: (time.sleep(0.3), engine.set_plan(4, choices))).start()
    else:
        engine.set_plan(4, choices)
    digests = train(ddp, rank, range(8))
    state.close()
    return digests


def _unchanged(rank: int, world_size: int, choice: str) -> list[str]:
    ddp = make()
    lgreco.attach(ddp, everything(choice))
    return train(ddp, rank, range(8))


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_plan_takes_effect_at_exactly_its_step(before: str, after: str) -> None:
    """On all ranks alike, whether it comes early or is waited for."""
    changed = same_on_all_ranks(run(3, _changed, before, after, False))
    assert changed == same_on_all_ranks(run(3, _changed, before, after, True))
    unchanged = same_on_all_ranks(run(3, _unchanged, before))
    assert changed[:4] == unchanged[:4]
    assert changed[4] != unchanged[4]


def _nothing_is_lost(rank: int, world_size: int, before: str, after: str) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(before))
    train(ddp, rank, range(3))
    ddp.zero_grad()
    pending = undelivered(state)
    state._binding.engine.set_plan(3, _choices(state, after))
    x = batch_of(rank, 3)
    gradients = [None] * world_size
    dist.all_gather_object(gradients, local_gradients(ddp, x))
    loss_of(ddp, x).backward()
    left = undelivered(state)
    for name, parameter in ddp.module.named_parameters():
        if name not in pending:
            continue
        expected = sum(of_rank[name].flatten().double() for of_rank in gradients) / world_size + pending[name]
        delivered = parameter.grad.flatten().double() + left.get(name, 0.0)
        assert (expected - delivered).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_change_of_plan_loses_nothing(before: str, after: str) -> None:
    """Mean gradient + what was pending = delivered + what is pending, in the very step of the change."""
    run(3, _nothing_is_lost, before, after)


def _no_plan(rank: int, world_size: int) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(BEFORE))
    state._binding.engine.promise_plan(2)
    state._binding.engine.set_plan(2, None)
    state._binding.engine.set_plan(4, _choices(state, BEFORE))  # the same again
    return train(ddp, rank, range(8))


def test_no_plan_or_the_same_plan_changes_nothing() -> None:
    """The present plan stays, and no residual is touched."""
    assert run(2, _no_plan) == run(2, _unchanged, BEFORE)


def _closed_while_waiting(rank: int, world_size: int) -> str:
    ddp = make()
    state = lgreco.attach(ddp, everything(BEFORE))
    state._binding.engine.promise_plan(1)
    train(ddp, rank, range(1))
    threading.Thread(target=lambda: (time.sleep(0.3), state.close())).start()
    try:
        train(ddp, rank, range(1, 2))
    except RuntimeError as error:
        return str(error)
    return ""


def test_closing_wakes_a_step_that_waits_for_its_plan() -> None:
    """An error, not a hang."""
    assert all("was closed" in message for message in run(2, _closed_while_waiting))


def _watched(rank: int, world_size: int, choice: str, scale: float) -> None:
    ddp = make(bucket_cap_mb=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    state = lgreco.attach(ddp, everything(choice), scaler)
    engine = state._binding.engine
    names = list(state.plan)
    engine.watch(2, [names.index("odd.weight"), names.index("gain")])
    engine.watch(2, [names.index("wide.weight")])
    scaled = _Scaled(ddp, scale)
    train(scaled, rank, range(2))
    ddp.zero_grad()
    residual = {name: part["sender"] for name, part in state.state_dict()["residuals"].items()}
    gradients = local_gradients(ddp, batch_of(rank, 2))
    loss = loss_of(ddp, batch_of(rank, 2)) * scale
    loss.backward()
    snapshot = engine.next_snapshot()
    assert (snapshot.step, snapshot.dropped) == (2, False)
    assert [names[layer] for layer in snapshot.layers] == ["odd.weight", "gain", "wide.weight"]
    for layer, value, delivered in zip(snapshot.layers, snapshot.values, snapshot.delivered, strict=True):
        name = names[layer]
        expected = gradients[name].flatten() + residual.get(name, 0.0)
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max())), name
        parameter = dict(ddp.module.named_parameters())[name]
        assert torch.equal(delivered, parameter.grad.flatten() / scale), name
    state.close()
    assert engine.next_snapshot() is None


class _Scaled:
    """A DDP module whose output is scaled so that its squared mean is `scale` times as large."""

    def __init__(self, ddp: Any, scale: float) -> None:
        self._ddp, self._factor = ddp, scale**0.5

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._ddp(x) * self._factor

    def parameters(self) -> Any:
        return self._ddp.parameters()


@pytest.mark.parametrize("choice", [BEFORE, AFTER, "dense(dtype=bf16)"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_snapshot_shows_what_went_in_and_what_came_out(choice: str, scale: float) -> None:
    """Gradient + residual before, the delivered average after, both without the loss scale."""
    run(2, _watched, choice, scale)


def _watched_bad_step(rank: int, world_size: int) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(AFTER))
    engine = state._binding.engine
    engine.watch(1, [0])
    train(ddp, rank, range(1))
    ddp.zero_grad()
    before = state_digest(state)
    (loss_of(ddp, batch_of(rank, 1)) * (float("inf") if rank == 1 else 1.0)).backward()
    ddp.zero_grad()
    assert state_digest(state) == before
    loss_of(ddp, batch_of(rank, 1)).backward()
    snapshot = engine.next_snapshot()
    assert snapshot.step == 1
    assert all(bool(tensor.isfinite().all()) for tensor in [*snapshot.values, *snapshot.delivered])
    with pytest.raises(ValueError, match=r"a watched layer must be 0\.\.\d+, got 99"):
        engine.watch(5, [99])
    return [str(snapshot.layers)]


def test_a_dropped_step_is_watched_again() -> None:
    """The snapshot is of the step that counted."""
    run(2, _watched_bad_step)
