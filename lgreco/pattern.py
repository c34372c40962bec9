"""Patterns over layer names: fnmatch, case counts; a layer's very name comes before patterns that match it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a layer; a name means itself, also where it holds a character of patterns (`[`)."""
    return name == pattern or fnmatchcase(name, pattern)


def rule_for(name: str, rules: Sequence[tuple[str, T]]) -> tuple[str, T] | None:
    """The rule that decides about a layer: that of its very name, else the first whose pattern matches.

    So rules that name every layer, as a plan does, mean each the one that it names, even where a name is itself a
    pattern (a ModuleDict's key may hold `*`).
    """
    exact = next((rule for rule in rules if rule[0] == name), None)
    return exact or next((rule for rule in rules if matches(name, rule[0])), None)
