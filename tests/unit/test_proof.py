"""Figures of the proof suite from made-up blocks: time to a target, what died, the claims."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import proof
import proof_figure
import proof_pairs
import proof_rows
import report
from step_turns import Block, Measured, Variant


def measured(
    method: str, losses: list[float | None], ms: float = 500.0, wire_bytes: float = 100.0, error: str | None = None
) -> Measured:
    """Two hosts, two passes a block; the second host is the slower one in the first pass, the first in the second."""
    blocks = [
        [
            Block([ms / 2, ms], 10.0, 200.0, wire_bytes, loss),
            Block([ms, ms / 2], 30.0, 400.0, wire_bytes, None if loss is None else loss + 0.2),
        ]
        for loss in losses
    ]
    return Measured(Variant(method, None if method == "compute_only" else 5.0), blocks, error)


def test_a_pass_takes_as_long_as_its_slowest_host_and_a_loss_is_the_mean_over_hosts() -> None:
    one = measured("dense", [4.0, 3.0])
    assert proof_rows.seconds_of(one) == pytest.approx(2.0)
    assert proof_rows.curve_of(one) == [(1.0, 2, pytest.approx(4.1)), (2.0, 4, pytest.approx(3.1))]


def test_the_target_is_denses_loss_after_its_passes() -> None:
    cell = [measured("dense", [4.0, 3.0, 2.0]), measured("bf16", [1.0, 1.0])]
    assert proof_rows.target_of(cell, 4) == pytest.approx(3.1)
    assert proof_rows.target_of([measured("dense", [4.0, 3.0], error="rank 1 died")], 4) is None


def test_time_to_the_target_lies_between_two_evaluations() -> None:
    curve = [(1.0, 2, 4.0), (2.0, 4, 3.0), (3.0, 6, 2.0)]
    assert proof_rows.seconds_to(curve, 2.5) == pytest.approx(2.5)
    assert proof_rows.seconds_to(curve, 5.0) == 1.0
    assert proof_rows.seconds_to(curve, 1.9) is None
    assert proof_rows.seconds_to([], 1.9) is None


def test_what_died_has_no_figures_and_wins_nothing(tmp_path: Path) -> None:
    cell = [
        measured("compute_only", [None, None], ms=250.0),
        measured("dense", [4.0, 3.0]),
        measured("bf16", [4.0, 3.0], ms=250.0),
        measured("powersgd", [1.0], ms=1.0, error="rank 1 died"),
        measured("uniform", [4.0, 3.0], ms=125.0, wire_bytes=10.0),
        measured("accumulate", [5.0, 4.0]),
    ]
    rows = {row["method"]: row for row in proof_rows.rows_of(cell, 3.1, tmp_path)}
    assert rows["dense"]["over_compute"] == pytest.approx(2.0)
    assert rows["uniform"]["times_faster_to_target"] == pytest.approx(4.0)
    assert rows["accumulate"]["seconds_to_target"] is None
    assert rows["compute_only"]["curve"] == []
    dead = rows["powersgd"]
    assert (dead["survived"], dead["error"]) == (False, "rank 1 died")
    figures = ("pass_ms_median", "cpu_ms", "wire_bytes", "final_loss", "seconds_to_target", "times_faster_to_target")
    assert all(dead[name] is None for name in figures)
    # Half of bf16's time, a quarter of dense's: the better of both counts.
    assert rows["uniform"]["against_best"] == {
        "rival": "bf16", "bucket_cap_mb": 5.0, "ratio": pytest.approx(0.5), "low": None, "high": None, "pairs": 1
    }  # fmt: skip
    assert dead["against_best"] is rows["compute_only"]["against_best"] is None
    (claim,) = proof_rows.claims_of(list(rows.values()))
    assert claim == "uniform: target loss 2.00 times as fast as the better of dense and bf16"
    picture = tmp_path / "proof.png"
    proof_figure.draw([{"hosts": 2, "rate": "1gbit", "rows": list(rows.values())}], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    width, height = size_of(picture)
    proof_figure.draw([{"hosts": 2, "rate": "1gbit", "rows": list(rows.values())}] * 9, picture)
    many_width, many_height = size_of(picture)
    assert many_width < 4 * width
    assert many_height == 3 * height


def size_of(png: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


def test_claims_compare_with_the_same_uniform_choice(tmp_path: Path) -> None:
    cell = [
        measured("dense", [4.0, 3.0]),
        measured("lowrank", [4.0, 3.0], wire_bytes=30.0),
        measured("lgreco", [4.0, 3.0], wire_bytes=10.0),
        measured("accordion", [4.0, 3.0], wire_bytes=5.0),
    ]
    claims = proof_rows.claims_of(proof_rows.rows_of(cell, 3.1, tmp_path))
    assert "lgreco against the same uniform choice: 3.00 times fewer bytes, final loss 3.1000 against 3.1000" in claims
    assert "accordion on top: 2.00 times fewer bytes, final loss 3.1000 against 3.1000" in claims


@pytest.mark.parametrize(
    ("methods", "caps", "message"),
    [
        (["dense", "magic"], [5.0], "a method must be one of .*, got 'magic'"),
        (["dense", "dense"], [5.0], "no method may be named twice"),
        (["bf16"], [5.0], "dense must be among the methods"),
        (["dense"], [0.0], "bucket caps must be above 0 MiB"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods: list[str], caps: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        proof.variants_of(methods, caps)


def test_dense_and_bf16_are_tried_at_every_cap() -> None:
    names = [variant.name for variant in proof.variants_of(["compute_only", "dense", "bf16", "lgreco"], [5.0, 1.0])]
    assert names == ["compute_only", "dense-5", "dense-1", "bf16-5", "bf16-1", "lgreco-5"]


def curve(*pass_s: float, passes: int = 8) -> list[list[float]]:
    """Of blocks whose passes take so long; the first one is left out of every comparison."""
    points, seconds = [], 0.0
    for block, each_s in enumerate((9.9, *pass_s), start=1):
        seconds += passes * each_s
        points.append([seconds, passes * block, 3.0])
    return points


def row(method: str, *pass_s: float) -> dict[str, Any]:
    return {"method": method, "bucket_cap_mb": 5.0, "curve": curve(*pass_s) if pass_s else []}


def test_a_ratio_is_of_blocks_of_the_same_round_and_its_interval_that_of_a_t_test() -> None:
    # A machine that gets slower and slower: blocks in pairs do not see it.
    rows = [row("auto", 0.9, 1.98, 2.7, 4.4), row("dense", 1.0, 2.0, 3.0, 4.0), row("bf16", 2.0, 4.0, 6.0, 8.0)]
    found = proof_pairs.against_best(rows[0], rows)
    assert found is not None
    assert (found["rival"], found["bucket_cap_mb"], found["pairs"]) == ("dense", 5.0, 4)
    logs = np.log([0.9, 0.99, 0.9, 1.1])
    assert found["ratio"] == pytest.approx(np.exp(logs.mean()))
    margin = 3.182446 * logs.std(ddof=1) / 2  # Student's t, 3 degrees of freedom, 97.5 %
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.exp([logs.mean() - margin, logs.mean() + margin])))


@pytest.mark.parametrize(
    ("own", "rival", "verdict"),
    [
        ((1.0, 1.01, 1.0), (1.0, 1.0, 1.0), "yes"),
        ((1.1, 1.11, 1.1), (1.0, 1.0, 1.0), "no"),
        ((0.9, 1.2, 1.0), (1.0, 1.0, 1.0), "not decided, it takes more blocks"),
        ((0.5,), (1.0,), "not decided, one pair of blocks has no interval"),
        ((), (1.0, 1.0), "not measured"),
        ((1.0, 1.0), (), "not measured"),
    ],
)
def test_not_slower_is_said_only_where_the_interval_says_so(
    own: tuple[float, ...], rival: tuple[float, ...], verdict: str
) -> None:
    rows = [row("auto", *own), row("accumulate", *rival)]
    assert proof_pairs.verdict(proof_pairs.against_best(rows[0], rows)) == verdict


def test_rivals_are_not_set_against_each_other() -> None:
    rows = [row("dense", 1.0, 1.0), row("bf16", 0.5, 0.5)]
    assert proof_pairs.against_best(rows[0], rows) is None


def finished(path: Path, **changed: Any) -> str:
    report.write_json(path, settings={"seed": 0}, rows=[{"hosts": 2, "rate": "1gbit", "rows": []}])
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps(content))
    return str(path)


def test_an_interrupted_proof_goes_on_only_with_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "proof.json"
    assert proof._finished(path, {"seed": 0}) == []
    finished(path)
    assert len(proof._finished(path, {"seed": 0})) == 1
    assert capsys.readouterr().err == ""
    assert proof._finished(path, {"seed": 1}) == []
    assert "other settings" in capsys.readouterr().err


def test_figures_of_another_commit_or_torch_are_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "proof.json"
    finished(path, commit="0123", versions={"torch": "2.11"})
    (cell,) = proof._finished(path, {"seed": 0})
    assert (cell["commit"], cell["versions"]) == ("0123", {"torch": "2.11"})
    said = capsys.readouterr().err
    assert "2 hosts, 1gbit were measured by commit 0123 (now " in said
    assert "torch 2.11 (now " in said


@pytest.mark.parametrize("content", ["", '{"command": "x", "rows', "[]", '{"settings": {"seed": 0}}', "\xff"])
def test_a_damaged_file_of_figures_is_measured_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "proof.json"
    path.write_text(content, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"proof\.json .*measured anew"):
        assert proof._finished(path, {"seed": 0}) == []
