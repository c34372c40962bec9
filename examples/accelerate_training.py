"""Accelerate with compressed gradients.

torchrun --standalone --nproc-per-node 2 examples/accelerate_training.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lgreco
from lgreco.integrations.accelerate import attach


def train(out: Path, epochs: int, resume: Path | None = None) -> tuple[nn.Module, lgreco.State]:
    """Trains and leaves the folder `last`; the model and lgreco's state."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    images, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits))
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=128))
    state = attach(accelerator, model, {"warmup_steps": 2})
    if resume is not None:
        accelerator.load_state(str(resume))
    for _ in range(epochs):
        for images, digits in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(images), digits))
            optimizer.step()
    accelerator.save_state(str(out / "last"))
    return model, state


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/accelerate"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resume", type=Path, help="a folder that was saved, such as runs/accelerate/last")
    options = parser.parse_args()
    _, state = train(options.out, options.epochs, options.resume)
    if state.rank == 0:
        stats = state.stats()
        print(f"{stats['wire_bytes']:.0f} bytes a step instead of {stats['dense_bytes']:.0f}")


if __name__ == "__main__":
    main()
