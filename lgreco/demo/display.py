"""What a job shows in the terminal: a progress bar, the plan of each compressed run, the table at the end."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from lgreco.demo.history import History
from lgreco.demo.results import Result, gap_to_reference, reference_spread
from lgreco.quantities import bytes_text

_SMOOTHED_STEPS = 20


class Display:
    """Speaks on rank 0 and is silent on the others; a bar in a terminal, lines of text elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    @contextmanager
    def run(self, title: str, steps: int, done: int) -> Iterator[None]:
        """Shows the progress of one run while it lasts."""
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, expand=True) as progress:
            self._progress = progress
            self._task = progress.add_task(title, total=steps, completed=done, figures="")
            try:
                yield
            finally:
                self._progress = None

    def step(self, title: str, step: int, steps: int, history: History, evaluated: bool) -> None:
        """Shows where a run stands after a step."""
        figures = _figures(history)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=figures)
        elif evaluated:
            self.console.print(f"{title}  step {step}/{steps}  {figures}", highlight=False, soft_wrap=True)

    def plan(self, title: str, plan: Mapping[str, object], numels: Mapping[str, int]) -> None:
        """Prints which choice each layer has; layers that differ only in a number share a line."""
        lines: Counter[tuple[str, str]] = Counter()
        numel: Counter[tuple[str, str]] = Counter()
        for layer, choice in plan.items():
            line = (re.sub(r"\d+", "*", layer), str(choice))
            lines[line] += 1
            numel[line] += numels[layer]
        table = Table(
            title=f"Plan of {title}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        table.add_column("layer", overflow="fold")
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
        table.add_column("choice", overflow="fold")
        for (layer, choice), count in lines.items():
            table.add_row(layer, str(count), f"{numel[layer, choice]:,}", choice)
        self.console.print(table)

    def results(self, results: Sequence[Result], reference: str | None) -> None:
        """Prints the table of all runs and how far the reference differs from itself between seeds."""
        table = Table(title="Results", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in ("run", "seeds"):
            table.add_column(heading, no_wrap=True)
        against = "against\n" + (reference or "reference")
        for heading in ("train.\nloss", "valid.\nloss", against, "sent\nper step", "ratio", "ms per\nstep", "replicas"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name in dict.fromkeys(result.row.method for result in results):
            table.add_row(*_cells(name, results, reference))
        self.console.print(table)
        self.console.print(
            "Losses in nats per byte, training loss over the last 50 steps. Sent: by one rank, after the dense "
            "warm-up; for plain DDP what a ring allreduce of fp32 gradients sends, 2 (W-1)/W * 4 bytes a parameter.",
            style="dim",
            soft_wrap=True,
        )
        if reference is not None:
            self.console.print(_spread_sentence(results, reference), highlight=False, soft_wrap=True)


def _figures(history: History) -> str:
    parts = []
    if history.loss:
        parts.append(f"loss {statistics.fmean(history.loss[-_SMOOTHED_STEPS:]):.3f}")
    if history.validation:
        parts.append(f"val {history.validation[-1][1]:.3f}")
    if history.step_ms:
        parts.append(f"{statistics.median(history.step_ms[-_SMOOTHED_STEPS:]):.0f} ms")
        parts.append(f"{bytes_text(history.wire_bytes[-1])} sent")
    return "  ".join(parts)


def _cells(name: str, results: Sequence[Result], reference: str | None) -> list[str]:
    rows = [result.row for result in results if result.row.method == name]
    gap = gap_to_reference(results, name, reference)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    return [
        name,
        ", ".join(str(row.seed) for row in rows),
        f"{statistics.fmean(row.final_loss for row in rows):.4f}",
        f"{statistics.fmean(row.val_loss for row in rows):.4f}",
        "-" if gap is None else f"{gap:+.2%}",
        bytes_text(statistics.fmean(row.wire_bytes_per_step for row in rows)),
        f"{statistics.fmean(ratios):.2f} x" if ratios else "",
        f"{statistics.fmean(row.step_ms for row in rows):.0f}",
        "equal" if all(row.replicas_equal for row in rows) else "[bold red]DIFFER",
    ]


def _spread_sentence(results: Sequence[Result], reference: str) -> str:
    spread = reference_spread(results, reference)
    if spread is None:
        return (
            f"How far {reference} differs from itself between seeds is not known from one seed: "
            "add --set reference_seeds=[1] (or more)."
        )
    low, high, seeds = spread
    return (
        f"{reference} differs from itself by {high / low - 1:.2%} over {seeds} seeds "
        f"(validation loss {low:.4f} to {high:.4f})."
    )
