"""Regrowth goes by gradients that there are: where none is known, nothing comes back in place of kept weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lgreco.pruning import ConstantSchedule, Pruner, Regrowth


def _pruner(model: nn.Module, schedule: ConstantSchedule, window: int = 1, **more: Any) -> tuple[Any, Pruner]:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return optimizer, Pruner(model, optimizer, schedule, regrowth=Regrowth(0.3, window), **more)


def _layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(10, 10, bias=False)


def _loss(model: nn.Module, step: int) -> torch.Tensor:
    inputs = torch.randn(4, 10, generator=torch.Generator().manual_seed(step))
    return (model(inputs) - 1.0).square().mean()


def _train(model: nn.Module, optimizer: Any, pruner: Pruner, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        _loss(model, step).backward()
        optimizer.step()
        pruner.step()


def _grown(pruner: Pruner, before: dict[str, torch.Tensor]) -> int:
    return sum(int((mask & ~before[name]).sum()) for name, mask in pruner.masks.items())


def test_pruning_at_once_in_an_open_window_without_gradients_goes_by_the_criterion_alone() -> None:
    model = _layer()
    largest = model.weight.detach().abs().flatten().topk(50).indices
    _, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=9, every=1))
    pruner.prune(0.5)
    assert pruner.masks["weight"].flatten()[largest].all()


def test_pruning_at_once_leaves_the_scheduled_regrowth_its_window() -> None:
    model = _layer()
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=9, every=3))
    _train(model, optimizer, pruner, range(3))
    pruner.prune(0.5)
    before = pruner.masks
    _train(model, optimizer, pruner, range(3, 4))
    assert pruner.changes[-1].step == 4
    assert _grown(pruner, before) == 15
    pruner.finalize()
    pruner.prune(0.6)
    assert not pruner._window.open, "nothing of the pruner is left on the model"


def test_a_window_of_which_every_gradient_was_dropped_brings_nothing_back() -> None:
    model = _layer()
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=3, every=2))
    _train(model, optimizer, pruner, range(2))
    before = pruner.masks
    optimizer.zero_grad()
    (_loss(model, 2) * torch.inf).backward()
    model.weight.grad.zero_()  # as a caller who drops what is not finite by himself
    optimizer.step()
    assert pruner.step()
    assert _grown(pruner, before) == 0


def test_a_layer_without_a_gradient_keeps_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(10, 10, bias=False) for name in ("used", "idle")})
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=9, every=3), allocation="uniform")
    history = []
    for step in range(8):
        optimizer.zero_grad()
        _loss(model["used"], step).backward()
        optimizer.step()
        pruner.step()
        history.append(pruner.masks)
    first, *_ = history
    assert torch.equal(pruner.masks["idle.weight"], first["idle.weight"])
    assert model["idle"].weight.count_nonzero() == 50
    assert not torch.equal(pruner.masks["used.weight"], first["used.weight"])


def test_no_more_comes_back_than_has_a_gradient() -> None:
    model = _layer()
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=3, every=2))
    _train(model, optimizer, pruner, range(2))
    before = pruner.masks
    (row, column), *_ = (~before["weight"]).nonzero().tolist()
    optimizer.zero_grad()
    model.weight[row, column].backward()
    optimizer.step()
    assert pruner.step()
    assert _grown(pruner, before) == 1
    assert pruner.masks["weight"][row, column]


@pytest.mark.filterwarnings("ignore:Using backward")
def test_only_what_is_added_to_the_gradients_counts_and_keeps_no_graph() -> None:
    model = _layer()
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=9, every=8), window=8)
    _train(model, optimizer, pruner, range(1))
    expected = torch.zeros(10, 10)
    for step in range(1, 4):
        optimizer.zero_grad()
        loss = _loss(model, step)
        (slope,) = torch.autograd.grad(loss, model.weight, create_graph=True)  # a probe, and a penalty on it
        penalized = loss + 0.1 * slope.square().sum()
        expected += torch.autograd.grad(penalized, model.weight, retain_graph=True)[0]
        penalized.backward(create_graph=step == 2)
        model.weight.grad = model.weight.grad.detach()
        optimizer.step()
        pruner.step()
    sums = pruner.state_dict()["regrowth"]["sums"]["weight"]
    assert not sums.requires_grad
    torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize("update_first", [True, False])
def test_a_step_is_unscaled_by_the_scale_of_its_own_backward(update_first: bool) -> None:
    model = _layer()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=9, every=8), window=8, scaler=scaler)
    expected = torch.zeros(10, 10)
    scales = set()
    for step in range(6):
        optimizer.zero_grad()
        loss = _loss(model, step)
        expected += torch.autograd.grad(loss, model.weight, retain_graph=True)[0] if step > 0 else 0.0
        scales.add(scaler.get_scale())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        for each in [scaler.update, pruner.step] if update_first else [pruner.step, scaler.update]:
            each()
    assert scales == {4.0, 8.0, 16.0}
    torch.testing.assert_close(pruner.state_dict()["regrowth"]["sums"]["weight"], expected)


def test_a_layer_that_is_frozen_in_mid_run_is_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    optimizer, pruner = _pruner(model, ConstantSchedule(final=0.5, begin=1, end=9, every=3), allocation="uniform")
    _train(model, optimizer, pruner, range(2))
    model[0].weight.requires_grad_(False).grad = None
    before = pruner.masks
    _train(model, optimizer, pruner, range(2, 8))
    assert torch.equal(pruner.masks["0.weight"], before["0.weight"])
    assert not torch.equal(pruner.masks["1.weight"], before["1.weight"])
