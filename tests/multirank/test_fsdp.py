"""FSDP2 over Gloo: the coded scatter-reduce delivers what was sent, leaves the rest in the residual, and trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankFailed, run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training import Net, batch_of, digest, loss_of, same_on_all_ranks

import lgreco.fsdp
from lgreco.choice import Quantize
from lgreco.fsdp import CodedReduceScatter


def _model() -> Net:
    torch.manual_seed(7)
    model = Net()
    model.gain = nn.Parameter(torch.ones(1))  # FSDP shards no scalars
    return model


def _sharded(mesh_shape: tuple[int, ...]) -> nn.Module:
    model = _model()
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")[-len(mesh_shape) :])
    for part in (model.wide, model.odd, model):
        fully_shard(part, mesh=mesh)
    return model


def _train(model: nn.Module, rank: int, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, batch_of(rank, step)).backward()
        optimizer.step()


def _shards(model: nn.Module) -> str:
    return digest(parameter.to_local() for parameter in model.parameters())  # type: ignore[attr-defined]


def _whole(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]


def _coded_and_dense(rank: int, world_size: int, mesh_shape: tuple[int, ...]) -> Any:
    model = _sharded(mesh_shape)
    compression = lgreco.fsdp.attach(model, "quantize(bits=4, block=64)")
    _train(model, rank, range(6))
    dense = _sharded(mesh_shape)
    _train(dense, rank, range(6))
    return _shards(model), _whole(model), _whole(dense), compression.stats()


@pytest.mark.parametrize("world_size", [2, 3])
def test_it_trains_with_few_bytes_close_to_dense(world_size: int) -> None:
    answers = run(world_size, _coded_and_dense, (world_size,))
    same_on_all_ranks([digest(whole) for _, whole, _, _ in answers])
    _, coded, dense, stats = answers[0]
    assert stats["calls"] == 3 * 6
    assert 0 < stats["wire_bytes"] < stats["dense_bytes"] / 4
    start = [parameter.detach() for parameter in _model().parameters()]
    moved = sum(float((a - b).square().sum()) for a, b in zip(dense, start, strict=True))
    apart = sum(float((a - b).square().sum()) for a, b in zip(coded, dense, strict=True))
    assert 0 < apart < 0.05 * moved


def test_replicas_of_a_shard_are_equal() -> None:
    shards = [shard for shard, _, _, _ in run(4, _coded_and_dense, (2, 2))]
    assert shards[0] == shards[2]
    assert shards[1] == shards[3]
    assert shards[0] != shards[1]


def _exchange(rank: int, world_size: int, op: Any, dtype: torch.dtype) -> Any:
    exchange = CodedReduceScatter(Quantize(bits=3, block=32), seed=0, layer=0)
    sent, delivered = [], []
    for step in range(3):
        gradient = torch.randn(world_size * 50, generator=torch.Generator().manual_seed(10 * step + rank)).to(dtype)
        output = torch.empty(50, dtype=dtype)
        exchange(output, gradient, dist.group.WORLD, op)
        sent.append(gradient.float())
        delivered.append(output.float())
    return sum(sent), exchange.residual(), sum(delivered)


@pytest.mark.parametrize("op", [dist.ReduceOp.AVG, dist.ReduceOp.SUM], ids=["avg", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_is_not_delivered_is_in_the_residuals(op: Any, dtype: torch.dtype) -> None:
    answers = run(3, _exchange, op, dtype)
    due = sum(sent - residual for sent, residual, _ in answers) / (3 if op == dist.ReduceOp.AVG else 1)
    assert all(residual.abs().max() > 0.01 for _, residual, _ in answers)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(torch.cat([delivered for _, _, delivered in answers]), due, rtol=0, atol=tolerance)


def _resumed(rank: int, world_size: int, discards: bool) -> Any:
    straight = _sharded((world_size,))
    lgreco.fsdp.attach(straight)
    _train(straight, rank, range(4))
    model = _sharded((world_size,))
    first = lgreco.fsdp.attach(model)
    _train(model, rank, range(2))
    saved = first.state_dict()
    if discards:  # a step whose gradients nobody uses
        loss_of(model, 100 * batch_of(rank, 99)).backward()
        first.discard()
        model.zero_grad()
        for name, part in first.parts.items():
            assert torch.equal(part.residual(), saved["parts"][name]["residual"])
    else:
        lgreco.fsdp.attach(model).load_state_dict(saved)
    _train(model, rank, range(2, 4))
    return _shards(model) == _shards(straight)


@pytest.mark.parametrize("discards", [False, True], ids=["saved", "discarded"])
def test_saving_and_discarding_leave_no_trace(discards: bool) -> None:
    assert run(2, _resumed, discards) == [True, True]


def _refuses(rank: int, world_size: int, case: str) -> None:
    if case == "choice":
        lgreco.fsdp.attach(_sharded((world_size,)), "topk(density=0.01)")
    elif case == "plain":
        lgreco.fsdp.attach(Net())
    elif case == "factor":
        model = _sharded((world_size,))
        lgreco.fsdp.attach(model)
        model.set_gradient_divide_factor(3.0)  # type: ignore[operator]
        loss_of(model, batch_of(rank, 0)).backward()
    else:
        compression = lgreco.fsdp.attach(_sharded((world_size,)))
        compression.load_state_dict({**compression.state_dict(), "world_size": 4})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("choice", r"coded with quantize\(\.\.\.\) only, got topk"),
        ("plain", "has no FSDPModule"),
        ("factor", "takes AVG or SUM"),
        ("world", "this is the state of rank . of 4, loaded on rank . of 2"),
    ],
)
def test_it_says_what_it_cannot_do(case: str, message: str) -> None:
    with pytest.raises(RankFailed, match=message):
        run(2, _refuses, case)
