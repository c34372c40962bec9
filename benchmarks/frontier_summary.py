"""The results of all seeds side by side: a row for each run, gaps to dense of the same seed, dense's own spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from frontier_runs import Run, config_of

COLUMNS = (
    "run", "ratio", "whole-run ratio", "validation loss", "gap to dense", "training loss", "gap to dense ",
    "accuracy", "replicas", "cpu s",
)  # fmt: skip
_LOSSES = ("val_loss", "train_loss")
_MEANS = (
    "ratio",
    "whole_run_ratio",
    "wire_bytes_per_step",
    "wire_bytes_run",
    *_LOSSES,
    "val_accuracy",
    "wall_s",
    "cpu_s",
)
# What is long, or said once in the row.
_LEFT_OUT = ("job", "plan", "train_loss_curve", "parameters")

Records = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Run's name -> seed -> what the job recorded."""


def rows_of(runs: Sequence[Run], records: Records) -> list[dict[str, Any]]:
    """One row for each run that has a record.

    A row's figures are means over the seeds that lived; `by_seed` has each seed's, `died` the last words of the others.
    The reference is the first plain run.
    """
    reference = next((run.name for run in runs if run.plain), None)
    dense = _alive(records.get(reference, {})) if reference is not None else {}
    rows = []
    for run in runs:
        of_seed = records.get(run.name)
        if of_seed:
            rows.append(_row(run, of_seed, dense, is_reference=run.name == reference))
    return rows


def spread(losses: Sequence[float]) -> list[float] | None:
    """Lowest and highest loss relative to their mean; None of fewer than two."""
    if len(losses) < 2:
        return None
    mean = fmean(losses)
    return [min(losses) / mean - 1.0, max(losses) / mean - 1.0]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the table of COLUMNS shows it."""
    lived, died = len(row["seeds"]) - len(row["died"]), len(row["died"])
    died_note = f" ({died} of {len(row['seeds'])} died)" if died else ""
    cells = {"run": row["run"] + died_note}
    if not lived:
        return cells
    return {
        **cells,
        "ratio": _times(row["ratio"]),
        "whole-run ratio": _times(row["whole_run_ratio"]),
        "validation loss": f"{row['val_loss']:.4f}",
        "gap to dense": _gap_text(row, "val"),
        "training loss": f"{row['train_loss']:.4f}",
        "gap to dense ": _gap_text(row, "train"),
        "accuracy": f"{row['val_accuracy']:.2%}",
        "replicas": "equal" if row["replicas_equal"] else "DIFFER",
        "cpu s": f"{row['cpu_s']:.0f}",
    }


def _row(
    run: Run, of_seed: Mapping[int, Mapping[str, Any]], dense: Mapping[int, Mapping[str, Any]], *, is_reference: bool
) -> dict[str, Any]:
    alive = _alive(of_seed)
    # Complete, as defaults may change: --known asks whether it is still the same.
    config = config_of(run, next(iter(of_seed)))
    row: dict[str, Any] = {"run": run.name, "family": run.family, "config": config, "seeds": list(of_seed)}
    row["died"] = {str(seed): record["died"] for seed, record in of_seed.items() if record["died"] is not None}
    for key in _MEANS:
        known = [record[key] for record in alive.values() if record[key] is not None]
        row[key] = fmean(known) if known else None
    for loss in _LOSSES:
        name = loss.removesuffix("_loss")
        gaps = {seed: record[loss] / dense[seed][loss] - 1.0 for seed, record in alive.items() if seed in dense}
        row[f"{name}_gap"] = fmean(gaps.values()) if gaps and not is_reference else None
        row[f"{name}_gap_by_seed"] = {} if is_reference else {str(seed): gap for seed, gap in gaps.items()}
        row[f"{name}_spread"] = spread([record[loss] for record in alive.values()]) if is_reference else None
    row["replicas_equal"] = all(record["replicas_equal"] for record in alive.values()) if alive else None
    row["parameters"] = next((record["parameters"] for record in alive.values()), None)
    row["plan"] = next((record["plan"] for record in alive.values()), None)
    row["by_seed"] = {
        str(seed): {key: value for key, value in record.items() if key not in _LEFT_OUT}
        for seed, record in of_seed.items()
    }
    return row


def _alive(of_seed: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {seed: record for seed, record in of_seed.items() if record["died"] is None}


def _gap_text(row: Mapping[str, Any], name: str) -> str | None:
    """`+0.3 % (+0.1, +0.5)`: mean and each seed; of the reference its spread."""
    if row[f"{name}_spread"] is not None:
        low, high = row[f"{name}_spread"]
        return f"spread {100 * low:+.1f} to {100 * high:+.1f} %"
    if row[f"{name}_gap"] is None:
        return None
    each = ", ".join(f"{100 * gap:+.1f}" for gap in row[f"{name}_gap_by_seed"].values())
    return f"{100 * row[f'{name}_gap']:+.1f} % ({each})"


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.1f} x" if ratio < 100 else f"{ratio:.0f} x"
