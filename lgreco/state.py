"""State: what a user holds of an attached model: its plan, counters and checkpoints."""

from __future__ import annotations

import atexit
import gc
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lgreco import _C, checkpoint
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

_open_states: weakref.WeakSet[State] = weakref.WeakSet()


class State:
    """The compressed exchange of one DDP module.

    `lgreco.attach` makes one. In DDP's conventional form it is made first and learns the layers at the first bucket:

        state = lgreco.State(config, process_group=None)
        ddp.register_comm_hook(state, lgreco.hook)

    Args:
        config: an `lgreco.Config`, a dict, the path of a YAML file, or None.
        process_group: DDP's; None for the default group.

    Raises:
        ValueError: for a mistake in the config.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | str | Path | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.config = Config.load(config)
        self._group = process_group
        self._engine: Any = None
        self._cpu_group: dist.ProcessGroup | None = None
        self._node_groups: NodeGroups | None = None
        self._plan: Plan | None = None
        self._layers: list[LayerInfo] = []
        self._names: dict[int, str] = {}  # by id of the parameter, which DDP keeps alive
        self._masks: dict[str, LayerMask] = {}
        self._pending_masks: dict[str, torch.Tensor] = {}
        self._pending: Mapping[str, Any] | None = None
        self._closed = False
        self._faults: Any = None
        self._controller: Controller | Replay | None = None
        self._verdict: Verdict | None = None

    @property
    def rank(self) -> int:
        """This process's rank in DDP's group."""
        return dist.get_rank(self._group)

    @property
    def world_size(self) -> int:
        """Ranks in DDP's group."""
        return dist.get_world_size(self._group)

    @property
    def registered(self) -> bool:
        """Whether lgreco exchanges the gradients: false where the config is not enabled, or `auto` found better."""
        return self.way == "lgreco"

    @property
    def way(self) -> Way:
        """Who averages: lgreco; or, as `auto` decided, torch's bf16 hook, or DDP as it is (dense)."""
        if not self.config.enabled:
            return "dense"
        return "lgreco" if self._verdict is None else self._verdict.way

    @property
    def plan(self) -> Plan:
        """Layer name -> choice, as it applies after the warm-up steps; with a solver, the plan in force now.

        Raises:
            RuntimeError: before the layers are known (not attached, or no backward yet in the conventional form).
        """
        if self._plan is None:
            raise RuntimeError("no plan yet: the config is not enabled, or no backward has shown the layers so far")
        if self._controller is not None:
            return self._controller.plan(int(self._engine.stats()["steps"]))
        return self._plan

    def stats(self) -> dict[str, float]:
        """Counters of the last step on this rank, and the memory held.

        Returns:
            wire_bytes: sent by this rank, headers included (where lgreco is not registered, by a ring all-reduce);
            dense_bytes: what a ring all-reduce of the same gradients sends, 2 (W-1)/W of their bytes; node_bytes: sent
            to ranks of the same node, where the exchange is hierarchical (then wire_bytes are those to other nodes);
            steps: committed so far;
            residual_bytes_per_parameter, buffer_bytes_per_parameter and memory_bytes_per_parameter (their sum).
        """
        numel = sum(layer.numel for layer in self._layers)
        gradient_bytes = sum(layer.dense_bytes for layer in self._layers)
        dense_bytes = 2 * (self.world_size - 1) * gradient_bytes // self.world_size
        others_bytes = 4 * (self.world_size - 1) * numel // self.world_size if self.way == "bf16" else dense_bytes
        native = (
            self._engine.stats()
            if self._engine
            else dict.fromkeys(("wire_bytes", "node_bytes", "residual_bytes", "buffer_bytes", "steps"), 0)
        )
        residual, buffers = native["residual_bytes"] / max(numel, 1), native["buffer_bytes"] / max(numel, 1)
        return {
            "wire_bytes": native["wire_bytes"] if self.registered else others_bytes,
            "node_bytes": native["node_bytes"],
            "dense_bytes": dense_bytes,
            "steps": native["steps"],
            "residual_bytes_per_parameter": residual,
            "buffer_bytes_per_parameter": buffers,
            "memory_bytes_per_parameter": residual + buffers,
        }

    def state_dict(self) -> dict[str, Any]:
        """This rank's residuals, step count and masks; every rank saves its own, or all use `gather`.

        Call it between steps. What the last step left is committed by it, so `discard` comes before.

        Returns:
            Plain containers and tensors, so that torch.load(weights_only=True) reads it back.
        """
        if self._controller is not None:
            self._controller.wait(self._engine.committed_steps())
        packed = checkpoint.pack(
            self._engine, self.config, self._layers, self._masks, self.rank, self.world_size, self._nodes
        )
        if self._controller is not None:
            packed["solver"] = self._controller.state()
        return packed

    def gather(self) -> dict[str, Any]:
        """All ranks' states in one dict, the same on every rank; collective. Loads at any world size."""
        states: list[Any] = [self.state_dict()]
        if self.world_size > 1 and self._cpu_group is not None:
            states = [None] * self.world_size
            dist.all_gather_object(states, self.state_dict(), group=self._cpu_group)
        return checkpoint.pack_gathered(states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state that `state_dict` or `gather` gave.

        A gathered state loads at any world size W': at the same one every rank continues bit for bit; at another one
        each new rank's residual is the mean of the old senders' residuals plus the owners' residuals, so that what is
        still to be added to the averaged gradient is kept (sum over ranks / world size); at W' = 1 nothing is exchanged
        and nothing kept. A state without per-rank parts sets the step count; residuals then start at zero, with one
        warning. Masks become those of the state; one that was saved before there were masks leaves them as they are.

        Raises:
            ValueError: for another rank's state, another model's, or one that is no state of lgreco.
        """
        checkpoint.check(state)
        if self._engine is None:
            self._pending = state  # the layers are not known yet
            return
        controller = self._controller
        masks = masking.unpack(state["masks"], self._layers) if "masks" in state else self._masks

        def load_plans() -> None:
            if masks or self._masks:
                self._put_masks(masks)
            if controller is not None:
                controller.load(state.get("solver"), state["steps"])

        checkpoint.load(self._engine, state, self._layers, self.rank, self.world_size, self._nodes, load_plans)

    def saved_by_same_ranks(self, state: Mapping[str, Any]) -> bool:
        """Whether a state is of as many ranks as there are now, and, where the exchange is hierarchical, nodes."""
        return checkpoint.same_ranks(state, self.world_size, self._nodes)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> bool tensor of the layer's shape, true where kept; layers of which all is kept are left out."""
        shapes = {layer.name: layer.shape for layer in self._layers}
        return {name: mask.tensor().view(shapes[name]) for name, mask in self._masks.items()}

    def names_of(self, parameters: Iterable[torch.Tensor]) -> list[str | None] | None:
        """The layer that each parameter is, None for one that is not exchanged; None before the layers are known."""
        if not self._names:
            return None
        return [self._names.get(id(parameter)) for parameter in parameters]

    def set_masks(self, masks: Mapping[str, torch.Tensor]) -> None:
        """From the next step on, only what these masks keep is exchanged; gradients become zero elsewhere.

        Collective: call it on every rank between the same two steps, after `optimizer.step()` (and `discard`), before
        the next forward. Layers that are not named keep their mask; one that keeps everything ends masking. Residuals
        move: what is pruned now is dropped, what has grown again starts at zero. A solver drops what it has measured
        and not yet put in force, and measures anew at once. With one rank, or where `auto`
        has not registered lgreco, gradients stay whole.

        Args:
            masks: layer name (as in DDP's module, without `module.`) -> bool or uint8 of the parameter's shape, on any
                device; true where kept.

        Raises:
            ValueError: on every rank, and nothing has changed: for a name, shape or dtype that does not fit, or masks
                that differ between ranks; names the layers and the ranks.
        """
        if not self.registered:
            return
        if self._engine is None:  # the layers are not known yet
            self._pending_masks.update({name: mask.clone() for name, mask in masks.items()})
            return
        updated = masking.update_on_all(self._cpu_group, self._masks, masks, self._layers)
        if masking.digests(updated) == masking.digests(self._masks):
            return
        steps = int(self._engine.stats()["steps"])
        if self._controller is not None:
            self._controller.wait(steps)
        self._put_masks(updated, steps)
        if self._controller is not None:
            self._controller.remeasure(steps)

    def _put_masks(self, masks: dict[str, LayerMask], steps: int = 0) -> None:
        """Layers, costs and the engine follow the masks."""
        self._masks = masks
        self._layers = [masking.masked(layer, masks) for layer in self._layers]
        self._plan = resolve(self.config, self._layers)
        offers = self._offers(self._plan)
        if offers is None and self._verdict is not None and self._verdict.calibration is not None:
            self._plan = fastest(self._verdict.calibration, self._plan)
        if offers is not None and self._controller is not None:
            choices = self._controller.adopt(offers, masks, steps)
        else:
            choices = [planned.choice for planned in self._plan.planned]
        packed = [masks[layer.name].packed() if layer.name in masks else None for layer in self._layers]
        self._engine.set_masks(packed, [choice.to_native() for choice in choices])

    def note_step(self, loss: float | None = None, step_ms: float | None = None) -> None:
        """Adds a step to the record (`solver.record`): bytes and codec time, and what the caller knows of it.

        Call it after each step; every `solver.record_every` steps their means are written. Without a record it does
        nothing.
        """
        if self._controller is not None:
            self._controller.note_step(self._engine.stats(), loss, step_ms)

    def discard(self) -> None:
        """Drops what the last step wrote (residuals, step count).

        For those who skip an optimizer step by their own test. Call it on every rank, before the next backward.
        """
        if self._engine is not None:
            self._engine.discard()

    def close(self) -> None:
        """Stops the lanes, releases buffers and connections; a later backward raises.

        Called at exit; may be called twice. It waits for no lost rank.
        """
        if self._closed:
            return
        self._closed = True
        if self._controller is not None:
            self._controller.close(int(self._engine.stats()["steps"]), self._engine.close)
        elif self._engine is not None:
            self._engine.close()
        self._leave_cpu_group()

    @property
    def _nodes(self) -> Nodes | None:
        return None if self._node_groups is None else self._node_groups.nodes

    def _leave_cpu_group(self) -> None:
        groups = [] if self._node_groups is None else [self._node_groups.node, self._node_groups.rail]
        if self._cpu_group is not None:
            groups.append(self._cpu_group)
        self._cpu_group = self._node_groups = None
        while groups:
            leave_cpu_group(groups.pop())

    def _bind(self, ddp: DistributedDataParallel, scaler: Any = None) -> None:
        """Learns the layers from DDP, agrees on them with all ranks and starts the engine; collective."""
        try:
            self._start(ddp, scaler)
        except BaseException:
            self._leave_cpu_group()
            raise
        _open_states.add(self)
        if self._pending is not None:
            self.load_state_dict(self._pending)
            self._pending = None
        if self._pending_masks:
            self.set_masks(self._pending_masks)
            self._pending_masks = {}

    def _start(self, ddp: DistributedDataParallel, scaler: Any) -> None:
        named = _named_parameters(ddp)
        self._layers = [layer_of(name, parameter) for name, parameter in named.items()]
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._group = ddp.process_group
        parameters = list(named.values())
        devices = {parameter.device for parameter in parameters}
        if len(devices) > 1:
            raise ValueError(f"all parameters must be on one device, got {', '.join(sorted(map(str, devices)))}")
        if self.world_size > 1:
            self._cpu_group = make_cpu_group(ddp.process_group)
            agree(self._cpu_group, self.config, self._layers)
            self._join_nodes()
        self._plan = resolve(self.config, self._layers)
        offers = self._offers(self._plan)
        if offers is not None:
            self._plan = offers.plan(offers.reference, "reference")
        if self.config.auto and self._cpu_group is not None:
            self._judge(ddp, parameters[0].device, offers)
            if not self.registered:
                self._leave_cpu_group()
                return
        self._engine = _C.Engine(
            _settings(self.config, ddp.process_group),
            self._cpu_group if self._node_groups is None else self._node_groups.rail,
            ddp.process_group,
            list(named),
            parameters,
            [planned.choice.to_native() for planned in self._plan.planned],
            _scale_of(scaler, parameters),
            self._faults,
            None if self._node_groups is None else self._node_groups.native(self.rank, self._layers),
        )
        if offers is not None:
            self._controller = make_slow_path(
                self.config,
                offers,
                self._engine,
                ddp.process_group,
                parameters,
                self._verdict,
                ddp.bucket_bytes_cap / MIB,
                self._nodes,
            )
            self._controller.start()

    def _offers(self, plan: Plan) -> Offers | None:
        """What the solver may choose; None where there is none, or nothing to exchange."""
        solver = self.config.solver
        if solver is None or self.world_size == 1:
            return None
        free = [is_free(self.config, layer) for layer in self._layers]
        exchanging = self.world_size if self._nodes is None else len(self._nodes.ranks)
        return make_offers(solver, plan, free, exchanging, self.config.residual)

    def _join_nodes(self) -> None:
        """Makes the groups of a hierarchical exchange, where the config asks for one; collective."""
        if self.config.ranks_per_node == 1:
            return
        assert self._cpu_group is not None, "there are several ranks"
        assert self._group is not None, "DDP has told"
        nodes = find_nodes(self.config.ranks_per_node, self._cpu_group)
        if nodes is not None:
            self._node_groups = join_nodes(nodes, self._group)

    def _judge(self, ddp: DistributedDataParallel, device: torch.device, offers: Offers | None) -> None:
        """Decides who averages, and about layers that are faster dense; collective."""
        assert self._plan is not None, "resolved before"
        assert self._cpu_group is not None, "there are several ranks"
        solver = self.config.solver
        self._verdict = decide(
            ddp.process_group,
            self._cpu_group,
            device,
            self._plan,
            ddp.bucket_bytes_cap / MIB,
            solved=offers is not None,
            replayed=None if solver is None else solver.plan_replay,
        )
        self._plan = self._verdict.plan
        if self.registered:
            return
        self._plan = plan_without(self.way, self._plan)
        if offers is not None and solver is not None and solver.plan_replay is None:
            log = PlanLog(self.config, solver, offers, self.rank, self.world_size)
            log.forecast(self._verdict.forecast())
            log.close()

    def _register(self, ddp: DistributedDataParallel) -> None:
        self._engine.register_on(ddp.reducer)

    def _run(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if self._engine is None:
            if self.config.auto:
                raise ValueError("auto decides before a hook is registered: use lgreco.attach(ddp, config)")
            self._bind(_ddp_of(self))
        future: torch.futures.Future[torch.Tensor] = self._engine.run(bucket)
        return future


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


def _ddp_of(state: State) -> DistributedDataParallel:
    """The DDP module that `state` is registered on: DDP tells a hook of parameters, but not of their names."""
    for candidate in gc.get_objects():
        if isinstance(candidate, DistributedDataParallel) and any(held is state for _, held in candidate._comm_hooks):
            return candidate
    raise RuntimeError("the state belongs to no DDP module; use ddp.register_comm_hook(state, lgreco.hook)")


@atexit.register
def _close_all() -> None:
    for state in list(_open_states):
        state.close()
