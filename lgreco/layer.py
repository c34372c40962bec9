"""A layer: one parameter tensor, known by its name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a layer before training.

    Attributes:
        name: as in named_parameters() of the module inside DDP, without `module.`.
        shape: of the tensor; () for a scalar.
        dtype: of its gradient: fp32, bf16 or fp16.

    Raises:
        ValueError: for another dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f'layer "{self.name}": dtype must be {", ".join(ELEMENT_BYTES)}, got {self.dtype}')

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes of its gradient, not compressed."""
        return self.numel * ELEMENT_BYTES[self.dtype]


def layer_of(name: str, parameter: torch.Tensor) -> LayerInfo:
    """The layer of a parameter tensor.

    Raises:
        ValueError: for a parameter that is not fp32, bf16 or fp16; names it.
    """
    dtype = _DTYPE_NAMES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
    return LayerInfo(name, tuple(parameter.shape), dtype)
