"""The one place where the slow path touches the engine: it asks for gradients and hands over plans."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from lgreco.choice import Choice
from lgreco.measurement import Gradients


class PlanPort:
    """The engine as the controller sees it; methods may be called from any thread."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._promised: set[int] = set()

    def watch(self, step: int, rows: Sequence[int]) -> None:
        """Asks for the gradients of these layers in the step that begins after `step` committed ones."""
        self._engine.watch(step, list(rows))

    def next_gradients(self) -> Gradients | int | None:
        """Waits for the next watched step; its index alone where the step was dropped, None after the engine's end."""
        snapshot = self._engine.next_snapshot()
        if snapshot is None:
            return None
        step = int(snapshot.step)
        if snapshot.dropped:
            return step
        return Gradients(step, snapshot.layers, snapshot.values, snapshot.delivered, snapshot.owed)

    def promise(self, step: int) -> None:
        """A plan for that step will come; the step waits for it."""
        with self._lock:
            self._promised.add(step)
        self._engine.promise_plan(step)

    def swap(self, step: int, choices: Sequence[Choice] | None) -> None:
        """The plan from that step on; None keeps the present one. Fulfils the promise."""
        with self._lock:
            self._promised.discard(step)
        self._engine.set_plan(step, None if choices is None else [choice.to_native() for choice in choices])

    def replace(self, choices: Sequence[Choice]) -> None:
        """Forgets all plans and promises; `choices` are in force from the first step on."""
        with self._lock:
            self._promised.clear()
        self._engine.replace_plans([choice.to_native() for choice in choices])

    def forget(self) -> None:
        """The engine has forgotten all promises, because what is exchanged has changed."""
        with self._lock:
            self._promised.clear()

    def release(self) -> None:
        """Keeps the present plan wherever a plan was promised, so that no step waits for one that never comes."""
        with self._lock:
            promised, self._promised = sorted(self._promised), set()
        for step in promised:
            self._engine.set_plan(step, None)
