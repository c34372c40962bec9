"""The pictures of a report: plan, bytes, errors against budget, loss and time."""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lgreco.family import in_order
from lgreco.figure_style import COLOURS, FAINT, INK, REFERENCE_COLOUR, STYLE
from lgreco.plan_figure import FAMILY_COLOURS, MOST_SHAPES, draw_plan, rows_of, span_of
from lgreco.pruning.figure import draw_sparsity
from lgreco.pruning.report import Change
from lgreco.quantities import bytes_text
from lgreco.record import Record
from lgreco.record_kinds import Realised, Solve
from lgreco.scalars import family_bytes

_WIDTH, _PAIR_HEIGHT = 10.6, 3.0  # inches
# Text stays text, in the page's own font; ids that are the same in each process make equal records equal pages.
_MOST_MARKS = 60
_PIXELS_PER_INCH = 200
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "lgreco"}


Draw = Callable[[Axes, Record], None]
Place = Literal["upper right", "center right"]


def plan_svg(record: Record) -> str:
    """Layers x steps by choice."""
    rows = rows_of(record)
    count = len(rows.named) + bool(rows.dense)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        draw_plan(axes, record)
        axes.set_title("")  # the section's heading says it

    return _svg(min(30.0, max(2.2, 0.7 + 0.215 * count)), draw)


def bytes_svg(record: Record) -> str:
    """Bytes per step beside dense, and how they are shared among families."""
    return _pair(record, _draw_bytes, _draw_families)


def errors_svg(record: Record) -> str:
    """Predicted and realised error against the budget, and how well each layer was predicted."""
    return _pair(record, _draw_errors, _draw_accuracy)


def steps_svg(record: Record) -> str:
    """Loss and the time of a step, as far as they are recorded."""
    return _pair(record, _draw_loss, _draw_times)


def sparsity_svg(changes: Sequence[Change]) -> str:
    """Sparsity against step, per layer."""

    def draw(figure: Figure) -> None:
        draw_sparsity(figure.add_subplot(), changes, changes[-1].step + 1)

    return _svg(_PAIR_HEIGHT + 0.6, draw)


def realised_totals(record: Record) -> list[tuple[int, float, float]]:
    """Step, predicted and realised error of each `realised` in the units of the budget; without those of error zero.

    Both are of the plan that was in force, predicted by the table of that step.
    """
    totals = []
    for each in record.realised:
        predicted, realised = each.totals(_in_force(record.solves, each))
        if predicted > 0:
            totals.append((each.step, predicted, realised))
    return totals


def accuracies(record: Record) -> list[tuple[int, list[float]]]:
    """Step and, for each layer with an error, realised over predicted."""
    return [
        (each.step, [realised / predicted for predicted, realised in each.pairs().values() if predicted > 0])
        for each in record.realised
    ]


def _in_force(solves: Sequence[Solve], realised: Realised) -> Solve | None:
    """The solve whose plan the exchange of that step used; of an earlier plan nothing is known."""
    before = [solve for solve in solves if solve.effective_step <= realised.step]
    return before[-1] if before else None


def _draw_bytes(axes: Axes, record: Record) -> None:
    dense = record.start.dense_bytes
    steps, sent = [each.step for each in record.steps], [each.wire_bytes for each in record.steps]
    if steps:
        axes.plot(steps, sent, color=COLOURS[0], linewidth=1.6, label="sent")
    if record.solves:
        at = [solve.effective_step for solve in record.solves]
        predicted = [solve.wire_bytes for solve in record.solves]
        axes.plot(at, predicted, "o", color=COLOURS[0], markerfacecolor="white", markersize=4, label="predicted")
    if dense:
        axes.axhline(dense, color=REFERENCE_COLOUR, linestyle="--", linewidth=1.2, label="dense (ring allreduce)")
    known = [value for value in [*sent, *(solve.wire_bytes for solve in record.solves)] if value > 0]
    if known and dense > 4 * min(known):
        axes.set_yscale("log")
        axes.set_ylim(min(known) / 2, dense * 3)
    else:
        axes.set_ylim(bottom=0)
    _finish(axes, record, "Sent by each rank per step", place="center right")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_families(axes: Axes, record: Record) -> None:
    """Bytes of each plan, stacked by family."""
    sums = [(solve, family_bytes(solve)) for solve in record.solves if solve.layer_bytes]
    if sums:
        names = list(dict.fromkeys(choice.codec for choice in in_order(c for s, _ in sums for c in s.plan.values())))
        edges = [*(solve.effective_step for solve, _ in sums), span_of(record)[1]]
        floor = np.zeros(len(sums))
        for name in names:
            top = floor + np.array([each.get(name, 0.0) for _, each in sums])
            axes.stairs(top, edges, baseline=floor, fill=True, color=FAMILY_COLOURS[name], label=name)
            floor = top
        axes.set_ylim(0, 1.35 * floor.max() or 1.0)
    _finish(axes, record, "Plan's bytes by family", columns=4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))


def _draw_errors(axes: Axes, record: Record) -> None:
    if record.solves:
        edges = [*(solve.effective_step for solve in record.solves), span_of(record)[1]]
        budgets = [_or_gap(solve.budget) for solve in record.solves]  # infinite where bytes are the budget
        if not all(map(math.isnan, budgets)):
            axes.stairs(budgets, edges, color=REFERENCE_COLOUR, linestyle="--", label="budget", baseline=None, zorder=3)
        predicted = [_or_gap(solve.predicted_error) for solve in record.solves]
        axes.stairs(predicted, edges, color=COLOURS[2], linewidth=1.6, label="predicted", baseline=None)
    totals = realised_totals(record)
    if totals:
        steps, realised = [step for step, _, _ in totals], [value for _, _, value in totals]
        axes.plot(steps, realised, "o", color=COLOURS[1], markersize=4.5, label="realised")
    values = [value for solve in record.solves for value in (solve.budget, solve.predicted_error)]
    values = [value for value in [*values, *(total[2] for total in totals)] if 0 < value < math.inf]
    if values and max(values) > 12 * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.5, max(values) * 4)
    elif values:
        axes.set_ylim(0, 1.35 * max(values))
    _finish(axes, record, "Error against its budget", columns=3)


def _or_gap(value: float) -> float:
    """The value where it can be drawn, else NaN, which leaves a gap."""
    return value if math.isfinite(value) else math.nan


def _draw_accuracy(axes: Axes, record: Record) -> None:
    """Each layer's realised over predicted error; the band is the 20 % that tables aim at."""
    axes.axhspan(0.8, 1.2, color="#ecfdf5", zorder=0)
    axes.axhline(1.0, color=FAINT, linewidth=0.8)
    found = [(step, np.array(ratios)) for step, ratios in accuracies(record) if ratios]
    if found:
        every = np.concatenate([ratios for _, ratios in found])
        at = np.repeat([step for step, _ in found], [len(ratios) for _, ratios in found])
        many = len(every) > MOST_SHAPES
        dots: dict[str, Any] = {"color": COLOURS[1], "alpha": 0.3, "markersize": 3.5, "markeredgewidth": 0}
        axes.plot(at, every, "o", **dots, rasterized=many)
        medians = [float(np.median(ratios)) for _, ratios in found]
        axes.plot([step for step, _ in found], medians, color=INK, linewidth=1.4, label="median layer")
        every = every[every > 0]
        spread = max(1.5, float(np.exp(np.abs(np.log(every)).max())) * 1.1) if len(every) else 1.5
        axes.set_yscale("log")
        axes.set_ylim(1 / spread, spread)
        ticks = [tick for tick in (0.1, 0.2, 0.5, 0.8, 1.0, 1.2, 2.0, 5.0, 10.0) if 1 / spread <= tick <= spread]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
    _finish(axes, record, "Realised / predicted, layer by layer")


def _draw_loss(axes: Axes, record: Record) -> None:
    known = [(each.step, each.loss) for each in record.steps if each.loss is not None]
    if known:
        steps, loss = np.array([step for step, _ in known]), np.array([value for _, value in known])
        axes.plot(steps, loss, color=COLOURS[4], linewidth=1.4)
        finite = loss[np.isfinite(loss)]
        late = finite[len(finite) // 20 :]
        if len(late) > 1 and late.max() > late.min():
            margin = 0.08 * (late.max() - late.min())
            axes.set_ylim(late.min() - margin, late.max() + margin)
    _finish(axes, record, "Loss", missing=not known)


def _draw_times(axes: Axes, record: Record) -> None:
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for each in record.steps:
        for name, value in (("step", each.step_ms), ("codec", each.codec_ms), ("waiting", each.wait_ms)):
            if value is not None:
                curves[name].append((each.step, value))
    for (name, points), colour in zip(curves.items(), (INK, COLOURS[0], COLOURS[1]), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=name)
    if curves:
        highest = max((value for points in curves.values() for _, value in points if math.isfinite(value)), default=1.0)
        axes.set_ylim(0, 1.35 * highest or 1.0)
    _finish(axes, record, "Time of a step, ms", columns=3, missing=not curves)


def _finish(
    axes: Axes, record: Record, title: str, *, columns: int = 1, place: Place = "upper right", missing: bool = False
) -> None:
    """Title, steps from first to last, faint lines where plans take effect if they are not too many, and the legend."""
    for solve in record.solves if len(record.solves) <= _MOST_MARKS else ():
        axes.axvline(solve.effective_step, color="#e2e8f0", linewidth=0.6, zorder=0)
    axes.set(title=title, xlabel="step", xlim=span_of(record))
    axes.grid(visible=False, axis="x")
    if axes.get_legend_handles_labels()[0]:
        box: dict[str, Any] = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}  # over long runs' curves
        axes.legend(loc=place, fontsize=8, ncols=columns, borderaxespad=0.1, **box)
    elif missing or not axes.has_data():
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=FAINT)
        axes.set_yticks([])


def _pair(record: Record, draw_left: Draw, draw_right: Draw) -> str:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        draw_left(left, record)
        draw_right(right, record)

    return _svg(_PAIR_HEIGHT, draw)


def _svg(height: float, draw: Callable[[Figure], None]) -> str:
    """A figure as an element to be put into a page: without prologue, metadata and names of schemas."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE | _SVG):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing, transparent=True, dpi=_PIXELS_PER_INCH)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
