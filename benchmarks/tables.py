#!/usr/bin/env python3
"""The best uniform choice against the solved plan at the same error, in bytes, on error tables of real gradients.

    python benchmarks/tables.py benchmarks/results/tables/*.json --json benchmarks/results/tables.json

The tables are what a training run leaves beside its record (`solver.record` in the config). For each table, norm and
budget: the budget is what a uniform reference would lose, `reference`; within it the cheapest uniform choice of any
family, and the plan of L-GreCo's solver. `gain`: the first's bytes over the second's; at least 1, since uniform plans
are among those that the solver chooses from.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report

from lgreco.choice import Choice
from lgreco.error_table import ErrorTable
from lgreco.norm import NORMS
from lgreco.plan_solve import Budget, solve_table

_COLUMNS = ("table", "norm", "budget", "best_uniform", "uniform_bytes", "solved_bytes", "gain", "ratio_to_dense")


def compared(name: str, table: ErrorTable) -> Iterator[dict[str, Any]]:
    """A row for each norm and each uniform choice that loses anything, taken as the budget."""
    for norm in NORMS:
        for reference in table.choices:
            row = _row(table, norm, reference)
            if row is not None:
                yield {"table": name, "step": table.step, "world_size": table.world_size, **row}


def _row(table: ErrorTable, norm: str, reference: Choice) -> dict[str, Any] | None:
    solved = solve_table(table, Budget(reference), norm)
    uniforms = [each for each in solved.uniforms if each.spent is not None]
    best = min(uniforms, key=lambda each: each.spent.cost if each.spent else float("inf"), default=None)
    if best is None or best.spent is None or not solved.limit > 0:
        return None
    return {
        "norm": norm,
        "budget": str(reference),
        "best_uniform": str(best.choice),
        "uniform_bytes": best.spent.cost,
        "solved_bytes": solved.spent.cost,
        "gain": best.spent.cost / solved.spent.cost,
        "ratio_to_dense": solved.dense_bytes / solved.spent.cost,
        "gap": solved.gap,
    }


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="saved error tables")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    args = parser.parse_args()
    try:
        rows = [row for path in args.tables for row in compared(path.stem, ErrorTable.load(path).monotone())]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    report.print_table(rows, _COLUMNS)
    for norm in NORMS:
        gains = [row["gain"] for row in rows if row["norm"] == norm]
        if gains:
            print(f"{norm}: gain {min(gains):.2f} to {max(gains):.2f}, median {statistics.median(gains):.2f}")
    if args.json:
        report.write_json(args.json, settings={"tables": [path.name for path in args.tables]}, rows=rows)
        print(f"Written: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
