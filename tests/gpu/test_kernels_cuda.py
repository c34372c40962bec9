"""The CUDA kernels against the CPU kernels: the same bits for every run of a batch, through a whole exchange."""

from __future__ import annotations

import itertools

import pytest
import torch
from bucket_exchange import BF16, FP16, FP32, SEED, Exchange, Settings, set_bit, settings_for, stream
from torch import Tensor
from twins import Twins, dense, quantize, sparse

from lgreco import _C

FLAGS = list(itertools.product(("minmax", "symmetric", "clipped"), (False, True), (False, True)))
AWKWARD = [
    quantize(bits, block, *FLAGS[(bits + block // 32) % len(FLAGS)])
    for bits in (1, 3, 4, 8)
    for block in (32, 128, 512, 4096)
]
STOCHASTIC = quantize(4, 512, "minmax", True, False)
SPARSE = [
    sparse(0.01, 32, 8, False), sparse(0.02, 512, 4, False), sparse(0.01, 4096, 8, False), sparse(0.3, 4096, 32, False),
    sparse(0.001, 65536, 16, False), sparse(0.02, 96, 32, True), sparse(0.05, 4096, 8, True),
    sparse(0.5, 65536, 5, True),
]  # fmt: skip
DENSE = [dense("fp32"), dense("bf16"), dense("fp16")]


@pytest.mark.parametrize("codec", [*AWKWARD, *SPARSE, *DENSE], ids=str)
def test_awkward_sizes(codec: Twins) -> None:
    Exchange(codec, [codec.block + 1, 31, 33, 0, 2 * codec.block, 1, codec.block - 1], settings_for(5)).check()


@pytest.mark.parametrize("block", [32, 64, 96, 128, 256, 512, 800, 1024, 2048, 4096])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_spec(bits: int, block: int) -> None:
    for seed, flags in enumerate(FLAGS, start=10 * bits):
        Exchange(quantize(bits, block, *flags), [3 * block + 17, 77, 500, 9, 65536 + 5], settings_for(seed)).check()


@pytest.mark.parametrize("density", [1e-4, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("block", [32, 64, 512, 544, 1024, 4096, 8192, 65536])
@pytest.mark.parametrize("random", [False, True], ids=["topk", "randomk"])
def test_every_sparse_spec(random: bool, block: int, density: float) -> None:
    for seed, value_bits in enumerate((32, 16, 8, 7, 6, 5, 4, 3, 2), start=block):
        Exchange(sparse(density, block, value_bits, random), [3 * block + 17, 77, 500, 9], settings_for(seed)).check()


@pytest.mark.parametrize(
    "codec", [STOCHASTIC, sparse(0.02, 512, 8, False), sparse(0.02, 512, 8, True), *DENSE], ids=str
)
def test_every_type(codec: Twins) -> None:
    for dtype, residual, scale in itertools.product((FP32, BF16, FP16), (FP32, BF16, None), (1.0, 65536.0)):
        settings = Settings(dtype=dtype, residual=residual, scale=scale, committed=1)
        Exchange(codec, [1500, 31, 77, 513, 8192], settings).check()


@pytest.mark.parametrize("codec", [*AWKWARD, *SPARSE, *DENSE], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_inf_and_nan_flag_the_step(codec: Twins, dtype: torch.dtype) -> None:
    exchange = Exchange(codec, [700, 31, 33, 600], Settings(dtype=dtype, broken=True))
    bucket = exchange.check()
    assert exchange.flagged()
    assert not torch.isfinite(bucket).all()


def test_fp16_overflow_flags_the_step() -> None:
    exchange = Exchange(dense("fp32"), [1000, 5, 7], Settings(dtype=FP16, scale=1.0, residual=None))
    wire = torch.zeros(exchange.wire_bytes, dtype=torch.uint8)
    for run in exchange.runs:
        set_bit(wire, run.bit, True)
    wire[exchange.runs[0].wire :][:4].view(FP32).fill_(70000.0)
    exchange.decode(wire)
    assert exchange.flagged()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, 1e-42, 3e38])
def test_constant_and_extreme_blocks(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for codec in (
        *(quantize(4, 512, *flags) for flags in FLAGS),
        sparse(0.1, 512, 8, False),
        sparse(0.1, 512, 8, True),
    ):
        exchange = Exchange(codec, [1025, 3, 4], Settings())
        bucket = torch.full((exchange.bucket_numel,), value)
        monkeypatch.setattr(exchange, "gradient_of", lambda rank, bucket=bucket: bucket)
        exchange.check()


def test_a_large_bucket() -> None:
    Exchange(STOCHASTIC, [2**22 + 3, 5, 2**20], settings_for(6)).check()
    Exchange(sparse(0.01, 4096, 8, False), [2**22 + 3, 5, 2**20], settings_for(6)).check()
    Exchange(sparse(0.01, 65536, 32, True), [2**22 + 3, 5, 2**20], settings_for(6)).check()
    Exchange(dense("bf16"), [2**22 + 3, 5, 2**20], settings_for(6)).check()


def test_the_noise_counts_committed_steps() -> None:
    exchange = Exchange(quantize(2, 512, "minmax", True, False), [4096], Settings(residual=None))
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
    exchange = Exchange(STOCHASTIC, [5000, 77, 3, 9], Settings(seed=3))
    gradient = exchange.gradient_of(0).cuda()
    expected = torch.zeros(exchange.wire_bytes, dtype=torch.uint8, device="cuda")
    out, expected_out = torch.zeros_like(gradient), torch.zeros_like(gradient)

    def launch(wire: Tensor, bucket: Tensor) -> None:
        _C.cuda.transaction_begin(exchange.transaction, stream())
        _C.cuda.clear_bits(exchange.batch, wire, stream())
        exchange.codec.encode(
            exchange.batch, gradient, exchange.arenas, exchange.scale, exchange.transaction, SEED, wire, stream()
        )
        exchange.codec.decode(exchange.batch, wire, bucket, exchange.arenas, exchange.transaction, SEED, stream())
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
    exchange = Exchange(quantize(4, 512, "minmax", False, False), [100], Settings(residual=None))
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
    with pytest.raises(ValueError, match=r"block must be a multiple of 32 from 32 to 65536, got 48"):
        _C.cuda.Batch([], 48, torch.device("cuda"))
