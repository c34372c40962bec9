"""Files that are there whole or not at all: a reader finds the old one or the new, never a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def partial_of(path: Path) -> Path:
    """What a file is called until it is complete."""
    return path.with_name(path.name + ".partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` as the block ends; nothing stays of it where an error or Ctrl-C ends that.

    A process that is killed leaves NAME.partial behind, which the next one overwrites.
    """
    fresh = partial_of(path)
    try:
        yield fresh
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Writes a text file, UTF-8."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
