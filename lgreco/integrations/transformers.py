"""Transformers: a callback of `Trainer` that attaches when training begins, and keeps a file in each checkpoint.

compression = attach(trainer, "lgreco.yaml")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lgreco.attach import attach as attach_to_ddp
from lgreco.config import Config
from lgreco.state import State

FILE_NAME = "lgreco.pt"
_TRAINER_STATE = "trainer_state.json"


class Compression(TrainerCallback):
    """Compresses the gradients of one `Trainer`.

    Each checkpoint folder gets a file with the residuals of all ranks (`State.gather`). `trainer.train` that resumes
    reads it, at any number of ranks: from the checkpoint in `output_dir`, or from `args.resume_from_checkpoint`, as
    Trainer tells its callbacks nothing of other folders.

    Attributes:
        state: of the last or the running training; None before.
    """

    def __init__(self, trainer: Trainer, config: Config) -> None:
        self.state: State | None = None
        self._trainer = trainer
        self._config = config

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches to the wrapped model and loads what a checkpoint has; collective.

        Raises:
            ValueError: where the model is not wrapped, the checkpoint is not found, or `lgreco.attach` refuses.
        """
        ddp = self._trainer.model_wrapped
        if not isinstance(ddp, DistributedDataParallel):
            raise ValueError(
                "lgreco needs the DistributedDataParallel model that Trainer makes where several processes were "
                f"started (torchrun --nproc-per-node 2), got {type(ddp).__name__}"
            )
        if self.state is not None:
            self.state.close()
        self.state = attach_to_ddp(ddp, self._config, self._trainer.accelerator.scaler)
        if state.global_step > 0 and self._config.enabled:
            file = _checkpoint_of(args, state) / FILE_NAME
            if not file.is_file():
                raise ValueError(f"the checkpoint was saved without lgreco: there is no {file}")
            self.state.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the file to the checkpoint that Trainer has just written; collective, as it is called on every rank."""
        if self.state is None or not self._config.enabled:
            return
        gathered = self.state.gather()
        if args.should_save:
            torch.save(gathered, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE_NAME)


def attach(trainer: Trainer, config: Config | Mapping[str, Any] | str | Path | None = None) -> Compression:
    """Adds compression to a trainer; call it once, before `trainer.train`.

    Args:
        trainer: whose model Trainer wraps in DistributedDataParallel.
        config: an `lgreco.Config`, a dict, the path of a YAML file, or None.

    Returns:
        The callback; its `state` is there once training has begun.

    Raises:
        ValueError: for a mistake in the config.
    """
    compression = Compression(trainer, Config.load(config))
    trainer.add_callback(compression)
    return compression


def _checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder that `state` was read from, known by what Trainer has logged in it."""
    folders = [Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"]
    if args.resume_from_checkpoint:
        folders.insert(0, Path(args.resume_from_checkpoint))
    for folder in folders:
        if (folder / _TRAINER_STATE).is_file():
            saved = TrainerState.load_from_json(str(folder / _TRAINER_STATE))
            if (saved.global_step, saved.log_history) == (state.global_step, state.log_history):
                return folder
    raise ValueError(
        f"the checkpoint of step {state.global_step} is not in {' or '.join(map(str, folders))}: "
        "set TrainingArguments(resume_from_checkpoint=...) to the folder that train() gets"
    )
