"""The command `calibrate`: measures links and codecs of the hosts of a torchrun job and keeps the figures."""

from __future__ import annotations

import json
import sys

import click
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from lgreco.agreement import make_cpu_group
from lgreco.calibration import Calibration
from lgreco.calibration_cache import Kept, calibrate
from lgreco.demo.ranks import joined
from lgreco.plan_commands import readable_errors
from lgreco.quantities import bytes_text


@click.command("calibrate")
@click.option("--refresh", is_flag=True, help="Measure even where a valid calibration is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")
def calibrate_command(refresh: bool, as_json: bool) -> None:
    """Measure what an exchange takes on these hosts (torchrun ... -m lgreco calibrate)."""
    with readable_errors(), joined("auto") as ranks:
        group = dist.group.WORLD
        assert isinstance(group, dist.ProcessGroup), "joined makes it"
        if ranks.world_size == 1:
            raise ValueError("one rank exchanges nothing: start at least two, torchrun ... -m lgreco calibrate")
        kept = calibrate(group, make_cpu_group(group), ranks.device, refresh=refresh)
        if not ranks.leads:
            return
        if as_json:
            click.echo(json.dumps(kept.calibration.to_dict()))
        else:
            console = Console(width=None if sys.stdout.isatty() else 120)
            console.print(calibration_table(kept.calibration, _title(kept)))


def calibration_table(calibration: Calibration, title: str) -> Table:
    """Links and codecs for people."""
    table = Table("what", "latency", "rate of a rank", title=title)
    for name, line in (("DDP's allreduce", calibration.allreduce), ("lgreco's exchange", calibration.exchange)):
        table.add_row(name, f"{line.latency_s * 1e3:.2f} ms", f"{bytes_text(line.bytes_per_s)}/s")
    for choice, seconds in calibration.codec_s:
        table.add_row(f"{choice}, beyond the wire", "", f"{seconds * 1e9:.2f} ns an element")
    table.add_row("torch's bf16 hook, beyond the wire", "", f"{calibration.bf16_element_s * 1e9:.2f} ns an element")
    table.caption = f"repetitions +-{calibration.spread:.0%}; fitted lines within {calibration.prediction_error:.0%}"
    return table


def _title(kept: Kept) -> str:
    source = "measured" if kept.fresh else "kept from before"
    return f"{kept.calibration.world_size} ranks, {source}: {kept.path}"
