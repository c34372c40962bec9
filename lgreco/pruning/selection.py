"""Exact selection: the elements of greatest score over several tensors, of equal scores those of lowest index."""

from __future__ import annotations

from collections.abc import Sequence

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

    Ties go to the lowest index, the tensors one after the other as they come. Tensors on a device are looked at on the
    CPU, so that every device gives the same masks.

    Args:
        scores: of any shape and floating type.
        kept: how many, 0 to all.
        order: magnitude or value.
        weights: contiguous fp32 tensors on the CPU that become 0 where they are not kept, in the same pass.
        names: of the tensors, for messages.

    Returns:
        bool, each of its scores' shape and device.

    Raises:
        ValueError: for a NaN, naming the tensor; or an impossible `kept`.
    """
    arrays = [each.detach().to("cpu", torch.float32).contiguous() for each in scores]
    try:
        key, ties, _, _ = _C.find_threshold(arrays, kept, order)
    except ValueError:
        for place, each in enumerate(arrays):
            if bool(each.isnan().any()):
                name = names[place] if names is not None else f"tensor {place}"
                raise ValueError(f'layer "{name}": scores must be numbers, got NaN') from None
        raise
    masks = []
    for place, array in enumerate(arrays):
        mask = torch.empty(array.shape, dtype=torch.bool, device="cpu")
        ties = _C.mark_kept(array, order, key, ties, mask, None if weights is None else weights[place])
        masks.append(mask.to(scores[place].device))
    return masks
