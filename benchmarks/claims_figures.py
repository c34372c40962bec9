"""What the parts' figures say about each of the paper's claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]


class NotMeasured(Exception):
    """Why a claim has no figure."""


@dataclass(frozen=True)
class Figure:
    """What was measured: a number, None where there is none, and what is to be said of it."""

    value: float | None
    words: str


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims.

    Attributes:
        claim: in short.
        paper: what the paper has.
        asked: what lgreco set out to reach.
        part: that measures it, a key of `claims.PARTS`.
        figure: what that part's rows say; raises NotMeasured.
    """

    claim: str
    paper: str
    asked: str
    part: str
    figure: Callable[[Rows], Figure]


def _training(cells: Rows) -> Figure:
    """Of the first network."""
    cell = cells[0]
    rows = {row["method"]: row for row in cell["rows"]}
    own_s = _seconds(rows, "lgreco")
    rivals = {method: _seconds(rows, method) for method in ("dense", "bf16")}
    best = min(rivals, key=lambda method: rivals[method])
    return Figure(
        rivals[best] / own_s,
        f"{rivals[best] / own_s:.2f} times faster than {best}, {rivals['dense'] / own_s:.2f} than dense: to its loss "
        f"in {own_s:.0f} s, {cell['hosts']} hosts, {cell['rate']}",
    )


def _seconds(rows: Mapping[str, Mapping[str, Any]], method: str) -> float:
    row = rows.get(method)
    if row is None:
        raise NotMeasured(f"{method} was left out")
    if not row["survived"]:
        raise NotMeasured(f"{method} died: {row['error']}")
    if row["seconds_to_target"] is None:
        raise NotMeasured(f"{method} did not reach dense's loss: {row['final_loss']:.4f} of {row['target_loss']:.4f}")
    return float(row["seconds_to_target"])


def _fewer_bytes(plain: str, solved: str) -> Callable[[Rows], Figure]:
    """Bytes of one run of the frontier over those of another, and what both lose."""

    def figure(rows: Rows) -> Figure:
        by_run = {row["run"]: row for row in rows}
        for name in (plain, solved, "dense"):
            if name not in by_run:
                raise NotMeasured(f"{name} was left out")
            for seed, words in by_run[name]["died"].items():
                raise NotMeasured(f"{name}, seed {seed} died: {words}")
        before, after = by_run[plain], by_run[solved]
        times = after["ratio"] / before["ratio"]
        return Figure(
            times,
            f"{times:.2f} times fewer bytes ({after['ratio']:.1f} against {before['ratio']:.1f} times below dense), "
            f"validation loss {after['val_gap']:+.1%} against {before['val_gap']:+.1%} of dense's",
        )

    return figure


def _overhead(rows: Rows) -> Figure:
    solver, twin = rows
    return Figure(
        solver["time_overhead"],
        f"{solver['time_overhead']:+.2%} of the time, {solver['cpu_overhead']:+.2%} of the processor time; slowest "
        f"step {solver['slowest']:.2f} times the median, {twin['slowest']:.2f} without solver",
    )


CLAIMS = (
    Claim("faster training", "up to 2.5 times", "2.5 times at 4 hosts and 100 Mbit/s", "training", _training),
    Claim("compression against uniform", "up to 5 times", "2 times at no more loss", "bytes",
          _fewer_bytes("lowrank/rank-8", "solver/alpha-1")),
    Claim("gain on top of Accordion", "1.5 times", "1.5 times at no more loss", "bytes",
          _fewer_bytes("accordion/alone", "accordion/with-solver")),
    Claim("overhead of tables and solver", "under 1 %", "under 1 %", "solver", _overhead),
)  # fmt: skip
