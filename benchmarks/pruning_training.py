#!/usr/bin/env python3
"""Large and sparse against small and dense at equal non-zeros, and criteria compared, in real training.

    python benchmarks/pruning_training.py --model digits --json benchmarks/results/pruning-digits.json

The table of Zhu & Gupta (arXiv 1710.01878) in small: each net is trained dense, gradually pruned by magnitude to each
sparsity, and as a narrower dense net that has as many weights as the pruned one keeps; then magnitude, movement and
oBERT at high sparsity. One process, one thread; a row for each run; rows that the JSON file has already, by the same
settings, are kept. Sparsity is of the prunable layers; the weights left count biases, norms and embeddings too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import report
import torch
from frontier_digits import DigitsNet
from frontier_tasks import TASKS, Task, optimizer_of, settings_of
from torch import nn
from torch.nn import functional

from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.demo.loop import learning_rate
from lgreco.demo.settings import ModelSettings, TrainSettings
from lgreco.pruning import Criterion, CubicSchedule, OBert, Pruner

_COLUMNS = ("kind", "criterion", "sparsity", "seed", "left", "val_loss", "val_accuracy")
# Settings that a row depends on, beside what stands in it.
_DECIDING = ("model", "optimizer", "steps", "batch", "updates", "samples", "block", "damping", "sample")
_SMALL_STEPS = 256  # widths that are tried to meet a number of weights
# Of the data of oBERT's samples; no rank of a training comes near it.
_SAMPLE_RANK = 1 << 20


def _digits(width: float) -> nn.Module:
    return DigitsNet(width)


def _gpt(width: float) -> nn.Module:
    model = ModelSettings().model_dump()
    model["width"] = max(model["heads"], round(model["width"] * width / model["heads"]) * model["heads"])
    return GPT(GPTConfig(**model))


_MODELS: dict[str, Callable[[float], nn.Module]] = {"digits": _digits, "gpt": _gpt}


def width_of(make: Callable[[float], nn.Module], numel: int) -> float:
    """The width whose net has the number of weights nearest to `numel`."""

    def off(width: float) -> int:
        with torch.device("meta"):
            return abs(sum(parameter.numel() for parameter in make(width).parameters()) - numel)

    return min((step / _SMALL_STEPS for step in range(1, _SMALL_STEPS + 1)), key=off)


def train(
    task: Task, module: nn.Module, settings: TrainSettings, optimizer_name: str, seed: int, make_pruner: Any
) -> Pruner | None:
    """Trains a net to its end; `make_pruner` gives its pruner, or None for a dense one."""
    optimizer = optimizer_of(module, optimizer_name, settings)
    pruner: Pruner | None = make_pruner(module, optimizer)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        inputs, targets = task.batch(seed=seed, rank=0, step=step)
        optimizer.zero_grad()
        torch.autograd.backward(module(inputs, targets))
        nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimizer.step()
        if pruner is not None:
            pruner.step()
    return pruner


def evaluate(task: Task, module: nn.Module) -> tuple[float, float]:
    """Validation loss in nats and accuracy."""
    loss, hits, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in task.validation(rank=0, world_size=1):
            logits, wanted = module(inputs).flatten(0, -2), targets.flatten()
            loss += float(functional.cross_entropy(logits, wanted, reduction="sum"))
            hits += int((logits.argmax(-1) == wanted).sum())
            count += wanted.numel()
    return loss / count, hits / count


def run(arguments: argparse.Namespace, kind: str, criterion: str | None, sparsity: float, seed: int) -> dict[str, Any]:
    """One row."""
    settings = settings_of(arguments.model, arguments.optimizer, arguments.steps)
    if arguments.batch is not None:
        settings = settings.model_copy(update={"batch": arguments.batch})
    task, make = TASKS[arguments.model](settings), _MODELS[arguments.model]
    begin, end = settings.steps // 10, settings.steps * 3 // 4
    schedule = CubicSchedule(0.0, sparsity, begin, end, max(1, (end - begin) // arguments.updates))
    width = 1.0
    if kind == "small":
        with torch.device("meta"):
            whole = make(1.0)
            pruned = Pruner(whole, None, schedule).report().numel
        width = width_of(make, sum(parameter.numel() for parameter in whole.parameters()) - round(sparsity * pruned))
    torch.manual_seed(seed)
    module = make(width)

    def make_pruner(module: nn.Module, optimizer: torch.optim.Optimizer) -> Pruner | None:
        if criterion is None:
            return None
        chosen: str | Criterion = criterion
        if criterion == "obert":

            def loss(sample: int) -> torch.Tensor:
                inputs, targets = task.batch(seed=seed, rank=_SAMPLE_RANK, step=sample)
                found: torch.Tensor = module(inputs[: arguments.sample], targets[: arguments.sample])
                return found

            chosen = OBert(loss, arguments.samples, arguments.block, arguments.damping)
        return Pruner(module, optimizer, schedule, criterion=chosen)

    pruner = train(task, module, settings, arguments.optimizer, seed, make_pruner)
    val_loss, val_accuracy = evaluate(task, module)
    left = sum(parameter.numel() for parameter in module.parameters())
    if pruner is not None:
        found = pruner.finalize()
        left -= found.numel - found.kept_numel
    return {
        "kind": kind,
        "criterion": criterion,
        "sparsity": sparsity,
        "seed": seed,
        "width": width,
        "left": left,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
    }


def _known(arguments: argparse.Namespace) -> dict[tuple[str, str | None, float, int], dict[str, Any]]:
    """The rows that the file has already, by what was trained; none where other settings made them."""
    content = report.read_json(arguments.json)
    if content is None or any(content["settings"].get(name) != getattr(arguments, name) for name in _DECIDING):
        return {}
    return {(row["kind"], row["criterion"], row["sparsity"], row["seed"]): row for row in content["rows"]}


def main(words: Sequence[str] | None = None) -> int:
    """Trains what is not there yet; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(_MODELS), default="digits")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--steps", type=int, help="the model's own number where not given")
    parser.add_argument("--batch", type=int, help="likewise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--levels", type=float, nargs="*", default=[0.5, 0.75, 0.875, 0.95])
    parser.add_argument("--criteria", nargs="*", default=["magnitude", "movement", "obert"])
    parser.add_argument("--criteria-levels", type=float, nargs="*", default=[0.9, 0.97])
    parser.add_argument("--updates", type=int, default=13, help="of the masks, over the ramp")
    parser.add_argument("--samples", type=int, default=64, help="gradients that oBERT takes at an update")
    parser.add_argument("--block", type=int, default=16, help="of oBERT's matrix")
    parser.add_argument("--damping", type=float, default=1e-4, help="likewise")
    parser.add_argument("--sample", type=int, default=4, help="images or windows that one of them averages")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    jobs: list[tuple[str, str | None, float]] = [("dense", None, 0.0)]
    for level in arguments.levels:
        jobs += [("sparse", "magnitude", level), ("small", None, level)]
    jobs += [("sparse", name, level) for level in arguments.criteria_levels for name in arguments.criteria]
    todo = [(*job, seed) for seed in arguments.seeds for job in dict.fromkeys(jobs)]
    known = _known(arguments) if arguments.json else {}
    rows = [known[job] for job in todo if job in known]
    with report.progress() as bar:
        task = bar.add_task(arguments.model, total=len(todo), completed=len(rows))
        for kind, criterion, level, seed in (job for job in todo if job not in known):
            bar.update(task, description=" ".join(filter(None, (kind, criterion, f"{level:g}, seed {seed}"))))
            rows.append(run(arguments, kind, criterion, level, seed))
            print(" ".join(str(rows[-1][column]) for column in _COLUMNS), file=sys.stderr, flush=True)
            if arguments.json:
                report.write_json(arguments.json, settings=vars(arguments), rows=rows)
            bar.advance(task)
    report.print_table(rows, _COLUMNS, title=f"{arguments.model}, {arguments.optimizer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
