#!/usr/bin/env python3
"""Times a mask update on one thread against one read of the weights.

    python benchmarks/pruning.py --numel 100e6 --json benchmarks/results/pruning-update.json

Kernels: read (each weight once, torch's sum), select (the exact threshold over all layers), mark (masks, and pruned
weights zeroed), update (both, what a mask update by magnitude costs), hold (what keeps weights at zero in a step whose
masks stay), and torch_kthvalue (torch's own, on the first tenth, times ten). The weights are layers of 4 M, pruned
before to `from_sparsity` (as in a ramp) and now to `sparsity`. Every repetition times the read right before the kernel;
the clock is the thread's CPU time. reads is a time over the time of a read.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import report
import torch

from lgreco import _C

_COLUMNS = ("kernel", "from_sparsity", "sparsity", "numel", "ms_median", "read_ms_median", "reads")
_LAYER_NUMEL = 4_000_000


def timed(work: Callable[[], object]) -> float:
    """CPU time of this thread, ms."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e3


class Update:
    """A mask update in its two passes, over and over from the same weights."""

    def __init__(self, weights: list[torch.Tensor], before: float, sparsity: float) -> None:
        self.numel = sum(each.numel() for each in weights)
        self.masks = [torch.ones(each.shape, dtype=torch.bool) for each in weights]
        self.weights = [each.clone() for each in weights]
        self._sparsity = before
        self.select()
        self.mark()
        self._ramped = [each.clone() for each in self.weights]
        self._sparsity = sparsity

    def begin(self) -> None:
        """The weights as they were before the update."""
        for weight, ramped in zip(self.weights, self._ramped, strict=True):
            weight.copy_(ramped)

    def read(self) -> None:
        """Each weight once."""
        for weight in self.weights:
            weight.sum()

    def select(self) -> None:
        """The threshold."""
        kept = self.numel - int(self._sparsity * self.numel)
        self.key, self.ties, _, _ = _C.find_threshold(self.weights, kept, "magnitude")

    def mark(self) -> None:
        """Masks and weights."""
        ties = self.ties
        for weight, mask in zip(self.weights, self.masks, strict=True):
            ties = _C.mark_kept(weight, "magnitude", self.key, ties, mask, weight)

    def hold(self) -> None:
        """Weights again."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            _C.hold_mask(mask, weight)

    def kthvalue(self) -> None:
        """Of a tenth, by torch's own."""
        flat = torch.cat(self.weights)[: self.numel // 10].abs_()
        torch.kthvalue(flat, max(1, int(self._sparsity * flat.numel())))


def measure(numel: int, before: float, sparsity: float, repeats: int, with_torch: bool) -> list[dict[str, Any]]:
    """Rows of one update."""
    generator = torch.Generator().manual_seed(0)
    sizes = [_LAYER_NUMEL] * (numel // _LAYER_NUMEL) + [numel % _LAYER_NUMEL] * (numel % _LAYER_NUMEL > 0)
    update = Update([torch.randn(size, generator=generator) for size in sizes], before, sparsity)
    times: dict[str, list[float]] = {name: [] for name in ("read", "select", "mark", "hold", "torch_kthvalue")}
    for _ in range(repeats):
        update.begin()
        for name, work in (("select", update.select), ("mark", update.mark), ("hold", update.hold)):
            times["read"].append(timed(update.read))
            times[name].append(timed(work))
        if with_torch:
            times["torch_kthvalue"].append(10.0 * timed(update.kthvalue))
    times["update"] = [a + b for a, b in zip(times["select"], times["mark"], strict=True)]
    read_ms = median(times["read"])
    return [
        {
            "kernel": name,
            "from_sparsity": before,
            "sparsity": sparsity,
            "numel": numel,
            "ms_median": median(each),
            "read_ms_median": read_ms,
            "reads": median(each) / read_ms,
        }
        for name, each in times.items()
        if each
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numel", type=lambda text: int(float(text)), default=100_000_000)
    parser.add_argument(
        "--ramp", type=float, nargs="+", default=[0.0, 0.5, 0.8, 0.9], help="one update between each two"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = []
    for before, sparsity in itertools.pairwise(arguments.ramp):
        rows += measure(arguments.numel, before, sparsity, arguments.repeats, with_torch=before == arguments.ramp[0])
    report.print_table(rows, _COLUMNS, title="one thread")
    if arguments.json:
        report.write_json(arguments.json, settings=vars(arguments), rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
