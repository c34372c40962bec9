"""The proof suite's figures: from blocks of passes to rows, time to a target loss, and the paper's claims in small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import proof_pairs
from step_turns import UNSYNCHRONISED, Measured

from lgreco.record import read

DENSE = "dense"
_FEWER_BYTES = (
    ("lgreco against the same uniform choice", "lowrank", "lgreco"),
    ("accordion on top", "lgreco", "accordion"),
)
Curve = list[tuple[float, int, float]]
"""(seconds of training, passes, validation loss) after each block."""


def seconds_of(measured: Measured) -> float:
    """What the passes so far took: the slowest host's time of each, since hosts wait for each other."""
    return sum(sum(_passes_ms(block)) for block in measured.blocks) / 1e3


def curve_of(measured: Measured) -> Curve:
    """Validation loss over training time; empty for what does not exchange."""
    curve: Curve = []
    seconds, passes = 0.0, 0
    for block in measured.blocks:
        seconds += sum(_passes_ms(block)) / 1e3
        passes += len(block[0].step_ms)
        losses = [rank.loss for rank in block if rank.loss is not None]
        if losses:
            curve.append((seconds, passes, fmean(losses)))
    return curve


def target_of(measured: Sequence[Measured], passes: int) -> float | None:
    """Validation loss of dense training after `passes` passes; None where dense died."""
    losses = [
        loss
        for one in measured
        if one.variant.method == DENSE and one.error is None
        for _, count, loss in curve_of(one)
        if count == passes
    ]
    return min(losses) if losses else None


def seconds_to(curve: Curve, target: float) -> float | None:
    """When the loss first reached the target, on the line between two evaluations; None where it did not."""
    before: tuple[float, float] | None = None
    for seconds, _, loss in curve:
        if loss <= target:
            if before is None:
                return seconds
            began, from_loss = before
            return began + (seconds - began) * (from_loss - target) / (from_loss - loss)
        before = seconds, loss
    return None


def rows_of(measured: Sequence[Measured], target: float | None, folder: Path) -> list[dict[str, Any]]:
    """One row for each variant; all figures of one that died are None, so that it cannot look fast.

    Args:
        measured: of one cell.
        target: validation loss to reach.
        folder: with the records of runs whose plans were solved for.
    """
    rows = [_row(one, target, folder) for one in measured]
    compute_ms = next((row["pass_ms_median"] for row in rows if row["method"] == UNSYNCHRONISED), None)
    dense_s = _least(rows, DENSE)
    for row in rows:
        row["over_compute"] = _ratio(row["pass_ms_median"], compute_ms)
        row["times_faster_to_target"] = _ratio(dense_s, row["seconds_to_target"])
        row["against_best"] = proof_pairs.against_best(row, rows)
    return rows


def _row(one: Measured, target: float | None, folder: Path) -> dict[str, Any]:
    blocks = [] if one.error is not None else one.blocks
    times = [ms for block in blocks for ms in _passes_ms(block)]
    # A pass that exchanges and one that accumulates differ, so blocks are what is compared.
    means = [fmean(_passes_ms(block)) for block in blocks]
    tenths = quantiles(means, n=10, method="inclusive") if len(means) > 1 else means * 9
    curve = curve_of(one) if one.error is None else []
    own_s = sum(times) / 1e3
    return {
        "method": one.variant.method,
        "bucket_cap_mb": one.variant.bucket_cap_mb,
        "pass_ms_median": median(means) if means else None,
        "pass_ms_p10": tenths[0] if means else None,
        "pass_ms_p90": tenths[-1] if means else None,
        "cpu_ms": median(fmean(rank.cpu_ms for rank in block) for block in blocks) if blocks else None,
        "wire_bytes": round(fmean(rank.wire_bytes for rank in blocks[-1])) if blocks else None,
        "link_bytes": round(fmean(fmean(rank.link_bytes for rank in block) for block in blocks)) if blocks else None,
        "passes": len(times),
        "target_loss": target,
        "final_loss": curve[-1][2] if curve else None,
        "seconds_to_target": seconds_to(curve, target) if curve and target is not None else None,
        "solver_share": _solver_share(folder / f"{one.variant.name}.jsonl", own_s) if times else None,
        "curve": [list(point) for point in curve],
        "survived": one.error is None,
        "error": one.error,
    }


def claims_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows of one cell say about the paper's claims, one sentence each; nothing of what died or is missing."""
    claims = []
    dense_s, bf16_s = _least(rows, DENSE), _least(rows, "bf16")
    references = [each for each in (dense_s, bf16_s) if each is not None]
    for method in ("uniform", "lowrank", "lgreco", "accordion", "auto"):
        own_s = _least(rows, method)
        if own_s is not None and references:
            claims.append(
                f"{method}: target loss {min(references) / own_s:.2f} times as fast as the better of dense and bf16"
            )
    for row in rows:
        if row["method"] == "auto":
            found = proof_pairs.against_best(row, rows)
            claims.append(
                f"auto: a pass takes {proof_pairs.shown(found) or 'no known time'}, the best of dense, bf16 and "
                f"accumulation; at most {proof_pairs.SLOWER_AT_MOST - 1:.0%} more: {proof_pairs.verdict(found)}"
            )
    by_method = {row["method"]: row for row in rows if row["survived"]}
    for claim, before, after in _FEWER_BYTES:
        if {before, after} <= by_method.keys():
            one, other = by_method[before], by_method[after]
            claims.append(
                f"{claim}: {_ratio(one['wire_bytes'], other['wire_bytes']):.2f} times fewer bytes, "
                f"final loss {other['final_loss']:.4f} against {one['final_loss']:.4f}"
            )
    share = by_method.get("lgreco", {}).get("solver_share")
    if share is not None:
        claims.append(f"the solver took {share:.3%} of the training time")
    return claims


def _passes_ms(block: Sequence[Any]) -> list[float]:
    return [max(of_ranks) for of_ranks in zip(*(rank.step_ms for rank in block), strict=True)]


def _least(rows: Sequence[Mapping[str, Any]], method: str) -> float | None:
    known = [row["seconds_to_target"] for row in rows if row["method"] == method]
    return min((each for each in known if each is not None), default=None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _solver_share(record: Path, own_s: float) -> float | None:
    if not record.is_file():
        return None
    return sum(solve.solve_ms for solve in read(record).solves) / 1e3 / own_s
