"""A table in the making: what is still to be measured of it, and what has been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lgreco.measurement import Row


@dataclass
class PendingTable:
    """Which slice of layers comes from which step, and what has been measured so far."""

    begin: int
    slices: dict[int, list[int]]
    effective_step: int
    rows: dict[int, Row] = field(default_factory=dict)
    measure_ms: float = 0.0

    def pack(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        return {
            "begin": self.begin,
            "rows": [[row, each.errors.tolist(), each.squared_norm, each.realised] for row, each in self.rows.items()],
        }


def unpack_rows(saved: Mapping[str, Any]) -> dict[int, Row]:
    """What a packed table has measured."""
    return {row: Row(np.array(errors), norm, realised) for row, errors, norm, realised in saved["rows"]}
