"""The results of all runs of a job side by side: paired gaps, the reference's own spread, summary.json."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lgreco.demo.history import History, Row
from lgreco.demo.settings import JobSettings
from lgreco.whole_file import replace_text


@dataclass(frozen=True)
class Result:
    """A finished run: its figures, how it came to them, and the file that has its plans, where these changed."""

    row: Row
    history: History
    record: Path | None = None


def gap_to_reference(results: Sequence[Result], method: str, reference: str | None) -> float | None:
    """Relative gap of a method's validation loss to the reference's of the same seed, mean over the seeds of both."""
    if reference is None or method == reference:
        return None
    own = _by_seed(results, method)
    other = _by_seed(results, reference)
    gaps = [loss / other[seed] - 1.0 for seed, loss in own.items() if seed in other]
    return statistics.fmean(gaps) if gaps else None


def reference_spread(results: Sequence[Result], reference: str) -> tuple[float, float, int] | None:
    """Lowest and highest validation loss of the reference and its number of seeds; None of one seed."""
    losses = list(_by_seed(results, reference).values())
    return (min(losses), max(losses), len(losses)) if len(losses) > 1 else None


def write_summary(path: Path, results: Sequence[Result], settings: JobSettings, world_size: int) -> None:
    """Writes summary.json: settings, versions, how bytes are counted, and one row for each run and seed."""
    reference = settings.reference
    rows = []
    for result in results:
        gap = gap_to_reference([result, *_of(results, reference)], result.row.method, reference)
        rows.append({**result.row.as_dict(), "val_gap": gap})
    summary = {
        "settings": settings.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "world_size": world_size,
        "counted": "bytes sent by one rank; plain DDP: ring allreduce of fp32, 2 (W-1)/W * 4 bytes a parameter",
        "rows": rows,
    }
    replace_text(path, json.dumps(summary, indent=2) + "\n")


def _by_seed(results: Sequence[Result], method: str) -> dict[int, float]:
    return {result.row.seed: result.row.val_loss for result in _of(results, method)}


def _of(results: Sequence[Result], method: str | None) -> list[Result]:
    return [result for result in results if result.row.method == method]
