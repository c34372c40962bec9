"""The command `report`: a run's record as a page."""

from __future__ import annotations

from pathlib import Path

import click

from lgreco.plan_commands import readable_errors


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
def report_command(run: Path) -> None:
    """Write report.html next to a run's record (RUN: the record, or a folder that holds it)."""
    try:
        from lgreco.report import write_report
    except ImportError as error:
        raise click.ClickException(f"pictures need matplotlib ({error}); pip install matplotlib") from None
    with readable_errors():
        page = write_report(run)
    click.echo(page)
