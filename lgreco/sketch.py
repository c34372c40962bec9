"""A sketch of the averaged gradient matrix, from which the error of every rank follows.

A Gaussian sketch and one power iteration (Halko, Martinsson & Tropp, arXiv 0909.4061, algorithm 4.4): with
U = orth(M Omega), V = orth(M^T U) and C = M V, C V^T holds nearly all that any rank up to its width can hold of M, and
the singular values of C are nearly M's. Without the iteration a flat spectrum's rank 16 seems a third worse than it is.
What is outside of V's span is measured on sampled elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lgreco.sampling import Sample

OVERSAMPLING = 8
"""Columns beyond the largest rank: without them the last ranks' singular values come out too small."""


def omega(rows: int, cols: int, rank: int, seed: int, step: int, layer: int) -> torch.Tensor:
    """The sketch's random matrix, fp32 [cols, width]: the same on every rank; as wide as can be of use."""
    width = min(rank + OVERSAMPLING, rows, cols)
    mixed = int(np.random.Philox(key=[seed, step << 32 | layer]).random_raw()) >> 1
    return torch.randn(cols, width, generator=torch.Generator().manual_seed(mixed), dtype=torch.float32)


def range_of(y: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span Y's, of Y's shape. Any finite Y will do, a zero one too."""
    largest = y.abs().max()
    if not torch.isfinite(largest):
        return torch.zeros_like(y)
    basis: torch.Tensor = torch.linalg.qr(y / largest if largest > 0 else y).Q
    return basis


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What a sketch says of the averaged matrix.

    Attributes:
        energies: float64 [width], squared singular values, the largest first.
        rest: squared norm of what is outside the sketch's span.
        spread: mean over ranks of the squared norm of their own M_w V, over that of C; 1 where all agree.
    """

    energies: npt.NDArray[np.float64]
    rest: float
    spread: float

    @property
    def squared_norm(self) -> float:
        """Of the averaged matrix."""
        return float(self.energies.sum()) + self.rest

    def error(self, rank: int, coding: float, world_size: int) -> float:
        """Squared error of a rank with coded factors.

        Args:
            rank: of the approximation.
            coding: relative squared error of a coded P column plus that of a coded Q column.
            world_size: ranks, whose own coding errors average out against one another.
        """
        kept = float(self.energies[:rank].sum())
        left = float(self.energies[rank:].sum()) + self.rest
        # An error of Q goes into the result as it is, as P is orthonormal. An error of P turns P's span away from the
        # column it belongs to, by the same share of that column's energy. Once in the owner's round, and a
        # share of 1/W of what the senders' own come to.
        return left + min(coding * (1.0 + self.spread / world_size), 1.0) * kept


@dataclass(frozen=True, eq=False)
class MaskedSpectrum:
    """What a sketch says of the averaged matrix of a masked layer.

    Pruned elements are zero in the matrix, and again in what is made of its factors. So a rank's error is that of its
    kept elements alone, which the matrix's singular values do not tell: it is measured on sampled ones.

    Attributes:
        squared_norm: of the averaged matrix.
        errors: float64 [width + 1], squared error by rank from 0, of the kept elements.
        energies: float64 [width + 1], squared norm of what the rank delivers of them.
        spread: as in Spectrum.
    """

    squared_norm: float
    errors: npt.NDArray[np.float64]
    energies: npt.NDArray[np.float64]
    spread: float

    def error(self, rank: int, coding: float, world_size: int) -> float:
        """Squared error of a rank with coded factors; as `Spectrum.error`."""
        rank = min(rank, len(self.errors) - 1)
        coded = min(coding * (1.0 + self.spread / world_size), 1.0) * self.energies[rank]
        return float(self.errors[rank] + coded)


def masked_spectrum_of(
    c: torch.Tensor,
    v: torch.Tensor,
    own_energy: float,
    scale: float,
    mean: npt.NDArray[np.float64],
    places: npt.NDArray[np.int64],
) -> MaskedSpectrum:
    """Reads off a sketch how much of a masked matrix each rank holds.

    Args:
        c: [rows, width], the averaged M V.
        v: [cols, width], orthonormal.
        own_energy: mean over ranks of the squared norm of their own M_w V.
        scale: kept elements of the layer for each one sampled.
        mean: float64 [sampled], the exact mean of sampled kept elements.
        places: [sampled], where they are in the layer, flat in the order of M's rows.
    """
    projected, basis = c.double().numpy(), v.double().numpy()
    kept = float(np.square(projected).sum())
    turn = np.linalg.eigh(projected.T @ projected)[1][:, ::-1]  # the largest singular value first
    left, right = projected @ turn, basis @ turn
    rows, cols = np.divmod(places, len(basis))
    near = np.zeros(len(places))
    errors, energies = [float(np.square(mean).sum())], [0.0]
    for column in range(left.shape[1]):
        near += left[rows, column] * right[cols, column]
        errors.append(float(np.square(mean - near).sum()))
        energies.append(float(np.square(near).sum()))
    spread = max(own_energy / kept, 1.0) if kept > 0 else 1.0
    return MaskedSpectrum(scale * errors[0], scale * np.array(errors), scale * np.array(energies), spread)


def spectrum_of(
    c: torch.Tensor, v: torch.Tensor, own_energy: float, sample: Sample, mean: npt.NDArray[np.float64]
) -> Spectrum:
    """Reads a spectrum off a sketch.

    Args:
        c: [rows, width], the averaged M V.
        v: [cols, width], orthonormal.
        own_energy: mean over ranks of the squared norm of their own M_w V.
        sample: elements of the layer, flat in the order of M's rows.
        mean: float64 [sample.numel], the exact mean there.
    """
    projected, basis = c.double().numpy(), v.double().numpy()
    energies = np.maximum(np.linalg.eigvalsh(projected.T @ projected)[::-1], 0.0)
    kept = float(energies.sum())
    whole = c.shape[1] == min(c.shape[0], v.shape[0])
    rest = 0.0 if whole else sample.scale * _outside(projected, basis, sample, mean)
    return Spectrum(energies, rest, max(own_energy / kept, 1.0) if kept > 0 else 1.0)


def _outside(
    projected: npt.NDArray[np.float64],
    basis: npt.NDArray[np.float64],
    sample: Sample,
    mean: npt.NDArray[np.float64],
) -> float:
    """Squared norm, on the sampled elements, of what C V^T leaves of the mean."""
    cols, total, at = basis.shape[0], 0.0, 0
    for begin, end in sample.spans:
        first, last = begin // cols, -(-end // cols)
        if last - first == 1:
            near = basis[begin - first * cols : end - first * cols] @ projected[first]
        else:
            near = (projected[first:last] @ basis.T).reshape(-1)[begin - first * cols : end - first * cols]
        total += float(np.square(mean[at : at + end - begin] - near).sum())
        at += end - begin
    return total
