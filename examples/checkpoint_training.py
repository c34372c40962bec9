"""Checkpoints by torch.distributed.checkpoint: model, optimizer, lgreco's residuals and a pruner; any number of ranks.

torchrun --standalone --nproc-per-node 2 examples/checkpoint_training.py --steps 50
torchrun --standalone --nproc-per-node 3 examples/checkpoint_training.py --resume
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.distributed_checkpoint import entries, load
from lgreco.pruning import CubicSchedule, Pruner


def train(folder: Path, steps: int, every: int, resume: bool) -> tuple[nn.Module, lgreco.State, Pruner]:
    """Trains up to a number of steps, a checkpoint `step-<n>` every few; the model, lgreco's state and the pruner."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    state = lgreco.attach(ddp, {"warmup_steps": 2})
    pruner = Pruner(ddp, optimizer, CubicSchedule(0.0, 0.9, begin=20, end=80, every=10), criterion="movement")
    pruner.attach(state)
    newest = _newest(folder) if resume else None
    if newest is not None:
        model_state, optimizer_state = get_state_dict(ddp, optimizer)
        dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=newest)
        set_state_dict(ddp, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
        load(state, newest)
        load(pruner, newest)
        if dist.get_rank() == 0:
            print(f"goes on from {newest}", flush=True)
    images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = (images / 16).float()
    for step in range(pruner.steps, steps):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))
        mine = order[dist.get_rank() :: dist.get_world_size()][:64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(images[mine]), digits[mine]).backward()
        optimizer.step()
        pruner.step()
        if pruner.steps % every == 0 or pruner.steps == steps:
            model_state, optimizer_state = get_state_dict(ddp, optimizer)
            ours = {"lgreco": entries(state), "pruner": entries(pruner)}
            saved = {"model": model_state, "optimizer": optimizer_state, **ours}
            dcp.save(saved, checkpoint_id=folder / f"step-{pruner.steps:06d}")
    return model, state, pruner


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: its metadata come last."""
    return max((path.parent for path in folder.glob("step-*/.metadata")), default=None)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/checkpoint"))
    parser.add_argument("--steps", type=int, default=100, help="in all")
    parser.add_argument("--every", type=int, default=25, help="steps from one checkpoint to the next")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, if any")
    options = parser.parse_args()
    launch = lgreco.init_process_group("gloo")
    _, state, pruner = train(options.out, options.steps, options.every, options.resume)
    if launch.rank == 0:
        stats = state.stats()
        told = f"{launch.world_size} ranks by {launch.launcher}, step {pruner.steps}, {pruner.sparsity:.0%} pruned"
        sent = f"{stats['wire_bytes']:.0f} bytes a step instead of {stats['dense_bytes']:.0f}"
        print(f"{told}: {sent if stats['wire_bytes'] else 'nothing was left to do'}")
    state.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
