"""An exchange hears of masks under the names that its layers have in DDP, which it may be yet to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

Masks = Mapping[str, torch.Tensor]


class Telling:
    """What the state of an exchange is told of masks.

    A state made in DDP's conventional form learns its layers from the first backward. It hears of masks at once where
    the layers' names are those of DDP's module, for it keeps them until then; else after that backward.

    Args:
        layers: that are pruned, by name.
        named_as_ddp: whether these are their names in DDP's module.
    """

    def __init__(self, layers: Mapping[str, nn.Parameter], named_as_ddp: bool) -> None:
        self._layers, self._named_as_ddp = layers, named_as_ddp
        self._state: Any = None
        self._waits = False

    def join(self, state: Any, masks: Masks) -> None:
        """Takes a state and tells it of the masks in force.

        Raises:
            ValueError: for what cannot take masks, or a state of another model.
        """
        if not callable(getattr(state, "set_masks", None)):
            raise ValueError(
                f"attach takes a state of lgreco that exchanges masked layers (it has set_masks), got "
                f"{type(state).__name__}, which has none"
            )
        _names_in(state, self._layers)
        self._state = state
        self.tell(masks)

    def tell(self, masks: Masks) -> None:
        """Tells of masks that have changed.

        Raises:
            ValueError: where the state, which has learnt its layers since, turns out to be of another model.
        """
        if self._state is None or not masks:
            return
        names = _names_in(self._state, {name: self._layers[name] for name in masks})
        self._waits = names is None and not self._named_as_ddp
        if not self._waits:
            told = zip(names or masks, masks.values(), strict=True)
            self._state.set_masks({name: mask for name, mask in told if name is not None})

    def catch_up(self, masks: Masks) -> None:
        """After a step: tells what the state could not be told before."""
        if self._waits:
            self.tell(masks)


def _names_in(state: Any, layers: Mapping[str, nn.Parameter]) -> list[str | None] | None:
    names: list[str | None] | None = state.names_of(layers.values())
    if names is not None and not any(names):
        raise ValueError(
            f"attach takes the state of the model that is pruned, got one that exchanges none of its layers: "
            f"{', '.join(list(layers)[:5])}"
        )
    return names
