"""Evolution: levels of layers by a search on a calibration loss (EvoPress, arXiv 2410.14649), to compare with.

A parent's levels are mutated by switches, each of which moves weights from one layer to another, so that all children
keep as many weights. The best child replaces its parent where its loss is no greater.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from lgreco.pruning.agreement import device_of, distributed
from lgreco.pruning.allocation import Allocation, Uniform, fill
from lgreco.pruning.candidate import Candidate, keep_groups

_MOST_SWITCHES = 3


class Evolution(Allocation):
    """Levels by trial.

    Args:
        loss: the model's loss on calibration data with the weights as they are; no gradients are needed. Ranks may hold
            different data: the mean over ranks counts.
        generations: of children.
        offspring: children in each.
        share: of a layer's weights that one switch moves at most.
        seed: of the mutations; the same on every rank.
        process_group: of the ranks; None for the pruner's.

    Raises:
        ValueError: for a value that is not allowed.
    """

    def __init__(
        self,
        loss: Callable[[], float],
        generations: int = 20,
        offspring: int = 8,
        share: float = 0.1,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        for name, value in (("generations", generations), ("offspring", offspring)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be above 0, at most 1, got {share!r}")
        self._loss, self._generations, self._offspring = loss, generations, offspring
        self._share, self._seed, self._group = share, seed, process_group
        self.best_loss = math.inf

    def join(self, group: dist.ProcessGroup | None) -> None:
        """See Allocation."""
        self._group = group if self._group is None else self._group

    def kept_groups(self, layers: Sequence[Candidate], sparsity: float) -> list[int] | None:
        """See Allocation; collective. Leaves the weights as they were."""
        budget = (1.0 - sparsity) * sum(layer.numel for layer in layers)
        parent = fill(Uniform().kept_groups(layers, sparsity) or [], layers, budget)
        if len(layers) < 2:
            return parent
        draws = random.Random(self._seed)
        trial = _Trial(layers)
        try:
            self.best_loss = self._loss_of(trial, parent)
            for _ in range(self._generations):
                children = [self._mutated(parent, layers, draws) for _ in range(self._offspring)]
                losses = [self._loss_of(trial, child) for child in children]
                best = min(range(len(children)), key=losses.__getitem__)
                if losses[best] <= self.best_loss:
                    parent, self.best_loss = children[best], losses[best]
        finally:
            trial.restore()
        return parent

    def _loss_of(self, trial: _Trial, kept: Sequence[int]) -> float:
        trial.put(kept)
        loss = float(self._loss())
        if math.isnan(loss):
            loss = math.inf
        if not distributed(self._group):
            return loss
        total = torch.tensor([loss], dtype=torch.float64, device=device_of(self._group))
        dist.all_reduce(total, group=self._group)
        return float(total) / dist.get_world_size(self._group)

    def _mutated(self, parent: Sequence[int], layers: Sequence[Candidate], draws: random.Random) -> list[int]:
        child = list(parent)
        for _ in range(min(draws.randint(1, _MOST_SWITCHES), draws.randint(1, _MOST_SWITCHES))):
            giver, taker = draws.sample(range(len(layers)), 2)
            most = min(layers[giver].numel, layers[taker].numel)
            numel = int(most * self._share * draws.uniform(0.1, 1.0))
            # As many weights are given as are taken, also where groups are of unlike sizes.
            unit = math.lcm(layers[giver].group_numel, layers[taker].group_numel)
            moved = numel // unit * unit
            given, taken = moved // layers[giver].group_numel, moved // layers[taker].group_numel
            if child[giver] - given >= 1 and child[taker] + taken <= layers[taker].groups:
                child[giver] -= given
                child[taker] += taken
        return child


class _Trial:
    """Puts levels on the weights and takes them off again."""

    def __init__(self, layers: Sequence[Candidate]) -> None:
        # Scores may be the weights themselves.
        self._layers = [replace(layer, scores=layer.scores.detach().clone()) for layer in layers]
        self._weights = [layer.weight.detach().clone() for layer in layers]
        self._now = [-1] * len(layers)

    def put(self, kept: Sequence[int]) -> None:
        """Prunes each layer to that many groups; layers that keep their number are left alone."""
        for place, (layer, count) in enumerate(zip(self._layers, kept, strict=True)):
            if self._now[place] == count:
                continue
            (groups,) = keep_groups([layer], count)
            mask = layer.structure.expand(groups, layer.shape)
            layer.weight.detach().copy_(self._weights[place] * mask)
            self._now[place] = count

    def restore(self) -> None:
        """The weights as they were."""
        for layer, weight in zip(self._layers, self._weights, strict=True):
            layer.weight.detach().copy_(weight)
