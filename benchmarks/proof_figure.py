"""The picture of a proof: validation loss over training time for each network, and time to the target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lgreco.figure_style import COLOURS, FAINT, REFERENCE_COLOUR, STYLE

_GREYS = {"dense": REFERENCE_COLOUR, "bf16": FAINT, "accumulate": "#cbd5e1", "powersgd": "#a8a29e"}
# Greys are told apart by their dashes.
_LINES = {"bf16": "--", "powersgd": "-."}
_MOST_COLUMNS = 4


def draw(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws two panels for each cell (a number of hosts at a rate) into one PNG; it appears when it is complete."""
    methods = list(dict.fromkeys(row["method"] for cell in cells for row in cell["rows"] if row["curve"]))
    own = [method for method in methods if method not in _GREYS]
    colours = {**_GREYS, **{method: COLOURS[index % len(COLOURS)] for index, method in enumerate(own)}}
    columns = min(len(cells), _MOST_COLUMNS)
    lines = -(-len(cells) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 4.6 * columns), 6.4 * lines), dpi=150, layout="constrained")
        panels = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=(3, 2) * lines)
        for place, cell in enumerate(cells):
            line, column = divmod(place, columns)
            _losses(panels[2 * line][column], cell, colours)
            _times(panels[2 * line + 1][column], cell, colours)
        for place in range(len(cells), lines * columns):
            for axes in panels[-2:, place % columns]:
                axes.remove()
        panels[0][0].legend(loc="upper right")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(part, format="png")
    part.replace(path)


def _losses(axes: Axes, cell: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    axes.set(title=f"{cell['hosts']} hosts, {cell['rate']}", xlabel="seconds of training", ylabel="validation loss")
    for row in _best(cell["rows"]):
        seconds, _, losses = zip(*row["curve"], strict=True)
        method = row["method"]
        axes.plot(
            seconds, losses, _LINES.get(method, "-"), color=colours[method], label=method, marker=".", markersize=4
        )
    target = next((row["target_loss"] for row in cell["rows"]), None)
    if target is not None:
        axes.axhline(target, color=FAINT, linewidth=0.8, linestyle="--")
    axes.set_xlim(left=0)


def _times(axes: Axes, cell: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    rows = list(reversed(_best(cell["rows"])))
    axes.set(xlabel="seconds to dense's loss")
    axes.barh(
        [row["method"] for row in rows],
        [row["seconds_to_target"] or 0.0 for row in rows],
        color=[colours[row["method"]] for row in rows],
    )
    for place, row in enumerate(rows):
        reached = row["seconds_to_target"]
        axes.text(reached or 0.0, place, " not reached" if reached is None else f" {reached:.0f} s", va="center")
    axes.margins(x=0.2)


def _best(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each method that exchanged and lived, the bucket cap that reached the target first."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if not row["curve"]:
            continue
        known = best.get(row["method"])
        if known is None or (row["seconds_to_target"] or 1e9) < (known["seconds_to_target"] or 1e9):
            best[row["method"]] = row
    return list(best.values())
