"""Pruner: gradual pruning of a model while it trains, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lgreco.pruning import pruner_state
from lgreco.pruning.agreement import check_equal, distributed
from lgreco.pruning.allocation import Allocation, Global, Uniform, make_allocation
from lgreco.pruning.criteria import Criterion, make_criterion
from lgreco.pruning.layers import Places, group_of, is_ddp, prunable
from lgreco.pruning.masks import hold_
from lgreco.pruning.moments import hold_moments, optimizers_of
from lgreco.pruning.regrowth import DenseWindow, Regrowth
from lgreco.pruning.report import Change, PruningReport, change_of, report_of
from lgreco.pruning.schedule import Schedule, check_level
from lgreco.pruning.structure import NofM, Structure, parse_structure
from lgreco.pruning.telling import Telling
from lgreco.pruning.update import choose_masks
from lgreco.pruning.watching import Watch


class Pruner:
    """Prunes a model step by step, and keeps what is pruned at exactly zero.

        pruner = Pruner(model, optimizer, CubicSchedule(0.0, 0.9, begin=100, end=900, every=50))
        ...
        optimizer.step()
        pruner.step()

    It may be made before or after the model is wrapped in DDP. Parameters keep their names, and a model's state_dict
    stays as it is. Where torch.distributed runs, `step` must be called on every rank, and masks are compared.

    Args:
        model: with or without DDP around it.
        optimizer: one, several, or None (then each call of `step` counts, and criteria that watch training see none).
        schedule: sparsity of the prunable weights together, by optimizer steps.
        criterion: magnitude, movement, taylor, random, or a Criterion such as OBert.
        structure: unstructured, rows, columns, a block as 1x4, a pattern as 2:4, or a Structure. Layers that a block
            or pattern does not divide stay dense and are named in the report.
        allocation: global, uniform, erk, solver, or an Allocation such as Evolution.
        layers: patterns (fnmatch) of what to prune; None: every trained parameter of two or more dimensions, except
            embeddings, norms and single columns.
        regrowth: brings pruned weights back by their gradients; None for none.
        scaler: the GradScaler in use, which only regrowth needs to know. Skipped steps are known without it.
        seed: of the random criterion.
        process_group: of the ranks that hold the model; None for DDP's, or the default group where there is no DDP yet.

    Raises:
        ValueError: for settings that do not fit together or the model; says what is allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None,
        schedule: Schedule,
        criterion: str | Criterion = "magnitude",
        structure: str | Structure = "unstructured",
        allocation: str | Allocation = "global",
        *,
        layers: str | Sequence[str] | None = None,
        regrowth: Regrowth | None = None,
        scaler: Any = None,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        _check_type("model", model, nn.Module, "a torch module")
        _check_type("schedule", schedule, Schedule, "a Schedule, such as OneShotSchedule(0.9)")
        _check_type("regrowth", regrowth, Regrowth | None, "None or a Regrowth, such as Regrowth(0.1)")
        self.schedule = schedule
        self._model, self._group = model, group_of(model) if process_group is None else process_group
        self._optimizers = optimizers_of(optimizer)
        self._criterion = make_criterion(criterion, seed)
        self._structure = parse_structure(structure)
        self._allocation = make_allocation(allocation)
        for part in (self._criterion, self._allocation):
            part.join(self._group)
        held = [p for each in self._optimizers for group in each.param_groups for p in group["params"]]
        found = prunable(model, held if self._optimizers else None, layers)
        self._layers = {name: weight for name, weight in found.items() if self._structure.fits(tuple(weight.shape))}
        self._unfit = [name for name in found if name not in self._layers]
        self._check_settings(criterion, regrowth)
        self._masks: dict[str, torch.Tensor] = {}
        self._changes: list[Change] = []
        self._steps, self._updated = 0, -1
        self._telling = Telling(self._layers, is_ddp(model))
        self._regrowth = regrowth
        self._window = DenseWindow(self._layers, scaler.get_scale if scaler else lambda: 1.0, self._group)
        self._watch = Watch(self._optimizers, self._layers, Places(model, self._layers), self._masks, self._criterion)
        self._open_window()

    @property
    def steps(self) -> int:
        """Optimizer steps so far, without skipped ones."""
        return self._steps

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> bool of its shape, True where kept; empty before the first update."""
        return dict(self._masks)

    @property
    def sparsity(self) -> float:
        """Of the pruned layers together, as of the last change of the masks."""
        return self._changes[-1].sparsity if self._changes else 0.0

    @property
    def regrowth_bytes(self) -> int:
        """Bytes that this rank has sent for regrowth so far."""
        return self._window.sent_bytes

    @property
    def changes(self) -> list[Change]:
        """Every change of the masks so far."""
        return list(self._changes)

    def step(self) -> bool:
        """Counts an optimizer step and does what is due after it; call it after `optimizer.step()` on every rank.

        A step that no optimizer took, which is what GradScaler does when it finds inf or NaN, does not count; where
        weights change all the same for many steps, a warning says so. Masks that are overdue, as when a run begins past
        its schedule's end, are chosen at once. After an error in choosing them weights and masks are as they were, and
        the update is still due.

        Returns:
            Whether the masks changed.

        Raises:
            ValueError: for weights or scores that are NaN, naming the layer.
            RuntimeError: where masks differ between ranks, naming layers and ranks; or where a layer has another
                parameter than the pruner was made for.
        """
        counts = self._watch.took_step() or not self._optimizers
        if self._window.open:
            self._window.take(counts)
        if not counts:
            self._watch.look()
            return False
        self._steps += 1
        due = self.schedule.last_update(self._steps)
        changes = due is not None and due > self._updated
        if changes and due is not None:
            self._choose(self.schedule(due))
            self._updated = due
        else:
            self._hold_weights()
        self._telling.catch_up(self._masks)
        self._open_window()
        self._watch.look()
        return changes

    def prune(self, sparsity: float) -> None:
        """Prunes to a sparsity at once, whatever the schedule says; collective.

        Raises:
            ValueError: for a sparsity outside 0 to below 1, or NaN weights.
            RuntimeError: where masks differ between ranks.
        """
        check_level("sparsity", sparsity)
        if isinstance(self._structure, NofM) and self._structure.kept_of_m(sparsity) == self._structure.m:
            raise ValueError(f"a sparsity of {sparsity:g} prunes nothing of the pattern's {self._structure.m} weights")
        window_was_open = self._window.open
        self._choose(sparsity)
        self._watch.look()
        if window_was_open:
            self._open_window()

    def report(self) -> PruningReport:
        """How sparse each layer is, and what regrowth has sent."""
        return report_of(self._steps, self._layers, self._masks, self._unfit, self._window.sent_bytes)

    def finalize(self) -> PruningReport:
        """Ends pruning: what is pruned is zero, and nothing of the pruner is left on model and optimizers.

        Training on after it would move the pruned weights; but an exchange that it was attached to keeps its masks, and
        sends nothing of what is pruned until `state.set_masks` gives it others.
        """
        self._hold_weights()
        self._window.end()
        self._watch.remove()
        return self.report()

    def attach(self, state: Any) -> None:
        """Joins the pruner with `lgreco.attach(ddp)`: pruned weights send nothing from the next change on.

        Layers are known by their parameters, so that the pruner may be of a part of what DDP wraps. Those that DDP
        leaves out are pruned all the same. A State that is yet to learn its layers, from the first backward, hears of
        masks by the names that they have in DDP: at once where the pruner was made of the DDP module, else in the
        first `step` after that backward.

        Raises:
            ValueError: for what cannot take masks, or a state of another model; of a State that is yet to learn its
                layers, `step` finds that out.
        """
        self._telling.join(state, self._masks)

    def state_dict(self) -> dict[str, Any]:
        """Masks (1 bit a weight), steps and what criterion and regrowth have gathered; the same on every rank.

        Loads with torch.load(weights_only=True), at any world size.
        """
        return pruner_state.pack(
            self._steps,
            self._updated,
            self._masks,
            self._changes,
            self._criterion,
            self._window.sums,
            self._window.sent_bytes,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; load model and optimizer before it.

        Names may begin with DDP's `module.` or not. Without a state, a dense checkpoint simply goes on as a pruned run.

        Raises:
            ValueError: for another model's state, or one that is none of a pruner; nothing is changed then.
        """
        loaded = pruner_state.unpack(state, self._model, self._layers, self._criterion)
        self._steps, self._updated = loaded.steps, loaded.updated
        self._changes = loaded.changes
        self._criterion.load(loaded.criterion)
        self._window.end()
        self._window.sums.update(loaded.sums)
        self._window.sent_bytes = loaded.sent_bytes
        self._watch.forget()  # torch.distributed.checkpoint makes an optimizer's state by a step that does not count
        ended = {name: torch.ones_like(mask) for name, mask in self._masks.items() if name not in loaded.masks}
        self._masks.clear()
        self._put(loaded.masks)
        self._telling.tell(ended)
        self._watch.look()
        self._open_window(keep=True)

    def _choose(self, level: float) -> None:
        """Chooses the masks of a level, compares them with all ranks and applies them."""
        self._hold_weights()  # an optimizer may have moved what is pruned, even to NaN (0 / 0), which must not compete
        self._criterion.prepare(self._layers, self._masks, self._steps)
        with torch.no_grad():
            masks, zeroed = choose_masks(
                self._layers,
                level,
                self._criterion,
                self._structure,
                self._allocation,
                self._masks,
                self._window.sums,
                self._regrowth.fraction if self._regrowth else 0.0,
                alone=not distributed(self._group),
            )
            check_equal(masks, self._steps, self._group)
            self._put(masks, zeroed)
            self._criterion.settle(self._layers, self._masks)
        self._changes.append(change_of(self._steps, self._masks))
        self._window.end()

    def _put(self, masks: Mapping[str, torch.Tensor], zeroed: bool = False) -> None:
        for name, mask in masks.items():
            self._masks[name] = mask.to(self._layers[name].device)
            hold_moments(self._optimizers, self._layers[name], self._masks[name])
        if not zeroed:
            self._hold_weights()
        self._telling.tell(self._masks)

    def _hold_weights(self) -> None:
        for name, mask in self._masks.items():
            hold_(self._layers[name], mask)

    def _open_window(self, keep: bool = False) -> None:
        """Looks at dense gradients where an update is near enough; `keep` what was summed before."""
        following = self.schedule.next_update(self._steps)
        if self._regrowth is None or self._window.open or following is None:
            return
        if following - self._steps <= self._regrowth.window:
            if not keep:
                self._window.sums.clear()
            self._window.begin()

    def _check_settings(self, criterion: str | Criterion, regrowth: Regrowth | None) -> None:
        structure, final = self._structure, self.schedule.final
        if self._criterion.watches and not self._optimizers:
            name = criterion if isinstance(criterion, str) else type(criterion).__name__
            raise ValueError(
                f"criterion {name} scores weights by the gradients that an optimizer uses: pass the optimizer, or take "
                "magnitude"
            )
        if not self._layers:
            raise ValueError(f"no layer can be cut into {structure}: {', '.join(self._unfit)} do not fit")
        if not isinstance(structure, NofM):
            return
        if abs(structure.final - final) > structure.tolerance:
            raise ValueError(
                f"{structure.n}:{structure.m} has a sparsity of {structure.final:g}, so the schedule must end at it, "
                f"not at {final:g}"
            )
        if not isinstance(self._allocation, Global | Uniform):
            raise ValueError("an N:M pattern gives every layer its level: allocation must be global or uniform")
        if regrowth is not None:
            raise ValueError("regrowth is not offered for N:M patterns; choose unstructured, blocks, rows or columns")


def _check_type(name: str, value: object, kind: Any, allowed: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {allowed}, got {value if isinstance(value, float) else type(value).__name__}")
