"""What a pruner sees of training by itself: whether optimizers took a step, and the gradients they used.

Gradients of pruned weights are zeroed as soon as backward has them, so that they are not sent, not counted when the
norm is clipped, and enter no moment; and again before the optimizer uses them, for a codec may deliver something there.

It also notices when training goes on without it: with another optimizer, or other parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lgreco.pruning.criteria import Criterion
from lgreco.pruning.layers import Places
from lgreco.pruning.masks import hold_

_MANY = 10
"""Calls; one alone may come after a broadcast, or weights that were swapped, and an overflow."""

_MADE_ANEW = "make the Pruner anew and load this one's state_dict()"


class Watch:
    """Hooks on parameters and optimizers, until `remove`.

    Args:
        optimizers: of the model.
        layers: that are pruned, by name.
        places: where they hang in the model.
        masks: in force; looked at each time.
        criterion: is shown the gradients if it wants them.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        layers: Mapping[str, nn.Parameter],
        places: Places,
        masks: Mapping[str, torch.Tensor],
        criterion: Criterion,
    ) -> None:
        self._layers, self._places, self._masks, self._criterion = layers, places, masks, criterion
        self._stepped, self._expects_steps = False, bool(optimizers)
        self._versions: list[int] = []
        self._moved_without = 0
        self._hooks: list[Any] = [each.register_step_pre_hook(self._before_step) for each in optimizers]
        self.look()
        for name, weight in layers.items():
            if weight.requires_grad:
                self._hooks.append(weight.register_post_accumulate_grad_hook(_holder(name, masks)))

    def took_step(self) -> bool:
        """Whether any optimizer took a step since the last call.

        Warns once weights have changed since `look` all the same in many calls running, which steps that GradScaler
        skips do not do: by the counts of changes that torch keeps, which fused optimizers do not raise.

        Raises:
            RuntimeError: where a layer's parameter was replaced.
        """
        stepped = self._stepped
        self.forget()
        missing = self._places.missing() if self._hooks else None
        if missing is not None:
            raise RuntimeError(
                f'layer "{missing}" is no longer the parameter that the pruner was made for, as after '
                f"load_state_dict(assign=True): {_MADE_ANEW}"
            )
        if self._expects_steps:
            self._moved_without = 0 if stepped else self._moved_without + (self._now() != self._versions)
            if self._moved_without == _MANY:
                warnings.warn(
                    f"weights have changed in {_MANY} calls of step() running without a step of an optimizer that the "
                    f"pruner was given, so none of them counts: if the optimizer was rebuilt, {_MADE_ANEW}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return stepped

    def look(self) -> None:
        """What weights are now is what a step is to change."""
        self._versions = self._now() if self._expects_steps else []

    def forget(self) -> None:
        """Steps so far do not count."""
        self._stepped = False

    def _now(self) -> list[int]:
        return [weight._version for weight in self._layers.values()]

    def remove(self) -> None:
        """Leaves model and optimizers as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._expects_steps = False

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """GradScaler does not call the optimizer in a step it skips; fused ones are called, and told by found_inf.

        Where the optimizer calls a closure, as Lightning's do, the step's gradients are those that it leaves.
        """
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return None
        self._stepped = True
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._watched(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._watched(optimizer, kwargs["closure"])}
        self._see(optimizer)
        return None

    def _watched(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def watched() -> Any:
            loss = closure()
            self._see(optimizer)
            return loss

        return watched

    def _see(self, optimizer: torch.optim.Optimizer) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, weight in self._layers.items():
            if id(weight) not in held or weight.grad is None:
                continue
            mask = self._masks.get(name)
            if mask is not None:
                hold_(weight.grad, mask)
            if self._criterion.watches:
                self._criterion.observe(name, weight, weight.grad if scale is None else weight.grad / scale)


def _holder(name: str, masks: Mapping[str, torch.Tensor]) -> Any:
    def hold_gradient(parameter: torch.Tensor) -> None:
        mask = masks.get(name)
        if mask is not None and parameter.grad is not None:
            hold_(parameter.grad, mask)

    return hold_gradient
