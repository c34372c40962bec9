"""The ranks of a training job: torchrun's environment, the device of this rank, and agreement between ranks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

_TIMEOUT = timedelta(minutes=5)
_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
    """Joins the process group that torchrun describes, and leaves it at the end.

    After an error it is not left: a peer may be gone, and leaving may wait for it; the process is about to end anyway.

    Args:
        device: `cpu`, `cuda`, or `auto`: a GPU for each rank of this host where there are as many, else the CPU.

    Raises:
        ValueError: if torchrun's environment is missing, or the GPUs asked for are.
    """
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"{missing[0]} is not set: start this with torchrun, "
            "such as torchrun --standalone --nproc-per-node 2 launch/train.py --config configs/quickstart.yaml"
        )
    here, reason = _choose_device(device, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    backend = "nccl" if here.type == "cuda" else "gloo"
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group(backend, timeout=_TIMEOUT, device_id=here if here.type == "cuda" else None)
    yield Ranks(dist.get_rank(), dist.get_world_size(), here, backend, reason)
    dist.destroy_process_group()


def launched_rank() -> int:
    """Rank that torchrun gave this process, 0 without torchrun; known before any process group."""
    return int(os.environ.get("RANK", "0"))


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
