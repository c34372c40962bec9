"""Error tables: what they refuse, averages, order within a family, and their file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgreco.choice import parse
from lgreco.error_table import ErrorTable
from lgreco.family import in_order, scale_of, strength
from lgreco.layer import LayerInfo

NAN = float("nan")
CHOICES = tuple(parse(text) for text in ("dense", "quantize(bits=4)", "quantize(bits=2)", "lowrank(rank=4)"))
LAYERS = (LayerInfo("a.weight", (64, 64), "fp32"), LayerInfo("a.bias", (64,), "fp32"))


def table(**changes: Any) -> ErrorTable:
    fields: dict[str, Any] = {
        "layers": LAYERS,
        "choices": CHOICES,
        "squared_errors": [[0.0, 0.01, 0.2, 0.5], [0.0, 0.001, NAN, NAN]],
        "squared_norms": [1.0, 0.25],
        "costs": [[16384.0, 2100.0, 1100.0, 600.0], [256.0, 50.0, NAN, 7.0]],
        "world_size": 4,
        "step": 100,
    }
    return ErrorTable(**{**fields, **changes})


sizes = st.integers(0, 4)
positive = st.floats(0, 1e300, allow_subnormal=True)


@st.composite
def tables(draw: st.DrawFn) -> ErrorTable:
    names = draw(st.lists(st.text(min_size=1), unique=True, max_size=4))
    layers = tuple(LayerInfo(name, tuple(draw(st.lists(sizes, max_size=3))), "bf16") for name in names)
    columns = draw(st.integers(1, len(CHOICES)))
    row = st.tuples(positive, *[st.one_of(positive, st.just(NAN))] * (columns - 1))
    errors = np.array([draw(row) for _ in names]).reshape(len(names), columns)
    return ErrorTable(
        layers=layers,
        choices=CHOICES[:columns],
        squared_errors=errors,
        squared_norms=np.array([draw(positive) for _ in names]),
        costs=np.where(np.isnan(errors), errors, draw(positive)),
        world_size=draw(st.integers(1, 9)),
        step=draw(st.integers(0, 2**40)),
        tables=draw(st.integers(1, 9)),
    )


@given(tables())
def test_a_table_survives_its_file(tmp_path_factory: pytest.TempPathFactory, original: ErrorTable) -> None:
    path = tmp_path_factory.mktemp("tables") / "table.json"
    original.save(path)
    again = ErrorTable.load(path)
    for field in ("squared_errors", "squared_norms", "costs"):
        assert getattr(again, field).tobytes() == getattr(original, field).tobytes(), f"{field} differs in a bit"
    assert (again, hash(again), again.fingerprint()) == (original, hash(original), original.fingerprint())
    again.save(path.with_name("again.json"))
    assert path.with_name("again.json").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == ["again.json", "table.json"]


def test_tables_differ_by_every_field() -> None:
    others = [
        table(),
        table(layers=(LAYERS[0], LayerInfo("b.bias", (64,), "fp32"))),
        table(choices=(*CHOICES[:3], parse("lowrank(rank=5)"))),
        table(squared_errors=[[0.0, np.nextafter(0.01, 1), 0.2, 0.5], [0.0, 0.001, NAN, NAN]]),
        table(squared_norms=[1.0, 0.5]),
        table(costs=[[16384.0, 2100.0, 1100.0, 601.0], [256.0, 50.0, NAN, 7.0]]),
        table(world_size=3),
        table(step=101),
        table(tables=2),
    ]
    assert len({other.fingerprint() for other in others}) == len(others)
    assert len(set(others)) == len(others)
    assert table() == table(squared_errors=[[-0.0, 0.01, 0.2, 0.5], [0.0, 0.001, NAN, NAN]]), "a zero has no sign"


def test_nothing_of_a_table_can_be_changed() -> None:
    errors = np.array([[0.0, 0.01, 0.2, 0.5], [0.0, 0.001, NAN, NAN]])
    made = table(squared_errors=errors)
    errors[0, 0] = 7.0
    assert made.squared_errors[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        made.costs[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.step = 3  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 0}, r"^error table: world_size must be a whole number from 1, got 0$"),
        ({"step": -1}, r"step must be a whole number from 0, got -1"),
        ({"tables": True}, r"tables must be a whole number from 1, got True"),
        ({"layers": (LAYERS[0], LAYERS[0])}, r'each layer must be there once, got "a\.weight" twice'),
        ({"choices": (*CHOICES[:3], CHOICES[0])}, r'each choice must be there once, got "dense\(dtype=fp32\)" twice'),
        ({"squared_norms": [1.0]}, r"squared_norms must have the shape \(2,\), got \(1,\)"),
        ({"costs": [[1.0, 2.0]]}, r"costs must have the shape \(2, 4\), got \(1, 2\)"),
        ({"squared_norms": [1.0, NAN]}, r'squared norm of layer "a\.bias" must be finite, >= 0, got nan'),
        (
            {"squared_errors": [[0.0, 0.01, float("inf"), 0.5], [0.0, NAN, NAN, NAN]]},
            r'squared error of layer "a\.weight" under quantize\(bits=2, block=512\) must be finite, .*, got inf',
        ),
        (
            {"squared_errors": [[-1e-9, 0.01, 0.2, 0.5], [0.0, NAN, NAN, NAN]]},
            r'layer "a\.weight" under dense\(dtype=fp32\) must be finite, >= 0 \(NaN: not offered\), got -1e-09',
        ),
        ({"squared_errors": [[0.0] * 4, [NAN] * 4]}, r'layer "a\.bias" must be offered one choice at least, got none'),
        ({"costs": [[1.0, NAN, 1.0, 1.0], [1.0] * 4]}, r'cost of layer "a\.weight" under quantize.* >= 0, got nan'),
    ],
)
def test_what_is_no_table_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_uniform_plan_takes_what_is_nearest_where_its_choice_is_not_offered() -> None:
    assert table().uniform(CHOICES[2]) == (2, 1), "4 bits for 2"
    assert table().uniform(CHOICES[3]) == (3, 0)
    assert table().uniform(CHOICES[1]) == (1, 1)
    free = table(squared_errors=[[0.0, 0.0, 0.2, 0.5], [0.0, 0.0, NAN, NAN]])
    assert free.uniform(CHOICES[3]) == (3, 1), "else the most exact, of equal errors the cheapest"
    with pytest.raises(ValueError, match=r"^choice must be one of dense\(dtype=fp32\), .*, got lowrank\(rank=5, fac"):
        table().uniform(parse("lowrank(rank=5)"))


def test_an_average_counts_every_measurement_once() -> None:
    first, second = table(tables=3), table(squared_errors=[[4.0, 0.01, NAN, 0.5], [0.0, 0.001, NAN, 8.0]], step=200)
    mean = ErrorTable.averaged([first, second])
    assert mean.squared_errors[0].tolist() == pytest.approx([1.0, 0.01, 0.2, 0.5])
    assert mean.squared_errors[1, 3] == 8.0, "the mean over those that offer it"
    assert np.isnan(mean.squared_errors[1, 2])
    assert (mean.step, mean.tables) == (200, 4)
    assert ErrorTable.averaged([first]) == first


def test_an_exponential_average_keeps_its_share_of_the_old() -> None:
    newer = table(squared_norms=[3.0, 0.25], squared_errors=[[4.0, 0.01, NAN, 0.5], [0.0, 0.001, NAN, NAN]], step=200)
    mean = table().mean_with(newer, keep=0.75)
    assert mean.squared_norms.tolist() == [1.5, 0.25]
    assert mean.squared_errors[0].tolist() == pytest.approx([1.0, 0.01, 0.2, 0.5])
    assert mean.step == 200
    assert (table().mean_with(newer, keep=0.0).squared_errors[0, :2] == newer.squared_errors[0, :2]).all()
    with pytest.raises(ValueError, match=r"^keep must be from 0 to below 1, got 1\.5$"):
        table().mean_with(newer, keep=1.5)


def test_tables_of_different_things_have_no_average() -> None:
    with pytest.raises(ValueError, match=r"must agree in world_size, those of step 100 and 200 differ"):
        ErrorTable.averaged([table(), table(world_size=2, step=200)])
    with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
        ErrorTable.averaged([])


BITS = tuple(parse(f"quantize(bits={bits})") for bits in (3, 1, 8, 2))  # the order of columns does not count
MIXED = (*BITS, parse("lowrank(rank=2)"), parse("lowrank(rank=2, factors=fp32)"), parse("lowrank(rank=4)"))
rows = st.lists(st.one_of(st.floats(0, 1e6), st.just(NAN)), min_size=len(MIXED), max_size=len(MIXED))


@given(rows.filter(lambda row: not np.isnan(row).all()))
def test_monotone_orders_each_scale_and_moves_no_further_from_any_ordered_row(row: list[float]) -> None:
    noisy = table(layers=LAYERS[:1], choices=MIXED, squared_errors=[row], squared_norms=[1.0], costs=[[1.0] * 7])
    after = noisy.monotone().squared_errors[0]
    before = noisy.squared_errors[0]
    assert (np.isnan(after) == np.isnan(before)).all()
    assert noisy.monotone().monotone().squared_errors[0] == pytest.approx(after, nan_ok=True)
    assert after[5] == pytest.approx(before[5], nan_ok=True), "a scale of its own keeps its errors"
    for columns in ([1, 3, 0, 2], [4, 6]):  # most error first
        scale = after[columns][~np.isnan(after[columns])]
        was = before[columns][~np.isnan(before[columns])]
        assert (np.diff(scale) <= 1e-9 * (1 + scale[:-1])).all()
        assert scale.sum() == pytest.approx(was.sum())
        truth = np.sort(was)[::-1]
        assert np.linalg.norm(scale - truth) <= np.linalg.norm(was - truth) * (1 + 1e-9) + 1e-9


def test_pooling_takes_neighbours_only() -> None:
    noisy = table(layers=LAYERS[:1], choices=BITS, squared_errors=[[2.0, 9.0, 0.1, 1.0]], squared_norms=[1.0],
                  costs=[[3.0, 1.0, 8.0, 2.0]])  # fmt: skip
    assert noisy.monotone().squared_errors[0].tolist() == [1.5, 9.0, 0.1, 1.5]
    assert table().monotone() == table(), "an ordered table stays as it is"


def test_scales_are_choices_that_differ_in_strength_alone() -> None:
    assert scale_of(parse("quantize(bits=2)")) == scale_of(parse("quantize(bits=8)"))
    assert scale_of(parse("quantize(bits=2, block=64)")) != scale_of(parse("quantize(bits=2)"))
    assert [strength(choice) for choice in CHOICES] == [0.0, 4.0, 2.0, 4.0]
    assert [str(choice) for choice in in_order((*CHOICES, *CHOICES))] == [
        "dense(dtype=fp32)",
        "quantize(bits=2, block=512)",
        "quantize(bits=4, block=512)",
        "lowrank(rank=4, factors=int8)",
    ]


def damaged(**changes: Any) -> str:
    return json.dumps({**json.loads(table().to_json()), **changes})


ROW = json.loads(table().to_json())["layers"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"table\.json: not valid JSON, line 1, column 1: .*; the file is cut off$"),
        ("[]", r"lgreco_error_table must be 1, got None"),
        (damaged(lgreco_error_table=2), r"lgreco_error_table must be 1, got 2"),
        (damaged(more=1), r"must have the keys .*, got .*more"),
        (damaged(layers={}), r"choices and layers must be lists"),
        (damaged(choices=["dense"]), r"squared_errors must be a list of 1 numbers, one for each choice, got 4"),
        (damaged(choices=["dense", "quantize", "quantize(bits=9)", "lowrank"]), r"bits must be 1\.\.8, got 9"),
        (damaged(step=1.5), r"step must be a whole number from 0, got 1\.5"),
        (damaged(layers=[3]), r"layers\[0\]: must have the keys name, .*, got 3"),
        (damaged(layers=[{**ROW, "shape": [-1]}]), r'layer "a\.weight": shape must be a list .* got \[-1\]'),
        (damaged(layers=[{**ROW, "dtype": "int8"}]), r'layer "a\.weight": dtype must be fp32, bf16, fp16, got int8'),
        (damaged(layers=[{**ROW, "name": 3}]), r"name and dtype must be text, got 3, 'fp32'"),
        (damaged(layers=[{**ROW, "costs": [1.0]}]), r"costs must be a list of 4 numbers, one for each choice, got 1"),
        (damaged(layers=[{**ROW, "squared_norm": None}]), r"squared_norm must be a finite number, got None"),
        (damaged(layers=[{**ROW, "costs": [1, 2, "3", 4]}]), r"costs must be a finite number or null, got '3'"),
        (damaged(layers=[{**ROW, "costs": [1, 2, 10**400, 4]}]), r"costs must be a finite number or null, got 1000"),
        (damaged(layers=[{**ROW, "squared_norm": NAN}]), r"numbers must be finite \(null: not offered\), got NaN"),
        ('{"lgreco_error_table": 1, "step": 1, "step": 2}', r'key "step" is given twice'),
        ("[" * 100_000, r"not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ErrorTable.load(tmp_path / "table.json")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = table().to_json().encode()
    for size in range(len(content) - 2):  # the last line's end adds nothing
        (tmp_path / "table.json").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"table\.json: not valid JSON"):
            ErrorTable.load(tmp_path / "table.json")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_bytes(b'{"\xff')
    with pytest.raises(ValueError, match=r"not UTF-8 text: byte 2 is 0xff"):
        ErrorTable.load(tmp_path / "table.json")
    with pytest.raises(FileNotFoundError):
        ErrorTable.load(tmp_path / "none.json")
