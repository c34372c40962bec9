"""The simulation of low-rank plans: nothing is lost, plans keep to their bytes, and norms lead to different plans."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from norms import LowRankExchange, matrix


def unlike() -> nn.Module:
    """Two matrices: large gradients of a steep spectrum, and small ones of a flat spectrum."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 48, bias=False), nn.Linear(48, 64, bias=False))
    steep = torch.randn(48, 64) @ torch.diag(0.5 ** torch.arange(64.0))
    module[0].weight.grad, module[1].weight.grad = 20 * steep, torch.randn(64, 48)
    return module


def test_delivered_and_residual_are_the_gradient() -> None:
    module = unlike()
    given = [parameter.grad.clone() for parameter in module.parameters()]
    exchange = LowRankExchange(module, 4, None, "bytes", 1.0)
    exchange.run(solves=True)
    for gradient, parameter, residual in zip(given, module.parameters(), exchange._residuals.values(), strict=True):
        assert torch.allclose(matrix(parameter.grad) + residual, matrix(gradient), atol=1e-4)
        assert torch.linalg.matrix_rank(matrix(parameter.grad)) == 4
    assert exchange.bytes == 2 * 4 * (48 + 64)


@pytest.mark.parametrize("norm", ["adam", "squared", "l2"])
def test_plans_keep_to_the_bytes_of_the_uniform_rank(norm: str) -> None:
    module = unlike()
    exchange = LowRankExchange(module, 4, norm, "bytes", 1.0)
    exchange.run(solves=True)
    assert sum(exchange.ranks.values()) <= 8
    first, second = exchange.ranks.values()
    assert min(first, second) > 1, "where a rank more helps little the other layer gets it"


def test_norms_differ() -> None:
    plans = {}
    for norm in ("adam", "squared"):
        exchange = LowRankExchange(unlike(), 4, norm, "bytes", 1.0)
        exchange.run(solves=True)
        plans[norm] = tuple(exchange.ranks.values())
    assert plans["adam"] != plans["squared"]
