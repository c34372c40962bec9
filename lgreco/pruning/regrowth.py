"""Regrowth: some pruned weights come back where the mean gradient is largest (RigL, arXiv 1911.11134).

In the `window` steps before an update the dense gradients of the prunable layers are averaged over ranks, by an
all-reduce of their own, for the exchange of pruned layers no longer carries them. Its bytes are counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lgreco.pruning.agreement import device_of, distributed
from lgreco.pruning.masks import kept_numel
from lgreco.pruning.selection import keep_largest
from lgreco.ring import ring_allreduce_bytes


@dataclass(frozen=True)
class Regrowth:
    """How much comes back at an update.

    Attributes:
        fraction: of a layer's kept weights that are replaced, from 0 to below 1.
        window: steps before an update whose gradients are looked at, from 1.

    Raises:
        ValueError: for a value outside these.
    """

    fraction: float = 0.1
    window: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < 1.0:
            raise ValueError(f"fraction must be from 0 to below 1, got {self.fraction!r}")
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be a whole number of steps from 1, got {self.window!r}")


class DenseWindow:
    """The mean dense gradient of the layers over the steps of a window; equal on all ranks.

    A step's gradient is the sum of all that was added to `.grad` in it, by every backward.

    Args:
        layers: by name.
        scale: GradScaler's scale of the gradients that backward gives, 1 without one.
        group: of the ranks.
    """

    def __init__(
        self, layers: Mapping[str, nn.Parameter], scale: Callable[[], float], group: dist.ProcessGroup | None
    ) -> None:
        self._layers, self._scale, self._group = layers, scale, group
        self._hooks: list[Any] = []
        self._nodes: list[Any] = []
        self._step: dict[str, torch.Tensor] = {}
        self._step_scale: float | None = None
        self.sums: dict[str, torch.Tensor] = {}
        self.sent_bytes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> DenseWindow:
        """Looks at the copied layers; autograd's nodes cannot be copied."""
        made = DenseWindow(copy.deepcopy(self._layers, memo), copy.deepcopy(self._scale, memo), self._group)
        made.sent_bytes, made._step_scale = self.sent_bytes, self._step_scale
        made.sums = copy.deepcopy(self.sums, memo)
        if self.open:
            made.begin()
            for name, gradient in self._step.items():
                made._step[name].copy_(gradient)
        return made

    @property
    def open(self) -> bool:
        """Whether gradients are being looked at."""
        return bool(self._hooks)

    def begin(self) -> None:
        """Looks from the next backward on at what is added to `.grad`; a layer that is frozen by now has nothing."""
        for name, weight in self._layers.items():
            self._step[name] = torch.zeros_like(weight, dtype=torch.float32)
            self.sums.setdefault(name, torch.zeros_like(self._step[name]))
            if weight.requires_grad:
                # Before the node that adds to .grad: gradients that torch.autograd.grad only looks at do not come here.
                # A parameter holds its node weakly.
                node = torch.autograd.graph.get_gradient_edge(weight).node
                self._nodes.append(node)
                self._hooks.append(node.register_prehook(self._adder(self._step[name])))

    def _adder(self, total: torch.Tensor) -> Callable[[Sequence[torch.Tensor | None]], None]:
        def add(gradients: Sequence[torch.Tensor | None]) -> None:
            if self._step_scale is None:  # now: once the step is over the scale may have grown
                self._step_scale = self._scale()
            if gradients[0] is not None:
                total.add_(gradients[0].detach())

        return add

    def take(self, counts: bool) -> None:
        """Ends a step: its gradients are averaged and added, or dropped where the optimizer skipped; collective.

        Dropped are inf and NaN, too: of a step that the caller has skipped by a test of his own before this one.
        """
        if counts:
            flat = torch.cat([self._step[name].reshape(-1) for name in self._layers]) / (self._step_scale or 1.0)
            if distributed(self._group):
                there = flat.to(device_of(self._group))
                dist.all_reduce(there, group=self._group)
                world_size = dist.get_world_size(self._group)
                flat = there.to(flat.device) / world_size
                self.sent_bytes += ring_allreduce_bytes(flat.numel(), world_size)
            parts = flat.split([weight.numel() for weight in self._layers.values()])
            for name, part in zip(self._layers, parts, strict=True) if bool(flat.isfinite().all()) else ():
                self.sums[name] += part.view(self.sums[name].shape)
        self._step_scale = None
        for gradient in self._step.values():
            gradient.zero_()

    def end(self) -> None:
        """Stops looking and forgets; what was sent stays counted."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._nodes.clear()
        self._step.clear()
        self._step_scale = None
        self.sums.clear()


def regrow(
    mask: torch.Tensor, scores: torch.Tensor, order: str, gradient: torch.Tensor, fraction: float
) -> torch.Tensor:
    """Replaces the least kept weights by those pruned ones whose gradient is largest.

    Args:
        mask: bool, what the criterion keeps.
        scores: of its shape.
        order: magnitude or value.
        gradient: mean dense gradient, of its shape.
        fraction: of the kept weights that are replaced, as far as there are pruned ones with a gradient: where nothing
            is known of them, as in a layer without a gradient or a window without a finite one, none comes back.

    Returns:
        A mask with as many kept weights.
    """
    kept = kept_numel(mask)
    steep = gradient.abs().masked_fill(mask, 0.0)
    moved = min(int(fraction * kept), int(steep.count_nonzero()))
    if moved == 0:
        return mask
    ranked = scores.float().abs() if order == "magnitude" else scores.float()
    (stay,) = keep_largest([ranked.masked_fill(~mask, -torch.inf)], kept - moved, "value")
    (grown,) = keep_largest([steep], moved, "value")
    return stay | grown
