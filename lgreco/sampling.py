"""Sampling: which layers are measured in which step, which of their elements, and on which rank they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

UNIT_NUMEL = 4096
"""Consecutive elements that are sampled together: whole blocks of every block size that divides it."""

_SHARE = 16  # one unit in so many: errors within 3 % where a layer has many (LIMITS)
_LEAST_UNITS = 8  # of a layer that is sampled at all


@dataclass(frozen=True)
class Sample:
    """Sampled elements of one layer.

    Attributes:
        spans: (begin, end) in ascending order.
        numel: elements in them.
        scale: elements of the layer for each one sampled.
    """

    spans: tuple[tuple[int, int], ...]
    numel: int
    scale: float

    def take(self, flat: torch.Tensor) -> torch.Tensor:
        """The sampled elements of a flat tensor, [numel]."""
        if len(self.spans) == 1:
            begin, end = self.spans[0]
            return flat[begin:end]
        return torch.cat([flat[begin:end] for begin, end in self.spans])


def slices_of(numels: Sequence[int], rows: Sequence[int], window: int) -> list[list[int]]:
    """Deals layers to the steps of a window, so that each step's slice has about as many elements.

    Args:
        numels: of all layers.
        rows: layers to deal.
        window: steps.

    Returns:
        For each step its layers in ascending order; the last ones are empty where there are more steps than layers.
    """
    owners = deal([numels[row] for row in rows], window)
    return [[row for row, owner in zip(rows, owners, strict=True) if owner == step] for step in range(window)]


def deal(sizes: Sequence[int], owners: int) -> list[int]:
    """An owner for each item: the largest item first, each to the owner with least so far, ties to the first."""
    load = [0] * owners
    dealt = [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        owner = min(range(owners), key=lambda owner: (load[owner], owner))
        dealt[item] = owner
        load[owner] += max(sizes[item], 1)
    return dealt


def sample_of(numel: int, seed: int, step: int, layer: int) -> Sample:
    """A layer's sampled units: one drawn from each of equally many neighbours, so that they spread over the layer.

    The draw depends on the arguments alone; small layers are taken whole.
    """
    units = -(-numel // UNIT_NUMEL)
    count = min(units, max(_LEAST_UNITS, -(-units // _SHARE)))
    if count == units:
        return Sample(((0, numel),), numel, 1.0)
    draws = np.random.Philox(key=[seed, step << 32 | layer]).random_raw(count)
    spans: list[tuple[int, int]] = []
    for i in range(count):
        low, high = i * units // count, (i + 1) * units // count
        begin = (low + int(draws[i]) % (high - low)) * UNIT_NUMEL
        end = min(begin + UNIT_NUMEL, numel)
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    taken = sum(end - begin for begin, end in spans)
    return Sample(tuple(spans), taken, numel / taken)
