"""The command line: `python -m lgreco info`, `calibrate`, `advise`, `plan` and `report`."""

from __future__ import annotations

import click
from rich.console import Console

from lgreco import info
from lgreco.advise_command import advise_command
from lgreco.calibrate_command import calibrate_command
from lgreco.plan_commands import plan_group
from lgreco.report_command import report_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Compressed gradient exchange for PyTorch DistributedDataParallel."""


@main.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")
def info_command(as_json: bool) -> None:
    """Show what is built in, what is missing and why."""
    parts = info.collect()
    if as_json:
        click.echo(info.to_json(parts))
    else:
        Console().print(info.to_table(parts))


main.add_command(advise_command)
main.add_command(calibrate_command)
main.add_command(plan_group)
main.add_command(report_command)

if __name__ == "__main__":
    main(prog_name="python -m lgreco")
