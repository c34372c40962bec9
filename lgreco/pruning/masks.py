"""Masks: which weights are kept, as bools while training and as bits in checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lgreco import _C


def pack(mask: torch.Tensor) -> dict[str, Any]:
    """A mask as 1 bit a weight: uint8 [ceil(numel / 8)], element i in bit i % 8 of byte i // 8, and its shape."""
    return {"bits": _C.pack_mask(mask.cpu().contiguous())[0], "shape": list(mask.shape)}


def unpack(packed: Mapping[str, Any]) -> torch.Tensor:
    """The inverse of `pack`: bool, on the CPU.

    Raises:
        ValueError: where bits and shape do not fit.
    """
    shape = torch.Size(packed["shape"])
    return _C.unpack_mask(packed["bits"].cpu().contiguous(), shape.numel()).view(shape)


def checksum(mask: torch.Tensor) -> int:
    """63 bits that are equal for equal masks."""
    bits = _C.pack_mask(mask.cpu().contiguous())[0].numpy()
    return int.from_bytes(hashlib.sha256(bits.data).digest()[:8], "little") >> 1


def hold_(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    """Zeroes a tensor in place where the mask is False, NaN and infinity included.

    Args:
        tensor: of the mask's shape, any floating type.
        mask: bool, on the tensor's device.
    """
    tensor = tensor.detach()
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous():
        _C.hold_mask(mask.contiguous(), tensor)
    else:
        tensor.masked_fill_(~mask, 0)


def kept_numel(mask: torch.Tensor) -> int:
    """How many weights are kept."""
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.numpy()))  # torch's takes five times as long
    return int(mask.count_nonzero())
