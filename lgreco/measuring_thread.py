"""The slow path's thread: takes what an engine hands over, and ends by itself where the model was collected."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from lgreco.measurement import Gradients

PATIENCE_S = 5.0
"""How long those who end a thread let it finish what completed steps have left to do."""

_Next = Callable[[], Gradients | int | None]
_Take = Callable[[Gradients | int], None]
_Fail = Callable[[Exception, str], None]

_abandoned: set[threading.Thread] = set()
"""Threads that finish what collected models have left to do."""


def join_abandoned() -> None:
    """Lets the threads of collected models end, but not for long: at exit, where they may not be stopped midway."""
    for thread in list(_abandoned):
        thread.join(PATIENCE_S)


class MeasuringThread:
    """A thread of one engine.

    Args:
        next_gradients: waits for the next watched step (its index alone where the step was dropped); None after the
            engine's end.
        take: called with each of them.
        fail: told the error that `take` raised, and its traceback; what the engine hands over later is dropped.
        end: called as it ends, whatever has ended it.
        finish: called last where the engine was abandoned.

    These are let go as the thread ends, so that whoever gave them may hold this without a cycle.
    """

    def __init__(
        self,
        next_gradients: _Next,
        take: _Take,
        fail: _Fail,
        end: Callable[[], None],
        finish: Callable[[], None],
    ) -> None:
        self._taking = threading.Lock()
        self._ending, self._over = threading.Lock(), False
        self._end_engine: Callable[[], None] | None = None  # once the model was collected
        self._thread = threading.Thread(
            target=self._run, args=(next_gradients, take, fail, end, finish), name="lgreco-controller", daemon=True
        )

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread.is_alive()

    @property
    def abandoned(self) -> bool:
        """Whether the model was collected: there is no training that could go on."""
        return self._end_engine is not None

    def start(self) -> None:
        """Starts it, once."""
        if not self.alive:
            self._thread.start()

    def join(self) -> None:
        """Waits for its end, but not for long: it may wait for a stalled peer, and then ends with the process."""
        if self.alive:
            self._thread.join(PATIENCE_S)

    def abandon(self, end_engine: Callable[[], None]) -> bool:
        """Ends with a model that is collected, which each rank does at a time of its own, so it waits for no peer.

        Where the thread is at work, it finishes that and ends the engine itself: the figures that it reads would go.
        Returns whether there is a thread that sees to the end; it is the caller's otherwise.
        """
        with self._ending:
            self._end_engine = end_engine
            if self._over or not self.alive:
                return False
            _abandoned.add(self._thread)
        if self._taking.acquire(blocking=False):
            try:
                end_engine()
            finally:
                self._taking.release()
        return True

    def _run(
        self, next_gradients: _Next, take: _Take, fail: _Fail, end: Callable[[], None], finish: Callable[[], None]
    ) -> None:
        try:
            self._work(next_gradients, take, fail)
        finally:
            end()
            with self._ending:
                self._over, abandoned = True, self.abandoned
            if abandoned:  # nobody closes this engine
                finish()
                _abandoned.discard(threading.current_thread())

    def _work(self, next_gradients: _Next, take: _Take, fail: _Fail) -> None:
        failure = None
        try:
            while (gradients := next_gradients()) is not None:
                with self._taking:
                    take(gradients)
                self._end_if_abandoned()
        except Exception as error:
            failure, trace = error.with_traceback(None), traceback.format_exc()  # frames would hold the group
        if failure is not None:
            fail(failure, trace)
            self._end_if_abandoned()
            while next_gradients() is not None:
                pass  # what was asked for before

    def _end_if_abandoned(self) -> None:
        if self._end_engine is not None:
            with self._taking:
                self._end_engine()
