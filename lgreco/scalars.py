"""TensorBoard's curves of a run: bytes, ratio, budget, errors, time, and the share of bytes of each family."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from pathlib import Path

from lgreco.family import family
from lgreco.record_kinds import Kind, Realised, Solve, Start, Steps


class Scalars:
    """Writes a run's records as scalars; needs the package `tensorboard`.

    Args:
        folder: where TensorBoard looks for runs.

    Raises:
        ImportError: where tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"scalars for TensorBoard need its package, which cannot be imported ({error}); pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(folder))
        self._dense_bytes = 0.0
        self._solve: Solve | None = None
        self._failed = False

    def write(self, record: Kind) -> None:
        """Adds what a record says that has a curve; where the disk is full it warns once and writes no more."""
        try:
            for name, value in self._curves(record).items() if not self._failed else ():
                self._writer.add_scalar(f"lgreco/{name}", value, record.step)
        except OSError as error:
            self._failed = True
            warnings.warn(f"cannot write TensorBoard's scalars ({error}); no more are", RuntimeWarning, stacklevel=3)

    def close(self) -> None:
        """Writes out what is buffered."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _curves(self, record: Kind) -> dict[str, float]:
        if isinstance(record, Start):
            self._dense_bytes = record.dense_bytes
        if isinstance(record, Steps):
            return self._of_steps(record)
        if isinstance(record, Solve):
            self._solve = record
            return _of_solve(record)
        if isinstance(record, Realised):
            return {"error/realised": record.totals(self._solve)[1]}
        return {}

    def _of_steps(self, record: Steps) -> dict[str, float]:
        curves = {"bytes/sent": record.wire_bytes}
        if record.wire_bytes and self._dense_bytes:
            curves["bytes/ratio"] = self._dense_bytes / record.wire_bytes
        known = {"ms/step": record.step_ms, "ms/codec": record.codec_ms, "ms/wait": record.wait_ms}
        return curves | {name: value for name, value in known.items() if value is not None}


def family_bytes(solve: Solve) -> dict[str, float]:
    """Wire bytes per step of each family of a plan, of those layers whose bytes are known."""
    sums: dict[str, float] = defaultdict(float)
    for layer, sent in solve.layer_bytes.items():
        sums[family(solve.plan[layer])] += sent
    return dict(sums)


def _of_solve(record: Solve) -> dict[str, float]:
    curves = {
        "error/budget": record.budget,
        "error/predicted": record.predicted_error,
        "bytes/predicted": record.wire_bytes,
        "plan/changed_layers": float(record.changed),
        "plan/gap": record.gap,
    }
    sums = family_bytes(record)
    total = sum(sums.values())
    return curves | {f"share/{name}": sent / total for name, sent in sums.items() if total}
