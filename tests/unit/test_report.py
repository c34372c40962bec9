"""The report's page and the picture of a plan: what stands in them, and that odd records make one too."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from synthetic_run import CHOICES, gpt_layers, write_run

from lgreco.__main__ import main
from lgreco.choice import parse
from lgreco.layer import LayerInfo
from lgreco.plan_figure import Stretch, choice_colours, draw_plan, label, rows_of
from lgreco.quantities import bytes_text, count_text
from lgreco.record import Note, Realised, Record, Solve, Start, Steps, read
from lgreco.report import report_page, write_report
from lgreco.report_figures import realised_totals
from lgreco.short_names import shorten

W, B = LayerInfo("block.w", (64, 64), "fp32"), LayerInfo("block.b", (64,), "fp32")
DENSE, STRONG, WEAK = (parse(text) for text in ("dense", "lowrank(rank=4)", "lowrank(rank=8)"))
START = Start(0, (W, B), (DENSE, STRONG, WEAK), {"seed": 0}, 4, {"lgreco": "0.1.0"})


def solve(step: int, choice: object = STRONG, **changes: object) -> Solve:
    made = Solve(
        step=step,
        effective_step=step + 2,
        budget=2.0,
        predicted_error=1.5,
        reference="1.0 x lowrank(rank=8, factors=int8)",
        plan={"block.w": choice, "block.b": DENSE},  # type: ignore[dict-item]  # a choice
        changed=1,
        wire_bytes=900.0,
        dense_bytes=START.dense_bytes,
        method="dp",
        gap=0.0,
        solve_ms=1.0,
        measure_ms=2.0,
        layer_bytes={"block.w": 516.0, "block.b": 384.0},
        layer_errors={"block.w": 1.5, "block.b": 0.0},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # fields of Solve


class Reader(HTMLParser):
    """Collects a page's text and what it would fetch, and checks that elements are closed in order."""

    void = frozenset(("meta", "br", "path", "use", "rect"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens an element."""
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without content."""
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag: str) -> None:
        """Closes the element that was opened last."""
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text between elements."""
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick <start>")
    write_run(folder / "record.jsonl", layers=gpt_layers(2), solves=4)
    return folder


def test_the_command_writes_a_page_that_needs_nothing_beside_it(run: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(run)])
    assert result.exit_code == 0, result.output
    assert Path(result.output.strip()) == run / "report.html"
    page = (run / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    text = " ".join(" ".join(reader.text).split())
    for heading in ("Plan", "Bytes", "Error", "Loss and time", "Last plan", "Solves", "Notes", "Settings"):
        assert f"<h2>{heading}</h2>" in page
    for shown in (
        "blocks.1.mlp_in.weight",
        "Sent by each rank per step",
        "Error against its budget",
        "Realised / predicted, layer by layer",
        "solve took 41 ms and was waited for",
        "quick <start>",
        '"warmup_steps": 20',
        "lowrank, factors=int8",
        "18 more, always dense",
        "of the layers' errors came true within 20 % of their prediction",
    ):
        assert shown in text, shown
    assert page.count("<svg") == 4
    assert all(link.startswith("#") for link in reader.fetched), "links lead into the page"
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", page)
    assert "<script" not in page
    assert sorted(path.name for path in run.iterdir()) == ["record.jsonl", "report.html"]


def test_equal_records_make_equal_pages(run: Path) -> None:
    assert report_page(read(run / "record.jsonl"), "run") == report_page(read(run / "record.jsonl"), "run")


def test_a_record_is_named_by_its_file_too(run: Path) -> None:
    assert write_report(run / "record.jsonl") == run / "report.html"


def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["report", str(tmp_path)])
    (tmp_path / "record.jsonl").write_text("{}\n")
    broken = CliRunner().invoke(main, ["report", str(tmp_path)])
    for result, message in ((missing, "holds no record.jsonl"), (broken, "line 1: no record of a run")):
        assert result.exit_code == 1
        assert message in result.output
        assert "Traceback" not in result.output


def test_without_matplotlib_the_command_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("matplotlib", "lgreco.report"))]:
        if module != "lgreco.report_command":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["report", str(run)])
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.output


ALONE = dataclasses.replace(START, world_size=1)
NAMELESS = dataclasses.replace(solve(5), layer_bytes={}, layer_errors={}, wire_bytes=0.0, predicted_error=0.0)
ODD = {
    "only a start": [START],
    "no layers": [dataclasses.replace(START, layers=(), choices=())],
    "steps without a plan": [START, Steps(10, 10, 5.0), Steps(20, 10, 5.0)],
    "one rank": [ALONE, Steps(10, 10, 0.0), dataclasses.replace(solve(20), wire_bytes=0.0, dense_bytes=0.0)],
    "all dense": [START, solve(20, DENSE)],
    "no bytes and errors of layers": [START, NAMELESS, Realised(5, {}, {})],
    "a diverged loss": [START, solve(5), *(Steps(s, 1, 5.0, step_ms=math.inf, loss=math.nan) for s in range(9))],
    "errors that are none": [START, solve(5), Realised(6, {"block.w": math.nan, "b": 1.0}, {"block.w": 1.0})],
    "zero errors": [START, solve(5), Realised(6, {"block.w": 0.0}, {"block.w": 0.0})],
    "realised before a solve": [START, Realised(3, {"block.w": 1.0}, {"block.w": 0.0}), solve(5)],
    "a solve after the last step": [START, Steps(10, 10, 5.0), solve(9, effective_step=30)],
    "a budget of bytes": [START, solve(5, budget=math.inf), solve(9, predicted_error=math.nan, gap=math.inf)],
    "a budget of bytes alone": [START, solve(5, budget=math.inf)],
    "two solves of one step": [START, solve(5), solve(5, WEAK)],
    "markup in names": [
        dataclasses.replace(START, layers=(LayerInfo("<b>&", (2, 2), "fp32"),), config={"x": "<i>$x$"}),
        solve(5, plan={"<b>&": WEAK}, layer_bytes={"<b>&": 5.0}, layer_errors={}, method="<dp>", reference="<r>"),
        Note(5, "<script>alert(1)</script>"),
    ],
    "dollars in names": [
        dataclasses.replace(START, layers=(LayerInfo("a$b$_{", (2, 2), "fp32"), B)),
        solve(5, plan={"a$b$_{": WEAK, "block.b": DENSE}, layer_bytes={}, layer_errors={}),
    ],
}


WITH_BUDGET = set(ODD) - {"only a start", "no layers", "steps without a plan", "a budget of bytes alone"}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("error")
def test_odd_records_make_a_page(name: str) -> None:
    page = report_page(Record(tuple(ODD[name])), name)
    reader = Reader(page)
    assert page.count("<section") == 8
    assert "<script" not in page
    assert "nan x" not in "".join(reader.text)
    assert (page.count(">budget<") == 2) == (name in WITH_BUDGET), "in the picture's legend and the table's head"
    if name == "dollars in names":
        assert page.count("a$b$_{") == 2, "in the picture and in the table, and no formula"


def test_stretches_join_while_a_choice_stays() -> None:
    rows = rows_of(Record((START, solve(5), solve(10), solve(20, WEAK), Steps(29, 1, 5.0))))
    assert rows.named == {"block.w": [Stretch(7, 22, STRONG), Stretch(22, 30, WEAK)]}
    assert (rows.dense, rows.begin, rows.end) == (["block.b"], 0, 30)


def test_the_plan_is_drawn_on_given_axes(run: Path) -> None:
    record = read(run / "record.jsonl")
    axes = Figure(figsize=(10, 6)).add_subplot()
    draw_plan(axes, record)
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[0] == "token_embedding"
    assert names[-1] == "18 more, always dense"
    assert len(axes.collections) == len(names)
    assert {text.get_text() for text in axes.texts} >= {"r4"}
    legend = axes.get_legend()
    assert legend is not None
    assert "rank 4" in [text.get_text() for text in legend.get_texts()]
    small = Figure(figsize=(3, 1)).add_subplot()
    draw_plan(small, record, legend=False)
    assert small.get_legend() is None
    assert len(small.get_yticklabels()) < len(names), "labels that would overlap are left out"


def many(layers: int, plans: int) -> Record:
    """Plans that change every layer every ten steps, with each layer's errors."""
    named = tuple(LayerInfo(f"blocks.{index}.attention_in.weight", (64, 64), "fp32") for index in range(layers))
    ones = dict.fromkeys((layer.name for layer in named), 1.0)
    kinds: list[Any] = [dataclasses.replace(START, layers=named)]
    for turn in range(plans):
        plan = {layer.name: (STRONG, WEAK)[(turn + place) % 2] for place, layer in enumerate(named)}
        kinds += [solve(10 * turn, plan=plan, layer_bytes=ones, layer_errors=ones)]
        kinds += [Realised(10 * turn + 5, ones, ones), Steps(10 * turn + 9, 10, 5.0)]
    return Record(tuple(kinds))


@pytest.mark.parametrize("layers", [40, 150, 340, 1000])
def test_names_of_many_layers_do_not_overlap(layers: int) -> None:
    figure = Figure(figsize=(10.6, min(30.0, 0.7 + 0.215 * layers)), layout="constrained")
    axes = figure.add_subplot()
    draw_plan(axes, many(layers, 2))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.get_yticklabels()]
    assert len(boxes) >= min(layers, 100), "not more are left out than must be"
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes)), "within a pixel"


def test_white_between_cells_leaves_most_of_their_colour() -> None:
    axes = Figure(figsize=(10, 6)).add_subplot()
    draw_plan(axes, many(4, 400))
    cell_points = 72 * 10 * axes.get_position().width / 400
    (width,) = set(axes.collections[0].get_linewidths())
    assert 0 < width < cell_points / 4


def test_a_page_of_many_layers_and_plans_stays_small() -> None:
    record = many(300, 100)
    page = report_page(record, "long")
    cells = 300 * 100
    assert len(page) < 20 * cells, "one by one, a cell takes some 250 bytes"
    assert "data:image/png;base64," in page
    assert all(fetched.startswith(("#", "data:")) for fetched in Reader(page).fetched)
    assert "blocks.299.attention_in" in page, "text stays text"


def test_colours_can_be_told_apart() -> None:
    colours = choice_colours([*CHOICES, *(parse(f"randomk(density={density})") for density in (0.01, 0.1))])
    assert len(set(colours.values())) == len(CHOICES) + 2

    def rgb(colour: str) -> list[int]:
        return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]

    every = [(choice, rgb(colour)) for choice, colour in colours.items()]
    for place, (choice, one) in enumerate(every):
        for other_choice, other in every[:place]:
            assert math.dist(one, other) > 20, f"{choice} and {other_choice}"
    red, green, blue = rgb(colours[DENSE])
    assert max(red, green, blue) - min(red, green, blue) < 30, "dense is grey"
    brightness = [sum(rgb(colours[parse(f"lowrank(rank={rank})")])) for rank in (2, 4, 6, 8, 12, 16)]
    assert brightness == sorted(brightness, reverse=True), "the more is sent, the darker"


@pytest.mark.parametrize(
    ("choice", "text"),
    [("lowrank(rank=8)", "r8"), ("quantize(bits=4)", "4b"), ("topk(density=0.01)", "1%"),
     ("randomk(density=0.003)", "0.3%"), ("topk(density=0.1)", "10%"), ("dense", "")],
)  # fmt: skip
def test_labels(choice: str, text: str) -> None:
    assert label(parse(choice)) == text


def test_realised_errors_are_in_the_units_of_the_budget() -> None:
    realised = Realised(9, {"block.w": 4.0, "block.b": 0.0}, {"block.w": 9.0, "block.b": 0.0})
    assert realised_totals(Record((START, solve(5), realised))) == [(9, 4.0, 9.0)]
    assert realised_totals(Record((START, solve(5, norm="l2"), realised))) == [(9, 2.0, 3.0)]
    weighted = solve(5, layer_weights={"block.w": 10.0})
    assert realised_totals(Record((START, weighted, realised))) == [(9, 40.0, 90.0)]
    later = solve(8, layer_weights={"block.w": 100.0})  # chosen before, used from step 10 on
    assert realised_totals(Record((START, weighted, realised, later))) == [(9, 40.0, 90.0)]
    assert realised_totals(Record((START, later, realised))) == [(9, 4.0, 9.0)]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["module.a.weight", "module.b.weight", "module.b.bias"], ["a", "b.weight", "b.bias"]),
        (["weight"], ["weight"]),
        (["a"], ["a"]),
        ([], []),
        (
            ["layers.10.self_attention.query_key_value_projection.weight", "head.weight"],
            ["layers.10.…_value_projection", "head"],
        ),
        (["encoder.layers.3.attention.output.dense.weight", "x"], ["encoder.lay.3.att.out.dense", "x"]),
    ],
)
def test_names_are_shortened(names: list[str], short: list[str]) -> None:
    assert shorten(names) == short


@given(st.lists(st.text("ab.1", min_size=1, max_size=60), unique=True, max_size=8), st.integers(12, 40))
def test_short_names_stay_apart(names: list[str], limit: int) -> None:
    short = shorten(names, limit)
    assert len(set(short)) == len(names)
    assert all(len(each) <= limit or each in names for each in short)


def test_quantities_read_well() -> None:
    assert [bytes_text(count) for count in (0, 999, 208_248, 19_940_352)] == ["0 B", "999 B", "208 kB", "19.9 MB"]
    assert [count_text(count) for count in (53, 9999, 123_456, 3_316_736, 7e9, 2e12)] == [
        "53",
        "9,999",
        "123 k",
        "3.32 M",
        "7 G",
        "2 T",
    ]
