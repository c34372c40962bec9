"""What a user's script does first: joins, trains a few compressed steps, says where it stands. Started by launchers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import lgreco


def main(folder: Path, config: dict[str, object]) -> None:
    """Leaves one JSON file for each rank."""
    launch = lgreco.init_process_group("gloo")
    torch.manual_seed(3)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 8))
    )
    state = lgreco.attach(model, {"min_numel": 1, "default": "quantize(bits=4)", **config})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(launch.rank)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    told = {**dataclasses.asdict(launch), "digest": digest, "wire_bytes": state.stats()["wire_bytes"]}
    (folder / f"rank{launch.rank}.json").write_text(json.dumps(told), encoding="utf-8")
    state.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
