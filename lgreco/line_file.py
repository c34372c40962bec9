"""A file of whole lines that outlives a full disk: what cannot be written is left out, with one warning."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lgreco.whole_file import replacing


class LineFile:
    """Lines appended to a file, each written through before `append` returns; never raises OSError after it is made.

    Args:
        path: of the file. Its folder is made; the file comes into being with the first line.

    Raises:
        ValueError: where path is a folder.
        OSError: where the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise ValueError(f'must be the path of a file, got "{path}", which is a folder')
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._descriptor: int | None = None
        self._warned = False
        self._usable = True

    def set_aside(self) -> None:
        """Renames a file that is there to NAME.old, replacing an older one."""
        with self._spared():
            self.close()
            if self._path.exists():
                self._usable = False  # until it is out of the way, nothing may be added to another run's lines
                self._path.replace(self._path.with_name(self._path.name + ".old"))
                self._usable = True

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Drops whole lines that are not wanted, and a last one that is cut off."""
        with self._spared():
            self.close()
            if not self._path.exists():
                return
            self._usable = False
            lines = self._path.read_bytes().split(b"\n")[:-1]
            with replacing(self._path) as fresh:
                fresh.write_bytes(b"".join(line + b"\n" for line in lines if wanted(line)))
            self._usable = True

    def append(self, line: bytes) -> bool:
        """Adds a line, which ends in a newline; false where it could not be written and is left out whole."""
        with self._spared():
            if not self._usable:
                return False
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            end = os.fstat(self._descriptor).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
            except OSError:
                self._usable = False
                os.ftruncate(self._descriptor, end)
                self._usable = True
                raise
            return True
        return False

    def close(self) -> None:
        """Closes the file; a later `append` opens it again."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with self._spared():
                os.close(descriptor)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Turns the first OSError into a warning and the rest into nothing."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                more = "lines are left out until it can be written" if self._usable else "no more is recorded"
                warnings.warn(f"cannot write {self._path} ({error}); {more}", RuntimeWarning, stacklevel=4)
