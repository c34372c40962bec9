#!/usr/bin/env python3
"""Proves, or disproves, that compressed exchange pays: real training on text over slow networks, method beside method.

    python benchmarks/proof.py --hosts 2 4 --rates 100mbit 1gbit unshaped --json benchmarks/results/proof-text.json

For each number of hosts and each rate one lab, in which all methods live at once and take turns, a block of passes
each, in rounds, so that noise of the machine hits all alike. All train the same byte-level GPT on the same windows of
text from the same weights; after each block the validation loss is taken, outside the clock. Dense training sets the
target: its validation loss after --passes passes. Who has not reached it by then goes on for as long as dense took.

pass_ms: of a forward and backward pass, the slowest host's, mean over a block, median over blocks; accumulation
exchanges in every --accumulate-th pass. over_best: a pass over that of the best of dense, bf16 and accumulation, from
blocks of the same round, with its interval at 95 %. seconds_to_target: training time alone. cpu_ms: one host's
process, a pass, mean over hosts. wire_bytes: sent by a rank in the last step; link_bytes: by its interface in a pass. A
method that dies or hangs is reported with its last words and has no figures.

Each finished cell is written at once; the same command goes on with what is missing (--fresh: begins anew).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lab_job
import proof_figure
import proof_pairs
import proof_rows
import report
from rich.progress import Progress
from step_turns import UNSYNCHRONISED, Turns, Variant

METHODS = (
    "compute_only", "dense", "bf16", "accumulate", "powersgd", "uniform", "lowrank", "lgreco", "accordion", "auto",
)  # fmt: skip
_SWEPT = ("dense", "bf16")
_MOST_PASSES = 4
"""How many times dense's passes a method may take to reach its loss."""
_COLUMNS = (
    "method", "bucket_cap_mb", "pass_ms_median", "over_compute", "over_best", "cpu_ms", "wire_bytes", "link_bytes",
    "final_loss", "seconds_to_target", "times_faster_to_target", "survived",
)  # fmt: skip


def variants_of(methods: list[str], caps_mb: list[float]) -> list[Variant]:
    """The methods, dense and bf16 at each bucket cap, the others at the first.

    Raises:
        ValueError: an unknown method, one named twice, no dense, or a cap that is not positive.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"a method must be one of {', '.join(METHODS)}, got {method!r}")
    if len(set(methods)) < len(methods):
        raise ValueError(f"no method may be named twice, got {', '.join(methods)}")
    if proof_rows.DENSE not in methods:
        raise ValueError(f"dense must be among the methods, it sets the target, got {', '.join(methods)}")
    if not caps_mb or min(caps_mb) <= 0:
        raise ValueError(f"bucket caps must be above 0 MiB, got {caps_mb}")
    return [
        Variant(method, None if method == UNSYNCHRONISED else cap)
        for method in methods
        for cap in (caps_mb if method in _SWEPT else caps_mb[:1])
    ]


class Cell:
    """One lab: all variants train in it by turns."""

    def __init__(self, args: argparse.Namespace, hosts: int, rate: str, folder: Path) -> None:
        """Starts the lab; raises RuntimeError where it cannot be built."""
        self._args, self._folder = args, folder
        self._variants = variants_of(args.methods, args.caps)
        self._turns = Turns(folder, hosts, rate, self._variants, _job_of(args, folder), args.timeout_s)

    def train(self, bar: Progress, title: str) -> list[dict[str, Any]]:
        """All blocks; rows of what they gave."""
        args = self._args
        rounds = args.passes // args.block_passes
        task = bar.add_task(title, total=len(self._variants) * (rounds + 1))
        try:
            for turn in range(rounds + 1):
                for variant in self._variants if turn % 2 else reversed(self._variants):
                    bar.update(task, description=f"{title}, {variant.name}")
                    self._turns.run(variant, 0, args.block_passes if turn else 0)  # the first prepares
                    bar.advance(task)
            measured = list(self._turns.measured.values())
            target = proof_rows.target_of(measured, args.passes)
            if target is not None:
                self._go_on(target, bar, task, title)
            rows = proof_rows.rows_of(measured, target, self._folder)
            return [{**row, "link_check": self._turns.link_check} for row in rows]
        finally:
            self._turns.close()
            bar.remove_task(task)

    def _go_on(self, target: float, bar: Progress, task: Any, title: str) -> None:
        """Rounds of those that have not reached the target, until they have, or took as long as dense did."""
        measured = self._turns.measured
        dense = [one for one in measured.values() if one.variant.method == proof_rows.DENSE and one.error is None]
        allowed_s = min(proof_rows.seconds_of(one) for one in dense)
        bar.update(task, total=None)
        while late := [
            variant
            for variant, one in measured.items()
            if variant.method not in (UNSYNCHRONISED, proof_rows.DENSE)
            and one.error is None
            and proof_rows.seconds_to(proof_rows.curve_of(one), target) is None
            and proof_rows.seconds_of(one) < allowed_s
            and len(one.blocks) * self._args.block_passes < _MOST_PASSES * self._args.passes
        ]:
            for variant in late:
                bar.update(task, description=f"{title}, {variant.name} goes on")
                self._turns.run(variant, 0, self._args.block_passes)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells that are not there yet; writes after each. Returns all."""
    settings = _settings_of(args)
    cells = [] if args.fresh else _finished(Path(args.json), settings)
    with report.progress() as bar:
        whole = bar.add_task("networks", total=len(args.hosts) * len(args.rates))
        for hosts in args.hosts:
            for rate in args.rates:
                if not any((cell["hosts"], cell["rate"]) == (hosts, rate) for cell in cells):
                    with tempfile.TemporaryDirectory(prefix="lgreco-proof-") as folder:
                        rows = Cell(args, hosts, rate, Path(folder)).train(bar, f"{hosts} hosts, {rate}")
                    made = {"commit": report.commit(), "versions": report.versions()}
                    cells.append({"hosts": hosts, "rate": rate, **made, "rows": rows})
                    report.write_json(args.json, settings=settings, rows=cells)
                bar.advance(whole)
    return cells


def main() -> int:
    """Runs the command line; returns the exit status: 1 where nothing could be measured."""
    parser = _parser()
    args = parser.parse_args()
    try:
        variants_of(args.methods, args.caps)
        if args.block_passes < 1 or args.passes % args.block_passes or args.block_passes % args.accumulate:
            raise ValueError(
                "passes must be a multiple of block-passes, and that of accumulate, "
                f"got {args.passes}, {args.block_passes} and {args.accumulate}"
            )
        if min(args.hosts) < 2:
            raise ValueError(f"hosts must be at least 2, got {min(args.hosts)}")
    except ValueError as error:
        parser.error(str(error))
    try:
        cells = run(args)
    except RuntimeError as error:
        print(f"proof: {error}", file=sys.stderr)
        return 1
    for cell in cells:
        rows = cell["rows"]
        shown = [{**row, "over_best": proof_pairs.shown(proof_pairs.against_best(row, rows))} for row in rows]
        report.print_table(shown, _COLUMNS, title=f"{cell['hosts']} hosts, {cell['rate']}")
        for row in rows:
            if not row["survived"]:
                print(f"{row['method']} died: {row['error']}")
        for claim in proof_rows.claims_of(rows):
            print(claim)
    picture = Path(args.json).with_suffix(".png")
    proof_figure.draw(cells, picture)
    print(f"Written: {args.json}, {picture}")
    return 0 if any(row["survived"] for cell in cells for row in cell["rows"]) else 1


def _job_of(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names = ("text", "seed", "lr", "lr_warmup_steps", "accumulate", "warmup_steps", "windows")
    solver = {"reference": args.reference, "interval": args.interval, "window": args.window, "lag": args.lag}
    own = {name: getattr(args, name) for name in names}
    return {**lab_job.job_of(args), **own, "solver": solver, "folder": str(folder)}


def _settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for cells to stand in one file."""
    left_out = ("json", "fresh", "hosts", "rates")
    return {name: value for name, value in vars(args).items() if name not in left_out}


def _finished(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cells of an earlier call with these settings; none where it was called otherwise."""
    content = report.read_json(path)
    if content is None:
        return []
    if content["settings"] != dict(settings):
        print(f"proof: {path} has other settings and is measured anew", file=sys.stderr)
        return []
    cells = [{**{key: content[key] for key in ("commit", "versions")}, **cell} for cell in content["rows"]]
    for cell in cells:
        older = report.made_elsewhere(cell)
        if older:
            print(f"proof: {cell['hosts']} hosts, {cell['rate']} were {older}; --fresh begins anew", file=sys.stderr)
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", nargs="+", type=int, default=[2, 4, 8], help="simulated hosts, one rank each (default: 2 4 8)")
    add(
        "--rates",
        nargs="+",
        default=["50mbit", "100mbit", "1gbit", "unshaped"],
        help="of each link (default: %(default)s)",
    )
    add("--methods", nargs="+", default=[m for m in METHODS if m not in ("lowrank", "accordion")], metavar="METHOD",
        help=f"a choice of {', '.join(METHODS)}")  # fmt: skip
    add(
        "--caps",
        nargs="+",
        type=float,
        default=[5.0],
        metavar="MIB",
        help="bucket caps of dense and bf16; others: the first",
    )
    add("--plan", default="quantize(bits=4, block=512)", help="choice of the methods uniform and auto")
    add(
        "--reference", default="lowrank(rank=16, factors=int8)", help="of lgreco's budget; choice of the method lowrank"
    )
    add("--passes", type=int, default=160, help="of dense training, which sets the target (default: %(default)s)")
    add("--block-passes", type=int, default=8, help="of one method before the next one's turn (default: %(default)s)")
    add("--accumulate", type=int, default=4, help="passes for each step of accumulate (default: %(default)s)")
    add("--warmup-steps", type=int, default=1, help="dense steps of lgreco's methods (default: %(default)s)")
    add("--interval", type=int, default=40, help="steps between solves (default: %(default)s)")
    add("--window", type=int, default=4, help="steps over which a table is measured (default: %(default)s)")
    add("--lag", type=int, default=4, help="steps from a table to its plan (default: %(default)s)")
    add("--text", default="stdlib", help="to train on: stdlib, a file or a folder")
    add("--seed", type=int, default=0)
    add("--lr", type=float, default=1e-3)
    add("--lr-warmup-steps", type=int, default=20)
    add("--windows", type=int, default=64, help="of validation text (default: %(default)s)")
    lab_job.add_arguments(parser, width=256, layers=4, heads=4)
    add("--json", metavar="FILE", default="benchmarks/results/proof.json", help="figures; the picture lies beside it")
    add("--fresh", action="store_true", help="leave out what an earlier call has finished")
    return parser


if __name__ == "__main__":
    sys.exit(main())
