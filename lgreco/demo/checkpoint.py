"""Checkpoints that are whole or not there: a folder with what all ranks share and one file for each rank.

Ranks of several hosts must see one file system. A checkpoint is written under a name that ends in `.partial` and gets
its own name, `checkpoint-` and the number of steps, when every rank has written its file.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from lgreco.demo.ranks import Ranks

_PARTIAL = ".partial"
_UNREADABLE = (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


def save(folder: Path, step: int, shared: dict[str, Any], own: dict[str, Any], ranks: Ranks) -> None:
    """Writes the checkpoint of `step` and removes older ones; collective.

    Args:
        folder: of the run.
        step: optimizer steps done.
        shared: the same on all ranks; rank 0 writes it and adds `world_size`.
        own: this rank's.
        ranks: that save together.
    """
    final = folder / f"checkpoint-{step:08d}"
    partial = final.with_name(final.name + _PARTIAL)
    try:
        if ranks.leads:
            _remove_partial(folder)
            partial.mkdir()
        ranks.barrier()
        _write(partial / f"rank{ranks.rank}.pt", own)
        if ranks.leads:
            _write(partial / "shared.pt", {**shared, "world_size": ranks.world_size})
        ranks.barrier()
        if ranks.leads:
            older = [path for path in _complete(folder) if path != final]
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for path in older:
                shutil.rmtree(path)
    except BaseException:
        if ranks.leads:
            _remove_partial(folder)
        raise


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder."""
    return max(_complete(folder), default=None)


def load(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads what the ranks gave to `save`, onto the CPU.

    Returns:
        `shared`, and each rank's `own` in the order of the ranks that saved.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    shared = _read(path / "shared.pt")
    return shared, [_read(path / f"rank{rank}.pt") for rank in range(shared["world_size"])]


def _complete(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.suffix != _PARTIAL]


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(f"checkpoint-*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    try:
        # torch.load itself does not look at the checksums that torch.save has written.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"checkpoint file {path} must be whole, it cannot be read: {error}") from error
    return content
