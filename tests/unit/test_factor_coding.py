"""What coding factors leaves out, as a table has it."""

from __future__ import annotations

import torch

from lgreco.choice import LowRank
from lgreco.factor_coding import FactorCoding


def coding_of(width: int = 8) -> FactorCoding:
    """Of a sketch whose columns' sizes go over some octaves."""
    random = torch.Generator().manual_seed(1)
    c = torch.randn(512, width, generator=random) * torch.exp2(-torch.arange(width))
    return FactorCoding(c, torch.linalg.qr(torch.randn(256, width, generator=random)).Q, seed=3)


def test_more_bits_leave_less_and_fp32_nothing() -> None:
    coding = coding_of()
    errors = [coding.of(LowRank(factors=values)) for values in ("int2", "int4", "int6", "int8", "fp32")]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0
    assert 1e-3 < errors[1] < 0.1  # of a normal column's 512 values: nearest of 15 points up to the greatest


def test_q_has_its_own_code() -> None:
    coding = coding_of()
    both, coarse = coding.of(LowRank(factors="int8")), coding.of(LowRank(factors="int8", q="int3"))
    assert both < coarse < coding.of(LowRank(factors="int3"))


def test_of_nothing_nothing_is_lost() -> None:
    coding = FactorCoding(torch.zeros(64, 4), torch.linalg.qr(torch.randn(32, 4)).Q, seed=3)
    assert coding._side("p", "int4") == 0.0
