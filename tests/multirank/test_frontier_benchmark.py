"""The frontier benchmark end to end: ranks train, what died is told, what is done is kept, no process stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import eventually

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "frontier.py"
STARTED, FOUR_BITS = 5, "quantize(bits=4, block=512)"


def command(folder: Path, *words: str) -> list[str]:
    fixed = ["--model", "digits", "--world-size", "2", "--seeds", "3", "--out", str(folder)]
    return [sys.executable, str(SCRIPT), *fixed, *words]


def kept_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def members(group: int) -> int:
    """Processes of a process group that are more than an entry waiting to be read."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found += int(its_group) == group and state != "Z"
    return found


def test_runs_train_die_and_are_taken_again(tmp_path: Path) -> None:
    # Fits no layer, which is known once the model is.
    lost = tmp_path / "lost.yaml"
    lost.write_text('layers: {"no_such_layer.*": "quantize(bits=8)"}\n')
    words = ["--steps", "6", "--warmup-steps", "2", "--runs", "dense", FOUR_BITS, f"lost={lost}", "--resume"]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    done = subprocess.run(
        [*command(tmp_path / "out", *words), "--json", str(first)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(first.read_text())
    assert list(report) == ["command", "commit", "versions", "settings", "rows"]
    assert report["settings"]["train"]["steps"] == 6
    dense, four_bits, dead = report["rows"]
    assert [row["run"] for row in report["rows"]] == ["dense", FOUR_BITS, "lost"]
    assert dense["replicas_equal"] is four_bits["replicas_equal"] is True
    # With two ranks a ring sends each byte once.
    assert dense["by_seed"]["3"]["dense_bytes_per_step"] == 4 * dense["parameters"]
    assert dense["ratio"] == dense["whole_run_ratio"] == 1.0
    assert four_bits["plan"]["side2.conv2.weight"] == FOUR_BITS
    assert 6.0 < four_bits["ratio"] < 8.0
    # Two of six steps were dense.
    assert four_bits["whole_run_ratio"] == pytest.approx(6 / (2 + 4 / four_bits["ratio"]), rel=0.01)
    assert four_bits["val_loss"] != dense["val_loss"]
    assert four_bits["by_seed"]["3"]["validation"][-1]["step"] == 6
    assert "no_such_layer" in dead["died"]["3"]
    assert dead["val_loss"] is None
    assert "lost, seed 3 died" in done.stdout
    curves = {kept["job"]["run"]: kept.get("train_loss_curve") for kept in kept_in(tmp_path / "out")}
    # The same weights and data to begin with.
    assert curves["dense"][0] == curves[FOUR_BITS][0]
    assert curves["dense"][-1] != curves[FOUR_BITS][-1]
    assert (tmp_path / "out" / "digits.png").read_bytes().startswith(b"\x89PNG")

    again = subprocess.run(
        [*command(tmp_path / "out", *words[:-2], "--resume"), "--json", str(second)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    # Trained again, the times would differ.
    assert json.loads(second.read_text())["rows"] == [dense, four_bits]

    third = tmp_path / "third.json"
    taken = subprocess.run(
        [*command(tmp_path / "fresh", *words[:-1], "--known", str(first), "--summarise"), "--json", str(third)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    assert json.loads(third.read_text())["rows"] == [dense, four_bits]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_stays_behind(tmp_path: Path, number: signal.Signals) -> None:
    words = command(tmp_path, "--steps", "100000", "--runs", "dense")
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        # The script, its tracker of resources, the server that forks, two ranks.
        assert eventually(lambda: members(running.pid) >= STARTED, 60.0)
        running.send_signal(number)
        _, said = running.communicate(timeout=60.0)
        assert eventually(lambda: members(running.pid) == 0)
    finally:
        running.kill()
    if number != signal.SIGKILL:
        assert running.returncode == 130
        assert "--resume goes on" in said
        assert not list(tmp_path.glob("*.json"))
