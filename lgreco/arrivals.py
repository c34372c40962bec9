"""When gradients become ready within backward: a hook on each parameter, for a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

Now = Callable[[], float]


class ArrivalClock:
    """Notes at which moment of backward each parameter's gradient was accumulated.

    Times count from the first gradient, before which no exchange can begin. On CUDA they are the device's, by events;
    reading them waits for these.

    Args:
        parameters: all on one device.
        passes: backward passes to note; the hooks go after them. The first pass, in which much is set up, is left out.
        now: seconds, for tests; None: the device's clock.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], passes: int = 6, now: Now | None = None) -> None:
        self._count = len(parameters)
        self._wanted = passes + 1
        device = parameters[0].device if parameters else torch.device("cpu")
        self._now: Callable[[], Any] = now or (_event if device.type == "cuda" else time.perf_counter)
        self._passes: list[dict[int, Any]] = [{}]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook_of(row)) for row, parameter in enumerate(parameters)
        ]

    @property
    def done(self) -> bool:
        """Whether all passes have been noted."""
        return not self._hooks

    def stop(self) -> None:
        """Takes the hooks away; may be called twice."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()

    def ready_s(self) -> list[float] | None:
        """Median over passes for each parameter; None before a whole pass, or where a parameter gets no gradient."""
        whole = [each for each in self._passes[1:] if len(each) == self._count]
        if not whole or not self._count:
            return None
        since = []
        for noted in whole:
            first = next(iter(noted.values()))  # they stand in the order in which they came
            since.append({row: _seconds(first, at) for row, at in noted.items()})
        return [median(each[row] for each in since) for row in range(self._count)]

    def _hook_of(self, row: int) -> Callable[[torch.Tensor], None]:
        def note(parameter: torch.Tensor) -> None:
            if row in self._passes[-1]:  # a new backward
                if len(self._passes) >= self._wanted:
                    self.stop()
                    return
                self._passes.append({})
            if self._hooks:
                self._passes[-1][row] = self._now()

        return note


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(first: Any, at: Any) -> float:
    if isinstance(at, float):
        return at - float(first)
    at.synchronize()
    return float(first.elapsed_time(at)) * 1e-3
