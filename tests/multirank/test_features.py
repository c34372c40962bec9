"""What DDP can do, it can do with lgreco attached; whatever is switched on, replicas stay bit-identical."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import batch_of, digest, everything, loss_of, make, same_on_all_ranks, state_digest, train

import lgreco

FOUR_BITS = "quantize(bits=4, block=128)"
CONFIG = everything(FOUR_BITS)


def _train_with(rank: int, world_size: int, options: dict[str, Any]) -> list[str]:
    ddp = make(**options)
    state = lgreco.attach(ddp, CONFIG)
    digests = [*train(ddp, rank, range(4)), state_digest(state)]
    state.close()
    return digests


def _options(rank: int, world_size: int) -> list[list[str]]:
    options: list[dict[str, Any]] = [
        {},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
        {"broadcast_buffers": False},
    ]
    if "lazy_bucket_allocation" in inspect.signature(DistributedDataParallel).parameters:
        options.append({"lazy_bucket_allocation": True})
        options.append({"lazy_bucket_allocation": True, "gradient_as_bucket_view": True})
    return [_train_with(rank, world_size, one) for one in options]


def test_options_of_ddp_change_no_bit() -> None:
    """Views, unused parameters, a static graph, lazy buckets: the same bits as without."""
    for runs in run(2, _options):
        assert all(digests == runs[0] for digests in runs)


def _forms(rank: int, world_size: int) -> tuple[list[str], list[str]]:
    attached = make()
    first = lgreco.attach(attached, CONFIG)
    conventional = make()
    second = lgreco.State(CONFIG)
    conventional.register_comm_hook(second, lgreco.hook)
    results = []
    for ddp, state in ((attached, first), (conventional, second)):
        results.append([*train(ddp, rank, range(4)), state_digest(state)])
    assert first.plan == second.plan
    assert first.stats() == second.stats()
    return results[0], results[1]


def test_the_conventional_form_gives_the_same_bits() -> None:
    """ddp.register_comm_hook(state, lgreco.hook) runs the same engine as lgreco.attach(ddp)."""
    for attached, conventional in run(3, _forms):
        assert attached == conventional


def _accumulation(rank: int, world_size: int) -> list[str]:
    dense, ddp = make(), make()
    lgreco.attach(dense, everything("dense(dtype=fp32)"))
    state = lgreco.attach(ddp, CONFIG)
    mine = [torch.zeros_like(parameter) for parameter in dense.parameters()]
    for module in (dense, ddp):
        with module.no_sync():
            for micro in range(2):
                loss_of(module, batch_of(rank, micro)).backward()
        assert state.stats()["wire_bytes"] == 0
        if module is dense:
            local = make()
            for micro in range(3):
                with local.no_sync():
                    loss_of(local, batch_of(rank, micro)).backward()
            mine = [parameter.grad for parameter in local.parameters()]
        loss_of(module, batch_of(rank, 2)).backward()
    assert state.stats()["steps"] == 1
    for gradient, delivered in zip(mine, dense.parameters(), strict=True):
        dist.all_reduce(gradient)
        assert torch.allclose(gradient / world_size, delivered.grad, rtol=1e-5, atol=1e-9)
    return [digest(parameter.grad for parameter in module.parameters()) for module in (dense, ddp)]


def test_gradients_accumulate_under_no_sync() -> None:
    """no_sync exchanges nothing; the backward after it exchanges the sum, as one step."""
    exact, compressed = same_on_all_ranks(run(2, _accumulation))
    assert exact != compressed


class _Branches(nn.Module):
    """Two branches, of which a forward uses one or both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(96, 96)
        self.right = nn.Linear(96, 96)
        self.out = nn.Linear(96, 8)

    def forward(self, x: torch.Tensor, branches: tuple[str, ...]) -> torch.Tensor:
        return self.out(sum(getattr(self, branch)(x) for branch in branches))


def _branches_step(ddp: Any, optimizer: Any, rank: int, step: int, branches: tuple[str, ...]) -> None:
    optimizer.zero_grad()
    ddp(batch_of(rank, step), branches).square().mean().backward()
    optimizer.step()


def _unused(rank: int, world_size: int) -> list[str]:
    ddp = make(_Branches, find_unused_parameters=True)
    state = lgreco.attach(ddp, CONFIG)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    digests = []
    for step in range(2):
        _branches_step(ddp, optimizer, rank, step, ("left", "right"))

    def residual() -> str:
        part = state.state_dict()["residuals"]["right.weight"]
        return digest([part["sender"], *([part["owner"]] if part["owner"] is not None else [])])

    before = residual()
    right = ddp.module.right.weight.detach().clone()
    for step in range(2, 4):
        _branches_step(ddp, optimizer, rank, step, ("left",))
        assert ddp.module.right.weight.grad is None
        assert torch.equal(ddp.module.right.weight, right)
        assert residual() == before, "a layer without a gradient on any rank keeps its residual"
        digests.append(digest(ddp.parameters()))
    for step in range(4, 6):  # used on one rank only: the others contribute zeros and their residual
        _branches_step(ddp, optimizer, rank, step, ("left", "right") if rank == 1 else ("left",))
        assert ddp.module.right.weight.grad.any()
        assert residual() != before
        digests.append(digest(ddp.parameters()))
    _branches_step(ddp, optimizer, rank, 6, ("left", "right"))
    return [*digests, digest(ddp.parameters())]


def test_unused_layers_keep_their_residual() -> None:
    """A layer that no rank used has no gradient and keeps its residual; one that one rank used is averaged over all."""
    same_on_all_ranks(run(3, _unused))


def _zero_gradients(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, CONFIG)
    train(ddp, rank, range(2))
    before = state.state_dict()["residuals"]
    ddp.zero_grad()
    (0 * loss_of(ddp, batch_of(rank, 0))).backward()
    assert not any(parameter.grad.any() for parameter in ddp.parameters())
    after = state.state_dict()
    assert after["steps"] == 3
    assert digest(p["sender"] for p in before.values()) == digest(p["sender"] for p in after["residuals"].values())


def test_zero_gradients_keep_residuals() -> None:
    """Where all ranks' gradients are zero, zeros are delivered and no residual is spent."""
    run(2, _zero_gradients)


def _join(rank: int, world_size: int) -> list[tuple[str, float]]:
    results = []
    for unused in (False, True):
        ddp = make(find_unused_parameters=unused)
        state = lgreco.attach(ddp, CONFIG)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
        with ddp.join():
            for step in range(3 + 2 * rank):  # rank 0 runs out of data first
                optimizer.zero_grad()
                loss_of(ddp, batch_of(rank, step)).backward()
                optimizer.step()
        results.append((digest(ddp.parameters()), state.stats()["steps"]))
    return results


def test_ranks_with_uneven_inputs_join() -> None:
    """Under ddp.join() a rank without data takes part in every exchange; all end with the same parameters."""
    (parameters, steps), with_unused = same_on_all_ranks(run(3, _join))
    assert steps == 7
    assert with_unused == (parameters, steps)


def _join_divisor(rank: int, world_size: int) -> torch.Tensor:
    ddp = make()
    lgreco.attach(ddp, everything("dense(dtype=fp32)"))
    with ddp.join():
        for step in range(1 + rank):
            ddp.zero_grad()
            loss_of(ddp, batch_of(rank, step)).backward()
    return ddp.module.out.weight.grad.clone()


def _lone_gradient(rank: int, world_size: int) -> torch.Tensor:
    module = make().module
    loss_of(module, batch_of(1, 1)).backward()
    return module.out.weight.grad.clone()


def test_the_divisor_stays_the_world_size_under_join() -> None:
    """A joined rank contributes zeros: the sum is still divided by the initial world size."""
    delivered = run(2, _join_divisor)[1]
    assert torch.allclose(delivered, run(1, _lone_gradient)[0] / 2, rtol=1e-6)


def _sub_group(rank: int, world_size: int) -> list[str]:
    members = [0, 2]
    group = dist.new_group(members)
    if rank not in members:
        return []
    ddp = make(process_group=group)
    state = lgreco.attach(ddp, CONFIG)
    assert (state.rank, state.world_size) == (members.index(rank), 2)
    digests = train(ddp, members.index(rank), range(3))
    conventional = make(process_group=group)
    second = lgreco.State(CONFIG, group)
    conventional.register_comm_hook(second, lgreco.hook)
    assert train(conventional, members.index(rank), range(3)) == digests
    return [*digests, digest(part["sender"] for part in state.gather()["ranks"][1].values())]


def test_a_sub_group_trains_alone() -> None:
    """A DDP module on two of three ranks exchanges among those two, as a world of two would."""
    first, outside, second = run(3, _sub_group)
    assert first == second
    assert outside == []
    assert first[:3] == run(2, _train_with, {})[0][:3]


def _interleaved(rank: int, world_size: int) -> list[list[str]]:
    alone = _train_with(rank, world_size, {})[:3]
    modules = [make() for _ in range(3)]
    states = [lgreco.attach(modules[0], CONFIG), lgreco.attach(modules[1], everything("quantize(bits=2, block=64)"))]
    optimizers = [torch.optim.SGD(ddp.parameters(), lr=0.2) for ddp in modules]
    digests: list[list[str]] = [[], [], []]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [loss_of(ddp, batch_of(rank, step)) for ddp in modules]
        for loss in reversed(losses):
            loss.backward()
        for ddp, optimizer, seen in zip(modules, optimizers, digests, strict=True):
            optimizer.step()
            seen.append(digest(ddp.parameters()))
    assert digests[0] == alone
    assert digests[1] != alone
    assert [state.stats()["steps"] for state in states] == [3, 3]
    return digests


def test_several_modules_in_one_process_do_not_meet() -> None:
    """Two attached modules and one without a hook, their steps interleaved, train as each would alone."""
    same_on_all_ranks(run(2, _interleaved))


def _switched_off(rank: int, world_size: int) -> tuple[list[str], list[str]]:
    plain, attached = make(), make()
    state = lgreco.attach(attached, {"enabled": False})
    assert state.stats()["wire_bytes"] == 0
    result = train(plain, rank, range(3)), train(attached, rank, range(3))
    state.load_state_dict(state.state_dict())
    state.close()
    return result


def test_enabled_false_trains_dense() -> None:
    """With enabled: false attach leaves DDP as it was."""
    for plain, attached in run(2, _switched_off):
        assert plain == attached


def _warmup(rank: int, world_size: int) -> tuple[list[str], list[str], list[int]]:
    dense, warmed = make(), make()
    lgreco.attach(dense, everything("dense(dtype=fp32)"))
    state = lgreco.attach(warmed, everything(FOUR_BITS, warmup_steps=2))
    optimizer = torch.optim.SGD(warmed.parameters(), lr=0.2)
    digests, wire_bytes = [], []
    for step in range(4):
        digests += train(warmed, rank, [step], optimizer)
        wire_bytes.append(int(state.stats()["wire_bytes"]))
    return train(dense, rank, range(4)), digests, wire_bytes


def test_warm_up_steps_are_dense() -> None:
    """The first warmup_steps steps deliver what fp32 delivers and send as much; later ones send an eighth."""
    for dense, warmed, wire_bytes in run(2, _warmup):
        assert dense[:2] == warmed[:2]
        assert dense[2] != warmed[2]
        assert wire_bytes[1] == pytest.approx(wire_bytes[0], rel=0.01), "but for headers: DDP has formed other buckets"
    assert wire_bytes[1] > 6 * wire_bytes[2]
    assert wire_bytes[2] == wire_bytes[3]


def _stats(rank: int, world_size: int, choice: str) -> dict[str, float]:
    ddp = make(lambda: nn.Linear(96, 4096, bias=False))
    state = lgreco.attach(ddp, everything(choice))
    train(ddp, rank, range(2))
    return state.stats()


@pytest.mark.parametrize(
    ("choice", "bytes_per_element"),
    [("dense(dtype=fp32)", 4.0), ("dense(dtype=bf16)", 2.0), ("quantize(bits=4, block=128)", 0.5 + 8 / 128)],
)
def test_stats_count_what_is_sent(choice: str, bytes_per_element: float) -> None:
    """Over all ranks each element crosses 2 (W-1) times, and headers are small; dense_bytes is what fp32 would take."""
    numel = 96 * 4096
    for world_size in (2, 3):
        ranks = run(world_size, _stats, choice)
        sent = sum(stats["wire_bytes"] for stats in ranks)
        expected = 2 * (world_size - 1) * numel * bytes_per_element
        assert expected < sent < 1.01 * expected
        for stats in ranks:
            assert stats["steps"] == 2
            assert stats["dense_bytes"] == 2 * (world_size - 1) * 4 * numel // world_size
            residuals = 0.0 if choice == "dense(dtype=fp32)" else 2 * 4 * (1 + 1 / world_size)
            assert stats["residual_bytes_per_parameter"] == pytest.approx(residuals, rel=0.01)
            buffers = stats["buffer_bytes_per_parameter"]
            assert bytes_per_element < buffers < 2.1 * bytes_per_element
            assert stats["memory_bytes_per_parameter"] == stats["residual_bytes_per_parameter"] + buffers
