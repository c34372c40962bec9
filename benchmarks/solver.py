#!/usr/bin/env python3
"""Times the solver on one core, as training calls it, and says how far from best its plans can be.

    python benchmarks/solver.py --json solver.json

Kinds of instances, layer sizes log-uniform from 1e2 to 1e8 elements unless said otherwise:
    random      errors and costs uniform in 0..1: no sizes, no order
    quantize    error ~ 4^-bits, cost ~ bits
    lowrank     error ~ rank^-decay, the decay of each layer its own, cost ~ rank * sqrt(size)
    mixed       half the choices quantise, half are of low rank
    equal       quantize, all layers equal
    correlated  error falls with cost nearly on one line, which leaves the hulls little
    subset_sum  error + cost is the same number everywhere: every plan lies on the relaxation's line

Budgets: `share` of the way from the least error to that of the cheapest plan, on a logarithmic scale where they are far
apart. --holes of the entries are NaN. gap is (cost - lower bound) / lower bound; a figure is the median or the maximum
over seeds and budgets. The clock is the thread's CPU time unless --clock wall.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import report

from lgreco.solver import solve

Table = npt.NDArray[np.float64]
Instance = tuple[Table, Table]
_CLOCKS = {"thread": time.thread_time, "wall": time.perf_counter}
_COLUMNS = ("kind", "layers", "choices", "method", "ms_median", "ms_max", "gap_median", "gap_max", "proven_share")


def _sizes(random: np.random.Generator, layers: int) -> Table:
    return np.asarray(np.round(10 ** random.uniform(2, 8, (layers, 1))))


def _spread(random: np.random.Generator, layers: int) -> Table:
    """How much error an element has, each layer its own."""
    return np.exp(random.normal(0, 1.5, (layers, 1)))


def _uniform(random: np.random.Generator, layers: int, choices: int) -> Instance:
    errors, costs = random.uniform(size=(2, layers, choices))
    return errors, costs


def _quantized(numel: Table, spread: Table, choices: int) -> Instance:
    bits = np.linspace(0.5, 8, choices)
    return numel * spread * 4.0**-bits, np.ceil(numel * bits / 8)


def _low_rank(random: np.random.Generator, numel: Table, spread: Table, choices: int) -> Instance:
    rank = np.arange(1, choices + 1)
    decay = random.uniform(0.3, 1.5, numel.shape)
    return numel * spread * rank**-decay, np.ceil(8 * np.sqrt(numel) * rank)


def _quantize(random: np.random.Generator, layers: int, choices: int) -> Instance:
    return _quantized(_sizes(random, layers), _spread(random, layers), choices)


def _lowrank(random: np.random.Generator, layers: int, choices: int) -> Instance:
    return _low_rank(random, _sizes(random, layers), _spread(random, layers), choices)


def _mixed(random: np.random.Generator, layers: int, choices: int) -> Instance:
    numel, spread = _sizes(random, layers), _spread(random, layers)
    parts = _quantized(numel, spread, choices // 2), _low_rank(random, numel, spread, choices - choices // 2)
    return np.hstack([parts[0][0], parts[1][0]]), np.hstack([parts[0][1], parts[1][1]])


def _equal(random: np.random.Generator, layers: int, choices: int) -> Instance:
    return _quantized(np.full((layers, 1), 1e5), np.ones((layers, 1)), choices)


def _correlated(random: np.random.Generator, layers: int, choices: int) -> Instance:
    numel = _sizes(random, layers)
    costs = random.uniform(0.05, 1, (layers, choices))
    return numel * (1 - 0.9 * costs + 0.05 * random.uniform(size=costs.shape)), np.ceil(numel * costs)


def _subset_sum(random: np.random.Generator, layers: int, choices: int) -> Instance:
    costs = np.floor(random.uniform(0, 1000, (layers, choices)))
    return 1000 - costs, costs


_KINDS: dict[str, Callable[[np.random.Generator, int, int], Instance]] = {
    "random": _uniform,
    "quantize": _quantize,
    "lowrank": _lowrank,
    "mixed": _mixed,
    "equal": _equal,
    "correlated": _correlated,
    "subset_sum": _subset_sum,
}


def instance(kind: str, layers: int, choices: int, seed: int, holes: float) -> Instance:
    """Errors and costs, each layer with at least its first choice."""
    random = np.random.default_rng(seed)
    errors, costs = _KINDS[kind](random, layers, choices)
    missing = random.uniform(size=errors.shape) < holes
    missing[:, 0] = False
    errors[missing] = np.nan
    return errors, costs


def budget(errors: Table, costs: Table, share: float) -> float:
    """Between the least error and that of the cheapest plan."""
    cheapest = np.where(np.isnan(errors), np.inf, costs).argmin(axis=1)
    least, most = np.nanmin(errors, axis=1).sum(), errors[np.arange(len(errors)), cheapest].sum()
    logarithmic = least > 0 and most > 100 * least
    return float(least * (most / least) ** share if logarithmic else least + share * (most - least))


def measure(kind: str, layers: int, choices: int, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: times and gaps over seeds and budgets, each solved `repeats` times, of which the median counts."""
    now = _CLOCKS[arguments.clock]
    times_ms, gaps = [], []
    for seed in range(arguments.seeds):
        errors, costs = instance(kind, layers, choices, seed, arguments.holes)
        for share in arguments.shares:
            within = budget(errors, costs, share)
            taken = []
            for _ in range(arguments.repeats):
                began = now()
                found = solve(errors, costs, within, method)
                taken.append((now() - began) * 1e3)
            times_ms.append(median(taken))
            gaps.append(found.gap)
    return {
        "kind": kind,
        "layers": layers,
        "choices": choices,
        "method": method,
        "ms_median": median(times_ms),
        "ms_max": max(times_ms),
        "gap_median": median(gaps),
        "gap_max": max(gaps),
        "proven_share": sum(gap == 0 for gap in gaps) / len(gaps),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(_KINDS), default=list(_KINDS))
    parser.add_argument("--layers", type=int, nargs="+", default=[200, 10_000])
    parser.add_argument("--choices", type=int, default=32)
    parser.add_argument("--methods", nargs="+", choices=("lagrangian", "dp"), default=["lagrangian"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--holes", type=float, default=0.05, help="share of the entries that are NaN")
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="thread")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(words)
    rows = [
        measure(kind, layers, arguments.choices, method, arguments)
        for layers in arguments.layers
        for kind in arguments.kinds
        for method in arguments.methods
    ]
    report.print_table(rows, _COLUMNS, title="one core")
    if arguments.json:
        report.write_json(arguments.json, settings=vars(arguments), rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
