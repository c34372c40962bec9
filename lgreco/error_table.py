"""The error table: what each choice would leave out of each layer and what it costs, agreed over all ranks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lgreco import error_table_file
from lgreco.choice import Choice
from lgreco.family import scale_of, strength
from lgreco.layer import LayerInfo
from lgreco.spelling import did_you_mean
from lgreco.whole_file import replace_text

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """Layers x choices. Immutable (the arrays too), and equal where `fingerprint()` is equal.

    Attributes:
        layers: L of them, names unique.
        choices: C of them, each once.
        squared_errors: float64 [L, C], squared L2 distance between the exact mean over ranks of gradient + residual and
            what the exchange delivers; NaN where a choice is not offered. Every layer is offered one at least.
        squared_norms: float64 [L], squared L2 norm of that exact mean.
        costs: float64 [L, C], bytes that a rank sends in a step (or seconds); may be NaN where a choice is not offered.
        world_size: ranks.
        step: at which it was measured; of several tables, the last one.
        tables: how many measurements it is the mean of.

    Raises:
        ValueError: from the constructor, naming what is wrong, the value and what is allowed.
    """

    layers: tuple[LayerInfo, ...]
    choices: tuple[Choice, ...]
    squared_errors: Array
    squared_norms: Array
    costs: Array
    world_size: int
    step: int
    tables: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "choices", tuple(self.choices))
        for name, low in (("world_size", 1), ("step", 0), ("tables", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"error table: {name} must be a whole number from {low}, got {value!r}")
        _check_unique("layer", [layer.name for layer in self.layers])
        _check_unique("choice", [str(choice) for choice in self.choices])
        grid = (len(self.layers), len(self.choices))
        for name, shape in (("squared_errors", grid), ("squared_norms", grid[:1]), ("costs", grid)):
            array = np.array(getattr(self, name), dtype=np.float64, order="C") + 0.0  # -0.0 becomes 0.0
            if array.shape != shape:
                raise ValueError(f"error table: {name} must have the shape {shape}, got {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        self._check_values()

    def __eq__(self, other: object) -> bool:
        return self.fingerprint() == other.fingerprint() if isinstance(other, ErrorTable) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    @property
    def offered(self) -> npt.NDArray[np.bool_]:
        """Which choices a layer may be given, bool [L, C]."""
        return ~np.isnan(self.squared_errors)

    def index(self, choice: Choice) -> int:
        """The column of a choice.

        Raises:
            ValueError: where the table has no such column; lists those that it has.
        """
        if choice in self.choices:
            return self.choices.index(choice)
        known = [str(each) for each in self.choices]
        raise ValueError(f"choice must be one of {', '.join(known)}, got {choice}{did_you_mean(choice, known)}")

    def uniform(self, choice: Choice) -> tuple[int, ...]:
        """The columns of a uniform plan.

        A layer that is not offered `choice` gets what differs from it in strength alone and is nearest (a small matrix
        has no rank 8); where there is no such choice, the one of least error, the cheapest of several.

        Raises:
            ValueError: where the table has no such choice.
        """
        wanted = self.index(choice)
        near = [column for column, other in enumerate(self.choices) if scale_of(other) == scale_of(choice)]
        near.sort(key=lambda column: abs(strength(self.choices[column]) - strength(choice)))
        order = [wanted, *near]
        return tuple(
            next((column for column in order if self.offered[row, column]), self._most_exact(row))
            for row in range(len(self.layers))
        )

    def _most_exact(self, row: int) -> int:
        return int(np.lexsort((self.costs[row], self.squared_errors[row]))[0])

    def mean_with(self, newer: ErrorTable, keep: float = 0.5) -> ErrorTable:
        """Exponential average: `keep` of this table and the rest of the newer one, whose costs and step it takes.

        An entry that one of the two does not offer is the other's.

        Raises:
            ValueError: where layers, choices or world size differ, or keep is not from 0 to below 1.
        """
        if not 0.0 <= keep < 1.0:
            raise ValueError(f"keep must be from 0 to below 1, got {keep!r}")
        return _mean([self, newer], [keep, 1.0 - keep])

    @staticmethod
    def averaged(tables: Sequence[ErrorTable]) -> ErrorTable:
        """Mean of n tables, each counted as often as it has measurements (`tables`); costs and step are the last one's.

        An entry is the mean over those tables that offer it.

        Raises:
            ValueError: for no table, or where layers, choices or world size differ.
        """
        if not tables:
            raise ValueError("error tables to average must be at least 1, got 0")
        return _mean(tables, [float(table.tables) for table in tables])

    def monotone(self) -> ErrorTable:
        """A table in which no choice leaves more error than a cheaper one that differs from it in strength alone.

        Only noise of the estimate (sampled blocks, a sketch) breaks this order. Restored by pooling adjacent violators,
        which gives the nearest ordered row in least squares: never further from the true row, as that is ordered too,
        and with the same mean. A running minimum would keep whichever entry noise has made too small.
        """
        errors = self.squared_errors.copy()
        scales: dict[Choice, list[int]] = {}
        for column in sorted(range(len(self.choices)), key=lambda column: strength(self.choices[column])):
            scales.setdefault(scale_of(self.choices[column]), []).append(column)
        for columns in scales.values():
            part = errors[:, columns]
            rising = part[:, 1:] > np.fmin.accumulate(part, axis=1)[:, :-1]
            for row in np.flatnonzero(rising.any(axis=1)):
                there = [column for column in columns if not np.isnan(errors[row, column])]
                errors[row, there] = _non_increasing(errors[row, there])
        return dataclasses.replace(self, squared_errors=errors)

    def to_json(self) -> str:
        """Canonical text: equal tables give equal text, floats are exact, a choice that is not offered is null."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        return error_table_file.write({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def fingerprint(self) -> str:
        """64 hexadecimal digits (SHA-256 of the canonical text), equal for equal tables in every process."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the canonical text; the file is replaced when it is complete."""
        replace_text(Path(path), self._json)

    @classmethod
    def load(cls, path: str | Path) -> ErrorTable:
        """Reads what `save` wrote.

        Raises:
            ValueError: for a file that is cut off, damaged or of another version; names file and place.
            FileNotFoundError: where there is no file.
        """
        try:
            return cls(**error_table_file.read(Path(path).read_bytes()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _check_values(self) -> None:
        norms, errors, costs = self.squared_norms, self.squared_errors, self.costs
        for row in np.flatnonzero(~_sound(norms)):
            name = self.layers[row].name
            raise ValueError(f'error table: squared norm of layer "{name}" must be finite, >= 0, got {norms[row]}')
        for row, column in np.argwhere(~_sound(errors) & ~np.isnan(errors)):
            raise ValueError(
                f"error table: squared error {self._where(row, column)} (NaN: not offered), got {errors[row, column]}"
            )
        for row, column in np.argwhere(~_sound(costs) & ~(np.isnan(errors) & np.isnan(costs))):
            raise ValueError(f"error table: cost {self._where(row, column)}, got {costs[row, column]}")
        for row in np.flatnonzero(~self.offered.any(axis=1)):
            name = self.layers[row].name
            raise ValueError(f'error table: layer "{name}" must be offered one choice at least, got none')

    def _where(self, row: int, column: int) -> str:
        return f'of layer "{self.layers[row].name}" under {self.choices[column]} must be finite, >= 0'


def _sound(values: Array) -> npt.NDArray[np.bool_]:
    return np.isfinite(values) & (values >= 0)


def _check_unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'error table: each {what} must be there once, got "{twice}" twice')


def _mean(tables: Sequence[ErrorTable], weights: Sequence[float]) -> ErrorTable:
    """Weighted mean of errors and norms; an entry's weights are those of the tables that offer it."""
    last = tables[-1]
    costs = last.costs.copy()
    for table in reversed(tables):
        for name in ("layers", "choices", "world_size"):
            if getattr(table, name) != getattr(last, name):
                raise ValueError(
                    f"error tables to average must agree in {name}, those of step {table.step} and {last.step} differ"
                )
        np.copyto(costs, table.costs, where=np.isnan(costs))
    share = np.asarray(weights)[:, None, None] * np.stack([table.offered for table in tables])
    total = share.sum(axis=0)
    np.divide(share, total, out=share, where=total > 0)  # first: so one table's mean is that table, bit for bit
    errors = (share * np.stack([np.nan_to_num(table.squared_errors) for table in tables])).sum(axis=0)
    return dataclasses.replace(
        last,
        squared_errors=np.where(total > 0, errors, np.nan),
        squared_norms=np.average(np.stack([table.squared_norms for table in tables]), axis=0, weights=weights),
        costs=costs,
        tables=sum(table.tables for table in tables),
    )


def _non_increasing(values: Array) -> Array:
    """The nearest non-increasing sequence in least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []  # mean, count
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (mean, count), (other, others) = pools.pop(), pools.pop()
            pools.append(((mean * count + other * others) / (count + others), count + others))
    return np.array([mean for mean, count in pools for _ in range(count)], dtype=np.float64)
