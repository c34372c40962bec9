"""A layer: one parameter tensor, known by its name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a layer.

    Attributes:
        name: as in named_parameters() of the module inside DDP, without `module.`.
        shape: of the tensor; () for a scalar.
        dtype: of its gradient: fp32, bf16 or fp16.
        kept: elements that its mask keeps; None where it has none.

    Raises:
        ValueError: for another dtype, or more elements kept than there are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kept: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f'layer "{self.name}": dtype must be {", ".join(ELEMENT_BYTES)}, got {self.dtype}')
        if self.kept is not None and not 0 <= self.kept <= self.numel:
            raise ValueError(f'layer "{self.name}": kept must be 0..{self.numel}, got {self.kept}')

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def sent_numel(self) -> int:
        """Elements that are exchanged: those that its mask keeps."""
        return self.numel if self.kept is None else self.kept

    @property
    def dense_bytes(self) -> int:
        """Bytes of its whole gradient, neither masked nor compressed."""
        return self.numel * ELEMENT_BYTES[self.dtype]


def layer_of(name: str, parameter: torch.Tensor) -> LayerInfo:
    """The layer of a parameter tensor.

    Raises:
        ValueError: for a parameter that is not fp32, bf16 or fp16; names it.
    """
    dtype = _DTYPE_NAMES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
    return LayerInfo(name, tuple(parameter.shape), dtype)
