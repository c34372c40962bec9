"""Allocation: how many groups of each layer a global sparsity prunes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from lgreco.pruning.candidate import Candidate, even_order
from lgreco.solver import minimise_error


class Allocation(ABC):
    """Levels for layers."""

    def join(self, group: dist.ProcessGroup | None) -> None:  # noqa: B027  # most need none
        """Hears once of the ranks that hold the pruner's model; None: the default group."""

    @abstractmethod
    def kept_groups(self, layers: Sequence[Candidate], sparsity: float) -> list[int] | None:
        """Groups that each layer keeps; None: all layers' groups are ranked together instead.

        The same arguments must give the same numbers on every rank.
        """


class Global(Allocation):
    """All layers' groups ranked together by their scores, means over their weights."""

    def kept_groups(self, layers: Sequence[Candidate], sparsity: float) -> list[int] | None:
        """See Allocation; groups of unlike sizes are ranked by a sort, for there are few of them."""
        if len({layer.group_numel for layer in layers}) == 1:
            return None
        scores = np.concatenate([_ranked(layer, layer.scores) for layer in layers])
        gone = np.concatenate([_gone(layer) for layer in layers])
        sizes = np.concatenate([np.full(layer.groups, layer.group_numel) for layer in layers])
        owner = np.concatenate([np.full(layer.groups, place) for place, layer in enumerate(layers)])
        place = np.zeros(len(scores), np.int64)
        place[np.flatnonzero(gone)[even_order(int(gone.sum())).numpy()]] = np.arange(gone.sum())
        order = np.lexsort((place, -scores, gone))  # as keep_groups ranks groups of one size
        before = np.cumsum(sizes[order]) - sizes[order]
        kept_numel = (1.0 - sparsity) * sizes.sum()
        kept = order[before + sizes[order] / 2 <= kept_numel]  # to the nearer side
        return [int(count) for count in np.bincount(owner[kept], minlength=len(layers))]


class Uniform(Allocation):
    """The same level in every layer."""

    def kept_groups(self, layers: Sequence[Candidate], sparsity: float) -> list[int] | None:
        """See Allocation; rounded to whole groups, and never less than one."""
        return [max(1, layer.groups - int(sparsity * layer.groups + 0.5)) for layer in layers]


class Erk(Allocation):
    """Densities by Erdos-Renyi-kernel: sum of a layer's dimensions over their product (arXiv 1911.11134).

    Layers that would be more than dense are dense, and what they cannot take goes to the others.
    """

    def kept_groups(self, layers: Sequence[Candidate], sparsity: float) -> list[int] | None:
        """See Allocation."""
        numels = np.array([layer.numel for layer in layers], np.float64)
        raw = np.array([sum(layer.shape) / np.prod(layer.shape) for layer in layers])
        budget, dense = (1.0 - sparsity) * numels.sum(), np.zeros(len(layers), bool)
        density = np.ones(len(layers))
        while not dense.all():
            scale = (budget - numels[dense].sum()) / (raw * numels)[~dense].sum()
            density = np.where(dense, 1.0, scale * raw)
            over = density > 1.0
            if not (over & ~dense).any():
                break
            dense |= over
        kept = [max(1, int(share * layer.groups + 0.5)) for share, layer in zip(density, layers, strict=True)]
        return fill(kept, layers, budget)


ErrorTable = npt.NDArray[np.float64]
Measure = Callable[[Sequence[Candidate], Sequence[float]], ErrorTable]


def relative_errors(layers: Sequence[Candidate], levels: Sequence[float]) -> ErrorTable:
    """Share of each layer's squared scores that each level prunes, [layers, levels]; each layer counts alike.

    Without the division by the layer's own sum the cheapest plan would be the global ranking itself.
    """
    table = np.zeros((len(layers), len(levels)))
    for place, layer in enumerate(layers):
        # A negative score says that the weight had better go, -inf that it is gone.
        energy = np.sort(np.maximum(_ranked(layer, layer.covered()), 0.0).astype(np.float64)) ** 2
        total = energy.sum()
        sums = np.concatenate(([0.0], np.cumsum(energy)))
        pruned = [layer.groups - kept_at(layer, level) for level in levels]
        table[place] = sums[pruned] / total if total > 0 else 0.0
    return table


def kept_at(layer: Candidate, level: float) -> int:
    """Groups that a level of this layer keeps, at least one."""
    return max(1, layer.groups - int(level * layer.groups + 0.5))


class Solver(Allocation):
    """Levels by the L-GreCo solver: least sum of errors at the wanted number of weights (arXiv 2210.17357).

    Args:
        levels: that a layer may have; more levels, finer plans. None: `default_levels`, and beyond them as far as the
            sparsity asks for.
        measure: errors [layers, levels]; by default the share of a layer's squared scores that is pruned. Give a
            function that prunes one layer at a time and measures the loss to make them calibrated.
    """

    def __init__(self, levels: Sequence[float] | None = None, measure: Measure = relative_errors) -> None:
        self._levels = None if levels is None else sorted(levels)
        if self._levels is not None and not (self._levels and all(0.0 <= level < 1.0 for level in self._levels)):
            raise ValueError(f"levels must be sparsities from 0 to below 1, got {self._levels}")
        self._measure = measure
        self.table: ErrorTable | None = None

    def kept_groups(self, layers: Sequence[Candidate], sparsity: float) -> list[int] | None:
        """See Allocation."""
        numel = sum(layer.numel for layer in layers)
        budget = (1.0 - sparsity) * numel
        levels = default_levels((1.0 - sparsity) / 4) if self._levels is None else self._levels
        self.table = self._measure(layers, levels)
        costs = np.array([[kept_at(layer, level) * layer.group_numel for level in levels] for layer in layers], float)
        least = float(costs.min(axis=1).sum())
        if least > budget and self._levels is not None:
            raise ValueError(
                f"levels must reach a sparsity of {sparsity:g}; the highest, {levels[-1]:g}, keeps {int(least)} of "
                f"{numel} weights"
            )
        plan = minimise_error(self.table, costs, max(budget, least)).choices  # least: a group of each layer
        kept = [kept_at(layer, levels[choice]) for layer, choice in zip(layers, plan, strict=True)]
        return fill(kept, layers, budget)


def default_levels(least_density: float = 0.005) -> list[float]:
    """0 and densities that fall by a sixth from one level to the next, to 0.5 % or less where that is asked for."""
    levels, density = [0.0], 1.0
    while density > min(least_density, 0.005):
        density /= 1.2
        levels.append(1.0 - density)
    return levels


def fill(kept: Sequence[int], layers: Sequence[Candidate], budget: float) -> list[int]:
    """Changes numbers of kept groups so that their weights meet the budget, by the least change in density.

    Layers give or take in proportion to what they keep, the remainder goes to the first ones that can.
    """
    filled = list(kept)

    def missing() -> int:
        used = sum(count * layer.group_numel for count, layer in zip(filled, layers, strict=True))
        return round(budget) - used

    free = missing()
    total = sum(count * layer.group_numel for count, layer in zip(filled, layers, strict=True))
    for place, layer in enumerate(layers):
        wanted = filled[place] + int(free * filled[place] / max(total, 1))
        filled[place] = min(layer.groups, max(1, wanted))
    for place, layer in enumerate(layers):
        wanted = filled[place] + int(missing() / layer.group_numel)
        filled[place] = min(layer.groups, max(1, wanted))
    return filled


def _ranked(layer: Candidate, scores: torch.Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = scores.detach().float().cpu().numpy()
    return np.abs(array) if layer.order == "magnitude" else array


def _gone(layer: Candidate) -> npt.NDArray[np.bool_]:
    standing = layer.standing
    gone: npt.NDArray[np.bool_] = np.zeros(layer.groups, bool) if standing is None else (~standing).cpu().numpy()
    return gone


def make_allocation(allocation: str | Allocation) -> Allocation:
    """The allocation of a name.

    Raises:
        ValueError: for an unknown name, or `evolution`, which needs a loss and so is made by hand.
    """
    if isinstance(allocation, Allocation):
        return allocation
    made: Mapping[str, Any] = {"global": Global, "uniform": Uniform, "erk": Erk, "solver": Solver}
    if allocation == "evolution":
        raise ValueError("allocation evolution needs a calibration loss: pass lgreco.pruning.Evolution(loss, ...)")
    if allocation not in made:
        raise ValueError(f"allocation must be {', '.join(made)} or an Allocation, got {allocation!r}")
    built: Allocation = made[allocation]()
    return built
