"""Binding: what a state holds of the DDP module that it is attached to: layers, groups, plan, masks and engine."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lgreco import _C
from lgreco import masks as masking
from lgreco.agreement import agree, leave_cpu_group, make_cpu_group, timeout_of
from lgreco.auto import Verdict, Way, decide, fastest, plan_without
from lgreco.candidates import Offers, is_free, make_offers
from lgreco.config import Config
from lgreco.controller import Controller
from lgreco.cost_model import MIB
from lgreco.layer import LayerInfo, layer_of, plain_name
from lgreco.masks import LayerMask
from lgreco.nodes import NodeGroups, Nodes, find_nodes, join_nodes
from lgreco.plan import Plan, resolve
from lgreco.plan_log import PlanLog
from lgreco.replay import Replay
from lgreco.slow_path import make_slow_path


class Binding:
    """Learns the layers from DDP, agrees on them with all ranks and starts the engine; collective to make.

    Args:
        ddp: the module.
        config: enabled, the same on every rank.
        scaler: a GradScaler, or None.
        faults: that tests inject.

    Attributes:
        group: DDP's.
        cpu_group: of the same ranks, over the CPU; None for one rank, and where lgreco does not exchange.
        layers: as they are exchanged, with how much their masks keep.
        names: of the layers, by id of the parameter, which DDP keeps alive.
        masks: of the layers that are masked.
        plan: resolved from the config; with a solver, the reference.
        verdict: of `auto`.
        engine: None where lgreco does not exchange.
        controller: of the plans, where there is a solver.
    """

    def __init__(self, ddp: DistributedDataParallel, config: Config, scaler: Any, faults: Any) -> None:
        self.group = ddp.process_group
        self.cpu_group: dist.ProcessGroup | None = None
        self.layers: list[LayerInfo] = []
        self.names: dict[int, str] = {}
        self.masks: dict[str, LayerMask] = {}
        self.verdict: Verdict | None = None
        self.engine: Any = None
        self.controller: Controller | Replay | None = None
        self._config = config
        self._node_groups: NodeGroups | None = None
        try:
            self._start(ddp, scaler, faults)
        except BaseException:
            self.leave_groups()
            raise

    @property
    def rank(self) -> int:
        """In DDP's group."""
        return dist.get_rank(self.group)

    @property
    def world_size(self) -> int:
        """Ranks in DDP's group."""
        return dist.get_world_size(self.group)

    @property
    def steps(self) -> int:
        """By which plans and tables count; on CUDA, where only the device knows of dropped steps, with those."""
        return int(self.engine.stats()["steps"])

    def settle(self) -> int:
        """Ends what completed steps have left to do; returns `steps`.

        Raises:
            RuntimeError: where the exchange has failed.
        """
        if self.engine is None:
            return 0
        self.engine.committed_steps()
        if self.controller is not None:
            self.controller.wait(self.steps)
        return self.steps

    @property
    def way(self) -> Way:
        """Who averages."""
        return "lgreco" if self.verdict is None else self.verdict.way

    def put_masks(self, masks: dict[str, LayerMask], steps: int = 0) -> None:
        """Layers, costs and the engine follow the masks."""
        self.masks = masks
        ordered = {layer.name: masks[layer.name].in_memory(layer) for layer in self.layers if layer.name in masks}
        self.layers = [masking.masked(layer, ordered) for layer in self.layers]
        self.plan = resolve(self._config, self.layers)
        offers = self._offers(self.plan)
        if offers is None and self.verdict is not None and self.verdict.calibration is not None:
            self.plan = fastest(self.verdict.calibration, self.plan)
        if offers is not None and self.controller is not None:
            choices = self.controller.adopt(offers, ordered, steps)
        else:
            choices = [planned.choice for planned in self.plan.planned]
        packed = [ordered[layer.name].packed() if layer.name in ordered else None for layer in self.layers]
        self.engine.set_masks(packed, [choice.to_native() for choice in choices])

    def close(self) -> None:
        """Stops what runs; waits for no lost rank."""
        if self.controller is not None:
            self.controller.close(self.steps, self.engine.close)
        self._end_engine()

    def abandon(self) -> None:
        """Ends what runs for a module that is collected; asks nothing of the other ranks, which may still have it."""
        controller, self.controller = self.controller, None  # which holds this until its thread has ended
        if controller is not None:
            controller.abandon(self._end_engine)
        else:
            self._end_engine()

    def _end_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.leave_groups()

    @property
    def nodes(self) -> Nodes | None:
        """Of a hierarchical exchange."""
        return None if self._node_groups is None else self._node_groups.nodes

    def leave_groups(self) -> None:
        """Ends what was made for this binding; may be called twice."""
        groups = [] if self._node_groups is None else [self._node_groups.node, self._node_groups.rail]
        if self.cpu_group is not None:
            groups.append(self.cpu_group)
        self.cpu_group = self._node_groups = None
        while groups:
            leave_cpu_group(groups.pop())

    def _start(self, ddp: DistributedDataParallel, scaler: Any, faults: Any) -> None:
        named = _named_parameters(ddp)
        self.layers = [layer_of(name, parameter) for name, parameter in named.items()]
        self.names = {id(parameter): name for name, parameter in named.items()}
        parameters = list(named.values())
        devices = {parameter.device for parameter in parameters}
        if len(devices) > 1:
            raise ValueError(f"all parameters must be on one device, got {', '.join(sorted(map(str, devices)))}")
        if self.world_size > 1:
            self.cpu_group = make_cpu_group(ddp.process_group)
            agree(self.cpu_group, self._config, self.layers)
            self._join_nodes()
        self.plan = resolve(self._config, self.layers)
        offers = self._offers(self.plan)
        if offers is not None:
            self.plan = offers.plan(offers.reference, "reference")
        if self._config.auto and self.cpu_group is not None:
            self._judge(ddp, parameters[0].device, offers)
            if self.way != "lgreco":
                self.leave_groups()
                return
        self.engine = _C.Engine(
            _settings(self._config, ddp.process_group),
            self.cpu_group if self._node_groups is None else self._node_groups.rail,
            ddp.process_group,
            list(named),
            parameters,
            [planned.choice.to_native() for planned in self.plan.planned],
            _scale_of(scaler, parameters),
            faults,
            None if self._node_groups is None else self._node_groups.native(self.rank, self.layers),
        )
        if offers is not None:
            self.controller = make_slow_path(
                self._config,
                offers,
                self.engine,
                ddp.process_group,
                parameters,
                self.verdict,
                ddp.bucket_bytes_cap / MIB,
                self.nodes,
            )
            self.controller.start()

    def _offers(self, plan: Plan) -> Offers | None:
        """What the solver may choose; None where there is none, or nothing to exchange."""
        solver = self._config.solver
        if solver is None or self.world_size == 1:
            return None
        free = [is_free(self._config, layer) for layer in self.layers]
        exchanging = self.world_size if self.nodes is None else len(self.nodes.ranks)
        return make_offers(solver, plan, free, exchanging, self._config.residual)

    def _join_nodes(self) -> None:
        """Makes the groups of a hierarchical exchange, where the config asks for one; collective."""
        if self._config.ranks_per_node == 1:
            return
        assert self.cpu_group is not None, "there are several ranks"
        nodes = find_nodes(self._config.ranks_per_node, self.cpu_group)
        if nodes is not None:
            self._node_groups = join_nodes(nodes, self.group)

    def _judge(self, ddp: DistributedDataParallel, device: torch.device, offers: Offers | None) -> None:
        """Decides who averages, and about layers that are faster dense; collective."""
        assert self.cpu_group is not None, "there are several ranks"
        solver = self._config.solver
        self.verdict = decide(
            ddp.process_group,
            self.cpu_group,
            device,
            self.plan,
            ddp.bucket_bytes_cap / MIB,
            solved=offers is not None,
            given=self._config.auto if isinstance(self._config.auto, str) else None,
            replayed=None if solver is None else solver.plan_replay,
        )
        self.plan = self.verdict.plan
        if self.way == "lgreco":
            return
        self.plan = plan_without(self.way, self.plan)
        if offers is not None and solver is not None and solver.plan_replay is None:
            log = PlanLog(self._config, solver, offers, self.rank, self.world_size)
            log.forecast(self.verdict.forecast())
            log.close()


def _named_parameters(ddp: DistributedDataParallel) -> dict[str, nn.Parameter]:
    """The parameters that DDP averages, by name, without the prefixes that wrappers add."""
    return {
        plain_name(name): parameter
        for name, parameter in ddp.module.named_parameters()
        if parameter.requires_grad and name not in ddp.parameters_to_ignore
    }


def _settings(config: Config, group: dist.ProcessGroup) -> Any:
    settings = _C.Settings()
    settings.seed = config.seed
    settings.warmup_steps = config.warmup_steps
    settings.residual = config.residual
    settings.check_replicas_every = config.check_replicas_every
    settings.transport = config.transport
    settings.timeout_ms = int(timeout_of(group).total_seconds() * 1000)
    return settings


def _scale_of(scaler: Any, parameters: list[nn.Parameter]) -> torch.Tensor | None:
    """GradScaler's scale, where it lives: it is updated in place, so the engine may read it at every step."""
    if scaler is None or not scaler.is_enabled():
        return None
    if scaler._scale is None:
        scaler._lazy_init_scale_growth_tracker(parameters[0].device)
    scale: torch.Tensor = scaler._scale
    return scale
