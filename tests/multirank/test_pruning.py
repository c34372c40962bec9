"""Pruning on several ranks: the same masks everywhere, differences named, resumed at any world size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ranks import run
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import Net, digest, everything, same_on_all_ranks

import lgreco
from lgreco.pruning import CubicSchedule, CyclicSchedule, Evolution, OBert, OneShotSchedule, Pruner, Regrowth

RAMP = CubicSchedule(0.0, 0.8, begin=1, end=5, every=2)


def _model(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net(24)


def _train(ddp: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, rank: int, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 24, generator=torch.Generator().manual_seed(100 * step + rank))
        optimizer.zero_grad()
        torch.autograd.backward((ddp(inputs) - 1.0).square().mean())
        optimizer.step()
        pruner.step()


def _digest(ddp: Any, pruner: Pruner) -> str:
    assert all(not ddp.module.get_parameter(name)[~mask].any() for name, mask in pruner.masks.items())
    return digest([*ddp.module.parameters(), *pruner.masks.values()])


def _prune(rank: int, world_size: int, before: bool, hook: str | None, made: dict[str, Any]) -> tuple[str, float]:
    """Ranks begin with weights of their own, which DDP makes one."""
    model = _model(rank)
    schedule = made.get("schedule", RAMP)
    rest = {key: value for key, value in made.items() if key != "schedule"}
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = Pruner(model, optimizer, schedule, **rest) if before else None
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.01, gradient_as_bucket_view=before)
    if hook:
        lgreco.attach(ddp, everything(hook))
    if pruner is None:
        pruner = Pruner(ddp, optimizer, schedule, **rest)
    _train(ddp, optimizer, pruner, rank, range(6))
    return _digest(ddp, pruner), pruner.report().sparsity


@pytest.mark.parametrize("before", [True, False], ids=["before-wrapping", "after-wrapping"])
@pytest.mark.parametrize(
    ("hook", "made"),
    [
        (None, {}),
        ("quantize(bits=4, block=64)", {"criterion": "movement"}),
        (None, {"criterion": "random", "structure": "2:4", "schedule": CubicSchedule(0.0, 0.5, 1, 5, 2)}),
        ("dense(dtype=fp32)", {"criterion": "taylor", "allocation": "solver"}),
        (None, {"regrowth": Regrowth(0.3, 2)}),
        (None, {"schedule": CyclicSchedule(low=0.3, final=0.7, begin=1, end=6, every=3, recover_steps=1)}),
    ],
    ids=["magnitude", "movement-quantized", "random-2:4", "taylor-solver", "regrowth", "falling"],
)
def test_all_ranks_hold_the_same_masks(before: bool, hook: str | None, made: dict[str, Any]) -> None:
    _, sparsity = same_on_all_ranks(run(3, _prune, before, hook, made))
    assert sparsity == pytest.approx(made.get("schedule", RAMP).final, abs=2e-3)


def _ties(rank: int, world_size: int) -> str:
    model = _model(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    ddp = DistributedDataParallel(model)
    pruner = Pruner(ddp, None, OneShotSchedule(0.5))
    pruner.prune(0.5)
    return _digest(ddp, pruner)


def test_ties_fall_alike_on_all_ranks() -> None:
    same_on_all_ranks(run(2, _ties))


def _differ(rank: int, world_size: int, allocation: str) -> str:
    model = _model(0)
    pruner = Pruner(model, None, OneShotSchedule(0.5), allocation=allocation)
    if rank == 1:
        with torch.no_grad():
            model.odd.weight.add_(torch.randn_like(model.odd.weight))
    before = digest(model.parameters())
    with pytest.raises(RuntimeError) as raised:
        pruner.prune(0.5)
    assert digest(model.parameters()) == before
    return str(raised.value)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_forced_difference_is_detected_and_named(allocation: str) -> None:
    """And leaves the weights as they were."""
    message = same_on_all_ranks(run(3, _differ, allocation))
    assert "masks differ from rank 0's at step 0" in message
    assert '"odd.weight" on rank 1' in message
    assert ("wide.weight" in message) is (allocation == "global")


def _other_layers(rank: int, world_size: int) -> str:
    pruner = Pruner(_model(0), None, OneShotSchedule(0.5), layers=["wide.*"] if rank == 2 else None)
    with pytest.raises(RuntimeError) as raised:
        pruner.prune(0.5)
    return str(raised.value)


def test_ranks_that_prune_other_layers_are_named() -> None:
    assert "rank 2 and rank 0 prune different layers" in same_on_all_ranks(run(3, _other_layers))


def _start(rank: int, world_size: int, steps: int) -> Any:
    model = _model(0)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    ddp = DistributedDataParallel(model)
    pruner = Pruner(ddp, optimizer, RAMP, regrowth=Regrowth(0.2, 1))
    _train(ddp, optimizer, pruner, rank, range(steps))
    return ddp.state_dict(), optimizer.state_dict(), pruner.state_dict(), _digest(ddp, pruner)


def _resume(rank: int, world_size: int, saved: Any, start: int, wrapped: bool) -> tuple[str, str, float]:
    saved = copy.deepcopy(saved)  # its tensors lie in memory that the ranks share
    model = _model(7)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = None if wrapped else Pruner(model, optimizer, RAMP, regrowth=Regrowth(0.2, 1))
    ddp = DistributedDataParallel(model)
    pruner = pruner or Pruner(ddp, optimizer, RAMP, regrowth=Regrowth(0.2, 1))
    ddp.load_state_dict(saved[0], strict=True)
    optimizer.load_state_dict(saved[1])
    pruner.load_state_dict(saved[2])
    loaded = digest(pruner.masks.values())
    _train(ddp, optimizer, pruner, rank, range(start, 6))
    return loaded, _digest(ddp, pruner), pruner.report().sparsity


@pytest.mark.parametrize("wrapped", [True, False])
def test_resumed_runs_hold_the_same_masks_also_at_another_world_size(wrapped: bool) -> None:
    straight = same_on_all_ranks([each[3] for each in run(2, _start, 6)])
    saved = run(2, _start, 4)[0]
    _, ended, _ = same_on_all_ranks(run(2, _resume, saved, 4, wrapped))
    assert ended == straight, "bit for bit at the same world size"
    loaded, _, sparsity = same_on_all_ranks(run(3, _resume, saved, 4, wrapped))
    assert sparsity == pytest.approx(0.8, abs=2e-3)
    assert loaded == same_on_all_ranks(run(1, _resume, saved, 4, wrapped))[0]


def _bytes(rank: int, world_size: int) -> tuple[int, int]:
    model = _model(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ddp = DistributedDataParallel(model)
    pruner = Pruner(ddp, optimizer, RAMP, regrowth=Regrowth(0.2, window=2))
    _train(ddp, optimizer, pruner, rank, range(6))
    report = pruner.report()
    return report.regrowth_bytes, report.numel


def test_the_bytes_of_regrowth_are_counted() -> None:
    """Updates after steps 1, 3 and 5, windows of at most 2 steps: 5 dense steps."""
    sent, numel = same_on_all_ranks(run(2, _bytes))
    assert sent == 5 * 4 * numel


def _obert(rank: int, world_size: int, total: int) -> tuple[Any, int]:
    model = _model(0)
    inputs = torch.randn(total, 24, generator=torch.Generator().manual_seed(5))

    def loss(sample: int) -> torch.Tensor:
        at = sample * world_size + rank  # so that samples arrive in the same order at any world size
        return (model(inputs[at : at + 1]) - 1.0).square().mean()

    criterion = OBert(loss, total // world_size, block=16, damping=1e-3)
    pruner = Pruner(model, None, OneShotSchedule(0.6), criterion=criterion)
    criterion.prepare({name: model.get_parameter(name) for name in _pruned(pruner)}, {}, 0)
    blocks = criterion._inverse.numel()
    pruner.prune(0.6)
    return {name: parameter.tolist() for name, parameter in model.named_parameters()}, blocks


def _pruned(pruner: Pruner) -> list[str]:
    return [layer.name for layer in pruner.report().layers]


def test_obert_is_the_same_at_any_world_size_and_its_memory_falls_as_one_over_w() -> None:
    alone, whole = run(1, _obert, 8)[0]
    shares = run(4, _obert, 8)
    assert same_on_all_ranks([weights for weights, _ in shares]) == alone
    assert sum(share for _, share in shares) == whole
    assert max(share for _, share in shares) <= whole / 4 + 16 * 16


def _evolve(rank: int, world_size: int) -> str:
    model = _model(0)
    inputs = torch.randn(4, 24, generator=torch.Generator().manual_seed(rank))

    def loss() -> float:
        with torch.no_grad():
            return float((model(inputs) - 1.0).square().mean())

    pruner = Pruner(model, None, OneShotSchedule(0.7), allocation=Evolution(loss, generations=3, offspring=3))
    pruner.prune(0.7)
    return digest([*model.parameters(), *pruner.masks.values()])


def test_evolution_with_data_of_each_rank_gives_the_same_masks() -> None:
    same_on_all_ranks(run(2, _evolve))


def _attached(rank: int, world_size: int, attached: bool) -> tuple[str, list[int]]:
    model = _model(0)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    ddp = DistributedDataParallel(model)
    state = lgreco.attach(ddp, everything("dense(dtype=fp32)"))
    pruner = Pruner(ddp, optimizer, RAMP)
    if attached:
        pruner.attach(state)
    sent = []
    for step in range(7):
        _train(ddp, optimizer, pruner, rank, range(step, step + 1))
        sent.append(int(state.stats()["wire_bytes"]))
    return _digest(ddp, pruner), sent


def test_attached_to_the_exchange_pruned_weights_send_nothing_and_no_bit_changes() -> None:
    whole = run(4, _attached, False)
    masked = run(4, _attached, True)
    assert same_on_all_ranks([each for each, _ in masked]) == same_on_all_ranks([each for each, _ in whole])
    for (_, dense), (_, sent) in zip(whole, masked, strict=True):
        assert dense[-1] == dense[0] == sent[0]
        assert sent[-1] < 0.35 * dense[-1], "a fifth of the matrices, biases and headers whole"
