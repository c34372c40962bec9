#!/usr/bin/env python3
"""The advisor's verdicts and predictions against measurement, for several models on simulated networks.

    python benchmarks/verdicts.py --hosts 2 4 --rates 100mbit 1gbit --json benchmarks/results/verdicts.json

In the lab, `lgreco.advise` profiles each model, tries what it predicts to be best, and says what to do. Afterwards, and
apart from that, every way is measured at every bucket cap, in turns: DDP as it is, torch's bf16 hook, and 4 bits. A
verdict is right where no way that was measured takes less than 1/1.05 of the time of the one that it is about.
`predicted_ms` comes from the calibration of the hosts and the profile of the model, before anything is tried; within
10 % of the advisor's own measurement it counts as right. Accumulation changes the training and is left to the reader.

Networks that the JSON file has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import torch
import torch.distributed as dist
from frontier_digits import DigitsNet
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.advice import Advice, in_blocks
from lgreco.advisor import advise
from lgreco.agreement import leave_cpu_group, make_cpu_group
from lgreco.demo.gpt import GPT, GPTConfig
from lgreco.profile import Passes, Setup

_ROOT = Path(__file__).resolve().parent.parent
_LAB = _ROOT / "launch" / "lab.py"
_COLUMNS = ("hosts", "rate", "model", "verdict", "best_measured", "over_best", "right", "predictions_right")
_CLOSE, _PREDICTED = 1.05, 0.10
_CAP_MB = 5.0
_LIMIT_S = 30.0


class _Perceptron(nn.Module):
    """Many weights and little to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
        self.head = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[n, 256], [n] -> mean cross-entropy."""
        return nn.functional.cross_entropy(self.head(self.layers(x)), labels)


def _gpt() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    tokens = torch.randint(0, 256, (4, 129))
    return GPT(GPTConfig(width=192, layers=3, heads=4, context=128)), (tokens[:, :-1], tokens[:, 1:])


def _digits() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return DigitsNet(), (torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,)))


def _perceptron() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Perceptron(), (torch.randn(32, 256), torch.randint(0, 10, (32,)))


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "gpt": _gpt,
    "digits": _digits,
    "perceptron": _perceptron,
}
"""Each with a batch: text read by attention, images by convolutions, and large matrices with little to do."""


def on_host(args: argparse.Namespace) -> None:
    """On each of the lab's hosts; the first prints a JSON line for each model."""
    torch.set_num_threads(1)
    lgreco.init_process_group("gloo")
    for name in args.models:
        torch.manual_seed(0)
        model, batch = MODELS[name]()
        ddp = DistributedDataParallel(model, bucket_cap_mb=_CAP_MB, gradient_as_bucket_view=True)
        advice = advise(ddp, batch, steps=args.steps, limit_s=_LIMIT_S)
        took_ms = _measured(ddp, batch, advice, args)
        if dist.get_rank() == 0:
            print(json.dumps(_row(name, advice, took_ms)), flush=True)
    dist.destroy_process_group()


def _measured(ddp: DistributedDataParallel, batch: Any, advice: Advice, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a pass, median, by every way at every cap, and by what was advised."""
    plan = advice.options.by("lgreco")[0].setup
    assert plan is not None, "a plan can be tried"
    setups = {
        f"{way} at {cap:g} MiB": Setup(way, cap, plan.config if way == "lgreco" else None)
        for way in ("dense", "bf16", "lgreco")
        for cap in args.caps
    }
    if advice.best.setup is not None:
        setups["advised"] = advice.best.setup
    group = make_cpu_group(dist.group.WORLD, "verdicts")
    try:
        passes = Passes(ddp, lambda twin: twin(*batch), group, _LIMIT_S)
        times = passes.trial(setups, args.steps)
    finally:
        leave_cpu_group(group)
    return {name: 1e3 * step_s for name, (step_s, _) in in_blocks(times).items()}


def _row(model: str, advice: Advice, took_ms: Mapping[str, float]) -> dict[str, Any]:
    best = min(took_ms, key=lambda name: took_ms[name])
    predicted = [(each, each.predicted_s) for each in advice.options.ways if each.predicted_s is not None]
    return {
        "model": model,
        "numel": advice.numel,
        "compute_ms": 1e3 * advice.options.compute.step_s,
        "verdict": advice.verdict,
        "advised": advice.best.name,
        "best_measured": best,
        "over_best": took_ms["advised"] / took_ms[best],
        "right": took_ms["advised"] <= _CLOSE * took_ms[best],
        "measured_ms": dict(took_ms),
        "predictions": {
            each.name: {"predicted_ms": 1e3 * seconds, "measured_ms": 1e3 * each.step_s} for each, seconds in predicted
        },
        "predictions_right": sum(abs(seconds / each.step_s - 1) <= _PREDICTED for each, seconds in predicted),
        "predictions_made": len(predicted),
    }


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All networks that are not there yet; writes after each. Returns all rows, those that died with an error."""
    known = report.read_json(args.json) if args.json else None
    rows: list[dict[str, Any]] = [row for row in known["rows"] if "error" not in row] if known else []
    with report.progress() as bar:
        task = bar.add_task("networks", total=len(args.hosts) * len(args.rates))
        for hosts in args.hosts:
            for rate in args.rates:
                bar.update(task, description=f"{hosts} hosts, {rate}")
                there = {row["model"] for row in rows if (row["hosts"], row["rate"]) == (hosts, rate)}
                missing = [model for model in args.models if model not in there]
                rows += _network(args, hosts, rate, missing) if missing else []
                if args.json:
                    report.write_json(args.json, settings=vars(args), rows=rows)
                bar.advance(task)
    return rows


def _network(args: argparse.Namespace, hosts: int, rate: str, models: Sequence[str]) -> list[dict[str, Any]]:
    own = [sys.executable, str(Path(__file__).resolve()), "--on-host", "--models", *models]
    own += ["--steps", str(args.steps), "--caps", *map(str, args.caps)]
    lab = [sys.executable, str(_LAB), "--hosts", str(hosts), "--rate", rate, "--output", "rank0", "--"]
    with tempfile.TemporaryDirectory(prefix="lgreco-verdicts-") as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*lab, *own], capture_output=True, text=True, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rows = [{"hosts": hosts, "rate": rate, **row} for row in found]
    if len(found) < len(models):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        rows += [{"hosts": hosts, "rate": rate, "model": model, "error": last[0]} for model in models[len(found) :]]
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many verdicts and predictions are right."""
    judged = [row for row in rows if "error" not in row]
    right, died = sum(row["right"] for row in judged), len(rows) - len(judged)
    predictions = sum(row["predictions_right"] for row in judged), sum(row["predictions_made"] for row in judged)
    return f"{right} of {len(judged)} verdicts right, {predictions[0]} of {predictions[1]} predictions within 10 %" + (
        f"; {died} died" if died else ""
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, nargs="+", default=[2, 4], help="simulated, one rank each (default: 2 4)")
    add("--rates", nargs="+", default=["50mbit", "100mbit", "1gbit", "unshaped"], help="of each link (default: 4)")
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="(default: all)")
    add("--steps", type=int, default=24, help="passes of each way (default: %(default)s)")
    add("--caps", type=float, nargs="+", default=[1.0, _CAP_MB, 25.0], help="bucket_cap_mb measured (default: 1 5 25)")
    add("--json", metavar="FILE", help="results; networks that it has already are kept")
    add("--on-host", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.on_host:
        on_host(args)
        return 0
    rows = run(args)
    report.print_table(rows, _COLUMNS, title="what the advisor says, and what is")
    Console().print(summary(rows))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
