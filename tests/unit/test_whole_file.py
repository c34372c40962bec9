"""A file is there whole or not at all, however writing it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgreco.whole_file import replace_text, replacing


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("first\n", "second\n"):
        replace_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _interrupted(path: Path, end: type[BaseException], written: bool) -> None:
    with replacing(path) as fresh:
        if written:
            fresh.write_text("new")
        raise end


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("written", [False, True])
def test_what_does_not_end_well_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, end: type[BaseException], written: bool
) -> None:
    """Ctrl-C too: it may come before the first byte, or after the last and before the file has its name."""
    replace_text(tmp_path / "file", "old")
    with pytest.raises(end):
        _interrupted(tmp_path / "file", end, written)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
