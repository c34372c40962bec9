"""The plan: which choice each layer gets, resolved from a config's patterns; the same on every rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import yaml

from lgreco import _C
from lgreco.choice import Choice, Dense, LowRank, parse
from lgreco.config import Config
from lgreco.layer import LayerInfo, kept_matrix_from
from lgreco.pattern import matches, rule_for
from lgreco.yaml_mapping import parse_yaml_mapping

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, its choice, and why it got it (a pattern, the default, its size); why does not count in comparisons."""

    layer: LayerInfo
    choice: Choice
    because: str = field(compare=False)


class Plan(Mapping[str, Choice]):
    """Layer name -> choice, in the order of the layers.

    Immutable. Two plans are equal, of one hash, where layers (with shape, dtype and what is kept), choices and order
    are the same. The YAML form is versioned and holds shapes and dtypes, so that a plan is not taken for another
    model's unnoticed.
    """

    def __init__(self, layers: Iterable[PlannedLayer]) -> None:
        self._layers = {planned.layer.name: planned for planned in layers}

    def __getitem__(self, name: str) -> Choice:
        return self._layers[name].choice

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __eq__(self, other: object) -> bool:
        return self.planned == other.planned if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.planned)

    def __repr__(self) -> str:
        return f"Plan({', '.join(f'{name}: {choice}' for name, choice in self.items())})"

    @property
    def planned(self) -> tuple[PlannedLayer, ...]:
        """Every layer with its choice, in order."""
        return tuple(self._layers.values())

    def fingerprint(self) -> str:
        """64 hexadecimal digits (SHA-256 of the canonical text), equal for equal plans in every process."""
        text = json.dumps(
            [
                [p.layer.name, p.layer.shape, p.layer.dtype, str(p.choice), *_kept_of(p.layer).values()]
                for p in self.planned
            ]
        )
        return hashlib.sha256(f"{FORMAT_VERSION} {text}".encode()).hexdigest()

    def to_yaml(self) -> str:
        """Text that `from_yaml` reads back into an equal plan."""
        layers = {
            p.layer.name: {
                "shape": list(p.layer.shape),
                "dtype": p.layer.dtype,
                "choice": str(p.choice),
                "because": p.because,
                **_kept_of(p.layer),
            }
            for p in self.planned
        }
        return yaml.safe_dump({"lgreco_plan": FORMAT_VERSION, "layers": layers}, sort_keys=False, width=1000)

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Reads what `to_yaml` wrote.

        Raises:
            ValueError: for another version, a missing or unknown key, or a value that is not allowed; names the layer.
        """
        content = parse_yaml_mapping(text)
        if content.get("lgreco_plan") != FORMAT_VERSION:
            raise ValueError(f"plan: lgreco_plan must be {FORMAT_VERSION}, got {content.get('lgreco_plan')!r}")
        layers = content.get("layers")
        if set(content) != {"lgreco_plan", "layers"} or not isinstance(layers, dict):
            keys = ", ".join(map(str, content))
            raise ValueError(f"plan: keys must be lgreco_plan and layers (a mapping), got {keys}")
        return cls(_read_planned(name, entry) for name, entry in layers.items())


def resolve(config: Config, layers: Sequence[LayerInfo]) -> Plan:
    """Gives each layer its choice.

    A layer's very name decides, else the first pattern that matches it (fnmatch, case counts). Where none does, 1-D
    layers and those below `config.min_numel` elements are dense (fp32), every other gets `config.default`. No layer
    gets a choice that would send more bytes than dense, such as a rank above the matrix's own: it stays dense, and
    `because` says so.

    Raises:
        ValueError: for a pattern that matches no layer (lists close names), or a name given twice.
    """
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'layer names must be unique, got "{twice}" twice')
    for pattern, _ in config.layers:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f'pattern "{pattern}" of config key layers matches no layer; {_close_names(pattern, names)}'
            )
    return Plan(_planned(config, layer) for layer in layers)


def worth_it(layer: LayerInfo, choice: Choice) -> bool:
    """Whether a choice sends no more bytes for this layer than dense in the gradient's own type; padding included.

    Of a masked layer, dense sends what is kept; low rank's factors are those of `LayerInfo.matrix`.
    """
    if isinstance(choice, LowRank) and choice.rank > min(layer.matrix):
        return False
    return wire_bytes(layer, choice, 2) <= max(wire_bytes(layer, Dense(layer.dtype), 2), wire_bytes(layer, Dense(), 2))


def wire_bytes(layer: LayerInfo, choice: Choice, world_size: int) -> float:
    """Bytes that one rank sends for a layer per step: both rounds and all stages, mean over ranks, without headers."""
    return _C.layer_wire_bytes(layer.shape, layer.dtype, choice.to_native(), world_size, layer.kept, layer.kept_matrix)


def _kept_of(layer: LayerInfo) -> dict[str, int | list[int]]:
    """What a plan's forms add for a masked layer."""
    added: dict[str, int | list[int]] = {} if layer.kept is None else {"kept": layer.kept}
    return added if layer.kept_matrix is None else {**added, "kept_matrix": list(layer.kept_matrix)}


def _planned(config: Config, layer: LayerInfo) -> PlannedLayer:
    planned = _wanted(config, layer)
    if worth_it(layer, planned.choice):
        return planned
    return PlannedLayer(layer, Dense(), f"{planned.because}, but {planned.choice} costs more than dense")


def _wanted(config: Config, layer: LayerInfo) -> PlannedLayer:
    rule = rule_for(layer.name, config.layers)
    if rule is not None:
        return PlannedLayer(layer, rule[1], f'pattern "{rule[0]}"')
    if len(layer.shape) <= 1:
        return PlannedLayer(layer, Dense(), "1-D" if layer.shape else "scalar")
    if layer.numel < config.min_numel:
        return PlannedLayer(layer, Dense(), f"below {config.min_numel} elements")
    return PlannedLayer(layer, config.default, "default")


def _close_names(pattern: str, names: Sequence[str]) -> str:
    """Layer names that a pattern may have meant, compared without its wildcards; the first few where none is close."""
    if not names:
        return "the model has no layers that get gradients"
    close = get_close_matches(pattern.replace("*", "").replace("?", ""), names, n=3, cutoff=0.4)
    if close:
        return f"close are {', '.join(close)}"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"layers are {', '.join(names[:5])}{more}"


def _read_planned(name: object, entry: Any) -> PlannedLayer:
    """One layer of a plan's YAML form."""
    where = f'plan: layer "{name}"'
    keys = {"shape", "dtype", "choice", "because"}
    if not isinstance(name, str) or not isinstance(entry, dict) or set(entry) - {"kept", "kept_matrix"} != keys:
        raise ValueError(f"{where}: must have the keys {', '.join(sorted(keys))}, got {entry!r}")
    shape, kept = entry["shape"], entry.get("kept")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{where}: shape must be a list of whole numbers from 0, got {shape!r}")
    if kept is not None and type(kept) is not int:
        raise ValueError(f"{where}: kept must be a whole number, got {kept!r}")
    try:
        kept_matrix, choice = kept_matrix_from(entry.get("kept_matrix")), parse(entry["choice"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    layer = LayerInfo(name, tuple(shape), str(entry["dtype"]), kept, kept_matrix)
    return PlannedLayer(layer, choice, str(entry["because"]))
