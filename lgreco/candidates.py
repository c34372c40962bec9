"""Candidates: the choices that a solver may give, which layer is offered which, and what each costs there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lgreco.choice import Choice, Dense, LowRank, Quantize, RandomK, TopK
from lgreco.config import Config
from lgreco.family import in_order, scale_of, strength
from lgreco.layer import ELEMENT_BYTES, LayerInfo
from lgreco.pattern import matches, rule_for
from lgreco.plan import Plan, PlannedLayer, wire_bytes
from lgreco.solver_config import SolverConfig

_RANK_STEPS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.0)
_BITS = (2, 3, 4, 6, 8)
_DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Offers:
    """Layers x choices: what may be chosen, and at which price.

    Attributes:
        layers: L of them.
        choices: C columns, each once.
        offered: bool [L, C].
        costs: float64 [L, C], bytes that one rank sends in a step; NaN where a choice is not offered.
        reference: the reference plan, a column for each layer.
        free: bool [L]; the others have a single choice.
    """

    layers: tuple[LayerInfo, ...]
    choices: tuple[Choice, ...]
    offered: npt.NDArray[np.bool_]
    costs: npt.NDArray[np.float64]
    reference: tuple[int, ...]
    free: npt.NDArray[np.bool_]

    def exact(self, row: int, column: int) -> bool:
        """Whether the choice leaves nothing out of the layer, so that no measurement is needed."""
        return is_exact(self.choices[column], self.layers[row])

    def measurable(self) -> list[int]:
        """Layers of which some offered choice leaves something out."""
        rows = range(len(self.layers))
        return [
            row
            for row in rows
            if self.layers[row].sent_numel > 0
            and any(not self.exact(row, int(column)) for column in np.flatnonzero(self.offered[row]))
        ]

    def plan(self, columns: Sequence[int], because: str) -> Plan:
        """A plan of one column a layer; layers with a single choice say that it is pinned."""
        return Plan(
            PlannedLayer(layer, self.choices[column], because if free else "pinned")
            for layer, column, free in zip(self.layers, columns, self.free, strict=True)
        )

    def uniform(self, column: int) -> tuple[int, ...]:
        """The plan of one choice: where a layer is not offered it, the reference plan's choice."""
        rows = range(len(self.layers))
        return tuple(column if self.offered[row, column] else self.reference[row] for row in rows)

    def offered_or_reference(self, columns: Sequence[int]) -> tuple[int, ...]:
        """A plan's columns; where a layer is not offered its own (-1: there is none), the reference plan's."""
        return tuple(
            column if column >= 0 and self.offered[row, column] else self.reference[row]
            for row, column in enumerate(columns)
        )


def default_candidates(reference: Choice | None, families: Iterable[str]) -> list[Choice]:
    """The families' choices around the reference.

    The reference's own parameters are kept and its strength goes from half to double, as in the paper. Other families
    get strengths that span what is useful of them, whatever the reference.
    """
    made: list[Choice] = []
    for name in families:
        if name == "lowrank":
            base = reference if isinstance(reference, LowRank) else LowRank()
            ranks = sorted({min(max(round(base.rank * step), 1), 256) for step in _RANK_STEPS})
            made += [dataclasses.replace(base, rank=rank) for rank in ranks]
        elif name == "quantize":
            quantize = reference if isinstance(reference, Quantize) else Quantize()
            near = [bits for bits in range(1, 9) if quantize.bits <= 2 * bits <= 4 * quantize.bits]
            bits_of = near if quantize is reference else _BITS
            made += [dataclasses.replace(quantize, bits=bits) for bits in bits_of]
        elif name in ("topk", "randomk"):
            sparse: TopK | RandomK = TopK() if name == "topk" else RandomK()
            if isinstance(reference, type(sparse)):
                sparse = reference
            densities = {*_DENSITIES, sparse.density / 2, sparse.density, 2 * sparse.density}
            made += [
                dataclasses.replace(sparse, density=density) for density in sorted(densities) if 1e-4 <= density <= 0.5
            ]
        elif name == "dense":
            made += [Dense("bf16"), Dense("fp32"), *([reference] if isinstance(reference, Dense) else [])]
    return made


def is_free(config: Config, layer: LayerInfo) -> bool:
    """Whether the solver decides: neither a pattern of the config nor the layer's size does."""
    return rule_for(layer.name, config.layers) is None and len(layer.shape) > 1 and layer.numel >= config.min_numel


def make_offers(settings: SolverConfig, plan: Plan, free: Sequence[bool], world_size: int, residual: str) -> Offers:
    """Which layer is offered which choice.

    A layer that is not free has the choice that `plan` gives it and no other. A free layer is offered each candidate
    that applies to it, keeps to its floor and ceiling, and costs less than sending it (of a masked layer what is kept)
    dense in its own type; where none is left, dense.

    Args:
        settings: the solver's.
        plan: the plan resolved from the config's patterns.
        free: whether the solver decides, for each layer.
        world_size: ranks.
        residual: type in which residuals are kept, or off.

    Raises:
        ValueError: for a limit's pattern that matches no layer, a floor above the ceiling of the same layer, or a
            memory ceiling that cannot be kept.
    """
    price = _prices(world_size)
    layers = tuple(planned.layer for planned in plan.planned)
    _check_patterns(settings, layers)
    candidates = settings.candidates or default_candidates(settings.reference, settings.families)
    own = [Dense(layer.dtype) for layer in layers]
    pinned = [planned.choice for planned, loose in zip(plan.planned, free, strict=True) if not loose]
    columns = in_order([*candidates, *pinned, *own])
    wanted = set(candidates)
    offered = np.zeros((len(layers), len(columns)), dtype=bool)
    costs = np.full(offered.shape, np.nan)
    for row, (layer, loose) in enumerate(zip(layers, free, strict=True)):
        choices = [plan[layer.name]]
        if loose:
            _check_limits(settings, layer)
            dense_bytes = price(layer, own[row])
            choices = [
                choice
                for choice in columns
                if choice in wanted
                and applies(choice, layer)
                and _within_limits(choice, layer, settings)
                and (choice == own[row] or price(layer, choice) < dense_bytes)
            ] or [own[row]]
        for choice in choices:
            offered[row, columns.index(choice)] = True
            costs[row, columns.index(choice)] = price(layer, choice)
    made = Offers(layers, tuple(columns), offered, costs, (), np.array(free, dtype=bool))
    made = dataclasses.replace(made, reference=_reference_plan(made, settings.reference, own))
    return made if settings.memory is None else _fit_memory(made, settings.memory, world_size, residual)


def applies(choice: Choice, layer: LayerInfo) -> bool:
    """Whether a codec can take the layer at all."""
    if not isinstance(choice, LowRank):
        return True
    return len(layer.shape) >= 2 and layer.sent_numel > 0 and choice.rank <= min(layer.matrix)


def is_exact(choice: Choice, layer: LayerInfo) -> bool:
    """Whether an exchange under the choice delivers the average to the last bit, so that no residual is kept."""
    return layer.sent_numel == 0 or (choice == Dense("fp32") and layer.dtype == "fp32")


def _prices(world_size: int) -> Callable[[LayerInfo, Choice], float]:
    """Bytes that one rank sends for a layer in a step; layers that differ in their name alone cost the same."""
    price = functools.cache(functools.partial(wire_bytes, world_size=world_size))
    return lambda layer, choice: price(dataclasses.replace(layer, name=""), choice)


def _within_limits(choice: Choice, layer: LayerInfo, settings: SolverConfig) -> bool:
    floor, ceiling = rule_for(layer.name, settings.floor), rule_for(layer.name, settings.ceiling)
    if floor is not None and floor[1].codec == choice.codec and strength(choice) < strength(floor[1]):
        return False
    return ceiling is None or ceiling[1].codec != choice.codec or strength(choice) <= strength(ceiling[1])


def _check_limits(settings: SolverConfig, layer: LayerInfo) -> None:
    """Refuses limits that leave nothing of a codec: the layer would be dense, or of another codec, unnoticed."""
    floor, ceiling = rule_for(layer.name, settings.floor), rule_for(layer.name, settings.ceiling)
    if floor is None or ceiling is None or floor[1].codec != ceiling[1].codec:
        return
    if strength(floor[1]) > strength(ceiling[1]):
        raise ValueError(
            f'layer "{layer.name}": its floor {floor[1]} (pattern "{floor[0]}" of config key solver.floor) is above '
            f'its ceiling {ceiling[1]} (pattern "{ceiling[0]}" of solver.ceiling)'
        )


def _check_patterns(settings: SolverConfig, layers: Sequence[LayerInfo]) -> None:
    for key in ("floor", "ceiling", "layer_weights"):
        for pattern, _ in getattr(settings, key):
            if not any(matches(layer.name, pattern) for layer in layers):
                raise ValueError(f'pattern "{pattern}" of config key solver.{key} matches no layer')


def _reference_plan(offers: Offers, reference: Choice | None, own: Sequence[Choice]) -> tuple[int, ...]:
    """The reference where it is offered; else what differs in strength alone and is nearest; else the safest."""
    columns = []
    for row in range(len(offers.layers)):
        there = [int(column) for column in np.flatnonzero(offers.offered[row])]
        akin = _akin(offers.choices, there, reference)
        if akin:
            columns.append(akin[0])
        else:
            safe = offers.choices.index(own[row])
            dearest = max(there, key=lambda column: float(offers.costs[row, column]))
            columns.append(safe if safe in there else dearest)
    return tuple(columns)


def _akin(choices: Sequence[Choice], columns: Iterable[int], reference: Choice | None) -> list[int]:
    """Columns that differ from the reference in strength alone, the nearest first."""
    if reference is None:
        return []
    akin = [column for column in columns if scale_of(choices[column]) == scale_of(reference)]
    return sorted(akin, key=lambda column: abs(strength(choices[column]) - strength(reference)))


def _fit_memory(offers: Offers, ceiling: float, world_size: int, residual: str) -> Offers:
    """Keeps free layers exact, those first where that costs the fewest bytes a parameter, until residuals fit.

    Both halves of the sender's arena and of the owner's part count. Only fp32 layers can be sent without residual.
    """
    if residual == "off":
        return offers
    price = _prices(world_size)
    each = 2 * ELEMENT_BYTES[residual] * (1 + 1 / world_size)  # bytes a parameter
    allowed = ceiling * sum(layer.numel for layer in offers.layers)
    lossy = set(offers.measurable())
    numels = [_residual_numel(offers, row) for row in range(len(offers.layers))]
    held = each * sum(numels[row] for row in lossy)
    exact = Dense("fp32")
    able = [row for row in lossy if offers.free[row] and is_exact(exact, offers.layers[row])]
    extra = {row: price(offers.layers[row], exact) - offers.costs[row, offers.reference[row]] for row in able}
    forced: list[int] = []
    for row in sorted(able, key=lambda row: (extra[row] / numels[row], row)):
        if held > allowed:
            forced.append(row)
            held -= each * numels[row]
    if held > allowed:
        raise ValueError(
            f"solver.memory is {ceiling:g} bytes a parameter, but layers that must keep residuals hold "
            f"{held / max(sum(layer.numel for layer in offers.layers), 1):.2f}"
        )
    for row in list(reversed(forced)):  # a large layer may have made smaller ones needless
        if held + each * numels[row] <= allowed:
            forced.remove(row)
            held += each * numels[row]
    offered, costs, reference = offers.offered.copy(), offers.costs.copy(), list(offers.reference)
    column = offers.choices.index(exact) if forced else -1
    for row in forced:
        offered[row], costs[row] = False, np.nan
        offered[row, column], costs[row, column] = True, price(offers.layers[row], exact)
        reference[row] = column
    return dataclasses.replace(offers, offered=offered, costs=costs, reference=tuple(reference))


def _residual_numel(offers: Offers, row: int) -> int:
    """Elements of a layer's residual: those that are kept, or, where it may be factored, those of its matrix."""
    layer = offers.layers[row]
    offered = (offers.choices[int(column)] for column in np.flatnonzero(offers.offered[row]))
    return layer.factored_numel if any(isinstance(choice, LowRank) for choice in offered) else layer.sent_numel
