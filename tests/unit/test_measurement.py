"""What a measurement costs: how often the gradient is read does not depend on how many choices there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lgreco.candidates import make_offers
from lgreco.choice import parse
from lgreco.layer import LayerInfo
from lgreco.measurement import Gradients, Meter
from lgreco.plan import Plan, PlannedLayer
from lgreco.solver_config import SolverConfig

ROWS, COLS = 512, 1024


class Mirror:
    """Two ranks of which the other one holds the same: all of `Peers` that a meter uses."""

    rank, world_size = 0, 2

    def sum(self, tensor: torch.Tensor) -> None:
        """In place: the other rank adds zeros to what is measured here."""

    def mean(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of equals."""
        return list(tensors)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Both."""
        return [tensor, tensor]

    def exchange(self, outbox: torch.Tensor, send: Sequence[int], receive: Sequence[int]) -> list[torch.Tensor]:
        """What this rank sends to itself comes from both."""
        return [outbox[:size].clone() for size in receive]


class Reads(TorchDispatchMode):
    """Counts elements that operators read from one storage: all of a view, for what is not itself a view."""

    def __init__(self, watched: torch.Tensor) -> None:
        super().__init__()
        self._address = watched.untyped_storage().data_ptr()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            flat = [each for arg in args for each in (arg if isinstance(arg, list | tuple) else [arg])]
            for each in flat:
                if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() == self._address:
                    self.numel += each.numel()
        return func(*args, **(kwargs or {}))


def reads_of(candidates: Sequence[str]) -> float:
    """How many times a measurement reads the gradient, as a share of its elements."""
    layer = LayerInfo("matrix", (ROWS, COLS), "fp32")
    settings = SolverConfig(candidates=list(candidates), reference=candidates[0])
    offers = make_offers(settings, Plan([PlannedLayer(layer, parse("dense"), "default")]), [True], 2, "fp32")
    values = torch.randn(ROWS * COLS, generator=torch.Generator().manual_seed(0))
    meter = Meter(offers, Mirror(), seed=1)  # type: ignore[arg-type]
    gradients = Gradients(0, [0], [values], [values.clone()], [None])
    with Reads(values) as reads:
        row = meter.measure(gradients)[0]
    assert row.sound
    return reads.numel / values.numel()


BITS = [f"quantize(bits={bits}, block=512)" for bits in range(2, 9)]
DENSITIES = [f"topk(density={density})" for density in (0.001, 0.01, 0.1)]
RANKS = [f"lowrank(rank={rank}, factors=int8)" for rank in (1, 2, 4, 8)]


@pytest.mark.parametrize("family", [BITS, DENSITIES, BITS + DENSITIES])
def test_sampled_families_read_their_sample_once(family: list[str]) -> None:
    assert 0 < reads_of(family) < 1 / 8
    assert reads_of(family) == reads_of(family[:1])


def test_low_rank_reads_a_sketch_and_one_power_iteration() -> None:
    """M Omega, then M^T U and M V: three products whatever the ranks, beside the sample."""
    assert 3 < reads_of(RANKS) < 3 + 1 / 8
    assert reads_of(RANKS) == reads_of(RANKS[:1])
    assert reads_of(RANKS + BITS) == reads_of(RANKS)
