"""Settings of a pruner as YAML has them: one block, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import nn

from lgreco.pruning.allocation import make_allocation
from lgreco.pruning.criteria import make_criterion
from lgreco.pruning.pruner import Pruner
from lgreco.pruning.regrowth import Regrowth
from lgreco.pruning.schedule import of_dict
from lgreco.pruning.structure import parse_structure


class PruningSettings(BaseModel):
    """What is pruned, when and how.

    Attributes:
        schedule: `kind` (cubic, linear, polynomial, exponential, one_shot, constant, cyclic) and its settings.
        criterion: magnitude, movement, taylor or random.
        structure: unstructured, rows, columns, a block as 1x4, a pattern as 2:4.
        allocation: global, uniform, erk or solver.
        layers: patterns of what to prune; None: every matrix but embeddings.
        regrowth: `fraction` and `window`, or None.
        seed: of the random criterion.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: dict[str, Any]
    criterion: str = "magnitude"
    structure: str = "unstructured"
    allocation: str = "global"
    layers: list[str] | None = None
    regrowth: dict[str, Any] | None = None
    seed: int = 0

    @field_validator("structure", mode="before")
    @classmethod
    def _read_structure(cls, value: object) -> object:
        """YAML 1.1 reads 2:4 as a number to base 60."""
        return f"{value // 60}:{value % 60}" if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("schedule")
    @classmethod
    def _schedule_can_be_made(cls, schedule: dict[str, Any]) -> dict[str, Any]:
        of_dict(schedule)
        return schedule

    @model_validator(mode="after")
    def _can_be_made(self) -> PruningSettings:
        make_criterion(self.criterion)
        parse_structure(self.structure)
        make_allocation(self.allocation)
        self._regrowth()
        return self

    def _regrowth(self) -> Regrowth | None:
        if self.regrowth is None:
            return None
        try:
            return Regrowth(**self.regrowth)
        except TypeError:
            raise ValueError(f"regrowth takes fraction and window, got {', '.join(self.regrowth)}") from None

    def make(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None, **more: Any
    ) -> Pruner:
        """The pruner of a model; `more` as Pruner takes it.

        Raises:
            ValueError: where the settings do not fit the model.
        """
        return Pruner(
            model,
            optimizer,
            of_dict(self.schedule),
            self.criterion,
            self.structure,
            self.allocation,
            layers=self.layers,
            regrowth=self._regrowth(),
            seed=self.seed,
            **more,
        )
