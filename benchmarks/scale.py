#!/usr/bin/env python3
"""Projects step time on paper: known models on 2 to 1024 nodes and links of 1 to 400 Gbit/s, by lgreco's cost model.

    torchrun ... -m lgreco calibrate --json > calibration.json      # on hosts as they will be used
    python benchmarks/scale.py --calibration calibration.json --tflops 100 --ranks-per-node 8 --json scale.json
    python benchmarks/scale.py --check benchmarks/results/step-*.json

Of a calibration, latencies and the codecs' speed are taken; rates are those of the table. A latency grows with the
number of turns that an exchange takes (nodes - 1) as it stands to the calibrated one's. Nothing here is measured but
the calibration: compute follows from --tflops, and links that many nodes share are taken for free of contention.

flat: dense and bf16 as one ring through all ranks, node by node, which crosses a node's link once; lgreco's ranks
exchange with all others and share their node's link. tree: a node reduces its gradients first, over --inner-gbit, so
that its link carries one copy.

--check sets predictions against steps that benchmarks/step.py measured in the lab: compute is the measured
compute_only, backward's shape that of the same GPT, the rate what a plain stream carried there. The lab's hosts share
its cores, so what an exchange costs in processor time (as measured there, beyond compute_only's) cannot be hidden and
is added. The error is stated for each row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import report
from scale_models import MODELS, Model, byte_gpt

from lgreco.calibration import Calibration
from lgreco.choice import Choice, parse
from lgreco.config import Config
from lgreco.cost_model import (
    Line,
    allreduce_s,
    exchange_s,
    exposed_s,
    fill_buckets,
    hierarchical_s,
)
from lgreco.layer import LayerInfo
from lgreco.plan import resolve, wire_bytes

_GIGA = 1e9
_MOST_RANKS = 4096
"""That bytes can be counted for."""
_COLUMNS = (
    "model",
    "nodes",
    "gbit",
    "compute_ms",
    "dense_ms",
    "bf16_ms",
    "lgreco_ms",
    "dense_tree_ms",
    "lgreco_tree_ms",
)
_CHECK_COLUMNS = ("file", "hosts", "rate", "method", "bucket_cap_mb", "measured_ms", "predicted_ms", "error")


def scaled(calibration: Calibration, world_size: int, bytes_per_s: float) -> Calibration:
    """The calibration's latencies and codecs with more ranks, on links of another rate."""
    turns = (world_size - 1) / max(1, calibration.world_size - 1)
    lines = [Line(line.latency_s * turns, bytes_per_s) for line in (calibration.allreduce, calibration.exchange)]
    ranks = min(world_size, _MOST_RANKS)  # (W-1)/W no longer moves
    return Calibration(ranks, *lines, calibration.codec_s, calibration.spread, calibration.prediction_error)


def step_s(
    layers: Sequence[LayerInfo],
    compute_s: float,
    ready_s: Sequence[float],
    calibration: Calibration,
    way: str | Choice,
    cap_mb: float,
) -> float:
    """A step by `dense`, `bf16` or a plan of one choice; seconds."""
    schedule = fill_buckets(ready_s, [layer.dense_bytes for layer in layers], cap_mb)
    if isinstance(way, Choice):
        plan = resolve(Config(default=way), layers)
        layer_s = [calibration.layer_s(planned.layer, planned.choice) for planned in plan.planned]
        seconds = exchange_s(schedule, layer_s, calibration.exchange)
    else:
        wire = [layer.numel * (2 if way == "bf16" else 4) for layer in layers]
        seconds = allreduce_s(schedule, wire, calibration.allreduce, calibration.world_size)
    return compute_s + exposed_s(schedule.ready_s, seconds)


def project(
    model: Model, nodes: int, gbit: float, calibration: Calibration, args: argparse.Namespace
) -> dict[str, Any]:
    """One row: every way's milliseconds a step."""
    choice = parse(args.plan)
    compute_s, ready_s = model.times(args.tflops * 1e12)
    node_bytes_per_s = gbit * _GIGA / 8
    flat = scaled(calibration, nodes * args.ranks_per_node, node_bytes_per_s)
    flat = replace(flat, exchange=replace(flat.exchange, bytes_per_s=node_bytes_per_s / args.ranks_per_node))
    row: dict[str, Any] = {"model": model.name, "nodes": nodes, "gbit": gbit, "compute_ms": compute_s * 1e3}
    for name, way in (("dense", "dense"), ("bf16", "bf16"), ("lgreco", choice)):
        row[f"{name}_ms"] = 1e3 * step_s(model.layers, compute_s, ready_s, flat, way, args.cap_mb)
    inner = Line(flat.exchange.latency_s / max(1, nodes), args.inner_gbit * _GIGA / 8)
    between = scaled(calibration, nodes, node_bytes_per_s)
    plan = resolve(Config(default=choice), model.layers)
    schedule = fill_buckets(ready_s, [layer.dense_bytes for layer in model.layers], args.cap_mb)
    for name, line in (("dense", between.allreduce), ("lgreco", between.exchange)):
        seconds = []
        for rows in schedule.rows:
            payload = sum(model.layers[at].dense_bytes for at in rows)
            outer, codec_s = float(payload), 0.0
            if name == "lgreco":
                outer = sum(wire_bytes(plan.planned[at].layer, plan.planned[at].choice, 2) for at in rows)
                # A node's ranks code their parts of the gradient side by side.
                codec_s = (
                    sum(between.codec_element_s(plan.planned[at].choice) * model.layers[at].numel for at in rows)
                    / args.ranks_per_node
                )
            seconds.append(codec_s + hierarchical_s(payload, nodes, args.ranks_per_node, inner, line, outer))
        row[f"{name}_tree_ms"] = 1e3 * (compute_s + exposed_s(schedule.ready_s, seconds))
    return row


def check(path: Path, calibration: Calibration | None) -> list[dict[str, Any]]:
    """Predictions beside what a file of benchmarks/step.py has measured; those of methods that lived."""
    content = json.loads(path.read_text(encoding="utf-8"))
    settings, rows = content["settings"], {row["method"]: row for row in content["rows"]}
    compute_ms = rows["compute_only"]["step_ms_median"]
    model = byte_gpt(settings["width"], settings["layers"], settings["context"], settings["batch"])
    compute_s = compute_ms / 1e3
    _, ready_s = model.times(model.flops / compute_s)
    if settings.get("ranks_per_host", 1) > 1:
        print(f"{path.name}: left out, several ranks share a host's link there", file=sys.stderr)
        return []
    stream = next(row for row in settings["link_check"]["rows"] if row["pattern"] == "stream")
    hosts, cores = settings["hosts"], int(content["versions"]["cores"])
    made = calibration or _without_latency(hosts)
    made = scaled(made, hosts, stream["goodput_bits"] / 8)
    found = []
    for method, way in (("dense", "dense"), ("bf16", "bf16"), ("lgreco", parse(settings["plan"]))):
        for row in rows.get(method, {}).get("by_cap", []):
            if not row["survived"]:
                continue
            predicted_ms = 1e3 * step_s(model.layers, compute_s, ready_s, made, way, row["bucket_cap_mb"])
            predicted_ms += max(0.0, row["cpu_ms"] - rows["compute_only"]["cpu_ms"]) * hosts / cores
            found.append(
                {
                    "file": path.name, "hosts": hosts, "rate": settings["rate"], "method": method,
                    "bucket_cap_mb": row["bucket_cap_mb"], "measured_ms": row["step_ms_median"],
                    "predicted_ms": predicted_ms, "error": predicted_ms / row["step_ms_median"] - 1,
                }
            )  # fmt: skip
    return found


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args()
    calibration = None
    try:
        if args.calibration:
            calibration = Calibration.from_dict(_last_json(Path(args.calibration)))
        if args.check:
            rows = [row for path in args.check for row in check(Path(path), calibration)]
        else:
            calibration = calibration or _without_latency(2)
            models = [MODELS[name]() for name in args.models]
            rows = [
                project(m, nodes, gbit, calibration, args) for m in models for nodes in args.nodes for gbit in args.gbit
            ]
    except (ValueError, OSError, KeyError) as error:
        parser.error(str(error))
    report.print_table(
        rows, _CHECK_COLUMNS if args.check else _COLUMNS, title="prediction" if args.check else args.plan
    )
    if args.check and rows:
        print(_error_sentence([row["error"] for row in rows]))
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        settings["calibrated"] = calibration.to_dict() if calibration else None
        report.write_json(args.json, settings=settings, rows=rows)
    return 0


def _error_sentence(errors: Sequence[float]) -> str:
    within = sum(abs(error) <= 0.1 for error in errors)
    middle, largest = median(map(abs, errors)), max(map(abs, errors))
    return f"within 10 %: {within} of {len(errors)}; median error {middle:.1%}, largest {largest:.1%}"


def _without_latency(world_size: int) -> Calibration:
    """Links alone: no latency, codecs that take no time; an upper bound of what can be gained."""
    free = Line(0.0, 1.0)
    codecs = ("lowrank(rank=4)", "lowrank(rank=32)")
    return Calibration(world_size, free, free, tuple((str(parse(each)), 0.0) for each in codecs), 0.0, 0.0)


def _last_json(path: Path) -> Mapping[str, Any]:
    """The last line that is JSON: torchrun's own lines may stand before it."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"{path} holds no line of JSON; make it with `-m lgreco calibrate --json`")
    content: Mapping[str, Any] = json.loads(lines[-1])
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--calibration", metavar="FILE", help="of `-m lgreco calibrate --json`; without: no latency, codecs for nothing"
    )
    add("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    add("--nodes", nargs="+", type=int, default=[2, 8, 32, 128, 1024], help="default: 2 8 32 128 1024")
    add(
        "--gbit",
        nargs="+",
        type=float,
        default=[1.0, 10.0, 100.0, 400.0],
        help="of a node's link (default: 1 10 100 400)",
    )
    add("--ranks-per-node", type=int, default=1, help="default: %(default)s")
    add("--inner-gbit", type=float, default=2400.0, help="between ranks of a node, each (default: %(default)s)")
    add("--tflops", type=float, default=100.0, help="that a rank really reaches (default: %(default)s)")
    add("--plan", default="quantize(bits=4, block=512)", help="lgreco's choice (default: %(default)s)")
    add("--cap-mb", type=float, default=25.0, help="bucket cap (default: %(default)s)")
    add("--check", nargs="+", metavar="FILE", help="results of benchmarks/step.py to predict")
    add("--json", metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
