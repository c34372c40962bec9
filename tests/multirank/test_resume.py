"""Checkpoints: resuming equals never having stopped; at another world size no residual is lost."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run
from torch import nn
from training import digest, everything, make, state_digest, train

import lgreco

EXACT = "quantize(bits=3, block=64, rounding=stochastic)"


def _optimizer(ddp: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(ddp.parameters(), lr=1e-2)


def _straight(rank: int, world_size: int, config: dict[str, Any]) -> list[str]:
    ddp = make()
    state = lgreco.attach(ddp, config)
    return [*train(ddp, rank, range(6), _optimizer(ddp)), state_digest(state)]


def _stopped(rank: int, world_size: int, config: dict[str, Any], gathered: bool, conventional: bool) -> list[str]:
    """Trains, saves and loads twice; every part begins with a new model, another DDP and another state."""
    saved: bytes | None = None
    digests: list[str] = []
    for steps in (range(2), range(2, 5), range(5, 6)):
        ddp = make(bucket_cap_mb=0.1 if steps.start == 2 else 0.03)
        optimizer = _optimizer(ddp)
        if conventional:
            state = lgreco.State(config)
            ddp.register_comm_hook(state, lgreco.hook)
        else:
            state = lgreco.attach(ddp, config)
        if saved is not None:
            parts = torch.load(io.BytesIO(saved), weights_only=True)
            ddp.module.load_state_dict(parts["model"])
            optimizer.load_state_dict(parts["optimizer"])
            state.load_state_dict(parts["lgreco"])
        digests += train(ddp, rank, steps, optimizer)
        file = io.BytesIO()
        torch.save(
            {
                "model": ddp.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "lgreco": state.gather() if gathered else state.state_dict(),
            },
            file,
        )
        saved = file.getvalue()
        final = state_digest(state)
        state.close()
    return [*digests, final]


@pytest.mark.parametrize(
    ("config", "gathered", "conventional"),
    [
        (everything(EXACT), False, False),
        (everything(EXACT, residual="bf16"), True, False),
        (everything(EXACT, warmup_steps=3), False, False),
        (everything(EXACT, warmup_steps=2), True, True),
        (everything("dense(dtype=fp16)"), False, True),
        (everything("lowrank(rank=4, factors=int8)"), False, False),
        (everything("lowrank(rank=10, factors=int8, iterate=alternate)", residual="bf16"), True, False),
    ],
    ids=[
        "rank",
        "gathered-bf16",
        "in-warmup",
        "gathered-at-warmup-end-conventional",
        "conventional",
        "lowrank",
        "lowrank-alternate",
    ],  # fmt: skip,
)
def test_resuming_equals_never_having_stopped(config: dict[str, Any], gathered: bool, conventional: bool) -> None:
    """Bit for bit, stochastic rounding, warm-up and optimizer included, through torch.load(weights_only=True)."""
    assert run(3, _stopped, config, gathered, conventional) == run(3, _straight, config)


def _train_and_gather(rank: int, world_size: int) -> dict[str, Any]:
    ddp = make()
    state = lgreco.attach(ddp, everything(EXACT))
    train(ddp, rank, range(3))
    gathered = state.gather()
    assert digest(_pending(gathered).values()) == digest(_pending(state.gather()).values())
    return gathered


def _load_and_gather(rank: int, world_size: int, gathered: dict[str, Any], choice: str) -> dict[str, Any]:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice))
    state.load_state_dict(gathered)
    again = state.gather()
    train(ddp, rank, range(2))
    assert state.stats()["steps"] == 5
    return again


def _pending(gathered: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What is still to be added to the averaged gradient: the senders' mean plus the owners' residuals, by layer."""
    total: dict[str, torch.Tensor] = {}
    for part in gathered["ranks"]:
        for name, residual in part.items():
            layer = total.setdefault(name, torch.zeros(residual["sender"].numel(), dtype=torch.float64))
            layer += residual["sender"].double() / len(gathered["ranks"])
            if residual["owner"] is not None:
                begin = residual["owner_offset"]
                layer[begin : begin + residual["owner"].numel()] += residual["owner"].double()
    return total


@pytest.mark.parametrize(
    ("before", "after", "choice"),
    [
        (4, 2, EXACT),
        (2, 3, EXACT),
        (3, 3, "quantize(bits=8, block=1024)"),
        (4, 3, "lowrank(rank=4, factors=int8)"),
    ],
)
def test_another_world_or_plan_keeps_what_is_pending(before: int, after: int, choice: str) -> None:
    """Sum over ranks of the sender's residual / W + the owner's residual is the same, whoever owns what."""
    saved = run(before, _train_and_gather)[0]
    pending = _pending(saved)
    assert max(layer.abs().max() for layer in pending.values()) > 0
    for loaded in run(after, _load_and_gather, saved, choice):
        assert loaded["steps"] == 3
        for name, layer in _pending(loaded).items():
            assert torch.allclose(layer, pending[name], rtol=0, atol=1e-6 * float(pending[name].abs().max())), name


class _Other(nn.Linear):
    def __init__(self) -> None:
        super().__init__(96, 100)


def _refusals(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(EXACT))
    train(ddp, rank, range(1))
    mine, gathered = state.state_dict(), state.gather()

    with pytest.raises(ValueError, match=f"state of rank {1 - rank} of 2, loaded on rank {rank} of 2"):
        state.load_state_dict({**mine, "rank": 1 - rank})
    with pytest.raises(ValueError, match="of 3, loaded on rank"):
        state.load_state_dict({**mine, "world_size": 3})
    with pytest.raises(ValueError, match=r"lgreco_state must be 1, got None"):
        state.load_state_dict(ddp.module.state_dict())
    with pytest.raises(ValueError, match="incomplete: steps, shapes missing"):
        state.load_state_dict({"lgreco_state": 1, "world_size": 2})
    part = mine["residuals"]["wide.weight"]
    with pytest.raises(ValueError, match=r'"wide\.weight" has 27648 elements, its saved residual 27647'):
        state.load_state_dict({**mine, "residuals": {"wide.weight": {**part, "sender": part["sender"][:-1]}}})
    with pytest.raises(ValueError, match=r'residual for layer "none\.such"'):
        state.load_state_dict({**mine, "residuals": {"none.such": part}})

    before = state_digest(state)
    other = lgreco.attach(make(_Other), everything(EXACT))
    for wrong in (mine, gathered):
        with pytest.raises(ValueError, match=r'another model: layer "weight" is \[100, 96\] here and absent there'):
            other.load_state_dict(wrong)
    assert state_digest(state) == before, "a refused state must change nothing"

    with pytest.warns(UserWarning, match="no per-rank parts: residuals start at zero") as caught:
        state.load_state_dict({key: value for key, value in mine.items() if key != "residuals"})
    assert len(caught) == 1
    assert not any(part["sender"].any() for part in state.state_dict()["residuals"].values())
    assert state.state_dict()["steps"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state.load_state_dict(mine)
    assert state_digest(state) == before


def test_a_state_that_does_not_fit_is_refused() -> None:
    """Another rank's, world's or model's, an incomplete or damaged one; without per-rank parts one warning, zeros."""
    run(2, _refusals)


def _damaged_files(rank: int, world_size: int, folder: str) -> None:
    state = lgreco.attach(make(), everything(EXACT))
    path = Path(folder) / f"{rank}.pt"
    torch.save(state.state_dict(), path)
    whole = path.read_bytes()
    zeros = {name: torch.zeros_like(part["sender"]) for name, part in state.state_dict()["residuals"].items()}
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)
    damages: dict[str, Any] = {
        'layer "wide.weight": its residual must have sender, owner': {"residuals": zeros},
        "residuals must be a mapping, got list": {"residuals": [zeros]},
        "shapes must be a mapping, got 5": {"shapes": 5},
        "steps must be a whole number from 0, got 'many'": {"steps": "many"},
        "steps must be a whole number from 0, got -1": {"steps": -1},
        "world_size must be a whole number from 1, got 0": {"world_size": 0},
        "parts of 1 ranks, of 2": {"ranks": [{}]},
        "lgreco_state must be 1, got 9": {"lgreco_state": 9},
    }
    for message, damage in damages.items():
        with pytest.raises(ValueError, match=message):
            state.load_state_dict({**torch.load(io.BytesIO(whole), weights_only=True), **damage})


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A file cut short, and a state whose parts are of the wrong kind, end in an error that says what is wrong."""
    run(2, _damaged_files, str(tmp_path))
