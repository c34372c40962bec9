"""Lightning with compressed gradients.

torchrun --standalone --nproc-per-node 2 examples/lightning_training.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lgreco.integrations.lightning import Compression


class Digits(lightning.LightningModule):
    """Reads handwritten digits of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Loss of one batch: images [n, 64], digits [n]."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(out: Path, epochs: int, resume: Path | None = None) -> tuple[nn.Module, Compression]:
    """Trains and leaves `last.ckpt`; the model, and the callback with lgreco's state."""
    lightning.seed_everything(0, verbose=False)
    images, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits))
    compression = Compression({"warmup_steps": 2})
    trainer = lightning.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "2")),
        strategy="ddp",
        max_epochs=epochs,
        callbacks=[compression],
        default_root_dir=out,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    model = Digits()
    trainer.fit(model, DataLoader(data, batch_size=128), ckpt_path=resume)
    trainer.save_checkpoint(out / "last.ckpt")
    return model, compression


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resume", type=Path, help="a checkpoint, such as runs/lightning/last.ckpt")
    options = parser.parse_args()
    _, compression = train(options.out, options.epochs, options.resume)
    if compression.state is not None and compression.state.rank == 0:
        stats = compression.state.stats()
        print(f"{stats['wire_bytes']:.0f} bytes a step instead of {stats['dense_bytes']:.0f}")


if __name__ == "__main__":
    main()
