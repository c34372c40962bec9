"""What benchmarks hand out: the keys of the JSON file, and rows in which no dead method can win."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import report  # noqa: E402
import step  # noqa: E402
from step_turns import Block, Measured, Variant  # noqa: E402

ROW_KEYS = {"method", "step_ms_median", "cpu_ms", "wire_bytes", "link_bytes", "survived", "error", "bucket_cap_mb"}


def block(step_ms: list[float], wire_bytes: float = 10.0) -> Block:
    return Block(step_ms=step_ms, cpu_ms=3.0, link_bytes=12.0, wire_bytes=wire_bytes)


def measured(method: str, cap_mb: float | None, step_ms: float, error: str | None = None) -> Measured:
    return Measured(Variant(method, cap_mb), [[block([step_ms] * 2), block([step_ms / 2] * 2)]], error)


def test_a_report_has_exactly_its_five_keys(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    report.write_json(path, settings={"hosts": 4}, rows=[{"method": "dense", "step_ms_median": None}])
    found = json.loads(path.read_text())
    assert list(found) == ["command", "commit", "versions", "settings", "rows"]
    assert found["settings"] == {"hosts": 4}
    assert found["rows"] == [{"method": "dense", "step_ms_median": None}]
    assert found["command"].startswith("python ")
    assert {"torch", "lgreco", "python", "kernel", "processor"} <= set(found["versions"])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_report_refuses_what_json_cannot_say(tmp_path: Path, figure: float) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_json(path, settings={}, rows=[{"step_ms_median": figure}])
    assert not path.exists()


def test_a_table_shows_what_is_unknown_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_table([{"method": "dense", "survived": False, "step_ms_median": None}],
                       ["method", "survived", "step_ms_median"])  # fmt: skip
    shown = capsys.readouterr().out
    assert "dense" in shown
    assert "no" in shown
    assert "-" in shown.splitlines()[3]


def test_the_slowest_host_makes_the_step() -> None:
    row = step.figures(Measured(Variant("dense", 5.0), [[block([1.0, 9.0, 2.0]), block([4.0, 3.0, 8.0])]]))
    assert row["step_ms_median"] == 8.0
    assert row["steps"] == 3
    assert row["survived"] is True
    assert set(row) >= ROW_KEYS


def test_wire_bytes_are_the_mean_over_hosts() -> None:
    row = step.figures(Measured(Variant("lgreco", 25.0), [[block([1.0], 10.0), block([1.0], 21.0)]]))
    assert row["wire_bytes"] == 16


def test_a_dead_method_has_no_figures() -> None:
    row = step.figures(measured("powersgd", 25.0, 1.0, error="rank 2 died"))
    assert row["survived"] is False
    assert row["error"] == "rank 2 died"
    assert all(row[key] is None for key in ("step_ms_median", "cpu_ms", "wire_bytes", "link_bytes"))


def test_each_method_has_one_row_at_its_best_living_cap() -> None:
    rows = step.rows_of(
        [
            measured("compute_only", None, 50.0),
            measured("dense", 1.0, 90.0),
            measured("dense", 5.0, 70.0),
            measured("dense", 25.0, 60.0, error="rank 0 died"),
            measured("powersgd", 25.0, 10.0, error="rank 3 died"),
            measured("lgreco", 25.0, 55.0),
        ]
    )
    assert [row["method"] for row in rows] == ["compute_only", "dense", "powersgd", "lgreco"]
    dense = rows[1]
    assert dense["bucket_cap_mb"] == 5.0
    assert dense["survived"] is True
    assert dense["over_compute_only"] == pytest.approx(1.4)
    assert [cap["bucket_cap_mb"] for cap in dense["by_cap"]] == [1.0, 5.0, 25.0]
    assert dense["by_cap"][2]["survived"] is False
    assert rows[2]["survived"] is False
    assert rows[2]["over_compute_only"] is None
    json.dumps(rows, allow_nan=False)


def test_the_methods_are_named_as_promised() -> None:
    assert step.METHODS == ("compute_only", "dense", "bf16", "powersgd", "lgreco")


def test_dense_and_bf16_are_tried_at_each_cap() -> None:
    variants = step.variants_of(step.METHODS, [1.0, 5.0, 25.0], [25.0])
    assert [variant.name for variant in variants] == [
        "compute_only", "dense-1", "dense-5", "dense-25", "bf16-1", "bf16-5", "bf16-25", "powersgd-25", "lgreco-25",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "caps_mb", "message"),
    [
        (["sparse"], [1.0], "a method must be one of compute_only.*got 'sparse'"),
        (["dense", "dense"], [1.0], "no method or cap may be named twice, got dense-1, dense-1"),
        (["dense"], [0.0], "a bucket cap must be above 0 MiB, got 0"),
    ],
)
def test_a_bad_choice_of_methods_is_refused(methods: list[str], caps_mb: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step.variants_of(methods, caps_mb, [25.0])


@pytest.mark.parametrize(
    ("words", "message"), [(["--hosts", "1"], "hosts must be at least 2, got 1"), (["--warmup", "0"], "warmup must be")]
)
def test_a_bad_command_line_is_refused_before_anything_starts(words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / "step.py"), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
