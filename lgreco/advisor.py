"""The advisor: profiles real passes of a DDP module, without changing it, and says which exchange would pay."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lgreco.advice import Advice, Option, Options, median_of
from lgreco.agreement import leave_cpu_group, make_cpu_group
from lgreco.attach import check
from lgreco.auto import Way, judge
from lgreco.calibration import Calibration
from lgreco.calibration_cache import calibrate
from lgreco.candidates import is_exact, is_free, make_offers
from lgreco.config import Config
from lgreco.cost_model import (
    CAPS_MB,
    MIB,
    allreduce_s,
    exchange_s,
    exposed_s,
    fill_buckets,
)
from lgreco.layer import ELEMENT_BYTES, LayerInfo, layer_of
from lgreco.plan import Plan, resolve
from lgreco.profile import BLOCK, Passes, Profile, Setup

LossOf = Callable[[DistributedDataParallel, Any], torch.Tensor]


def advise(
    ddp: DistributedDataParallel,
    batch: Any,
    loss_of: LossOf | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    steps: int = 24,
    refresh: bool = False,
    *,
    trial: bool = True,
    limit_s: float = 120.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Says what each way of averaging gradients would take; collective over the module's process group.

    Runs forward and backward passes with and without DDP's exchange, in turns; the optimizer's step is not part of
    them. From what they took and from the calibration of the hosts the cost model predicts every way at every bucket
    cap, corrected by what it gets wrong of the dense pass. DDP's own averaging, torch's bf16 hook and lgreco are then
    tried in turns, each at the cap as it is and at the one predicted to be best, on DDP modules around the same model
    that are gone afterwards: the verdict rests on what was measured. Parameters and random states are left as they
    were, gradients are cleared; buffers such as BatchNorm's running statistics see the passes.

    Args:
        ddp: without a hook, and not attached.
        batch: of this rank: what the model is called with (a tuple or list: its arguments, a mapping: its keywords).
        loss_of: (ddp, batch) -> scalar loss; None: the model's output is one, or is summed.
        config: lgreco's, for the plan that is proposed; None: its default.
        steps: passes of each kind, at least 6.
        refresh: calibrate anew.
        trial: false: nothing is tried, and the verdict rests on predictions. What is tried needs room for a second set
            of DDP's buckets meanwhile, and for lgreco's residuals.
        limit_s: seconds after which the passes become fewer than `steps`, for slow networks.
        tell: hears what is being done.

    Returns:
        The advice, the same on every rank; `advice.to_table()` for people, `advice.verdict` for a sentence.

    Raises:
        ValueError: with a hook registered, one rank, or too few steps; for what `attach` refuses.
    """
    settings = Config.load(config)
    group = ddp.process_group
    if ddp._comm_hooks:
        raise ValueError("advise needs a DDP module without a communication hook: dense steps are measured")
    check(ddp)
    if dist.get_world_size(group) == 1:
        raise ValueError("one rank exchanges nothing: there is nothing to advise")
    if steps < 2 * BLOCK:
        raise ValueError(f"steps must be at least {2 * BLOCK}, got {steps}")
    layers = [layer_of(name, each) for name, each in ddp.module.named_parameters() if each.requires_grad]
    device = next(each.device for each in ddp.module.parameters() if each.requires_grad)
    cpu_group = make_cpu_group(group, "lgreco-advice")
    try:
        tell("measuring links and codecs")
        calibration = calibrate(group, cpu_group, device, refresh=refresh).calibration
        passes = Passes(ddp, lambda module: (loss_of or _loss)(module, batch), cpu_group, limit_s)
        tell("timing passes with and without exchange")
        profile = passes.profile(steps)
        options = options_of(calibration, layers, profile, settings, ddp.bucket_bytes_cap / MIB)
        if trial:
            tell(f"trying {'; '.join(each.name for each in options.ways)}")
            options = options.tried(passes.trial(options.to_try(), -(-len(profile.dense_s) // 2)))
    finally:
        leave_cpu_group(cpu_group)
    return Advice(calibration, sum(layer.numel for layer in layers), options)


def options_of(
    calibration: Calibration, layers: Sequence[LayerInfo], profile: Profile, config: Config, cap_mb: float
) -> Options:
    """Each way as it would be now and at its best, with what the cost model predicts for it; pure.

    Args:
        calibration: of the hosts.
        layers: of the model.
        profile: of its passes.
        config: lgreco's, for the plan.
        cap_mb: DDP's bucket cap now, MiB.
    """
    compute, compute_error = median_of(profile.compute_s)
    dense_s, dense_error = median_of(profile.dense_s)
    ready_s = list(profile.ready_s or [0.0] * len(layers))
    world_size = calibration.world_size
    sizes = [layer.dense_bytes for layer in layers]
    plan = judge(calibration, _plan_of(config, layers, world_size), cap_mb, solved=config.solver is not None).plan
    plan_s = [calibration.layer_s(planned.layer, planned.choice) for planned in plan.planned]

    def exchanged_s(way: Way, cap: float) -> tuple[float, float]:
        """What of a pass's exchange backward does not hide, and all of it."""
        schedule = fill_buckets(ready_s, sizes, cap)
        if way == "lgreco":
            seconds = exchange_s(schedule, plan_s, calibration.exchange)
        elif way == "bf16":
            seconds = [calibration.bf16_hook_s(sum(layers[row].numel for row in rows)) for rows in schedule.rows]
        else:
            seconds = allreduce_s(schedule, sizes, calibration.allreduce, world_size)
        return exposed_s(schedule.ready_s, seconds), sum(seconds)

    dense_late, dense_whole = exchanged_s("dense", cap_mb)
    # What the model got wrong of the dense pass, such as cores that backward and exchange share, for each second.
    misfit = (dense_s - compute - dense_late) / max(dense_whole, 1e-9)

    def options(way: Way, name: str, memory_bytes: float = 0.0, settings: Config | None = None) -> list[Option]:
        """At the bucket cap as it is, and at that which is predicted to be best."""
        best = min([cap_mb, *CAPS_MB], key=lambda each: exchanged_s(way, each)[0])
        found = []
        for cap in dict.fromkeys([cap_mb, best]):
            late, whole = exchanged_s(way, cap)
            predicted = compute + max(0.0, late + misfit * whole)
            error = compute_error + abs(misfit) * whole + calibration.spread * late
            words = name if cap == cap_mb else ", ".join(filter(None, (name, f"bucket_cap_mb={cap:g}")))
            found.append(Option(words, predicted, error, predicted, False, memory_bytes, Setup(way, cap, settings)))
        return found

    as_it_is, *tuned = options("dense", "")
    dense = Option("dense as it is", dense_s, dense_error, compute + dense_late, True, setup=as_it_is.setup)
    return Options(
        Option("compute alone: the best there is", compute, compute_error, measured=True),
        (
            dense,
            *tuned,
            *options("bf16", "bf16"),
            *options("lgreco", _plan_name(config), _residual_bytes(plan, config, world_size), _fixed(config, plan)),
        ),
    )


def _plan_of(config: Config, layers: Sequence[LayerInfo], world_size: int) -> Plan:
    plan = resolve(config, layers)
    if config.solver is None:
        return plan
    offers = make_offers(config.solver, plan, [is_free(config, layer) for layer in layers], world_size, config.residual)
    return offers.plan(offers.reference, "reference")


def _plan_name(config: Config) -> str:
    if config.solver is not None:
        return f"lgreco with a solver (as {config.solver.reference or 'its dearest candidates'})"
    return f"lgreco {config.default}"


def _residual_bytes(plan: Plan, config: Config, world_size: int) -> float:
    """Sender's and owner's residuals, two of each: a step writes one while the other still counts."""
    if config.residual == "off":
        return 0.0
    kept = sum(p.layer.numel for p in plan.planned if not is_exact(p.choice, p.layer))
    return 2 * ELEMENT_BYTES[config.residual] * (1 + 1 / world_size) * kept


def _fixed(config: Config, plan: Plan) -> Config:
    """Lgreco's settings with this plan from the first step on."""
    rules = tuple((glob.escape(planned.layer.name), planned.choice) for planned in plan.planned)
    return config.model_copy(
        update={"enabled": True, "warmup_steps": 0, "layers": rules, "auto": False, "solver": None}
    )


def _loss(ddp: DistributedDataParallel, batch: Any) -> torch.Tensor:
    if isinstance(batch, Mapping):
        output = ddp(**batch)
    else:
        output = ddp(*batch) if isinstance(batch, tuple | list) else ddp(batch)
    output = getattr(output, "loss", output)  # as models of transformers give it, where the batch has labels
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model gives {type(output).__name__}, no tensor: pass loss_of, (ddp, batch) -> scalar loss"
        )
    return output if output.dim() == 0 else output.float().sum()
