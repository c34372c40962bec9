"""The commands `prune once` and `prune gradual`: a checkpoint pruned without training, or while it trains on."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from lgreco.layer import matrix_shape, plain_name
from lgreco.plan_commands import readable_errors
from lgreco.pruning.pruner import Pruner
from lgreco.pruning.report import PruningReport
from lgreco.pruning.schedule import OneShotSchedule
from lgreco.pruning.weights_file import place_of, read, save
from lgreco.whole_file import partial_of, replacing

_PATH = click.Path(path_type=Path)
_EMBEDDING = re.compile(r"embed|(?:^|[._])emb|emb(?:[._]|$)|(?:^|\.)w[tp]e\.", re.IGNORECASE)


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
@click.option(
    "--key",
    help='Of the state_dict in the file, as "a" or "a.b"; where not given, the only one, "model" or "state_dict".',
)
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
    key: str | None,
    seed: int,
) -> None:
    """Prune a file of weights: a state_dict, or a dict that holds one, as torch.save writes it, or safetensors.

    A file of weights does not say which are embeddings: without --layers, tensors of two or more dimensions are pruned
    but what could be an nn.Embedding's weight: of two dimensions, called "....weight", and with a name, its own or that
    of what it is tied to, that looks like one (embed, emb, wte, wpe).
    """
    with readable_errors():
        _check_paths(checkpoint, out, masks)
        file = read(checkpoint, key)
        weights = file.weights
        model = _Weights(weights)
        pruner = Pruner(
            model,
            None,
            OneShotSchedule(sparsity),
            criterion,
            structure,
            allocation,
            layers=list(layers) or model.matrices(),
            seed=seed,
        )
        pruner.prune(sparsity)
        pruned = pruner.masks
        for name, parameter in model.named_parameters():
            if plain_name(name) in pruned:  # others may be parts of what is pruned
                weights[name].detach().copy_(parameter.detach())
        with replacing(out) as fresh:
            file.write(fresh, out.suffix)
            if masks is not None:
                with replacing(masks) as fresh_masks:
                    save(pruner.state_dict(), fresh_masks)
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
        settings = load_settings(config, assignments)
        if start is not None:
            settings = settings.model_copy(update={"start": start})
        if settings.pruning is None:
            raise ValueError(f'{config} has no block "pruning"')
        if "RANK" not in os.environ:
            os.environ.update(_alone())
        with joined(settings.device) as ranks:
            run_job(settings, ranks, Display(Console(quiet=not ranks.leads)), resume)


class _Weights(nn.Module):
    """The floating tensors of a state_dict as parameters under their names, a tied one once."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._named: dict[str, nn.Parameter] = {}
        made: dict[Hashable, nn.Parameter] = {}
        for name, tensor in weights.items():
            if not tensor.is_floating_point():
                continue
            place = place_of(tensor)
            if place not in made:
                made[place] = nn.Parameter(tensor.detach().clone())
            self._named[name] = made[place]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As nn.Module's; names need not be such as modules may have."""
        seen: set[int] = set()
        for name, parameter in self._named.items():
            if not remove_duplicate or id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def matrices(self) -> list[str]:
        """Names of what has two or more dimensions, not a single column, and by none of its names is an embedding."""
        embeddings = {id(each) for name, each in self._named.items() if _may_be_embedding(name, each)}
        return [
            plain_name(name)
            for name, each in self.named_parameters()
            if each.dim() >= 2 and matrix_shape(tuple(each.shape))[1] > 1 and id(each) not in embeddings
        ]


def _may_be_embedding(name: str, tensor: torch.Tensor) -> bool:
    """Whether an nn.Embedding may have this weight; a pos_embedding, or a convolution of patches, is none."""
    return tensor.dim() == 2 and plain_name(name).endswith(".weight") and _EMBEDDING.search(name) is not None


def _check_paths(checkpoint: Path, out: Path, masks: Path | None) -> None:
    """Before any work: what is written can be, and nothing is written over the checkpoint but its pruned self."""
    for option, path in (("--out", out), ("--masks", masks)):
        if path is None:
            continue
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no ordinary file"
            raise ValueError(f'{option} must be a file to write, got "{path}", which is {kind}')
        if not path.absolute().parent.is_dir():
            raise ValueError(f'there is no folder "{path.parent}" to write to')
        if _same(partial_of(path), checkpoint):
            raise ValueError(f'{option} {path} is first written as "{checkpoint}", which is CHECKPOINT: rename that')
    if masks is None:
        return
    for option, path in (("CHECKPOINT", checkpoint), ("--out", out)):
        if _same(masks, path):
            raise ValueError(f'--masks must be a file of its own, got "{masks}", which is {option}')
    if _same(partial_of(masks), out) or _same(partial_of(out), masks):
        raise ValueError(f'of --out and --masks one is first written as the other, got "{out}" and "{masks}"')


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _show(report: PruningReport, out: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "weights", "kept", "pruned"):
        table.add_column(heading, justify="right")
    for layer in report.layers:
        shape = " x ".join(map(str, layer.shape))
        table.add_row(escape(layer.name), shape, f"{layer.numel:,}", f"{layer.kept_numel:,}", f"{layer.sparsity:.1%}")
    console = Console()
    console.print(table)
    if report.unfit:
        console.print(
            f"Dense, for the structure does not divide them: {', '.join(report.unfit)}", soft_wrap=True, markup=False
        )
    text = f"{report.sparsity:.2%} of {report.numel:,} weights pruned; written: {out}"
    console.print(text, highlight=False, soft_wrap=True, markup=False)


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
