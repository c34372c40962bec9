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
from torch.nn.parallel import DistributedDataParallel

from lgreco import checkpoint
from lgreco import masks as masking
from lgreco.auto import Way
from lgreco.binding import Binding
from lgreco.config import Config
from lgreco.measuring_thread import join_abandoned
from lgreco.plan import Plan

_open_states: weakref.WeakSet[State] = weakref.WeakSet()


class State:
    """The compressed exchange of one DDP module.

    DDP holds it; once neither DDP nor anybody else does, what it runs ends, as if it were closed. `lgreco.attach` makes
    one. In DDP's conventional form it is made first and learns the layers at the first bucket:

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
        self._binding: Binding | None = None  # from when the layers are known
        self._pending: Mapping[str, Any] | None = None
        self._pending_masks: dict[str, torch.Tensor] = {}
        self._closed = False
        self._finalizer: weakref.finalize[[], State] | None = None
        self._faults: Any = None

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
        return "lgreco" if self._binding is None else self._binding.way

    @property
    def plan(self) -> Plan:
        """Layer name -> choice, as it applies after the warm-up steps; with a solver, the plan in force now.

        Raises:
            RuntimeError: before the layers are known (not attached, or no backward yet in the conventional form).
        """
        bound = self._binding
        if bound is None:
            raise RuntimeError("no plan yet: the config is not enabled, or no backward has shown the layers so far")
        if bound.controller is not None:
            return bound.controller.plan(bound.steps)
        return bound.plan

    def stats(self) -> dict[str, float]:
        """Counters of the last step on this rank, and the memory held.

        Returns:
            wire_bytes: sent by this rank, headers included (where lgreco is not registered, by a ring all-reduce);
            dense_bytes: what a ring all-reduce of the same gradients sends, 2 (W-1)/W of their bytes; node_bytes: sent
            to ranks of the same node, where the exchange is hierarchical (then wire_bytes are those to other nodes);
            steps: committed so far;
            residual_bytes_per_parameter, buffer_bytes_per_parameter and memory_bytes_per_parameter (their sum).
        """
        bound = self._binding
        layers = [] if bound is None else bound.layers
        numel = sum(layer.numel for layer in layers)
        gradient_bytes = sum(layer.dense_bytes for layer in layers)
        dense_bytes = 2 * (self.world_size - 1) * gradient_bytes // self.world_size
        others_bytes = 4 * (self.world_size - 1) * numel // self.world_size if self.way == "bf16" else dense_bytes
        native = (
            bound.engine.stats()
            if bound is not None and bound.engine is not None
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

        Raises:
            RuntimeError: after `close`.
        """
        self._check_open("state_dict() reads what close() releases, so it comes before close()")
        bound = self._binding
        if bound is None:
            return checkpoint.pack(None, self.config, [], {}, self.rank, self.world_size, None)
        bound.settle()
        packed = checkpoint.pack(
            bound.engine, self.config, bound.layers, bound.masks, bound.rank, bound.world_size, bound.nodes
        )
        if bound.controller is not None:
            packed["solver"] = bound.controller.state()
        decided = None if bound.verdict is None else bound.verdict.state()
        return packed if decided is None else {**packed, "auto": decided}

    def gather(self) -> dict[str, Any]:
        """All ranks' states in one dict, the same on every rank; collective. Loads at any world size.

        Raises:
            RuntimeError: after `close`.
        """
        self._check_open("gather() asks all ranks, so it comes before close()")
        states: list[Any] = [self.state_dict()] * self.world_size
        group = None if self._binding is None else self._binding.cpu_group
        if group is not None:  # else nothing was exchanged, and every rank's state is empty alike
            dist.all_gather_object(states, states[0], group=group)
        return checkpoint.pack_gathered(states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state that `state_dict` or `gather` gave.

        A gathered state loads at any world size W': at the same one every rank continues bit for bit; at another one
        each new rank's residual is the mean of the old senders' residuals plus the owners' residuals, so that what is
        still to be added to the averaged gradient is kept (sum over ranks / world size); at W' = 1 nothing is exchanged
        and nothing kept. A state without per-rank parts sets the step count; residuals then start at zero, with one
        warning. Masks become those of the state; one that was saved before there were masks leaves them as they are.
        Under `auto`, layers are dense where they were in the run that was saved; where another way of averaging has
        been decided for, a warning says so.

        Raises:
            ValueError: for another rank's state, another model's, or one that is no state of lgreco.
            RuntimeError: after `close`.
        """
        self._check_open("load_state_dict() needs one that runs: wrap the model in DDP anew and attach to that")
        checkpoint.check(state)
        bound = self._binding
        verdict = None if bound is None else bound.verdict
        if verdict is not None and "auto" in state:
            verdict = verdict.following(state["auto"])
        if bound is None or bound.engine is None:
            self._pending = state  # the layers are not known yet
            return
        masks = masking.unpack(state["masks"], bound.layers) if "masks" in state else bound.masks

        bound.settle()

        def load_plans() -> None:
            bound.verdict, before = verdict, bound.verdict
            if masks or bound.masks or (verdict is not before and bound.controller is None):
                bound.put_masks(masks)
            if bound.controller is not None:
                bound.controller.load(state.get("solver"), bound.steps)

        checkpoint.load(bound.engine, state, bound.layers, bound.rank, bound.world_size, bound.nodes, load_plans)

    def saved_by_same_ranks(self, state: Mapping[str, Any]) -> bool:
        """Whether a state is of as many ranks as there are now, and, where the exchange is hierarchical, nodes."""
        return checkpoint.same_ranks(state, self.world_size, self._binding.nodes if self._binding else None)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> bool tensor of the layer's shape, true where kept; layers of which all is kept are left out."""
        if self._binding is None:
            return {}
        shapes = {layer.name: layer.shape for layer in self._binding.layers}
        return {name: mask.tensor().view(shapes[name]) for name, mask in self._binding.masks.items()}

    def names_of(self, parameters: Iterable[torch.Tensor]) -> list[str | None] | None:
        """The layer that each parameter is, None for one that is not exchanged; None before the layers are known."""
        if self._binding is None:
            return None
        return [self._binding.names.get(id(parameter)) for parameter in parameters]

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
            RuntimeError: after `close`.
        """
        if not self.registered:
            return
        self._check_open("set_masks() changes what is exchanged, so it comes before close()")
        bound = self._binding
        if bound is None:  # the layers are not known yet
            self._pending_masks.update({name: mask.clone() for name, mask in masks.items()})
            return
        updated = masking.update_on_all(bound.cpu_group, bound.masks, masks, bound.layers)
        if masking.digests(updated) == masking.digests(bound.masks):
            return
        steps = bound.settle()
        bound.put_masks(updated, steps)
        if bound.controller is not None:
            bound.controller.remeasure(steps)

    def note_step(self, loss: float | None = None, step_ms: float | None = None) -> None:
        """Adds a step to the record (`solver.record`): bytes and codec time, and what the caller knows of it.

        Call it after each step; every `solver.record_every` steps their means are written. Without a record it does
        nothing.
        """
        bound = self._binding
        if bound is not None and bound.controller is not None:
            bound.controller.note_step(bound.engine.stats(), loss, step_ms)

    def discard(self) -> None:
        """Drops what the last step wrote (residuals, step count).

        For those who skip an optimizer step by their own test. Call it on every rank, before the next backward.
        """
        if self._binding is not None and self._binding.engine is not None:
            self._binding.engine.discard()

    def close(self) -> None:
        """Stops the lanes, releases buffers and connections; a later backward raises.

        Called at exit; may be called twice. It waits for no lost rank.
        """
        if self._closed:
            return
        self._closed = True
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._binding is not None:
            self._binding.close()

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise RuntimeError(f"the state was closed; {what}")

    def _bind(self, ddp: DistributedDataParallel, scaler: Any = None) -> None:
        """Learns the layers from DDP and starts the engine; collective."""
        self._group = ddp.process_group
        _check_record(self.config)
        self._binding = Binding(ddp, self.config, scaler, self._faults)
        self._finalizer = weakref.finalize(self, self._binding.abandon)
        self._finalizer.atexit = False  # at exit, states that are left are closed
        _open_states.add(self)
        if self._pending is not None:
            self.load_state_dict(self._pending)
            self._pending = None
        if self._pending_masks:
            self.set_masks(self._pending_masks)
            self._pending_masks = {}

    def _register(self, ddp: DistributedDataParallel) -> None:
        assert self._binding is not None, "attach binds before"
        self._binding.engine.register_on(ddp.reducer)

    def _run(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if self._binding is None:
            self._check_open("no backward may follow")
            if self.config.auto:
                raise ValueError("auto decides before a hook is registered: use lgreco.attach(ddp, config)")
            self._bind(_ddp_of(self))
        assert self._binding is not None, "bound just now"
        future: torch.futures.Future[torch.Tensor] = self._binding.engine.run(bucket)
        return future


def _check_record(config: Config) -> None:
    """Refuses a record that another state writes: each would set the other's lines and tables aside.

    On every rank alike: which states are live does not depend on when the garbage collector has last run.
    """
    if config.recorded_at is None:
        return
    for _ in range(2):
        paths = [state.config.recorded_at for state in _open_states if not state._closed]
        if config.recorded_at not in paths:
            return
        gc.collect()  # a state that was dropped does not count
    raise ValueError(
        f'config key solver.record: another state in this process records to "{config.recorded_at}"; give each '
        "a path of its own, in a folder of its own, or close() the other one first"
    )


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
    join_abandoned()
