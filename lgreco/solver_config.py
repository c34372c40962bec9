"""Settings of the solver: what it may choose, what it may spend, and when it measures and solves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from lgreco.choice import CODECS, Choice, parse
from lgreco.spelling import did_you_mean

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Rule = tuple[str, Choice]
Schedule = tuple[tuple[int, float], ...]
"""Points (step, alpha): linear between them, constant before the first and after the last."""


class _Section(BaseModel):
    """Frozen settings whose mistakes read as one line each."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(_readable(error, type(self))) from None


class Accordion(_Section):
    """Budgets by regime (Accordion, arXiv 2010.16248): critical is one in which the gradient's norm moves.

    Attributes:
        threshold: relative change of the averaged gradient's norm from one table to the next, above which the regime
            is critical.
        tight: alpha in a critical regime, as before the second table.
        loose: alpha elsewhere.
    """

    threshold: Positive = 0.5
    tight: Positive = 1.0
    loose: Positive = 2.0


class SolverConfig(_Section):
    """How plans are made while training runs. Immutable, hashable, and the same on every rank.

    The budget is one of: `alpha` times the error of the uniform reference (the default), `relative_error`, `bytes` or
    `ratio`.

    Attributes:
        families: codecs of the default candidates; no other may be chosen.
        candidates: choices that the solver may give, and no others; None: those of `families`, around the reference's
            strength.
        reference: the uniform choice whose error is the budget, of `families` or among `candidates`. Where none is
            given: rank 32 with int8 factors, the strongest whose loss over 400 steps stayed within 2 % of dense's on
            the README's two models, where rank 8 lost 5 to 8 %; of families without lowrank 4 bits, else top-k or
            random-k of 1 %; with `candidates` none, so that another budget than alpha must be given, and before the
            first plan each layer takes dense or the dearest of them. A layer that is not offered the reference takes
            the offered choice that differs in strength alone and is nearest, else stays dense.
        alpha: factor on the reference's error, or points [step, alpha] (linear between them).
        relative_error: total error at most this share of the gradient's norm, both summed as `norm` says.
        bytes: that ranks may send in a step, on the mean and without messages' headers; the plan leaves the least
            error. A rank that owns more of the layers than others sends more, and each bucket adds headers
            (`state.stats()["wire_bytes"]` counts what this rank has sent).
        ratio: the same, as the dense exchange's bytes over the plan's.
        norm: how layers' errors add up: `adam`, squared L2 distances over the root mean square of the layer's gradient;
            `squared`, squared L2 distances; `l2`, L2 distances as in the paper.
        family_weights: codec -> factor on its errors.
        layer_weights: pattern -> factor on the errors of layers that match; here and below a layer's very name wins,
            else the first match.
        floor: pattern -> choice; weaker choices of the same codec are not offered there.
        ceiling: pattern -> choice; stronger choices of the same codec are not offered there.
        memory: bytes of residuals a parameter that a rank may hold; layers are kept dense until they fit.
        method: of the solver.
        interval: steps from one table to the next.
        lag: steps from a table's last measurement to the step in which its plan takes effect.
        window: steps over which a table's layers are measured.
        average: tables that are averaged.
        accordion: switches between two alphas.
        record: file that gets a line for every solve and every `record_every` steps, of one state at a time (tables
            lie beside it); None: no record.
        record_every: steps.
        plan_replay: a recorded run, whose plans are repeated at the same steps; nothing is measured.

    Raises:
        ValueError: naming the key, its value and what is allowed, one line for each mistake.
    """

    families: tuple[str, ...] = ("lowrank", "quantize", "dense")
    candidates: tuple[Choice, ...] | None = None
    reference: Annotated[Choice | None, Field(validate_default=True)] = None  # read after what it must be among
    alpha: float | Schedule = 1.0
    relative_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    bytes: Annotated[int, Field(strict=True, ge=1, lt=2**63)] | None = None
    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    norm: Literal["adam", "squared", "l2"] = "adam"
    family_weights: tuple[tuple[str, float], ...] = ()
    layer_weights: tuple[tuple[str, float], ...] = ()
    floor: tuple[Rule, ...] = ()
    ceiling: tuple[Rule, ...] = ()
    memory: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    method: Literal["lagrangian", "dp"] = "lagrangian"
    interval: Steps = 100
    lag: Steps = 10
    window: Steps = 10
    average: Steps = 1
    accordion: Accordion | None = None
    record: str | None = None
    record_every: Steps = 10
    plan_replay: str | None = None

    def difference(self, other: SolverConfig) -> list[str]:
        """Keys in which two differ."""
        return [key for key in type(self).model_fields if getattr(self, key) != getattr(other, key)]

    @field_validator("candidates", mode="before")
    @classmethod
    def _read_candidates(cls, value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"must be a list of choices, got {value!r}")
        return tuple(_read_choice(each) for each in value)

    @field_validator("families", mode="before")
    @classmethod
    def _read_families(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"must be a list of codecs ({', '.join(CODECS)}), got {value!r}")
        for name in value:
            _check_family(name)
        return tuple(value)

    @field_validator("reference", mode="before")
    @classmethod
    def _read_reference(cls, value: object, info: ValidationInfo) -> object:
        given = None if value is None else _read_choice(value)
        if not {"families", "candidates"} <= set(info.data):  # mistakes of their own
            return given
        families, candidates = info.data["families"], info.data["candidates"]
        if candidates is not None:
            return _among(given, candidates)
        return _default_reference(families) if given is None else _of_family(given, families)

    @field_validator("alpha", mode="before")
    @classmethod
    def _read_alpha(cls, value: object) -> object:
        if _is_number(value):
            return _positive(value)
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"must be a number above 0 or a list of [step, alpha], got {value!r}")
        points: list[tuple[int, float]] = []
        for point in value:
            if not isinstance(point, list | tuple) or len(point) != 2 or type(point[0]) is not int or point[0] < 0:
                raise ValueError(f"a point is [step, alpha] with a whole step from 0, got {point!r}")
            if points and point[0] <= points[-1][0]:
                raise ValueError(f"steps must rise, got {point[0]} after {points[-1][0]}")
            points.append((point[0], _positive(point[1])))
        return tuple(points)

    @field_validator("family_weights", mode="before")
    @classmethod
    def _read_family_weights(cls, value: object) -> object:
        pairs = _pairs(value)
        for name, _ in pairs:
            _check_family(name)
        return tuple((name, _positive(weight)) for name, weight in pairs)

    @field_validator("layer_weights", mode="before")
    @classmethod
    def _read_layer_weights(cls, value: object) -> object:
        return tuple((pattern, _positive(weight)) for pattern, weight in _pairs(value))

    @field_validator("floor", "ceiling", mode="before")
    @classmethod
    def _read_limits(cls, value: object) -> object:
        return tuple((pattern, _read_choice(choice)) for pattern, choice in _pairs(value))

    @field_validator("accordion", mode="before")
    @classmethod
    def _read_accordion(cls, value: object) -> object:
        return Accordion(**value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check_together(self) -> SolverConfig:
        budgets = [key for key in ("relative_error", "bytes", "ratio") if getattr(self, key) is not None]
        if self.alpha != 1.0:
            budgets.append("alpha")
        if self.accordion is not None:
            budgets.append("accordion")
        if len(budgets) > 1:
            raise ValueError(f"at most one budget may be given, got {', '.join(budgets)}")
        if self.reference is None and budgets in ([], ["alpha"], ["accordion"]):
            raise ValueError(
                "candidates without a reference leave no error to spend: set solver.reference to one of them, or give "
                "another budget (relative_error, bytes or ratio)"
            )
        if self.window + self.lag > self.interval:
            raise ValueError(f"window + lag must be at most interval ({self.interval}), got {self.window} + {self.lag}")
        return self

    @field_serializer("reference")
    def _write_reference(self, value: Choice | None) -> str | None:
        return None if value is None else str(value)

    @field_serializer("candidates")
    def _write_candidates(self, value: tuple[Choice, ...] | None) -> list[str] | None:
        return None if value is None else [str(choice) for choice in value]

    @field_serializer("families")
    def _write_families(self, value: tuple[str, ...]) -> list[str]:
        return list(value)

    @field_serializer("alpha")
    def _write_alpha(self, value: float | Schedule) -> Any:
        return [list(point) for point in value] if isinstance(value, tuple) else value

    @field_serializer("family_weights", "layer_weights")
    def _write_weights(self, value: tuple[tuple[str, float], ...]) -> dict[str, float]:
        return dict(value)

    @field_serializer("floor", "ceiling")
    def _write_limits(self, value: tuple[Rule, ...]) -> dict[str, str]:
        return {pattern: str(choice) for pattern, choice in value}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any) -> float:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"must be a number above 0, got {value!r}")
    return float(value)


_REFERENCES = {
    "lowrank": parse("lowrank(rank=32, factors=int8)"),
    "quantize": parse("quantize(bits=4, block=512)"),
    "topk": parse("topk"),
    "randomk": parse("randomk"),
}
"""By family, the reference where none is given; the first whose family may be chosen counts."""


def _default_reference(families: Sequence[str]) -> Choice:
    found = next((reference for family, reference in _REFERENCES.items() if family in families), None)
    if found is None:
        raise ValueError("families of dense alone leave nothing to choose; name another codec, or leave the solver out")
    return found


def _of_family(reference: Choice, families: Sequence[str]) -> Choice:
    if reference.codec not in families:
        raise ValueError(
            f"{reference} is not of families ({', '.join(families)}), which are all that may be chosen; add "
            f"{reference.codec} to them, or give a reference of theirs"
        )
    return reference


def _among(reference: Choice | None, candidates: Sequence[Choice]) -> Choice | None:
    if reference is not None and reference not in candidates:
        raise ValueError(f"{reference} is not among candidates, which are all that may be chosen; add it to them")
    return reference


def _read_choice(value: object) -> Choice:
    return value if isinstance(value, Choice) else parse(value)  # type: ignore[arg-type]  # parse refuses what is no text


def _check_family(name: object) -> None:
    if name not in CODECS:
        raise ValueError(f"codecs are {', '.join(CODECS)}, got {name!r}{did_you_mean(name, CODECS)}")


def _pairs(value: object) -> tuple[tuple[str, Any], ...]:
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if not isinstance(value, tuple) or not all(isinstance(key, str) and key for key, _ in value):
        raise ValueError(f"must map names or patterns to values, got {value!r}")
    return value


_ALLOWED = {
    "relative_error": "a number from 0",
    "bytes": "a whole number from 1",
    "ratio": "a number from 1",
    "norm": "adam, squared or l2",
    "memory": "a number from 0",
    "method": "lagrangian or dp",
    **dict.fromkeys(("interval", "lag", "window", "average", "record_every"), "a whole number from 1"),
    **dict.fromkeys(("record", "plan_replay"), "the path of a file"),
    **dict.fromkeys(("threshold", "tight", "loose"), "a number above 0"),
    "accordion": "a mapping with threshold, tight and loose",
}


def _readable(error: ValidationError, section: type[BaseModel]) -> str:
    lines = []
    for mistake in error.errors():
        message = mistake["msg"].removeprefix("Value error, ")
        if not mistake["loc"]:
            lines.append(message)
            continue
        key, value = str(mistake["loc"][0]), mistake["input"]
        if mistake["type"] == "extra_forbidden":
            keys = list(section.model_fields)
            lines.append(f'unknown key "{key}", known are {", ".join(keys)}{did_you_mean(key, keys)}')
        elif mistake["type"] != "value_error" and key in _ALLOWED:
            lines.append(f"{key} must be {_ALLOWED[key]}, got {value!r}")
        else:
            lines.append(f"{key}: {message}")
    return "; ".join(lines)
