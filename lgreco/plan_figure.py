"""The plan over time as a picture: layers x steps, a hue for each family, the darker the more is sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.patches import Patch

from lgreco.choice import Choice, LowRank, Quantize, RandomK, TopK
from lgreco.family import family, in_order, scale_of
from lgreco.record import Record
from lgreco.short_names import shorten

_RAMPS = {
    "dense": ("#e3e8ee", "#b8c2ce"),
    "quantize": ("#c9f0dc", "#4cc3a5", "#0b7d84", "#073f56"),
    "topk": ("#fdeaa0", "#f6a723", "#bd5209", "#662506"),
    "randomk": ("#fbd0dc", "#ee5d8f", "#9d1550", "#560a33"),
    "lowrank": ("#e6dcfb", "#a98bef", "#6633cc", "#2b1066"),
}
FAMILY_COLOURS = {
    "dense": "#b4bfcc",
    "quantize": "#1fa596",
    "topk": "#d97706",
    "randomk": "#db2777",
    "lowrank": "#7c3aed",
}
_LIGHT_INK, _DARK_INK = "#ffffff", "#1e293b"
_UNKNOWN = "#f8fafc"
_LEGEND_POINTS, _HANDLE_EM, _PAD_EM = 8, 1.2, 0.7
_LABEL_POINTS = 5.5, 8.0
"""Smallest and largest size of a layer's name."""

MOST_SHAPES = 3000
"""How many shapes are drawn one by one; a vector picture of more would be large and slow, so they become pixels."""


@dataclass(frozen=True)
class Stretch:
    """Steps in which a layer keeps its choice: from `begin`, not including `end`."""

    begin: int
    end: int
    choice: Choice


@dataclass(frozen=True)
class Rows:
    """What a picture shows of a record.

    Attributes:
        named: layer -> its stretches, of those layers that are not always dense.
        dense: layers that are dense in every plan.
        begin: first step of the picture.
        end: last step of the picture.
    """

    named: dict[str, list[Stretch]]
    dense: list[str]
    begin: int
    end: int


def choice_colours(choices: Sequence[Choice]) -> dict[Choice, str]:
    """A colour for each choice: the family's hue, from light for what sends least to dark for what sends most."""
    colours: dict[Choice, str] = {}
    ordered = in_order(choices)
    for name in dict.fromkeys(map(family, ordered)):
        members = [choice for choice in ordered if family(choice) == name]
        ramp = LinearSegmentedColormap.from_list(name, _RAMPS[name])
        for place, choice in enumerate(members):
            colours[choice] = to_hex(ramp(place / (len(members) - 1) if len(members) > 1 else 0.6))
    return colours


def colours_of(record: Record) -> dict[Choice, str]:
    """Colours of all choices that a record knows: those on offer and those in its plans."""
    return choice_colours(
        [*record.start.choices, *(choice for solve in record.solves for choice in solve.plan.values())]
    )


def label(choice: Choice) -> str:
    """A choice in a few characters, for a cell: `r8`, `4b`, `1%`; nothing for dense."""
    if isinstance(choice, LowRank):
        return f"r{choice.rank}"
    if isinstance(choice, Quantize):
        return f"{choice.bits}b"
    if isinstance(choice, TopK | RandomK):
        return f"{100 * choice.density:g}%"
    return ""


def span_of(record: Record) -> tuple[int, int]:
    """First and last step of a picture of a record."""
    begins = [solve.effective_step for solve in record.solves]
    return min([0, *begins]), max([record.last_step, *begins]) + 1


def rows_of(record: Record) -> Rows:
    """Each layer's choice from plan to plan; equal neighbours are one stretch."""
    solves = sorted(record.solves, key=lambda solve: solve.effective_step)
    begins = [solve.effective_step for solve in solves]
    first, end = span_of(record)
    named: dict[str, list[Stretch]] = {}
    for solve, begin, until in zip(solves, begins, [*begins, end][1:], strict=True):
        for name, choice in solve.plan.items():
            stretches = named.setdefault(name, [])
            if stretches and stretches[-1].choice == choice and stretches[-1].end == begin:
                stretches[-1] = Stretch(stretches[-1].begin, until, choice)
            elif until > begin:
                stretches.append(Stretch(begin, until, choice))
    dense = [name for name, each in named.items() if all(family(stretch.choice) == "dense" for stretch in each)]
    shown = {name: each for name, each in named.items() if name not in set(dense)}
    return Rows(shown, dense, first, end)


def draw_plan(axes: Axes, record: Record, *, legend: bool = True, name_limit: int = 28) -> None:
    """Draws which choice each layer has from step to step; layers that are always dense share the last row.

    Args:
        axes: empty axes; wide ones get each choice's label in its cells where these are large enough.
        record: of a run, with solves or without.
        legend: whether to explain the colours to the right of the axes.
        name_limit: longest layer name, in characters.
    """
    rows, colours = rows_of(record), colours_of(record)
    names = list(rows.named)
    row_points, step_points = _scale(axes, len(names) + bool(rows.dense), rows.end - rows.begin)
    shortest = min((each.end - each.begin for stretches in rows.named.values() for each in stretches), default=1)
    edge = min(1.0, row_points / 8, shortest * step_points / 8)
    many = sum(map(len, rows.named.values())) > MOST_SHAPES
    for row, stretches in enumerate(rows.named.values()):
        spans = [(each.begin, each.end - each.begin) for each in stretches]
        fills = [colours[each.choice] for each in stretches]
        axes.broken_barh(spans, (row - 0.5, 1.0), facecolors=fills, edgecolors="white", linewidth=edge, rasterized=many)
        if row_points >= 7:
            _write_labels(axes, row, stretches, colours, min(7.0, 0.7 * row_points), step_points)
    ticks = shorten(names, name_limit)
    if rows.dense:
        begin = min(solve.effective_step for solve in record.solves)
        fill = colours[record.solves[-1].plan[rows.dense[0]]]
        axes.broken_barh([(begin, rows.end - begin)], (len(names) - 0.5, 1.0), facecolors=[fill], edgecolors="white")
        ticks.append(f"{len(rows.dense)} more, always dense" if names else f"{len(rows.dense)} layers, always dense")
    smallest, largest = _LABEL_POINTS
    every = math.ceil(smallest / (0.8 * row_points))
    size = min(largest, max(smallest, 0.8 * row_points))
    axes.set_yticks(range(0, len(ticks), every), ticks[::every], fontsize=size, parse_math=False)
    axes.set(title="Plan", xlabel="step", xlim=(rows.begin, rows.end), ylim=(max(len(ticks), 1) - 0.5, -0.5))
    axes.set_facecolor(_UNKNOWN)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    if not ticks:
        axes.text(0.5, 0.5, "no plan was solved so far", transform=axes.transAxes, ha="center", va="center")
    elif legend:
        draw_legend(axes, record)


def draw_legend(axes: Axes, record: Record) -> None:
    """Explains the colours of the choices that are in some plan, to the right of the axes."""
    colours = colours_of(record)
    used = in_order(choice for solve in record.solves for choice in solve.plan.values())
    handles: list[Patch] = []
    for scale in dict.fromkeys(map(scale_of, used)):
        handles.append(Patch(alpha=0.0, label=_heading(scale)))
        members = [choice for choice in used if scale_of(choice) == scale]
        handles += [Patch(color=colours[choice], label=_strength_text(choice)) for choice in members]
    drawn = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        handlelength=_HANDLE_EM,
        handletextpad=_PAD_EM,
        handleheight=1.0,
        fontsize=_LEGEND_POINTS,
    )
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes that belong to a figure"
    for handle, text in zip(handles, drawn.get_texts(), strict=True):
        if handle.get_alpha() == 0.0:
            text.set_fontweight("bold")
            text.set_x(-(_HANDLE_EM + _PAD_EM) * _LEGEND_POINTS * figure.dpi / 72)  # where handles begin


def _heading(scale: Choice) -> str:
    """What choices of one scale have in common: `lowrank, factors=int8`."""
    name, _, parameters = str(scale).rstrip(")").partition("(")
    rest = [each for each in parameters.split(", ") if not each.startswith(("bits=", "density=", "rank=", "dtype="))]
    return ", ".join([name, *rest])


def _strength_text(choice: Choice) -> str:
    if isinstance(choice, LowRank):
        return f"rank {choice.rank}"
    if isinstance(choice, Quantize):
        return f"{choice.bits} bit{'s' if choice.bits > 1 else ''}"
    return label(choice) or str(choice).partition("=")[2].rstrip(")")


def _scale(axes: Axes, rows: int, steps: int) -> tuple[float, float]:
    """Points (1/72 inch) of a row and of a step, roughly: the layout is not made yet."""
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes that belong to a figure"
    width, height = figure.get_size_inches()
    box = axes.get_position()
    return 72 * float(height) * box.height / max(rows, 1), 72 * float(width) * box.width * 0.8 / max(steps, 1)


def _write_labels(
    axes: Axes, row: int, stretches: Sequence[Stretch], colours: dict[Choice, str], size: float, step_points: float
) -> None:
    """Labels in those cells that are wide enough for them."""
    for each in stretches:
        text = label(each.choice)
        if text and (each.end - each.begin) * step_points > (len(text) + 1) * 0.62 * size:
            ink = _LIGHT_INK if _luminance(colours[each.choice]) < 0.55 else _DARK_INK
            place = (each.begin + each.end) / 2
            axes.text(place, row, text, color=ink, fontsize=size, ha="center", va="center_baseline")


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue
