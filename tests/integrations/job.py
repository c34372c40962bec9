"""An example trained straight, and stopped half-way and resumed; one JSON file for each rank. Started by torchrun."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import lgreco

EXAMPLES = Path(__file__).parents[2] / "examples"


def digest(state: lgreco.State, model: torch.nn.Module) -> str:
    """Equal for equal weights, residuals and step counts."""
    total = hashlib.sha256(str(state.state_dict()["steps"]).encode())
    parts = state.state_dict()["residuals"].values()
    residuals = [part[side] for part in parts for side in ("sender", "owner") if part[side] is not None]
    assert any(residual.any() for residual in residuals)
    for tensor in [*model.parameters(), *residuals]:
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def weights(model: torch.nn.Module) -> str:
    """Equal for equal weights."""
    return hashlib.sha256(b"".join(p.detach().contiguous().numpy().tobytes() for p in model.parameters())).hexdigest()


def state_of(told: Any) -> lgreco.State:
    """From the state itself or the callback that holds it."""
    return told if isinstance(told, lgreco.State) else told.state


def main(framework: str, folder: Path) -> None:
    """Runs the example of one framework."""
    example = importlib.import_module(f"{framework}_training")
    length, half = (8, 4) if framework == "transformers" else (2, 1)
    model, told = example.train(folder / "straight", length)
    stats, straight, replica = state_of(told).stats(), digest(state_of(told), model), weights(model)
    calls = state_of(told).state_dict()["steps"]

    example.train(folder / "halves", half)
    saved = {"lightning": folder / "halves/last.ckpt", "accelerate": folder / "halves/last", "transformers": True}
    to_go = half if framework == "accelerate" else length  # its loop counts from where it is, the others' from zero
    model, told = example.train(folder / "halves", to_go, saved[framework])
    report = {
        "calls": calls,
        "wire_bytes": stats["wire_bytes"],
        "dense_bytes": stats["dense_bytes"],
        "weights": replica,
        "straight": straight,
        "resumed": digest(state_of(told), model),
    }
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(report), encoding="utf-8")
    dist.barrier()


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    main(sys.argv[1], Path(sys.argv[2]))
