"""A layer: one parameter tensor, known by its name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a layer.

    Attributes:
        name: as in named_parameters() of the module inside DDP, without `module.`.
        shape: of the tensor; () for a scalar.
        dtype: of its gradient: fp32, bf16 or fp16.
        kept: elements that its mask keeps; None where it has none.
        kept_matrix: rows and columns of its matrix that its mask keeps, where those are what it keeps, so that low rank
            factors this smaller matrix; None where it has no mask, or one of another kind.
        order: dimensions from the outermost to the innermost as the gradient lies in memory; None: row-major.

    Raises:
        ValueError: for another dtype, more elements kept than there are, or a kept matrix of another size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kept: int | None = None
    kept_matrix: tuple[int, int] | None = None
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f'layer "{self.name}": dtype must be {", ".join(ELEMENT_BYTES)}, got {self.dtype}')
        if self.kept is not None and not 0 <= self.kept <= self.numel:
            raise ValueError(f'layer "{self.name}": kept must be 0..{self.numel}, got {self.kept}')
        if self.kept_matrix is not None and math.prod(self.kept_matrix) != self.kept:
            raise ValueError(
                f'layer "{self.name}": kept_matrix must be (rows, columns) of {self.kept} elements, '
                f"got {self.kept_matrix}"
            )

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def sent_numel(self) -> int:
        """Elements that are exchanged: those that its mask keeps."""
        return self.numel if self.kept is None else self.kept

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of what low rank factors: what is kept where that is a matrix, else all of it."""
        return matrix_shape(self.shape) if self.kept_matrix is None else self.kept_matrix

    @property
    def factored_numel(self) -> int:
        """Elements of that matrix."""
        return math.prod(self.matrix)

    @property
    def dense_bytes(self) -> int:
        """Bytes of its whole gradient, neither masked nor compressed."""
        return self.numel * ELEMENT_BYTES[self.dtype]


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile and checkpoint_wrapper put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as a matrix: the first dimension by all others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def kept_matrix_from(value: object) -> tuple[int, int] | None:
    """Reads a layer's kept matrix as files hold it: a list of two whole numbers, or nothing.

    Raises:
        ValueError: for anything else.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(size) is int for size in value):
        raise ValueError(f"kept_matrix must be two whole numbers, got {value!r}")
    return value[0], value[1]


def layer_of(name: str, parameter: torch.Tensor) -> LayerInfo:
    """The layer of a parameter tensor.

    Raises:
        ValueError: for a parameter that is not fp32, bf16 or fp16; names it.
    """
    dtype = _DTYPE_NAMES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
    return LayerInfo(name, tuple(parameter.shape), dtype, order=_memory_order(parameter))


def _memory_order(parameter: torch.Tensor) -> tuple[int, ...] | None:
    """As DDP lays gradients out: as the parameter lies where it has no holes (channels_last), else row-major."""
    if parameter.is_contiguous():
        return None
    strides = parameter.stride()
    order = tuple(sorted(range(parameter.dim()), key=lambda dimension: -strides[dimension]))
    return order if parameter.permute(order).is_contiguous() else None
