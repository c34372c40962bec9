"""A mask update: what is pruned does not compete, and an update is applied as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lgreco.pruning import CubicSchedule, OneShotSchedule, Pruner


def _net(layers: int = 2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(layers)])


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, step: int) -> None:
    inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (model(inputs) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    pruner.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4),
        lambda p: torch.optim.Muon(p, lr=0.2),
        lambda p: torch.optim.Adam(p, 0.01, eps=0.0),
        lambda p: torch.optim.Adagrad(p, 0.01, eps=0.0),
    ],
    ids=["lbfgs", "muon", "adam-eps0", "adagrad-eps0"],
)
def test_pruned_weights_that_an_optimizer_moves_without_a_gradient_stay_pruned(
    make: Callable[[Any], torch.optim.Optimizer],
) -> None:
    model = _net()
    optimizer = make(model.parameters())
    pruner = Pruner(model, optimizer, CubicSchedule(0.3, 0.8, begin=1, end=9, every=2))
    before: dict[str, torch.Tensor] = {}
    for step in range(10):
        _train(model, optimizer, pruner, step)
        assert not any((mask & ~before[name]).any() for name, mask in pruner.masks.items() if name in before)
        before = pruner.masks
    assert len(pruner.changes) == 5
    assert pruner.report().sparsity == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("structure", ["unstructured", "rows", "2:4"])
def test_an_update_that_raises_has_changed_nothing_and_is_still_due(allocation: str, structure: str) -> None:
    model = _net(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    pruner = Pruner(model, optimizer, OneShotSchedule(0.5, at=2), structure=structure, allocation=allocation)
    _train(model, optimizer, pruner, 0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    optimizer.step()
    with pytest.raises(ValueError, match=r'layer "1\.weight": scores must be numbers, got NaN'):
        pruner.step()
    assert not pruner.masks
    assert not pruner.changes
    with torch.no_grad():
        model[1].weight[0, 0] = before["1.weight"][0, 0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    optimizer.step()
    assert pruner.step(), "the update is made up for"
    assert pruner.report().sparsity == pytest.approx(0.5, abs=0.02)
