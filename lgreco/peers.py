"""All ranks as the slow path talks to them: over a group that nobody else uses, until one of them leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist

from lgreco.agreement import leave_cpu_group


class Peers:
    """Collectives of one thread; each is called by all ranks in the same order.

    Args:
        group: reaches the CPU. Only this object may hold it: it ends when its last reference goes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group: dist.ProcessGroup | None = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def sum(self, tensor: torch.Tensor) -> None:
        """Sums a tensor over ranks, in place; every rank gets the same bits."""
        dist.all_reduce(tensor, group=self._there())

    def mean(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Means of several tensors over ranks, in one message."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.sum(flat)
        flat /= self.world_size
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, of one shape, in rank order."""
        everyone = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(everyone, tensor, group=self._there())
        return everyone

    def differing(self, content: bytes) -> list[int]:
        """Ranks whose content is another than rank 0's, the same list on every rank; only digests travel."""
        digest = hashlib.sha256(content).digest()
        everyone = self.gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        return [rank for rank, theirs in enumerate(everyone) if not torch.equal(theirs, everyone[0])]

    def exchange(self, outbox: torch.Tensor, send: Sequence[int], receive: Sequence[int]) -> Sequence[torch.Tensor]:
        """Sends `send[r]` elements to each rank r; what came from each, `receive[r]` elements."""
        inbox = torch.empty(sum(receive), dtype=outbox.dtype, device="cpu")
        dist.all_to_all_single(inbox, outbox, list(receive), list(send), group=self._there())
        parts: Sequence[torch.Tensor] = inbox.split(list(receive))
        return parts

    def leave(self) -> None:
        """Closes the connections, so that peers that wait for this rank get an error instead. May be called twice."""
        group, self._group = self._group, None
        if group is not None:
            leave_cpu_group(group)

    def _there(self) -> dist.ProcessGroup:
        if self._group is None:
            raise RuntimeError("this rank has left the group")
        return self._group
