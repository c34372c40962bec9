"""Records: what is written comes back, cut lines, resumed runs, full disks, TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic_run import CHOICES, error_table, gpt_layers, write_run

from lgreco import scalars
from lgreco.choice import parse
from lgreco.layer import LayerInfo
from lgreco.plan import Plan, PlannedLayer
from lgreco.record import Note, Realised, Recorder, Solve, Start, Steps, find, read
from lgreco.record_kinds import Forecast, Kind, from_dict

LAYERS = (LayerInfo("w", (8, 8), "fp32"), LayerInfo("b", (8,), "fp32"))
START = Start(0, LAYERS, CHOICES[:3], {"seed": 0, "layers": {"*": "dense"}}, 4, {"torch": "2.15"})
SOLVE = Solve(
    step=10,
    effective_step=12,
    budget=0.5,
    predicted_error=0.4,
    reference="1.0 x lowrank(rank=8, factors=int8)",
    plan={"w": CHOICES[1], "b": CHOICES[0]},
    changed=1,
    wire_bytes=100.0,
    dense_bytes=400.0,
    method="dp",
    gap=0.01,
    solve_ms=3.0,
    measure_ms=4.0,
    layer_bytes={"w": 60.0, "b": 40.0},
    layer_errors={"w": 0.4, "b": 0.0},
)


def record_run(path: Path, begin: int, end: int, **steps: Any) -> None:
    with Recorder(path, every=1) as recorder:
        if begin:
            recorder.resume(begin)
        recorder.start(START)
        for step in range(begin + 1, end + 1):
            recorder.steps(step, wire_bytes=float(100 + begin), **steps)


numbers = st.floats(allow_nan=False)
named = st.dictionaries(st.text(), numbers, max_size=3)
kinds = st.one_of(
    st.just(START),
    st.builds(dataclasses.replace, st.just(SOLVE), step=st.integers(0), budget=numbers, layer_errors=named),
    st.builds(Steps, st.integers(0), st.integers(1), numbers, loss=st.none() | numbers),
    st.builds(Realised, st.integers(0), named, named),
    st.builds(Note, st.integers(0), st.text()),
)


@given(kinds)
@example(Steps(1, 1, -math.inf, loss=math.inf))
@example(Forecast(3, "bf16", 1e8, 1.0, exposed_ms=2.5, text="who averages"))
def test_every_kind_survives_its_line(record: Kind) -> None:
    line = json.dumps(record.to_dict(), allow_nan=False)
    assert from_dict(json.loads(line)) == record


def test_a_loss_that_is_no_number_is_kept(tmp_path: Path) -> None:
    record_run(tmp_path / "record.jsonl", 0, 1, loss=math.nan)
    loss = read(tmp_path / "record.jsonl").steps[0].loss
    assert loss is not None
    assert math.isnan(loss)


def test_records_come_back_by_kind_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    with Recorder(path, every=2) as recorder:
        recorder.note(0, "before the layers are known")
        assert not path.exists()
        recorder.start(START)
        recorder.solve(SOLVE)
        assert len(path.read_text().splitlines()) == 3, "each line is there when its method returns"
        for step in (11, 12, 13):
            recorder.steps(step, wire_bytes=step, step_ms=2.0 * step, loss=None if step == 11 else 5.0)
        recorder.realised(Realised(13, {"w": 4.0}, {"w": 9.0}))
    record = read(path)
    assert record.start == START
    assert record.solves == (SOLVE,)
    assert record.steps == (Steps(12, 2, 11.5, step_ms=23.0, loss=5.0),), "means of what is known, a window at a time"
    assert record.notes == (Note(0, "before the layers are known"),)
    assert record.realised[0].totals() == (4.0, 9.0)
    assert record.realised[0].totals(dataclasses.replace(SOLVE, norm="l2", layer_weights={})) == (2.0, 3.0)
    weighted = dataclasses.replace(SOLVE, norm="adam", layer_weights=dict.fromkeys(record.realised[0].predicted, 2.0))
    assert record.realised[0].totals(weighted) == (8.0, 18.0)
    assert record.last_step == 13
    assert record.start.dense_bytes == 2 * 3 * 72 * 4 / 4


def test_a_record_of_a_solution_follows_from_its_table() -> None:
    table = error_table(20, layers=gpt_layers(1)[:4])
    columns = [13, 13, 0, 0]
    chosen = [(layer, table.choices[column]) for layer, column in zip(table.layers, columns, strict=True)]
    small = LayerInfo("small", (4,), "fp32")
    plan = Plan([*(PlannedLayer(layer, choice, "") for layer, choice in chosen), PlannedLayer(small, CHOICES[0], "")])
    rest = {
        name: getattr(SOLVE, name)
        for name in ("effective_step", "budget", "predicted_error", "reference", "method", "gap")
    }
    times = {"solve_ms": 1.0, "measure_ms": 2.0}
    solve = Solve.of(table, columns, plan, None, other_bytes=24.0, **rest, **times)
    assert solve.changed == 5
    assert Solve.of(table, columns, plan, plan, **rest, **times).changed == 0
    assert solve.wire_bytes == pytest.approx(sum(table.costs[row, column] for row, column in enumerate(columns)) + 24)
    assert list(solve.layer_errors.values()) == [table.squared_errors[row, c] for row, c in enumerate(columns)]
    assert solve.dense_bytes == 1.5 * sum(planned.layer.dense_bytes for planned in plan.planned)


def test_a_last_line_that_is_cut_anywhere_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record_run(path, 0, 3)
    content = path.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(content)):
        path.write_bytes(content[:size])
        assert [record.step for record in read(path).steps] == [1, 2]
    path.write_bytes(content)
    assert [record.step for record in read(path).steps] == [1, 2, 3]


def start_line(**changed: object) -> bytes:
    """A start's line with some fields changed."""
    fields = {"step": 0, "layers": [], "choices": [], "config": {}, "world_size": 2}
    return json.dumps({"kind": "start", **fields, **changed}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a record begins with a line of kind start, got 0 bytes without a whole line"),
        (b'{"kind": "note"', r"got 15 bytes without a whole line"),
        (b'{"kind": "note", "step": 1, "text": "x"}\n', r"a record begins with a line of kind start, got note"),
        (b"\x00\xff\n", r"line 1: no record of a run: "),
        (b'{"step": 1, "loss": 2.0}\n', r"line 1: no record of a run: kind must be one of start, solve.*, got None"),
        (b"[1]\n", r"kind must be one of start, .*, got \[1\]"),
        (b"[" * 100_000 + b"\n", r"line 1: no record"),
        (b'{"kind": "note", "step": 1.5, "text": "x"}\n', r"note: step: .*valid integer, got 1\.5"),
        (b'{"kind": "note", "step": true, "text": "x"}\n', r"note: step: .*valid integer, got True"),
        (b'{"kind": "note", "step": 1, "text": 3}\n', r"note: text: .*valid string, got 3"),
        (b'{"kind": "note", "step": 1, "text": "", "txt": "x"}\n', r"note: txt: Unexpected .*, got 'x'"),
        (b'{"kind": "note", "step": 1}\n', r"note: text is missing"),
        (
            b'{"kind": "realised", "step": 1, "predicted": [], "realised": {}}\n',
            r"realised: predicted: .*valid \w+, got \[\]",
        ),
        (
            b'{"kind": "realised", "step": 1, "predicted": {"w": "1"}, "realised": {}}\n',
            r"realised: predicted\.w: .*valid number, got '1'",
        ),
        (start_line(lgreco_record=2), r"start: lgreco_record: Input should be 1, got 2"),
        (
            start_line(layers=[["w", 3, "fp32"]]),
            r"start: layers\.0: must be \[name, shape, dtype\], got",
        ),
        (start_line(choices=["dense(bits=3)"]), r"dense has no parameter 'bits'"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "record.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "record.jsonl")


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record_run(path, 0, 3)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], lines[2][:-4], *lines[3:]]))
    with pytest.raises(ValueError, match=r"record\.jsonl, line 3: no record of a run"):
        read(path)


@pytest.mark.parametrize("cut", [0, 5])
def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "record.jsonl"
    record_run(path, 0, 6)
    path.write_bytes(path.read_bytes()[: -cut or None])
    record_run(path, 4, 7)
    record = read(path)
    assert [(steps.step, steps.wire_bytes) for steps in record.steps] == [
        *((step, 100.0) for step in (1, 2, 3, 4)),
        *((step, 104.0) for step in (5, 6, 7)),
    ]
    assert [each.step for each in record.records if isinstance(each, Start)] == [0, 4]
    record_run(path, 3, 4)
    assert [steps.wire_bytes for steps in read(path).steps] == [100.0] * 3 + [103.0]
    assert [file.name for file in tmp_path.iterdir()] == ["record.jsonl"]


def test_a_run_may_learn_after_its_start_that_it_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record_run(path, 0, 6)
    with Recorder(path, every=1) as recorder:
        recorder.start(START)
        recorder.resume(2)
        recorder.steps(3, wire_bytes=1.0)
        recorder.steps(4, wire_bytes=1.0)
        recorder.resume(3)  # a checkpoint loaded in mid-run
        recorder.steps(4, wire_bytes=2.0)
    assert [(steps.step, steps.wire_bytes) for steps in read(path).steps] == [(1, 100), (2, 100), (3, 1), (4, 2)]
    assert read(path).start.step == 3


def test_a_new_run_sets_an_old_record_aside(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record_run(path, 0, 6)
    recorder = Recorder(path)
    recorder.start(START)
    assert len(read(path).steps) == 6, "nothing happens to it before there is something new to say"
    recorder.close()
    recorder.close()
    recorder.note(1, "too late")
    assert read(path).records == (START,)
    assert len(read(tmp_path / "record.jsonl.old").steps) == 6


def test_ranks_without_a_path_record_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Recorder(None, tensorboard=tmp_path / "tb") as recorder:
        recorder.start(START)
        recorder.solve(SOLVE)
        recorder.steps(1, wire_bytes=1.0)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^every must be a number of steps from 1, got 0$"):
        Recorder(tmp_path / "record.jsonl", every=0)
    with pytest.raises(ValueError, match=r"^must be the path of a file, got .*, which is a folder$"):
        Recorder(tmp_path)


def test_a_full_disk_costs_lines_and_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    recorder = Recorder(path)
    recorder.start(START)
    recorder.note(1, "there is room")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))  # the next line is cut after ten bytes
    try:
        with pytest.warns(RuntimeWarning, match=r"cannot write .*record\.jsonl \(.*\); lines are left out"):
            recorder.note(2, "there is none")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recorder.note(3, "there is none")
        assert path.read_bytes() == before, "no half line stays"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.note(4, "there is room again")
    recorder.close()
    assert [note.step for note in read(path).notes] == [1, 4]


def test_a_disk_that_is_full_from_the_start_gives_a_record_once_it_is_not(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record.jsonl")
    recorder.start(START)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.warns(RuntimeWarning, match="cannot write"):
            recorder.note(1, "lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.note(2, "kept")
    recorder.close()
    assert [type(record) for record in read(tmp_path / "record.jsonl").records] == [Start, Note]


def test_a_folder_that_goes_away_costs_lines_and_one_warning(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recorder = Recorder(folder / "record.jsonl")
    recorder.start(START)
    folder.rmdir()
    with pytest.warns(RuntimeWarning, match="cannot write"):
        recorder.note(1, "lost")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.note(2, "lost")
        recorder.close()


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with Recorder(path) as recorder:
        recorder.start(START)
        threads = [
            threading.Thread(target=lambda: [recorder.note(step, "x" * 3000) for step in range(50)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read(path).notes) == 200


def test_a_record_is_found_in_its_folder_or_below(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / "record.jsonl"
    record_run(path, 0, 1)
    assert find(path) == find(path.parent) == find(tmp_path) == path
    record_run(tmp_path / "runs" / "two" / "record.jsonl", 0, 1)
    with pytest.raises(ValueError, match=r"holds 2 records, name one: .*one.record\.jsonl, .*two.record\.jsonl"):
        find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no record\.jsonl"):
        find(tmp_path / "empty")


class Writer:
    """Stands in for SummaryWriter; a value below 0 meets a full disk."""

    def __init__(self, folder: str) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.open = True
        written[folder] = self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Keeps it."""
        if value < 0:
            raise OSError("no space left on device")
        self.scalars.append((name, value, step))

    def close(self) -> None:
        """Notes it."""
        self.open = False


written: dict[str, Writer] = {}


def test_tensorboard_gets_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    with Recorder(tmp_path / "record.jsonl", every=1, tensorboard=tmp_path / "tb") as recorder:
        recorder.start(START)
        recorder.solve(SOLVE)
        recorder.steps(11, wire_bytes=43.2, step_ms=5.0)
        recorder.realised(Realised(12, {"w": 4.0}, {"w": 9.0}))
        recorder.note(13, "has no curve")
        writer = written[str(tmp_path / "tb")]
        assert {name: (value, step) for name, value, step in writer.scalars} == {
            "lgreco/error/budget": (0.5, 10),
            "lgreco/error/predicted": (0.4, 10),
            "lgreco/bytes/predicted": (100.0, 10),
            "lgreco/plan/changed_layers": (1.0, 10),
            "lgreco/plan/gap": (0.01, 10),
            "lgreco/share/quantize": (0.6, 10),
            "lgreco/share/dense": (0.4, 10),
            "lgreco/bytes/sent": (43.2, 11),
            "lgreco/bytes/ratio": (pytest.approx(10.0), 11),
            "lgreco/ms/step": (5.0, 11),
            "lgreco/error/realised": (9.0, 12),
        }
        with pytest.warns(RuntimeWarning, match=r"cannot write TensorBoard's scalars \(no space"):
            recorder.steps(14, wire_bytes=-1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recorder.steps(15, wire_bytes=-1.0)
    assert not writer.open
    assert len(read(tmp_path / "record.jsonl").steps) == 3


def test_tensorboard_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"cannot be imported \(.*\); pip install tensorboard$"):
        Recorder(tmp_path / "record.jsonl", tensorboard=tmp_path / "tb")


def test_bytes_of_a_plan_by_family() -> None:
    assert scalars.family_bytes(SOLVE) == {"quantize": 60.0, "dense": 40.0}


def test_a_whole_run_is_recorded_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_run(tmp_path / "record.jsonl", solves=2)
    record = read(tmp_path / "record.jsonl")
    assert (len(record.solves), len(record.realised)) == (2, 1)
    assert len(record.steps) == 20
    assert len({parse(str(choice)) for choice in record.solves[-1].plan.values()}) > 3
