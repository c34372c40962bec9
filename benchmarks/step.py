#!/usr/bin/env python3
"""Times one training step of a small GPT over a slow network: compute alone, dense, bf16, torch's PowerSGD, lgreco.

    python benchmarks/step.py --hosts 4 --rate 1gbit --plan "quantize(bits=4, block=512)" --json step.json

Runs itself in the lab (launch/lab.py), and refuses one whose links are more than 5 % off the rate. The methods take
turns, a block of a few steps each, in rounds, so that noise of the machine hits all alike. Each runs in processes of
its own: one that dies is reported with `survived: false` and its last words, and the others go on.

step_ms_median: of the slowest host's time of each step. All hosts of compute_only start each step together, as if an
exchange that takes no time had made them wait for each other. cpu_ms: user and system time of one rank's process per
step, mean over ranks, of the median block. wire_bytes: what one rank's method sends per step, mean over ranks:
reported by lgreco (hierarchical: to other hosts), computed for the others. link_bytes: what a host's interface sent,
headers and acknowledgements included, with one header for each packet of up to 64 KiB, as the kernel counts before it
cuts. dense and bf16 are shown at their best bucket cap; `by_cap` in the JSON has the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import lab_job
import report
from step_turns import Measured, Turns, Variant

METHODS = ("compute_only", "dense", "bf16", "powersgd", "lgreco")
_HIERARCHICAL = "hierarchical"  # where hosts have several ranks: lgreco with ranks_per_node
_SWEPT = ("dense", "bf16")
# What DDP takes when nobody says otherwise, in MiB.
_DEFAULT_CAP_MB = 25.0
_COLUMNS = (
    "method", "bucket_cap_mb", "step_ms_median", "step_ms_p10", "step_ms_p90", "over_compute_only",
    "cpu_ms", "wire_bytes", "link_bytes", "survived",
)  # fmt: skip


def variants_of(methods: Sequence[str], caps_mb: Sequence[float], lgreco_caps_mb: Sequence[float]) -> list[Variant]:
    """The methods with each bucket cap that they are to be tried at.

    Raises:
        ValueError: an unknown method, one named twice, or a cap that is not positive.
    """
    for method in methods:
        if method not in (*METHODS, _HIERARCHICAL):
            raise ValueError(f"a method must be one of {', '.join((*METHODS, _HIERARCHICAL))}, got {method!r}")
    for cap_mb in (*caps_mb, *lgreco_caps_mb):
        if cap_mb <= 0:
            raise ValueError(f"a bucket cap must be above 0 MiB, got {cap_mb:g}")
    caps_of: dict[str, Sequence[float | None]] = {"compute_only": [None]}
    caps_of |= dict.fromkeys(("lgreco", _HIERARCHICAL), lgreco_caps_mb)
    caps_of |= dict.fromkeys(_SWEPT, caps_mb)
    variants = [Variant(method, cap) for method in methods for cap in caps_of.get(method, [_DEFAULT_CAP_MB])]
    if len(set(variants)) < len(variants):
        raise ValueError(f"no method or cap may be named twice, got {', '.join(v.name for v in variants)}")
    return variants


def figures(measured: Measured) -> dict[str, Any]:
    """One variant's figures; all None where it died, so that no dead method can look fast."""
    blocks = [] if measured.error is not None else measured.blocks
    # Hosts wait for each other in every step, so the slowest host's time is the step's.
    steps = [max(of_ranks) for block in blocks for of_ranks in zip(*(rank.step_ms for rank in block), strict=True)]
    tenths = quantiles(steps, n=10, method="inclusive") if len(steps) > 1 else steps * 9
    return {
        "method": measured.variant.method,
        "bucket_cap_mb": measured.variant.bucket_cap_mb,
        "step_ms_median": median(steps) if steps else None,
        "step_ms_p10": tenths[0] if steps else None,
        "step_ms_p90": tenths[-1] if steps else None,
        "cpu_ms": median(fmean(rank.cpu_ms for rank in block) for block in blocks) if blocks else None,
        "wire_bytes": round(fmean(rank.wire_bytes for rank in blocks[-1])) if blocks else None,
        "link_bytes": round(median(fmean(rank.link_bytes for rank in block) for block in blocks)) if blocks else None,
        "steps": len(steps),
        "survived": measured.error is None,
        "error": measured.error,
    }


def rows_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row for each method, at the bucket cap where it was fastest; `by_cap` holds every cap's figures.

    A row says that its method survived if it did at one cap at least; the others' ends stand in `by_cap`.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for one in measured:
        by_method.setdefault(one.variant.method, []).append(figures(one))
    rows = []
    for tried in by_method.values():
        alive = [row for row in tried if row["survived"]]
        best = min(alive, key=lambda row: row["step_ms_median"]) if alive else tried[0]
        rows.append({**best, "by_cap": tried})
    compute_ms = next((row["step_ms_median"] for row in rows if row["method"] == "compute_only"), None)
    for row in rows:
        known = compute_ms is not None and row["step_ms_median"] is not None
        row["over_compute_only"] = row["step_ms_median"] / compute_ms if known else None
    return rows


def measure(args: argparse.Namespace, variants: Sequence[Variant]) -> tuple[list[Measured], dict[str, Any]]:
    """Runs all variants in turn in one lab; returns what each measured, and what the lab's links carried."""
    job = lab_job.job_of(args)
    rounds = -(-args.steps // args.block_steps)
    with tempfile.TemporaryDirectory(prefix="lgreco-step-") as folder, report.progress() as bar:
        task = bar.add_task("starting", total=len(variants) * (rounds + 1))
        turns = Turns(Path(folder), args.hosts, args.rate, variants, job, args.timeout_s, args.ranks_per_host)
        try:
            for turn in range(rounds + 1):
                warm_up = turn == 0
                # Each round in the opposite order of the last: a neighbour's warm caches favour nobody.
                for variant in variants if turn % 2 else reversed(variants):
                    bar.update(task, description=variant.name)
                    lead_in, steps = (args.warmup, 0) if warm_up else (args.lead_in, args.block_steps)
                    turns.run(variant, lead_in, steps)
                    bar.advance(task)
            return list(turns.measured.values()), turns.link_check
        finally:
            turns.close()


def main() -> int:
    """Runs the command line; returns the exit status: 1 where nothing could be measured."""
    parser = _parser()
    args = parser.parse_args()
    if args.ranks_per_host > 1 and args.methods == list(METHODS):
        args.methods.append(_HIERARCHICAL)
    try:
        variants = variants_of(args.methods, args.caps, args.lgreco_caps)
        for name, least in (
            ("hosts", 2),
            ("ranks_per_host", 1),
            ("steps", 1),
            ("block_steps", 1),
            ("warmup", 3),
            ("lead_in", 0),
        ):
            if getattr(args, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(args, name)}")
    except ValueError as error:
        parser.error(str(error))
    try:
        measured, link_check = measure(args, variants)
    except RuntimeError as error:
        print(f"step: {error}", file=sys.stderr)
        return 1
    rows = rows_of(measured)
    report.print_table(rows, _COLUMNS, title=f"{args.hosts} hosts of {args.ranks_per_host}, {args.rate}, {args.plan}")
    for one in measured:
        if one.error is not None:
            print(f"{one.variant.name} died: {one.error}")
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        report.write_json(args.json, settings={**settings, "link_check": link_check}, rows=rows)
    return 0 if any(row["survived"] for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4, help="simulated hosts (default: %(default)s)")
    add("--ranks-per-host", type=int, default=1,
        help="with 2 or more, also lgreco with ranks_per_node is measured (default: %(default)s)")  # fmt: skip
    add("--rate", default="1gbit", help="of each link, as launch/lab.py takes it (default: %(default)s)")
    add("--plan", default="quantize(bits=4, block=512)", help="choice for lgreco's layers (default: %(default)s)")
    add(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help=f"a choice of {', '.join((*METHODS, _HIERARCHICAL))}",
    )
    add("--caps", nargs="+", type=float, default=[1.0, 5.0, 25.0], metavar="MIB",
        help="bucket caps for dense and bf16 (default: 1 5 25)")  # fmt: skip
    add("--lgreco-caps", nargs="+", type=float, default=[_DEFAULT_CAP_MB], metavar="MIB",
        help="bucket caps for lgreco (default: 25, DDP's own)")  # fmt: skip
    add("--steps", type=int, default=12, help="measured steps of each variant (default: %(default)s)")
    add("--block-steps", type=int, default=4, help="of one variant before the next one's turn (default: %(default)s)")
    add("--warmup", type=int, default=4, help="unmeasured steps before the first round (default: %(default)s)")
    add("--lead-in", type=int, default=1, help="unmeasured steps before each block (default: %(default)s)")
    lab_job.add_arguments(parser, width=384, layers=6, heads=6)
    add("--json", metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
