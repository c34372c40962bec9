"""A layer as an allocation sees it, and which groups of several are kept: pruned ones come back only when all stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lgreco.pruning.masks import kept_numel
from lgreco.pruning.selection import check_numbers, keep_largest
from lgreco.pruning.structure import Structure


@dataclass(frozen=True)
class Candidate:
    """A layer as an allocation sees it.

    Attributes:
        name: of the layer.
        shape: of the layer.
        scores: fp32 [groups], comparable within the layer and, for a global ranking, between layers; also of what is
            pruned.
        group_numel: weights of a group.
        order: magnitude or value: how scores compare.
        weight: the layer itself, for allocations that try out masks.
        structure: of its groups.
        standing: bool [groups], those that the masks in force keep; None for all.
    """

    name: str
    shape: tuple[int, ...]
    scores: torch.Tensor
    group_numel: int
    order: str
    weight: torch.Tensor
    structure: Structure
    standing: torch.Tensor | None = None

    @property
    def groups(self) -> int:
        """Groups of the layer."""
        return self.scores.numel()

    @property
    def numel(self) -> int:
        """Weights of the layer."""
        return self.groups * self.group_numel

    @property
    def standing_groups(self) -> int:
        """How many the masks in force keep."""
        return self.groups if self.standing is None else kept_numel(self.standing)

    def covered(self) -> torch.Tensor:
        """Scores under which what is pruned comes last.

        Raises:
            ValueError: for a NaN that would be covered.
        """
        if self.standing is None or self.order == "magnitude":  # pruned weights are zero: none has less magnitude
            return self.scores
        check_numbers(self.name, self.scores)
        return self.scores.masked_fill(~self.standing, -torch.inf)


def keep_groups(
    candidates: Sequence[Candidate], count: int, weights: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """Masks [groups] that keep exactly `count` groups of all candidates together.

    While no more are wanted than stand, what is pruned stays so. When a level falls, all that stand stay, and of the
    pruned ones those of greatest score come back. By magnitude these are all zero: equal scores come back evenly spread
    over what is pruned, so that each layer gets its share. `weights`, flat and zero where nothing stands, become zero
    where nothing is kept.

    Raises:
        ValueError: for scores that are NaN, naming the layer.
    """
    order = candidates[0].order
    back = count - sum(each.standing_groups for each in candidates)
    if back <= 0:
        names = [each.name for each in candidates]
        return keep_largest([each.covered() for each in candidates], count, order, weights, names)
    for each in candidates:
        check_numbers(each.name, each.scores)
    masks = [_all(each) if each.standing is None else each.standing.clone() for each in candidates]
    gone = [~mask for mask in masks]
    where = masks[0].device
    scores = torch.cat([each.scores[pruned].to(where) for each, pruned in zip(candidates, gone, strict=True)])
    spread = even_order(scores.numel()).to(where)
    (first,) = keep_largest([scores[spread]], back, order)
    returns = torch.zeros_like(first).scatter_(0, spread, first)
    for mask, pruned, part in zip(masks, gone, returns.split([int(each.sum()) for each in gone]), strict=True):
        mask[pruned] = part.to(mask.device)
    return masks


def even_order(count: int) -> torch.Tensor:
    """All places below `count`, int64, any first ones of which lie evenly: by steps of the golden ratio around them."""
    step = max(1, round(count * (math.sqrt(5.0) - 1.0) / 2.0))
    while math.gcd(step, count) > 1:
        step += 1
    return torch.arange(count) * step % max(count, 1)


def _all(candidate: Candidate) -> torch.Tensor:
    return torch.ones_like(candidate.scores, dtype=torch.bool)
