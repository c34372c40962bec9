"""Budgets: what a plan may spend, as an error or as bytes, at a given step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lgreco import norm
from lgreco.error_table import ErrorTable
from lgreco.pattern import rule_for
from lgreco.ring import ring_share
from lgreco.solver_config import Accordion, Schedule, SolverConfig

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """What one plan may spend: either the sum of weighted errors or bytes; the other is then the least possible.

    Attributes:
        error: most that the plan's errors may sum up to; None where bytes are given.
        bytes: most that ranks may send in a step, on the mean; None where an error is given.
        alpha: factor on the reference's error that made it; None where nothing is relative to the reference.
    """

    error: float | None
    bytes: float | None
    alpha: float | None


@dataclass
class Detector:
    """Accordion's test for critical regimes: the gradient's norm moved by more than a share since the last table."""

    norm: float | None = None
    critical: bool = True

    def observe(self, length: float, settings: Accordion) -> bool:
        """Takes the next L2 norm of the averaged gradient; whether training is in a critical regime now."""
        if self.norm is not None:
            moved = abs(length - self.norm)
            self.critical = moved > settings.threshold * self.norm if self.norm > 0 else moved > 0
        self.norm = length
        return self.critical


def alpha_at(alpha: float | Schedule, step: int) -> float:
    """A schedule's value: linear between its points, constant before the first and after the last."""
    if not isinstance(alpha, tuple):
        return alpha
    steps, values = zip(*alpha, strict=True)
    return float(np.interp(step, steps, values))


def error_weights(table: ErrorTable, settings: SolverConfig) -> Array:
    """float64 [L, C]: what one unit of a choice's error counts: the norm's own weights, those of layer and family."""
    families = dict(settings.family_weights)
    by_choice = np.array([families.get(choice.codec, 1.0) for choice in table.choices])
    by_layer = norm.layer_weights(table, settings.norm) * _layer_weights(table, settings)
    return np.outer(by_layer, by_choice)


def weighted_errors(table: ErrorTable, settings: SolverConfig) -> Array:
    """float64 [L, C]: what a plan spends on a layer under a choice; NaN where it is not offered."""
    return norm.distances(table.squared_errors, settings.norm) * error_weights(table, settings)


def make_budget(
    table: ErrorTable, errors: Array, reference: Sequence[int], settings: SolverConfig, step: int, detector: Detector
) -> Budget:
    """The budget of the plan that takes effect at `step`.

    Args:
        table: monotone, averaged.
        errors: as `weighted_errors` makes them of it.
        reference: the reference plan's columns.
        settings: the solver's.
        step: the alpha of a schedule is that of this step.
        detector: takes note of the table's gradient norm, where Accordion's test is asked for.
    """
    if settings.bytes is not None:
        return Budget(None, float(settings.bytes), None)
    if settings.ratio is not None:
        return Budget(None, _dense_bytes(table) / settings.ratio, None)
    if settings.relative_error is not None:
        whole = norm.gradient_total(table, settings.norm, _layer_weights(table, settings))
        return Budget(settings.relative_error * whole, None, None)
    alpha = alpha_at(settings.alpha, step)
    if settings.accordion is not None:
        critical = detector.observe(math.sqrt(math.fsum(table.squared_norms)), settings.accordion)
        alpha = settings.accordion.tight if critical else settings.accordion.loose
    return Budget(alpha * total(errors, reference), None, alpha)


def total(values: Array, columns: Sequence[int]) -> float:
    """Sum over layers of one column each, exactly rounded: the same on every machine."""
    return math.fsum(values[np.arange(len(columns)), list(columns)].tolist())


def _layer_weights(table: ErrorTable, settings: SolverConfig) -> Array:
    return np.array(
        [
            1.0 if rule is None else rule[1]
            for rule in (rule_for(layer.name, settings.layer_weights) for layer in table.layers)
        ]
    )


def _dense_bytes(table: ErrorTable) -> float:
    """What a ring all-reduce of the same gradients sends from each rank."""
    return ring_share(table.world_size) * sum(layer.dense_bytes for layer in table.layers)
