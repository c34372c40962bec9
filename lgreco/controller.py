"""The controller: measures layers while training runs, solves in the background, swaps plans at exact steps.

A table's layers are measured over `window` steps, a slice in each; its plan takes effect `lag` steps after the last of
them, and the next table begins `interval` steps after this one began. All of it runs on a thread of its own, whose
collectives have a process group of their own: training waits for it only where a plan is late.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lgreco.candidates import Offers
from lgreco.choice import Choice
from lgreco.link_watch import LinkWatch
from lgreco.masks import LayerMask
from lgreco.measurement import Gradients, Meter, Rail, Row
from lgreco.measuring_thread import PATIENCE_S, MeasuringThread
from lgreco.peers import Peers
from lgreco.pending_table import PendingTable, unpack_rows
from lgreco.plan import Plan
from lgreco.plan_log import PlanLog
from lgreco.plan_port import PlanPort
from lgreco.plan_sequence import Columns, PlanSequence, unpack_plans
from lgreco.planner import Decision, Planner
from lgreco.sampling import slices_of
from lgreco.solver_config import SolverConfig
from lgreco.table_timing import TableTiming


class Controller:
    """Plans of one engine; see the module. Methods other than the thread's may be called from any thread.

    Args:
        offers: what the solver may choose.
        settings: the solver's.
        engine: anything with watch, next_snapshot, promise_plan and set_plan.
        peers: talked to by nobody else.
        log: takes note of what happens.
        seed: of all draws.
        warmup_steps: dense steps before any plan.
        watch: where plans are priced in seconds, what keeps the prices right.
        rail: of a hierarchical exchange, with whom this rank exchanges, and what.
    """

    def __init__(
        self,
        offers: Offers,
        settings: SolverConfig,
        engine: Any,
        peers: Peers,
        log: PlanLog,
        *,
        seed: int,
        warmup_steps: int,
        watch: LinkWatch | None = None,
        rail: Rail | None = None,
    ) -> None:
        self._offers = offers
        self._settings = settings
        self._peers = peers
        self._log = log
        self._timing = TableTiming.of(settings, warmup_steps)
        self._seed = seed
        self._port = PlanPort(engine)
        self._watch = watch
        self._rail = rail
        self._exchanging = peers.world_size if rail is None else rail.peers.world_size
        self._planner = Planner(offers, settings, self._exchanging, None if watch is None else watch.pricing)
        self._learn(offers, {})
        self._plans = PlanSequence.of(offers.reference)
        self._table: PendingTable | None = None
        self._progress = threading.Condition()
        self._failure: Exception | None = None
        self._warned = self._ended = False
        self._thread = MeasuringThread(self._port.next_gradients, self._take, self._fail, self._end, self._finish)

    @property
    def failure(self) -> Exception | None:
        """What ended the slow path; training goes on with the plan that was in force."""
        return self._failure

    def start(self, steps: int = 0) -> None:
        """Asks for the first table that begins after `steps` committed steps and starts the thread."""
        if self._slices:
            self._table = self._ask(self._timing.next_begin(steps))
            self._thread.start()

    def adopt(self, offers: Offers, masks: Mapping[str, LayerMask], steps: int) -> list[Choice]:
        """Other elements are exchanged from now on, after `steps` steps; call `wait` before.

        What was measured of the old ones is dropped, and with it plans that are not in force yet. Layers keep the
        choices that are in force; where one of them costs more than sending what is kept, the reference plan's choice
        takes its place. Returns the choices, the same on every rank.
        """
        before, columns = self._offers, self._plans.at(steps)
        known = {choice: column for column, choice in enumerate(offers.choices)}
        columns = offers.offered_or_reference([known.get(before.choices[column], -1) for column in columns])
        if self._watch is not None:
            self._watch.pricing.adopt(offers)
        pricing = None if self._watch is None else self._watch.pricing
        planner = Planner(offers, self._settings, self._exchanging, pricing)
        planner.load({**self._planner.state(), "history": []})
        with self._progress:
            self._planner = planner
            self._learn(offers, masks)
            self._plans, self._table = PlanSequence.of(columns), None
        return self._choices(columns)

    def remeasure(self, steps: int) -> None:
        """Asks for a table of what is exchanged now, at once; after `adopt` and once the engine knows its masks."""
        self._port.forget()
        self._log.masked(steps, self._offers.layers)
        if not self._slices or self._failure is not None:
            return
        table = self._ask(max(steps, self._timing.next_begin(0)))
        with self._progress:
            self._table = table
        self._thread.start()

    def _learn(self, offers: Offers, masks: Mapping[str, LayerMask]) -> None:
        """What follows from the layers and their masks."""
        self._offers = offers
        self._meter = Meter(offers, self._peers, self._seed, masks, self._rail)
        numels = [layer.sent_numel for layer in offers.layers]
        self._slices = [rows for rows in slices_of(numels, offers.measurable(), self._timing.window) if rows]

    def plan(self, steps: int) -> Plan:
        """The plan in force after `steps` committed steps; one that is due is waited for, as the next step would."""
        with self._progress:
            self._progress.wait_for(lambda: not self._owes(steps))
            columns = self._plans.at(steps)
        return self._offers.plan(columns, "reference" if columns == self._offers.reference else "solver")

    def wait(self, steps: int, timeout_s: float | None = None) -> bool:
        """Until all that the first `steps` steps have left to do is done; whether it is, within the time given."""
        with self._progress:
            return self._progress.wait_for(lambda: self._idle(steps), timeout_s)

    def note_step(self, figures: Mapping[str, float], loss: float | None, step_ms: float | None) -> None:
        """Takes the figures of one step for the record."""
        self._log.steps(figures, loss, step_ms)

    def close(self, steps: int, close_engine: Callable[[], None]) -> None:
        """Finishes what completed steps have left to do, but not for long, then ends the thread with the engine."""
        if self._thread.alive:
            self.wait(steps, PATIENCE_S)
        close_engine()
        self._thread.join()
        if not self._thread.alive:
            self._leave()
        self._log.close()

    def abandon(self, end_engine: Callable[[], None]) -> None:
        """Ends with a model that is collected; see `MeasuringThread.abandon`."""
        if not self._thread.abandon(end_engine):
            end_engine()
            self._finish()

    def state(self) -> dict[str, Any]:
        """Plain containers, the same on every rank; call `wait` before."""
        with self._progress:
            table, failed = self._table, self._failure is not None  # then ranks may know different things
            return {
                **self._identity(),
                "plans": self._plans.pack(),
                "planner": None if failed else self._planner.state(),
                "prices": None if failed or self._watch is None else self._watch.state(),
                "table": None if failed or table is None else table.pack(),
            }

    def load(self, state: Mapping[str, Any] | None, steps: int) -> None:
        """Continues after `steps` steps from what `state` gave, or, for None, from the reference plan.

        The config comes before the state: layers that are no longer offered what a saved plan gives them (a pattern
        pins them now, a limit is stricter) take the reference plan's choice at once, and what was measured of them
        is left out. Call it before the engine loads its own state: residuals are laid out by the plan that they were
        saved under, or moved.
        """
        if state is not None and not self._is_mine(state):
            warnings.warn(
                "the checkpoint's solver had other candidates, layers or steps: its plans and tables are left out",
                stacklevel=4,
            )
            state = None
        plans, stale = unpack_plans([] if state is None else state["plans"], self._offers)
        if stale:
            warnings.warn(
                f"the config no longer offers what the checkpoint's plans give {len(stale)} of "
                f"{len(self._offers.layers)} layers: they take the reference plan's choice",
                stacklevel=4,
            )
        with self._progress:
            self._plans = plans
            self._table = None
            if state is not None:
                if state["planner"] is not None:
                    self._planner.load(state["planner"])
                if self._watch is not None and state.get("prices") is not None:
                    self._watch.load(state["prices"])
        (_, first), *later = plans.plans
        self._port.replace(self._choices(first))
        for step, columns in later:
            self._port.swap(step, self._choices(columns))
        self._log.resume(steps)
        if self._slices:
            saved = None if state is None else state["table"]
            begin = self._timing.next_begin(steps) if saved is None else saved["begin"]
            rows = {} if saved is None else unpack_rows(saved)
            rows = {row: each for row, each in rows.items() if row not in stale and self._fits(row, each)}
            table = self._ask(begin, steps, rows)
            with self._progress:
                self._table = table

    def _fits(self, row: int, measured: Row) -> bool:
        """Whether a saved row tells the error of every choice that its layer is offered now."""
        return bool(np.isfinite(measured.errors[self._offers.offered[row]]).all())

    def _identity(self) -> dict[str, Any]:
        """What rows and columns of a state stand for."""
        return {
            "choices": [str(choice) for choice in self._offers.choices],
            "layers": [layer.name for layer in self._offers.layers],
            "timing": [self._timing.interval, self._timing.window, self._timing.lag],
        }

    def _is_mine(self, state: Mapping[str, Any]) -> bool:
        return all(state.get(key) == value for key, value in self._identity().items())

    def _choices(self, columns: Sequence[int]) -> list[Choice]:
        return [self._offers.choices[column] for column in columns]

    def _idle(self, steps: int) -> bool:
        table = self._table
        if table is None or self._ended or self._failure is not None:
            return True
        return not any(step < steps for step in table.slices)

    def _owes(self, steps: int) -> bool:
        """Whether the thread has still to find the plan that `steps` steps leave in force."""
        due = self._table is not None and self._table.effective_step <= steps
        return due and self._failure is None and self._thread.alive and not self._ended

    def _ask(self, begin: int, steps: int = 0, rows: Mapping[int, Row] | None = None) -> PendingTable:
        """Asks for what is still to be measured of a table after `steps` steps, and promises its plan.

        `rows` have been measured already.
        """
        slices = {begin + i: layers for i, layers in enumerate(self._slices) if begin + i >= steps}
        if not slices:
            return self._ask(self._timing.next_begin(steps), steps)
        table = PendingTable(begin, slices, self._timing.effective_step(begin), dict(rows or {}))
        if self._watch is not None:  # it samples the link in steps in which nothing is measured, too
            table.slices = {step: [] for step in self._timing.quiet_steps(begin, steps)} | slices
        for step, layers in table.slices.items():
            self._port.watch(step, layers)
        self._port.promise(table.effective_step)
        return table

    def _take(self, gradients: Gradients | int) -> None:
        step = gradients if isinstance(gradients, int) else gradients.step
        table = self._table
        if table is None or step not in table.slices:
            return
        if isinstance(gradients, Gradients):  # of a dropped step nothing is known: its layers keep their choices
            if self._watch is not None and step <= table.begin:  # later, measuring uses the link too
                self._watch.sample()
            begun = time.perf_counter()
            if table.slices[step]:
                measured = self._meter.measure(gradients)
                with self._progress:  # a checkpoint may be made of it
                    table.rows.update(measured)
            table.measure_ms += (time.perf_counter() - begun) * 1e3
        if len(table.slices) == 1:
            self._conclude(table, step)
        with self._progress:
            del table.slices[step]
            self._progress.notify_all()

    def _conclude(self, table: PendingTable, step: int) -> None:
        present = self._plans.at(table.effective_step)
        warm = table.begin >= self._timing.warmup_steps
        in_force = self._plans.at(table.begin) if warm else (-1,) * len(present)
        if self._watch is not None:
            self._log.forecast(self._watch.agree(step, in_force if warm else None))
        decision = self._planner.decide(table.rows, in_force, present, step, table.effective_step)
        self._check_agreed(decision.columns)
        if decision.problem is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"no plan for step {table.effective_step}: {decision.problem}; the last one stays", stacklevel=2
            )
        self._note(decision, table, present)
        # The next table first: its steps may not begin before it is asked for, and this plan's step waits for this.
        following = self._ask(table.begin + self._timing.interval)
        kept = decision.columns == present
        self._port.swap(table.effective_step, None if kept else self._choices(decision.columns))
        with self._progress:
            if not kept:
                self._plans = self._plans.then(table.effective_step, decision.columns)
            self._table = following

    def _note(self, decision: Decision, table: PendingTable, present: Columns) -> None:
        plan = self._offers.plan(decision.columns, "solver")
        before = self._offers.plan(present, "solver")
        self._log.decided(decision, plan, before, table.effective_step, table.measure_ms)

    def _check_agreed(self, columns: Sequence[int]) -> None:
        """Compares the plan over all ranks.

        Raises:
            RuntimeError: on every rank, naming those whose plan differs from rank 0's.
        """
        others = self._peers.differing(np.array(columns, dtype=np.int64).tobytes())
        if others:
            raise RuntimeError(f"rank {', '.join(map(str, others))} found another plan than rank 0 from the same table")

    def _end(self) -> None:
        """The thread's last act: nothing comes from it any more."""
        with self._progress:
            self._ended = True
            self._progress.notify_all()

    def _finish(self) -> None:
        self._leave()
        self._log.close()

    def _leave(self) -> None:
        self._peers.leave()
        if self._rail is not None:
            self._rail.peers.leave()

    def _fail(self, error: Exception, trace: str) -> None:
        """Lets training go on with the present plan, on every rank: that this one leaves tells the others."""
        with self._progress:
            self._failure = error
            self._progress.notify_all()
        self._leave()
        self._port.release()
        if self._thread.abandoned:  # there is no training that could go on
            return
        self._log.failed(trace)
        warnings.warn(f"the solver has stopped, training goes on with its last plan: {error}", stacklevel=2)
