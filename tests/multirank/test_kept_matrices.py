"""Low rank of layers whose masks keep whole rows and columns: it factors the smaller matrix that is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from kept_masks import NAMES, mask_of, masks_of
from masking import train_masked
from ranks import run
from torch import nn
from training import (
    batch_of,
    digest,
    everything,
    local_gradients,
    loss_of,
    make,
    same_on_all_ranks,
    state_digest,
    undelivered,
)

import lgreco
from lgreco.choice import LowRank, parse
from lgreco.plan import wire_bytes

BOTH = "lowrank(rank=4, factors=int8)"
ALTERNATE = "lowrank(rank=3, factors=fp32, iterate=alternate)"
BLAS = "lowrank(rank=12, factors=fp32)"
"""Of more columns than the fused kernels take."""


class Given(nn.Module):
    """A matrix whose gradient is what the model is given."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Scalar."""
        return (self.w * gradient).sum()


def _averaged(ddp: Any, gradient: torch.Tensor) -> torch.Tensor:
    ddp.zero_grad()
    ddp(gradient).backward()
    return ddp.module.w.grad.clone()


def _as_a_smaller_layer(rank: int, world_size: int, choice: str, dtype: torch.dtype) -> None:
    shape = (130, 9, 10)
    mask = mask_of((130, 90), "both")
    rows, columns = mask.any(1), mask.any(0)
    kept = int(rows.sum()), int(columns.sum())
    large, small = make(lambda: Given(*shape), dtype), make(lambda: Given(*kept), dtype)
    state, state_small = (lgreco.attach(ddp, everything(choice)) for ddp in (large, small))
    state.set_masks({"w": mask.view(shape)})
    assert str(state.plan["w"]) == str(state_small.plan["w"]) == str(parse(choice))
    for step in range(5):
        generator = torch.Generator().manual_seed(10 * step + rank)
        gradient = torch.randn(130, 90, generator=generator).to(dtype)
        delivered = _averaged(large, gradient.view(shape)).view(130, 90)
        expected = _averaged(small, gradient[rows][:, columns])
        assert torch.equal(delivered[mask].view(kept), expected), step
        assert not delivered[~mask].any()
        assert bool(expected.any())
        assert state.stats()["wire_bytes"] == state_small.stats()["wire_bytes"]
    part, part_small = (each.state_dict()["residuals"]["w"] for each in (state, state_small))
    assert torch.equal(part["sender"][mask.flatten()], part_small["sender"])
    assert not part["sender"][~mask.flatten()].any()
    assert torch.equal(part["warm_q"][:, columns], part_small["warm_q"])
    assert not part["warm_q"][:, ~columns].any()


@pytest.mark.parametrize("choice", [BOTH, ALTERNATE, BLAS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_a_smaller_layer_would_be(choice: str, dtype: torch.dtype) -> None:
    """Averages, residuals, warm starts and bytes of a layer that holds the kept values alone, bit for bit."""
    run(3, _as_a_smaller_layer, choice, dtype)


def _through_changes(rank: int, world_size: int, choice: str, residual: str) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice, residual=residual))
    digests, bound = [], 1e-5 if residual == "fp32" else 3e-2
    for step, kind in enumerate(("all", "rows", "rows", "both", "scattered", "columns", "nothing", "both", "all")):
        state.set_masks(masks_of(ddp, kind, step // 3))
        masks, pending = state.masks, undelivered(state)
        gathered: list[Any] = [None] * world_size
        ddp.zero_grad()
        dist.all_gather_object(gathered, local_gradients(ddp, batch_of(rank, step)))
        loss_of(ddp, batch_of(rank, step)).backward()
        left = undelivered(state)
        for name in NAMES:
            delivered = dict(ddp.module.named_parameters())[name].grad.flatten()
            kept = masks[name].flatten() if name in masks else torch.ones_like(delivered) > 0
            mean = sum(each[name].flatten().double() for each in gathered) / world_size
            expected = torch.where(kept, mean + pending.get(name, 0.0), 0.0)
            rest = left.get(name, torch.zeros_like(expected))
            assert not delivered[~kept].any(), (step, name)
            assert not rest[~kept].any(), (step, name)
            assert (expected - delivered - rest).abs().max() <= bound * expected.abs().max(), (step, name)
        digests.append(digest(parameter.grad for parameter in ddp.parameters()))
        assert str(state.plan["odd.weight"]) == str(parse(choice))
    return digests


@pytest.mark.parametrize(("choice", "residual"), [(BOTH, "fp32"), (ALTERNATE, "fp32"), (BLAS, "fp32"), (BOTH, "bf16")])
def test_what_is_left_out_is_added_later_through_changes_of_masks(choice: str, residual: str) -> None:
    """Between whole, scattered and smaller matrices; pruned elements are exactly zero, replicas alike."""
    same_on_all_ranks(run(3, _through_changes, choice, residual))


def _warm_starts(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(ALTERNATE))
    before, after = masks_of(ddp, "both", 1), masks_of(ddp, "both", 2)
    state.set_masks(before)
    for step in range(3):
        ddp.zero_grad()
        loss_of(ddp, batch_of(rank, step)).backward()
    old = state.state_dict()["residuals"]
    state.set_masks(after)
    new = state.state_dict()["residuals"]
    for name in NAMES:
        for side, across in (("warm_p", 1), ("warm_q", 0)):
            stay = before[name].any(across) & after[name].any(across)
            grown = after[name].any(across) & ~before[name].any(across)
            assert 0 < int(stay.sum()) < len(stay)
            assert int(grown.sum()) > 0
            assert bool(old[name][side][:, stay].any())
            assert torch.equal(new[name][side][:, stay], old[name][side][:, stay])
            assert not new[name][side][:, ~stay].any()
            assert new[name][side].shape == old[name][side].shape == (3, len(stay))


def test_warm_starts_keep_what_stays() -> None:
    """Their entries of rows and columns that are kept before and after; what has grown again begins with zero."""
    run(2, _warm_starts)


def _bytes(rank: int, world_size: int) -> tuple[int, float, int]:
    ddp = make(bucket_cap_mb=10)
    state = lgreco.attach(ddp, everything("lowrank(rank=4, factors=fp32)"))
    sent = []
    for kind in ("all", "both"):
        state.set_masks(masks_of(ddp, kind))
        ddp.zero_grad()
        loss_of(ddp, batch_of(rank, 0)).backward()
        sent.append(int(state.stats()["wire_bytes"]))
    planned = sum(wire_bytes(p.layer, p.choice, world_size) for p in state.plan.planned)
    assert all(isinstance(state.plan[name], LowRank) for name in NAMES)
    return sent[0], planned, sent[1]


def test_bytes_shrink_with_rows_and_columns() -> None:
    """To what the plan counts for the smaller matrices, and each message's header with its bits."""
    results = run(3, _bytes)
    whole, planned, kept = (sum(each[i] for each in results) for i in range(3))
    assert planned < kept <= planned + 64 * 3 * 2 * 2 * 2 * 4
    assert kept < 0.7 * whole


def _infinite(rank: int, world_size: int) -> None:
    ddp = make(lambda: Given(130, 90))
    state = lgreco.attach(ddp, everything(BOTH))
    mask = mask_of((130, 90), "both")
    state.set_masks({"w": mask})
    gradient = torch.randn(130, 90, generator=torch.Generator().manual_seed(rank))
    _averaged(ddp, gradient)
    before = state.state_dict()["residuals"]["w"]
    pruned = gradient.clone()
    pruned[~mask] = float("nan")  # of no interest
    assert bool(_averaged(ddp, pruned).isfinite().all())
    state.discard()
    bad = gradient.clone()
    bad[tuple(mask.nonzero()[rank])] = float("inf") if rank == 1 else 1.0
    assert bool(_averaged(ddp, bad).isinf().all())
    after = state.state_dict()["residuals"]["w"]
    assert all(torch.equal(before[side], after[side]) for side in ("sender", "warm_q"))
    zero = _averaged(ddp, torch.zeros(130, 90))
    assert not zero.any()
    kept = state.state_dict()["residuals"]["w"]
    assert all(torch.equal(before[side], kept[side]) for side in ("sender", "warm_q"))


def test_steps_without_a_gradient_or_with_an_infinity_leave_no_trace() -> None:
    """And what a pruned element's gradient is does not matter."""
    run(2, _infinite)


def _resumed(rank: int, world_size: int, choice: str, split: int, gathered: bool) -> None:
    def fresh() -> tuple[Any, lgreco.State, dict[int, Any]]:
        ddp = make()
        masks = {1: masks_of(ddp, "rows"), 3: masks_of(ddp, "both", 1), 5: masks_of(ddp, "scattered")}
        return ddp, lgreco.attach(ddp, everything(choice)), masks

    through, state, masks = fresh()
    digests = train_masked(through, rank, range(8), state, masks)
    first, state_one, _ = fresh()
    train_masked(first, rank, range(split), state_one, masks)
    saved, weights = state_one.gather() if gathered else state_one.state_dict(), first.module.state_dict()
    second, state_two, _ = fresh()
    second.module.load_state_dict(weights)
    state_two.load_state_dict(saved)
    assert state_digest(state_two) == state_digest(state_one)
    later = {step: each for step, each in masks.items() if step >= split}
    assert train_masked(second, rank, range(split, 8), state_two, later) == digests[split:]
    assert state_digest(state_two) == state_digest(state)


@pytest.mark.parametrize("choice", [BOTH, ALTERNATE])
@pytest.mark.parametrize(("split", "gathered"), [(2, False), (4, True), (5, False), (6, True)])
def test_save_and_load_continue_bit_for_bit(choice: str, split: int, gathered: bool) -> None:
    """Also right after a change of masks, before a step has been made with them."""
    run(2, _resumed, choice, split, gathered)
