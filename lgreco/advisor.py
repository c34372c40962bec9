"""The advisor: profiles real passes of a DDP module, without changing it, and says which exchange would pay."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lgreco.advice import Advice, Option, verdict
from lgreco.agreement import leave_cpu_group, make_cpu_group
from lgreco.arrivals import ArrivalClock
from lgreco.auto import judge
from lgreco.calibration import Calibration
from lgreco.calibration_cache import calibrate
from lgreco.candidates import is_exact, is_free, make_offers
from lgreco.config import Config
from lgreco.cost_model import (
    CAPS_MB,
    MIB,
    accumulated_s,
    allreduce_s,
    exchange_s,
    exposed_s,
    fill_buckets,
)
from lgreco.layer import ELEMENT_BYTES, LayerInfo, layer_of
from lgreco.plan import Plan, resolve

LossOf = Callable[[DistributedDataParallel, Any], torch.Tensor]

_PASSES = (2, 4, 8)
_BLOCK = 3
"""Passes of a kind before the other kind's turn."""


def advise(
    ddp: DistributedDataParallel,
    batch: Any,
    loss_of: LossOf | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    steps: int = 24,
    refresh: bool = False,
) -> Advice:
    """Says what each way of averaging gradients would take; collective over the module's process group.

    Runs forward and backward passes with and without DDP's exchange, in turns; the optimizer's step is not part of
    them. Parameters and random states are left as they were, gradients are cleared; buffers such as BatchNorm's
    running statistics see the passes.

    Args:
        ddp: without a hook, and not attached.
        batch: of this rank: what the model is called with (a tuple or list: its arguments, a mapping: its keywords).
        loss_of: (ddp, batch) -> scalar loss; None: the model's output is one, or is summed.
        config: lgreco's, for the plan that is proposed; None: its default.
        steps: passes of each kind, at least 6.
        refresh: calibrate anew.

    Returns:
        The advice, the same on every rank; `advice.to_table()` for people, `advice.verdict` for a sentence.

    Raises:
        ValueError: with a hook registered, one rank, or too few steps.
    """
    settings = Config.load(config)
    group = ddp.process_group
    if ddp._comm_hooks:
        raise ValueError("advise needs a DDP module without a communication hook: dense steps are measured")
    if dist.get_world_size(group) == 1:
        raise ValueError("one rank exchanges nothing: there is nothing to advise")
    if steps < 2 * _BLOCK:
        raise ValueError(f"steps must be at least {2 * _BLOCK}, got {steps}")
    named = {name: each for name, each in ddp.module.named_parameters() if each.requires_grad}
    layers = [layer_of(name, each) for name, each in named.items()]
    cpu_group = make_cpu_group(group, "lgreco-advice")
    try:
        calibration = calibrate(group, cpu_group, next(iter(named.values())).device, refresh=refresh).calibration
        profile = _profile(ddp, list(named.values()), lambda: (loss_of or _loss)(ddp, batch), cpu_group, steps)
    finally:
        leave_cpu_group(cpu_group)
    return advice_of(calibration, layers, profile, settings, ddp.bucket_bytes_cap / MIB)


@dataclass(frozen=True)
class Profile:
    """What passes took, the same on every rank.

    Attributes:
        compute_s: passes without exchange, the slowest rank of each.
        dense_s: passes with DDP's, likewise.
        ready_s: when each layer's gradient is there; None where that is not known, then nothing counts as hidden.
    """

    compute_s: Sequence[float]
    dense_s: Sequence[float]
    ready_s: Sequence[float] | None


def advice_of(
    calibration: Calibration, layers: Sequence[LayerInfo], profile: Profile, config: Config, cap_mb: float
) -> Advice:
    """The advice that follows from measurements; pure.

    Args:
        calibration: of the hosts.
        layers: of the model.
        profile: of its passes.
        config: lgreco's, for the plan.
        cap_mb: DDP's bucket cap now, MiB.
    """
    compute, compute_error = median(profile.compute_s), _half_width(profile.compute_s)
    dense = Option("dense as it is", median(profile.dense_s), _half_width(profile.dense_s), measured=True)
    ready_s = list(profile.ready_s or [0.0] * len(layers))
    world_size = calibration.world_size
    sizes = [layer.dense_bytes for layer in layers]
    plan = _plan_of(config, layers, world_size)
    plan = judge(calibration, plan, cap_mb, solved=config.solver is not None).plan
    plan_s = [calibration.layer_s(planned.layer, planned.choice) for planned in plan.planned]

    def exposed(way: str, cap: float) -> float:
        schedule = fill_buckets(ready_s, sizes, cap)
        if way == "plan":
            seconds = exchange_s(schedule, plan_s, calibration.exchange)
        elif way == "bf16":
            seconds = [calibration.bf16_hook_s(sum(layers[row].numel for row in rows)) for rows in schedule.rows]
        else:
            seconds = allreduce_s(schedule, sizes, calibration.allreduce, world_size)
        return exposed_s(schedule.ready_s, seconds)

    predicted = compute + exposed("dense", cap_mb)
    misfit = abs(dense.step_s - predicted)

    def best(way: str, name: str, memory_bytes: float = 0.0) -> Option:
        cap = min(dict.fromkeys([cap_mb, *CAPS_MB]), key=lambda each: exposed(way, each))
        late = exposed(way, cap)
        error = compute_error + misfit * late / max(predicted - compute, 1e-9) + calibration.spread * late
        suffix = "" if cap == cap_mb else f"bucket_cap_mb={cap:g}"
        return Option(
            ", ".join(filter(None, (name, suffix))) or "dense as it is", compute + late, error, False, memory_bytes
        )

    tuned, bf16 = best("dense", ""), best("bf16", "bf16")
    proposed = best("plan", _plan_name(config), _residual_bytes(plan, config, world_size))
    late = max(0.0, dense.step_s - compute)
    accumulated = tuple(
        Option(f"accumulate {passes}", accumulated_s(compute, late, passes), compute_error + dense.error_s / passes)
        for passes in _PASSES
    )
    sentence = verdict(compute, dense, tuned, bf16, proposed, accumulated)
    numel = sum(layer.numel for layer in layers)
    return Advice(
        calibration, numel, compute, compute_error, dense, predicted, tuned, bf16, accumulated, proposed, sentence
    )


def _plan_of(config: Config, layers: Sequence[LayerInfo], world_size: int) -> Plan:
    plan = resolve(config, layers)
    if config.solver is None:
        return plan
    offers = make_offers(config.solver, plan, [is_free(config, layer) for layer in layers], world_size, config.residual)
    return offers.plan(offers.reference, "reference")


def _plan_name(config: Config) -> str:
    if config.solver is not None:
        return f"lgreco with a solver (as {config.solver.reference})"
    return f"lgreco {config.default}"


def _residual_bytes(plan: Plan, config: Config, world_size: int) -> float:
    """Sender's and owner's residuals, two of each: a step writes one while the other still counts."""
    if config.residual == "off":
        return 0.0
    kept = sum(p.layer.numel for p in plan.planned if not is_exact(p.choice, p.layer))
    return 2 * ELEMENT_BYTES[config.residual] * (1 + 1 / world_size) * kept


def _profile(
    ddp: DistributedDataParallel,
    parameters: Sequence[torch.Tensor],
    loss: Callable[[], torch.Tensor],
    cpu_group: dist.ProcessGroup,
    steps: int,
) -> Profile:
    """Times passes with and without exchange in turns, so that noise of the machine hits both alike; collective."""
    device = parameters[0].device

    def one(exchanges: bool) -> float:
        ddp.zero_grad()
        dist.barrier(cpu_group)
        begun = time.perf_counter()
        with contextlib.nullcontext() if exchanges else ddp.no_sync():
            torch.autograd.backward(loss())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    times: dict[bool, list[float]] = {False: [], True: []}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(2):  # DDP makes its buckets anew after the first
            one(True)
        clock = None
        for turn in range(-(-steps // _BLOCK)):
            for exchanges in (False, True) if turn % 2 else (True, False):
                if not exchanges and clock is None:
                    clock = ArrivalClock(parameters, passes=_BLOCK - 1)
                times[exchanges] += [one(exchanges) for _ in range(_BLOCK)]
                if clock is not None:
                    clock.stop()
    ddp.zero_grad()
    assert clock is not None, "there were passes without exchange"
    return _agreed(times, clock.ready_s(), len(parameters), cpu_group)


def _agreed(
    times: Mapping[bool, Sequence[float]], ready_s: Sequence[float] | None, layers: int, group: dist.ProcessGroup
) -> Profile:
    """Of each pass and each layer the slowest rank's time."""
    unknown = [float("nan")] * layers
    mine = torch.tensor([*times[False], *times[True], *(ready_s or unknown)], dtype=torch.float64)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    slowest: list[float] = torch.stack(everyone).amax(dim=0).tolist()  # NaN where a rank does not know
    count = len(times[False])
    ready = slowest[2 * count :]
    return Profile(slowest[:count], slowest[count : 2 * count], ready if all(each == each for each in ready) else None)


def _half_width(times: Sequence[float]) -> float:
    low, _, high = quantiles(times, n=4, method="inclusive")
    return (high - low) / 2


def _loss(ddp: DistributedDataParallel, batch: Any) -> torch.Tensor:
    if isinstance(batch, Mapping):
        output = ddp(**batch)
    else:
        output = ddp(*batch) if isinstance(batch, tuple | list) else ddp(batch)
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model gives {type(output).__name__}, no tensor: pass loss_of, (ddp, batch) -> scalar loss"
        )
    return output if output.dim() == 0 else output.float().sum()
