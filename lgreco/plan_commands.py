"""The commands `plan show`, `plan diff` and `plan solve`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lgreco.choice import Choice, parse
from lgreco.error_table import ErrorTable
from lgreco.layer import LayerInfo
from lgreco.norm import NORMS, gradient_total
from lgreco.plan_solve import Budget, Solved, Spent, solve_table
from lgreco.plan_source import PlanSource, find_table, load_plan
from lgreco.plan_table import plan_table
from lgreco.solver_config import SolverConfig

_PATH = click.Path(path_type=Path)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Shows what was wrong with a file or an option in one line, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


@click.group("plan")
def plan_group() -> None:
    """Look at plans, compare them, solve a saved error table."""


@plan_group.command("show")
@click.argument("file", type=_PATH)
def show(file: Path) -> None:
    """Show a plan: a YAML file, or the last plan of a record or a run's folder.

    Bytes are those of one copy of the gradient, without headers.
    """
    with readable_errors():
        source = load_plan(file)
        table = plan_table(source.plan, source.wire_bytes)
    console = Console()
    console.print(source.title, highlight=False, soft_wrap=True, markup=False)
    console.print(table)


@plan_group.command("diff")
@click.argument("before", type=_PATH)
@click.argument("after", type=_PATH)
def diff(before: Path, after: Path) -> None:
    """Show the layers whose choice differs between two plans, with their bytes."""
    with readable_errors():
        old, new = load_plan(before), load_plan(after)
        table = _diff_table(old, new)
    console = Console()
    console.print(f"before: {old.title}\nafter:  {new.title}", highlight=False, soft_wrap=True, markup=False)
    if old.plan == new.plan:
        console.print(f"equal: {len(old.plan)} layers, plan {old.plan.fingerprint()[:12]}", highlight=False)
        return
    console.print(table)


@plan_group.command("solve")
@click.argument("table", type=_PATH)
@click.option("--budget-alpha", default=1.0, show_default=True, help="Budget as a multiple of the reference's error.")
@click.option("--reference", default=str(SolverConfig().reference), show_default=True, help="A uniform choice.")
@click.option("--relative-error", type=float, help="Budget as a share of the gradient's norm, instead.")
@click.option(
    "--bytes", "bytes_", type=float, help="Bytes that ranks may send in a step, on the mean, instead; least error then."
)
@click.option("--norm", type=click.Choice(NORMS), default="adam", show_default=True)
@click.option("--method", help="Of the solver; its own default where not given.")
@click.option("--out", type=_PATH, help="Write the plan there (YAML).")
@click.pass_context
def solve(
    context: click.Context,
    table: Path,
    budget_alpha: float,
    reference: str,
    relative_error: float | None,
    bytes_: float | None,
    norm: str,
    method: str | None,
    out: Path | None,
) -> None:
    """Solve a saved error table and compare the plan with the best uniform choices.

    TABLE: a table-STEP.json, or a record or a run's folder, of which the last plan's table is taken.
    """
    with readable_errors():
        budget = _budget(context, budget_alpha, reference, relative_error, bytes_)
        file = find_table(table)
        loaded = ErrorTable.load(file).monotone()
        if budget.reference is not None:
            _check_reference(loaded, budget.reference)
        solved = solve_table(loaded, budget, norm, method)
        if out is not None:
            out.write_text(solved.plan.to_yaml(), encoding="utf-8")
    console = Console()
    if file != table:
        console.print(str(file), highlight=False, soft_wrap=True, markup=False)
    console.print(plan_table(solved.plan, _copy_bytes(solved)))
    console.print(_totals(solved, norm), highlight=False)
    console.print(_uniform_table(solved))


def _budget(
    context: click.Context, alpha: float, reference: str, relative_error: float | None, bytes_: float | None
) -> Budget:
    """The one budget that is asked for; the reference's where none is."""
    for name, value in (("--budget-alpha", alpha), ("--relative-error", relative_error), ("--bytes", bytes_)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number from 0, got {value}")
    names = {"budget_alpha": "--budget-alpha", "relative_error": "--relative-error", "bytes_": "--bytes"}
    source = click.core.ParameterSource.COMMANDLINE
    given = [option for name, option in names.items() if context.get_parameter_source(name) == source]
    if len(given) > 1:
        raise ValueError(f"one budget may be given, got {' and '.join(given)}")
    if relative_error is not None or bytes_ is not None:
        return Budget(None, 1.0, relative_error, bytes_)
    return Budget(parse(reference), alpha)


def _check_reference(table: ErrorTable, reference: Choice) -> None:
    """A table holds the choices of the job that measured it, perhaps not the default reference."""
    try:
        table.index(reference)
    except ValueError as error:
        raise ValueError(f"--reference: {error}") from None


def _diff_table(old: PlanSource, new: PlanSource) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0))
    sums = [sum(each.wire_bytes(p.layer, p.choice) for p in each.plan.planned) for each in (old, new)]
    rows = []
    for name in dict.fromkeys([*old.plan, *new.plan]):
        cells = [_cell(each, name) for each in (old, new)]
        if old.plan.get(name) != new.plan.get(name):
            rows.append((name, cells[0][0], cells[1][0], cells[0][1], cells[1][1]))
    table.add_column("layer", footer=f"{len(rows)} differ", overflow="fold")
    table.add_column("before", overflow="fold")
    table.add_column("after", footer="all layers", overflow="fold")
    table.add_column("bytes before", footer=f"{sums[0]:,}", justify="right", no_wrap=True)
    table.add_column("bytes after", footer=f"{sums[1]:,}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _cell(source: PlanSource, name: str) -> tuple[str, str]:
    """A layer's choice and bytes, or dashes where the plan lacks it."""
    planned = next((each for each in source.plan.planned if each.layer.name == name), None)
    if planned is None:
        return "-", "-"
    return str(planned.choice), f"{source.wire_bytes(planned.layer, planned.choice):,}"


def _copy_bytes(solved: Solved) -> Callable[[LayerInfo, Choice], int]:
    """Bytes of one copy of a layer, from what the table says that a rank sends in both rounds."""
    copies = 2 * (solved.table.world_size - 1) / solved.table.world_size
    rows = {layer.name: row for row, layer in enumerate(solved.table.layers)}

    def wire_bytes(layer: LayerInfo, choice: Choice) -> int:
        row = rows[layer.name]
        return round(solved.table.costs[row, solved.spent.columns[row]] / copies) if copies else 0

    return wire_bytes


def _totals(solved: Solved, norm: str) -> str:
    spent, table = solved.spent, solved.table
    whole = gradient_total(table, norm)
    relative = spent.error / whole if whole > 0 else 0.0
    return (
        f"error {spent.error:.6g} of {solved.limit:.6g} ({norm}), {relative:.3%} of the gradient's {norm} norm\n"
        f"sent by each of {table.world_size} ranks in a step: {spent.cost:,.0f} bytes, "
        f"dense {solved.dense_bytes:,.0f}, ratio {_ratio(solved.dense_bytes, spent.cost)}\n"
        f"gap {solved.gap:.3%}: no plan can be better than this one by more"
    )


def _uniform_table(solved: Solved) -> Table:
    """The solved plan beside the best uniform choice of each family within the same error."""
    table = Table(title="solved vs best uniform", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("plan", overflow="fold")
    for heading in ("bytes per step", "ratio", "error / limit", "bytes / solved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*_uniform_cells("solved", solved, solved.spent))
    for uniform in solved.uniforms:
        if uniform.spent is None:
            table.add_row(f"{uniform.family}: none within the limit", "-", "-", "-", "-")
        else:
            table.add_row(*_uniform_cells(str(uniform.choice), solved, uniform.spent))
    return table


def _uniform_cells(name: str, solved: Solved, spent: Spent) -> tuple[str, ...]:
    share = _ratio(spent.error, solved.limit)
    return (
        name,
        f"{spent.cost:,.0f}",
        _ratio(solved.dense_bytes, spent.cost),
        share,
        _ratio(spent.cost, solved.spent.cost),
    )


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f}" if denominator else "-"
