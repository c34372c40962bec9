"""The cost model: how long a training step takes, predicted from links, codecs and when gradients become ready.

A step is `compute_s`, what it would take if the exchange took no time, plus what of the exchange backward does not
hide. Buckets are exchanged one after the other, each not before its last gradient is ready:

    end_i = max(ready_i, end_(i-1)) + seconds_i        exposed = max(0, end_last - ready_last)

All functions are pure: the same input, the same bits, on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lgreco.ring import ring_share

Array = npt.NDArray[np.float64]

MIB = 1 << 20
DEFAULT_CAP_MB = 25.0
CAPS_MB = (1.0, 2.5, 5.0, 10.0, DEFAULT_CAP_MB, 50.0)
"""Bucket caps that are worth a try, in MiB."""


@dataclass(frozen=True)
class Line:
    """Seconds of one collective: `latency_s` + bytes that a rank sends / `bytes_per_s` (the alpha-beta model)."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, sent_bytes: float) -> float:
        """Of one collective in which a rank sends that much."""
        return self.latency_s + sent_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Schedule:
    """A step's buckets in the order in which they are exchanged, as seen from the beginning of backward.

    Attributes:
        rows: layers of each bucket.
        ready_s: when the last gradient of each bucket is there; does not fall.
    """

    rows: tuple[tuple[int, ...], ...]
    ready_s: tuple[float, ...]


def fit_line(sent_bytes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line of least relative squares through measured points; its latency is not below zero.

    Relative, so that small messages, which tell the latency, count as much as large ones, which tell the rate.

    Raises:
        ValueError: for fewer than two sizes, or a size or time that is not above zero, or times that fall with size.
    """
    x, y = np.array(sent_bytes, dtype=np.float64), np.array(seconds, dtype=np.float64)
    if x.shape != y.shape or len(set(x.tolist())) < 2 or not (x > 0).all() or not (y > 0).all():
        raise ValueError(f"a line needs two or more sizes and times above 0, got {sent_bytes} and {seconds}")
    relative = x / y
    (latency_s, per_byte), *_ = np.linalg.lstsq(np.stack([1 / y, relative], axis=1), np.ones(len(x)), rcond=None)
    if latency_s < 0 or per_byte <= 0:  # noise: the line through the origin
        latency_s, per_byte = 0.0, relative.sum() / (relative @ relative)
    return Line(float(latency_s), float(1 / per_byte))


def fill_buckets(ready_s: Sequence[float], sizes_bytes: Sequence[int], cap_mb: float) -> Schedule:
    """DDP's buckets: layers in the order in which their gradients come, a bucket ends once it has reached the cap.

    Args:
        ready_s: of each layer's gradient, from the beginning of backward.
        sizes_bytes: of each layer's gradient.
        cap_mb: MiB.
    """
    order = sorted(range(len(ready_s)), key=lambda row: (ready_s[row], -row))
    rows: list[tuple[int, ...]] = []
    bucket: list[int] = []
    for row in order:
        bucket.append(row)
        if sum(sizes_bytes[each] for each in bucket) >= cap_mb * MIB:
            rows.append(tuple(bucket))
            bucket = []
    if bucket:
        rows.append(tuple(bucket))
    return Schedule(tuple(rows), tuple(max(ready_s[row] for row in each) for each in rows))


def exposed_s(ready_s: Sequence[float], seconds: Sequence[float]) -> float:
    """What backward does not hide of buckets that take `seconds`, exchanged one after the other."""
    end = 0.0
    for ready, duration in zip(ready_s, seconds, strict=True):
        end = max(end, ready) + duration
    return max(0.0, end - max(ready_s, default=0.0))


def on_critical_path(ready_s: Sequence[float], seconds: Sequence[float]) -> list[bool]:
    """Buckets that would make the step longer if they took longer: those since the exchange was idle last."""
    critical: list[bool] = []
    end = 0.0
    for ready, duration in zip(ready_s, seconds, strict=True):
        if ready > end:
            critical = [False] * len(critical)
        critical.append(True)
        end = max(end, ready) + duration
    return critical


def allreduce_s(schedule: Schedule, sizes_bytes: Sequence[float], line: Line, world_size: int) -> list[float]:
    """Seconds of each bucket by DDP's own allreduce; `sizes_bytes` of each layer on the wire."""
    share = ring_share(world_size)
    return [line.seconds(share * sum(sizes_bytes[row] for row in rows)) for rows in schedule.rows]


def exchange_s(schedule: Schedule, layer_s: Sequence[float], line: Line) -> list[float]:
    """Seconds of each bucket by lgreco: a latency for the bucket, and what each of its layers takes."""
    return [line.latency_s + sum(layer_s[row] for row in rows) for rows in schedule.rows]


def accumulated_s(compute_s: float, exposed: float, passes: int) -> float:
    """Seconds per pass where gradients are exchanged in every `passes`-th backward only."""
    return compute_s + exposed / passes


def hierarchical_s(
    payload_bytes: float, nodes: int, ranks_per_node: int, inner: Line, outer: Line, outer_payload_bytes: float
) -> float:
    """An exchange in three parts: reduce-scatter in a node, exchange between nodes, all-gather in a node.

    A node's link carries the gradient once, compressed or not, instead of once for each of its ranks; its ranks share
    that link, each for its own part.

    Args:
        payload_bytes: dense gradient of a rank.
        nodes: each with one link to the others.
        ranks_per_node: joined by a faster one.
        inner: collectives in a node.
        outer: collectives between nodes, at the node's whole rate.
        outer_payload_bytes: of the whole gradient, as it travels between nodes.
    """
    inside = 0.0
    if ranks_per_node > 1:
        inside = 2 * inner.latency_s + ring_share(ranks_per_node) * payload_bytes / inner.bytes_per_s
    between = outer.seconds(ring_share(nodes) * outer_payload_bytes) if nodes > 1 else 0.0
    return inside + between
