"""What coding a low-rank layer's factors leaves out of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lgreco import _C
from lgreco.choice import Choice, Dense, LowRank, Quantize

_LARGEST_BLOCK = 4096


class FactorCoding:
    """Relative squared error of coded factors, found by coding a sketch's own.

    Args:
        c: [rows, width], the averaged M V.
        v: [cols, width], orthonormal.
        seed: of the coding's draws.
    """

    def __init__(self, c: torch.Tensor, v: torch.Tensor, seed: int) -> None:
        turn = torch.linalg.eigh(c.double().T @ c.double()).eigenvectors.flip(1).float()
        self._factors = {"p": c @ turn, "q": v @ turn}
        self._seed = seed
        self._known: dict[tuple[str, str], float] = {}

    def of(self, choice: LowRank) -> float:
        """Of a P column plus that of a Q column."""
        q = choice.factors if choice.q == "same" else choice.q
        return self._side("p", choice.factors) + self._side("q", q)

    def _side(self, side: str, values: str) -> float:
        if values == "fp32":
            return 0.0
        if (side, values) not in self._known:
            self._known[side, values] = _coding_error(self._factors[side], values, self._seed)
        return self._known[side, values]


def _coding_error(factor: torch.Tensor, values: str, seed: int) -> float:
    """Squared error of a factor's columns, [length, width], each taken at unit length; mean over the columns."""
    length = factor.shape[0]
    norms = factor.norm(dim=0)
    there = norms > norms.max() * 1e-6
    if not bool(there.any()):
        return 0.0
    blocks = max(-(-length // _LARGEST_BLOCK), 1)
    block = -(-length // (blocks * 32)) * 32
    padded = torch.zeros(int(there.sum()), -(-length // block) * block, dtype=torch.float32)
    padded[:, :length] = (factor[:, there] / norms[there]).T
    if values.startswith("int"):
        coded: Choice = Quantize(bits=int(values.removeprefix("int")), block=block, grid="symmetric")
    else:
        coded = Dense(values)
    simulate: Callable[..., float] = _C.simulate_choice
    return simulate(coded.to_native(), [padded.reshape(-1)], seed) / padded.shape[0]
