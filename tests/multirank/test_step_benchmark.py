"""The step benchmark end to end: methods take turns in one lab, and one that dies takes nobody with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "launch"))

import lab  # noqa: E402

try:
    lab.namespace_command()
    _refusal = ""
except RuntimeError as error:
    _refusal = str(error)


def run_step(*words: str) -> subprocess.CompletedProcess[str]:
    tiny = ["--width", "32", "--layers", "1", "--heads", "2", "--context", "16", "--batch", "1"]
    turns = ["--steps", "2", "--block-steps", "1", "--warmup", "3"]
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--hosts", "2", *tiny, *turns, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(bool(_refusal), reason=_refusal)
def test_a_method_that_dies_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    # A plan that lgreco refuses, so that it dies while it is built.
    done = run_step("--rate", "unshaped", "--methods", "compute_only", "dense", "bf16", "lgreco", "--caps", "1", "25",
                    "--plan", "quantize(bits=9)", "--json", str(path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["compute_only", "dense", "bf16", "lgreco"]
    for method in ("compute_only", "dense", "bf16"):
        assert rows[method]["survived"] is True, rows[method]["error"]
        assert rows[method]["step_ms_median"] > 0
        assert rows[method]["steps"] == 2
    assert rows["compute_only"]["wire_bytes"] == 0
    # With two hosts a ring sends each byte once.
    numel = rows["dense"]["wire_bytes"] // 4
    assert rows["bf16"]["wire_bytes"] == 2 * numel
    assert rows["dense"]["link_bytes"] > rows["dense"]["wire_bytes"]
    assert rows["lgreco"]["survived"] is False
    assert rows["lgreco"]["step_ms_median"] is None
    assert "bits must be 1..8, got 9" in rows["lgreco"]["error"]
    assert "lgreco-25 died" in done.stdout


@pytest.mark.skipif(bool(_refusal), reason=_refusal)
def test_a_run_in_which_every_method_dies_fails() -> None:
    done = run_step("--rate", "unshaped", "--methods", "lgreco", "--plan", "quantize(bits=9)")
    assert done.returncode == 1


def test_a_rate_that_the_lab_refuses_ends_the_benchmark() -> None:
    done = run_step("--rate", "1gb")
    assert done.returncode == 1
    assert "rate must be a number with kbit, mbit or gbit" in done.stderr
