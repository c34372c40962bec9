"""Exact selection: the elements of greatest score over several tensors, of equal scores those of lowest index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from lgreco import _C

Order = str
"""magnitude: |score| counts; value: the score itself."""


def keep_largest(
    scores: Sequence[torch.Tensor],
    kept: int,
    order: Order = "value",
    weights: Sequence[torch.Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> list[torch.Tensor]:
    """Masks that keep exactly `kept` elements of all tensors together.

    Scores compare as fp32, also those of fp64, of which some become ties. Ties go to the lowest index, the tensors one
    after the other as they come. Tensors that are all on one GPU are looked at there, others, and those of a build
    without CUDA kernels, on the CPU; every device gives the same masks.

    Args:
        scores: of any shape and floating type.
        kept: how many, 0 to all.
        order: magnitude or value.
        weights: contiguous fp32 tensors, where the scores are looked at, that become 0 where they are not kept, in the
            same pass.
        names: of the tensors, for messages.

    Returns:
        bool, each of its scores' shape and device.

    Raises:
        ValueError: for a NaN, naming the tensor; or an impossible `kept`.
    """
    device = _where(scores)
    arrays = [each.detach().to(device, torch.float32).contiguous() for each in scores]
    with _current(device):
        return _selected(arrays, kept, order, weights, names, [each.device for each in scores])


def check_numbers(name: str, scores: torch.Tensor) -> None:
    """Refuses NaN.

    Raises:
        ValueError: naming the layer.
    """
    if bool(scores.isnan().any()):
        raise ValueError(f'layer "{name}": scores must be numbers, got NaN') from None


def _selected(
    arrays: Sequence[torch.Tensor],
    kept: int,
    order: Order,
    weights: Sequence[torch.Tensor] | None,
    names: Sequence[str] | None,
    devices: Sequence[torch.device],
) -> list[torch.Tensor]:
    stream = None
    if arrays and arrays[0].device.type == "cuda":
        stream = torch.cuda.current_stream().cuda_stream
    try:
        key, ties, _, _ = _C.find_threshold(arrays, kept, order, stream)
    except ValueError:
        for place, each in enumerate(arrays):
            check_numbers(names[place] if names is not None else f"tensor {place}", each)
        raise
    masks = []
    for place, array in enumerate(arrays):
        mask = torch.empty(array.shape, dtype=torch.bool, device=array.device)
        ties = _C.mark_kept(array, order, key, ties, mask, None if weights is None else weights[place], stream)
        masks.append(mask.to(devices[place]))
    return masks


def _where(scores: Sequence[torch.Tensor]) -> torch.device:
    devices = {each.device for each in scores}
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    return device if device.type == "cuda" and _C.build_info()["cuda"] else torch.device("cpu")


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
