"""Nominal bytes of a choice on a layer: its values, scales and indices, without the headers and padding of the wire.

For tables that are read where nothing is exchanged: they follow from the choice alone. What is sent is counted by the
engine and stands in records and error tables.
"""

from __future__ import annotations

import math

from lgreco.choice import Choice, Dense, LowRank, Quantize, RandomK, TopK
from lgreco.layer import LayerInfo

_SCALE_BITS = {"fp32": 32, "bf16": 16}
_VALUE_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, **{f"int{bits}": bits for bits in range(2, 9)}}


def nominal_bytes(layer: LayerInfo, choice: Choice) -> int:
    """Encoded bytes of one whole copy of the layer's gradient."""
    if layer.numel == 0:
        return 0
    return math.ceil(_bits(layer, choice) / 8)


def _bits(layer: LayerInfo, choice: Choice) -> float:
    if isinstance(choice, Dense):
        return layer.numel * _VALUE_BITS[choice.dtype]
    if isinstance(choice, Quantize):
        scales = _SCALE_BITS[choice.scales] * (2 if choice.grid == "minmax" else 1)
        return layer.numel * choice.bits + math.ceil(layer.numel / choice.block) * scales
    if isinstance(choice, TopK | RandomK):
        return _sparse_bits(layer, choice)
    if isinstance(choice, LowRank):
        return _low_rank_bits(layer, choice)
    raise ValueError(f"nominal bytes are known of the codecs of lgreco.choice, got {choice}")


def _sparse_bits(layer: LayerInfo, choice: TopK | RandomK) -> float:
    """Whole blocks and the rest, each with its own count; top-k's indices in Elias-Fano's code or a bitmap."""
    full, rest = divmod(layer.numel, choice.block)
    total = 0.0
    for blocks, numel in ((full, choice.block), (1, rest)):
        if blocks and numel:
            kept = max(1, round(numel * choice.density))
            scale = 32 if choice.values.startswith("int") else 0
            indices = (
                min(numel, kept * (2 + max(0, math.ceil(math.log2(numel / kept))))) if choice.codec == "topk" else 0
            )
            total += blocks * (kept * _VALUE_BITS[choice.values] + scale + indices)
    return total


def _low_rank_bits(layer: LayerInfo, choice: LowRank) -> float:
    """P [rows, rank] and Q [columns, rank], for integers one scale a column of each."""
    rows = layer.shape[0] if layer.shape else 1
    columns = layer.numel // rows
    rank = min(choice.rank, rows, columns)
    q = choice.factors if choice.q == "same" else choice.q
    bits = sum(
        rank * (size * _VALUE_BITS[values] + (32 if values.startswith("int") else 0))
        for size, values in ((rows, choice.factors), (columns, q))
    )
    return bits / 2 if choice.iterate == "alternate" else bits
