"""Sampling and sketches: deterministic, spread over the layer, balanced, and right about spectra and coded factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgreco.sampling import UNIT_NUMEL, deal, sample_of, slices_of
from lgreco.sketch import OVERSAMPLING, Spectrum, omega, range_of, spectrum_of


@given(st.integers(1, 3_000_000), st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 5000))
def test_a_sample_is_spread_and_repeats(numel: int, seed: int, step: int, layer: int) -> None:
    sample = sample_of(numel, seed, step, layer)
    assert sample == sample_of(numel, seed, step, layer)
    ends = [0, *(end for _, end in sample.spans)]
    assert all(0 <= begin < end <= numel for begin, end in sample.spans)
    assert all(begin >= end for (begin, _), end in zip(sample.spans, ends, strict=False))
    assert all(begin % UNIT_NUMEL == 0 for begin, _ in sample.spans)
    assert sample.numel == sum(end - begin for begin, end in sample.spans)
    assert sample.scale * sample.numel == pytest.approx(numel)
    if numel <= 8 * UNIT_NUMEL:
        assert sample.spans == ((0, numel),)
    assert torch.equal(sample.take(torch.arange(numel))[:1], torch.tensor([sample.spans[0][0]]))


def test_samples_move_from_step_to_step_and_layer_to_layer() -> None:
    spans = {sample_of(10**6, 1, step, layer).spans for step in range(5) for layer in range(5)}
    assert len(spans) == 25
    assert sample_of(10**6, 1, 0, 0).numel < 10**6 / 12


def test_slices_hold_every_layer_once_and_are_balanced() -> None:
    numels = [5, 100, 0, 40, 60, 30, 70, 10]
    rows = [1, 3, 4, 5, 6, 7]
    slices = slices_of(numels, rows, 3)
    assert sorted(row for each in slices for row in each) == rows
    assert max(sum(numels[row] for row in each) for each in slices) <= 110
    assert slices == slices_of(numels, rows, 3)
    assert slices_of(numels, [1, 3], 4) == [[1], [3], [], []]
    assert sorted(deal([0] * 6, 3)) == [0, 0, 1, 1, 2, 2]  # empty samples are spread too


def test_the_sketchs_matrix_is_shared_and_never_wider_than_the_matrix() -> None:
    assert torch.equal(omega(50, 40, 4, 1, 2, 3), omega(50, 40, 4, 1, 2, 3))
    assert not torch.equal(omega(50, 40, 4, 1, 2, 3), omega(50, 40, 4, 1, 2, 4))
    assert omega(50, 40, 4, 1, 2, 3).shape == (40, 4 + OVERSAMPLING)
    assert omega(5, 40, 4, 1, 2, 3).shape == (40, 5)


@pytest.mark.parametrize("kind", ["zero", "constant", "deficient", "huge", "tiny"])
def test_a_range_is_orthonormal_whatever_comes_in(kind: str) -> None:
    y = {
        "zero": torch.zeros(30, 6),
        "constant": torch.ones(30, 6),
        "deficient": torch.randn(30, 2) @ torch.randn(2, 6),
        "huge": torch.randn(30, 6) * 1e30,
        "tiny": torch.randn(30, 6) * 1e-30,
    }[kind]
    q = range_of(y)
    assert torch.allclose(q.T @ q, torch.eye(6), atol=1e-5)


def test_a_narrow_matrix_is_known_exactly() -> None:
    matrix = torch.randn(40, 6)
    v = range_of(matrix.T @ range_of(matrix @ omega(40, 6, 4, 0, 0, 0)))
    c = matrix @ v
    sample = sample_of(240, 0, 0, 0)
    spectrum = spectrum_of(c, v, float(c.square().sum()), sample, sample.take(matrix.flatten()).double().numpy())
    exact = torch.linalg.svdvals(matrix.double()).square().numpy()
    assert spectrum.rest == 0
    assert spectrum.energies == pytest.approx(exact, rel=1e-4)
    assert spectrum.error(2, 0.0, 4) == pytest.approx(exact[2:].sum(), rel=1e-4)


def test_coding_adds_its_share_and_no_more_than_everything() -> None:
    spectrum = Spectrum(np.array([8.0, 4.0, 2.0]), 1.0, 2.0)
    assert spectrum.squared_norm == 15
    assert spectrum.error(1, 0.0, 4) == 7
    assert spectrum.error(2, 0.1, 4) == pytest.approx(3 + 0.1 * 1.5 * 12)
    assert spectrum.error(2, 50.0, 4) == 15
