"""The proof suite end to end: real training in one lab, one method that dies, and a second call that finds all done."""

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


@pytest.mark.skipif(bool(_refusal), reason=_refusal)
def test_methods_train_to_one_target_and_a_dead_one_is_no_win(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    text = tmp_path / "text.txt"
    text.write_text("all work and no play makes jack a dull boy\n" * 200)
    command = [sys.executable, str(ROOT / "benchmarks" / "proof.py"), "--hosts", "2", "--rates", "unshaped"]
    command += ["--width", "32", "--layers", "1", "--heads", "2", "--context", "16", "--batch", "2", "--windows", "8"]
    command += ["--passes", "8", "--block-passes", "4", "--text", str(text), "--json", str(path)]
    command += ["--interval", "6", "--window", "2", "--lag", "2", "--warmup-steps", "2"]
    # A plan that lgreco refuses: the method uniform dies as it attaches.
    command += ["--methods", "compute_only", "dense", "lgreco", "uniform", "--plan", "quantize(bits=9)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(path.read_text())["rows"]
    rows = {row["method"]: row for row in cell["rows"]}
    assert rows["dense"]["survived"], rows["dense"]["error"]
    assert rows["dense"]["seconds_to_target"] > 0
    assert rows["dense"]["final_loss"] < rows["dense"]["curve"][0][2]
    assert rows["lgreco"]["survived"], rows["lgreco"]["error"]
    assert rows["lgreco"]["solver_share"] is not None
    assert 0 < rows["lgreco"]["wire_bytes"] < rows["dense"]["wire_bytes"]
    assert rows["uniform"]["survived"] is False
    assert rows["uniform"]["pass_ms_median"] is None
    assert "bits must be 1..8, got 9" in rows["uniform"]["error"]
    assert "uniform died" in done.stdout
    assert path.with_suffix(".png").is_file()
    written = path.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert path.stat().st_mtime_ns == written
