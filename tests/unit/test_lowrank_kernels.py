"""The low-rank CPU kernels as Python sees them, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lgreco import _C


def seeded(rank: int, length: int, layer: int = 0) -> Tensor:
    """A factor [rank, length]; its rows are the columns of the kernels."""
    factor = torch.empty(rank, length)
    for column in range(rank):
        _C.lowrank_seed_column(factor, column, 1, layer)
    return factor


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_a_power_iteration_finds_a_low_rank_matrix(rank: int) -> None:
    rows, cols = 70, 53
    gradient = 4.0 * seeded(rank, rows, 3).t() @ seeded(rank, cols, 4)
    residual = torch.zeros(rows, cols)
    matrix, out, rest = (torch.empty(rows, cols) for _ in range(3))
    p, q = torch.empty(rank, rows), seeded(rank, cols)
    assert _C.lowrank_gather_project(gradient, residual, 4.0, matrix, q, p) == (False, True)
    assert torch.equal(matrix, gradient / 4)
    torch.testing.assert_close(p, (matrix @ q.t()).t(), rtol=1e-4, atol=1e-4)
    again = torch.empty_like(p)
    _C.lowrank_project(matrix, q, again)
    assert torch.equal(again, p)
    _C.lowrank_orthonormalise(p)
    torch.testing.assert_close(p @ p.t(), torch.eye(rank), rtol=0, atol=1e-5)
    _C.lowrank_project_transposed(matrix, p, q)
    torch.testing.assert_close(q, p @ matrix, rtol=1e-4, atol=1e-4)
    assert _C.lowrank_reconstruct(p, q, 4.0, out, matrix, p, q, rest) is False
    torch.testing.assert_close(out, gradient, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rest, torch.zeros(rows, cols), rtol=0, atol=1e-4)


def test_what_does_not_fit_is_named() -> None:
    matrix, p = torch.zeros(5, 7), torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"q must have shape \[2, 7\], got \[2, 6\]"):
        _C.lowrank_project(matrix, torch.zeros(2, 6), p)
    with pytest.raises(ValueError, match=r"rank 1\.\.8, got \[9, 7\]"):
        _C.lowrank_project(matrix, torch.zeros(9, 7), torch.zeros(9, 5))
    with pytest.raises(ValueError, match="matrix must be fp32, got Double"):
        _C.lowrank_project(matrix.double(), torch.zeros(2, 7), p)
    with pytest.raises(ValueError, match=r"column must be 0\.\.1, got 2"):
        _C.lowrank_seed_column(p, 2, 1, 0)
    with pytest.raises(ValueError, match="matrix and rest must both be given, or neither"):
        _C.lowrank_reconstruct(p, torch.zeros(2, 7), 1.0, matrix, None, p, torch.zeros(2, 7), matrix)
