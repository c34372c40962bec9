"""Patterns over layer names: fnmatch, case counts."""

from __future__ import annotations

from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a layer; a name means itself, also where it holds a character of patterns (`[`)."""
    return name == pattern or fnmatchcase(name, pattern)
