"""Masked layers under a solver: tables and snapshots hold what is kept, plans follow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masking import CHOICES, gradients_of, masks_of, measure_kept, train_masked
from ranks import run
from training import batch_of, digest, everything, local_gradients, loss_of, make, same_on_all_ranks

import lgreco
from lgreco import _C
from lgreco.choice import parse
from lgreco.plan import wire_bytes


def _solved(rank: int, world_size: int, families: list[str]) -> tuple[list[str], list[tuple[str, ...]], list[float]]:
    ddp = make()
    solver = {"interval": 4, "window": 2, "lag": 2, "alpha": 2.0, "families": families, "reference": "quantize(bits=4)"}
    state = lgreco.attach(ddp, {"min_numel": 1, "warmup_steps": 4, "solver": solver, "check_replicas_every": 1})
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    digests, plans, sent = [], [], []
    for step in range(24):
        optimizer.zero_grad()
        loss_of(ddp, batch_of(rank, step)).backward()
        optimizer.step()
        digests.append(digest(ddp.parameters()))
        plans.append(tuple(str(choice) for choice in state.plan.values()))
        sent.append(sum(wire_bytes(p.layer, p.choice, world_size) for p in state.plan.planned))
        if step in (2, 5, 9, 10, 17):
            state.set_masks(masks_of(ddp, 1.0 - step / 20, step))
        if step == 13:
            saved = state.gather()
            assert len(saved["masks"]) == 4
    assert state._binding.controller.failure is None
    for planned in state.plan.planned:
        dense = wire_bytes(planned.layer, parse("dense(dtype=fp32)"), world_size)
        assert wire_bytes(planned.layer, planned.choice, world_size) <= dense
    state.close()
    return digests, plans, sent


@pytest.mark.parametrize("families", [["quantize", "dense"], ["lowrank", "quantize", "topk", "dense"]])
def test_replicas_stay_alike_while_masks_and_plans_change(families: list[str]) -> None:
    """The solver measures kept elements, and its plans follow the masks."""
    _, plans, sent = same_on_all_ranks(run(3, _solved, families))
    assert len(set(plans)) > 2
    if families == ["quantize", "dense"]:
        assert sent[-1] < 0.4 * sent[6]
    else:
        assert any("lowrank" in choice for choice in plans[12]), "matrices of which half is pruned are factored too"


def _solver_resumed(rank: int, world_size: int) -> None:
    solver = {
        "reference": "lowrank(rank=8)",
        "interval": 4,
        "window": 2,
        "lag": 2,
        "alpha": 2.0,
        "families": ["quantize", "lowrank", "dense"],
    }
    config = {"min_numel": 1, "warmup_steps": 2, "solver": solver}

    def fresh() -> tuple[Any, lgreco.State]:
        ddp = make()
        return ddp, lgreco.attach(ddp, config)

    ddp, state = fresh()
    masks = {5: masks_of(ddp, 0.5), 9: masks_of(ddp, 0.3, 1)}
    digests = train_masked(ddp, rank, range(16), state, masks)
    for split in (6, 8, 11):
        first, state_one = fresh()
        train_masked(first, rank, range(split), state_one, masks)
        saved, weights = state_one.gather(), first.module.state_dict()
        second, state_two = fresh()
        second.module.load_state_dict(weights)
        state_two.load_state_dict(saved)
        later = {step: each for step, each in masks.items() if step >= split}
        assert train_masked(second, rank, range(split, 16), state_two, later) == digests[split:], split


def test_a_solver_continues_with_masks_bit_for_bit() -> None:
    """Tables, plans and masks of a checkpoint belong together."""
    run(2, _solver_resumed)


def _measured(rank: int, world_size: int, density: float) -> None:
    shape = (96, 200)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < density
    candidates = ["quantize(bits=4, block=64)", "lowrank(rank=2, factors=fp32)", "dense"]
    row, errors, everyone, mean = measure_kept(rank, world_size, kept, candidates)
    whole = torch.zeros(shape)
    whole[kept] = mean
    u, s, vt = torch.linalg.svd(whole, full_matrices=False)
    best = ((u[:, :2] * s[:2]) @ vt[:2])[kept]
    assert errors[candidates[1]] == pytest.approx(float((mean - best).square().sum()), rel=0.1)
    simulated = _C.simulate_choice(parse(candidates[0]).to_native(), everyone, 8)
    assert errors[candidates[0]] == pytest.approx(simulated, rel=1e-6)
    assert row.squared_norm == pytest.approx(float(mean.square().sum()), rel=1e-4)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_tables_measure_kept_elements(density: float) -> None:
    """Quantisation of the run; low rank of the masked matrix, at what is kept of it."""
    run(2, _measured, density)


def _watched(rank: int, world_size: int, choice: str) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    mask = masks_of(ddp, 0.6)["odd.weight"]
    state.set_masks({"odd.weight": mask})
    engine, names = state._binding.engine, list(state.plan)
    engine.watch(1, [names.index("odd.weight")])
    gradients_of(ddp, rank, 0)
    ddp.zero_grad()
    residual = state.state_dict()["residuals"]["odd.weight"]["sender"]
    own = local_gradients(ddp, batch_of(rank, 1))["odd.weight"].flatten()
    delivered = gradients_of(ddp, rank, 1)["odd.weight"].flatten()
    snapshot = engine.next_snapshot()
    kept = mask.flatten()
    assert torch.allclose(snapshot.values[0], (own + residual)[kept], rtol=1e-5, atol=1e-7)
    assert torch.equal(snapshot.delivered[0], delivered[kept])


@pytest.mark.parametrize("choice", [CHOICES[2], CHOICES[5]])
def test_snapshots_hold_what_is_kept(choice: str) -> None:
    """Gradient + residual of kept elements before, what was delivered of them after."""
    run(2, _watched, choice)
