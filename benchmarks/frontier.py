#!/usr/bin/env python3
r"""The frontier of real training: how much loss each way to compress costs, against how many bytes it saves.

    python benchmarks/frontier.py --model digits --out runs/frontier --json runs/frontier/digits.json --resume --runs \
        dense "quantize(bits=4, block=512)" "quantize(bits=2, block=512)" mine=my_config.yaml

Every run trains once for each seed, in processes of its own over Gloo: DistributedDataParallel with lgreco's hook. A
run is `dense` (no lgreco, what the others are compared with), a choice for every large matrix, NAME=CHOICE or
NAME=FILE, where the file holds an lgreco config; --config names a file with a mapping from names to configs. A name
FAMILY/NAME gives the run the colour of its family in the figure. Equal seeds have equal initial weights and data in
all runs.

Each result is kept in a file in --out, whose name depends on all settings that decide it; --resume takes those that
are there, whatever commit made them (it stands in them), and trains the rest, also what died before; --known takes
those of earlier --json files too, and --summarise trains nothing. A run that dies is reported with its last words.

ratio: what a ring allreduce of fp32 gradients sends, 2 (W-1)/W * 4 bytes a parameter, over what a rank sent on
average after the dense warm-up steps; whole-run ratio: the same with them. Gap: loss over dense's of the same seed,
less 1, mean and each seed; of the validation loss after the last step, and of the mean training loss of the last 50
steps. Losses in nats. cpu s: processor time of all ranks.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from frontier_ranks import run_job
from frontier_runs import Job, Results, Run, config_of, only, read_runs
from frontier_summary import COLUMNS, rows_of, shown
from frontier_tasks import OPTIMIZERS, TASKS, settings_of
from rich.progress import Progress, TaskID, TextColumn

_INTERRUPTED = 130
# Of the command line, what no figure depends on.
_NOT_SETTINGS = ("json", "out", "config", "resume", "known", "summarise")


def jobs_of(args: argparse.Namespace, runs: Sequence[Run]) -> list[Job]:
    """All jobs; every run of one seed before the next seed, so that what an early end leaves can be compared.

    Raises:
        ValueError: a number that is not allowed, or a model that this optimizer does not train.
    """
    if args.world_size < 2:
        raise ValueError(f"world-size must be at least 2, got {args.world_size}")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ValueError(f"seeds must be 0 or more and each stand once, got {args.seeds}")
    train = settings_of(args.model, args.optimizer, args.steps).model_dump(mode="json")
    return [
        Job(args.model, args.optimizer, run.name, config_of(run, seed), seed, args.world_size, train)
        for seed in args.seeds
        for run in runs
    ]


def run_all(jobs: Sequence[Job], results: Results, args: argparse.Namespace) -> dict[str, dict[int, dict[str, Any]]]:
    """Trains what is not there yet; returns run's name -> seed -> record."""
    records: dict[str, dict[int, dict[str, Any]]] = {}
    with report.progress(TextColumn("{task.fields[figures]}")) as bar:
        overall = bar.add_task("jobs", total=len(jobs), figures="")
        for job in jobs:
            record = results.finished(job) if args.resume or args.known or args.summarise else None
            if record is None and args.summarise:
                bar.advance(overall)
                continue
            if record is None:
                record = results.keep(job, _run_one(job, args.timeout_s, bar))
                said = f"died: {record['died']}" if record["died"] else f"validation loss {record['val_loss']:.4f}"
                bar.console.print(f"{job.title}: {said}", highlight=False, markup=False, soft_wrap=True)
            records.setdefault(job.run, {})[job.seed] = record
            bar.advance(overall)
    return records


def _run_one(job: Job, timeout_s: float, bar: Progress) -> dict[str, Any]:
    task: TaskID = bar.add_task(job.title, total=job.train["steps"], figures="")

    def tell(step: int, loss: float) -> None:
        bar.update(task, completed=step, figures=f"loss {loss:.3f}")

    try:
        return run_job(job, timeout_s, tell)
    finally:
        bar.remove_task(task)


def summarise(rows: Sequence[dict[str, Any]], args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Prints the table and what died, writes the figure and the JSON file."""
    # Needs matplotlib, and the ranks import this file.
    from frontier_figure import draw

    seeds = ", ".join(str(seed) for seed in args.seeds)
    title = (
        f"{args.model}, {settings['train']['steps']} steps, {args.optimizer}, {args.world_size} ranks, seeds {seeds}"
    )
    report.print_table([shown(row) for row in rows], COLUMNS, title=title)
    for row in rows:
        for seed, words in row["died"].items():
            print(f"{row['run']}, seed {seed} died: {words}")
    if not any(row["val_spread"] for row in rows):
        print("Dense's own spread is not known: it takes a dense run and two seeds.")
    draw(rows, title, args.out / f"{args.model}.png")
    if args.json:
        report.write_json(args.json, settings=settings, rows=rows)


def main() -> int:
    """Runs the command line; returns the exit status: 1 where every run died."""
    parser = _parser()
    args = parser.parse_args()
    try:
        runs = only(args.only, read_runs(args.runs, args.config, args.warmup_steps))
        jobs = jobs_of(args, runs)
        results = Results(args.out)
        for file in args.known:
            results.adopt(file, jobs)
    except ValueError as error:
        parser.error(str(error))
    # Both ways to be told to stop end the ranks first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        records = run_all(jobs, results, args)
    except KeyboardInterrupt:
        print("frontier: interrupted; --resume goes on with what is not finished", file=sys.stderr)
        return _INTERRUPTED
    rows = rows_of(runs, records)
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    settings["configs"] = [str(path) for path in args.config]
    summarise(rows, args, {**settings, "train": jobs[0].train})
    return 0 if any(len(row["died"]) < len(row["seeds"]) for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=tuple(TASKS), required=True, help="what is trained")
    add("--world-size", type=int, default=4, help="ranks, one process each (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="(default: 0 1 2)")
    add("--steps", type=int, help="optimizer steps (default: 400)")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="sgd: digits only (default: %(default)s)")
    add("--runs", nargs="+", default=[], metavar="RUN", help="dense, a choice, NAME=CHOICE or NAME=FILE.yaml")
    add("--config", type=Path, nargs="+", default=[], metavar="FILE", help="YAML mapping from names to lgreco configs")
    add("--only", nargs="+", metavar="NAME", help="of the runs named so far, these alone")
    add("--warmup-steps", type=int, default=20, help="dense steps of configs that do not say (default: %(default)s)")
    add("--timeout-s", type=float, default=1800.0, help="longest time for one run (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the results of the runs and the figure")
    add("--json", metavar="FILE", help="write the figures there")
    add("--resume", action="store_true", help="take the results that are in the folder already")
    add(
        "--known",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="earlier --json files, whose results are taken",
    )
    add("--summarise", action="store_true", help="train nothing: table, figure and JSON of what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
