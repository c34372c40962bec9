"""What a misspelt word may have meant, for the end of an error message."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean "bits"?` with the known word closest to the one given, or nothing where none is close."""
    close = get_close_matches(str(word), list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
