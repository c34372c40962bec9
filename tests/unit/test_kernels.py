"""The CPU kernels as Python sees them, against a reference in numpy that follows csrc/kernels/quantize.h."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgreco import _C

Floats = npt.NDArray[np.float32]
LEVELS = ("sse2", "avx2", "avx512")[: ("sse2", "avx2", "avx512").index(_C.best_cpu_level()) + 1]
GRIDS = ("minmax", "symmetric", "clipped")
NOISE = (2**40 + 17, 5, 1234, 9)
_ONE = np.float32(1)


class Spec(NamedTuple):
    """As the bindings take it."""

    bits: int = 4
    block: int = 512
    grid: str = "minmax"
    stochastic: bool = False
    bf16_scales: bool = False

    @property
    def top(self) -> int:
        """The greatest code."""
        return 2**self.bits - (2 if self.grid == "symmetric" and self.bits > 1 else 1)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set level that this processor has."""
    before = _C.cpu_level()
    _C.set_cpu_level(request.param)
    yield request.param
    _C.set_cpu_level(before)


def bf16_outwards(value: np.float32, up: bool) -> np.float32:
    """The nearest bf16 number that is not below (up) or not above `value`."""
    bits = int(np.float32(value).view(np.uint32))
    truncated = np.uint32(bits & 0xFFFF0000).view(np.float32)
    away = np.uint32((bits + 0xFFFF) & 0xFFFF0000).view(np.float32)
    wanted = max(truncated, away) if up else min(truncated, away)
    return np.float32(wanted)


def reach_of(spec: Spec, values: Floats) -> np.float32:
    """The greatest magnitude of a clipped grid's points."""
    best = (0.798, 1.494, 2.052, 2.514, 2.916, 3.278, 3.612, 3.922)[spec.bits - 1]
    expected = (0.7979, 1.1284, 1.4647, 1.7834, 2.0772, 2.3471, 2.5961, 2.8276, 3.0442)
    magnitudes = np.abs(np.concatenate([values, np.zeros(-len(values) % 16, np.float32)])).reshape(-1, 16)
    lanes, most = magnitudes.max(axis=0), magnitudes.max()
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    factor = np.float32(best) / np.float32(expected[int(np.log2(len(magnitudes)))])
    return np.float32(min(max(lanes[0] * np.float32(1 / 16) * factor, np.float32(0.25) * most), most))


def grid_of(spec: Spec, values: Floats) -> tuple[np.float32, np.float32, np.float32]:
    """lo, step and 1 / step of a block of finite values."""
    lo, hi = values.min(), values.max()
    half = 2 ** (spec.bits - 1) - 1
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        if spec.grid == "clipped":
            step = reach_of(spec, values) / (np.float32(0.5) * np.float32(spec.top))
            step = bf16_outwards(step, up=True) if spec.bf16_scales else step
        elif spec.grid == "symmetric":
            largest = max(-lo, hi)
            step = np.float32(2) * largest if spec.bits == 1 else largest / np.float32(half)
            step = bf16_outwards(step, up=True) if spec.bf16_scales else step
        else:
            lo = bf16_outwards(lo, up=False) if spec.bf16_scales else lo
            step = (hi - lo) / np.float32(spec.top)
            step = bf16_outwards(step, up=True) if spec.bf16_scales else step
        inverse = _ONE / step
        if not np.isfinite(inverse):
            step = inverse = np.float32(0)
    if spec.grid == "clipped":
        lo = -(np.float32(0.5) * np.float32(spec.top) * step)
    elif spec.grid == "symmetric":
        lo = -(np.float32(0.5) * step) if spec.bits == 1 else -(np.float32(half) * step)
    return lo + np.float32(0), step, inverse


def philox(counter: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of counters [..., 4]."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    mask, k0, k1 = np.uint64(0xFFFFFFFF), key[0], key[1]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & mask,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack(c, axis=-1).astype(np.uint32)


def uniforms(numel: int, block: int) -> Floats:
    """The draws in [0, 1) of a block's elements."""
    seed, step, stream, first_block = NOISE
    i = np.arange(numel)
    counter = np.zeros((numel, 4), np.uint32)
    counter[:, 0] = i // 128 * 16 + i % 16
    counter[:, 1] = first_block + block
    counter[:, 2] = step
    counter[:, 3] = stream
    slot = i // 16 % 8
    words = philox(counter, (seed % 2**32, seed >> 32))[i, slot // 2]
    return ((words >> (16 * (slot % 2)).astype(np.uint32)) & np.uint32(0xFFFF)).astype(np.float32) / np.float32(65536)


def encode(spec: Spec, values: Floats) -> tuple[bytes, Floats]:
    """Wire and decoded values of a run, by the book."""
    wire, decoded = b"", np.empty_like(values)
    for block, first in enumerate(range(0, len(values), spec.block)):
        part = values[first : first + spec.block]
        lo, step, inverse = grid_of(spec, part)
        scaled = (part - lo) * inverse
        lifted = np.floor(scaled + uniforms(len(part), block)) if spec.stochastic else np.rint(scaled)
        codes = np.clip(lifted, 0, spec.top).astype(np.int64)
        decoded[first : first + spec.block] = lo + codes.astype(np.float32) * step
        numbers = np.array([step] if spec.grid != "minmax" else [lo, step], np.float32)
        metadata = (numbers.view(np.uint32) >> 16).astype(np.uint16) if spec.bf16_scales else numbers
        bits = (codes[:, None] >> np.arange(spec.bits)) & 1
        packed = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")
        body = metadata.tobytes() + packed.tobytes()
        wire += body + bytes(-len(body) % 4)
    return wire, decoded


def run_encode(
    spec: Spec, gradient: torch.Tensor, committed: torch.Tensor | None, shadow: torch.Tensor | None, scale: float = 1.0
) -> tuple[torch.Tensor, tuple[bool, bool]]:
    """The kernel's wire and findings."""
    wire = torch.full((_C.quantize_wire_bytes(spec, gradient.numel()),), 0x55, dtype=torch.uint8)
    return wire, _C.quantize_encode(spec, gradient, committed, shadow, scale, NOISE, wire)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("bf16_scales", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_wire_and_residual_are_the_references(
    level: str, bits: int, grid: str, bf16_scales: bool, stochastic: bool
) -> None:
    random = np.random.default_rng(bits)
    for block, numel in ((32, 100), (512, 1300), (4096, 4097)):
        spec = Spec(bits, block, grid, stochastic, bf16_scales)
        gradient = (random.standard_normal(numel) * 10.0 ** random.integers(-4, 3)).astype(np.float32)
        committed = torch.from_numpy((random.standard_normal(numel) * 0.1).astype(np.float32))
        shadow = torch.empty(numel)
        wire, findings = run_encode(spec, torch.from_numpy(gradient), committed, shadow)
        values = gradient + committed.numpy()
        expected_wire, expected_decoded = encode(spec, values)
        assert bytes(wire.numpy()) == expected_wire
        assert findings == (False, True)
        decoded = torch.empty(numel)
        assert _C.quantize_decode(spec, wire, decoded) is False
        np.testing.assert_array_equal(decoded.numpy(), expected_decoded)
        np.testing.assert_array_equal(shadow.numpy(), values - expected_decoded)


@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
    ),
    bits=st.integers(1, 8),
    grid=st.sampled_from(GRIDS),
    bf16_scales=st.booleans(),
)
def test_any_finite_values_give_the_references_wire(
    values: list[float], bits: int, grid: str, bf16_scales: bool
) -> None:
    spec = Spec(bits, 32, grid, False, bf16_scales)
    array = np.array(values, np.float32)
    wire, _ = run_encode(spec, torch.from_numpy(array), None, None)
    assert bytes(wire.numpy()) == encode(spec, array)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
def test_every_gradient_and_residual_type(level: str, dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    spec = Spec()
    gradient = torch.randn(1000).to(dtype)
    committed = (torch.randn(1000) / 8).to(residual_dtype)
    shadow = torch.empty_like(committed)
    wire, _ = run_encode(spec, gradient, committed, shadow, 4.0)
    values = gradient.float() + committed.float() * 4.0
    expected_wire, decoded = encode(spec, values.numpy())
    assert bytes(wire.numpy()) == expected_wire
    assert torch.equal(shadow, ((values - torch.from_numpy(decoded)) * 0.25).to(residual_dtype))
    out = torch.empty_like(gradient)
    _C.quantize_decode(spec, wire, out)
    assert torch.equal(out, torch.from_numpy(decoded).to(dtype))


@pytest.mark.parametrize("count", [1, 2, 4, 9])
@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_reduce_is_the_requantised_mean_in_rank_order(level: str, bits: int, count: int) -> None:
    torch.manual_seed(bits)
    spec, numel = Spec(bits), 1300
    wires, total = [], None
    for _ in range(count):
        wire, _ = run_encode(spec, torch.randn(numel), None, None)
        decoded = torch.empty(numel)
        _C.quantize_decode(spec, wire, decoded)
        total = decoded if total is None else total + decoded
        wires.append(wire)
    assert total is not None
    factor, committed, shadow = 1 / count, torch.randn(numel) / 8, torch.empty(numel)
    values = total * factor + committed
    out = wires[-1]  # the owner's own payload is overwritten
    findings = _C.quantize_reduce(spec, wires, factor, numel, committed, shadow, 1.0, NOISE, out)
    expected_wire, decoded = encode(spec, values.numpy())
    assert bytes(out.numpy()) == expected_wire
    assert findings[0] is False
    np.testing.assert_array_equal(shadow.numpy(), values.numpy() - decoded)


@pytest.mark.parametrize("bits", range(1, 9))
def test_decode_add_adds(level: str, bits: int) -> None:
    spec, before = Spec(bits, 96), torch.randn(1000)
    wire, _ = run_encode(spec, torch.randn(1000), None, None)
    decoded, total = torch.empty(1000), before.clone()
    _C.quantize_decode(spec, wire, decoded)
    assert _C.quantize_decode_add(spec, wire, total) is False
    assert torch.equal(total, before + decoded)


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_wire_is_torchs_cast(level: str, wire_dtype: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wire_dtype]
    gradient, committed = torch.randn(1001).to(dtype), torch.randn(1001) / 8
    shadow, wire = torch.empty(1001), torch.empty(1001 * kind.itemsize, dtype=torch.uint8)
    assert _C.dense_encode(wire_dtype, gradient, committed, shadow, 1.0, wire) == (False, True)
    values = gradient.float() + committed
    assert torch.equal(wire.view(kind), values.to(kind))
    assert torch.equal(shadow, values - values.to(kind).float())
    out = torch.empty_like(gradient)
    assert _C.dense_decode(wire_dtype, wire, out) is False
    assert torch.equal(out, wire.view(kind).to(dtype))
    other = wire.clone()
    assert _C.dense_reduce(wire_dtype, [wire, other], 0.5, 1001, None, None, 1.0, other)[0] is False
    assert torch.equal(other, wire)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_inf_and_nan_are_found(level: str, bad: float) -> None:
    gradient = torch.randn(2000)
    gradient[700] = bad
    residual = torch.randn(2000)
    wire, findings = run_encode(Spec(), gradient, residual, residual)
    assert findings == (True, True)
    out = torch.empty(2000)
    assert _C.quantize_decode(Spec(), wire, out) is True
    assert out[512:1024].isnan().all()
    assert out[:512].isfinite().all()
    assert out[1024:].isfinite().all()
    assert (residual[512:1024] == 0).all()


def test_wrong_arguments_are_named() -> None:
    gradient, wire = torch.zeros(64), torch.zeros(40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"bits must be 1\.\.8, got 9"):
        _C.quantize_encode(Spec(bits=9), gradient, None, None, 1.0, NOISE, wire)
    with pytest.raises(ValueError, match=r"the wire must have 40 elements, got 41"):
        _C.quantize_encode(Spec(), gradient, None, None, 1.0, NOISE, torch.zeros(41, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be fp32, bf16 or fp16, got Double"):
        _C.quantize_encode(Spec(), gradient.double(), None, None, 1.0, NOISE, wire)
    with pytest.raises(ValueError, match="both residual arenas must be given, or neither"):
        _C.quantize_encode(Spec(), gradient, gradient, None, 1.0, NOISE, wire)
    with pytest.raises(ValueError, match="must be sse2, avx2 or avx512, got 'neon'"):
        _C.set_cpu_level("neon")
