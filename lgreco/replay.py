"""A replay: the plans of a recorded run again, at the same steps, with nothing measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lgreco.candidates import Offers
from lgreco.choice import Choice
from lgreco.masks import LayerMask
from lgreco.plan import Plan, PlannedLayer
from lgreco.plan_port import PlanPort
from lgreco.record import find, read


class Replay:
    """Stands in a controller's place.

    Args:
        offers: its reference plan is in force before the first recorded one, as in the run that was recorded.
        path: of the record, or a folder that holds one.
        engine: anything with set_plan and replace_plans.

    Raises:
        ValueError: where the record is of another model.
        FileNotFoundError: where there is none.
    """

    def __init__(self, offers: Offers, path: str | Path, engine: Any) -> None:
        self._offers = offers
        self._port = PlanPort(engine)
        self._plans: list[tuple[int, Mapping[str, Choice]]] = [(0, offers.plan(offers.reference, "reference"))]
        names = [layer.name for layer in offers.layers]
        for solve in read(find(path)).solves:
            if list(solve.plan) != names:
                other = next((name for name in solve.plan if name not in names), None)
                what = (
                    f'layer "{other}" is not in this model' if other else "its layers are others, or in another order"
                )
                raise ValueError(f"plan_replay {path}: the record is of another model: {what}")
            self._plans.append((solve.effective_step, solve.plan))

    def start(self, steps: int = 0) -> None:
        """Puts every plan in force from its step on."""
        first, *later = self._plans
        self._port.replace([first[1][layer.name] for layer in self._offers.layers])
        for step, plan in later:
            self._port.swap(step, [plan[layer.name] for layer in self._offers.layers])

    def adopt(self, offers: Offers, masks: Mapping[str, LayerMask], steps: int) -> list[Choice]:
        """Other elements are exchanged from now on; the recorded plans stay."""
        in_force = self._in_force(steps)[1]
        self._offers = offers
        return [in_force[layer.name] for layer in offers.layers]

    def remeasure(self, steps: int) -> None:
        """Puts the plans of later steps in force again, which the engine has forgotten."""
        self._port.forget()
        for step, plan in self._plans:
            if step > steps:
                self._port.swap(step, [plan[layer.name] for layer in self._offers.layers])

    def plan(self, steps: int) -> Plan:
        """The plan in force after `steps` committed steps."""
        step, plan = self._in_force(steps)
        because = "replayed" if step > 0 else "reference"
        return Plan(PlannedLayer(layer, plan[layer.name], because) for layer in self._offers.layers)

    def _in_force(self, steps: int) -> tuple[int, Mapping[str, Choice]]:
        return next(entry for entry in reversed(self._plans) if entry[0] <= steps)

    def wait(self, steps: int, timeout_s: float | None = None) -> bool:
        """Nothing is ever under way."""
        return True

    def state(self) -> dict[str, Any]:
        """Nothing: the step count says all."""
        return {}

    def load(self, state: Mapping[str, Any] | None, steps: int) -> None:
        """As at the start."""
        self.start()

    def note_step(self, figures: Mapping[str, float], loss: float | None, step_ms: float | None) -> None:
        """A replay keeps no record."""

    def close(self, steps: int, close_engine: Callable[[], None]) -> None:
        """Closes the engine."""
        close_engine()

    def abandon(self, end_engine: Callable[[], None]) -> None:
        """Ends the engine of a model that is collected."""
        end_engine()
