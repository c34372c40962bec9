"""A step is applied whole or not at all: what an inf or NaN touches leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run
from training import batch_of, digest, everything, loss_of, make, same_on_all_ranks, state_digest

import lgreco

CHOICES = [
    "quantize(bits=4, block=128)",
    "quantize(bits=2, block=64, grid=symmetric, rounding=stochastic, scales=bf16)",
    "lowrank(rank=4, factors=int8)",
    "lowrank(rank=10, factors=int6, iterate=alternate)",
    "dense(dtype=bf16)",
    "dense(dtype=fp32)",
]
PLACES = {"last": "wide.weight", "middle": "odd.weight", "first": "out.weight"}
"""The bucket that a layer travels in, by its name: DDP forms buckets from the last layer to the first."""


class _Job:
    """A model trained under GradScaler, with gradients that can be spoilt."""

    def __init__(self, config: dict[str, Any], scale: float = 1024.0) -> None:
        self.ddp = make(bucket_cap_mb=0.02)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        self.state = lgreco.attach(self.ddp, config, scaler=self.scaler)
        self.optimizer = torch.optim.SGD(self.ddp.parameters(), lr=0.2, momentum=0.9)
        self.layers = dict(self.ddp.module.named_parameters())

    def backward(self, rank: int, step: int, poison: tuple[str, float] | None = None) -> None:
        self.optimizer.zero_grad()
        handle = None
        if poison is not None:
            layer, value = poison

            def spoil(gradient: torch.Tensor) -> torch.Tensor:
                spoilt = gradient.clone()
                spoilt.view(-1)[spoilt.numel() // 2] = value
                return spoilt

            handle = self.layers[layer].register_hook(spoil)
        self.scaler.scale(loss_of(self.ddp, batch_of(rank, step))).backward()
        if handle is not None:
            handle.remove()

    def update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def good_step(self, rank: int, step: int) -> str:
        self.backward(rank, step)
        self.update()
        return digest(self.ddp.parameters())


def _with_bad_steps(rank: int, world_size: int, choice: str, warmup_steps: int) -> list[str]:
    job = _Job(everything(choice, warmup_steps=warmup_steps))
    digests = []
    step = 0
    for layer in PLACES.values():
        for culprit in range(world_size):
            for value in (float("inf"), float("nan"), float("-inf")):
                before = (digest(job.ddp.parameters()), state_digest(job.state))
                job.backward(rank, 100 + step, (layer, value) if rank == culprit else None)
                assert not job.layers[layer].grad.isfinite().all(), "every rank must see it"
                scale = job.scaler.get_scale()
                job.update()
                assert job.scaler.get_scale() == scale / 2, "GradScaler must skip"
                assert (digest(job.ddp.parameters()), state_digest(job.state)) == before
                job.scaler.update(new_scale=1024.0)
            digests.append(job.good_step(rank, step))
            step += 1
    return digests


def _without_bad_steps(rank: int, world_size: int, choice: str, warmup_steps: int) -> list[str]:
    job = _Job(everything(choice, warmup_steps=warmup_steps))
    return [job.good_step(rank, step) for step in range(len(PLACES) * world_size)]


@pytest.mark.parametrize(("choice", "warmup_steps"), [*((choice, 0) for choice in CHOICES), (CHOICES[0], 4)])
def test_a_bad_step_leaves_no_trace(choice: str, warmup_steps: int) -> None:
    """Inf and NaN in the first, a middle and the last bucket, on each rank in turn, in the warm-up, too.

    All ranks see it, GradScaler skips, the state is as before, and later steps are as if it had never been.
    """
    spoilt = same_on_all_ranks(run(3, _with_bad_steps, choice, warmup_steps))
    assert spoilt == same_on_all_ranks(run(3, _without_bad_steps, choice, warmup_steps))


def _buckets(rank: int, world_size: int) -> dict[str, int]:
    job = _Job(everything(CHOICES[0]))
    job.good_step(rank, 0)
    job.good_step(rank, 1)
    places = {id(parameter): name for name, parameter in job.layers.items()}
    buckets = job.ddp.reducer._get_zeros_like_grad_buckets()
    return {
        places[id(parameter)]: bucket.index() - len(buckets) for bucket in buckets for parameter in bucket.parameters()
    }


def test_the_spoilt_layers_lie_in_the_first_a_middle_and_the_last_bucket() -> None:
    """What the tests above say of buckets is so."""
    place = same_on_all_ranks(run(2, _buckets))
    assert place[PLACES["first"]] == min(place.values())
    assert min(place.values()) < place[PLACES["middle"]] < -1
    assert place[PLACES["last"]] == -1


def _scales(rank: int, world_size: int, choice: str, scales: list[float]) -> list[str]:
    job = _Job(everything(choice))
    digests = []
    for step, scale in enumerate(scales):
        job.scaler.update(new_scale=scale)
        digests.append(job.good_step(rank, step))
        digests.append(state_digest(job.state))
    return digests


@pytest.mark.parametrize("choice", CHOICES[:4])
def test_a_changing_scale_keeps_residuals_right(choice: str) -> None:
    """Residuals are kept unscaled: powers of two in the scale change no bit, neither of parameters nor of residuals."""
    constant = run(2, _scales, choice, [1.0] * 6)
    assert run(2, _scales, choice, [1.0, 1024.0, 64.0, 65536.0, 1.0, 2.0]) == constant


def _discarding(rank: int, world_size: int, discards: bool) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything("quantize(bits=4, block=128, rounding=stochastic)"))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    digests = []
    for step in range(4):
        if discards:
            before = state_digest(state)
            optimizer.zero_grad()
            (1e6 * loss_of(ddp, batch_of(rank, 50 + step))).backward()
            state.discard()  # a user's own test found the gradient too large
            assert state_digest(state) == before
        optimizer.zero_grad()
        loss_of(ddp, batch_of(rank, step)).backward()
        optimizer.step()
        digests += [digest(ddp.parameters()), state_digest(state)]
    return digests


def test_a_discarded_step_leaves_no_trace() -> None:
    """After state.discard() the next step is as if the discarded one had never been."""
    assert run(3, _discarding, True) == run(3, _discarding, False)
