"""The sparse CPU kernels (topk, randomk) as Python sees them, against torch."""

from __future__ import annotations

import pytest
import torch

from lgreco import _C

NOISE = (2**40 + 17, 5, 1234, 9)


def run_encode(
    spec: tuple[float, int, int, bool], gradient: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """The kernel's wire; `residual` is overwritten."""
    wire = torch.full((_C.sparse_wire_bytes(spec, gradient.numel()),), 0x55, dtype=torch.uint8)
    assert _C.sparse_encode(spec, gradient, residual, residual, 1.0, NOISE, wire) == (False, True)
    return wire


@pytest.mark.parametrize("block", [64, 512, 4096, 65536])
@pytest.mark.parametrize("density", [1e-4, 0.01, 0.3])
def test_topk_delivers_what_torch_picks(block: int, density: float) -> None:
    torch.manual_seed(block)
    gradient, residual = torch.randn(3 * block), torch.randn(3 * block)
    values = gradient + residual
    wire = run_encode((density, block, 32, False), gradient, residual)
    out = torch.empty(3 * block)
    assert _C.sparse_decode((density, block, 32, False), wire, NOISE, out) is False
    blocks = values.view(3, block)
    picked = blocks.abs().topk(max(1, int(density * block + 0.5)), dim=1).indices
    expected = torch.zeros_like(blocks).scatter(1, picked, blocks.gather(1, picked))
    assert torch.equal(out.view(3, block), expected)
    assert torch.equal(residual, values - out)


@pytest.mark.parametrize("random", [False, True])
def test_reduce_is_the_mean_of_what_was_sent(random: bool) -> None:
    torch.manual_seed(1)
    spec, numel = (0.1, 512, 32, random), 1300
    wires = [run_encode(spec, torch.randn(numel), None) for _ in range(3)]
    total = torch.zeros(numel)
    for wire in wires:
        part = torch.empty(numel)
        _C.sparse_decode(spec, wire, NOISE, part)
        total += part
    residual, out = torch.zeros(numel), wires[2]
    _C.sparse_reduce(spec, wires, 0.5, numel, residual, residual, 1.0, NOISE, out)
    delivered = torch.empty(numel)
    _C.sparse_decode(spec, out, NOISE, delivered)
    assert torch.equal(delivered + residual, total * 0.5)
    assert bool(residual.any()) is not random  # randomk's ranks all sent the same elements


def test_wrong_arguments_are_named() -> None:
    gradient, wire = torch.zeros(64), torch.zeros(8, dtype=torch.uint8)

    def encode(spec: tuple[float, int, int, bool], to: torch.Tensor = wire) -> None:
        _C.sparse_encode(spec, gradient, None, None, 1.0, NOISE, to)

    with pytest.raises(ValueError, match=r"density must be 1e-4\.\.0\.5, got 0\.6"):
        encode((0.6, 64, 8, False))
    with pytest.raises(ValueError, match=r"block must be a multiple of 32, 32\.\.65536, got 65568"):
        encode((0.1, 65568, 8, False))
    with pytest.raises(ValueError, match=r"value_bits must be 2\.\.8, 16 or 32, got 1"):
        encode((0.1, 64, 1, False))
    with pytest.raises(ValueError, match=r"the wire must have 8 elements, got 9"):
        encode((0.01, 64, 8, False), torch.zeros(9, dtype=torch.uint8))
