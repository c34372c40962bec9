"""attach: one call that registers the compressed exchange on a DDP module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from lgreco.config import Config
from lgreco.hook import hook
from lgreco.state import State


def attach(
    ddp: DistributedDataParallel,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    scaler: Any = None,
) -> State:
    """Registers the compressed exchange on `ddp`; collective over its process group.

    Call it once, after wrapping the model and before the first backward. Without a config, every matrix of 4096
    elements or more is quantised to 4 bits with error feedback, after 20 dense steps; the rest stays dense.

    Args:
        ddp: the wrapped model, its parameters on the CPU or on one CUDA device.
        config: an `lgreco.Config`, a dict, the path of a YAML file, or None.
        scaler: the `torch.amp.GradScaler` in use, if any: residuals are kept unscaled, so that they stay right when
            the scale changes.

    Returns:
        The state: plan, counters, checkpoints. DDP keeps it; it may be dropped, and ends with the model that is.

    Raises:
        ValueError: where the config or the model is not supported, or ranks disagree; says what, and what is allowed.
    """
    settings = Config.load(config)
    check(ddp)
    state = State(settings, ddp.process_group)
    if not settings.enabled:
        return state
    state._bind(ddp, scaler)
    if state.way == "bf16":  # config.auto: faster here
        ddp.register_comm_hook(ddp.process_group, bf16_compress_hook)
    if not state.registered:
        return state
    state._register(ddp)
    ddp._comm_hooks.append((hook, state))  # so that DDP, too, knows that a hook is there
    if ddp.logger is not None:
        ddp.logger._set_comm_hook_name("lgreco")
    return state


def check(ddp: DistributedDataParallel) -> None:
    """Refuses what would train dense unnoticed, or not at all.

    Raises:
        ValueError: says why, and what to do.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise ValueError(
            f"attach takes a DistributedDataParallel module, got {type(ddp).__name__}; wrap the model first"
        )
    if ddp._comm_hooks:
        names = ", ".join(getattr(registered, "__qualname__", str(registered)) for registered, _ in ddp._comm_hooks)
        raise ValueError(f"a communication hook is registered already ({names}); a DDP module takes one")
    if getattr(ddp, "_use_python_reducer", False):
        raise ValueError(
            'torch._dynamo.config.optimize_ddp="python_reducer" bypasses native hooks and would train dense; '
            'set it to True ("ddp_optimizer") or False before wrapping the model'
        )
    if ddp.mixed_precision is not None:
        raise ValueError(
            "DDP(mixed_precision=...) installs a hook of its own; use torch.autocast, or bf16 parameters, instead"
        )
    if getattr(ddp, "_delay_all_reduce_params", None):
        raise ValueError("DDP(delay_all_reduce_named_params=...) bypasses hooks; leave it out")
    for name, module in ddp.module.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(f'layer "{name}" has sparse=True: sparse gradients are not supported; set sparse=False')
    for name, parameter in ddp.module.named_parameters():
        if getattr(parameter, "_in_backward_optimizers", None):
            raise ValueError(
                f'layer "{name}" is stepped by an optimizer in backward, which needs a hook of its own; '
                "step the optimizer after backward"
            )
        if parameter.requires_grad and torch.is_complex(parameter):
            raise ValueError(
                f'layer "{name}" is {parameter.dtype}: complex gradients are not supported, only real ones'
            )
