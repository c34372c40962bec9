"""One mask update: scores, allocation, exact selection; a function of its inputs, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lgreco.pruning.allocation import Allocation
from lgreco.pruning.candidate import Candidate, keep_groups
from lgreco.pruning.criteria import Criterion
from lgreco.pruning.regrowth import regrow
from lgreco.pruning.selection import check_numbers
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
    alone: bool,
) -> tuple[dict[str, torch.Tensor], bool]:
    """The masks of a level; weights stay as they are until nothing can be refused any more.

    Args:
        layers: that fit the structure, by name; at zero where `masks` prune.
        level: sparsity over all of them, 0 to below 1.
        criterion: prepared for this update.
        structure: what is pruned together.
        allocation: of the level to layers.
        masks: those in force: what they prune stays so while the level rises, and what they keep while it falls.
        gradients: mean dense gradients for regrowth; empty for none.
        fraction: of the kept weights that regrowth replaces.
        alone: there is no other rank whose masks could differ.

    Returns:
        bool masks of the layers' shapes; and whether the weights are zero where they prune. A global ranking of single
        weights zeroes them in the pass that marks masks, if nobody is to be asked in between.

    Raises:
        ValueError: for scores that are NaN, naming the layer.
    """
    order = criterion.order
    scores = {name: criterion.scores(name, weight) for name, weight in layers.items()}
    if isinstance(structure, NofM):
        chosen = {
            name: _choose_pattern(structure, name, each, order, level, masks.get(name)) for name, each in scores.items()
        }
        return chosen, False
    candidates = [
        Candidate(
            name,
            tuple(each.shape),
            structure.reduce(each if isinstance(structure, Unstructured) else _comparable(each, order)),
            structure.group_numel(tuple(each.shape)),
            order,
            layers[name],
            structure,
            _standing(structure, masks.get(name)),
        )
        for name, each in scores.items()
    ]
    counts = allocation.kept_groups(candidates, level)
    plain = alone and counts is None and not gradients and isinstance(structure, Unstructured)
    zeroed = _zeroable(list(layers.values())) if plain else None
    chosen = {}
    for candidate, groups in zip(candidates, _select(candidates, level, counts, zeroed), strict=True):
        if gradients:
            steep = structure.reduce(gradients[candidate.name].abs())
            groups = regrow(groups, candidate.scores, order, steep, fraction)
        chosen[candidate.name] = structure.expand(groups, candidate.shape)
    return chosen, zeroed is not None


def _standing(structure: Structure, mask: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None:
        return None
    return mask.reshape(-1) if isinstance(structure, Unstructured) else structure.reduce(mask) > 0


def _comparable(scores: torch.Tensor, order: str) -> torch.Tensor:
    """Scores whose mean over a group means something: magnitudes do not cancel."""
    return scores.float().abs() if order == "magnitude" else scores


def _choose_pattern(
    structure: NofM, name: str, scores: torch.Tensor, order: str, level: float, mask: torch.Tensor | None
) -> torch.Tensor:
    check_numbers(name, scores)
    return structure.choose(_comparable(scores, order), level, mask)


def _zeroable(weights: Sequence[nn.Parameter]) -> list[torch.Tensor] | None:
    """The weights as flat tensors, where all may be zeroed in the pass that marks masks."""
    if any(each.device.type != "cpu" or each.dtype != torch.float32 or not each.is_contiguous() for each in weights):
        return None
    return [each.detach().view(-1) for each in weights]


def _select(
    candidates: Sequence[Candidate], level: float, counts: list[int] | None, zeroed: Sequence[torch.Tensor] | None
) -> list[torch.Tensor]:
    if counts is None:
        total = sum(candidate.groups for candidate in candidates)
        return keep_groups(candidates, total - int(level * total + 0.5), zeroed)
    return [keep_groups([candidate], count)[0] for candidate, count in zip(candidates, counts, strict=True)]
