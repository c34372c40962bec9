"""Selection on a GPU against selection on the CPU: the same thresholds and masks, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lgreco import _C
from lgreco.pruning import keep_largest


def scores_of(kind: str, numel: int, seed: int = 0) -> torch.Tensor:
    """fp32 [numel] on the CPU."""
    values = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    if kind == "tied":
        return values.mul(2).round().div(2)
    if kind == "equal":
        return torch.ones(numel)
    if kind == "rows":  # each of a scale of its own
        return values * (torch.arange(numel) // 512 % 97 + 1)
    return values


def thresholds(arrays: list[torch.Tensor], kept: int, order: str) -> list[tuple[int, int, int, bool]]:
    """The CPU's, the GPU's."""
    stream = torch.cuda.current_stream().cuda_stream
    there = [array.cuda() for array in arrays]
    return [_C.find_threshold(arrays, kept, order), _C.find_threshold(there, kept, order, stream)]


@pytest.mark.parametrize("order", ["magnitude", "value"])
@pytest.mark.parametrize("kind", ["normal", "tied", "equal", "rows"])
@pytest.mark.parametrize("numel", [1, 31, 33, 4097, 65_537, 3_000_001])
def test_masks_are_the_cpus(order: str, kind: str, numel: int) -> None:
    scores = scores_of(kind, numel)
    arrays = [scores[: numel // 3], scores[numel // 3 : numel // 3], scores[numel // 3 :]]
    for kept in {0, 1, numel // 100, numel // 2, numel - 1, numel}:
        cpu, gpu = thresholds(arrays, kept, order)
        assert cpu == gpu
        expected = keep_largest(arrays, kept, order)
        masks = keep_largest([array.cuda() for array in arrays], kept, order)
        assert all(mask.is_cuda for mask in masks)
        assert all(torch.equal(mask.cpu(), other) for mask, other in zip(masks, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_become_zero_in_the_same_pass(dtype: torch.dtype) -> None:
    scores = scores_of("normal", 100_003).to(dtype).cuda()
    weights = scores.float().clone()
    (mask,) = keep_largest([scores], 40_000, "magnitude", [weights])
    assert int(mask.sum()) == 40_000
    assert torch.equal(weights, torch.where(mask, scores.float(), 0.0))
    own = scores.float()
    (again,) = keep_largest([own], 40_000, "magnitude", [own])
    assert torch.equal(again, mask)
    assert torch.equal(own, weights)


def _sampled_from(numel: int) -> np.ndarray:
    """Where selection's sample takes its lines of 16: Philox4x32-10 of the line's number, key 0, first word."""
    lines = 16_384
    words = [np.arange(lines, dtype=np.uint64), *(np.zeros(lines, np.uint64) for _ in range(3))]
    keys, low = [0, 0], np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        high = [(each >> np.uint64(32)) ^ np.uint64(key) for each, key in zip((second, first), keys, strict=True)]
        words = [high[0] ^ words[1], second & low, high[1] ^ words[3], first & low]
        keys = [(key + step) % 2**32 for key, step in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)]
    share = numel // lines
    return np.arange(lines) * share + (words[0] * np.uint64(share) >> np.uint64(32)).astype(np.int64)


@pytest.mark.parametrize("order", ["magnitude", "value"])
def test_a_missed_bracket_is_counted(order: str) -> None:
    """Where the sample looks every score is 1, elsewhere none is."""
    numel = 1 << 20
    scores = scores_of("normal", numel).abs() + 2.0
    for begin in _sampled_from(numel):
        scores[int(begin) : int(begin) + 16] = 1.0
    cpu, gpu = thresholds([scores], numel // 2, order)
    assert cpu == gpu
    assert cpu[3]


@pytest.mark.parametrize("kept", [0, 40_000, 100_000])
def test_a_nan_is_named(kept: int) -> None:
    scores = [scores_of("normal", 50_000).cuda(), scores_of("normal", 50_000, 1).cuda()]
    scores[1][77] = float("nan")
    with pytest.raises(ValueError, match='layer "b": scores must be numbers, got NaN'):
        keep_largest(scores, kept, names=["a", "b"])
