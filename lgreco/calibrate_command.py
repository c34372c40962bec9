"""The command `calibrate`: measures links and codecs of the hosts of a torchrun job and keeps the figures."""

from __future__ import annotations

import json

import click
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from lgreco.calibration import Calibration
from lgreco.calibration_cache import Kept, calibrate
from lgreco.demo.ranks import joined, launched_rank
from lgreco.quantities import bytes_text


@click.command("calibrate")
@click.option("--refresh", is_flag=True, help="Measure even where a valid calibration is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")
def calibrate_command(refresh: bool, as_json: bool) -> None:
    """Measure what an exchange takes on these hosts (torchrun ... -m lgreco calibrate)."""
    if launched_rank() is None:
        raise click.ClickException("start it on all hosts: torchrun ... -m lgreco calibrate")
    with joined("auto") as ranks:
        if ranks.world_size == 1:
            raise click.ClickException("one rank exchanges nothing: start at least two")
        group = dist.group.WORLD
        assert isinstance(group, dist.ProcessGroup), "joined makes it"
        cpu_group = dist.new_group(backend="gloo")
        kept = calibrate(group, cpu_group, torch.device(ranks.device), refresh=refresh)
        if not ranks.leads:
            return
        if as_json:
            click.echo(json.dumps(kept.calibration.to_dict()))
        else:
            Console().print(calibration_table(kept.calibration, _title(kept)))


def calibration_table(calibration: Calibration, title: str) -> Table:
    """Links and codecs for people."""
    table = Table("what", "latency", "rate of a rank", title=title)
    for name, line in (("DDP's allreduce", calibration.allreduce), ("lgreco's exchange", calibration.exchange)):
        table.add_row(name, f"{line.latency_s * 1e3:.2f} ms", f"{bytes_text(line.bytes_per_s)}/s")
    for choice, seconds in calibration.codec_s:
        table.add_row(f"{choice}, beyond the wire", "", f"{seconds * 1e9:.2f} ns an element")
    table.caption = f"repetitions +-{calibration.spread:.0%}; fitted lines within {calibration.prediction_error:.0%}"
    return table


def _title(kept: Kept) -> str:
    source = "measured" if kept.fresh else "kept from before"
    return f"{kept.calibration.world_size} ranks, {source}: {kept.path}"
