"""One mask update: scores, allocation, exact selection; a function of its inputs, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lgreco.pruning.allocation import Allocation, Candidate
from lgreco.pruning.criteria import Criterion
from lgreco.pruning.regrowth import regrow
from lgreco.pruning.selection import keep_largest
from lgreco.pruning.structure import NofM, Structure, Unstructured

Tensors = Mapping[str, torch.Tensor]


def choose_masks(
    layers: Mapping[str, nn.Parameter],
    level: float,
    criterion: Criterion,
    structure: Structure,
    allocation: Allocation,
    masks: Tensors,
    gradients: Tensors,
    fraction: float,
) -> dict[str, torch.Tensor]:
    """The masks of a level; weights stay as they are until all of them are chosen.

    Args:
        layers: that fit the structure, by name; at zero where `masks` prune.
        level: sparsity over all of them, 0 to below 1.
        criterion: prepared for this update.
        structure: what is pruned together.
        allocation: of the level to layers.
        masks: those in force: what they prune scores lowest, so that it stays pruned while the level rises.
        gradients: mean dense gradients for regrowth; empty for none.
        fraction: of the kept weights that regrowth replaces.

    Returns:
        bool masks of the layers' shapes.

    Raises:
        ValueError: for scores that are NaN, naming the layer.
    """
    scores = {name: _scores_of(criterion, name, weight, masks.get(name)) for name, weight in layers.items()}
    if isinstance(structure, NofM):
        return {name: _choose_pattern(structure, name, each, criterion.order, level) for name, each in scores.items()}
    candidates = [
        Candidate(
            name,
            tuple(each.shape),
            structure.reduce(each if isinstance(structure, Unstructured) else _comparable(each, criterion.order)),
            structure.group_numel(tuple(each.shape)),
            criterion.order,
            layers[name],
            structure,
        )
        for name, each in scores.items()
    ]
    kept = _select(candidates, level, allocation)
    chosen = {}
    for candidate, groups in zip(candidates, kept, strict=True):
        if gradients:
            steep = structure.reduce(gradients[candidate.name].abs())
            groups = regrow(groups, candidate.scores, candidate.order, steep, fraction)
        chosen[candidate.name] = structure.expand(groups, candidate.shape)
    return chosen


def _scores_of(criterion: Criterion, name: str, weight: nn.Parameter, mask: torch.Tensor | None) -> torch.Tensor:
    scores = criterion.scores(name, weight)
    if mask is None or criterion.order == "magnitude":  # they are zero: none has less magnitude
        return scores
    if bool(scores.isnan().any()):  # also where it would be covered
        raise ValueError(f'layer "{name}": scores must be numbers, got NaN')
    return scores.masked_fill(~mask, -torch.inf)


def _comparable(scores: torch.Tensor, order: str) -> torch.Tensor:
    """Scores whose mean over a group means something: magnitudes do not cancel."""
    return scores.float().abs() if order == "magnitude" else scores


def _choose_pattern(structure: NofM, name: str, scores: torch.Tensor, order: str, level: float) -> torch.Tensor:
    if bool(scores.isnan().any()):
        raise ValueError(f'layer "{name}": scores must be numbers, got NaN')
    return structure.choose(_comparable(scores, order), level)


def _select(candidates: Sequence[Candidate], level: float, allocation: Allocation) -> list[torch.Tensor]:
    names = [candidate.name for candidate in candidates]
    order = candidates[0].order
    counts = allocation.kept_groups(candidates, level)
    if counts is None:
        total = sum(candidate.groups for candidate in candidates)
        kept = total - int(level * total + 0.5)
        return keep_largest([each.scores for each in candidates], kept, order, names=names)
    masks = []
    for candidate, count in zip(candidates, counts, strict=True):
        masks += keep_largest([candidate.scores], count, order, names=[candidate.name])
    return masks
