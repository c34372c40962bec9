#!/usr/bin/env python3
"""The paper's claims in small (L-GreCo, arXiv 2210.17357): measures what is missing of each and prints them as a table.

    python benchmarks/claims.py

Three parts, one after the other, each a benchmark of its own with its own progress bar and its own file beside --json:

training: benchmarks/proof.py, time to dense training's validation loss, 4 hosts at 100 Mbit/s. Needs the lab.
bytes: benchmarks/frontier.py, bytes and validation loss of plans by the solver against the uniform choice whose error
they may spend, and with Accordion against Accordion alone between two ranks; --seeds, means over them.
solver: benchmarks/overhead.py, time with tables and solves over that of a twin that replays the same plans.

A part whose file is there, by the same command and with a figure for each of its claims, is not run again (--fresh: it
is). What died is said in the table, and has no figure. --with adds words to a part's command, --parts leaves parts out.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from claims_figures import CLAIMS, Figure, NotMeasured

_ROOT = Path(__file__).resolve().parent.parent
_COLUMNS = ("claim", "the paper's", "asked", "measured here", "command of that part")
_INTERRUPTED = 130
PARTS = {
    "training": (
        "python benchmarks/proof.py --hosts 4 --rates 100mbit --passes 128 "
        "--methods compute_only dense bf16 lowrank lgreco"
    ),
    "bytes": (
        "python benchmarks/frontier.py --model digits --seeds 0 1 --out runs/claims --resume --runs dense "
        "--config configs/frontier.yaml --only dense lowrank/rank-8 solver/alpha-1 accordion/alone "
        "accordion/with-solver"
    ),
    "solver": "torchrun --standalone --nproc-per-node 2 benchmarks/overhead.py",
}
"""The command of each part, from the repository's root, without its --json."""


@dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        name: a key of PARTS.
        command: as a shell takes it, from the repository's root.
        path: of its figures.
    """

    name: str
    command: str
    path: Path

    def content(self) -> Mapping[str, Any] | None:
        """What it measured, None where its file is missing or of another command."""
        content = report.read_json(self.path)
        return content if content is not None and content["command"] == self.command else None

    def run(self) -> int:
        """Measures; returns the exit status."""
        program, *words = shlex.split(self.command)
        start = [sys.executable, *(["-m", "torch.distributed.run"] if program == "torchrun" else [])]
        return subprocess.run([*start, *words], cwd=_ROOT).returncode


def parts_of(json_path: Path, names: Sequence[str], more: Sequence[str]) -> list[Part]:
    """The parts that were asked for, files beside `json_path`.

    Raises:
        ValueError: words for a part that there is not.
    """
    added: dict[str, str] = {}
    for each in more:
        name, equals, words = each.partition("=")
        if not equals or name not in PARTS:
            raise ValueError(f"--with must be PART=WORDS with a part of {', '.join(PARTS)}, got {each!r}")
        added[name] = f" {words}"
    folder = json_path.resolve().parent
    folder = folder.relative_to(_ROOT) if folder.is_relative_to(_ROOT) else folder
    parts = []
    for name in names:
        path = folder / f"{json_path.stem}-{name}.json"
        words = shlex.split(f"{PARTS[name]}{added.get(name, '')}")
        parts.append(Part(name, shlex.join([*words, "--json", str(path)]), _ROOT / path))
    return parts


def rows_of(parts: Sequence[Part], ended: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row for each claim of these parts.

    Args:
        parts: some have no figures yet.
        ended: exit status of those that ran just now.
    """
    by_name = {part.name: part for part in parts}
    return [_row(claim, by_name[claim.part], ended) for claim in CLAIMS if claim.part in by_name]


def _row(claim: Any, part: Part, ended: Mapping[str, int]) -> dict[str, Any]:
    content = part.content()
    figure = Figure(None, "not measured yet")
    if ended.get(part.name):
        figure = Figure(None, f"died: its command ended with status {ended[part.name]}")
    elif content is not None:
        try:
            figure = claim.figure(content["rows"])
        except NotMeasured as why:
            figure = Figure(None, str(why))
    return {
        "claim": claim.claim, "the paper's": claim.paper, "asked": claim.asked, "measured here": figure.words,
        "figure": figure.value, "command of that part": part.command,
        **{key: None if content is None else content[key] for key in ("commit", "versions")},
    }  # fmt: skip


def measure(parts: Sequence[Part], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what is missing and writes the claims after each part; returns their rows."""
    ended: dict[str, int] = {}
    settings = {"parts": args.parts, "with": args.more}
    for number, part in enumerate(parts, start=1):
        known = not args.fresh and all(row["figure"] is not None for row in rows_of([part], {}))
        said = "is there" if known else "begins"
        print(f"claims: part {number} of {len(parts)}, {part.name}, {said}: {part.command}", file=sys.stderr)
        if known:
            older = report.made_elsewhere(part.content() or {})
            if older:
                print(f"claims: {part.path.name} was {older}; --fresh measures again", file=sys.stderr)
        else:
            if args.fresh:
                part.path.unlink(missing_ok=True)
            ended[part.name] = part.run()
        report.write_json(args.json, settings=settings, rows=rows_of(parts, ended))
    return rows_of(parts, ended)


def main() -> int:
    """Runs the command line; returns the exit status: 1 where a claim has no figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="(default: all)")
    add("--with", dest="more", action="append", default=[], metavar="PART=WORDS",
        help="more words for a part's command, such as 'training=--passes 64 --hosts 2'; may be repeated")  # fmt: skip
    add("--json", type=Path, default=Path("benchmarks/results/proof-claims.json"), metavar="FILE",
        help="the claims; the parts' figures lie beside it (default: %(default)s)")  # fmt: skip
    add("--fresh", action="store_true", help="measure every part again")
    args = parser.parse_args()
    try:
        parts = parts_of(args.json, args.parts, args.more)
    except ValueError as error:
        parser.error(str(error))
    try:
        rows = measure(parts, args)
    except KeyboardInterrupt:
        print("claims: interrupted; the same command goes on with what is missing", file=sys.stderr)
        return _INTERRUPTED
    report.print_table(rows, _COLUMNS, title="The paper's claims in small")
    print(f"Written: {args.json}")
    return 0 if all(row["figure"] is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
