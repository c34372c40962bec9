"""Accelerate: attaches to the model that `prepare` wrapped, and travels with `save_state` and `load_state`.

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
state = attach(accelerator, model, "lgreco.yaml")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from lgreco.attach import attach as attach_to_ddp
from lgreco.config import Config
from lgreco.state import State


def attach(
    accelerator: Accelerator,
    model: torch.nn.Module,
    config: Config | Mapping[str, Any] | str | Path | None = None,
) -> State:
    """Compresses the gradients of a prepared model; collective over all processes.

    Call it once, after `prepare` and before `load_state`. `accelerator.save_state` then writes the residuals of all
    ranks, and `load_state` reads them at any number of ranks.

    Args:
        accelerator: that prepared the model.
        model: what `prepare` gave back.
        config: an `lgreco.Config`, a dict, the path of a YAML file, or None.

    Raises:
        ValueError: where the model is not wrapped, or `lgreco.attach` refuses config or model.
    """
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            "lgreco needs the DistributedDataParallel model that accelerator.prepare gives where several processes "
            f"were started (accelerate launch --num_processes 2), got {type(model).__name__} of "
            f"{accelerator.num_processes} processes, {accelerator.distributed_type}"
        )
    state = attach_to_ddp(model, config, accelerator.scaler)
    if state.config.enabled:
        accelerator.register_for_checkpointing(Gathered(state))
    return state


class Gathered:
    """A state as Accelerate saves it: one object for all ranks, asked for on each of them."""

    def __init__(self, state: State) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks; collective."""
        return self._state.gather()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Into this rank."""
        self._state.load_state_dict(state_dict)
