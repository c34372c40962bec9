"""Lightning: a callback that attaches once the strategy has wrapped the model, and travels in Lightning's checkpoints.

Trainer(strategy="ddp", callbacks=[Compression("lgreco.yaml")])

Lightning's own `ddp_comm_hook` is registered on CUDA only; the callback works on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel

from lgreco.attach import attach
from lgreco.config import Config
from lgreco.state import State


class Compression(Callback):
    """Compresses the gradients of `Trainer.fit`.

    A checkpoint holds the residuals of all ranks (`State.gather`) and loads at another number of ranks too. Each `fit`
    begins anew, as Lightning's optimizers do, unless it is given `ckpt_path`.

    Args:
        config: an `lgreco.Config`, a dict, the path of a YAML file, or None.

    Attributes:
        state: of the last or the running fit; None before.
    """

    def __init__(self, config: Config | Mapping[str, Any] | str | Path | None = None) -> None:
        self.state: State | None = None
        self._config = Config.load(config)
        self._loaded: Mapping[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches to the wrapped model; collective.

        Raises:
            ValueError: where the strategy is not Lightning's DDP, or `attach` refuses config or model.
        """
        ddp = trainer.strategy.model
        if not isinstance(ddp, DistributedDataParallel):
            raise ValueError(
                "lgreco needs a strategy with DistributedDataParallel, such as "
                f'Trainer(strategy="ddp", devices=2), got {type(trainer.strategy).__name__}'
            )
        if self.state is not None:
            self.state.close()
        self.state = attach(ddp, self._config, getattr(trainer.precision_plugin, "scaler", None))
        loaded, self._loaded = self._loaded, None
        if loaded and self._config.enabled:
            self.state.load_state_dict(loaded)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; collective, as Lightning calls it on every rank."""
        return self.state.gather() if self.state is not None and self._config.enabled else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """From a checkpoint, which Lightning restores before the model is wrapped."""
        self._loaded = state_dict
