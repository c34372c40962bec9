"""Auto: at attach, who averages fastest here (DDP as it is, torch's bf16 hook, lgreco), and which layers stay dense."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist

from lgreco.calibration import Calibration
from lgreco.calibration_cache import calibrate
from lgreco.choice import Dense
from lgreco.cost_model import allreduce_s, exchange_s, fill_buckets
from lgreco.plan import Plan, PlannedLayer
from lgreco.record import find, read
from lgreco.record_kinds import Forecast

_log = logging.getLogger("lgreco")

Way = Literal["lgreco", "bf16", "dense"]
"""lgreco's exchange; torch's bf16 hook, registered in its place; DDP as it is."""

_WORTH_IT = 0.9
"""A way must take at most this much of what a simpler one takes: the gain must outweigh what it loses, and noise."""


@dataclass(frozen=True)
class Verdict:
    """What attach has decided, the same on every rank.

    Attributes:
        way: who averages.
        dense_s: of all buckets by DDP's own allreduce, as predicted.
        bf16_s: of all buckets by torch's bf16 hook.
        exchange_s: of all buckets by lgreco under the plan.
        plan: the plan that `exchange_s` is of: layers that are faster dense are dense.
        calibration: that it was decided from, and layers are judged by; None where a record was repeated.
    """

    way: Way
    dense_s: float
    bf16_s: float
    exchange_s: float
    plan: Plan
    calibration: Calibration | None = None

    @property
    def sentence(self) -> str:
        """One line for the log."""
        times = (
            f"{self.exchange_s * 1e3:.1f} ms a step by lgreco, {self.bf16_s * 1e3:.1f} ms by torch's bf16 hook, "
            f"{self.dense_s * 1e3:.1f} ms by DDP's own allreduce"
        )
        what = {
            "lgreco": "lgreco is registered",
            "bf16": "torch's bf16 hook is registered, lgreco is not",
            "dense": "nothing is registered, DDP averages as always",
        }
        return f"auto: the exchange is predicted to take {times}: {what[self.way]}"

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint, plain values; None where nothing was decided here."""
        return None if self.calibration is None else {"way": self.way, "calibration": self.calibration.to_dict()}

    def following(self, saved: Mapping[str, Any]) -> Verdict:
        """This one, judging layers as the run did whose `state` this was, where as many ranks average the same way.

        Raises:
            ValueError: for what `state` did not give.
        """
        if not isinstance(saved, Mapping) or not isinstance(saved.get("calibration"), Mapping):
            raise ValueError(f"the state of lgreco is damaged: auto must hold way and calibration, got {saved!r:.60}")
        calibration = Calibration.from_dict(saved["calibration"])
        if self.calibration is None or calibration.world_size != self.calibration.world_size:
            return self
        if saved["way"] != self.way:
            warnings.warn(
                f"auto has decided for {self.way}, the run that was saved for {saved['way']}: training does not go on "
                "bit for bit, residuals are left out. To go on as saved, attach with its calibration: "
                "auto=saved['auto']['calibration']",
                stacklevel=4,
            )
            return self
        return self if calibration == self.calibration else replace(self, calibration=calibration)

    def forecast(self) -> Forecast:
        """For the record; only after measuring."""
        assert self.calibration is not None, "a replay writes no record"
        seconds = {"lgreco": self.exchange_s, "bf16": self.bf16_s, "dense": self.dense_s}
        return Forecast(
            0,
            way=self.way,
            bytes_per_s=self.calibration.exchange.bytes_per_s,
            predicted_busy_ms=seconds[self.way] * 1e3,
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
    given: str | None,
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
        given: a calibration's JSON, the same on every rank; None: measure.
        replayed: record of the run that is repeated; None: decide.

    Raises:
        ValueError: where `replayed` is no record, or `given` no calibration of as many ranks.
        FileNotFoundError: where there is none.
    """
    if replayed is not None:
        recorded = read(find(replayed)).forecasts
        way: Any = recorded[-1].way if recorded else "lgreco"
        unknown = float("nan")
        return Verdict(way, unknown, unknown, unknown, plan)
    if given is None:
        calibration = calibrate(group, cpu_group, device).calibration
    else:
        calibration = _given(given, dist.get_world_size(group))
    verdict = judge(calibration, plan, cap_mb, solved)
    if dist.get_rank(group) == 0:
        _log.log(logging.INFO if verdict.way == "lgreco" else logging.WARNING, verdict.sentence)
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
    sizes = [layer.dense_bytes for layer in layers]
    schedule = fill_buckets([0.0] * len(layers), sizes, cap_mb)
    dense = sum(allreduce_s(schedule, sizes, calibration.allreduce, calibration.world_size))
    bf16 = sum(calibration.bf16_hook_s(sum(layers[row].numel for row in rows)) for rows in schedule.rows)
    compressed = sum(exchange_s(schedule, _layer_seconds(calibration, chosen), calibration.exchange))
    way: Way = "bf16" if bf16 <= _WORTH_IT * dense else "dense"
    if compressed <= _WORTH_IT * min(bf16, dense):
        way = "lgreco"
    return Verdict(way, dense, bf16, compressed, chosen, calibration)


def fastest(calibration: Calibration, plan: Plan) -> Plan:
    """The plan, with layers dense that are faster so."""
    return Plan(_faster(calibration, planned) for planned in plan.planned)


def plan_without(way: Way, plan: Plan) -> Plan:
    """What is done where lgreco is not registered, as a plan."""
    because = "auto: torch's bf16 hook is faster here" if way == "bf16" else "auto: DDP's own is faster here"
    return Plan(
        PlannedLayer(planned.layer, Dense("bf16" if way == "bf16" else planned.layer.dtype), because)
        for planned in plan.planned
    )


def _given(text: str, world_size: int) -> Calibration:
    try:
        calibration = Calibration.from_dict(json.loads(text))
    except ValueError as error:
        raise ValueError(f"auto: {error}") from None
    if calibration.world_size != world_size:
        raise ValueError(
            f"auto: the calibration is of {calibration.world_size} ranks, here are {world_size}; true measures anew"
        )
    return calibration


def _layer_seconds(calibration: Calibration, plan: Plan) -> Sequence[float]:
    return [calibration.layer_s(planned.layer, planned.choice) for planned in plan.planned]


def _faster(calibration: Calibration, planned: PlannedLayer) -> PlannedLayer:
    if calibration.layer_s(planned.layer, planned.choice) <= calibration.layer_s(planned.layer, Dense()):
        return planned
    return PlannedLayer(planned.layer, Dense(), f"{planned.because}, but dense is faster on this link")
