"""The configuration of one attached model: read from YAML, a dict or keywords, checked whole before training starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_serializer, field_validator

from lgreco.choice import Choice, parse
from lgreco.solver_config import SolverConfig
from lgreco.spelling import did_you_mean
from lgreco.yaml_mapping import read_yaml_mapping

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Rule = tuple[str, Choice]
"""A pattern over layer names (fnmatch) and the choice of the layers that it matches."""


class Config(BaseModel):
    """How gradients are exchanged. Immutable, hashable, and the same on every rank.

    `Config.load(None)`, what `attach(ddp)` uses where no config is given, compresses every large matrix with
    `quantize(bits=4, block=512)`, keeps an fp32 residual and begins with 20 dense steps. Why this one: on a byte-level
    GPT with AdamW it left the validation loss within +0.4 % of dense (three seeds; dense's own spread is 0.6 %), on a
    convolutional net within +3.3 % (three seeds; spread 10 %), at a seventh of the bytes. 8 bits would send twice as
    much; 2 bits cost +4 % and +10 %. A `solver` chooses more, and sends far less; it is asked for, not the default.

    Attributes:
        enabled: false registers nothing: DDP averages as always, so that a run can be compared.
        seed: of the counter-based random numbers (stochastic rounding).
        warmup_steps: dense steps before the first compressed one.
        residual: type in which error feedback is kept, or off (then what a codec leaves out is lost).
        check_replicas_every: steps between comparisons of all ranks' parameters; 0 never compares.
        transport: what carries messages on the CPU: c10d (Gloo), or mpi where mpirun started the ranks.
        min_numel: layers with fewer elements, and 1-D layers, are dense unless a pattern of `layers` matches them.
        default: choice of every other layer.
        layers: (pattern, choice) in order, a layer's very name wins, else the first match; written as a mapping in YAML
            and dicts. A `Plan` will do: `Config(layers=plan)` pins what it gives every layer.
        auto: at attach, measure what exchanges take on these hosts (kept for a day, `python -m lgreco calibrate`) and
            leave averaging to torch's bf16 hook or to DDP as it is where lgreco's exchange would not be faster; layers
            that are faster dense are dense, and a `solver` makes plans of least exposed time instead of fewest bytes.
            Not the default: measuring takes seconds, and which plan comes of it depends on the machines. A calibration
            in place of true (a mapping, or the JSON file that `calibrate --json` printed) is decided by, and nothing
            measured: so what a run decided, `state.state_dict()["auto"]["calibration"]`, is decided again.
        ranks_per_node: more than 1 makes the exchange hierarchical: dense inside each node, where links are fast, and
            by the plan between nodes, each layer carried by one rank of every node. A number (ranks 0 to n-1 are the
            first node's, and so on), or launcher: as torchrun, mpirun or srun has dealt them. With all ranks on one
            node, or one on each, it is flat. On the CPU, over c10d, so far.
        solver: where given, the layers that `default` would decide get their choices from a solver instead, again and
            again while training runs; those that `layers` or their size decides keep theirs.

    Raises:
        ValueError: naming the key, its value and what is allowed, one line for each mistake.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    enabled: Annotated[bool, Field(strict=True)] = True
    seed: Count = 0
    warmup_steps: Count = 0
    residual: Literal["fp32", "bf16", "off"] = "fp32"
    check_replicas_every: Count = 0
    transport: Literal["c10d", "mpi"] = "c10d"
    min_numel: Count = 4096
    default: Choice = parse("quantize(bits=4, block=512)")
    layers: tuple[Rule, ...] = ()
    auto: bool | str = False
    ranks_per_node: Annotated[int, Field(strict=True, ge=1, lt=2**31)] | Literal["launcher"] = 1
    solver: SolverConfig | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(_readable(error)) from None

    @classmethod
    def load(cls, source: Config | Mapping[str, Any] | str | Path | None) -> Config:
        """Reads a config from wherever the caller has it: a Config, a dict, the path of a YAML file, or None.

        Raises:
            ValueError: for a mistake in the config, with the file's name where there is one.
            FileNotFoundError: where a path leads nowhere.
        """
        if source is None:
            return cls(warmup_steps=20)
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            return cls._from_mapping(source)
        if isinstance(source, str | Path):
            path = Path(source)
            if not path.is_file():
                raise FileNotFoundError(f'config must be the path of a YAML file, got "{path}", which is no file')
            try:
                return cls._from_mapping(read_yaml_mapping(path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        raise ValueError(f"config must be an lgreco.Config, a dict, a YAML path or None, got {source!r}")

    @classmethod
    def _from_mapping(cls, values: Mapping[str, Any]) -> Config:
        for key in values:
            if not isinstance(key, str):
                raise ValueError(f"config keys are text, got {key!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in YAML; `Config.load` of it gives an equal config."""
        return self.model_dump()

    @property
    def recorded_at(self) -> Path | None:
        """Where rank 0 writes a record, in full; None for no record, which is so of a replay too."""
        solver = self.solver
        if solver is None or solver.record is None or solver.plan_replay is not None:
            return None
        return Path(solver.record).resolve()

    def recording_to(self, path: Path | None) -> Config:
        """The same config, its record going to `path` where it has a solver and names no file of its own."""
        if path is None or self.solver is None or self.solver.record is not None:
            return self
        return self.model_copy(update={"solver": self.solver.model_copy(update={"record": str(path)})})

    def fingerprint(self) -> str:
        """64 hexadecimal digits, equal for equal configs on every machine and in every process."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    def difference(self, other: Config) -> list[str]:
        """Keys in which two configs differ, such as `seed` or `layers["*.bias"]`; empty for equal ones."""
        simple = [key for key in type(self).model_fields if key not in ("layers", "solver")]
        keys = [key for key in simple if getattr(self, key) != getattr(other, key)]
        if self.solver is not None and other.solver is not None:
            keys += [f"solver.{key}" for key in self.solver.difference(other.solver)]
        elif self.solver != other.solver:
            keys.append("solver")
        mine, theirs = dict(self.layers), dict(other.layers)
        patterns = [pattern for pattern in {**mine, **theirs} if mine.get(pattern) != theirs.get(pattern)]
        keys += [f'layers["{pattern}"]' for pattern in patterns]
        if not patterns and self.layers != other.layers:
            keys.append("layers (order)")
        return keys

    @field_validator("auto", mode="before")
    @classmethod
    def _read_auto(cls, value: object) -> object:
        return value if isinstance(value, bool) else _calibration_text(value)

    @field_validator("ranks_per_node", mode="after")
    @classmethod
    def _refuse_odds(cls, value: object, info: ValidationInfo) -> object:
        if value != 1 and info.data.get("auto"):
            raise ValueError("auto measures the flat exchange; leave one of auto and ranks_per_node out")
        if value != 1 and info.data.get("transport") == "mpi":
            raise ValueError('a hierarchical exchange needs transport "c10d", got "mpi"')
        return value

    @field_validator("residual", mode="before")
    @classmethod
    def _read_residual(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false

    @field_validator("default", mode="before")
    @classmethod
    def _read_choice(cls, value: object) -> object:
        return value if isinstance(value, Choice) else parse(value)  # type: ignore[arg-type]  # parse refuses what is no text

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, value: object) -> object:
        if value is None:  # YAML's "layers:" with nothing below
            return ()
        if isinstance(value, Mapping):
            value = tuple(value.items())
        if not isinstance(value, tuple):
            raise ValueError(f"must map patterns to choices, got {value!r}")
        return tuple(_read_rule(pair) for pair in value)

    @field_validator("solver", mode="before")
    @classmethod
    def _read_solver(cls, value: object) -> object:
        if value is None or isinstance(value, SolverConfig):
            return value
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"must map the solver's settings to values, got {value!r}")
        return SolverConfig(**value)

    @field_serializer("auto")
    def _write_auto(self, value: bool | str) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_serializer("default")
    def _write_choice(self, value: Choice) -> str:
        return str(value)

    @field_serializer("layers")
    def _write_layers(self, value: tuple[Rule, ...]) -> dict[str, str]:
        return {pattern: str(choice) for pattern, choice in value}


def _calibration_text(value: object) -> str:
    """One form of a calibration's JSON, from a mapping or a file; what it holds is judged where it is used.

    Raises:
        ValueError: for what is neither.
    """
    if isinstance(value, str | Path):
        try:
            found = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"no calibration can be read from {str(value)!r}: {error}") from None
        return _calibration_text(found)
    if not isinstance(value, Mapping):
        raise ValueError(f"must be true, false, or a calibration (a mapping, or its JSON file), got {value!r}")
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a calibration holds text and numbers: {error}") from None


def _read_rule(pair: Any) -> Rule:
    pattern, choice = pair
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"a pattern is text such as '*.weight', got {pattern!r}")
    try:
        return pattern, choice if isinstance(choice, Choice) else parse(choice)
    except ValueError as error:
        raise ValueError(f'"{pattern}": {error}') from None


_ALLOWED = {
    "enabled": "true or false",
    "residual": "fp32, bf16 or off",
    **dict.fromkeys(("seed", "warmup_steps", "check_replicas_every", "min_numel"), "a whole number from 0 to 2^63 - 1"),
}


def _readable(error: ValidationError) -> str:
    """One line for each mistake: what was wrong, the value, what is allowed."""
    lines = []
    for mistake in error.errors():
        key, value = str(mistake["loc"][0]), mistake["input"]
        if mistake["type"] == "extra_forbidden":
            keys = list(Config.model_fields)
            lines.append(f'unknown config key "{key}", known are {", ".join(keys)}{did_you_mean(key, keys)}')
        elif key in _ALLOWED:
            lines.append(f"{key} must be {_ALLOWED[key]}, got {value!r}")
        else:
            lines.append(f"{key}: {mistake['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
