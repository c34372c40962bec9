"""A plan as a table for people, with the bytes that it sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from lgreco.choice import Choice
from lgreco.layer import LayerInfo
from lgreco.plan import Plan, PlannedLayer


def plan_table(plan: Plan, wire_bytes: Callable[[LayerInfo, Choice], int]) -> Table:
    """Layer, shape, choice, why, bytes of the gradient and on the wire, and their ratio; totals in the last line.

    Where all layers have their choice for one reason, that stands in the title. Where layers have masks, a column says
    which share of them is kept.

    Args:
        plan: what is shown.
        wire_bytes: encoded bytes of a whole layer under a choice, as the native engine counts them.
    """
    sizes = [(p, p.layer.dense_bytes, wire_bytes(p.layer, p.choice)) for p in plan.planned]
    dense_sum, wire_sum = sum(dense for _, dense, _ in sizes), sum(wire for _, _, wire in sizes)
    reasons = {planned.because for planned in plan.planned}
    title = f"plan {plan.fingerprint()[:12]}" + (f", {reasons.pop()}" if len(reasons) == 1 else "")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0))
    table.add_column("layer", footer=f"{len(plan)} layers", overflow="fold")
    table.add_column("shape", overflow="fold")
    masked = any(planned.layer.kept is not None for planned in plan.planned)
    if masked:
        table.add_column("kept", footer=_kept(plan.planned), justify="right", no_wrap=True)
    table.add_column("choice", overflow="fold")
    if reasons:
        table.add_column("because", overflow="fold")
    for heading, footer in (("dense", f"{dense_sum:,}"), ("wire", f"{wire_sum:,}")):
        table.add_column(f"{heading} bytes", footer=footer, justify="right", no_wrap=True)
    table.add_column("ratio", footer=_ratio(dense_sum, wire_sum), justify="right", no_wrap=True)
    for planned, dense, wire in sizes:
        shape = " x ".join(map(str, planned.layer.shape)) or "scalar"
        why = (planned.because,) if reasons else ()
        kept = (_kept([planned]),) if masked else ()
        row = (planned.layer.name, shape, *kept, str(planned.choice), *why)
        table.add_row(*map(escape, row), f"{dense:,}", f"{wire:,}", _ratio(dense, wire))
    return table


def _kept(planned: Sequence[PlannedLayer]) -> str:
    numel = sum(each.layer.numel for each in planned)
    return f"{sum(each.layer.sent_numel for each in planned) / numel:.1%}" if numel else "-"


def _ratio(dense: int, wire: int) -> str:
    return f"{dense / wire:.2f}" if wire else "-"
