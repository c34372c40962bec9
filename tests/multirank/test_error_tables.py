"""Error tables: all ranks' gradients count, both rounds count, and what cannot be measured is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run

from lgreco import _C
from lgreco.candidates import Offers, make_offers
from lgreco.choice import Quantize, parse
from lgreco.layer import LayerInfo
from lgreco.measurement import Gradients, Meter, Row
from lgreco.peers import Peers
from lgreco.plan import Plan, PlannedLayer
from lgreco.solver_config import SolverConfig

CANDIDATES = ["quantize(bits=2, block=64)", "quantize(bits=8, block=64)", "lowrank(rank=1, factors=fp32)", "dense"]


def offers_for(shapes: Sequence[tuple[int, ...]], world_size: int, candidates: Sequence[str] = CANDIDATES) -> Offers:
    layers = [LayerInfo(f"layer{i}", shape, "fp32") for i, shape in enumerate(shapes)]
    settings = SolverConfig(candidates=list(candidates), reference=candidates[0])
    plan = Plan(PlannedLayer(layer, parse("dense"), "default") for layer in layers)
    return make_offers(settings, plan, [True] * len(layers), world_size, "fp32")


def measured(offers: Offers, values: Sequence[torch.Tensor], step: int = 3) -> dict[int, Row]:
    """Rows of all layers, of which `values` holds this rank's gradients; the exact mean is what was delivered."""
    delivered = []
    for value in values:
        mean = value.clone().double()
        dist.all_reduce(mean)
        delivered.append((mean / dist.get_world_size()).float().flatten())
    flat = [value.flatten() for value in values]
    nothing = [None] * len(values)
    meter = Meter(offers, Peers(dist.new_group(backend="gloo")), seed=5)
    return meter.measure(Gradients(step, range(len(values)), flat, delivered, nothing))


def errors_of(offers: Offers, row: Row) -> dict[str, float]:
    return {str(choice): float(error) for choice, error in zip(offers.choices, row.errors, strict=True)}


def bits_of(rows: dict[int, Row]) -> list[Any]:
    return [(i, row.errors.tobytes(), repr((row.squared_norm, row.realised))) for i, row in sorted(rows.items())]


def _opposed(rank: int, world_size: int) -> Any:
    torch.manual_seed(rank)
    offers = offers_for([(64, 96)], world_size)
    common = torch.outer(torch.linspace(-1, 1, 64), torch.linspace(1, 2, 96))
    noise = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 10
    row = measured(offers, [common + (noise if rank % 2 else -noise)])[0]
    _, own_energy = torch.linalg.svdvals(common + noise).square(), float((common + noise).square().sum())
    alone = own_energy - float(torch.linalg.svdvals(common + noise)[0]) ** 2
    return errors_of(offers, row), row.squared_norm, float(common.square().sum()), alone


def test_the_mean_over_ranks_reverses_the_best_choice() -> None:
    """Rank 0's gradient is noise, best quantised; the average, in which the noise cancels, is of rank one."""
    answers = run(4, _opposed)
    errors, norm, exact_norm, alone = answers[0]
    assert all(answer[0] == errors for answer in answers)
    assert errors["lowrank(rank=1, factors=fp32)"] < 1e-4 * norm < errors["quantize(bits=8, block=64)"] * 1e2
    assert errors["lowrank(rank=1, factors=fp32)"] < errors["quantize(bits=2, block=64)"] < alone
    assert norm == pytest.approx(exact_norm, rel=1e-3)


def _quantised(values: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Min-max quantisation by blocks, rounding to nearest, as a person would write it."""
    out = np.empty_like(values)
    for begin in range(0, len(values), block):
        part = values[begin : begin + block].astype(np.float64)
        step = (part.max() - part.min()) / (2**bits - 1)
        codes = np.rint((part - part.min()) / step) if step > 0 else np.zeros_like(part)
        out[begin : begin + block] = part.min() + codes * step
    return out


def _by_hand(rank: int, world_size: int) -> Any:
    shapes = [(40, 50), (7, 700)]
    offers = offers_for(shapes, world_size)
    everyone = [
        [torch.randn(*shape, generator=torch.Generator().manual_seed(10 * r + i)) for i, shape in enumerate(shapes)]
        for r in range(world_size)
    ]
    rows = measured(offers, everyone[rank])
    for i in range(len(shapes)):
        values = [each[i].flatten().numpy() for each in everyone]
        exact = np.mean([value.astype(np.float64) for value in values], axis=0)
        for bits in (2, 8):
            sent = [_quantised(value, bits, 64) for value in values]
            delivered = _quantised(np.mean(sent, axis=0).astype(np.float32), bits, 64)
            column = offers.choices.index(Quantize(bits=bits, block=64))
            # Means of a few codes fall on ties, which fp32 and float64 round apart.
            assert rows[i].errors[column] == pytest.approx(float(np.square(exact - delivered).sum()), rel=0.02)
        assert rows[i].squared_norm == pytest.approx(float(np.square(exact).sum()), rel=1e-4)
        assert rows[i].realised <= 1e-10 * rows[i].squared_norm
        assert rows[i].errors[offers.choices.index(parse("dense"))] == 0.0
    return bits_of(rows)


def test_a_layer_that_is_sampled_whole_equals_an_exchange_by_hand() -> None:
    """Both rounds, cross terms included, on every rank the same bits."""
    answers = run(3, _by_hand)
    assert answers[1:] == answers[:1] * 2


def _low_rank(rank: int, world_size: int) -> Any:
    ranks = ["lowrank(rank=1, factors=fp32)", "lowrank(rank=4, factors=fp32)", "lowrank(rank=16, factors=fp32)"]
    ratios = []
    for power in (0.0, 0.5, 1.0, 2.0):
        offers = offers_for([(512, 384)], world_size, ranks)
        generator = torch.Generator().manual_seed(1)
        u = torch.linalg.qr(torch.randn(512, 384, generator=generator)).Q
        v = torch.linalg.qr(torch.randn(384, 384, generator=generator)).Q
        mean = (u * (torch.arange(384) + 1.0) ** -power) @ v.T
        own = torch.randn(512, 384, generator=generator) * mean.std() * (1 if rank % 2 else -1)
        row = measured(offers, [mean + own])[0]
        energies = torch.linalg.svdvals(mean.double()) ** 2
        for choice, error in errors_of(offers, row).items():
            kept = parse(choice).to_native().get("rank")
            if kept:
                ratios.append(error / float(energies[int(kept) :].sum()))
    return ratios


def test_low_rank_errors_are_those_of_the_mean() -> None:
    """Against an SVD of the exact mean, from flat to steep spectra: within 10 %."""
    answers = run(2, _low_rank)
    assert answers[0] == answers[1]
    assert answers[0] == pytest.approx([1.0] * len(answers[0]), rel=0.1)


def _damaged(rank: int, world_size: int) -> Any:
    offers = offers_for([(64, 64), (64, 64), (64, 64)], world_size)
    values = [torch.randn(64, 64), torch.zeros(64, 64), torch.randn(64, 64)]
    if rank == 1:
        values[0][3, 3] = float("nan")
        values[2][1, 1] = float("inf")
    rows = measured(offers, values)
    assert not rows[0].sound
    assert not rows[2].sound
    assert rows[1].sound
    assert rows[1].squared_norm == 0
    assert all(error == 0 for error in rows[1].errors[offers.offered[1]])
    return bits_of(rows)


def test_nan_and_zero_layers() -> None:
    """A NaN or inf on one rank spoils its own layer's row alone; a layer of zeros has no error under any choice."""
    answers = run(3, _damaged)
    assert answers[1:] == answers[:1] * 2


def _sampled(rank: int, world_size: int) -> Any:
    offers = offers_for([(1024, 700)], world_size)
    generator = torch.Generator().manual_seed(rank)
    value = torch.randn(1024, 700, generator=generator) * torch.linspace(0.1, 2, 700)
    row = measured(offers, [value])[0]
    everyone = [torch.empty(value.numel()) for _ in range(world_size)]
    dist.all_gather(everyone, value.flatten())
    whole = _C.simulate_choice(parse(CANDIDATES[0]).to_native(), everyone, 1)
    return errors_of(offers, row)[str(parse(CANDIDATES[0]))] / whole


def test_a_sample_stands_for_the_layer() -> None:
    assert run(2, _sampled) == pytest.approx([1.0, 1.0], rel=0.05)


def _owed(rank: int, world_size: int) -> Any:
    """The owner of the second half owes something: the target of exchange and prediction contains it."""
    offers = offers_for([(64, 100)], world_size)
    value = torch.randn(6400, generator=torch.Generator().manual_seed(rank))
    rest = torch.randn(3200, generator=torch.Generator().manual_seed(9))
    owed = [(3200, rest)] if rank == 1 else [(0, torch.zeros(3200))]
    mean = value.clone()
    dist.all_reduce(mean)
    mean /= world_size
    mean[3200:] += rest
    meter = Meter(offers, Peers(dist.new_group(backend="gloo")), seed=5)
    row = meter.measure(Gradients(0, [0], [value], [mean], owed))[0]
    return row.realised, errors_of(offers, row)["quantize(bits=8, block=64)"] / row.squared_norm


def test_what_owners_owe_belongs_to_the_exact_result() -> None:
    for realised, relative in run(2, _owed):
        assert realised < 1e-6
        assert 0 < relative < 1e-3
