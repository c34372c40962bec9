"""The solver's benchmark: each kind of instance can be solved, and a row says what was asked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KINDS = ["random", "quantize", "lowrank", "mixed", "equal", "correlated", "subset_sum"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, not under the name `solver`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("solver_benchmark", BENCHMARKS / "solver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_instances_have_holes_but_no_empty_layer(benchmark: ModuleType, kind: str) -> None:
    errors, costs = benchmark.instance(kind, 40, 8, seed=3, holes=0.5)
    assert errors.shape == costs.shape == (40, 8)
    assert 50 < np.isnan(errors).sum() < 250
    assert np.isfinite(errors[:, 0]).all()
    assert np.isfinite(costs).all()
    again, _ = benchmark.instance(kind, 40, 8, seed=3, holes=0.5)
    assert np.array_equal(errors, again, equal_nan=True)


def test_the_report_has_a_row_for_each_kind_size_and_method(benchmark: ModuleType, tmp_path: Path) -> None:
    words = "--layers 5 20 --choices 4 --seeds 1 --repeats 1 --shares 0.5 --methods lagrangian dp --json"
    assert benchmark.main([*words.split(), str(tmp_path / "solver.json")]) == 0
    rows = json.loads((tmp_path / "solver.json").read_text())["rows"]
    assert [(row["layers"], row["kind"], row["method"]) for row in rows] == [
        (layers, kind, method) for layers in (5, 20) for kind in KINDS for method in ("lagrangian", "dp")
    ]
    assert all(row["ms_median"] > 0 and row["gap_max"] >= 0 for row in rows)
