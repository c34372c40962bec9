"""The file of an error table: canonical JSON, one layer a line, read back exactly or refused with the place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lgreco.choice import parse
from lgreco.layer import LayerInfo, kept_matrix_from

FORMAT_VERSION = 1
_COUNTS = ("world_size", "step", "tables")
_KEYS = ("lgreco_error_table", *_COUNTS, "choices", "layers")
_LAYER_KEYS = ("name", "shape", "dtype", "squared_norm", "squared_errors", "costs")


def write(fields: Mapping[str, Any]) -> str:
    """Text of a table's fields (those of ErrorTable). Floats are written by repr, which is exact; NaN is null."""
    head = {"lgreco_error_table": FORMAT_VERSION, **{name: fields[name] for name in _COUNTS}}
    lines = [f"{json.dumps(name)}: {value}" for name, value in head.items()]
    lines.append(f'"choices": {json.dumps([str(choice) for choice in fields["choices"]])}')
    layers = [
        json.dumps(
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "dtype": layer.dtype,
                **({} if layer.kept is None else {"kept": layer.kept}),
                **({} if layer.kept_matrix is None else {"kept_matrix": list(layer.kept_matrix)}),
                "squared_norm": float(fields["squared_norms"][row]),
                "squared_errors": _numbers(fields["squared_errors"][row]),
                "costs": _numbers(fields["costs"][row]),
            }
        )
        for row, layer in enumerate(fields["layers"])
    ]
    lines.append('"layers": [\n' + ",\n".join(layers) + "\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(content: bytes) -> dict[str, Any]:
    """The fields of the table in a file's bytes; what they hold is checked by ErrorTable.

    Raises:
        ValueError: for what is no table of this version; says where.
    """
    document = _parse(content)
    if not isinstance(document, dict) or document.get("lgreco_error_table") != FORMAT_VERSION:
        version = document.get("lgreco_error_table") if isinstance(document, dict) else None
        raise ValueError(f"error table: lgreco_error_table must be {FORMAT_VERSION}, got {version!r}")
    _check_keys("error table", document, _KEYS)
    choices, layers = document["choices"], document["layers"]
    if not isinstance(choices, list) or not isinstance(layers, list):
        raise ValueError("error table: choices and layers must be lists")
    read_layers = [_read_layer(row, layer, len(choices)) for row, layer in enumerate(layers)]
    shape = (len(layers), len(choices))
    return {
        "layers": tuple(layer for layer, _ in read_layers),
        "choices": tuple(parse(choice) for choice in choices),
        "squared_norms": np.array([entry["squared_norm"] for _, entry in read_layers], dtype=np.float64),
        "squared_errors": np.array([entry["squared_errors"] for _, entry in read_layers], np.float64).reshape(shape),
        "costs": np.array([entry["costs"] for _, entry in read_layers], dtype=np.float64).reshape(shape),
        **{name: document[name] for name in _COUNTS},
    }


def _numbers(row: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in row]


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_twins)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        end = "; the file is cut off" if error.pos >= len(error.doc.rstrip()) else ""
        raise ValueError(f"not valid JSON, line {error.lineno}, column {error.colno}: {error.msg}{end}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"error table: numbers must be finite (null: not offered), got {name}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f'error table: key "{key}" is given twice')
        content[key] = value
    return content


def _check_keys(where: str, content: Any, keys: Sequence[str]) -> None:
    if not isinstance(content, dict) or set(content) != set(keys):
        got = ", ".join(content) if isinstance(content, dict) else f"{content!r:.60}"
        raise ValueError(f"{where}: must have the keys {', '.join(keys)}, got {got}")


def _read_layer(row: int, entry: Any, choices: int) -> tuple[LayerInfo, dict[str, Any]]:
    """The layer of a row and the row's numbers as floats, None become NaN."""
    added = [key for key in ("kept", "kept_matrix") if isinstance(entry, dict) and key in entry]
    _check_keys(f"error table: layers[{row}]", entry, [*_LAYER_KEYS, *added])
    where = f'error table: layer "{entry["name"]}"'
    shape = entry["shape"]
    if not isinstance(entry["name"], str) or not isinstance(entry["dtype"], str):
        raise ValueError(f"{where}: name and dtype must be text, got {entry['name']!r}, {entry['dtype']!r}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{where}: shape must be a list of whole numbers from 0, got {shape!r}")
    numbers: dict[str, Any] = {"squared_norm": _number(where, "squared_norm", entry["squared_norm"], empty=False)}
    for name in ("squared_errors", "costs"):
        values = entry[name]
        if not isinstance(values, list) or len(values) != choices:
            got = f"{len(values)}" if isinstance(values, list) else f"{values!r:.60}"
            raise ValueError(f"{where}: {name} must be a list of {choices} numbers, one for each choice, got {got}")
        numbers[name] = [_number(where, name, value, empty=True) for value in values]
    kept = entry.get("kept")
    if "kept" in added and type(kept) is not int:
        raise ValueError(f"{where}: kept must be a whole number, got {kept!r}")
    try:
        kept_matrix = kept_matrix_from(entry.get("kept_matrix"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return LayerInfo(entry["name"], tuple(shape), entry["dtype"], kept, kept_matrix), numbers


def _number(where: str, name: str, value: Any, *, empty: bool) -> float:
    if value is None and empty:
        return math.nan
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"{where}: {name} must be a finite number{' or null' if empty else ''}, got {value!r:.60}")
