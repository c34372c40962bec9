#!/usr/bin/env python3
"""Times the CPU kernels on one thread against the roof `e += g`, which reads 8 and writes 4 bytes an element.

    python benchmarks/codec.py --mib 25 100 --json codec.json
    python benchmarks/codec.py --lowrank --mib 100 --json lowrank.json

Kernels: encode (fp32 gradient + committed residual -> wire and shadow residual, as the engine calls it),
encode_in_place (the residual overwrites itself), encode_alone (no error feedback), reduce_4 (sum of 4 payloads +
residual -> wire and shadow), reduce_4_alone (no error feedback), decode (wire -> gradient), decode_add (sum += decoded
wire), and for comparison read (each value once), memcpy, torch_eager (encode_in_place of 4 bits in torch's eager
operations), and for a topk choice torch_topk (torch.topk of the whole bucket's magnitudes, made beforehand, not sorted,
nothing coded) and torch_topk_blocks (the same of each block, as the codec chooses).

With --lowrank instead of the choices' kernels, for a square matrix of that size (100 MiB: 5120 x 5120): gather_project
(gradient + residual -> matrix, and its product with q), gather_project_in_place (over the residual), torch_add_mm
(torch's in-place add, then its product), project, project_transposed, orthonormalise, reconstruct (over the gradient,
and what is left over the matrix), reconstruct_own (what is left by factors of this rank's own).

Every repetition times the roof right before the kernel, and kernels take turns, so that both see the same machine. The
clock is the thread's CPU time unless --clock wall: other processes may take the core away without being counted, but
what they do to caches and memory is. ratio_to_roof is a time over a time: 1.25 is 80 % of the roof's speed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import report
import torch
from torch import Tensor

import lgreco
from lgreco import _C

Work = Callable[[], object]
_CHOICES = (
    "quantize(bits=2, block=512)",
    "quantize(bits=4, block=512)",
    "quantize(bits=8, block=512)",
    "quantize(bits=4, block=64)",
    "quantize(bits=4, block=4096)",
    "quantize(bits=4, block=512, grid=symmetric, scales=bf16)",
    "quantize(bits=4, block=512, rounding=stochastic)",
    "quantize(bits=4, block=512, grid=clipped)",
    "quantize(bits=2, block=512, grid=clipped)",
    "topk(density=0.01)",
    "topk(density=0.001)",
    "topk(density=0.1)",
    "topk(density=0.01, block=65536)",
    "randomk(density=0.01)",
    "dense(dtype=fp32)",
    "dense(dtype=bf16)",
)
_CLOCKS = {"thread": time.thread_time, "wall": time.perf_counter}
_COLUMNS = ("kernel", "choice", "numel", "ms_median", "roof_ms_median", "ratio_to_roof", "ns_per_element")
_PAYLOADS = 4
_RANKS = (1, 2, 4, 8)
_NOISE = (1, 0, 0, 0)
_HALF_PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Bucket:
    """What the kernels work on; every tensor fp32 [numel].

    Attributes:
        gradient: read only.
        committed: the residual that is read, and for encode_in_place written.
        shadow: the residual that is written.
        out: where decoded values go, and what the roof adds to.
    """

    gradient: Tensor
    committed: Tensor
    shadow: Tensor
    out: Tensor

    @classmethod
    def of(cls, numel: int, huge_pages: bool) -> Bucket:
        """A bucket with every page touched; `huge_pages`: under the residuals, which are the engine's own memory."""
        torch.manual_seed(0)
        gradient = torch.randn(numel).mul_(1e-3)
        committed, shadow = torch.empty(numel), torch.empty(numel)
        if huge_pages:
            _C.advise_huge_pages(committed)
            _C.advise_huge_pages(shadow)
        torch.mul(gradient.flip(0), 0.1, out=committed)
        return cls(gradient, committed, shadow.zero_(), torch.zeros(numel))


def quantize_works(choice: lgreco.Quantize, bucket: Bucket) -> dict[str, Work]:
    """The kernels of a quantising choice by name."""
    spec = (
        choice.bits, choice.block, choice.grid, choice.rounding == "stochastic", choice.scales == "bf16",
    )  # fmt: skip
    numel = bucket.gradient.numel()
    wires = [torch.zeros(_C.quantize_wire_bytes(spec, numel), dtype=torch.uint8) for _ in range(_PAYLOADS + 1)]

    def encode(committed: Tensor | None, shadow: Tensor | None, wire: Tensor) -> object:
        return _C.quantize_encode(spec, bucket.gradient, committed, shadow, 1.0, _NOISE, wire)

    for wire in wires:  # payloads that were really coded, so that every kernel sees ordinary numbers
        encode(None, None, wire)
    *payloads, out = wires
    return {
        "encode": lambda: encode(bucket.committed, bucket.shadow, out),
        "encode_in_place": lambda: encode(bucket.committed, bucket.committed, out),
        "encode_alone": lambda: encode(None, None, out),
        "reduce_4": lambda: _C.quantize_reduce(
            spec, payloads, 1 / _PAYLOADS, numel, bucket.committed, bucket.shadow, 1.0, _NOISE, out
        ),
        "reduce_4_alone": lambda: _C.quantize_reduce(
            spec, payloads, 1 / _PAYLOADS, numel, None, None, 1.0, _NOISE, out
        ),
        "decode": lambda: _C.quantize_decode(spec, payloads[0], bucket.out),
        "decode_add": lambda: _C.quantize_decode_add(spec, payloads[0], bucket.out),
    }


def sparse_works(choice: lgreco.TopK | lgreco.RandomK, bucket: Bucket) -> dict[str, Work]:
    """The kernels of a topk or randomk choice by name."""
    value_bits = {"fp32": 32, "bf16": 16}.get(choice.values) or int(choice.values.removeprefix("int"))
    spec = (choice.density, choice.block, value_bits, isinstance(choice, lgreco.RandomK))
    numel = bucket.gradient.numel()
    wires = [torch.zeros(_C.sparse_wire_bytes(spec, numel), dtype=torch.uint8) for _ in range(_PAYLOADS + 1)]
    *payloads, out = wires
    for rank, wire in enumerate(payloads):  # ranks whose largest elements differ
        _C.sparse_encode(spec, bucket.gradient.roll(997 * rank), None, None, 1.0, _NOISE, wire)

    def encode(committed: Tensor | None, shadow: Tensor | None) -> object:
        return _C.sparse_encode(spec, bucket.gradient, committed, shadow, 1.0, _NOISE, out)

    works: dict[str, Work] = {
        "encode": lambda: encode(bucket.committed, bucket.shadow),
        "encode_in_place": lambda: encode(bucket.committed, bucket.committed),
        "encode_alone": lambda: encode(None, None),
        "reduce_4": lambda: _C.sparse_reduce(
            spec, payloads, 1 / _PAYLOADS, numel, bucket.committed, bucket.shadow, 1.0, _NOISE, out
        ),
        "decode": lambda: _C.sparse_decode(spec, payloads[0], _NOISE, bucket.out),
    }
    if isinstance(choice, lgreco.TopK):
        magnitudes = bucket.gradient.abs()

        def torch_topk(values: Tensor) -> object:
            return torch.topk(values, max(1, round(choice.density * values.shape[-1])), sorted=False)

        works["torch_topk"] = lambda: torch_topk(magnitudes)
        if numel % choice.block == 0:
            works["torch_topk_blocks"] = lambda: torch_topk(magnitudes.view(-1, choice.block))
    return works


def dense_works(choice: lgreco.Dense, bucket: Bucket) -> dict[str, Work]:
    """The kernels of a dense choice by name."""
    numel = bucket.gradient.numel()
    kind = _HALF_PRECISION[choice.dtype]
    wires = [bucket.gradient.to(kind).clone().view(torch.uint8) for _ in range(_PAYLOADS + 1)]
    *payloads, out = wires
    lossless = kind == torch.float32
    committed, shadow = (None, None) if lossless else (bucket.committed, bucket.shadow)
    return {
        "encode": lambda: _C.dense_encode(choice.dtype, bucket.gradient, committed, shadow, 1.0, out),
        "reduce_4": lambda: _C.dense_reduce(choice.dtype, payloads, 1 / _PAYLOADS, numel, committed, shadow, 1.0, out),
        "decode": lambda: _C.dense_decode(choice.dtype, payloads[0], bucket.out),
    }


def other_works(bucket: Bucket, eager: bool) -> dict[str, Work]:
    """What the kernels are compared with besides the roof."""

    def torch_eager() -> object:
        blocks = (bucket.gradient + bucket.committed).view(-1, 512)
        low, high = blocks.aminmax(dim=1, keepdim=True)
        step = (high - low) / 15
        codes = ((blocks - low) / step).round_().clamp_(0, 15).to(torch.uint8)
        bucket.committed.copy_((blocks - (low + codes * step)).view(-1))
        return codes[:, 0::2] | codes[:, 1::2] << 4

    works: dict[str, Work] = {
        "read": lambda: _C.roof_read(bucket.gradient),
        "memcpy": lambda: _C.roof_copy(bucket.out, bucket.gradient),
    }
    if eager and bucket.gradient.numel() % 512 == 0:
        works["torch_eager"] = torch_eager
    return works


def lowrank_works(rank: int, bucket: Bucket) -> dict[str, Work]:
    """The low-rank kernels of a rank by name, over square matrices."""
    side = math.isqrt(bucket.gradient.numel())
    gradient, residual, matrix, out = (
        tensor[: side * side].view(side, side)
        for tensor in (bucket.gradient, bucket.committed, bucket.shadow, bucket.out)
    )
    p, q, own_p, own_q, basis = (torch.empty(rank, side) for _ in range(5))
    for layer, factor in enumerate((p, q, own_p, own_q, basis)):
        for column in range(rank):
            _C.lowrank_seed_column(factor, column, 1, layer)
    seeded, product, columns = basis.clone(), torch.empty(side, rank), q.t().contiguous()

    def orthonormalise() -> None:
        basis.copy_(seeded)
        _C.lowrank_orthonormalise(basis)

    def torch_add_mm() -> None:
        residual.add_(gradient)
        torch.mm(residual, columns, out=product)

    def reconstruct(left_by_p: Tensor, left_by_q: Tensor) -> object:
        return _C.lowrank_reconstruct(p, q, 0.25, out, matrix, left_by_p, left_by_q, matrix)

    return {
        "gather_project": lambda: _C.lowrank_gather_project(gradient, residual, 1.0, matrix, q, p),
        "gather_project_in_place": lambda: _C.lowrank_gather_project(gradient, residual, 1.0, residual, q, p),
        "torch_add_mm": torch_add_mm,
        "project": lambda: _C.lowrank_project(matrix, q, p),
        "project_transposed": lambda: _C.lowrank_project_transposed(matrix, p, q),
        "orthonormalise": orthonormalise,
        "reconstruct": lambda: reconstruct(p, q),
        "reconstruct_own": lambda: reconstruct(own_p, own_q),
    }


def choice_works(choice: lgreco.Choice, bucket: Bucket) -> dict[str, Work]:
    """The kernels of a choice by name."""
    match choice:
        case lgreco.Quantize():
            return quantize_works(choice, bucket)
        case lgreco.TopK() | lgreco.RandomK():
            return sparse_works(choice, bucket)
        case lgreco.Dense():
            return dense_works(choice, bucket)
    raise ValueError(f"choice must be dense, quantize, topk or randomk, got {choice}")


def works_of(choices: Sequence[str], lowrank: bool, bucket: Bucket, eager: bool) -> dict[tuple[str, str], Work]:
    """Everything that is timed, by kernel and choice."""
    works = {(kernel, "-"): work for kernel, work in other_works(bucket, eager).items()}
    if lowrank:
        for rank in _RANKS:
            works |= {(kernel, f"rank={rank}"): work for kernel, work in lowrank_works(rank, bucket).items()}
        return works
    for text in choices:
        choice = lgreco.parse(text)
        works |= {(kernel, str(choice)): work for kernel, work in choice_works(choice, bucket).items()}
    return works


def measure(works: dict[tuple[str, str], Work], bucket: Bucket, repeats: int, clock: str) -> list[dict[str, Any]]:
    """One row for each kernel and choice."""
    now = _CLOCKS[clock]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    roofs: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(repeats):
        for key, work in works.items():
            began = now()
            _C.roof_add(bucket.out, bucket.gradient)
            between = now()
            work()
            ended = now()
            roofs[key].append((between - began) * 1e3)
            times[key].append((ended - between) * 1e3)
    numel = bucket.gradient.numel()
    return [
        {
            "kernel": kernel,
            "choice": choice,
            "numel": numel,
            "ms_median": median(times[kernel, choice]),
            "roof_ms_median": median(roofs[kernel, choice]),
            "ratio_to_roof": median(times[kernel, choice]) / median(roofs[kernel, choice]),
            "ns_per_element": median(times[kernel, choice]) * 1e6 / numel,
        }
        for kernel, choice in works
    ]


def main() -> int:
    """Runs the benchmark; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[25, 100], help="sizes of the fp32 bucket")
    parser.add_argument("--choice", nargs="+", default=list(_CHOICES), metavar="CHOICE")
    parser.add_argument("--lowrank", action="store_true", help="time the low-rank kernels instead of the choices'")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="thread")
    parser.add_argument("--level", choices=("sse2", "avx2", "avx512"), help="instruction set level, default the best")
    parser.add_argument("--small-pages", action="store_true", help="residuals without the engine's 2 MiB pages")
    parser.add_argument("--eager", action="store_true", help="also time torch's eager operations")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.level:
        _C.set_cpu_level(arguments.level)
    rows: list[dict[str, Any]] = []
    for mib in arguments.mib:
        bucket = Bucket.of(mib * 2**20 // 4, not arguments.small_pages)
        works = works_of(arguments.choice, arguments.lowrank, bucket, arguments.eager)
        rows += measure(works, bucket, arguments.repeats, arguments.clock)
    settings = {**vars(arguments), "level": _C.cpu_level(), "threads": 1}
    report.print_table(rows, _COLUMNS, title=f"one thread, {settings['level']}")
    if arguments.json:
        report.write_json(arguments.json, settings=settings, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
