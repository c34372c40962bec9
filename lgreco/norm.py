"""Norms: how the errors of layers add up to the one number that a budget bounds.

squared: squared L2 distances. l2: L2 distances, the paper's sum (arXiv 2210.17357, section 3).
adam: squared L2 distances, each over the root mean square of its layer's averaged gradient. Adam divides a gradient by
the root of its second moment, so that to second order in the error this is what a step's progress loses, whatever the
layers' scales: sum of e^2 / sqrt(v).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lgreco.error_table import ErrorTable

Array = npt.NDArray[np.float64]

NORMS = ("adam", "squared", "l2")


def distances(squared: npt.ArrayLike, norm: str) -> Array:
    """Squared L2 distances as the norm takes them, before weights."""
    values = np.asarray(squared, np.float64)
    return np.sqrt(values) if norm == "l2" else values


def layer_weights(table: ErrorTable, norm: str) -> Array:
    """float64 [L]: what one unit of a layer's `distances` counts in the norm."""
    if norm != "adam":
        return np.ones(len(table.layers))
    numel = np.array([layer.sent_numel for layer in table.layers], np.float64)  # errors and norms are of what is kept
    worst = np.nanmax(table.squared_errors, axis=1, initial=0.0)
    scale = np.where(table.squared_norms > 0, table.squared_norms, worst)  # of a zero gradient: what coding it costs
    return np.sqrt(np.divide(numel, scale, out=np.zeros_like(scale), where=scale > 0))


def additive_errors(table: ErrorTable, norm: str) -> Array:
    """float64 [L, C]: what each choice on each layer adds to a plan's error; NaN where it is not offered."""
    return distances(table.squared_errors, norm) * layer_weights(table, norm)[:, np.newaxis]


def gradient_total(table: ErrorTable, norm: str, weights: npt.ArrayLike = 1.0) -> float:
    """The averaged gradient's own norm, as errors add up: what an exchange that sent nothing would leave out.

    Args:
        table: whose `squared_norms` count.
        norm: one of NORMS.
        weights: [L], factors beside the norm's own.
    """
    return math.fsum(distances(table.squared_norms, norm) * layer_weights(table, norm) * np.asarray(weights))
