"""Layer names short enough for a picture, and still each its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def shorten(names: Sequence[str], limit: int = 28) -> list[str]:
    """Short forms of names, in order, at most `limit` characters where that leaves them apart.

    What all begin with goes, and `.weight` where nothing else has the same stem; then components in the middle are cut
    to three letters, and at last the middle is left out, but for the block's number. Names that would fall together
    stay whole.
    """
    stems = [_without_prefix(names, name) for name in names]
    bare = Counter(stem.removesuffix(".weight").removesuffix(".bias") for stem in stems)
    short = []
    for stem in stems:
        plain = stem.removesuffix(".weight")
        short.append(_fit(plain if plain and bare[plain] == 1 else stem, limit))
    seen = Counter(short)
    return [name if seen[fitted] > 1 else fitted for name, fitted in zip(names, short, strict=True)]


def _without_prefix(names: Sequence[str], name: str) -> str:
    """Without the dotted components that all names begin with; the last component stays."""
    parts = [each.split(".") for each in names]
    shared = 0
    while len(parts) > 1 and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return ".".join(name.split(".")[shared:])


def _fit(name: str, limit: int) -> str:
    parts = name.split(".")
    for place in range(1, len(parts) - 1):
        if len(".".join(parts)) > limit and not parts[place].isdigit():
            parts[place] = parts[place][:3]
    fitted = ".".join(parts)
    if len(fitted) <= limit:
        return fitted
    numbers = [place for place, part in enumerate(name.split(".")) if part.isdigit()]
    head = ".".join(name.split(".")[: numbers[-1] + 1]) + "." if numbers else ""
    if len(head) > limit // 2:
        head = name[: limit // 3]
    return f"{head}…{name[len(head) + 1 - limit :]}"
