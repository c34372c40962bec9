"""The benchmark of pruning in real training goes on where it stopped, and only with rows of the same settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import pruning_training


def test_rows_of_the_same_settings_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, float, int]] = []

    def run(arguments: Any, kind: str, criterion: str | None, sparsity: float, seed: int) -> dict[str, Any]:
        trained.append((kind, sparsity, seed))
        row = {"kind": kind, "criterion": criterion, "sparsity": sparsity, "seed": seed}
        return {**row, "left": 1, "val_loss": 0.5, "val_accuracy": 0.5}

    monkeypatch.setattr(pruning_training, "run", run)
    words = ["--levels", "0.5", "--criteria", "--json", str(tmp_path / "rows.json")]
    assert pruning_training.main([*words, "--seeds", "0"]) == 0
    assert trained == [("dense", 0.0, 0), ("sparse", 0.5, 0), ("small", 0.5, 0)]
    trained.clear()
    assert pruning_training.main([*words, "--seeds", "0", "1"]) == 0
    assert trained == [("dense", 0.0, 1), ("sparse", 0.5, 1), ("small", 0.5, 1)]
    trained.clear()
    assert pruning_training.main([*words, "--seeds", "0", "--steps", "7"]) == 0
    assert len(trained) == 3
