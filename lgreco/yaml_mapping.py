"""A YAML file read as one mapping, without what YAML lets pass in silence: a key given twice keeps its last value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice in one mapping."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if isinstance(key, str) and key in seen:
            raise ValueError(f'key "{key}" is given twice, in lines {seen[key]} and {line}')
        seen[str(key)] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def parse_yaml_mapping(text: str) -> dict[Any, Any]:
    """Reads YAML text that holds one mapping; empty text is an empty mapping.

    Raises:
        ValueError: where it is no YAML, no mapping, or has a key twice; with the line.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "unknown line"
        hint = "; a pattern that begins with * needs quotes" if "alias" in f"{error.context} {error.problem}" else ""
        raise ValueError(f"not valid YAML, {where}: {error.problem}{hint}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None
    except RecursionError:
        raise ValueError("not valid YAML: nested too deeply") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"must hold key: value lines, got {type(content).__name__} {content!r:.60}")
    return content


def read_yaml_mapping(path: Path) -> dict[Any, Any]:
    """`parse_yaml_mapping` of a file's text (UTF-8)."""
    try:
        return parse_yaml_mapping(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
