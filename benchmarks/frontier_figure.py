"""The picture of a frontier: how far each run's loss ends from dense's, against how many times fewer bytes it sends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

_COLOURS = ("#0d9488", "#d97706", "#7c3aed", "#db2777", "#2563eb", "#65a30d", "#0891b2", "#b91c1c")
_BAND = "#94a3b8"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
}
# Above this, gaps beyond a few per cent are drawn on a log scale.
_LARGE_GAP, _PLAIN_GAP_PERCENT = 0.3, 5.0
_GAP_TICKS = (-5.0, -2.5, 0.0, 2.5, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws rows of `frontier_summary.rows_of` into one PNG; it appears when it is complete.

    Args:
        rows: of all runs; those without a gap or a ratio are left out.
        title: of the figure.
        path: of the PNG.
    """
    families = dict.fromkeys(row["family"] for row in rows if row["val_gap"] is not None)
    colours = {family: _COLOURS[index % len(_COLOURS)] for index, family in enumerate(families)}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13.0, 5.6), dpi=150, layout="constrained")
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        validation, training = figure.subplots(1, 2)
        _panel(validation, rows, colours, "val", "Validation loss")
        _panel(training, rows, colours, "train", "Training loss, last 50 steps")
        if colours:
            validation.legend(loc="upper left")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(part, format="png")
    part.replace(path)


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str], name: str, title: str) -> None:
    """Means as dots with a bar from the best seed to the worst, a family's dots joined in order of their ratio."""
    axes.set(title=title, xscale="log", xlabel="times fewer bytes than dense, after the dense warm-up")
    axes.set_ylabel("gap to dense of the same seed, %")
    axes.axhline(0.0, color=_BAND, linewidth=1.0)
    for row in rows:
        if row[f"{name}_spread"] is not None:
            low, high = (100 * edge for edge in row[f"{name}_spread"])
            axes.axhspan(low, high, color=_BAND, alpha=0.25, linewidth=0, label="dense, seed to seed")
    drawn = [row for row in rows if row[f"{name}_gap"] is not None and row["ratio"]]
    for family, colour in colours.items():
        own = sorted((row for row in drawn if row["family"] == family), key=lambda row: row["ratio"])
        gaps = [100 * row[f"{name}_gap"] for row in own]
        seeds = [[100 * gap for gap in row[f"{name}_gap_by_seed"].values()] for row in own]
        below = [gap - min(each) for gap, each in zip(gaps, seeds, strict=True)]
        above = [max(each) - gap for gap, each in zip(gaps, seeds, strict=True)]
        x = [row["ratio"] for row in own]
        axes.errorbar(x, gaps, (below, above), fmt="o-", color=colour, linewidth=1.2, capsize=3, label=family)
        for row, gap in zip(own, gaps, strict=True):
            # The legend says the family.
            label = row["run"].removeprefix(f"{family}/").removeprefix(f"{family}(").removesuffix(")")
            place = {"xytext": (6, -9), "textcoords": "offset points"}
            axes.annotate(label, (row["ratio"], gap), fontsize=7, color=colour, **place)
    _scale(axes, [row["ratio"] for row in drawn], [row[f"{name}_gap"] for row in drawn])


def _scale(axes: Axes, ratios: Sequence[float], gaps: Sequence[float]) -> None:
    """Ratios as people say them, with room for labels; large gaps are pressed together, so that small ones show."""
    if not ratios:
        return
    axes.set_xticks(_TICKS)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g} x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(ratios) / 1.2, max(ratios) * 2.0)
    if max(gaps) > _LARGE_GAP:
        axes.set_yscale("symlog", linthresh=_PLAIN_GAP_PERCENT)
        axes.set_yticks(_GAP_TICKS)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda gap, _: f"{gap:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.autoscale(axis="y")
