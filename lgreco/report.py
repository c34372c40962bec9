"""A run's report: one page of HTML that needs nothing beside it."""

from __future__ import annotations

import html
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from lgreco.family import family
from lgreco.plan_figure import colours_of
from lgreco.plan_source import of_solve
from lgreco.pruning.changes_file import CHANGES_NAME, read_changes
from lgreco.pruning.report import Change
from lgreco.quantities import bytes_text, count_text
from lgreco.record import RECORD_NAME, Record, find, read
from lgreco.record_kinds import Solve
from lgreco.report_figures import (
    accuracies,
    bytes_svg,
    errors_svg,
    plan_svg,
    realised_totals,
    sparsity_svg,
    steps_svg,
)
from lgreco.report_style import STYLE_SHEET
from lgreco.whole_file import replace_text

REPORT_NAME = "report.html"


def write_report(run: str | Path) -> Path:
    """Writes report.html next to a record.

    Args:
        run: a record, or a folder that holds one.

    Returns:
        The page's path; the file is replaced when it is complete.

    Raises:
        ValueError: for what is no record.
        FileNotFoundError: where there is none.
    """
    only_pruned = Path(run) / CHANGES_NAME
    source = only_pruned if only_pruned.is_file() and not (Path(run) / RECORD_NAME).is_file() else find(run)
    changes, title = read_changes(source.parent), source.resolve().parent.name or str(source)
    text = pruning_page(changes, title) if source == only_pruned else report_page(read(source), title, changes)
    page = source.with_name(REPORT_NAME)
    replace_text(page, text)
    return page


def pruning_page(changes: Sequence[Change], title: str) -> str:
    """The page of a run that was pruned and has no record beside."""
    return _document(title, "", _sparsity_sections(changes))


def report_page(record: Record, title: str, changes: Sequence[Change] = ()) -> str:
    """The page of a record, and of the changes of its masks where it was pruned, as text of one HTML document."""
    sections = [
        *_sparsity_sections(changes),
        ("Plan", "Which choice each layer had. Light sends little, dark sends much.", plan_svg(record)),
        ("Bytes", "What a rank sent, on a logarithmic scale where dense is far off.", bytes_svg(record)),
        ("Error", _error_text(record), errors_svg(record)),
        ("Loss and time", "Means over the steps between two records.", steps_svg(record)),
        ("Last plan", *_last_plan(record)),
        ("Solves", "Every plan that was chosen.", _solves_table(record)),
        ("Notes", "", _notes(record)),
        ("Settings", "", _settings(record)),
    ]
    return _document(title, _tiles(record), sections)


def _document(title: str, tiles: str, sections: Sequence[tuple[str, str, str]]) -> str:
    name = html.escape(title)
    body = "".join(_section(heading, text, content) for heading, text, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name} - lgreco</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE_SHEET}</style></head>'
        f"<body><main><header><p>lgreco report</p><h1>{name}</h1>{tiles}</header>{body}</main></body></html>\n"
    )


def _sparsity_sections(changes: Sequence[Change]) -> list[tuple[str, str, str]]:
    """Sparsity against step, and each layer's at the end; nothing where nothing was pruned."""
    if not changes:
        return []
    last = changes[-1]
    rows = [(html.escape(name), _bar(level, 1.0, f"{level:.1%}")) for name, level in last.layers.items()]
    text = f"Share of pruned weights after each change of the masks; {last.sparsity:.2%} after step {last.step:,}."
    table = _table(("layer", "pruned"), rows, words=1, long=0)
    return [("Sparsity", text, f"{sparsity_svg(changes)}<details><summary>by layer</summary>{table}</details>")]


def _section(heading: str, text: str, content: str) -> str:
    explained = f"<p>{text}</p>" if text else ""
    anchor = heading.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{heading}</h2>{explained}{content}</section>'


def _tiles(record: Record) -> str:
    """The run in a few figures."""
    start, solves = record.start, record.solves
    compressed = [each for each in record.steps if solves and each.step > solves[0].effective_step]
    sent = statistics.median(each.wire_bytes for each in compressed) if compressed else None
    if sent is None and solves:
        sent = solves[-1].wire_bytes
    numel = sum(layer.numel for layer in start.layers)
    tiles = [
        ("fewer bytes than dense", f"{start.dense_bytes / sent:.3g} x" if sent else "-"),
        ("sent by a rank per step", bytes_text(sent) if sent is not None else "-"),
        ("steps", count_text(record.last_step)),
        ("plans", str(len(solves))),
        ("parameters", count_text(numel)),
        ("layers", str(len(start.layers))),
        ("ranks", str(start.world_size)),
    ]
    if solves:
        tiles.append(("to measure and solve", f"{solves[-1].measure_ms + solves[-1].solve_ms:.3g} ms"))
    cells = (f"<div><strong>{html.escape(value)}</strong><span>{name}</span></div>" for name, value in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _error_text(record: Record) -> str:
    """How well predictions came true, in a sentence."""
    ratios = [ratio for _, each in accuracies(record) for ratio in each]
    totals = [realised / predicted for _, predicted, realised in realised_totals(record)]
    if not ratios or not totals:
        return "No realised errors were recorded."
    within = sum(0.8 <= ratio <= 1.2 for ratio in ratios) / len(ratios)
    return (
        f"{within:.0%} of the layers' errors came true within 20 % of their prediction; their sums were "
        f"{min(totals):.2f} to {max(totals):.2f} of it."
    )


def _last_plan(record: Record) -> tuple[str, str]:
    """The last plan as a table; layers that are dense are folded away where others are not."""
    if not record.solves:
        return "", '<p class="none">No plan was solved so far.</p>'
    solve = record.solves[-1]
    rows = _plan_rows(record, solve)
    shown, folded = ([row for row, dense in rows if dense == wanted] for wanted in (False, True))
    if not shown:
        shown, folded = folded, []
    headings = ("layer", "shape", "choice", "dense", "wire", "ratio", "share of bytes", "predicted error")
    content = _table(headings, shown, words=3, long=0)
    if folded:
        table = _table(headings, folded, words=3, long=0)
        content += f"<details><summary>{len(folded)} dense layers</summary>{table}</details>"
    text = (
        f"Chosen at step {solve.step}, used from step {solve.effective_step}. Bytes of one copy of a layer's gradient; "
        f"squared errors."
    )
    return text, content


def _plan_rows(record: Record, solve: Solve) -> list[tuple[tuple[str, ...], bool]]:
    """Cells of each layer, and whether it is dense."""
    source, colours = of_solve(solve, record.start, "record"), colours_of(record)
    sizes = [source.wire_bytes(planned.layer, planned.choice) for planned in source.plan.planned]
    bytes_sum = sum(sizes)
    largest = max(sizes, default=0), max(solve.layer_errors.values(), default=0.0)
    rows: list[tuple[tuple[str, ...], bool]] = []
    for planned, size in zip(source.plan.planned, sizes, strict=True):
        layer, choice = planned.layer, planned.choice
        error = solve.layer_errors.get(layer.name)
        chip = f'<i class="chip" style="background:{colours[choice]}"></i>{html.escape(str(choice))}'
        cells = (
            html.escape(layer.name),
            " x ".join(map(str, layer.shape)) or "scalar",
            chip,
            bytes_text(layer.dense_bytes),
            bytes_text(size),
            f"{layer.dense_bytes / size:.1f}" if size else "-",
            _bar(size, largest[0], f"{size / bytes_sum:.1%}" if bytes_sum else "-"),
            _bar(error or 0.0, largest[1], "-" if error is None else f"{error:.3g}"),
        )
        rows.append((cells, family(choice) == "dense"))
    return rows


def _solves_table(record: Record) -> str:
    if not record.solves:
        return '<p class="none">No plan was solved so far.</p>'
    headings = ("method", "step", "used from", "changed", "sent per step", "ratio", "budget", "predicted", "gap", "ms")
    rows = [
        (
            html.escape(solve.method),
            f"{solve.step:,}",
            f"{solve.effective_step:,}",
            str(solve.changed),
            bytes_text(solve.wire_bytes),
            f"{solve.dense_bytes / solve.wire_bytes:.1f}" if solve.wire_bytes else "-",
            f"{solve.budget:.4g}" if math.isfinite(solve.budget) else "bytes",
            f"{solve.predicted_error:.4g}",
            f"{solve.gap:.2%}",
            f"{solve.measure_ms:.3g} + {solve.solve_ms:.3g}",
        )
        for solve in record.solves
    ]
    references = ", ".join(dict.fromkeys(f"{solve.reference} ({solve.norm} errors)" for solve in record.solves))
    return f"{_table(headings, rows, words=1)}<p>Budget: {html.escape(references)}. Times: to measure + to solve.</p>"


def _notes(record: Record) -> str:
    if not record.notes:
        return '<p class="none">None.</p>'
    return _table(
        ("step", "note"), [(f"{note.step:,}", html.escape(note.text)) for note in record.notes], words=2, long=1
    )


def _settings(record: Record) -> str:
    start = record.start
    versions = ", ".join(f"{name} {version}" for name, version in start.versions.items())
    config = html.escape(json.dumps(dict(start.config), indent=2, default=str))
    return f"<p>{html.escape(versions)}</p><details><summary>config</summary><pre>{config}</pre></details>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int, long: int = -1) -> str:
    """A table whose first `words` columns are text, the others numbers; column `long` may break. Cells are HTML."""
    kinds = ['<{0} class="word">{1}</{0}>' if place < words else "<{0}>{1}</{0}>" for place in range(len(headings))]
    head = "".join(kind.format("th", heading) for kind, heading in zip(kinds, headings, strict=True))
    if long >= 0:
        kinds[long] = '<{0} class="word long">{1}</{0}>'
    lines = ("".join(kind.format("td", cell) for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bar(value: float, largest: float, text: str) -> str:
    """Text with a bar that shows a value against the largest."""
    length = value / largest if largest else 0.0
    return f'<span class="bar"><b style="width:{100 * length:.0f}%"></b></span><em>{text}</em>'
