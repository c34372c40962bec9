"""The commands `prune once` and `prune gradual`: a checkpoint pruned without training, or while it trains on."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from lgreco.plan_commands import readable_errors
from lgreco.pruning.pruner import Pruner
from lgreco.pruning.report import PruningReport
from lgreco.pruning.schedule import OneShotSchedule

_PATH = click.Path(path_type=Path)


@click.group("prune")
def prune_group() -> None:
    """Prune a checkpoint: at once, or gradually while it trains on."""


@prune_group.command("once")
@click.argument("checkpoint", type=_PATH)
@click.option("--sparsity", type=float, required=True, help="Share of the weights to prune, from 0 to below 1.")
@click.option("--out", type=_PATH, required=True, help="Where the pruned checkpoint goes.")
@click.option("--masks", type=_PATH, help="Write the masks there too; Pruner.load_state_dict reads them.")
@click.option("--criterion", type=click.Choice(["magnitude", "random"]), default="magnitude", show_default=True)
@click.option("--structure", default="unstructured", show_default=True, help="Or rows, columns, 1x4, 2:4, ...")
@click.option(
    "--allocation", type=click.Choice(["global", "uniform", "erk", "solver"]), default="global", show_default=True
)
@click.option("--layers", multiple=True, help="Patterns of what to prune; all matrices but embeddings otherwise.")
@click.option("--seed", default=0, show_default=True, help="Of the random criterion.")
def once(
    checkpoint: Path,
    sparsity: float,
    out: Path,
    masks: Path | None,
    criterion: str,
    structure: str,
    allocation: str,
    layers: tuple[str, ...],
    seed: int,
) -> None:
    """Prune a file of weights that torch.save has written: a state_dict, or a dict that holds one under "model".

    A file of weights does not say which are embeddings: without --layers, tensors of two or more dimensions are pruned
    whose names do not hold "embed".
    """
    with readable_errors():
        content, weights = _read(checkpoint)
        model = _Weights(weights)
        patterns = list(layers) or [
            name for name, each in model.named_parameters() if each.dim() >= 2 and "embed" not in name
        ]
        pruner = Pruner(
            model, None, OneShotSchedule(sparsity), criterion, structure, allocation, layers=patterns, seed=seed
        )
        pruner.prune(sparsity)
        for name, parameter in model.named_parameters():
            weights[name].copy_(parameter.detach())
        torch.save(content, out)
        if masks is not None:
            torch.save(pruner.state_dict(), masks)
    _show(pruner.finalize(), out)


@prune_group.command("gradual")
@click.argument("config", type=_PATH)
@click.option("--start", type=_PATH, help="A run's folder or checkpoint whose weights training begins with.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Such as train.steps=50.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of each run.")
def gradual(config: Path, start: Path | None, assignments: tuple[str, ...], resume: bool) -> None:
    """Prune a checkpoint of the quickstart's model while it trains on, as CONFIG says (configs/prune_quickstart.yaml).

    One rank; for more, start it as: torchrun --standalone --nproc-per-node 2 -m lgreco prune gradual CONFIG
    """
    from lgreco.demo.display import Display
    from lgreco.demo.job import run_job
    from lgreco.demo.ranks import joined
    from lgreco.demo.settings import load_settings

    with readable_errors():
        changed = [*assignments, *([f"start={start}"] if start is not None else [])]
        settings = load_settings(config, changed)
        if settings.pruning is None:
            raise ValueError(f'{config} has no block "pruning"')
        if "RANK" not in os.environ:
            os.environ.update(_alone())
        with joined(settings.device) as ranks:
            run_job(settings, ranks, Display(Console(quiet=not ranks.leads)), resume)


class _Weights(nn.Module):
    """The floating tensors of a state_dict as parameters under their names."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in weights.items():
            if not tensor.is_floating_point():
                continue
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(tensor.detach().clone()))


def _read(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A checkpoint's content and, of it, the weights."""
    if not path.is_file():
        raise ValueError(f'there is no file "{path}"')
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} must be a file that torch.save has written: {error}") from None
    weights = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise ValueError(f'{path} must hold a state_dict, or a dict with one under "model"')
    return content, weights


def _show(report: PruningReport, out: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "weights", "kept", "pruned"):
        table.add_column(heading, justify="right")
    for layer in report.layers:
        shape = " x ".join(map(str, layer.shape))
        table.add_row(layer.name, shape, f"{layer.numel:,}", f"{layer.kept_numel:,}", f"{layer.sparsity:.1%}")
    console = Console()
    console.print(table)
    if report.unfit:
        console.print(f"Dense, for the structure does not divide them: {', '.join(report.unfit)}", soft_wrap=True)
    text = f"{report.sparsity:.2%} of {report.numel:,} weights pruned; written: {out}"
    console.print(text, highlight=False, soft_wrap=True)


def _alone() -> dict[str, str]:
    """What torchrun would tell a single rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
