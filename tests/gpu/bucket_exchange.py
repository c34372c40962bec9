"""One bucket's exchange of three ranks in one process: on the GPU in batches, on the CPU run by run, compared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from twins import Noise, Residual, Twins, bits_equal

from lgreco import _C

RANKS = 3
OWN = 1
SEED = 0x123456789ABCDEF
STEP = 9
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Run:
    """Where one run lies: elements into the bucket and the arenas, bytes into the wire, its bit and its noise."""

    gradient: int
    residual: int
    wire: int
    bit: int
    numel: int
    first_block: int
    stream: int

    def of(self, bucket_or_arena: Tensor, offset: int) -> Tensor:
        """This run's elements, which begin at `offset`."""
        return bucket_or_arena[offset : offset + self.numel]


@dataclass(frozen=True)
class Settings:
    """What an exchange is tried with."""

    dtype: torch.dtype = FP32
    residual: torch.dtype | None = FP32
    scale: float = 1.0
    committed: int = 0
    own_apart: bool = False
    """The owner's own payload lies in its wire and not in the inbox."""
    broken: bool = False
    """Rank 1's gradient holds an inf and a NaN."""
    seed: int = 0


def settings_for(seed: int) -> Settings:
    return Settings(
        dtype=(FP32, BF16, FP16)[seed % 3],
        residual=(FP32, BF16, FP32, BF16, None)[seed % 5],
        scale=1024.0 if seed % 4 == 0 else 1.0,
        committed=seed // 2 % 2,
        own_apart=seed % 7 > 3,
        seed=seed,
    )


class Exchange:
    """One bucket's exchange of three ranks in one process, on the GPU and run by run on the CPU."""

    def __init__(self, codec: Twins, sizes: list[int], settings: Settings) -> None:
        self.codec, self.settings = codec, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.runs: list[Run] = []
        bucket, residual, wire, bit = 0, 0, 64, 8 * 16 + 5
        for index, numel in enumerate(sizes):
            bucket += index % 3  # layers lie in a bucket at any element
            lossy = index % 4 != 3
            self.runs.append(Run(bucket, residual if lossy else -1, wire, bit, numel, 7 * index, 100 + index))
            bucket += numel
            residual += (numel + 15) // 16 * 16 if lossy else 0
            wire += (codec.wire_bytes(numel) + 15) // 16 * 16
            bit += 11
        self.bucket_numel, self.wire_bytes = bucket, wire
        self.batch = _C.cuda.Batch([dataclasses.astuple(run) for run in self.runs], codec.block, torch.device("cuda"))
        self.transaction = torch.tensor([settings.committed, STEP, 0, 1], dtype=torch.int32).cuda()
        self.scale = torch.tensor([settings.scale]).cuda()
        self.arenas: list[Tensor] | None = None
        self.cpu_arenas: list[Tensor] | None = None
        if settings.residual is not None:
            drawn = [torch.randn(residual + 16, generator=self.generator) for _ in range(2)]
            self.cpu_arenas = [arena.to(settings.residual) for arena in drawn]
            self.arenas = [arena.cuda() for arena in self.cpu_arenas]

    def gradient_of(self, rank: int) -> Tensor:
        """The second run is zero on every rank, the third on all but the last."""
        values = torch.randn(self.bucket_numel, generator=self.generator)
        values *= torch.exp2(torch.randint(-12, 3, values.shape, generator=self.generator))
        for index, run in enumerate(self.runs[1:3], start=1):
            if index == 1 or rank < RANKS - 1:
                run.of(values, run.gradient).fill_(-0.0 if index == 1 else 0.0)
        if self.settings.broken and rank == 1:
            values[self.runs[0].gradient] = float("nan")
            values[self.runs[-1].gradient + self.runs[-1].numel - 1] = float("-inf")
        return values.to(self.settings.dtype)

    def residual_of(self, run: Run) -> Residual:
        """What the CPU kernels are told of the run's residual."""
        if self.cpu_arenas is None or run.residual < 0:
            return None, None, 1.0
        committed = self.cpu_arenas[self.settings.committed]
        shadow = self.cpu_arenas[1 - self.settings.committed]
        return run.of(committed, run.residual), run.of(shadow, run.residual), self.settings.scale

    def keep(self, run: Run) -> None:
        """The run is not coded: its shadow becomes what is committed."""
        committed, shadow, _ = self.residual_of(run)
        if committed is not None and shadow is not None:
            shadow.copy_(committed)

    def noise_of(self, run: Run) -> Noise:
        """What the CPU kernels are told of the run's noise."""
        return SEED, STEP, run.stream, run.first_block

    def slice_of(self, wire: Tensor, run: Run) -> Tensor:
        """The run's own bytes."""
        return wire[run.wire : run.wire + self.codec.wire_bytes(run.numel)]

    def encode(self) -> Tensor:
        """All ranks' wires, [ranks, wire_bytes], on the CPU; checks that both sides agree."""
        wires = []
        for rank in range(RANKS):
            gradient = self.gradient_of(rank)
            wire = torch.full((self.wire_bytes,), 0x5A, dtype=torch.uint8)
            on_gpu = wire.cuda()
            _C.cuda.clear_bits(self.batch, on_gpu, stream())
            self.codec.encode(
                self.batch, gradient.cuda(), self.arenas, self.scale, self.transaction, SEED, on_gpu, stream()
            )
            for run in self.runs:
                set_bit(wire, run.bit, False)
                nonzero = self.codec.encode_run(
                    run.of(gradient, run.gradient), self.residual_of(run), self.noise_of(run), self.slice_of(wire, run)
                )
                set_bit(wire, run.bit, nonzero)
            assert self.codec.wires_equal(on_gpu.cpu(), wire), f"wire of rank {rank}"
            self.check_arenas("encode")
            wires.append(wire)
        return torch.stack(wires)

    def reduce(self, wires: Tensor) -> Tensor:
        """The owner's wire, [wire_bytes], on the CPU."""
        inbox, out = wires.cuda(), wires[OWN].clone()
        on_gpu = out.cuda()
        if self.settings.own_apart:
            inbox[OWN] = 0xFF  # must not be read
        own_rank = OWN if self.settings.own_apart else -1
        self.codec.reduce(
            self.batch, inbox.flatten(), RANKS, own_rank, 1 / RANKS, self.arenas, self.scale, self.transaction, SEED,
            on_gpu, stream(),
        )  # fmt: skip
        for run in self.runs:
            if not any(bit_of(wire, run.bit) for wire in wires):
                self.keep(run)
                continue
            set_bit(out, run.bit, True)
            parts = [self.slice_of(wire, run) for wire in wires]
            self.codec.reduce_run(
                parts, 1 / RANKS, run.numel, self.residual_of(run), self.noise_of(run), self.slice_of(out, run)
            )
        assert self.codec.wires_equal(on_gpu.cpu(), out), "wire of the sum"
        self.check_arenas("reduce")
        return out

    def decode(self, wire: Tensor) -> Tensor:
        """The averaged bucket, on the CPU."""
        bucket = torch.full((self.bucket_numel,), 77.0, dtype=self.settings.dtype)
        on_gpu = bucket.cuda()
        self.codec.decode(self.batch, wire.cuda(), on_gpu, self.arenas, self.transaction, SEED, stream())
        nonfinite = False
        for run in self.runs:
            out = run.of(bucket, run.gradient)
            if bit_of(wire, run.bit):
                nonfinite |= self.codec.decode_run(self.slice_of(wire, run), self.noise_of(run), out)
            else:
                out.zero_()
                self.keep(run)
        assert bits_equal(on_gpu.cpu(), bucket), "decoded bucket"
        assert self.flagged() == nonfinite
        self.check_arenas("decode")
        return bucket

    def check_arenas(self, after: str) -> None:
        """Both arenas hold the same on both sides."""
        if self.arenas is None or self.cpu_arenas is None:
            return
        for half, (arena, expected) in enumerate(zip(self.arenas, self.cpu_arenas, strict=True)):
            assert bits_equal(arena.cpu(), expected), f"residual {half} after {after}"

    def flagged(self) -> bool:
        """Whether the step will be dropped."""
        return bool(self.transaction[2].item())

    def check(self) -> Tensor:
        """The whole exchange."""
        return self.decode(self.reduce(self.encode()))


def stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def bit_of(wire: Tensor, bit: int) -> bool:
    return bool(int(wire[bit // 8]) >> (bit % 8) & 1)


def set_bit(wire: Tensor, bit: int, value: bool) -> None:
    byte = int(wire[bit // 8])
    wire[bit // 8] = byte | 1 << (bit % 8) if value else byte & ~(1 << (bit % 8))
