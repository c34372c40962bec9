"""A codec's kernels on both sides, called the same way: a whole batch on the GPU, one run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lgreco import _C

Residual = tuple[Tensor | None, Tensor | None, float]
"""Committed and shadow residual of a run, fp32 or bf16 [numel], None for no error feedback; the loss scale."""
Noise = tuple[int, int, int, int]
"""seed, step, stream, first block"""

ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Twins:
    """A codec with parameters. Wires are uint8.

    Attributes:
        codec: `quantize`, `sparse` or `dense`, as the kernels' names begin.
        parameters: (bits, block, grid, stochastic, bf16_scales), (density, block, value_bits, random), or the
            dtype on the dense wire.
        block: elements that are coded together.
    """

    codec: str
    parameters: Any
    block: int

    def __str__(self) -> str:
        return f"{self.codec}-{self.parameters}".replace(" ", "")

    def wire_bytes(self, numel: int) -> int:
        """Bytes of a run."""
        if self.codec == "dense":
            return numel * ELEMENTS[self.parameters].itemsize
        return int(getattr(_C, f"{self.codec}_wire_bytes")(self.parameters, numel))

    def encode(
        self, batch: Any, gradient: Tensor, arenas: list[Tensor] | None, scale: Tensor | None, transaction: Tensor,
        seed: int, wire: Tensor, stream: int,
    ) -> None:  # fmt: skip
        """Codes a batch on the GPU."""
        kernel = self._kernel(_C.cuda, "encode")
        kernel(batch, gradient, arenas, scale, transaction, *self._noise(seed), wire, stream)

    def reduce(
        self, batch: Any, inbox: Tensor, count: int, own_rank: int, factor: float, arenas: list[Tensor] | None,
        scale: Tensor | None, transaction: Tensor, seed: int, out: Tensor, stream: int,
    ) -> None:  # fmt: skip
        """Sums and codes a batch on the GPU; `inbox` holds the payloads one after the other."""
        kernel = self._kernel(_C.cuda, "reduce")
        kernel(batch, inbox, count, own_rank, factor, arenas, scale, transaction, *self._noise(seed), out, stream)

    def decode(
        self, batch: Any, wire: Tensor, out: Tensor, arenas: list[Tensor] | None, transaction: Tensor, seed: int,
        stream: int,
    ) -> None:  # fmt: skip
        """Decodes a batch on the GPU."""
        drawn = (seed,) if self.codec == "sparse" else ()
        self._kernel(_C.cuda, "decode")(batch, wire, out, arenas, transaction, *drawn, stream)

    def encode_run(self, gradient: Tensor, residual: Residual, noise: Noise, wire: Tensor) -> bool:
        """Codes a run on the CPU; returns whether its gradient has a nonzero element."""
        return bool(self._kernel(_C, "encode")(gradient, *residual, *self._noise(noise), wire)[1])

    def reduce_run(self, wires: list[Tensor], factor: float, numel: int, residual: Residual, noise: Noise, out: Tensor) -> None:  # fmt: skip # noqa: E501
        """Sums and codes a run on the CPU."""
        self._kernel(_C, "reduce")(wires, factor, numel, *residual, *self._noise(noise), out)

    def decode_run(self, wire: Tensor, noise: Noise, out: Tensor) -> bool:
        """Decodes a run on the CPU; returns whether the result has an inf or NaN."""
        drawn = (noise,) if self.codec == "sparse" else ()
        return bool(self._kernel(_C, "decode")(wire, *drawn, out))

    def wires_equal(self, left: Tensor, right: Tensor) -> bool:
        """Bit for bit, but for a NaN on the dense wire: processors that compute one choose its bits differently."""
        if self.codec == "dense":
            return bits_equal(left.view(ELEMENTS[self.parameters]), right.view(ELEMENTS[self.parameters]))
        return torch.equal(left, right)

    def _kernel(self, module: Any, stage: str) -> Callable[..., Any]:
        kernel = getattr(module, f"{self.codec}_{stage}")
        return lambda *arguments: kernel(self.parameters, *arguments)

    def _noise(self, noise: Any) -> tuple[Any, ...]:
        return () if self.codec == "dense" else (noise,)


def quantize(bits: int, block: int, grid: str, stochastic: bool, bf16_scales: bool) -> Twins:
    """The quantising kernels."""
    return Twins("quantize", (bits, block, grid, stochastic, bf16_scales), block)


def sparse(density: float, block: int, value_bits: int, random: bool) -> Twins:
    """The kernels of topk, or of randomk where elements are drawn at random."""
    return Twins("sparse", (density, block, value_bits, random), block)


def dense(dtype: str) -> Twins:
    """The dense kernels with fp32, bf16 or fp16 on the wire."""
    return Twins("dense", dtype, 512)


def bits_equal(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, or NaN on both sides."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[left.element_size()]
    same = left.view(words) == right.view(words)
    if left.is_floating_point():
        same |= left.isnan() & right.isnan()
    return bool(same.all())
