"""A run's changes of masks as a JSON file, which the report page shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lgreco.pruning.report import Change
from lgreco.whole_file import replace_text

CHANGES_NAME = "pruning.json"
"""Name of the file in the folder of its run."""


def write_changes(folder: Path, changes: Sequence[Change]) -> None:
    """Writes all changes; a reader finds the old file or the new, never a part."""
    replace_text(folder / CHANGES_NAME, json.dumps({"changes": [change.to_dict() for change in changes]}))


def read_changes(folder: Path) -> list[Change]:
    """The changes of a run, none where it has no such file.

    Raises:
        ValueError: for a file that is none.
    """
    path = folder / CHANGES_NAME
    if not path.is_file():
        return []
    try:
        return [Change(**change) for change in json.loads(path.read_text(encoding="utf-8"))["changes"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: no changes of masks: {error}") from None
