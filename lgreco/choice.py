"""A choice: a codec with its parameters, written `quantize(bits=4, block=512)` and checked the moment it is made.

To add a codec, write one more frozen dataclass below `Choice` and name it in `CODECS`: parsing, printing, checking and
the form the native engine takes all follow from its fields.
"""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from lgreco.spelling import did_you_mean

Value = int | float | str


class Domain(Protocol):
    """The values one parameter may take."""

    def check(self, value: object) -> Value:
        """Returns the value in its canonical type; raises ValueError "must be ..., got ..." for any other."""


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from low to high, both included, in steps of `multiple`, of which low is one."""

    low: int
    high: int
    multiple: int = 1

    def check(self, value: object) -> int:
        """See Domain."""
        allowed = range(self.low, self.high + 1, self.multiple)
        if isinstance(value, int) and not isinstance(value, bool) and value in allowed:
            return value
        kind = f"a multiple of {self.multiple}, " if self.multiple > 1 else ""
        raise ValueError(f"must be {kind}{self.low}..{self.high}, got {value!r}")


@dataclass(frozen=True)
class FloatRange:
    """Numbers above `above` (excluded) up to high (included), and not below `least`."""

    above: float
    high: float
    least: float = 0.0

    def check(self, value: object) -> float:
        """See Domain."""
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.above < value <= self.high
            and value >= self.least
        ):
            return float(value)
        low = f"from {self.least:g}" if self.least > self.above else f"above {self.above:g}"
        raise ValueError(f"must be {low} and at most {self.high:g}, got {value!r}")


@dataclass(frozen=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]

    def check(self, value: object) -> str:
        """See Domain."""
        if isinstance(value, str) and value in self.names:
            return value
        shown = value if isinstance(value, str) else repr(value)
        raise ValueError(f"must be {' or '.join(self.names)}, got {shown}{did_you_mean(value, self.names)}")


def parameter(default: Value, domain: Domain, *, always_printed: bool = False) -> Any:
    """A dataclass field with its domain; `always_printed` ones stand in the canonical text even at their default."""
    return dataclasses.field(default=default, metadata={"domain": domain, "always_printed": always_printed})


@dataclass(frozen=True)
class Choice:
    """A codec with its parameters; `str()` gives the canonical text, which `parse` turns back into an equal choice.

    Raises:
        ValueError: from the constructor, where a parameter is outside its domain.
    """

    codec: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            try:
                value = field.metadata["domain"].check(getattr(self, field.name))
            except ValueError as error:
                raise ValueError(f"{field.name} {error}") from None
            object.__setattr__(self, field.name, value)

    def __str__(self) -> str:
        shown = (
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.metadata["always_printed"] or getattr(self, field.name) != field.default
        )
        return f"{self.codec}({', '.join(shown)})"

    def to_native(self) -> dict[str, Value]:
        """What the native engine takes: the codec's name under "codec", then every parameter, defaults included."""
        return {"codec": self.codec, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Dense(Choice):
    """Every gradient element, in `dtype` on the wire."""

    codec: ClassVar[str] = "dense"
    dtype: str = parameter("fp32", OneOf(("fp32", "bf16", "fp16")), always_printed=True)


@dataclass(frozen=True)
class Quantize(Choice):
    """`bits` for each element and one scale (min-max: two) for each block of `block` elements.

    Attributes:
        bits: 1 to 8.
        block: elements, 32 to 4096, a multiple of 32.
        grid: minmax: from a block's least to its greatest value; symmetric: as far as its largest magnitude, zero is
            exact; clipped: as far as loses least of most values (of normally distributed ones, J. Max, Quantizing for
            minimum distortion, 1960), at least a quarter of the largest magnitude: what is larger is clipped, and
            delivered later by way of the residual.
        rounding: nearest, or stochastic: up with the probability of the fraction.
        scales: fp32 or bf16.
    """

    codec: ClassVar[str] = "quantize"
    bits: int = parameter(4, IntRange(1, 8), always_printed=True)
    block: int = parameter(512, IntRange(32, 4096, multiple=32), always_printed=True)
    grid: str = parameter("minmax", OneOf(("minmax", "symmetric", "clipped")))
    rounding: str = parameter("nearest", OneOf(("nearest", "stochastic")))
    scales: str = parameter("fp32", OneOf(("fp32", "bf16")))


_FACTORS = ("fp32", "bf16", "int2", "int3", "int4", "int5", "int6", "int7", "int8")


@dataclass(frozen=True)
class TopK(Choice):
    """The `density` share of elements of largest magnitude in each block of `block`, exactly that many, with indices.

    Of equal magnitudes the lowest index is taken. At least one element a block is sent.
    """

    codec: ClassVar[str] = "topk"
    density: float = parameter(0.01, FloatRange(0.0, 0.5, least=1e-4), always_printed=True)
    block: int = parameter(4096, IntRange(32, 65536, multiple=32))
    values: str = parameter("int8", OneOf(_FACTORS))


@dataclass(frozen=True)
class RandomK(Choice):
    """A random `density` share of each block's elements, the same on all ranks: no indices travel."""

    codec: ClassVar[str] = "randomk"
    density: float = parameter(0.01, FloatRange(0.0, 0.5, least=1e-4), always_printed=True)
    block: int = parameter(4096, IntRange(32, 65536, multiple=32))
    values: str = parameter("fp32", OneOf(_FACTORS))


@dataclass(frozen=True)
class LowRank(Choice):
    """PowerSGD (arXiv 1905.13727) on the matrix dim0 x rest, its two factors coded in `factors` (Q in `q`).

    `iterate=both` updates P and Q in every step (two stages), `alternate` one of them in turn (one stage, half the
    bytes).
    """

    codec: ClassVar[str] = "lowrank"
    rank: int = parameter(8, IntRange(1, 256), always_printed=True)
    factors: str = parameter("int8", OneOf(_FACTORS), always_printed=True)
    q: str = parameter("same", OneOf(("same", *_FACTORS)))
    iterate: str = parameter("both", OneOf(("both", "alternate")))


CODECS: dict[str, type[Choice]] = {kind.codec: kind for kind in (Dense, Quantize, TopK, RandomK, LowRank)}


def parse(text: str) -> Choice:
    """Reads a choice as a person writes it: `quantize(bits=4, block=512)`, `dense(dtype=bf16)` or just `dense`.

    Raises:
        ValueError: naming the text, what is wrong with it and what is allowed.
    """
    if not isinstance(text, str):
        raise ValueError(f'a choice is text such as "quantize(bits=4, block=512)", got {text!r}')
    try:
        codec, parameters = _split(text)
        kind = CODECS.get(codec)
        if kind is None:
            raise ValueError(f"unknown codec {codec!r}, known are {', '.join(CODECS)}{did_you_mean(codec, CODECS)}")
        known = [field.name for field in dataclasses.fields(kind)]
        for name in parameters:
            if name not in known:
                raise ValueError(
                    f"{codec} has no parameter {name!r}, it has {', '.join(known)}{did_you_mean(name, known)}"
                )
        return kind(**parameters)
    except ValueError as error:
        raise ValueError(f'choice "{text}": {error}') from None


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """The codec's name and its parameters as written, neither checked yet."""
    expected = "expected codec(key=value, ...), as in quantize(bits=4, block=512)"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(expected) from None
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(expected)
    if tree.args:
        raise ValueError(f"parameters are given by name; {expected}")
    parameters: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise ValueError(expected)
        if keyword.arg in parameters:
            raise ValueError(f"{keyword.arg} is given twice")
        parameters[keyword.arg] = _literal(keyword)
    return tree.func.id, parameters


def _literal(keyword: ast.keyword) -> object:
    """The value of one `key=value`: a number, a signed number, or a name with or without quotes."""
    value = keyword.value
    if isinstance(value, ast.Name):
        return value.id
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{keyword.arg} must be a number or a name, got {ast.unparse(value)}") from None
