"""Criteria, structures, allocations and selection, each against a plain reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lgreco.pruning import (
    Blocks,
    Columns,
    CubicSchedule,
    Evolution,
    NofM,
    OBert,
    OneShotSchedule,
    Pruner,
    Rows,
    Solver,
    Unstructured,
    default_levels,
    keep_largest,
    parse_structure,
)
from lgreco.pruning.regrowth import Regrowth, regrow


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), share=st.floats(0, 1), seed=st.integers(0, 99),
    order=st.sampled_from(["magnitude", "value"]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_selection_is_a_stable_sort_over_all_tensors(
    sizes: list[int], share: float, seed: int, order: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(size, generator=generator).mul(2).round().div(2).to(dtype) for size in sizes]
    kept = int(share * sum(sizes))
    masks = keep_largest(scores, kept, order)
    flat = torch.cat([each.float() for each in scores])
    ranked = (flat.abs() if order == "magnitude" else flat).numpy()
    expected = np.zeros(len(flat), bool)
    expected[np.argsort(-ranked, kind="stable")[:kept]] = True
    assert torch.cat(masks).tolist() == expected.tolist()


@pytest.mark.parametrize("text", ["unstructured", "rows", "columns", "1x4", "4x1", "2x3", "2:4"])
@pytest.mark.parametrize("shape", [(8, 12), (4, 6, 2, 2)])
def test_structures_reduce_and_expand(text: str, shape: tuple[int, ...]) -> None:
    structure = parse_structure(text)
    assert str(structure) == text
    assert structure.fits(shape)
    scores = torch.rand(shape)
    groups = structure.reduce(scores)
    assert groups.numel() * structure.group_numel(shape) == scores.numel()
    kept = torch.rand(groups.numel()) < 0.5
    mask = structure.expand(kept, shape)
    assert mask.shape == scores.shape
    assert mask.sum() == kept.sum() * structure.group_numel(shape)
    only = structure.reduce(scores * mask)
    assert not only[~kept].any(), "what is pruned lies in the pruned groups alone"
    torch.testing.assert_close(only[kept], groups[kept])


@pytest.mark.parametrize(
    ("structure", "shape", "expected"),
    [
        (Rows(), (4, 6), lambda mask: {tuple(row.tolist()) for row in mask} <= {(True,) * 6, (False,) * 6}),
        (Columns(), (4, 6), lambda mask: all(column.all() or not column.any() for column in mask.T)),
        (Columns(), (4, 6, 3, 3), lambda mask: all(mask[:, i].all() or not mask[:, i].any() for i in range(6))),
        (Blocks(2, 3), (4, 6), lambda mask: all(b.all() or not b.any() for r in mask.split(2) for b in r.split(3, 1))),
    ],
)  # fmt: skip
def test_groups_are_what_their_names_say(structure: Any, shape: tuple[int, ...], expected: Any) -> None:
    groups = structure.reduce(torch.rand(shape)).numel()
    mask = structure.expand(torch.arange(groups) % 2 == 0, shape)
    assert mask.any()
    assert not mask.all()
    assert expected(mask)


def test_n_of_m_keeps_the_greatest_of_each_group_ties_to_the_lowest_index() -> None:
    pattern = NofM(2, 4)
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 3.0, 2.0, 2.0]])
    assert pattern.choose(scores, 0.5).tolist() == [[True, True, False, False, False, True, True, False]]
    assert [pattern.kept_of_m(level) for level in (0.0, 0.2, 0.25, 0.49, 0.5)] == [4, 4, 3, 3, 2]
    random = torch.randn(64, 32)
    mask = NofM(1, 8).choose(random, 0.875)
    assert (mask.view(-1, 8).sum(dim=1) == 1).all()
    assert torch.equal(random.view(-1, 8).argmax(dim=1), mask.view(-1, 8).int().argmax(dim=1))


def _layers() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 4))
    with torch.no_grad():
        model[2].weight.mul_(0.05)
    return model


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "solver"])
@pytest.mark.parametrize("structure", ["unstructured", "1x4", "rows"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_allocations_meet_the_sparsity(allocation: str, structure: str, sparsity: float) -> None:
    pruner = Pruner(_layers(), None, OneShotSchedule(sparsity), structure=structure, allocation=allocation)
    pruner.prune(sparsity)
    report = pruner.report()
    slack = 1e-4 if structure == "unstructured" else 4.5e-4 if structure == "1x4" else 0.02
    assert report.sparsity == pytest.approx(sparsity, abs=slack)
    assert allocation == "global" or all(layer.kept_numel > 0 for layer in report.layers)


def test_allocations_differ_as_they_should() -> None:
    def levels(allocation: Any) -> list[float]:
        pruner = Pruner(_layers(), None, OneShotSchedule(0.8), allocation=allocation)
        pruner.prune(0.8)
        return [layer.sparsity for layer in pruner.report().layers]

    assert levels("uniform") == pytest.approx([0.8, 0.8, 0.8], abs=1e-3)
    ranked = levels("global")
    assert ranked[1] > 0.9 > ranked[0], "small weights go first"
    erk = levels("erk")
    assert erk[2] == 0.0, "the smallest layer would be more than dense"
    assert (1 - erk[0]) / (1 - erk[1]) == pytest.approx((240 / 8000) / (400 / 40000), rel=1e-3)
    solver = Solver()
    assert levels(solver) != ranked
    assert solver.table is not None
    assert solver.table.shape == (3, len(default_levels()))


def test_the_solver_uses_the_errors_it_is_given() -> None:
    def measure(layers: Any, levels: Any) -> Any:
        return np.array([[level * weight for level in levels] for weight in (100.0, 1.0, 100.0)])

    pruner = Pruner(_layers(), None, OneShotSchedule(0.8), allocation=Solver(measure=measure))
    pruner.prune(0.8)
    first, second, third = (layer.sparsity for layer in pruner.report().layers)
    assert second > 0.9 > max(first, third)
    with pytest.raises(ValueError, match=r"levels must reach a sparsity of 0\.8"):
        Pruner(_layers(), None, OneShotSchedule(0.8), allocation=Solver(levels=[0.0, 0.5])).prune(0.8)


@pytest.mark.parametrize("criterion", ["movement", "taylor", "random"])
def test_the_solver_takes_scores_of_any_sign_and_masks_in_force(criterion: str) -> None:
    model = _layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = CubicSchedule(0.3, 0.9, begin=1, end=4, every=1)
    pruner = Pruner(model, optimizer, schedule, criterion=criterion, allocation="solver")
    for _ in range(4):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(8, 40)).square().mean())
        optimizer.step()
        pruner.step()
    assert [round(change.sparsity, 3) for change in pruner.changes] == [round(schedule(at), 3) for at in (1, 2, 3, 4)]


def test_evolution_finds_the_layer_that_matters_and_leaves_weights_alone_meanwhile() -> None:
    model = _layers()
    dense = [parameter.detach().clone() for parameter in model.parameters()]

    def loss() -> float:
        return float(((model[0].weight.detach() - dense[0]) ** 2).sum())

    search = Evolution(loss, generations=15, offspring=6, share=1.0)
    pruner = Pruner(model, None, OneShotSchedule(0.5), allocation=search)
    pruner.prune(0.5)
    report = pruner.report()
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)
    assert report.layers[0].sparsity < 0.25, "of 0.5 that the search began with"
    assert search.best_loss == pytest.approx(loss(), rel=1e-6)
    masks = pruner.masks
    for name, parameter, before in zip(dict(model.named_parameters()), model.parameters(), dense, strict=True):
        kept = masks.get(name, torch.ones_like(before, dtype=torch.bool))
        assert torch.equal(parameter, before * kept)


@pytest.mark.parametrize(("damping", "count", "size"), [(1e-2, 5, 1.0), (1e-7, 60, 1.0), (1e-7, 60, 5.0)])
def test_obert_equals_a_dense_reference(damping: float, count: int, size: float) -> None:
    """One block holds the whole layer: scores and moved weights by the formulas of the paper, in fp64.

    With the paper's damping, gradients of 1 or more leave a 10^7th of the inverse that one begins with, or less.
    """
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False)
    inputs = size * torch.randn(count, 6)
    weight = model.weight.detach().clone().double().flatten()

    def loss(sample: int) -> torch.Tensor:
        return (model(inputs[sample]) - 1.0).square().sum()

    fisher = damping * torch.eye(24, dtype=torch.float64)
    for sample in range(count):
        (gradient,) = torch.autograd.grad(loss(sample), model.weight)
        flat = gradient.double().flatten()
        fisher += torch.outer(flat, flat) / count
    inverse = fisher.inverse()
    scores = weight.square() / (2 * inverse.diagonal())
    pruner = Pruner(model, None, OneShotSchedule(0.5), criterion=OBert(loss, count, block=24, damping=damping))
    pruner.prune(0.5)
    mask = pruner.masks["weight"].flatten()
    assert mask.tolist() == keep_largest([scores], 12)[0].tolist()
    gone = ~mask
    moved = weight - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], weight[gone])
    assert (moved - weight)[mask].abs().max() > 1e-3, "the kept weights moved"
    torch.testing.assert_close(model.weight.detach().flatten().double(), moved * mask, rtol=1e-3, atol=1e-4)
    assert not model.weight.flatten()[gone].any()


def test_obert_keeps_layers_and_blocks_apart_and_pruned_weights_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 3, bias=False), nn.Tanh(), nn.Linear(3, 5, bias=False))
    inputs = torch.randn(6, 7)
    criterion = OBert(lambda sample: model(inputs[sample]).square().sum(), 6, block=8, damping=1e-3)
    pruner = Pruner(model, None, OneShotSchedule(0.5), criterion=criterion)
    pruner.prune(0.3)
    first = pruner.masks
    pruner.prune(0.6)
    for name, mask in pruner.masks.items():
        assert not (mask & ~first[name]).any(), "what is pruned stays so"
        assert not model.get_parameter(name)[~mask].any()
    assert pruner.report().sparsity == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_obert_leaves_blocks_alone_of_which_nothing_is_pruned(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False, dtype=dtype)
    before = model.weight.detach().clone()
    inputs = torch.randn(20, 8, dtype=dtype)
    criterion = OBert(lambda sample: (model(inputs[sample]) - 1).square().mean(), 20, block=8)
    pruner = Pruner(model, None, OneShotSchedule(0.5), criterion=criterion)
    pruner.prune(1 / 64)
    whole = pruner.masks["weight"].all(dim=1)
    assert whole.sum() == 7
    assert torch.equal(model.weight[whole], before[whole])
    assert not torch.equal(model.weight[~whole], before[~whole] * pruner.masks["weight"][~whole])


def test_random_scores_are_of_seed_step_and_layer() -> None:
    def masks(seed: int) -> list[Any]:
        pruner = Pruner(_layers(), None, OneShotSchedule(0.5), criterion="random", seed=seed)
        pruner.prune(0.5)
        return [mask.tolist() for mask in pruner.masks.values()]

    assert masks(0) == masks(0) != masks(1)


def test_regrow_replaces_the_least_by_the_steepest() -> None:
    mask = torch.tensor([True, True, True, True, False, False, False, False])
    scores = torch.tensor([4.0, -1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    gradient = torch.tensor([9.0, 9.0, 9.0, 9.0, 0.1, -0.3, 0.2, 0.0])
    grown = regrow(mask, scores, "magnitude", gradient, 0.5)
    assert grown.tolist() == [True, False, True, False, False, True, True, False]
    assert regrow(mask, scores, "magnitude", gradient, 0.2) is mask, "not one whole weight"
    for fraction, window, match in ((1.0, 1, "fraction must be"), (0.1, 0, "window must be")):
        with pytest.raises(ValueError, match=match):
            Regrowth(fraction, window)


def test_an_unstructured_mask_of_fp32_weights_needs_no_copy() -> None:
    weights = torch.randn(4, 4)
    assert Unstructured().reduce(weights).data_ptr() == weights.data_ptr()
