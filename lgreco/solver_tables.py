"""The tables a solver is given: errors that add up over layers, and which choices a layer offers.

What a layer offers is a mask, bool [layers, choices]; masks combine with `&`, and `restrict` puts one into a table:

    allowed = pinned(shape, {3: 0}) & between(bits, floor=2, ceiling=8)
    solve(restrict(combine(errors_l2_squared), allowed), costs, budget)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

NORMS = ("squared", "l2")


def combine(
    errors_l2_squared: npt.ArrayLike,
    norm: str = "squared",
    layer_weights: npt.ArrayLike | None = None,
    family_weights: npt.ArrayLike | None = None,
) -> Table:
    """The additive error of each choice on each layer.

    Args:
        errors_l2_squared: [layers, choices], squared L2 distances, from 0; NaN or infinity stay what they are.
        norm: squared, or l2 for their square roots (the paper's sum of L2 norms).
        layer_weights: [layers], from 0, factors of the error after the norm.
        family_weights: [choices], likewise, the same for all choices of a family: L2 error does not compare families.

    Raises:
        ValueError: for another norm or shape, a negative error, a weight that is negative or not finite.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be {' or '.join(NORMS)}, got {norm!r}")
    errors = np.array(errors_l2_squared, np.float64)
    if errors.ndim != 2:
        raise ValueError(f"errors must be [layers, choices], got {list(errors.shape)}")
    if np.any(errors < 0):
        raise ValueError(f"errors must not be negative, got {np.nanmin(errors)}")
    if norm == "l2":
        np.sqrt(errors, out=errors)
    layers, choices = errors.shape
    with np.errstate(invalid="ignore"):  # a weight of 0 times infinity: NaN, not offered either
        errors *= _weights("layer_weights", layer_weights, layers)[:, np.newaxis]
        errors *= _weights("family_weights", family_weights, choices)
    return errors


def restrict(errors: npt.ArrayLike, allowed: npt.ArrayLike) -> Table:
    """The errors, with NaN (not offered) wherever `allowed`, bool [layers, choices], is false.

    Raises:
        ValueError: for shapes that differ, or a mask of another type.
    """
    table, mask = np.asarray(errors, np.float64), np.asarray(allowed)
    if mask.dtype != np.bool_ or mask.shape != table.shape:
        raise ValueError(f"allowed must be bool {list(table.shape)}, got {mask.dtype} {list(mask.shape)}")
    return np.where(mask, table, np.nan)


def pinned(shape: tuple[int, int], pins: Mapping[int, int]) -> Mask:
    """A mask of [layers, choices] in which each layer of `pins` offers that choice alone, others all.

    Raises:
        ValueError: for a layer or choice that there is not.
    """
    layers, choices = shape
    mask = np.ones(shape, np.bool_)
    for layer, choice in pins.items():
        if not (0 <= layer < layers and 0 <= choice < choices):
            raise ValueError(
                f"pins must be of layers 0..{layers - 1} to choices 0..{choices - 1}, got {layer} to {choice}"
            )
        mask[layer] = False
        mask[layer, choice] = True
    return mask


def between(strengths: npt.ArrayLike, floor: npt.ArrayLike = -np.inf, ceiling: npt.ArrayLike = np.inf) -> Mask:
    """A mask that offers the choices of a strength from floor to ceiling, both included.

    Args:
        strengths: [layers, choices], whatever orders the choices: bits, rank, wire bytes.
        floor: one for all layers, or [layers].
        ceiling: likewise.

    Raises:
        ValueError: for another shape, or a layer whose floor is above its ceiling or NaN.
    """
    table = np.asarray(strengths, np.float64)
    if table.ndim != 2:
        raise ValueError(f"strengths must be [layers, choices], got {list(table.shape)}")
    low, high = _per_layer("floor", floor, len(table)), _per_layer("ceiling", ceiling, len(table))
    wrong = np.flatnonzero(~(low <= high))
    if wrong.size:
        layer = wrong[0]
        raise ValueError(f"the floor of layer {layer} must be at most its ceiling {high[layer]}, got {low[layer]}")
    return np.asarray((table >= low[:, np.newaxis]) & (table <= high[:, np.newaxis]))


def _weights(name: str, weights: npt.ArrayLike | None, count: int) -> Table:
    if weights is None:
        return np.ones(count)
    given = np.asarray(weights, np.float64)
    if given.shape != (count,):
        raise ValueError(f"{name} must be [{count}], got {list(given.shape)}")
    bad = given[~(np.isfinite(given) & (given >= 0))]
    if bad.size:
        raise ValueError(f"{name} must be finite and not negative, got {bad[0]}")
    return given


def _per_layer(name: str, values: npt.ArrayLike, layers: int) -> Table:
    given = np.asarray(values, np.float64)
    if given.shape not in ((), (layers,)):
        raise ValueError(f"{name} must be one number or [{layers}], got {list(given.shape)}")
    return np.broadcast_to(given, (layers,))
