"""The paper's claims in small: what is there is not run again, what died has no figure, each row says its command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import claims
import report


def proof_row(method: str, seconds: float | None, error: str | None = None) -> dict[str, Any]:
    return {
        "method": method, "survived": error is None, "error": error, "seconds_to_target": seconds,
        "final_loss": None if error else 2.5, "target_loss": 2.4,
    }  # fmt: skip


def training(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"hosts": 4, "rate": "100mbit", "rows": list(rows)}]


def frontier_row(run: str, ratio: float, gap: float, **died: str) -> dict[str, Any]:
    return {"run": run, "ratio": ratio, "val_gap": gap, "died": died}


DENSE, BF16 = proof_row("dense", 250.0), proof_row("bf16", 140.0)
FRONTIER = [
    frontier_row("dense", 1.0, 0.0), frontier_row("lowrank/rank-8", 40.0, 0.06),
    frontier_row("solver/alpha-1", 50.0, 0.07), frontier_row("accordion/alone", 50.0, 0.1),
    frontier_row("accordion/with-solver", 75.0, 0.08),
]  # fmt: skip
OVERHEAD = [
    {"run": "solver", "time_overhead": 0.004, "cpu_overhead": 0.003, "slowest": 1.3},
    {"run": "replayed", "slowest": 1.2},
]
FIGURES = {"training": training(DENSE, BF16, proof_row("lgreco", 50.0)), "bytes": FRONTIER, "solver": OVERHEAD}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with parts that write these rows, or, for None, die; returns status, claims and what ran."""

    def run_all(figures: dict[str, Any], *words: str) -> tuple[int, list[dict[str, Any]], list[str]]:
        ran = []

        def run(part: claims.Part) -> int:
            ran.append(part.name)
            if figures[part.name] is None:
                return 3
            monkeypatch.setattr(report, "command", lambda: part.command)
            report.write_json(part.path, settings={}, rows=figures[part.name])
            return 0

        monkeypatch.setattr(claims.Part, "run", run)
        path = tmp_path / "claims.json"
        monkeypatch.setattr(sys, "argv", ["claims.py", "--json", str(path), *words])
        status = claims.main()
        return status, json.loads(path.read_text())["rows"], ran

    return run_all


def test_each_claim_has_its_figure_and_the_command_that_gives_it_again(call: Any) -> None:
    status, rows, ran = call(FIGURES)
    assert (status, ran) == (0, ["training", "bytes", "solver"])
    figures = {row["claim"]: row["figure"] for row in rows}
    assert figures == {
        "faster training": pytest.approx(2.8), "compression against uniform": pytest.approx(1.25),
        "gain on top of Accordion": pytest.approx(1.5), "overhead of tables and solver": 0.004,
    }  # fmt: skip
    training_row, uniform, *_ = rows
    assert training_row["measured here"].startswith("2.80 times faster than bf16, 5.00 than dense: to its loss in 50 s")
    assert "validation loss +7.0% against +6.0% of dense's" in uniform["measured here"]
    assert training_row["command of that part"].startswith("python benchmarks/proof.py --hosts 4")
    assert {"commit", "versions", "asked", "the paper's"} <= set(training_row)


def test_what_is_there_is_not_run_again_unless_its_command_changes(call: Any) -> None:
    call(FIGURES)
    assert call(FIGURES)[2] == []
    assert call(FIGURES, "--with", "training=--passes 32")[2] == ["training"]
    assert call(FIGURES, "--fresh")[2] == ["training", "bytes", "solver"]


@pytest.mark.parametrize(
    ("part", "rows", "words"),
    [
        ("solver", None, "died: its command ended with status 3"),
        ("training", training(DENSE, BF16, proof_row("lgreco", None, "rank 1 died")), "lgreco died: rank 1 died"),
        ("training", training(DENSE, proof_row("bf16", None, "killed"), proof_row("lgreco", 50.0)), "bf16 died"),
        ("training", training(DENSE, BF16, proof_row("lgreco", None)), "did not reach dense's loss: 2.5000 of 2.4000"),
        ("training", training(DENSE, BF16), "lgreco was left out"),
        ("bytes", [*FRONTIER[:-1], frontier_row("accordion/with-solver", 75.0, 0.0, **{"1": "NaN"})],
         "accordion/with-solver, seed 1 died: NaN"),
    ],
)  # fmt: skip
def test_what_died_has_no_figure_and_is_tried_again(call: Any, part: str, rows: Any, words: str) -> None:
    status, written, _ = call({**FIGURES, part: rows})
    assert status == 1
    lost = [row for row in written if row["figure"] is None]
    assert len(lost) == 1
    assert words in lost[0]["measured here"]
    status, written, ran = call(FIGURES)
    assert (status, ran) == (0, [part])
    assert all(row["figure"] is not None for row in written)


def test_parts_may_be_left_out(call: Any) -> None:
    status, rows, ran = call(FIGURES, "--parts", "solver")
    assert (status, ran, len(rows)) == (0, ["solver"], 1)


def test_words_for_no_part_are_refused() -> None:
    with pytest.raises(ValueError, match="--with must be PART=WORDS with a part of training, bytes, solver, got 'x=y'"):
        claims.parts_of(Path("claims.json"), ["solver"], ["x=y"])


def test_the_parts_commands_are_what_their_benchmarks_take() -> None:
    import frontier
    import proof

    for name, module in (("training", proof), ("bytes", frontier)):
        (part,) = claims.parts_of(Path("claims.json"), [name], [])
        module._parser().parse_args(shlex.split(part.command)[2:])


def test_a_command_under_torchrun_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(Path(report.__file__).with_name("overhead.py")), "--json", "a b.json"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert report.command() == "torchrun --standalone --nproc-per-node 2 benchmarks/overhead.py --json 'a b.json'"
