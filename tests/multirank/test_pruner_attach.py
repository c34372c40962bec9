"""A pruner joined with an exchange knows layers by their parameters, and ranks by DDP's group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from training import digest, everything, same_on_all_ranks

import lgreco
from lgreco.pruning import CubicSchedule, Evolution, OBert, OneShotSchedule, Pruner

RAMP = CubicSchedule(0.0, 0.8, begin=1, end=4, every=1)
DENSE = everything("dense(dtype=fp32)")


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 24))


def _train(ddp: Any, optimizer: Any, pruner: Pruner, rank: int, steps: int = 6) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(3, 24, generator=torch.Generator().manual_seed(100 * step + rank))
        (ddp(inputs) - 1.0).square().mean().backward()
        optimizer.step()
        pruner.step()
        weights = {id(each) for each in ddp.parameters()}
        for layer, mask in pruner.masks.items():
            weight = pruner._layers[layer]
            assert id(weight) in weights
            assert not weight[~mask].any()


def _two_models(rank: int, world_size: int) -> tuple[str, str]:
    """Layers of one name and shape in both."""
    torch.manual_seed(0)
    one, two = (DistributedDataParallel(_net()) for _ in range(2))
    states = [lgreco.attach(each, DENSE) for each in (one, two)]
    optimizer = torch.optim.AdamW(one.parameters(), 0.01)
    pruner = Pruner(one, optimizer, RAMP)
    with pytest.raises(ValueError, match=r"state of the model that is pruned, got one that exchanges none") as raised:
        pruner.attach(states[1])
    pruner.attach(states[0])
    _train(one, optimizer, pruner, rank)
    assert set(states[0].masks) == {"0.weight", "2.weight"}
    assert not states[1].masks
    return str(raised.value), digest(one.parameters())


def test_the_state_of_another_model_is_refused() -> None:
    same_on_all_ranks(run(2, _two_models))


class _Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _net()
        self.ignored = nn.Linear(24, 24)
        self.head = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.ignored(self.body(x)))


def _part(rank: int, world_size: int) -> tuple[str, list[str]]:
    torch.manual_seed(0)
    whole = _Whole()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, ["ignored.weight", "ignored.bias"])
    ddp = DistributedDataParallel(whole)
    state = lgreco.attach(ddp, DENSE)
    optimizer = torch.optim.SGD([*whole.body.parameters(), *whole.head.parameters()], 0.01)
    pruner = Pruner(whole.body, optimizer, RAMP)
    pruner.attach(state)
    _train(ddp, optimizer, pruner, rank)
    assert pruner.report().sparsity == pytest.approx(0.8, abs=2e-3)
    other = Pruner(whole, None, RAMP, layers=["ignored.weight", "head.weight"])
    other.attach(state)
    with torch.no_grad():  # DDP leaves it alone, so that its copies are this test's to keep equal
        whole.ignored.weight.fill_(1.0)
    other.prune(0.5)
    return digest(optimizer.param_groups[0]["params"]), sorted(state.masks)


def test_a_part_of_the_model_is_pruned_under_the_names_of_the_whole() -> None:
    _, masked = same_on_all_ranks(run(2, _part))
    assert masked == ["body.0.weight", "body.2.weight", "head.weight"]


def _subgroups(rank: int, world_size: int) -> tuple[str, float]:
    """Each half trains a model of its own, and for another number of steps."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = rank // 2
    torch.manual_seed(half)
    ddp = DistributedDataParallel(_net(), process_group=groups[half])
    state = lgreco.attach(ddp, DENSE)
    optimizer = torch.optim.AdamW(ddp.parameters(), 0.01)
    pruner = Pruner(ddp, optimizer, RAMP)
    pruner.attach(state)
    _train(ddp, optimizer, pruner, rank, steps=5 + 2 * half)
    return digest(ddp.parameters()), pruner.report().sparsity


def test_masks_are_compared_in_the_group_of_ddp() -> None:
    results = run(4, _subgroups)
    assert results[0] == results[1]
    assert results[2] == results[3]
    assert results[0][0] != results[2][0]


def _subgroup_alone(rank: int, world_size: int) -> str | None:
    """Samples and candidates are shared among the ranks of DDP's group; the other ranks do nothing at all."""
    group = dist.new_group([0, 1])
    if rank > 1:
        return None
    torch.manual_seed(0)
    ddp = DistributedDataParallel(_net(), process_group=group)
    inputs = torch.randn(20, 24, generator=torch.Generator().manual_seed(rank))
    criterion = OBert(lambda sample: ddp.module(inputs[sample]).square().sum(), 20, block=8, damping=1e-3)
    search = Evolution(lambda: float(ddp.module(inputs).square().mean()), generations=2, offspring=2)
    Pruner(ddp, None, RAMP, criterion=criterion, allocation=search).prune(0.5)
    return digest(ddp.parameters())


def test_samples_are_shared_in_the_group_of_ddp() -> None:
    one, other, *_ = run(3, _subgroup_alone)
    assert one == other is not None


def _sharded(rank: int, world_size: int) -> tuple[str, int]:
    torch.manual_seed(0)
    ddp = DistributedDataParallel(_net())
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.AdamW, lr=0.01)
    pruner = Pruner(ddp, optimizer, RAMP, criterion="taylor")
    _train(ddp, optimizer, pruner, rank, steps=1)
    for step in range(1, 6):
        _train(ddp, optimizer, pruner, rank + 10 * step, steps=1)
        for name, mask in pruner.masks.items():
            for value in optimizer.optim.state.get(pruner._layers[name], {}).values():
                assert value.shape != mask.shape or not value[~mask].any()
    return digest(ddp.parameters()), pruner.steps


def test_a_sharded_optimizer_keeps_no_moment_of_what_is_pruned() -> None:
    assert same_on_all_ranks(run(2, _sharded))[1] == 6


def _fully_sharded(rank: int, world_size: int) -> str:
    model = _net()
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    with pytest.raises(ValueError, match=r'layer "0\.weight" is sharded .* prune under DDP, or before') as raised:
        Pruner(model, None, RAMP)
    return str(raised.value)


def test_sharded_layers_are_refused() -> None:
    same_on_all_ranks(run(2, _fully_sharded))


def _conventional(rank: int, world_size: int, first: bool) -> tuple[str, list[str], str]:
    """The whole has a layer of the name and shape that the pruned part's layer has in the part."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(24, 24), nn.Sequential(nn.Linear(24, 24), nn.Tanh()))
    ddp = DistributedDataParallel(whole)
    state = lgreco.State(DENSE)
    ddp.register_comm_hook(state, lgreco.hook)
    optimizer = torch.optim.SGD(whole.parameters(), 0.01)
    late = OneShotSchedule(0.8, at=3)
    part, other = Pruner(whole[1], optimizer, late), Pruner(_net(), None, late)
    if first:
        part.prune(0.5)
    part.attach(state)
    other.attach(state)
    other.prune(0.5)
    _train(ddp, optimizer, part, rank, steps=1)
    assert sorted(state.masks) == (["1.0.weight"] if first else [])
    with pytest.raises(ValueError, match="state of the model that is pruned, got one that exchanges none") as raised:
        other.step()
    _train(ddp, optimizer, part, rank)
    return digest(whole.parameters()), sorted(state.masks), str(raised.value)


@pytest.mark.parametrize("first", [True, False], ids=["pruned-before", "pruned-later"])
def test_a_state_that_is_yet_to_learn_its_layers_hears_of_masks_by_their_names_in_ddp(first: bool) -> None:
    assert same_on_all_ranks(run(2, _conventional, first))[1] == ["1.0.weight"]
