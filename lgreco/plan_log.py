"""What the slow path writes down: each decision with its table, predicted beside realised errors, its failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lgreco.budget import error_weights
from lgreco.candidates import Offers
from lgreco.config import Config
from lgreco.error_table import ErrorTable
from lgreco.info import build_record
from lgreco.layer import LayerInfo
from lgreco.plan import Plan
from lgreco.planner import Decision
from lgreco.record import Forecast, Realised, Recorder, Solve, Start
from lgreco.solver_config import SolverConfig


class PlanLog:
    """The record of one run's plans; rank 0 writes it, others hold one that writes nothing.

    Tables lie beside the record, as `table-STEP.json`.
    """

    def __init__(self, config: Config, settings: SolverConfig, offers: Offers, rank: int, world_size: int) -> None:
        self._settings = settings
        self._path = Path(settings.record) if settings.record is not None and rank == 0 else None
        self._recorder = Recorder(self._path, settings.record_every)
        self._step = 0
        record = build_record()
        versions = {"torch": torch.__version__, **({"lgreco": record["version"]} if record else {})}
        self._recorder.start(Start(0, offers.layers, offers.choices, config.to_dict(), world_size, versions))

    def decided(self, decision: Decision, plan: Plan, before: Plan, effective_step: int, measure_ms: float) -> None:
        """Notes a table's outcome."""
        table = decision.table
        self._step = table.step
        if decision.predicted:
            self._recorder.realised(Realised(table.step, decision.predicted, decision.realised))
        if decision.problem is not None:
            self._recorder.note(table.step, f"no plan for step {effective_step}: {decision.problem}")
        if decision.budget is None:
            return
        file = self._save(table)
        solve = Solve.of(
            table,
            decision.columns,
            plan,
            before,
            effective_step=effective_step,
            budget=math.inf if decision.budget.error is None else decision.budget.error,
            predicted_error=decision.error,
            reference=self._budget_text(decision),
            method=self._settings.method,
            gap=decision.gap,
            solve_ms=decision.solve_ms,
            measure_ms=measure_ms,
            norm=self._settings.norm,
            weights=error_weights(table, self._settings),
        )
        self._recorder.solve(replace(solve, table=file))

    def steps(self, figures: Mapping[str, float], loss: float | None, step_ms: float | None) -> None:
        """Takes the figures of one step, as the engine counts them, and what the caller knows of it."""
        self._recorder.steps(
            int(figures["steps"]),
            wire_bytes=figures["wire_bytes"],
            step_ms=step_ms,
            codec_ms=figures.get("codec_ms"),
            wait_ms=figures.get("exposed_ms"),
            loss=loss,
        )

    def forecast(self, forecast: Forecast) -> None:
        """Notes what the cost model said, beside what came."""
        self._recorder.forecast(forecast)

    def resume(self, step: int) -> None:
        """The run goes on after `step` steps."""
        self._recorder.resume(step)

    def masked(self, step: int, layers: Sequence[LayerInfo]) -> None:
        """Notes that other elements are exchanged from now on."""
        numel, kept = sum(layer.numel for layer in layers), sum(layer.sent_numel for layer in layers)
        count = sum(layer.kept is not None for layer in layers)
        self._recorder.note(step, f"masks on {count} layers: {kept / max(numel, 1):.1%} of all elements are exchanged")

    def failed(self, trace: str) -> None:
        """Notes why there are no more plans."""
        self._recorder.note(self._step, f"the solver has stopped: {trace}")

    def close(self) -> None:
        """Writes what waits."""
        self._recorder.close()

    def _save(self, table: ErrorTable) -> str | None:
        """The name of the table's file; None where there is none, or no room for one."""
        if self._path is None:
            return None
        file = f"table-{table.step}.json"
        try:
            table.save(self._path.parent / file)
        except OSError as error:
            self._recorder.note(table.step, f"the table could not be kept: {error}")
            return None
        return file

    def _budget_text(self, decision: Decision) -> str:
        budget = decision.budget
        assert budget is not None, "a plan was found"
        if budget.alpha is not None:
            return f"{budget.alpha:g} x {self._settings.reference}"
        if budget.bytes is not None:
            return f"{budget.bytes:.0f} bytes"
        return f"{self._settings.relative_error:g} of the gradient's norm"
