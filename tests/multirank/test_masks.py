"""Masked layers: only what masks keep is exchanged, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from masking import CHOICES, MATRICES, gradients_of, masks_of, train_masked
from ranks import run
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
from lgreco import _C
from lgreco.choice import parse
from lgreco.layer import LayerInfo
from lgreco.plan import wire_bytes


def _like_dense(rank: int, world_size: int, dtype: torch.dtype) -> None:
    dense, masked = make(dtype=dtype), make(dtype=dtype)
    lgreco.attach(dense, everything("dense(dtype=fp32)"))
    state = lgreco.attach(masked, everything("dense(dtype=fp32)"))
    for step, density in enumerate((1.0, 0.5, 0.1, 0.7, 0.0)):
        masks = masks_of(masked, density, step)
        state.set_masks(masks)
        expected, delivered = gradients_of(dense, rank, step), gradients_of(masked, rank, step)
        for name in expected:
            kept = masks.get(name, torch.ones(()) > 0)
            assert torch.equal(torch.where(kept, expected[name], 0.0), delivered[name]), (step, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_values_are_those_of_masking_after_a_dense_exchange(dtype: torch.dtype) -> None:
    """Bit for bit, at four ranks, from everything kept to nothing."""
    run(4, _like_dense, dtype)


def _nothing_is_lost(
    rank: int, world_size: int, choice: str, dtype: torch.dtype, residual: str = "fp32", scale: float = 1.0
) -> list[str]:
    ddp = make(dtype=dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6) if scale != 1 else None
    state = lgreco.attach(ddp, everything(choice, residual=residual), scaler)
    choices = []
    for step, density in enumerate((1.0, 0.6, 0.5, 0.5, 0.8, 1.0)):
        state.set_masks(masks_of(ddp, density, step // 2))  # also the same ones again
        masks = state.masks
        pending = undelivered(state) if step > 0 else {}
        gathered: list[Any] = [None] * world_size
        x = batch_of(rank, step, dtype=dtype)
        ddp.zero_grad()
        dist.all_gather_object(gathered, local_gradients(ddp, x))
        delivered = {name: each / scale for name, each in gradients_of(ddp, rank, step, scale).items()}
        left = undelivered(state)
        for name in MATRICES:
            kept = masks.get(name, torch.ones_like(delivered[name]) > 0).flatten()
            mean = sum(of_rank[name].flatten().double() for of_rank in gathered) / world_size
            expected = torch.where(kept, mean + pending.get(name, 0.0), 0.0)
            assert not delivered[name].flatten()[~kept].any(), (step, name)
            assert not left.get(name, torch.zeros(1)).masked_select(~kept if name in left else kept[:1] & False).any()
            found = delivered[name].flatten().double() + left.get(name, 0.0)
            tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
            tolerance = max(tolerance, 3e-2 if residual == "bf16" else 0.0)
            assert (expected - found).abs().max() <= tolerance * expected.abs().max(), (step, name)
        choices.append(str(state.plan["odd.weight"]))
    return choices


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_left_out_of_kept_elements_is_added_later(choice: str) -> None:
    """Mean gradient + what was pending = delivered + what is pending, on kept elements, through changes of masks."""
    choices = same_on_all_ranks(run(3, _nothing_is_lost, choice, torch.float32))
    assert parse(choice) == parse(choices[0])
    assert parse(choice) == parse(choices[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype: torch.dtype) -> None:
    """The same within what their own type holds."""
    run(2, _nothing_is_lost, "quantize(bits=4, block=64)", dtype)


@pytest.mark.parametrize("choice", [CHOICES[2], CHOICES[5]])
@pytest.mark.parametrize(("residual", "scale"), [("bf16", 1.0), ("fp32", 1024.0)])
def test_residuals_of_two_bytes_and_a_loss_scale(choice: str, residual: str, scale: float) -> None:
    """The same within what the residual's type holds; residuals are kept unscaled."""
    run(2, _nothing_is_lost, choice, torch.float32, residual, scale)


def _bad_step(rank: int, world_size: int, choice: str) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    masks = masks_of(ddp, 0.5)
    masks["wide.weight"][:10] = False
    gradients_of(ddp, rank, 0)
    state.set_masks(masks)
    before = state_digest(state)
    delivered = gradients_of(ddp, rank, 1, float("inf") if rank == 1 else 1.0)
    assert delivered["odd.weight"].isinf().all()
    assert state_digest(state) == before
    assert all(bool(each.isfinite().all()) for each in gradients_of(ddp, rank, 1).values())
    assert state_digest(state) != before


@pytest.mark.parametrize("choice", [CHOICES[2], CHOICES[5]])
def test_a_step_with_an_infinity_leaves_no_trace(choice: str) -> None:
    """Also the first one after a change of masks."""
    run(2, _bad_step, choice)


def _before_the_layers_are_known(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.State(everything(CHOICES[2]))
    ddp.register_comm_hook(state, lgreco.hook)
    masks = masks_of(ddp, 0.5)
    state.set_masks(masks)
    delivered = gradients_of(ddp, rank, 0)
    assert all(not delivered[name][~mask].any() and delivered[name][mask].any() for name, mask in masks.items())


def test_masks_may_come_before_the_first_backward() -> None:
    """In DDP's conventional form they are put in force with the first bucket."""
    run(2, _before_the_layers_are_known)


def _alone(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    masks = masks_of(ddp, 0.5)
    state.set_masks(masks)
    assert gradients_of(ddp, rank, 0)["odd.weight"].count_nonzero() > 0.9 * masks["odd.weight"].numel()
    state.load_state_dict(state.gather())
    assert state.masks.keys() == masks.keys()


def test_one_rank_exchanges_nothing() -> None:
    """Gradients stay as they are; masks are kept and saved."""
    run(1, _alone)


def _bytes_sent(rank: int, world_size: int, choice: str) -> tuple[int, float, float]:
    ddp = make(bucket_cap_mb=10)
    state = lgreco.attach(ddp, everything(choice))
    gradients_of(ddp, rank, 0)
    whole = state.stats()["wire_bytes"]
    state.set_masks(masks_of(ddp, 0.3))
    gradients_of(ddp, rank, 1)
    planned = sum(wire_bytes(p.layer, p.choice, world_size) for p in state.plan.planned)
    return int(whole), state.stats()["wire_bytes"], planned


@pytest.mark.parametrize("choice", [*CHOICES[:5], "lowrank(rank=2, factors=int8)"])
def test_bytes_sent_are_those_that_the_plan_counts(choice: str) -> None:
    """All ranks' bytes together: the plan's, and each message's header with its bits."""
    results = run(3, _bytes_sent, choice)
    sent, planned = sum(result[1] for result in results), 3 * results[0][2]
    messages = 3 * 2 * 2 * (2 if "lowrank" in choice else 1) * 4
    assert planned < sent <= planned + 64 * messages
    if "lowrank" not in choice:
        assert sent < 0.45 * sum(result[0] for result in results)


def test_costs_follow_what_is_kept() -> None:
    """A run costs what a layer of its size costs; factors cost what they did; nothing kept costs nothing."""
    whole, kept = LayerInfo("w", (300, 400), "fp32"), LayerInfo("w", (300, 400), "fp32", kept=12_000)
    for text in ("dense(dtype=fp32)", "quantize(bits=4, block=512)", "topk(density=0.01)"):
        choice = parse(text)
        assert wire_bytes(kept, choice, 4) == wire_bytes(LayerInfo("w", (12_000,), "fp32"), choice, 4)
        assert wire_bytes(kept, choice, 4) < 0.12 * wire_bytes(whole, choice, 4)
        assert wire_bytes(LayerInfo("w", (300, 400), "fp32", kept=0), choice, 4) == 0
    assert wire_bytes(kept, parse("lowrank(rank=4)"), 4) == wire_bytes(whole, parse("lowrank(rank=4)"), 4)


def _dearer(rank: int, world_size: int) -> tuple[str, str]:
    ddp = make()
    state = lgreco.attach(ddp, everything("lowrank(rank=8, factors=fp32)"))
    gradients_of(ddp, rank, 0)
    before = str(state.plan["odd.weight"])
    state.set_masks(masks_of(ddp, 0.05))
    gradients_of(ddp, rank, 1)
    return before, str(state.plan["odd.weight"])


def test_no_choice_is_dearer_than_sending_what_is_kept() -> None:
    """Factors of the whole matrix give way."""
    assert same_on_all_ranks(run(2, _dearer)) == ("lowrank(rank=8, factors=fp32)", "dense(dtype=fp32)")


def _resumed(rank: int, world_size: int, choice: str, split: int, gathered: bool) -> None:
    changes = {1: {"odd.weight": 0.5, "wide.weight": 0.7}, 3: {"odd.weight": 0.2, "out.weight": 0.0}}

    def tensors(ddp: Any) -> dict[int, Any]:
        return {
            step: {name: masks_of(ddp, density, step, (name,))[name] for name, density in masks.items()}
            for step, masks in changes.items()
        }

    through = make()
    state = lgreco.attach(through, everything(choice))
    digests = train_masked(through, rank, range(6), state, tensors(through))
    first = make()
    state_one = lgreco.attach(first, everything(choice))
    train_masked(first, rank, range(split), state_one, tensors(first))
    saved = state_one.gather() if gathered else state_one.state_dict()
    weights = first.module.state_dict()
    numel = {name: mask.numel() for name, mask in state_one.masks.items()}
    assert {name: bits.numel() for name, bits in saved["masks"].items()} == {n: -(-k // 8) for n, k in numel.items()}
    second = make()
    second.module.load_state_dict(weights)
    state_two = lgreco.attach(second, everything(choice))
    state_two.set_masks({"narrow.weight": torch.zeros(96, 193) > 0})  # the checkpoint's replace it
    state_two.load_state_dict(saved)
    later = {step: masks for step, masks in tensors(second).items() if step >= split}
    assert train_masked(second, rank, range(split, 6), state_two, later) == digests[split:]
    assert state_digest(state_two) == state_digest(state)
    assert {name: mask.tolist() for name, mask in state_two.masks.items()} == {
        name: mask.tolist() for name, mask in state.masks.items()
    }


@pytest.mark.parametrize("choice", [CHOICES[2], CHOICES[3], CHOICES[5]])
@pytest.mark.parametrize(("split", "gathered"), [(2, False), (3, True), (4, True)])
def test_save_and_load_continue_bit_for_bit(choice: str, split: int, gathered: bool) -> None:
    """Also right after a change of masks, before a step has been made with them."""
    run(2, _resumed, choice, split, gathered)


def _saved(rank: int, world_size: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    train_masked(ddp, rank, range(3), state, {0: masks_of(ddp, 0.4)})
    return state.gather()


def _continued(rank: int, world_size: int, saved: Any) -> dict[str, torch.Tensor]:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    state.load_state_dict(saved)
    return undelivered(state)


def _still_pending(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    train_masked(ddp, rank, range(3), state, {0: masks_of(ddp, 0.4)})
    return undelivered(state)


def test_another_world_size_keeps_what_is_pending() -> None:
    """Masks and what is still to be added come along."""
    saved, pending = run(3, _saved)[0], run(3, _still_pending)[0]
    continued = run(2, _continued, saved)[0]
    for name, expected in pending.items():
        assert torch.allclose(continued[name], expected, rtol=1e-5, atol=1e-7), name


def _refused(rank: int, world_size: int) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    good = masks_of(ddp, 0.5)
    state.set_masks(good)
    before = {name: mask.tolist() for name, mask in state.masks.items()}
    other = {**good, "odd.weight": masks_of(ddp, 0.5, seed=int(rank == 2))["odd.weight"]}
    wrong: list[Any] = [
        {"nowhere": torch.ones(2, 2) > 0},
        {"odd.weight": torch.ones(3, 3) > 0},
        {"odd.weight": torch.ones_like(good["odd.weight"], dtype=torch.float32)},
        {"odd.weight": good["odd.weight"] if rank == 0 else good["odd.weight"].float()},
        other,
    ]
    messages = []
    for masks in wrong:
        with pytest.raises(ValueError, match="mask") as caught:
            state.set_masks(masks)
        messages.append(str(caught.value))
    assert {name: mask.tolist() for name, mask in state.masks.items()} == before
    gradients_of(ddp, rank, 0)
    return messages


def test_wrong_and_different_masks_are_refused_on_every_rank() -> None:
    """And nothing has changed."""
    rank_0, _, rank_2 = run(3, _refused)
    for name, shape, dtype, one, differ in (rank_0, rank_2):
        assert 'mask of "nowhere": no layer has this name' in name
        assert 'mask of layer "odd.weight" must have the shape (193, 288), got (3, 3)' in shape
        assert 'mask of layer "odd.weight" must be a bool or uint8 tensor, got torch.float32' in dtype
        assert "rank 1: " in one or "got torch.float32" in one
        assert 'rank 2 and rank 0 hold different masks for "odd.weight"' in differ


def _unnoticed(rank: int, world_size: int) -> str:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    masks = masks_of(ddp, 0.5)
    masks["odd.weight"][0, 0] ^= rank == 1
    bits = [_C.pack_mask(masks[p.layer.name])[0] if p.layer.name in masks else None for p in state.plan.planned]
    packed = [None if b is None else (p.layer.numel, b) for p, b in zip(state.plan.planned, bits, strict=True)]
    state._binding.engine.set_masks(packed, [p.choice.to_native() for p in state.plan.planned])
    try:
        gradients_of(ddp, rank, 0)
    except RuntimeError as error:
        return str(error)
    return ""


def test_masks_that_became_different_stop_the_exchange() -> None:
    """The plan's fingerprint holds them, and every message holds the fingerprint."""
    assert any("follows another plan" in message for message in run(2, _unnoticed, timeout_s=10))


class Forked(torch.nn.Module):
    """Two branches, of which a batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(96, 96), torch.nn.Linear(96, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 96] -> [n, 96], by the sign of the first element."""
        return self.left(x) if x[0, 0] > 0 else self.right(x)


def _unused(rank: int, world_size: int) -> tuple[list[bool], list[str]]:
    ddp = make(Forked, find_unused_parameters=True)
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    state.set_masks(masks_of(ddp, 0.3, names=("left.weight", "right.weight")))
    seen, digests = [], []
    for step in range(4):
        ddp.zero_grad()
        x = torch.full((2, 96), 1.0 if step % 2 == 0 or (step == 3 and rank == 1) else -1.0)
        loss_of(ddp, x + 0.01 * batch_of(rank, step)[:2]).backward()
        left, right = ddp.module.left.weight.grad, ddp.module.right.weight.grad
        seen += [left is not None and bool(left.any()), right is not None and bool(right.any())]
        digests.append(digest(parameter.grad for parameter in ddp.parameters() if parameter.grad is not None))
    return seen, digests


def test_layers_without_a_gradient_stay_without() -> None:
    """find_unused_parameters: what no rank used is zero or unset, what one rank used reaches all."""
    seen, _ = same_on_all_ranks(run(2, _unused))
    assert seen == [True, False, False, True, True, False, True, True]


def _joined(rank: int, world_size: int) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(CHOICES[2]))
    state.set_masks(masks_of(ddp, 0.3))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    with ddp.join():
        for step in range(2 + 2 * rank):
            optimizer.zero_grad()
            loss_of(ddp, batch_of(rank, step)).backward()
            optimizer.step()
    return [digest(ddp.parameters())]


def test_ranks_that_have_joined_take_part() -> None:
    """Uneven inputs end with the same weights everywhere."""
    same_on_all_ranks(run(2, _joined))
