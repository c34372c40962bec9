"""Auto: at attach, whether an exchange by lgreco can be faster than DDP's own at all, and which layers stay dense."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lgreco.calibration import Calibration
from lgreco.calibration_cache import calibrate
from lgreco.choice import Dense
from lgreco.cost_model import exchange_s, fill_buckets
from lgreco.plan import Plan, PlannedLayer
from lgreco.record import find, read
from lgreco.record_kinds import Forecast
from lgreco.ring import ring_share

_log = logging.getLogger("lgreco")

_WORTH_IT = 0.9
"""An exchange must take at most this much of what DDP's own takes: what is gained must outweigh residuals and noise."""


@dataclass(frozen=True)
class Verdict:
    """What attach has decided, the same on every rank.

    Attributes:
        registered: false: nothing is registered, DDP averages as always.
        dense_s: of all buckets by DDP's own allreduce, as predicted.
        exchange_s: of all buckets by lgreco under the plan.
        plan: the plan that `exchange_s` is of: layers that are faster dense are dense.
        calibration: that it was decided from; None where a record was repeated.
    """

    registered: bool
    dense_s: float
    exchange_s: float
    plan: Plan
    calibration: Calibration | None = None

    @property
    def sentence(self) -> str:
        """One line for the log."""
        times = f"{self.exchange_s * 1e3:.1f} ms a step compressed, {self.dense_s * 1e3:.1f} ms by DDP's own allreduce"
        if self.registered:
            return f"auto: the exchange is predicted to take {times}: lgreco is registered"
        return f"auto: the exchange is predicted to take {times}: nothing is registered, DDP averages as always"

    def forecast(self) -> Forecast:
        """For the record; only after measuring."""
        assert self.calibration is not None, "a replay writes no record"
        return Forecast(
            0,
            registered=self.registered,
            bytes_per_s=self.calibration.exchange.bytes_per_s,
            predicted_busy_ms=(self.exchange_s if self.registered else self.dense_s) * 1e3,
            text=self.sentence,
        )


def decide(
    group: dist.ProcessGroup,
    cpu_group: dist.ProcessGroup,
    device: torch.device,
    plan: Plan,
    cap_mb: float,
    *,
    solved: bool,
    replayed: str | None,
) -> Verdict:
    """Calibrates and judges, or repeats what a record says; collective, with one log line on rank 0.

    Args:
        group: DDP's.
        cpu_group: of the same ranks, over the CPU.
        device: of the gradients.
        plan: resolved from the config.
        cap_mb: DDP's bucket cap in MiB.
        solved: whether a solver decides about layers.
        replayed: record of the run that is repeated; None: decide.

    Raises:
        ValueError: where `replayed` is no record.
        FileNotFoundError: where there is none.
    """
    if replayed is not None:
        recorded = read(find(replayed)).forecasts
        registered = recorded[-1].registered if recorded else True
        return Verdict(registered, float("nan"), float("nan"), plan)
    verdict = judge(calibrate(group, cpu_group, device).calibration, plan, cap_mb, solved)
    if dist.get_rank(group) == 0:
        _log.log(logging.INFO if verdict.registered else logging.WARNING, verdict.sentence)
    return verdict


def judge(calibration: Calibration, plan: Plan, cap_mb: float, solved: bool = False) -> Verdict:
    """Decides from whole exchanges, before it is known what backward hides of them.

    What backward hides, it hides of both: where the whole exchange is no shorter, what is exposed is not either.

    Args:
        calibration: of these hosts.
        plan: resolved from the config.
        cap_mb: DDP's bucket cap in MiB.
        solved: the solver decides about layers; then none is made dense here.
    """
    layers = [planned.layer for planned in plan.planned]
    chosen = plan if solved else fastest(calibration, plan)
    schedule = fill_buckets([0.0] * len(layers), [layer.dense_bytes for layer in layers], cap_mb)
    share = ring_share(calibration.world_size)
    dense = [
        calibration.allreduce.seconds(share * sum(layers[row].dense_bytes for row in rows)) for rows in schedule.rows
    ]
    layer_s = _layer_seconds(calibration, chosen)
    compressed = exchange_s(schedule, layer_s, calibration.exchange)
    registered = sum(compressed) <= _WORTH_IT * sum(dense)
    return Verdict(registered, sum(dense), sum(compressed), chosen, calibration)


def fastest(calibration: Calibration, plan: Plan) -> Plan:
    """The plan, with layers dense that are faster so."""
    return Plan(_faster(calibration, planned) for planned in plan.planned)


def dense_plan(plan: Plan, because: str) -> Plan:
    """What DDP does by itself, as a plan."""
    return Plan(PlannedLayer(planned.layer, Dense(planned.layer.dtype), because) for planned in plan.planned)


def _layer_seconds(calibration: Calibration, plan: Plan) -> Sequence[float]:
    return [calibration.layer_s(planned.layer, planned.choice) for planned in plan.planned]


def _faster(calibration: Calibration, planned: PlannedLayer) -> PlannedLayer:
    if calibration.layer_s(planned.layer, planned.choice) <= calibration.layer_s(planned.layer, Dense()):
        return planned
    return PlannedLayer(planned.layer, Dense(), f"{planned.because}, but dense is faster on this link")
