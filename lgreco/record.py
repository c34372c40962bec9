"""The record of a run: JSON lines, written by rank 0 as training goes on and read back for reports."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from lgreco.line_file import LineFile
from lgreco.record_kinds import Forecast, Kind, Note, Realised, Solve, Start, Steps, from_dict
from lgreco.scalars import Scalars

__all__ = [
    "RECORD_NAME",
    "Forecast",
    "Note",
    "Realised",
    "Record",
    "Recorder",
    "Solve",
    "Start",
    "Steps",
    "find",
    "read",
]

RECORD_NAME = "record.jsonl"
"""Name of a record in the folder of its run."""

KindT = TypeVar("KindT", bound=Kind)


@dataclass(frozen=True)
class Record:
    """What a run has noted, in order; a resumed run has several starts."""

    records: tuple[Kind, ...]

    @property
    def start(self) -> Start:
        """The last start."""
        return self._all(Start)[-1]

    @property
    def solves(self) -> tuple[Solve, ...]:
        """Every plan that was chosen."""
        return self._all(Solve)

    @property
    def steps(self) -> tuple[Steps, ...]:
        """Figures of steps."""
        return self._all(Steps)

    @property
    def realised(self) -> tuple[Realised, ...]:
        """Predicted errors beside those that came true."""
        return self._all(Realised)

    @property
    def forecasts(self) -> tuple[Forecast, ...]:
        """The cost model beside what was measured."""
        return self._all(Forecast)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks and warnings."""
        return self._all(Note)

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        return max(record.step for record in self.records)

    def _all(self, kind: type[KindT]) -> tuple[KindT, ...]:
        return tuple(record for record in self.records if isinstance(record, kind))


def read(path: str | Path) -> Record:
    """Reads a record, of a run that goes on too: a last line that is cut off is left out.

    Raises:
        ValueError: for what is no record; names the line.
        FileNotFoundError: where there is no file.
    """
    records = []
    *lines, cut = Path(path).read_bytes().split(b"\n")  # what follows the last line's end is a line not yet written
    for number, line in enumerate(lines, start=1):
        try:
            records.append(from_dict(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: no record of a run: {error}") from None
    if not records or not isinstance(records[0], Start):
        got = records[0].kind if records else f"{len(cut)} bytes without a whole line"
        raise ValueError(f"{path}: a record begins with a line of kind start, got {got}")
    return Record(tuple(records))


def find(path: str | Path) -> Path:
    """The record that a path leads to: the file itself, or the one record.jsonl in a folder or below it.

    Raises:
        ValueError: for a folder with several of them, listed.
        FileNotFoundError: where there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / RECORD_NAME).is_file():
        return path / RECORD_NAME
    found = sorted(path.rglob(RECORD_NAME))
    if not found:
        raise FileNotFoundError(f"{path} holds no {RECORD_NAME}, nor do the folders in it")
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} records, name one: {', '.join(map(str, found))}")
    return found[0]


class Recorder:
    """Writes a run's record and never stops a run: where the disk is full it warns once and leaves lines out.

    A line is in the file when its method returns; only whole lines stay in it. The file is made at the first record
    after `start`: one that an earlier run left there then becomes NAME.old or, after `resume`, is continued. Methods
    may be called from any thread.

    Args:
        path: of the file; None records nothing, which is what all ranks but one do.
        every: steps between two records of kind `steps`, which hold means over them.
        tensorboard: folder for TensorBoard's scalars; None for none.

    Raises:
        ValueError: where every is below 1 or path is a folder.
        ImportError: where TensorBoard is asked for and not installed.
        OSError: where the file's folder cannot be made.
    """

    def __init__(self, path: str | Path | None, every: int = 10, tensorboard: str | Path | None = None) -> None:
        if every < 1:
            raise ValueError(f"every must be a number of steps from 1, got {every!r}")
        self._every = every
        self._file = None if path is None else LineFile(Path(path))
        self._scalars = None if tensorboard is None or path is None else Scalars(tensorboard)
        self._lock = threading.RLock()
        self._start: Start | None = None
        self._begun = False  # whether the file begins, or goes on, with this run's start
        self._resumed_step: int | None = None
        self._waiting: list[Kind] = []
        self._window: list[Mapping[str, float | None]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def resume(self, step: int) -> None:
        """The run goes on after `step` steps: what the record says of later ones is dropped, the rest continued.

        May come before or after `start`, and again in mid-run.
        """
        with self._lock:
            self._window.clear()
            self._resumed_step = step
            self._begun = False

    def start(self, start: Start) -> None:
        """Notes what the run is made of; before it, other records wait."""
        with self._lock:
            self._start = start
            if self._begun:
                self._write(start)

    def solve(self, solve: Solve) -> None:
        """Notes a plan."""
        self._write(solve)

    def steps(
        self,
        step: int,
        *,
        wire_bytes: float,
        step_ms: float | None = None,
        codec_ms: float | None = None,
        wait_ms: float | None = None,
        loss: float | None = None,
    ) -> None:
        """Takes the figures of one step; every few steps their means are noted. Call it in each step."""
        if self._file is None:
            return
        figures = {"wire_bytes": wire_bytes, "step_ms": step_ms, "codec_ms": codec_ms, "wait_ms": wait_ms, "loss": loss}
        with self._lock:
            self._window.append(figures)
            if step % self._every == 0:
                means = {name: _mean([each[name] for each in self._window]) for name in figures}
                self._write(Steps(step, len(self._window), **means))  # type: ignore[arg-type]  # bytes are known
                self._window.clear()

    def realised(self, realised: Realised) -> None:
        """Notes predicted errors beside those that came true."""
        self._write(realised)

    def forecast(self, forecast: Forecast) -> None:
        """Notes what the cost model said, beside what came."""
        self._write(forecast)

    def note(self, step: int, text: str) -> None:
        """Notes a remark or a warning."""
        self._write(Note(step, text))

    def close(self) -> None:
        """Writes what waits and closes the file; what comes later is left out. May be called twice."""
        with self._lock:
            self._write_waiting()
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._scalars is not None:
                self._scalars.close()
                self._scalars = None

    def _write(self, record: Kind) -> None:
        with self._lock:
            if self._file is None:
                return
            self._waiting.append(record)
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._file is None or self._start is None:
            return
        if not self._begun:
            self._begun = self._begin(self._file, self._start)
        for record in self._waiting if self._begun else ():
            self._file.append(_line_of(record))
            if self._scalars is not None:
                self._scalars.write(record)
        self._waiting.clear()

    def _begin(self, file: LineFile, start: Start) -> bool:
        """Makes the file fit for this run's first line and writes that."""
        step = self._resumed_step
        if step is None:
            file.set_aside()
        else:
            file.keep(lambda line: _step_of(line) <= step)
            start = dataclasses.replace(start, step=step)
        if self._scalars is not None:
            self._scalars.write(start)
        return file.append(_line_of(start))


def _line_of(record: Kind) -> bytes:
    return json.dumps(record.to_dict(), allow_nan=False).encode() + b"\n"


def _step_of(line: bytes) -> float:
    """The step of a record; of a line that is none, infinity, so that no step reaches it."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are known."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
