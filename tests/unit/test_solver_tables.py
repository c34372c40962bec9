"""The tables a solver is given: norms, weights, and masks of what a layer offers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lgreco.solver import solve
from lgreco.solver_tables import between, combine, pinned, restrict

SQUARED = np.array([[1.0, 4.0, 9.0], [16.0, math.nan, math.inf]])


def test_the_norms_are_the_squares_and_their_roots() -> None:
    assert np.array_equal(combine(SQUARED), SQUARED, equal_nan=True)
    roots = combine(SQUARED, "l2")
    assert np.array_equal(roots, [[1.0, 2.0, 3.0], [4.0, math.nan, math.inf]], equal_nan=True)
    assert SQUARED[0, 1] == 4.0, "the given table is left as it is"


def test_weights_multiply_after_the_norm() -> None:
    weighted = combine(SQUARED, "l2", layer_weights=[10, 1], family_weights=[1, 2, 3])
    assert np.array_equal(weighted, [[10.0, 40.0, 90.0], [4.0, math.nan, math.inf]], equal_nan=True)
    assert math.isnan(combine(SQUARED, layer_weights=[1, 0])[1, 2]), "not offered stays not offered"


def test_masks_restrict_what_is_solved() -> None:
    errors, costs = np.tile([1.0, 2.0, 4.0, 8.0], (4, 1)), np.tile([8.0, 4.0, 2.0, 1.0], (4, 1))
    bits = np.tile([8.0, 4.0, 2.0, 1.0], (4, 1))
    allowed = pinned((4, 4), {1: 0}) & between(bits, floor=[1, 1, 2, 4])
    assert solve(restrict(errors, allowed), costs, 1e9).choices.tolist() == [3, 0, 2, 1]
    assert between(bits, ceiling=4)[0].tolist() == [False, True, True, True]
    assert between(bits, 2, [8, 4, 2, 2]).sum(axis=1).tolist() == [3, 2, 1, 1]


def test_a_layer_that_masks_leave_nothing_is_named_by_the_solver() -> None:
    errors = costs = np.ones((2, 2))
    allowed = pinned((2, 2), {1: 0}) & pinned((2, 2), {1: 1})
    with pytest.raises(ValueError, match=r"^layer 1 \(counted from 0\) offers no choice"):
        solve(restrict(errors, allowed), costs, 9.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, r"^norm must be squared or l2, got 'l1'$"),
        ({"errors_l2_squared": [1.0]}, r"^errors must be \[layers, choices\], got \[1\]$"),
        ({"errors_l2_squared": [[1.0, -2.0]]}, r"^errors must not be negative, got -2\.0$"),
        ({"layer_weights": [1.0]}, r"^layer_weights must be \[2\], got \[1\]$"),
        ({"family_weights": [1.0, 1.0, -1.0]}, r"^family_weights must be finite and not negative, got -1\.0$"),
        ({"layer_weights": [1.0, math.nan]}, r"^layer_weights must be finite and not negative, got nan$"),
    ],
)
def test_tables_that_are_none_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(**{"errors_l2_squared": SQUARED, **arguments})  # type: ignore[arg-type]


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^allowed must be bool \[2, 3\], got int64 \[2, 3\]$"):
        restrict(SQUARED, np.ones((2, 3), np.int64))
    with pytest.raises(ValueError, match=r"^allowed must be bool \[2, 3\], got bool \[3\]$"):
        restrict(SQUARED, np.ones(3, np.bool_))
    with pytest.raises(ValueError, match=r"^pins must be of layers 0\.\.1 to choices 0\.\.2, got 1 to 3$"):
        pinned((2, 3), {1: 3})
    with pytest.raises(ValueError, match=r"^the floor of layer 1 must be at most its ceiling 2\.0, got 3\.0$"):
        between(SQUARED, floor=[1, 3], ceiling=2)
    with pytest.raises(ValueError, match=r"^ceiling must be one number or \[2\], got \[3\]$"):
        between(SQUARED, ceiling=[1, 2, 3])
    with pytest.raises(ValueError, match=r"^strengths must be \[layers, choices\], got \[3\]$"):
        between([1, 2, 3])
