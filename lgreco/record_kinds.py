"""The kinds of a run's records: what is noted at the start, at a solve, every few steps, and in between."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, PlainValidator, Strict, TypeAdapter, ValidationError

from lgreco.choice import Choice, parse
from lgreco.error_table import Array, ErrorTable
from lgreco.layer import LayerInfo
from lgreco.plan import Plan
from lgreco.ring import ring_share

FORMAT_VERSION: Literal[1] = 1


def _number(value: Any) -> Any:
    """JSON lacks what these texts stand for."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _layer(value: Any) -> LayerInfo:
    try:
        return LayerInfo(*_LAYER.validate_python(value))
    except ValidationError:
        raise ValueError("must be [name, shape, dtype]") from None


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Choice:
    return parse(text)


def _choice(value: Any) -> Choice:
    """A long run's record has the same few choices of many layers again and again."""
    return _parsed(value) if isinstance(value, str) else parse(value)


# How fields stand in JSON.
Whole = Annotated[int, Strict()]
Text = Annotated[str, Strict()]
Number = Annotated[float, Strict(), BeforeValidator(_number)]
WrittenChoice = Annotated[Choice, PlainValidator(_choice)]
WrittenLayer = Annotated[LayerInfo, PlainValidator(_layer)]
_LAYER: TypeAdapter[tuple[str, tuple[int, ...], str]] = TypeAdapter(tuple[Text, tuple[Whole, ...], Text])


@dataclass(frozen=True)
class Kind:
    """One line of a record.

    Attributes:
        step: optimizer steps done when it was noted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: ClassVar[str]
    step: Whole

    def to_dict(self) -> dict[str, Any]:
        """Its JSON form: numbers that JSON lacks (nan, inf) as text, choices and layers as they are written."""
        fields = {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}
        return {"kind": self.kind, **fields}


@dataclass(frozen=True)
class Start(Kind):
    """A run begins, or goes on after `step` steps.

    Attributes:
        layers: all layers of the model, in order.
        choices: that a plan may use.
        config: as `Config.to_dict` gives it.
        world_size: ranks.
        versions: of lgreco, torch and what else decides the numbers.
        lgreco_record: version of the record's form.
    """

    kind: ClassVar[str] = "start"
    layers: tuple[WrittenLayer, ...]
    choices: tuple[WrittenChoice, ...]
    config: Mapping[str, Any]
    world_size: Whole
    versions: Mapping[str, Text] = field(default_factory=dict)
    lgreco_record: Literal[1] = FORMAT_VERSION

    @property
    def dense_bytes(self) -> float:
        """What a rank sends in a step of a ring allreduce of the whole gradient, 2 (W-1)/W of its bytes."""
        return ring_bytes(self.layers, self.world_size)


@dataclass(frozen=True)
class Solve(Kind):
    """A plan was chosen.

    Attributes:
        effective_step: from which on it is used.
        budget: error that the plan may spend, in `norm`.
        predicted_error: that it spends by its table, in `norm`.
        reference: what the budget comes from, such as `1.0 x lowrank(rank=8, factors=int8)`.
        plan: layer -> choice, all layers.
        changed: layers whose choice is another than before.
        wire_bytes: sent by a rank per step, predicted.
        dense_bytes: sent by a rank per step of a ring allreduce of the same gradients.
        method: of the solver.
        gap: relative distance from the proven lower bound of the cost.
        solve_ms: time of the solver.
        measure_ms: time that measuring the table took, on the slow path.
        layer_bytes: layer -> wire_bytes of it; empty where not known.
        layer_errors: layer -> predicted squared error; empty where not known.
        norm: how layers' errors add up in budget and predicted_error, one of lgreco.norm.NORMS.
        layer_weights: layer -> what one unit of its error, a squared L2 distance or for `l2` an L2 distance, counts in
            budget and predicted_error; layers that are not there count 1.
        table: name of the file with the error table; None where it was not kept.
        kept: layer -> elements that its mask keeps; layers without a mask are not in it.
        kept_matrix: layer -> rows and columns, where its mask keeps whole ones: see LayerInfo.
    """

    kind: ClassVar[str] = "solve"
    effective_step: Whole
    budget: Number
    predicted_error: Number
    reference: Text
    plan: Mapping[str, WrittenChoice]
    changed: Whole
    wire_bytes: Number
    dense_bytes: Number
    method: Text
    gap: Number
    solve_ms: Number
    measure_ms: Number
    layer_bytes: Mapping[str, Number] = field(default_factory=dict)
    layer_errors: Mapping[str, Number] = field(default_factory=dict)
    norm: Text = "squared"
    layer_weights: Mapping[str, Number] = field(default_factory=dict)
    table: Text | None = None
    kept: Mapping[str, Whole] = field(default_factory=dict)
    kept_matrix: Mapping[str, tuple[Whole, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        table: ErrorTable,
        columns: Sequence[int],
        plan: Plan,
        previous: Mapping[str, Choice] | None,
        *,
        weights: Array | None = None,
        other_bytes: float = 0.0,
        **fields: Any,
    ) -> Solve:
        """The record of a solution: bytes and errors per layer, sums and changes follow from table and plans.

        Args:
            table: that was solved; may hold part of the plan's layers.
            columns: for each layer of the table, the index of its choice (`Solution.choices`).
            plan: that came of it, all layers.
            previous: the plan before, None for the first.
            weights: [L, C], what one unit of each error counts in the budget; None where all count 1.
            other_bytes: wire bytes of the plan's layers that are not in the table.
            **fields: the rest: effective_step, budget, predicted_error, reference, method, gap, solve_ms, measure_ms,
                and norm and table (the file's name) where there is something to say.
        """
        names = [layer.name for layer in table.layers]
        costs = [float(table.costs[row, column]) for row, column in enumerate(columns)]
        errors = [float(table.squared_errors[row, column]) for row, column in enumerate(columns)]
        counts = [] if weights is None else [float(weights[row, column]) for row, column in enumerate(columns)]
        return cls(
            step=table.step,
            plan=dict(plan),
            changed=sum(previous is None or previous.get(name) != choice for name, choice in plan.items()),
            wire_bytes=math.fsum(costs) + other_bytes,
            dense_bytes=ring_bytes([planned.layer for planned in plan.planned], table.world_size),
            layer_bytes=dict(zip(names, costs, strict=True)),
            layer_errors=dict(zip(names, errors, strict=True)),
            kept={p.layer.name: p.layer.kept for p in plan.planned if p.layer.kept is not None},
            kept_matrix={p.layer.name: p.layer.kept_matrix for p in plan.planned if p.layer.kept_matrix is not None},
            layer_weights=dict(zip(names, counts, strict=False)),
            **fields,
        )


@dataclass(frozen=True)
class Steps(Kind):
    """Figures of a step on this rank, mean over the last `steps` of them; None where not known."""

    kind: ClassVar[str] = "steps"
    steps: Whole
    wire_bytes: Number
    step_ms: Number | None = None
    codec_ms: Number | None = None
    wait_ms: Number | None = None
    loss: Number | None = None


@dataclass(frozen=True)
class Realised(Kind):
    """Squared error of each layer as a table predicted it and as the exchange of `step` made it."""

    kind: ClassVar[str] = "realised"
    predicted: Mapping[str, Number]
    realised: Mapping[str, Number]

    def pairs(self) -> dict[str, tuple[float, float]]:
        """Predicted and realised squared error of those layers of which both are known and finite."""
        both = {name: (error, self.realised.get(name, math.nan)) for name, error in self.predicted.items()}
        return {name: pair for name, pair in both.items() if all(map(math.isfinite, pair))}

    def totals(self, solve: Solve | None = None) -> tuple[float, float]:
        """Predicted and realised error of the layers of `pairs`, added up as the budget of `solve` adds them."""
        weights, root = (solve.layer_weights, solve.norm == "l2") if solve else ({}, False)
        counted = [(weights.get(name, 1.0), pair) for name, pair in self.pairs().items()]
        predicted, realised = (
            math.fsum(weight * (math.sqrt(pair[i]) if root else pair[i]) for weight, pair in counted) for i in (0, 1)
        )
        return predicted, realised


@dataclass(frozen=True)
class Forecast(Kind):
    """The cost model beside what was measured; at attach, before anything was measured, what was decided.

    Attributes:
        way: who averages: lgreco; bf16: torch's bf16 hook; dense: DDP as it is.
        bytes_per_s: that a rank's link carries in an exchange, as far as was known then.
        predicted_busy_ms: with at least one bucket under way, in a step.
        busy_ms: the same as measured, least over ranks; None before anything was.
        predicted_exposed_ms: from the last bucket's start to its end; None before arrivals are known.
        exposed_ms: the same as measured, least over ranks.
        text: what changed, or what was decided, for people.
    """

    kind: ClassVar[str] = "forecast"
    way: Literal["lgreco", "bf16", "dense"]
    bytes_per_s: Number
    predicted_busy_ms: Number
    busy_ms: Number | None = None
    predicted_exposed_ms: Number | None = None
    exposed_ms: Number | None = None
    text: Text = ""


@dataclass(frozen=True)
class Note(Kind):
    """Something that whoever reads the record should know."""

    kind: ClassVar[str] = "note"
    text: Text


KINDS: dict[str, type[Kind]] = {kind.kind: kind for kind in (Start, Solve, Steps, Realised, Forecast, Note)}
_READERS: dict[str, TypeAdapter[Kind]] = {name: TypeAdapter(kind) for name, kind in KINDS.items()}


def from_dict(content: Any) -> Kind:
    """The inverse of `Kind.to_dict`.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    kind = str(content.get("kind")) if isinstance(content, dict) else None
    if kind not in KINDS:
        got = content.get("kind") if isinstance(content, dict) else content
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {got!r:.60}")
    try:
        return _READERS[kind].validate_python({name: value for name, value in content.items() if name != "kind"})
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        place = ".".join(map(str, mistake["loc"]))
        if mistake["type"] == "missing":
            raise ValueError(f"{kind}: {place} is missing") from None
        said = mistake["msg"].removeprefix("Value error, ")
        raise ValueError(f"{kind}: {place}: {said}, got {mistake['input']!r:.60}") from None


def ring_bytes(layers: Sequence[LayerInfo], world_size: int) -> float:
    """Bytes that a rank sends in a ring allreduce of these layers' gradients."""
    return ring_share(world_size) * sum(layer.dense_bytes for layer in layers)


def _plain(value: Any) -> Any:
    """JSON's form of a field: numpy numbers become Python's, what JSON lacks becomes text."""
    if isinstance(value, Choice):
        return str(value)
    if isinstance(value, LayerInfo):
        return [value.name, list(value.shape), value.dtype]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
