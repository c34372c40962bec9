"""The bytes that a model is trained on: which files, which of them validate, which window each step reads."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

Bytes = npt.NDArray[np.uint8]

# Tests repeat themselves, tables of code pages and packed help texts are no prose and no code.
_STDLIB_SKIPPED = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__",
    "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "__phello__",
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Text as bytes.

    Attributes:
        training: uint8, one dimension.
        validation: uint8, one dimension; files (or ends of files) that training never sees.
        digest: SHA-256 of both, so that a checkpoint knows its text again.
        origin: where the text comes from, for people.
    """

    training: Bytes
    validation: Bytes
    digest: str
    origin: str

    @classmethod
    def load(cls, source: str, validation_every: int = 10, max_mb: float = 2048.0) -> Corpus:
        """Reads `stdlib`, a text file or a folder of text files.

        Files are taken in the order of their names and every `validation_every`-th one validates; of fewer than
        `validation_every` files, the last part of each.

        Raises:
            ValueError: if there is no such file or folder, or no text in it, or more of it than `max_mb` megabytes.
        """
        paths = list(_stdlib_files() if source == "stdlib" else _own_files(source))
        size_mb = sum(path.stat().st_size for path in paths) / 1e6
        if size_mb > max_mb:
            raise ValueError(f"data.source {source!r} holds {size_mb:.0f} MB, data.max_mb allows {max_mb:.0f}")
        texts = [text for path in paths if _is_text(text := np.fromfile(path, dtype=np.uint8))]
        if not texts:
            raise ValueError(f"data.source must hold text (bytes other than 0), got {source!r}: {len(paths)} files")
        training, validation = _split(texts, validation_every)
        digest = hashlib.sha256(training.data)
        digest.update(validation.data)
        origin = "Python's standard library" if source == "stdlib" else str(Path(source))
        return cls(training, validation, digest.hexdigest(), f"{origin} ({len(texts)} files)")

    def require_windows_of(self, length: int) -> None:
        """Raises ValueError unless both parts hold a window of `length` bytes."""
        for name, part in (("training", self.training), ("validation", self.validation)):
            if len(part) < length:
                raise ValueError(f"{name} text must have at least {length} bytes (model.context + 1), got {len(part)}")


def training_windows(
    corpus: Corpus, *, seed: int, rank: int, step: int, part: int, batch: int, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows at random places, drawn from a counter: the same arguments give the same windows, with no state kept.

    Args:
        corpus: the text.
        seed: of the run; the windows do not depend on what else the run does.
        rank: ranks read different windows.
        step: optimizer step, from 0.
        part: which of the accumulated passes of that step.
        batch: number of windows.
        context: bytes read in each window.

    Returns:
        Tokens and targets (tokens shifted by one), int64 [batch, context].
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, rank], counter=[0, 0, part, step]))
    starts = draw.integers(0, len(corpus.training) - context, size=batch)
    return _windows(corpus.training, starts, context)


def validation_windows(
    corpus: Corpus, *, windows: int, batch: int, context: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's share of `windows` windows spread evenly over the validation text, the same at every call.

    Yields:
        Tokens and targets, int64 [at most batch, context].
    """
    last = len(corpus.validation) - context - 1
    starts = np.unique(np.linspace(0, last, windows).astype(np.int64))[rank::world_size]
    for begin in range(0, len(starts), batch):
        yield _windows(corpus.validation, starts[begin : begin + batch], context)


def _windows(text: Bytes, starts: npt.NDArray[np.int64], context: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(text[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _split(texts: list[Bytes], validation_every: int) -> tuple[Bytes, Bytes]:
    if len(texts) >= validation_every:
        held = [index % validation_every == validation_every - 1 for index in range(len(texts))]
        training = [text for text, hold in zip(texts, held, strict=True) if not hold]
        validation = [text for text, hold in zip(texts, held, strict=True) if hold]
    else:
        cuts = [len(text) - len(text) // validation_every for text in texts]
        training = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        validation = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    return np.concatenate(training), np.concatenate(validation)


def _is_text(text: Bytes) -> bool:
    return len(text) > 0 and not bool((text == 0).any())


def _stdlib_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    yield from (path for path in _walk(root, _STDLIB_SKIPPED) if path.suffix == ".py")


def _own_files(source: str) -> Iterator[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from _walk(path, {"__pycache__", "node_modules"})
    else:
        raise ValueError(f"data.source must be 'stdlib', a text file or a folder, got {source!r}, which is not there")


def _walk(root: Path, skipped: set[str]) -> Iterator[Path]:
    """Regular files below a folder, in the order of their names, hidden ones and `skipped` folders left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())
