"""What every benchmark hands out: one JSON file with where the figures came from, and one table for people."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_KEYS = ("command", "commit", "versions", "settings", "rows")
_PACKAGES = ("lgreco", "torch", "numpy")


def write_json(path: str | os.PathLike[str], *, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a benchmark's result: an object with the keys command, commit, versions, settings and rows.

    The file appears whole or not at all; missing folders are made. NaN and infinity are refused, because JSON has
    neither: a figure that was not measured is None.

    Args:
        path: of the file.
        settings: what was asked for, by name.
        rows: one mapping for each thing measured, units in the names.

    Raises:
        ValueError: a figure is NaN or infinite.
    """
    report = {
        "command": command(),
        "commit": commit(),
        "versions": versions(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def read_json(path: str | os.PathLike[str], keys: Sequence[str] = _KEYS) -> dict[str, Any] | None:
    """An object with these keys, as `write_json` writes it; None where there is none, with a warning if a file is."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read and is measured anew: {error}", stacklevel=2)
        return None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        warnings.warn(f"{path} is no benchmark's result ({', '.join(missing)} missing), measured anew", stacklevel=2)
        return None
    found: dict[str, Any] = content
    return found


def made_elsewhere(content: Mapping[str, Any]) -> str | None:
    """Of figures with `commit` and `versions`: by which others they were measured; None where by those of now."""
    now = {"commit": commit(), "torch": versions()["torch"]}
    then = {"commit": content["commit"], "torch": content["versions"].get("torch")}
    different = [key for key in now if now[key] != then[key]]
    return "measured by " + ", ".join(f"{key} {then[key]} (now {now[key]})" for key in different) if different else None


def command() -> str:
    """The command line of this process, as it can be pasted into a shell from the repository's root."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent.parent
    shown = script.relative_to(root) if script.is_relative_to(root) else script
    program = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        program = ["torchrun", "--standalone", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
    return shlex.join([*program, str(shown), *sys.argv[1:]])


def commit() -> str | None:
    """Hash of the commit that runs, with `-dirty` after it where files differ from it; None outside a repository.

    Results of benchmarks do not count: a benchmark that writes its file in parts would make itself dirty.
    """
    git = ["git", "-C", str(Path(__file__).resolve().parent.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", ":!benchmarks/results"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def versions() -> dict[str, str | None]:
    """Versions of what the figures depend on, and the processor; None for a package that is not installed."""
    found: dict[str, str | None] = {name: _package_version(name) for name in _PACKAGES}
    found["python"] = platform.python_version()
    found["kernel"] = platform.release()
    found["processor"] = _processor()
    found["cores"] = str(len(os.sched_getaffinity(0)))
    return found


def progress(*columns: ProgressColumn, seen: bool = True) -> Progress:
    """A bar on stderr, seen only on a terminal, and there only where asked; `columns` stand before its times."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (seen and console.is_terminal),
    )


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, title: str = "") -> None:
    """Prints the named columns of the rows; what a row lacks or does not know shows as a dash."""
    table = Table(title=title or None)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    # A pipe has no width: rich would take 80 columns and cut the figures.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
