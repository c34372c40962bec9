"""A mask update: what is pruned does not compete, and an update is applied as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lgreco.pruning import Candidate, CubicSchedule, CyclicSchedule, NofM, OneShotSchedule, Pruner, Unstructured
from lgreco.pruning.candidate import even_order, keep_groups


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


class _Uneven(nn.Module):
    """Rows of unlike lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 48), nn.Linear(48, 64), nn.Linear(64, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 16] -> [n, 16]."""
        out: torch.Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "taylor", "random"])
@pytest.mark.parametrize("structure", ["unstructured", "1x4", "rows"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_when_a_level_falls_all_that_stands_stays_and_the_rest_comes_back_everywhere(
    criterion: str, structure: str, allocation: str
) -> None:
    model = _Uneven()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    schedule = CyclicSchedule(low=0.4, final=0.8, begin=1, end=9, every=4, recover_steps=2)
    pruner = Pruner(model, optimizer, schedule, criterion, structure, allocation)
    for step in range(4):
        _train(model, optimizer, pruner, step)
    pruned = pruner.masks
    _train(model, optimizer, pruner, 4)
    assert pruner.sparsity == pytest.approx(0.4, abs=0.02)
    returned = {}
    for name, mask in pruner.masks.items():
        assert not (pruned[name] & ~mask).any()
        if not pruned[name].all():
            returned[name] = float((mask & ~pruned[name]).sum() / (~pruned[name]).sum())
    if criterion == "magnitude":  # of which all are zero
        assert all(share == pytest.approx(0.5, abs=0.05) for share in returned.values()), returned
    assert max(returned.values()) < 1.0, returned


def test_what_comes_back_is_of_greatest_score_and_of_equal_ones_evenly_spread() -> None:
    standing = torch.tensor([True, False, False, True, False, False])

    def candidate(name: str, scores: list[float], order: str) -> Candidate:
        return Candidate(name, (6,), torch.tensor(scores), 1, order, torch.zeros(6), Unstructured(), standing)

    scored = [candidate("a", [-9.0, 1.0, 4.0, -9.0, 2.0, 3.0], "value")]
    assert keep_groups(scored, 4)[0].tolist() == [True, False, True, True, False, True]
    assert keep_groups(scored, 2)[0].tolist() == standing.tolist()
    assert keep_groups(scored, 1)[0].tolist() == [True, False, False, False, False, False]
    zero = [candidate(name, [5.0, 0.0, 0.0, 6.0, 0.0, 0.0], "magnitude") for name in "abcd"]
    for back in range(17):
        counts = [int(mask.sum()) - 2 for mask in keep_groups(zero, 8 + back)]
        assert sum(counts) == back
        assert max(counts) - min(counts) <= 2
    scored[0].scores[1] = torch.nan
    for count in (1, 4):
        with pytest.raises(ValueError, match='layer "a": scores must be numbers, got NaN'):
            keep_groups(scored, count)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 64, 997])
def test_any_first_places_of_the_even_order_lie_evenly(count: int) -> None:
    places = even_order(count).tolist()
    assert sorted(places) == list(range(count))
    for taken in range(1, count, max(1, count // 20)):
        halves = sum(place < count / 2 for place in places[:taken])
        assert abs(halves - taken / 2) <= 3


def test_patterns_bring_back_by_score_and_keep_what_stands() -> None:
    scores = torch.tensor([[-5.0, 3.0, 1.0, 2.0]])
    standing = torch.tensor([[True, False, False, False]])
    pattern = NofM(1, 4)
    assert pattern.choose(scores, 0.75, standing).tolist() == [[True, False, False, False]]
    assert pattern.choose(scores, 0.25, standing).tolist() == [[True, True, False, True]]
