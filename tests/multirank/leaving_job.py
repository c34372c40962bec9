"""One rank of a job that is left before its end, for tests of that: leaving_job.py RANK WORLD_SIZE STORE WHAT."""

from __future__ import annotations

import datetime
import sys

import torch
import torch.distributed as dist
from training import batch_of, everything, loss_of, make, train

import lgreco


def main() -> None:
    """Trains for ever; where WHAT is "exit", rank 1 leaves in mid-backward; "drop": a model is dropped, and all end."""
    rank, world_size, store, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=15),
    )
    if what == "drop":
        return drop(rank)
    ddp = make(bucket_cap_mb=0.05)
    lgreco.attach(ddp, everything("quantize(bits=4, block=128)"))
    step = 0
    while True:
        loss = loss_of(ddp, batch_of(rank, step))
        if what == "exit" and rank == 1 and step == 3:
            ddp.module.odd.weight.register_hook(lambda gradient: sys.exit(7))
        loss.backward()
        step += 1
        if step == 5:
            print("going", flush=True)


def drop(rank: int) -> None:
    """Leaves a solver behind that has just been handed the last of its gradients."""
    ddp = make()
    lgreco.attach(
        ddp, {"warmup_steps": 4, "solver": {"reference": "lowrank(rank=4)", "interval": 4, "window": 1, "lag": 2}}
    )
    train(ddp, rank, range(5))
    print("dropped", flush=True)


if __name__ == "__main__":
    main()
