"""The command `advise`: profiles the model of a training job's settings and prints what would pay."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click
import torch
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from lgreco.advisor import advise
from lgreco.calibrate_command import calibration_table
from lgreco.config import Config
from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.demo.ranks import joined
from lgreco.demo.settings import JobSettings, load_settings
from lgreco.plan_commands import readable_errors


@click.command("advise")
@click.option("--config", type=click.Path(path_type=Path), required=True, help="As for launch/train.py.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Such as train.batch=4.")
@click.option("--run", help="Of the settings, whose plan is proposed; by default the first that is compressed.")
@click.option("--steps", type=click.IntRange(min=6), default=24, help="Passes of each kind.")
@click.option("--trial/--no-trial", default=True, help="Try what is predicted to be best, or predict only.")
@click.option(
    "--limit", "limit_s", type=click.FloatRange(min=1), default=120.0, help="Seconds, roughly; then fewer passes."
)
@click.option("--refresh", is_flag=True, help="Measure links anew.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of tables.")
def advise_command(
    config: Path,
    assignments: tuple[str, ...],
    run: str | None,
    steps: int,
    trial: bool,
    limit_s: float,
    refresh: bool,
    as_json: bool,
) -> None:
    """Say what each way of averaging gradients would take (torchrun ... -m lgreco advise --config FILE)."""
    with readable_errors():
        settings = load_settings(config, assignments)
        chosen = _run_of(settings, run)
        with joined(settings.device) as ranks:
            torch.manual_seed(0)
            ddp = DistributedDataParallel(
                GPT(GPTConfig(**settings.model.model_dump())).to(ranks.device),
                device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
                bucket_cap_mb=settings.train.bucket_cap_mb,
                gradient_as_bucket_view=True,
            )
            shape = (settings.train.batch, settings.model.context + 1)
            tokens = torch.randint(0, 256, shape, device=ranks.device)
            batch = (tokens[:, :-1], tokens[:, 1:])
            with Console(stderr=True).status("") if ranks.leads else nullcontext() as status:
                tell = status.update if status else lambda _: None
                advice = advise(
                    ddp, batch, config=chosen, steps=steps, refresh=refresh, trial=trial, limit_s=limit_s, tell=tell
                )
            if not ranks.leads:
                return
    if as_json:
        click.echo(json.dumps(advice.to_dict()))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(calibration_table(advice.calibration, "what exchanges take here"))
    console.print(advice.to_table())
    console.print(f"Verdict: {advice.verdict}", highlight=False, soft_wrap=True)


def _run_of(settings: JobSettings, name: str | None) -> Config | None:
    if name is None:
        return next((run for run in settings.runs.values() if run.enabled), None)
    if name not in settings.runs:
        raise ValueError(f"--run must be one of {', '.join(settings.runs)}, got {name!r}")
    return settings.runs[name]
