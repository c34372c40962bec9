"""The ranks of a training job: how they join, the device of this rank, and agreement between ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from lgreco.launch import init_process_group
from lgreco.launch_environment import read_launch

_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the ranks, and what it computes on.

    Attributes:
        rank: of this process, 0 to world_size - 1.
        world_size: number of ranks.
        device: of this rank.
        backend: of torch.distributed: gloo or nccl.
        reason: why this device, for people.
    """

    rank: int
    world_size: int
    device: torch.device
    backend: str
    reason: str

    @property
    def leads(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over ranks of each element; collective. fp64, on the CPU."""
        return self.sum(values) / self.world_size

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks of each element; collective. fp64, on the CPU."""
        total = values.detach().to(self.device, torch.float64, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def all_equal(self, digest: bytes) -> bool:
        """Whether all ranks hold the same bytes; collective. The digests must be of one length."""
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.device)
        every = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(every, mine)
        return all(bool(torch.equal(mine, other)) for other in every)

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.sum(torch.zeros(1))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Joins the process group that the launcher describes, and leaves it at the end.

    After an error it is not left: a peer may be gone, and leaving may wait for it; the process is about to end anyway.

    Args:
        device: `cpu`, `cuda`, or `auto`: a GPU for each rank of this host where there are as many, else the CPU.

    Raises:
        ValueError: if the launcher's environment is missing or wrong, or the GPUs asked for are missing.
    """
    launch = read_launch()
    here, reason = _choose_device(device, launch.local_rank, launch.local_world_size)
    backend = "nccl" if here.type == "cuda" else "gloo"
    init_process_group(backend, timeout=_TIMEOUT)
    yield Ranks(dist.get_rank(), dist.get_world_size(), here, backend, reason)
    dist.destroy_process_group()


def launched_rank() -> int:
    """Rank that the launcher gave this process, 0 where none speaks clearly; known before any process group."""
    try:
        return read_launch().rank
    except ValueError:
        return 0


def parameter_digest(module: torch.nn.Module) -> bytes:
    """SHA-256 of the bytes of all parameters, 32 bytes."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _choose_device(asked: str, local_rank: int, local_world_size: int) -> tuple[torch.device, str]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    enough = gpus >= local_world_size
    if asked == "cuda" and not enough:
        raise ValueError(f"device 'cuda' must have a GPU for each of the {local_world_size} local ranks, got {gpus}")
    if asked == "cuda" or (asked == "auto" and enough):
        return torch.device("cuda", local_rank), "one GPU for each rank"
    if asked == "auto" and gpus:
        return torch.device("cpu"), f"{gpus} GPUs are too few for {local_world_size} local ranks"
    return torch.device("cpu"), "asked for" if asked == "cpu" else "no GPU here"
