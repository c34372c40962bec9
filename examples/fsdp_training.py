"""FSDP2 with coded gradients.

torchrun --standalone --nproc-per-node 2 examples/fsdp_training.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lgreco
import lgreco.fsdp


def main() -> None:
    """Trains on handwritten digits and prints what was sent."""
    launch = lgreco.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    mesh = init_device_mesh("cpu", (launch.world_size,))
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    compression = lgreco.fsdp.attach(model, "quantize(bits=4, block=512)")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = (images / 16).float()
    for step in range(100):
        mine = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[
            launch.rank :: launch.world_size
        ]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[mine[:64]]), digits[mine[:64]])
        loss.backward()
        optimizer.step()
    stats = compression.stats()
    if launch.rank == 0:
        print(f"loss {loss.item():.3f}; {stats['wire_bytes']} bytes a step instead of {stats['dense_bytes']}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
