"""Plans, tables and a pruner's rows: all of them see the smaller matrix that a mask of whole rows and columns keeps."""

from __future__ import annotations

import pytest
import torch
from kept_masks import NAMES, mask_of, masks_of
from masking import measure_kept, train_masked
from ranks import run
from training import batch_of, digest, everything, local_gradients, loss_of, make, same_on_all_ranks

import lgreco
from lgreco.choice import LowRank, parse
from lgreco.masks import LayerMask
from lgreco.plan import wire_bytes
from lgreco.pruning import OneShotSchedule, Pruner

BOTH = "lowrank(rank=4, factors=int8)"


def _solved(rank: int, world_size: int) -> tuple[list[str], list[str]]:
    ddp = make()
    solver = {
        "interval": 4,
        "window": 2,
        "lag": 2,
        "alpha": 2.0,
        "families": ["lowrank", "dense"],
        "reference": "lowrank(rank=8)",
    }
    state = lgreco.attach(ddp, {"min_numel": 1, "warmup_steps": 4, "solver": solver, "check_replicas_every": 1})
    masks = {step: masks_of(ddp, kind, step) for step, kind in ((5, "rows"), (9, "both"), (14, "columns"))}
    digests, plans = [], []
    for step in range(20):
        digests += train_masked(ddp, rank, range(step, step + 1), state, masks)
        plans.append(str(state.plan))
        for planned in state.plan.planned:
            dense = wire_bytes(planned.layer, parse("dense(dtype=fp32)"), world_size)
            assert wire_bytes(planned.layer, planned.choice, world_size) <= dense
            assert not isinstance(planned.choice, LowRank) or planned.choice.rank <= min(planned.layer.matrix)
    assert state._binding.controller.failure is None
    matrices = {planned.layer.name: planned.layer.kept_matrix for planned in state.plan.planned}
    assert matrices["odd.weight"] == (193, int(masks[14]["odd.weight"].any(0).sum()))
    state.close()
    return digests, plans


def test_the_solver_chooses_by_the_smaller_matrices() -> None:
    """Replicas stay alike while masks and plans change; no rank is above the matrix's own, none costs too much."""
    _, plans = same_on_all_ranks(run(3, _solved))
    assert len(set(plans)) > 2
    assert all("lowrank" in plan for plan in plans[4:])


def _measured(rank: int, world_size: int) -> None:
    kept = mask_of((96, 200), "both")
    matrix = LayerMask.of(kept).matrix((96, 200))
    assert matrix is not None
    candidates = ["lowrank(rank=2, factors=fp32)", f"lowrank(rank={min(matrix) + 1}, factors=int2)", "dense"]
    row, errors, _, mean = measure_kept(rank, world_size, kept, candidates)
    singular = torch.linalg.svdvals(mean.view(matrix).double())
    assert errors[candidates[0]] == pytest.approx(float(singular[2:].square().sum()), rel=0.02)
    assert not errors[candidates[1]] >= 0, "a rank above the matrix's own is offered"
    assert row.squared_norm == pytest.approx(float(mean.square().sum()), rel=1e-4)


def test_tables_measure_the_smaller_matrix() -> None:
    """Its singular values tell the error of each rank; a rank above its own is not offered."""
    run(2, _measured)


def _watched(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(BOTH))
    mask = masks_of(ddp, "both")["odd.weight"]
    state.set_masks({"odd.weight": mask})
    engine, names = state._binding.engine, list(state.plan)
    engine.watch(1, [names.index("odd.weight")])
    loss_of(ddp, batch_of(rank, 0)).backward()
    ddp.zero_grad()
    residual = state.state_dict()["residuals"]["odd.weight"]["sender"]
    own = local_gradients(ddp, batch_of(rank, 1))["odd.weight"].flatten()
    loss_of(ddp, batch_of(rank, 1)).backward()
    delivered = ddp.module.odd.weight.grad.flatten()
    snapshot = engine.next_snapshot()
    kept = mask.flatten()
    assert torch.allclose(snapshot.values[0], (own + residual)[kept], rtol=1e-5, atol=1e-7)
    assert torch.equal(snapshot.delivered[0], delivered[kept])


def test_snapshots_hold_the_smaller_matrix() -> None:
    """Gradient + residual before, what was delivered after."""
    run(2, _watched)


def _pruned(rank: int, world_size: int, structure: str) -> tuple[list[str], list[float]]:
    ddp = make()
    state = lgreco.attach(ddp, everything(BOTH))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2, momentum=0.9)
    schedule = OneShotSchedule(0.5, 2)
    pruner = Pruner(ddp.module, optimizer, schedule, structure=structure, allocation="uniform", layers=list(NAMES))
    pruner.attach(state)
    digests, sent = [], []
    for step in range(5):
        optimizer.zero_grad()
        loss_of(ddp, batch_of(rank, step)).backward()
        sent.append(state.stats()["wire_bytes"])
        optimizer.step()
        pruner.step()
        digests.append(digest(ddp.parameters()))
    for name, mask in pruner.masks.items():
        weight = ddp.module.get_parameter(name)
        assert 0 < int(mask.sum()) < mask.numel()
        assert not weight[~mask].any()
        assert not weight.grad[~mask].any()
        assert {planned.layer.name: planned.layer.kept_matrix for planned in state.plan.planned}[name] is not None
    return digests, sent


@pytest.mark.parametrize("structure", ["rows", "columns"])
def test_a_pruner_of_rows_or_columns_shrinks_what_low_rank_sends(structure: str) -> None:
    """Pruned weights stay exactly zero, replicas alike."""
    results = run(2, _pruned, structure)
    same_on_all_ranks([digests for digests, _ in results])
    before, after = (sum(sent[step] for _, sent in results) for step in (0, 4))
    assert after < 0.9 * before
