"""Figures of the proof suite from made-up blocks: time to a target, what died, the claims."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import proof
import proof_figure
import proof_rows
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
    (claim,) = proof_rows.claims_of(list(rows.values()))
    assert claim == "uniform: target loss 2.00 times as fast as the better of dense and bf16"
    picture = tmp_path / "proof.png"
    proof_figure.draw([{"hosts": 2, "rate": "1gbit", "rows": list(rows.values())}], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


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


def test_an_interrupted_proof_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    assert proof._finished(path, {"seed": 0}) == []
    path.write_text(json.dumps({"settings": {"seed": 0}, "rows": [{"hosts": 2, "rate": "1gbit", "rows": []}]}))
    assert len(proof._finished(path, {"seed": 0})) == 1
    assert proof._finished(path, {"seed": 1}) == []
