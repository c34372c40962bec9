"""The CUDA kernels against the CPU kernels: the same bits for every run of a batch, through a whole exchange."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from twins import CodecTwins, Dense, Quantize, bits_equal, wire_slice

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

    def fields(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)


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

    def __init__(self, codec: CodecTwins, sizes: list[int], settings: Settings) -> None:
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
        self.batch = _C.cuda.Batch([run.fields() for run in self.runs], codec.block, torch.device("cuda"))
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
                values[run.gradient : run.gradient + run.numel] = -0.0 if index == 1 else 0.0
        if self.settings.broken and rank == 1:
            values[self.runs[0].gradient] = float("nan")
            values[self.runs[-1].gradient + self.runs[-1].numel - 1] = float("-inf")
        return values.to(self.settings.dtype)

    def cpu_feedback(self, run: Run) -> tuple[Tensor | None, Tensor | None]:
        """The run's committed and shadow residual."""
        if self.cpu_arenas is None or run.residual < 0:
            return None, None
        committed = self.settings.committed
        arenas = (self.cpu_arenas[committed], self.cpu_arenas[1 - committed])
        return arenas[0][run.residual :][: run.numel], arenas[1][run.residual :][: run.numel]

    def keep(self, run: Run) -> None:
        committed, shadow = self.cpu_feedback(run)
        if committed is not None and shadow is not None:
            shadow.copy_(committed)

    def noise_of(self, run: Run) -> tuple[int, int, int, int]:
        return SEED, STEP, run.stream, run.first_block

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
                committed, shadow = self.cpu_feedback(run)
                nonzero = self.codec.encode_run(
                    gradient[run.gradient :][: run.numel],
                    committed,
                    shadow,
                    self.settings.scale,
                    self.noise_of(run),
                    wire_slice(wire, run.wire, self.codec.wire_bytes(run.numel)),
                )
                set_bit(wire, run.bit, nonzero)
            assert bits_equal(on_gpu.cpu(), wire), f"wire of rank {rank}"
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
            committed, shadow = self.cpu_feedback(run)
            wire_bytes = self.codec.wire_bytes(run.numel)
            self.codec.reduce_run(
                [wire_slice(wire, run.wire, wire_bytes) for wire in wires],
                1 / RANKS,
                run.numel,
                committed,
                shadow,
                self.settings.scale,
                self.noise_of(run),
                wire_slice(out, run.wire, wire_bytes),
            )
        assert self.codec.wires_equal(on_gpu.cpu(), out), "wire of the sum"
        self.check_arenas("reduce")
        return out

    def decode(self, wire: Tensor) -> Tensor:
        """The averaged bucket, on the CPU."""
        bucket = torch.full((self.bucket_numel,), 77.0, dtype=self.settings.dtype)
        on_gpu = bucket.cuda()
        self.codec.decode(self.batch, wire.cuda(), on_gpu, self.arenas, self.transaction, stream())
        nonfinite = False
        for run in self.runs:
            out = bucket[run.gradient :][: run.numel]
            if bit_of(wire, run.bit):
                nonfinite |= self.codec.decode_run(
                    wire_slice(wire, run.wire, self.codec.wire_bytes(run.numel)), out
                )
            else:
                out.zero_()
                self.keep(run)
        assert bits_equal(on_gpu.cpu(), bucket), "decoded bucket"
        assert self.flagged() == nonfinite
        self.check_arenas("decode")
        return bucket

    def check_arenas(self, after: str) -> None:
        if self.arenas is None or self.cpu_arenas is None:
            return
        for half, (arena, expected) in enumerate(zip(self.arenas, self.cpu_arenas, strict=True)):
            assert bits_equal(arena.cpu(), expected), f"residual {half} after {after}"

    def flagged(self) -> bool:
        return bool(self.transaction[2].item())

    def check(self) -> Tensor:
        return self.decode(self.reduce(self.encode()))


def stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def bit_of(wire: Tensor, bit: int) -> bool:
    return bool(int(wire[bit // 8]) >> (bit % 8) & 1)


def set_bit(wire: Tensor, bit: int, value: bool) -> None:
    byte = int(wire[bit // 8])
    wire[bit // 8] = byte | 1 << (bit % 8) if value else byte & ~(1 << (bit % 8))


FLAGS = list(itertools.product((False, True), repeat=3))
AWKWARD = [
    Quantize(bits, block, *FLAGS[(bits + block // 32) % 8]) for bits in (1, 3, 4, 8) for block in (32, 128, 512, 4096)
]


@pytest.mark.parametrize("codec", [*AWKWARD, Dense("fp32"), Dense("bf16"), Dense("fp16")], ids=str)
def test_awkward_sizes(codec: CodecTwins) -> None:
    Exchange(codec, [codec.block + 1, 31, 33, 0, 2 * codec.block, 1, codec.block - 1], settings_for(5)).check()


@pytest.mark.parametrize("block", [32, 64, 96, 128, 256, 512, 800, 1024, 2048, 4096])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_spec(bits: int, block: int) -> None:
    for seed, flags in enumerate(FLAGS, start=10 * bits):
        Exchange(Quantize(bits, block, *flags), [3 * block + 17, 77, 500, 9, 65536 + 5], settings_for(seed)).check()


@pytest.mark.parametrize("codec", [Quantize(4, 512, False, True, False), Dense("fp32"), Dense("bf16"), Dense("fp16")], ids=str)  # fmt: skip
def test_every_type(codec: CodecTwins) -> None:
    for dtype, residual, scale in itertools.product((FP32, BF16, FP16), (FP32, BF16, None), (1.0, 65536.0)):
        settings = Settings(dtype=dtype, residual=residual, scale=scale, committed=1)
        Exchange(codec, [1500, 31, 77, 513, 8192], settings).check()


@pytest.mark.parametrize("codec", [*AWKWARD, Dense("fp32"), Dense("fp16")], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_inf_and_nan_flag_the_step(codec: CodecTwins, dtype: torch.dtype) -> None:
    exchange = Exchange(codec, [700, 31, 33, 600], Settings(dtype=dtype, broken=True))
    bucket = exchange.check()
    assert exchange.flagged()
    assert not torch.isfinite(bucket).all()


def test_fp16_overflow_flags_the_step() -> None:
    exchange = Exchange(Dense("fp32"), [1000, 5, 7], Settings(dtype=FP16, scale=1.0, residual=None))
    wire = torch.zeros(exchange.wire_bytes, dtype=torch.uint8)
    for run in exchange.runs:
        set_bit(wire, run.bit, True)
    wire[exchange.runs[0].wire :][:4].view(FP32).fill_(70000.0)
    exchange.decode(wire)
    assert exchange.flagged()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, 1e-42, 3e38])
def test_constant_and_extreme_blocks(value: float) -> None:
    for flags in FLAGS:
        exchange = Exchange(Quantize(4, 512, *flags), [1025, 3, 4], Settings())
        exchange.gradient_of = lambda rank: torch.full((exchange.bucket_numel,), value)  # type: ignore[method-assign]
        exchange.check()


def test_a_large_bucket() -> None:
    Exchange(Quantize(4, 512, False, True, False), [2**22 + 3, 5, 2**20], settings_for(6)).check()
    Exchange(Dense("bf16"), [2**22 + 3, 5, 2**20], settings_for(6)).check()


def test_the_noise_counts_committed_steps() -> None:
    exchange = Exchange(Quantize(2, 512, False, True, False), [4096], Settings(residual=None))
    gradient = exchange.gradient_of(0).cuda()
    wires = []
    for step in (0, 1, 0):
        exchange.transaction[1] = step
        wire = torch.zeros(exchange.wire_bytes, dtype=torch.uint8, device="cuda")
        exchange.codec.encode(exchange.batch, gradient, None, None, exchange.transaction, SEED, wire, stream())
        wires.append(wire)
    assert torch.equal(wires[0], wires[2])
    assert not torch.equal(wires[0], wires[1])


def test_launches_can_be_captured_because_the_host_never_waits() -> None:
    exchange = Exchange(Quantize(4, 512, False, True, False), [5000, 77, 3, 9], Settings(seed=3))
    gradient = exchange.gradient_of(0).cuda()
    expected = torch.zeros(exchange.wire_bytes, dtype=torch.uint8, device="cuda")
    out, expected_out = torch.zeros_like(gradient), torch.zeros_like(gradient)

    def launch(wire: Tensor, bucket: Tensor) -> None:
        _C.cuda.transaction_begin(exchange.transaction, stream())
        _C.cuda.clear_bits(exchange.batch, wire, stream())
        exchange.codec.encode(
            exchange.batch, gradient, exchange.arenas, exchange.scale, exchange.transaction, SEED, wire, stream()
        )
        exchange.codec.decode(exchange.batch, wire, bucket, exchange.arenas, exchange.transaction, stream())
        _C.cuda.transaction_poison(exchange.transaction, bucket, stream())

    start, arenas = exchange.transaction.clone(), [arena.clone() for arena in exchange.arenas or []]
    launch(expected, expected_out)
    torch.cuda.synchronize()
    exchange.transaction.copy_(start)
    for arena, saved in zip(exchange.arenas or [], arenas, strict=True):
        arena.copy_(saved)
    wire = torch.zeros_like(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(wire, out)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(wire, expected)
    assert torch.equal(out, expected_out)


def test_a_step_is_committed_once_unless_it_is_flagged() -> None:
    transaction = torch.zeros(4, dtype=torch.int32, device="cuda")

    def state() -> list[int]:
        return transaction[:2].tolist()

    _C.cuda.transaction_begin(transaction, stream())
    assert state() == [0, 0]
    _C.cuda.transaction_begin(transaction, stream())
    assert state() == [1, 1]
    _C.cuda.transaction_discard(transaction, stream())
    _C.cuda.transaction_begin(transaction, stream())
    assert state() == [1, 1]
    _C.cuda.transaction_settle(transaction, stream())
    assert state() == [0, 2]
    _C.cuda.transaction_settle(transaction, stream())
    assert state() == [0, 2]


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_a_flagged_step_delivers_inf(dtype: torch.dtype) -> None:
    transaction = torch.tensor([0, 0, 0, 1], dtype=torch.int32).cuda()
    bucket = torch.ones(1_000_003, dtype=dtype, device="cuda")
    _C.cuda.transaction_poison(transaction, bucket, stream())
    assert (bucket == 1).all()
    transaction[2] = 1
    _C.cuda.transaction_poison(transaction, bucket[:-1], stream())
    assert torch.isposinf(bucket[:-1]).all()
    assert bucket[-1] == 1


def test_bad_input_is_refused() -> None:
    exchange = Exchange(Quantize(4, 512, False, False, False), [100], Settings(residual=None))
    wire = torch.zeros(exchange.wire_bytes, dtype=torch.uint8, device="cuda")
    gradient = exchange.gradient_of(0)

    def encode(spec: tuple[int, int, bool, bool, bool], bucket: Tensor, to: Tensor) -> None:
        _C.cuda.quantize_encode(spec, exchange.batch, bucket, None, None, exchange.transaction, 0, to, stream())

    spec = (4, 512, False, False, False)
    with pytest.raises(ValueError, match="must be a contiguous CUDA tensor"):
        encode(spec, gradient, wire)
    with pytest.raises(ValueError, match=r"at least 100 elements, got 99"):
        encode(spec, gradient.cuda()[:-1], wire)
    with pytest.raises(ValueError, match="the bucket must be fp32, bf16 or fp16, got Double"):
        encode(spec, gradient.cuda().double(), wire)
    with pytest.raises(ValueError, match="wire must have at least"):
        encode(spec, gradient.cuda(), wire[:-16])
    with pytest.raises(ValueError, match="numbered for blocks of 512 elements, the codec has 256"):
        encode((4, 256, False, False, False), gradient.cuda(), wire)
    with pytest.raises(ValueError, match=r"block must be a multiple of 32 from 32 to 4096, got 48"):
        _C.cuda.Batch([], 48, torch.device("cuda"))
