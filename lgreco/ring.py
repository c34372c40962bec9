"""What a ring allreduce sends: the traffic of dense training, with which all others are compared."""

from __future__ import annotations


def ring_share(world_size: int) -> float:
    """What a rank sends in a ring allreduce, and in both rounds of an exchange, as a share of the payload."""
    return 2 * (world_size - 1) / world_size


def ring_allreduce_bytes(numel: int, world_size: int) -> int:
    """Bytes that each rank sends in a ring allreduce of `numel` fp32 values: 2 (W - 1) / W * 4 * numel."""
    return 2 * (world_size - 1) * 4 * numel // world_size
