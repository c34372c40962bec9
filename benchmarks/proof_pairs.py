"""Is a method slower than the best of those that need no lgreco? Paired blocks of one lab, with confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

RIVALS = ("dense", "bf16", "accumulate")
"""What a user can have without lgreco."""

SLOWER_AT_MOST = 1.02
"""What `auto` may take at most, as a multiple of its best rival's time."""

_CONFIDENCE = 0.95


def against_best(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How long a method's pass takes beside the rival that it looks worst against.

    Args:
        row: of the method, as `proof_rows.rows_of` gives it.
        rows: all of the same cell.

    Returns:
        rival and its bucket_cap_mb; ratio: of the time of a pass, geometric mean over rounds; low, high: its t interval
        at 95 %, None of a single pair; pairs: blocks of the same round. None of a rival, and where there is no pair:
        something died, or took one block.
    """
    if row["method"] in RIVALS:
        return None
    found = [
        {"rival": rival["method"], "bucket_cap_mb": rival["bucket_cap_mb"], **ratio}
        for rival in rows
        if rival["method"] in RIVALS and (ratio := _ratio(_pass_s(row), _pass_s(rival))) is not None
    ]
    return max(found, key=lambda each: each["ratio"], default=None)


def shown(found: Mapping[str, Any] | None) -> str | None:
    """For a table: `0.92 (0.90 to 0.94) of bf16`."""
    if found is None:
        return None
    interval = "one pair" if found["low"] is None else f"{found['low']:.2f} to {found['high']:.2f}"
    return f"{found['ratio']:.2f} ({interval}) of {found['rival']}"


def verdict(found: Mapping[str, Any] | None) -> str:
    """Whether the time is within the bound of the best rival's: `yes`, `no`, or why that is not known."""
    if found is None:
        return "not measured"
    if found["low"] is None:
        return "not decided, one pair of blocks has no interval"
    if found["high"] <= SLOWER_AT_MOST:
        return "yes"
    return "no" if found["low"] > SLOWER_AT_MOST else "not decided, it takes more blocks"


def _pass_s(row: Mapping[str, Any]) -> list[float]:
    """Of each block but the first, which holds lgreco's dense warm-up and everybody's first allocations."""
    return [(after[0] - before[0]) / (after[1] - before[1]) for before, after in pairwise(row["curve"])]


def _ratio(own_s: Sequence[float], rival_s: Sequence[float]) -> dict[str, Any] | None:
    # A method that goes on after the others has blocks that nobody's stand beside.
    logs = [math.log(own / rival) for own, rival in zip(own_s, rival_s, strict=False)]
    if not logs:
        return None
    mean, margin = fmean(logs), None
    if len(logs) > 1:
        margin = float(student.ppf((1 + _CONFIDENCE) / 2, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return {
        "ratio": math.exp(mean),
        "low": None if margin is None else math.exp(mean - margin),
        "high": None if margin is None else math.exp(mean + margin),
        "pairs": len(logs),
    }
