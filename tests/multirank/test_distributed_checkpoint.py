"""torch.distributed.checkpoint: the same ranks go on bit for bit; other ranks or nodes lose no residual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import RankFailed, run
from training import Net, everything, make, same_on_all_ranks, state_digest, train

import lgreco
from lgreco.distributed_checkpoint import entries, load

CHOICES = ["quantize(bits=3, block=64, rounding=stochastic)", "topk(density=0.05)", "lowrank(rank=4, factors=int8)"]


def _straight(rank: int, world_size: int, choice: str) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    return [*train(ddp, rank, range(5)), state_digest(state)]


def _stopped(rank: int, world_size: int, choice: str, folder: Path) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    first = train(ddp, rank, range(3))
    dcp.save({"model": ddp.module.state_dict(), "lgreco": entries(state)}, checkpoint_id=folder)
    state.close()

    ddp = make()
    torch.nn.init.zeros_(ddp.module.wide.weight)
    state = lgreco.attach(ddp, everything(choice))
    saved = {"model": ddp.module.state_dict()}
    dcp.load(saved, checkpoint_id=folder)
    ddp.module.load_state_dict(saved["model"])
    load(state, folder)
    return [*first, *train(ddp, rank, range(3, 5)), state_digest(state)]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_same_ranks_go_on_bit_for_bit(tmp_path: Path, choice: str) -> None:
    assert run(3, _stopped, choice, tmp_path) == run(3, _straight, choice)


def _save(rank: int, world_size: int, choice: str, folder: Path) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    train(ddp, rank, range(3))
    dcp.save({"hook": entries(state)}, checkpoint_id=folder)
    return state.gather()


def _load_and_train(rank: int, world_size: int, choice: str, folder: Path) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    load(state, folder, key="hook")
    return state.gather(), train(ddp, rank, range(3, 6))


def _still_to_add(gathered: dict[str, Any]) -> dict[str, torch.Tensor]:
    """By layer, in fp64: the mean of the senders' residuals over those who carry it, plus the owners'."""
    total = {}
    for name, shape in gathered["shapes"].items():
        parts = [rank[name] for rank in gathered["ranks"] if name in rank]
        senders = [part["sender"].double().flatten() for part in parts if part["sender"] is not None]
        total[name] = sum(senders) / max(len(senders), 1) + torch.zeros(torch.Size(shape).numel(), dtype=torch.float64)
        for part in parts:
            if part["owner"] is not None:
                total[name][part["owner_offset"] :][: part["owner"].numel()] += part["owner"].double()
    return total


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_at_another_world_size_what_is_still_to_add_is_kept(tmp_path: Path, choice: str, world_size: int) -> None:
    saved = run(3, _save, choice, tmp_path)[0]
    answers = run(world_size, _load_and_train, choice, tmp_path)
    before, after = _still_to_add(saved), _still_to_add(answers[0][0])
    assert answers[0][0]["world_size"] == world_size
    assert answers[0][0]["steps"] == saved["steps"] == 3
    assert any(residual.any() for residual in before.values())
    for name, residual in before.items():
        torch.testing.assert_close(after[name], residual, rtol=1e-5, atol=1e-7)
    assert all(
        part["owner"] is None or not part["owner"].any() for rank in answers[0][0]["ranks"] for part in rank.values()
    )
    assert len({tuple(digests) for _, digests in answers}) == 1


LAYOUTS = {"default": "quantize(bits=4, block=128)", "layers": {"odd.*": "lowrank(rank=4, factors=int8)"}}


def _hierarchical(rank: int, per_node: int) -> tuple[Any, lgreco.State]:
    ddp = make()
    return ddp, lgreco.attach(ddp, {**LAYOUTS, "min_numel": 1, "ranks_per_node": per_node})


def _hierarchical_straight(rank: int, world_size: int) -> Any:
    ddp, state = _hierarchical(rank, 2)
    return train(ddp, rank, range(5)), state_digest(state), state.state_dict()["nodes"]


def _hierarchical_stopped(rank: int, world_size: int, folder: Path) -> Any:
    ddp, state = _hierarchical(rank, 2)
    first = train(ddp, rank, range(3))
    dcp.save({"model": ddp.module.state_dict(), "lgreco": entries(state)}, checkpoint_id=folder)
    state.close()
    ddp, state = _hierarchical(rank, 2)
    saved = {"model": ddp.module.state_dict()}
    dcp.load(saved, checkpoint_id=folder)
    ddp.module.load_state_dict(saved["model"])
    load(state, folder)
    return [*first, *train(ddp, rank, range(3, 5))], state_digest(state), state.state_dict()["nodes"]


def test_the_same_nodes_go_on_bit_for_bit(tmp_path: Path) -> None:
    """Each rank holds, and reads, the residuals of what it carries for its node."""
    straight = run(4, _hierarchical_straight)
    assert run(4, _hierarchical_stopped, tmp_path) == straight
    assert straight[0][2] == [[0, 1], [2, 3]]
    assert len({state for _, state, _ in straight}) == 4
    stored = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    for layer in ("wide.weight", "odd.weight"):
        carriers = [rank for rank in range(4) if f"lgreco.rank{rank}.{layer}/sender" in stored]
        assert carriers in ([0, 2], [1, 3])


def _save_nodes(rank: int, world_size: int, per_node: int, folder: Path) -> Any:
    ddp, state = _hierarchical(rank, per_node)
    train(ddp, rank, range(3))
    dcp.save({"lgreco": entries(state)}, checkpoint_id=folder)
    return _still_to_add(state.gather())


def _load_nodes(rank: int, world_size: int, per_node: int, folder: Path) -> Any:
    ddp, state = _hierarchical(rank, per_node)
    load(state, folder)
    gathered = state.gather()
    return _still_to_add(gathered), gathered["steps"], train(ddp, rank, range(3, 5))


@pytest.mark.parametrize(
    ("before", "after"), [((6, 2), (6, 1)), ((6, 1), (6, 2)), ((6, 2), (6, 3)), ((6, 3), (4, 2)), ((4, 2), (3, 1))]
)
def test_other_nodes_and_flat_runs_keep_what_is_still_to_add(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """The rule of gathered states, (ranks, ranks a node) before and after."""
    owed = run(before[0], _save_nodes, before[1], tmp_path)[0]
    answers = run(after[0], _load_nodes, after[1], tmp_path)
    now, steps, _ = answers[0]
    assert steps == 3
    assert owed["wide.weight"].any()
    assert owed["odd.weight"].any()
    for name, layer in owed.items():
        torch.testing.assert_close(now[name], layer, rtol=1e-5, atol=1e-7)
    same_on_all_ranks([digests for _, _, digests in answers])


def _refused(rank: int, world_size: int, folder: Path) -> None:
    load(lgreco.attach(make(lambda: Net(width=64)), everything(CHOICES[0])), folder, key="hook")


def _under_another_key(rank: int, world_size: int, folder: Path) -> None:
    load(lgreco.attach(make(), everything(CHOICES[0])), folder)


def test_another_model_or_key_is_refused(tmp_path: Path) -> None:
    run(2, _save, CHOICES[0], tmp_path)
    with pytest.raises(RankFailed, match="the checkpoint is of another model"):
        run(2, _refused, tmp_path)
    with pytest.raises(RankFailed, match='no entries of lgreco under "lgreco"'):
        run(2, _under_another_key, tmp_path)


def test_the_entries_are_tensors_named_after_the_rank(tmp_path: Path) -> None:
    run(2, _save, CHOICES[0], tmp_path)
    names = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert {name.split(".")[1] for name in names} == {"rank0", "rank1"}
    assert "hook.rank1.wide.weight/sender" in names
