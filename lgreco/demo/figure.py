"""The picture of a job: loss curves, bytes per step, and what loss the same traffic buys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lgreco.demo.results import Result, gap_to_reference
from lgreco.figure_style import COLOURS, REFERENCE_COLOUR, STYLE
from lgreco.plan_figure import draw_plan
from lgreco.record import read
from lgreco.whole_file import replacing


def draw(results: Sequence[Result], reference: str | None, path: Path) -> None:
    """Draws all runs into one PNG; it replaces the file when it is complete.

    Args:
        results: of finished runs, at least one.
        reference: name of the run that others are compared with.
        path: of the PNG.
    """
    names = list(dict.fromkeys(result.row.method for result in results))
    others = [name for name in names if name != reference]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(others)}
    if reference is not None:
        colours[reference] = REFERENCE_COLOUR
    with matplotlib.rc_context(STYLE):
        planned = next((result for result in results if result.record is not None), None)
        pruned = [result for result in results if result.history.sparsity]
        figure, panels = _panels(with_plan=planned is not None, with_sparsity=bool(pruned))
        figure.suptitle(_headline(results, others, reference), fontsize=13, fontweight="bold", x=0.01, ha="left")
        _draw_losses(panels["a"], results, colours, reference)
        _draw_bytes(panels["b"], results, names, colours)
        _draw_traffic(panels["c"], results, colours)
        if pruned:
            _draw_sparsity(panels["s"], pruned, colours)
            _draw_step_bytes(panels["t"], results, colours)
        if planned is not None and planned.record is not None:
            draw_plan(panels["p"], read(planned.record))
            panels["p"].set(title=f"Plan of {planned.row.method}, seed {planned.row.seed}", xlabel="step")
        with replacing(path) as fresh:
            figure.savefig(fresh, format="png")


def _panels(with_plan: bool, with_sparsity: bool) -> tuple[Figure, dict[str, Axes]]:
    """An empty figure: losses beside bytes, and below them sparsity by step and the plan where there are some."""
    rows, heights = ["ab", "ac"], [1.0, 1.0]
    if with_sparsity:
        rows, heights = [*rows, "st"], [*heights, 1.1]
    if with_plan:
        rows, heights = [*rows, "pp"], [*heights, 1.4]
    figure = Figure(figsize=(12.0, 3.2 * sum(heights)), dpi=150, layout="constrained")
    return figure, figure.subplot_mosaic(";".join(rows), width_ratios=(1.75, 1.0), height_ratios=heights)


def _draw_losses(axes: Axes, results: Sequence[Result], colours: dict[str, str], reference: str | None) -> None:
    """Training loss of each run, raw and smoothed, with its validation points."""
    labelled: set[str] = set()
    for result in results:
        name = result.row.method
        colour = colours[name]
        loss = np.asarray(result.history.loss)
        steps = np.arange(1, len(loss) + 1)
        at, validation = zip(*result.history.validation, strict=True)
        # Where losses agree, another run's line lies within the reference's broad one, its dots within the rings.
        fill, size, width, alpha = ("none", 10.0, 4.0, 0.5) if name == reference else (colour, 5.0, 1.6, 1.0)
        axes.plot(steps, loss, color=colour, alpha=0.18, linewidth=0.8)
        (line,) = axes.plot(steps, _smoothed(loss), color=colour, linewidth=width, alpha=alpha)
        (dots,) = axes.plot(at, validation, "o", color=colour, markerfacecolor=fill, markersize=size, zorder=3)
        if name not in labelled:
            labelled.add(name)
            line.set_label(f"{name}, training (smoothed)")
            dots.set_label(f"{name}, validation")
    axes.set(title="Loss", xlabel="step", ylabel="nats per byte")
    axes.set_xlim(0, max(len(result.history.loss) for result in results) * 1.02)
    axes.set_ylim(*_focus(results))
    axes.legend(loc="upper right")


def _draw_bytes(axes: Axes, results: Sequence[Result], names: Sequence[str], colours: dict[str, str]) -> None:
    """Bytes that one rank sends in a step, a bar for each run."""
    rows = [next(result.row for result in results if result.row.method == name) for name in names]
    sent_mb = [row.wire_bytes_per_step / 1e6 for row in rows]
    bars = axes.barh(list(names), sent_mb, color=[colours[name] for name in names], height=0.6)
    labels = [
        f"{mb:.3g} MB" if row.ratio is None or row.ratio < 1.005 else f"{mb:.3g} MB, {row.ratio:.1f} x less"
        for row, mb in zip(rows, sent_mb, strict=True)
    ]
    axes.bar_label(bars, labels, padding=5)
    axes.set(title="Sent by each rank per step", xlabel="MB")
    axes.set_xlim(0, (max(sent_mb) or 1.0) * 1.35)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _draw_traffic(axes: Axes, results: Sequence[Result], colours: dict[str, str]) -> None:
    """Validation loss against all bytes sent so far, warm-up included."""
    for result in results:
        sent_gb = np.cumsum(result.history.wire_bytes) / 1e9
        at, validation = zip(*result.history.validation, strict=True)
        colour = colours[result.row.method]
        axes.plot(sent_gb[np.asarray(at) - 1], validation, "o-", color=colour, markersize=4, linewidth=1.5)
    axes.set(title="Validation loss for the traffic", xlabel="GB sent by each rank", ylabel="nats per byte")
    axes.set_xlim(left=0)


def _draw_sparsity(axes: Axes, results: Sequence[Result], colours: dict[str, str]) -> None:
    """Share of pruned weights after each step."""
    for result in results:
        sparsity = result.history.sparsity
        axes.step(range(1, len(sparsity) + 1), sparsity, where="post", color=colours[result.row.method], linewidth=1.6)
    axes.set(title="Sparsity of the pruned layers", xlabel="step", ylim=(0.0, 1.0))
    axes.set_xlim(left=0)


def _draw_step_bytes(axes: Axes, results: Sequence[Result], colours: dict[str, str]) -> None:
    """Bytes that one rank sends in each step."""
    for result in results:
        sent_mb = np.asarray(result.history.wire_bytes) / 1e6
        axes.plot(np.arange(1, len(sent_mb) + 1), sent_mb, color=colours[result.row.method], linewidth=1.2)
    axes.set(title="Sent by each rank in a step", xlabel="step", ylabel="MB")
    axes.set_xlim(left=0)
    if all(min(result.history.wire_bytes) > 0 for result in results):
        axes.set_yscale("log")


def _headline(results: Sequence[Result], others: Sequence[str], reference: str | None) -> str:
    parts = []
    for name in others:
        row = next(result.row for result in results if result.row.method == name)
        gap = gap_to_reference(results, name, reference)
        words = [] if row.ratio is None else [f"{row.ratio:.1f} x fewer bytes"]
        if gap is not None:
            words.append(f"validation loss {gap:+.2%} against {reference}")
        parts.append(f"{name}: " + ", ".join(words or [f"validation loss {row.val_loss:.3f}"]))
    return "\n".join(parts) or f"{reference}: validation loss {results[0].row.val_loss:.3f}"


def _smoothed(loss: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a centred window of a twentieth of the run, cut off at both ends."""
    half = max(1, len(loss) // 40)
    total = np.concatenate(([0.0], np.cumsum(loss)))
    index = np.arange(len(loss))
    begin, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(loss))
    smoothed: npt.NDArray[np.float64] = (total[end] - total[begin]) / (end - begin)
    return smoothed


def _focus(results: Sequence[Result]) -> tuple[float, float]:
    """Limits that leave out the first fall from the loss of an untrained model."""
    late = np.concatenate([result.history.loss[len(result.history.loss) // 25 :] for result in results])
    validation = [loss for result in results for _, loss in result.history.validation]
    low, high = min(late.min(), *validation), max(late.max(), *validation)
    margin = 0.05 * (high - low) or 0.1
    return float(low - margin), float(high + margin)
