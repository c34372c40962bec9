"""Whatever a model is made of trains with lgreco attached, replicas bit-identical.

SyncBatchNorm is not here: DDP refuses it on a CPU. It is a test of tests/gpu.
"""

from __future__ import annotations

import pytest
import torch
from ranks import run
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from training import Deep, Net, batch_of, digest, everything, loss_of, make, same_on_all_ranks, train

import lgreco

FOUR_BITS = "quantize(bits=4, block=128)"
CONFIG = everything(FOUR_BITS)


class _Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3)
        self.out = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.out(torch.relu(self.second(x)).mean((2, 3)))


def _pictures(rank: int, world_size: int) -> list[str]:
    digests = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for as_view in (False, True):
            ddp = make(lambda: _Pictures().to(memory_format=memory_format), gradient_as_bucket_view=as_view)  # noqa: B023
            state = lgreco.attach(ddp, CONFIG)
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
            generator = torch.Generator().manual_seed(rank)
            for _ in range(3):
                x = torch.randn(2, 3, 10, 10, generator=generator).to(memory_format=memory_format)
                optimizer.zero_grad()
                ddp(x).square().mean().backward()
                optimizer.step()
            assert ddp.module.second.weight.is_contiguous(memory_format=memory_format)
            assert state.plan["second.weight"] == lgreco.parse(FOUR_BITS)
            digests.append(digest(ddp.parameters()))
            state.close()
    return digests


def test_channels_last_convolutions_train() -> None:
    """A net with convolutions and batch norm, its weights in either memory format."""
    digests = same_on_all_ranks(run(2, _pictures))
    assert digests[0] == digests[1]
    assert digests[2] == digests[3]


class _Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.wide(x))
        x = checkpoint(self._middle, x, use_reentrant=self.reentrant)
        return self.out(x) * self.gain

    def _middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.narrow(torch.tanh(self.odd(x))))


def _recomputing(rank: int, world_size: int) -> list[list[str]]:
    runs = []
    for make_model, options in (
        (Net, {}),
        (lambda: _Checkpointed(False), {}),
        (lambda: _Checkpointed(True), {}),
        (lambda: _Checkpointed(True), {"static_graph": True}),
    ):
        ddp = make(make_model, **options)
        lgreco.attach(ddp, CONFIG)
        runs.append(train(ddp, rank, range(3)))
    return runs


def test_activation_checkpointing_changes_no_bit() -> None:
    """Activations that are computed twice, in either of torch's ways, give the same bits."""
    for runs in run(2, _recomputing):
        assert all(digests == runs[0] for digests in runs)


def _compiled(rank: int, world_size: int) -> list[str]:
    config = everything(FOUR_BITS, layers={"10.weight": "dense(dtype=bf16)"})
    around = make(Deep, bucket_cap_mb=1)
    lgreco.attach(around, config)
    inside = DistributedDataParallel(torch.compile(make(Deep).module, backend="aot_eager"), bucket_cap_mb=1)
    state = lgreco.attach(inside, config)
    assert state.plan["10.weight"] == lgreco.parse("dense(dtype=bf16)"), "names are the model's, not its wrapper's"
    digests = []
    for ddp, trained in ((around, torch.compile(around, backend="aot_eager")), (inside, inside)):
        digests += train(trained, rank, range(3), width=256)
        assert len(ddp.reducer._get_zeros_like_grad_buckets()) > 2
    return digests


def test_compiled_models_train() -> None:
    """torch.compile around DDP, where it splits the graph by buckets, and inside it."""
    same_on_all_ranks(run(2, _compiled))


def _clipped(rank: int, world_size: int) -> list[tuple[str, float]]:
    ddp = make()
    lgreco.attach(ddp, CONFIG)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    results = []
    for step in range(3):
        optimizer.zero_grad()
        (1e3 * loss_of(ddp, batch_of(rank, step))).backward()
        norm = torch.nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
        optimizer.step()
        results.append((digest(ddp.parameters()), float(norm)))
    return results


def test_clipping_sees_the_same_norm_on_every_rank() -> None:
    """Gradients are averaged before backward returns, so clipping agrees on all ranks."""
    same_on_all_ranks(run(3, _clipped))


class _Odd(nn.Module):
    """Layers of no element, of one, and scalars, among others."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.empty(0, 7))
        self.one = nn.Parameter(torch.ones(1, 1))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.prime = nn.Parameter(torch.ones(96, 1009) / 96)
        self.frozen = nn.Parameter(torch.ones(96), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x * self.frozen) @ self.prime) * self.one * self.scalar + self.none.sum()


class _Nothing(nn.Module):
    """Only layers of no element."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.empty(0, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() + self.none.sum()


def _odd_sizes(rank: int, world_size: int) -> list[str]:
    digests = []
    for choice in (FOUR_BITS, "quantize(bits=1, block=32, grid=symmetric)", "dense(dtype=bf16)", "dense(dtype=fp32)"):
        ddp = make(_Odd)
        state = lgreco.attach(ddp, everything(choice, layers={"*": choice}))
        assert set(state.plan.values()) == {lgreco.parse(choice)}
        assert list(state.plan) == ["none", "one", "scalar", "prime"]
        digests += train(ddp, rank, range(3))
        assert ddp.module.one.isfinite().all()
        assert float(ddp.module.one) != 1.0
        state.load_state_dict(state.state_dict())
        state.close()
    empty = make(_Nothing)
    lgreco.attach(empty, everything(FOUR_BITS, layers={"*": FOUR_BITS}))
    return digests + train(empty, rank, range(2))


@pytest.mark.parametrize("world_size", [2, 3])
def test_odd_sizes_are_ordinary(world_size: int) -> None:
    """Layers of no element, of one, scalars, primes and frozen ones train with every codec."""
    same_on_all_ranks(run(world_size, _odd_sizes))
