"""A small model and its training steps, the same for every multi-rank test."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from ranks import say
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco import _C

WIDTH = 96


class Net(nn.Module):
    """Four matrices of different sizes, their biases, and a scalar: layers that are split, whole, and dense."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 3 * width)
        self.odd = nn.Linear(3 * width, 2 * width + 1)
        self.narrow = nn.Linear(2 * width + 1, width)
        self.out = nn.Linear(width, 8)
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width] -> [n, 8]."""
        x = torch.tanh(self.wide(x))
        x = torch.tanh(self.odd(x))
        x = torch.tanh(self.narrow(x))
        return self.out(x) * self.gain


class Deep(nn.Sequential):
    """Many square layers, of which a bucket holds few; 5 MB where nothing else is said."""

    def __init__(self, layers: int = 5, width: int = 512, inputs: int = 256) -> None:
        widths = [min(width, inputs), *[width] * layers]
        super().__init__(
            *(layer for i in range(layers) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.Tanh())),
            nn.Linear(width, 100),
        )


def make(make_model: Callable[[], nn.Module] = Net, dtype: torch.dtype | None = None, **ddp: Any) -> Any:
    """A model of the same weights on every rank, wrapped in DDP with buckets of a few layers each."""
    torch.manual_seed(7)
    return DistributedDataParallel(make_model().to(dtype=dtype), **{"bucket_cap_mb": 0.1, **ddp})


def batch_of(rank: int, step: int, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What `rank` sees in `step`: [4, width]."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(4, width, generator=generator).to(dtype)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Scalar, fp32."""
    return model(x).float().square().mean()


def train(ddp: Any, rank: int, steps: Iterable[int], optimizer: Any = None, width: int = WIDTH) -> list[str]:
    """Steps with SGD (or `optimizer`); the digest of the parameters after each."""
    optimizer = optimizer or torch.optim.SGD(ddp.parameters(), lr=0.2)
    digests = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(ddp, batch_of(rank, step, width, next(ddp.parameters()).dtype)).backward()
        optimizer.step()
        digests.append(digest(ddp.parameters()))
    return digests


def train_for_ever(rank: int, world_size: int, config: Any) -> None:
    """Until somebody ends it; says "going" after ten steps."""
    ddp = make(bucket_cap_mb=0.05)
    lgreco.attach(ddp, config)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    train(ddp, rank, range(10), optimizer)
    say("going")
    train(ddp, rank, itertools.count(10), optimizer)


def local_gradients(ddp: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """This rank's own gradients, by layer name, not averaged; leaves .grad empty."""
    with ddp.no_sync():
        loss_of(ddp, x).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in ddp.module.named_parameters()}
    ddp.zero_grad()
    return gradients


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Equal for equal bits."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def state_digest(state: lgreco.State) -> str:
    """Equal for equal residuals, warm starts and step counts; what is not there yet is a zero one."""
    saved = state.state_dict()
    kept = ("sender", "owner", "warm_p", "warm_q")
    tensors = [part[side] for part in saved["residuals"].values() for side in kept]
    return f"{saved['steps']} {digest(tensor for tensor in tensors if tensor is not None and tensor.any())}"


def attach_faulty(ddp: Any, config: Any, faults: _C.Faults) -> lgreco.State:
    """`lgreco.attach` over a transport with faults made on purpose."""
    state = lgreco.State(config, ddp.process_group)
    state._faults = faults
    state._bind(ddp)
    state._register(ddp)
    ddp._comm_hooks.append((lgreco.hook, state))
    return state


def everything(choice: str, **config: Any) -> dict[str, Any]:
    """A config that gives every matrix of `Net` one choice."""
    return {"default": choice, "min_numel": 1, **config}


def same_on_all_ranks(results: list[Any]) -> Any:
    """Asserts that every rank returned the same, and returns it."""
    assert all(result == results[0] for result in results), results
    return results[0]


def undelivered(state: lgreco.State) -> dict[str, torch.Tensor]:
    """What is still to be added to the averaged gradient, by layer."""
    total: dict[str, torch.Tensor] = {}
    ranks = state.gather()["ranks"]
    for part in ranks:
        for name, residual in part.items():
            layer = total.setdefault(name, torch.zeros(residual["sender"].numel(), dtype=torch.float64))
            layer += residual["sender"].double() / len(ranks)
            if residual["owner"] is not None:
                begin = residual["owner_offset"]
                layer[begin : begin + residual["owner"].numel()] += residual["owner"].double()
    return total
