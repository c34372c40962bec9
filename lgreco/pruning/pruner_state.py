"""A pruner's state in checkpoints: masks of 1 bit a weight, keyed by name, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lgreco.layer import plain_name
from lgreco.pruning.criteria import Criterion
from lgreco.pruning.layers import aliases_of
from lgreco.pruning.masks import pack as pack_mask
from lgreco.pruning.masks import unpack as unpack_mask
from lgreco.pruning.report import Change

FORMAT = 1
_KEYS = ("steps", "updated", "masks", "changes", "criterion", "regrowth")


@dataclass(frozen=True)
class Loaded:
    """A checked state, under the names of the model at hand."""

    steps: int
    updated: int
    masks: dict[str, torch.Tensor]
    changes: list[Change]
    criterion: dict[str, Any]
    sums: dict[str, torch.Tensor]
    sent_bytes: int


def pack(
    steps: int,
    updated: int,
    masks: Mapping[str, torch.Tensor],
    changes: Sequence[Change],
    criterion: Criterion,
    sums: Mapping[str, torch.Tensor],
    sent_bytes: int,
) -> dict[str, Any]:
    """Plain containers and tensors of their own."""
    return {
        "lgreco_pruner": FORMAT,
        "steps": steps,
        "updated": updated,
        "masks": {name: pack_mask(mask) for name, mask in masks.items()},
        "changes": [change.to_dict() for change in changes],
        "criterion_kind": type(criterion).__name__,
        "criterion": criterion.state(),
        "regrowth": {"sums": {name: total.clone() for name, total in sums.items()}, "sent_bytes": sent_bytes},
    }


def unpack(
    state: Mapping[str, Any], model: nn.Module, layers: Mapping[str, nn.Parameter], criterion: Criterion
) -> Loaded:
    """Checks a state against a model.

    Raises:
        ValueError: says what does not fit.
    """
    if not isinstance(state, Mapping) or state.get("lgreco_pruner") != FORMAT:
        found = state.get("lgreco_pruner") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"not a state of a pruner: lgreco_pruner must be {FORMAT}, got {found!r}")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(f"the pruner's state is incomplete: {', '.join(missing)} missing; was the file cut short?")
    _check_criterion(state, criterion)
    aliases = aliases_of(model)

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {_name_here(name, aliases): value for name, value in values.items()}

    masks = _checked({name: unpack_mask(packed) for name, packed in renamed(state["masks"]).items()}, layers)
    gathered = {
        key: _beside(renamed(value), layers) if isinstance(value, Mapping) else value
        for key, value in state["criterion"].items()
    }
    sums = _beside(renamed(state["regrowth"]["sums"]), layers)
    return Loaded(
        state["steps"],
        state["updated"],
        masks,
        [Change(**change) for change in state["changes"]],
        gathered,
        sums,
        state["regrowth"]["sent_bytes"],
    )


def _check_criterion(state: Mapping[str, Any], criterion: Criterion) -> None:
    """What one criterion has gathered is no use to another; those that gather nothing may be exchanged."""
    here = type(criterion).__name__
    saved = state.get("criterion_kind", here)
    gathered, mine = set(state["criterion"]), set(criterion.state())
    if gathered != mine or (gathered and saved != here):
        raise ValueError(
            f"the pruner's state was saved with the criterion {saved}, which gathers "
            f"{', '.join(gathered) or 'nothing'}, and this pruner has {here}, which gathers "
            f"{', '.join(mine) or 'nothing'}: make it with the same criterion"
        )


def _name_here(name: str, aliases: Mapping[str, str]) -> str:
    """What a saved name is called here: with or without DDP's `module.`, unless the model has a `module` of its own."""
    plain = plain_name(name)
    return aliases.get(plain) or aliases.get(plain.removeprefix("module."), plain)


def _checked(masks: dict[str, torch.Tensor], layers: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Masks in the model's order: of all its pruned layers, or of none."""
    _check_shapes(masks, layers)
    missing = [name for name in layers if masks and name not in masks]
    if missing:
        raise ValueError(f"the pruner's state is of another model or structure: no mask for {', '.join(missing)}")
    return {name: masks[name] for name in layers if name in masks}


def _beside(tensors: Mapping[str, torch.Tensor], layers: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Checked copies on the layers' devices: a checkpoint may have been read to the CPU."""
    _check_shapes(tensors, layers)
    return {name: tensor.to(layers[name].device, copy=True) for name, tensor in tensors.items()}


def _check_shapes(tensors: Mapping[str, torch.Tensor], layers: Mapping[str, nn.Parameter]) -> None:
    for name, tensor in tensors.items():
        if name not in layers:
            raise ValueError(f'the pruner\'s state has layer "{name}", which is not pruned here')
        if tensor.shape != layers[name].shape:
            raise ValueError(
                f'layer "{name}" is {list(layers[name].shape)} here and {list(tensor.shape)} in the pruner\'s state'
            )
