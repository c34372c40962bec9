"""Projections: shapes of known models, closed forms, and predictions beside the lab's figures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from calibrations import calibration

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scale  # noqa: E402
import scale_models  # noqa: E402

from lgreco.cost_model import Line  # noqa: E402


@pytest.mark.parametrize(
    ("name", "numel", "gmacs"),
    [("resnet50", 25_557_032, 4.09), ("gpt2", 124_439_808, None), ("7b", 6_738_415_616, None)],
)
def test_models_have_their_published_sizes(name: str, numel: int, gmacs: float | None) -> None:
    model = scale_models.MODELS[name]()
    assert model.numel == numel
    if gmacs is not None:  # of a forward pass of one image
        assert sum(model.weights) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_gradients_come_in_reverse_within_two_thirds_of_a_pass() -> None:
    compute_s, ready_s = scale_models.gpt2_small().times(1e14)
    assert ready_s[0] == max(ready_s) == pytest.approx(2 / 3 * compute_s)
    assert ready_s == sorted(ready_s, reverse=True)


def test_latency_grows_with_the_turns_of_an_exchange() -> None:
    found = scale.scaled(calibration(1e6, latency_s=1e-3, world_size=2), 9, 5e6)
    assert found.exchange == Line(8e-3, 5e6)
    assert scale.scaled(calibration(), 100_000, 1.0).world_size == 4096


def arguments(**more: Any) -> argparse.Namespace:
    given = {"plan": "quantize(bits=4)", "tflops": 100.0, "ranks_per_node": 1, "inner_gbit": 2400.0, "cap_mb": 25.0}
    return argparse.Namespace(**{**given, **more})


def test_one_rank_a_node_makes_a_tree_flat() -> None:
    made = scale._without_latency(2)
    row = scale.project(scale_models.resnet50(), 8, 1.0, made, arguments())
    assert row["dense_tree_ms"] == pytest.approx(row["dense_ms"])
    # 7/8 of two copies of 102 MB over 1 Gbit/s, of which backward hides next to nothing.
    assert row["dense_ms"] == pytest.approx(2 * 7 / 8 * 102.2e6 * 8 / 1e9 * 1e3, rel=0.02)
    assert row["lgreco_ms"] < row["bf16_ms"] < row["dense_ms"]


def test_a_tree_helps_where_ranks_share_a_link() -> None:
    row = scale.project(scale_models.resnet50(), 8, 1.0, scale._without_latency(2), arguments(ranks_per_node=8))
    assert row["lgreco_tree_ms"] < row["lgreco_ms"] / 4
    assert row["dense_tree_ms"] == pytest.approx(row["dense_ms"], rel=0.2)


def test_a_fast_network_leaves_compute_alone() -> None:
    row = scale.project(scale_models.gpt2_small(), 2, 1e6, scale._without_latency(2), arguments())
    for way in ("dense", "bf16", "lgreco", "dense_tree"):
        assert row[f"{way}_ms"] == pytest.approx(row["compute_ms"], rel=1e-2)


def test_the_check_takes_steps_that_were_measured(tmp_path: Path) -> None:
    rows = scale.check(BENCHMARKS / "results" / "step-4hosts-100mbit.json", None)
    assert {row["method"] for row in rows} == {"dense", "lgreco"}
    dense = next(row for row in rows if row["method"] == "dense")
    assert dense["error"] == pytest.approx(dense["predicted_ms"] / dense["measured_ms"] - 1)
    assert abs(dense["error"]) < 0.1


def test_a_calibration_is_found_among_torchruns_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("a warning\n" + json.dumps(calibration().to_dict()) + "\n")
    assert scale.Calibration.from_dict(scale._last_json(path)) == calibration()
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="holds no line of JSON"):
        scale._last_json(path)
