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
from torch.utils.checkpoint import checkpoint
from training import Net, batch_of, digest, everything, loss_of, make, same_on_all_ranks, state_digest, train

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
    """gradient_as_bucket_view, find_unused_parameters, static_graph, lazy_bucket_allocation: the same bits as without."""
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
    ddp, whole = make(), make()
    state, reference = lgreco.attach(ddp, CONFIG), lgreco.attach(whole, CONFIG)
    digests = []
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.2) for module in (ddp, whole)]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with ddp.no_sync():
            for micro in range(2):
                loss_of(ddp, batch_of(rank, 10 * step + micro)).backward()
        loss_of(ddp, batch_of(rank, 10 * step + 2)).backward()
        # The same sum in one backward, of losses that are added in the same order.
        total = sum(loss_of(whole.module, batch_of(rank, 10 * step + micro)) for micro in range(3))
        gradients = torch.autograd.grad(total, list(whole.module.parameters()))
        surrogate = whole(batch_of(rank, 0)).sum() * 0
        for parameter, gradient in zip(whole.module.parameters(), gradients, strict=True):
            surrogate = surrogate + (parameter * gradient).sum()
        surrogate.backward()
        for one, other in zip(ddp.parameters(), whole.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-2, atol=1e-2 * float(other.grad.abs().max()) + 1e-7)
        for optimizer in optimizers:
            optimizer.step()
        digests.append(digest(ddp.parameters()))
    assert state.stats()["steps"] == reference.stats()["steps"] == 3
    return digests


def test_gradients_accumulate_under_no_sync() -> None:
    """no_sync exchanges nothing; the backward after it exchanges the sum, as one step."""
    same_on_all_ranks(run(2, _accumulation))


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


def _join(rank: int, world_size: int) -> tuple[str, float]:
    ddp = make()
    state = lgreco.attach(ddp, CONFIG)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    steps = 3 + 2 * rank  # rank 0 runs out of data first
    with ddp.join():
        for step in range(steps):
            optimizer.zero_grad()
            loss_of(ddp, batch_of(rank, step)).backward()
            optimizer.step()
    return digest(ddp.parameters()), state.stats()["steps"]


def test_ranks_with_uneven_inputs_join() -> None:
    """Under ddp.join() a rank without data takes part in every exchange; all end with the same parameters."""
    _, steps = same_on_all_ranks(run(3, _join))
    assert steps == 7


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


class _Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3)
        self.out = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.out(torch.relu(self.second(x)).mean((2, 3)))


def _pictures(rank: int, world_size: int) -> list[str]:
    digests = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for as_view in (False, True):
            ddp = make(lambda: _Pictures().to(memory_format=memory_format), gradient_as_bucket_view=as_view)  # noqa: B023
            state = lgreco.attach(ddp, CONFIG)
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
            generator = torch.Generator().manual_seed(rank)
            for _ in range(3):
                x = torch.randn(2, 3, 10, 10, generator=generator).to(memory_format=memory_format)
                optimizer.zero_grad()
                ddp(x).square().mean().backward()
                optimizer.step()
            assert ddp.module.second.weight.is_contiguous(memory_format=memory_format)
            assert state.plan["second.weight"] == lgreco.parse(FOUR_BITS)
            digests.append(digest(ddp.parameters()))
            state.close()
    return digests


def test_channels_last_convolutions_train() -> None:
    """A net with convolutions and batch norm, its weights in either memory format."""
    digests = same_on_all_ranks(run(2, _pictures))
    assert digests[0] == digests[1]
    assert digests[2] == digests[3]


def _sync_batch_norm(rank: int, world_size: int) -> str:
    ddp = make(lambda: nn.SyncBatchNorm.convert_sync_batchnorm(_Pictures()))
    lgreco.attach(ddp, CONFIG)
    x = torch.randn(2, 3, 10, 10)
    with pytest.raises((ValueError, RuntimeError)):
        ddp(x)
    ddp.eval()
    ddp(x).square().mean().backward()
    return digest(parameter.grad for parameter in ddp.parameters())


def test_sync_batch_norm_takes_part() -> None:
    """torch's SyncBatchNorm normalises over ranks on GPUs alone (tests/gpu); on a CPU its parameters are layers too."""
    same_on_all_ranks(run(2, _sync_batch_norm))


class _Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.wide(x))
        x = checkpoint(lambda inner: torch.tanh(self.narrow(torch.tanh(self.odd(inner)))), x, use_reentrant=self.reentrant)
        return self.out(x) * self.gain


def _recomputing(rank: int, world_size: int) -> list[list[str]]:
    runs = []
    for make_model, options in (
        (Net, {}),
        (lambda: _Checkpointed(False), {}),
        (lambda: _Checkpointed(True), {}),
        (lambda: _Checkpointed(True), {"static_graph": True}),
    ):
        ddp = make(make_model, **options)
        lgreco.attach(ddp, CONFIG)
        runs.append(train(ddp, rank, range(3)))
    return runs


def test_activation_checkpointing_changes_no_bit() -> None:
    """Activations that are computed twice, in either of torch's ways, give the same bits."""
    for runs in run(2, _recomputing):
        assert all(digests == runs[0] for digests in runs)


def _compiled(rank: int, world_size: int) -> list[str]:
    ddp = make(Net)
    lgreco.attach(ddp, CONFIG)
    compiled = torch.compile(ddp, backend="aot_eager")
    inside = DistributedDataParallel(torch.compile(make().module, backend="aot_eager"), bucket_cap_mb=0.1)
    state = lgreco.attach(inside, everything(FOUR_BITS, layers={"out.weight": "dense(dtype=bf16)"}))
    assert state.plan["out.weight"] == lgreco.parse("dense(dtype=bf16)"), "names are those of the model, not of its wrapper"
    return [*train(compiled, rank, range(3)), *train(inside, rank, range(3))]


def test_compiled_models_train() -> None:
    """torch.compile around DDP and inside it."""
    same_on_all_ranks(run(2, _compiled))


def _clipped(rank: int, world_size: int) -> list[tuple[str, float]]:
    ddp = make()
    lgreco.attach(ddp, CONFIG)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    results = []
    for step in range(3):
        optimizer.zero_grad()
        (1e3 * loss_of(ddp, batch_of(rank, step))).backward()
        norm = torch.nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
        optimizer.step()
        results.append((digest(ddp.parameters()), float(norm)))
    return results


def test_clipping_sees_the_same_norm_on_every_rank() -> None:
    """Gradients are averaged before backward returns, so clipping agrees on all ranks."""
    same_on_all_ranks(run(3, _clipped))


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
        assert wire_bytes[0] == wire_bytes[1] > 6 * wire_bytes[2] == 6 * wire_bytes[3]


def _diverged(rank: int, world_size: int, check_every: int) -> str | None:
    ddp = make()
    lgreco.attach(ddp, everything(FOUR_BITS, check_replicas_every=check_every))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    train(ddp, rank, range(4), optimizer)
    if rank == 2:
        with torch.no_grad():
            ddp.module.gain += 1e-6
    try:
        train(ddp, rank, range(4, 8), optimizer)
    except RuntimeError as error:
        return str(error)
    return None


def test_diverged_replicas_are_found() -> None:
    """check_replicas_every: N finds a replica that differs within N steps, and names its rank; 0 never looks."""
    messages = run(3, _diverged, 3)
    assert all(message and "check_replicas_every" in message for message in messages), messages
    assert all("rank 2" in message for message in messages), messages
    assert run(3, _diverged, 0) == [None] * 3


class _Odd(nn.Module):
    """Layers of no element, of one, and scalars, among others."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.empty(0, 7))
        self.one = nn.Parameter(torch.ones(1, 1))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.prime = nn.Parameter(torch.ones(96, 1009) / 96)
        self.frozen = nn.Parameter(torch.ones(96), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x * self.frozen) @ self.prime) * self.one * self.scalar + self.none.sum()


class _Nothing(nn.Module):
    """Only layers of no element."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.empty(0, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() + self.none.sum()


def _odd_sizes(rank: int, world_size: int) -> list[str]:
    digests = []
    for choice in (FOUR_BITS, "quantize(bits=1, block=32, grid=symmetric)", "dense(dtype=bf16)", "dense(dtype=fp32)"):
        ddp = make(_Odd)
        state = lgreco.attach(ddp, everything(choice, layers={"*": choice}))
        assert set(state.plan.values()) == {lgreco.parse(choice)}
        assert list(state.plan) == ["none", "one", "scalar", "prime"]
        digests += [*train(ddp, rank, range(3)), digest([])]
        assert ddp.module.one.isfinite().all()
        assert float(ddp.module.one) != 1.0
        state.load_state_dict(state.state_dict())
        state.close()
    empty = make(_Nothing)
    lgreco.attach(empty, everything(FOUR_BITS, layers={"*": FOUR_BITS}))
    return digests + train(empty, rank, range(2))


@pytest.mark.parametrize("world_size", [2, 3])
def test_odd_sizes_are_ordinary(world_size: int) -> None:
    """Layers of no element, of one, scalars, primes and frozen ones train with every codec."""
    same_on_all_ranks(run(world_size, _odd_sizes))


