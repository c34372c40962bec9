"""Sparsity against step: all layers together and each for itself."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from lgreco.figure_style import COLOURS, FAINT, INK
from lgreco.pruning.report import Change

_MOST_NAMED = 5


def draw_sparsity(axes: Axes, changes: Sequence[Change], last_step: int) -> None:
    """Steps of each layer's sparsity, faint, and of all together; those that end sparsest and densest are named.

    Args:
        axes: to draw on.
        changes: of a run's masks, at least one.
        last_step: where the picture ends.
    """
    steps = [0, *(change.step for change in changes), max(last_step, changes[-1].step)]
    names = sorted(changes[-1].layers, key=lambda name: changes[-1].layers[name])
    ends = [*names[: _MOST_NAMED // 2], *names[-(_MOST_NAMED - _MOST_NAMED // 2) :]]
    named = dict(zip(dict.fromkeys(ends), COLOURS, strict=False))
    for name in names:
        levels = [0.0, *(change.layers.get(name, 0.0) for change in changes)]
        colour, label = named.get(name, FAINT), name if name in named else None
        axes.step(steps, [*levels, levels[-1]], where="post", color=colour, linewidth=0.9, label=label)
    total = [0.0, *(change.sparsity for change in changes)]
    axes.step(steps, [*total, total[-1]], where="post", color=INK, linewidth=2.2, label="all together")
    axes.set(title="Sparsity", xlabel="step", ylabel="share of pruned weights", ylim=(0.0, 1.0))
    axes.set_xlim(0, steps[-1])
    axes.legend(loc="best", fontsize=8)
