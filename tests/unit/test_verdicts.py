"""The advisor's verdicts against measurement: when one counts as right, and what is kept of an earlier run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from calibrations import calibration

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import report
import verdicts

from lgreco.advice import Advice, Option, Options
from lgreco.auto import Way
from lgreco.profile import Setup


def advice(bf16_s: float) -> Advice:
    seconds: dict[Way, float] = {"dense": 1.0, "bf16": bf16_s, "lgreco": 2.0}
    ways = [Option(way, step_s, 0.0, 1.0, measured=True, setup=Setup(way, 5.0)) for way, step_s in seconds.items()]
    return Advice(calibration(1e9), 10, Options(Option("compute", 0.5, 0.0), tuple(ways)))


def test_a_verdict_is_right_where_no_way_is_faster_by_more_than_a_twentieth() -> None:
    took_ms = {"dense at 5 MiB": 1000.0, "bf16 at 5 MiB": 700.0, "lgreco at 1 MiB": 690.0}
    right = verdicts._row("net", advice(0.7), {**took_ms, "advised": 700.0})
    assert (right["advised"], right["best_measured"], right["right"]) == ("bf16", "lgreco at 1 MiB", True)
    wrong = verdicts._row("net", advice(0.99), {**took_ms, "advised": 1000.0})
    assert (wrong["advised"], wrong["right"]) == ("dense", False)
    # A second is predicted for dense, for bf16 that takes 0.7, and for lgreco that takes 2.
    assert (right["predictions_right"], right["predictions_made"]) == (1, 3)
    assert verdicts.summary([right, wrong]).startswith("1 of 2 verdicts right, 3 of 6 predictions")


def test_what_is_there_stays_and_what_died_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "verdicts.json"
    row = verdicts._row("gpt", advice(0.7), {"bf16 at 5 MiB": 700.0, "advised": 700.0})
    kept = {"hosts": 2, "rate": "1gbit", **row}
    died = {"hosts": 2, "rate": "1gbit", "model": "digits", "error": "rank 1 has died"}
    report.write_json(file, settings={}, rows=[kept, died])
    asked: list[Any] = []

    def network(args: Any, hosts: int, rate: str, models: list[str]) -> list[dict[str, Any]]:
        asked.append((hosts, rate, models))
        return [{**kept, "model": model} for model in models]

    monkeypatch.setattr(verdicts, "_network", network)
    words = ["--hosts", "2", "--rates", "1gbit", "--models", "gpt", "digits", "--json", str(file)]
    assert verdicts.main(words) == 0
    assert asked == [(2, "1gbit", ["digits"])]
    assert [each["model"] for each in json.loads(file.read_text())["rows"]] == ["gpt", "digits"]
