"""Transformers' Trainer with compressed gradients.

torchrun --standalone --nproc-per-node 2 examples/transformers_training.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lgreco.integrations.transformers import Compression, attach

CONTEXT = 64


def train(out: Path, steps: int, resume: bool = False) -> tuple[nn.Module, Compression]:
    """Trains a small GPT-2 on the bytes of argparse, a checkpoint every 4 steps; the model and the callback."""
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()
    windows = text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    shape = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(shape),
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            save_steps=4,
            logging_steps=2,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=TensorDataset(windows),
        data_collator=_batch,
    )
    compression = attach(trainer, {"warmup_steps": 2})
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, compression


def _batch(samples: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    tokens = torch.stack([sample for (sample,) in samples])
    return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/transformers"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    options = parser.parse_args()
    _, compression = train(options.out, options.steps, options.resume)
    if compression.state is not None and compression.state.rank == 0:
        stats = compression.state.stats()
        print(f"{stats['wire_bytes']:.0f} bytes a step instead of {stats['dense_bytes']:.0f}")


if __name__ == "__main__":
    main()
