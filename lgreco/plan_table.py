"""A plan as a table for people, with the bytes that it sends."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from lgreco.choice import Choice
from lgreco.layer import LayerInfo
from lgreco.plan import Plan


def plan_table(plan: Plan, wire_bytes: Callable[[LayerInfo, Choice], int]) -> Table:
    """Layer, shape, choice, why, bytes of the gradient and on the wire, and their ratio; totals in the last line.

    Args:
        plan: what is shown.
        wire_bytes: encoded bytes of a whole layer under a choice, as the native engine counts them.
    """
    sizes = [(p, p.layer.dense_bytes, wire_bytes(p.layer, p.choice)) for p in plan.planned]
    dense_sum, wire_sum = sum(dense for _, dense, _ in sizes), sum(wire for _, _, wire in sizes)
    table = Table(title=f"plan {plan.fingerprint()[:12]}", show_footer=True)
    table.add_column("layer", footer=f"{len(plan)} layers", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("choice", overflow="fold")
    table.add_column("because", overflow="fold")
    table.add_column("dense bytes", footer=f"{dense_sum:,}", justify="right")
    table.add_column("wire bytes", footer=f"{wire_sum:,}", justify="right")
    table.add_column("ratio", footer=_ratio(dense_sum, wire_sum), justify="right")
    for planned, dense, wire in sizes:
        shape = " x ".join(map(str, planned.layer.shape)) or "scalar"
        row = (planned.layer.name, shape, str(planned.choice), planned.because)
        table.add_row(*row, f"{dense:,}", f"{wire:,}", _ratio(dense, wire))
    return table


def _ratio(dense: int, wire: int) -> str:
    return f"{dense / wire:.2f}" if wire else "-"
