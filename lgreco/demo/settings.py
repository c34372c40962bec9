"""What a training job is told: a YAML file, changed by `--set key=value`, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lgreco.config import Config
from lgreco.pruning.config import PruningSettings
from lgreco.spelling import did_you_mean
from lgreco.yaml_mapping import read_yaml_mapping

Count = Annotated[int, Field(ge=1)]
CountOrNever = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    """A part of the settings: unknown keys are errors, values do not change after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(_Section):
    """Shape of the byte-level GPT."""

    width: Count = 256
    layers: Count = 4
    heads: Count = 4
    context: Count = 128

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> ModelSettings:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        return self


class DataSettings(_Section):
    """Which text is trained on: `stdlib`, or the path of a text file or of a folder of text files."""

    source: str = "stdlib"
    validation_every: Annotated[int, Field(ge=2)] = 10
    max_mb: Annotated[float, Field(gt=0.0)] = 2048.0


class TrainSettings(_Section):
    """How long and how one run trains; `batch` is windows per rank and pass."""

    steps: Count = 400
    batch: Count = 8
    accumulate: Count = 1
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    lr_end: Fraction = 0.1
    lr_warmup_steps: CountOrNever = 40
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.95)
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    bucket_cap_mb: Annotated[float, Field(gt=0.0)] = 25.0
    eval_every: CountOrNever = 50
    eval_windows: Count = 256
    log_every: Count = 10
    checkpoint_every: CountOrNever = 100


class PrunedRuns(PruningSettings):
    """A pruner's settings and the runs that prune; None: all that have lgreco attached."""

    runs: list[str] | None = None


class JobSettings(_Section):
    """A whole job: every run of `runs` is trained once for each seed of `seeds`.

    A run's body is an lgreco config; `enabled: false` makes it plain DistributedDataParallel, the reference that the
    others are compared with. `reference_seeds` are further seeds for that reference alone: they show its own spread.
    `pruning` prunes some runs while they train; `start` is a checkpoint of an earlier run, dense or pruned, whose
    weights all runs begin with.
    """

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    seeds: list[CountOrNever] = Field(default=[0], min_length=1)
    reference_seeds: list[CountOrNever] = []
    runs: dict[str, Config] = Field(min_length=1)
    pruning: PrunedRuns | None = None
    start: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path = Path("runs/train")

    @field_validator("runs", mode="before")
    @classmethod
    def _read_runs(cls, runs: Any) -> Any:
        return {name: _read_run(name, body) for name, body in runs.items()} if isinstance(runs, dict) else runs

    @field_validator("seeds", "reference_seeds")
    @classmethod
    def _seeds_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"each seed must stand once, got {seeds}")
        return seeds

    @model_validator(mode="after")
    def _pruned_runs_are_there(self) -> JobSettings:
        for name in (self.pruning.runs or []) if self.pruning is not None else []:
            if name not in self.runs:
                raise ValueError(f"pruning.runs must name some of {', '.join(self.runs)}, got {name}")
        return self

    @property
    def reference(self) -> str | None:
        """Name of the first plain run, which the others are compared with."""
        return next((name for name in self.runs if not self.compressed(name)), None)

    def compressed(self, run: str) -> bool:
        """Whether lgreco is attached in this run."""
        return self.runs[run].enabled

    def pruning_of(self, run: str) -> PrunedRuns | None:
        """How this run is pruned, if it is."""
        if self.pruning is None:
            return None
        named = self.compressed(run) if self.pruning.runs is None else run in self.pruning.runs
        return self.pruning if named else None


def load_settings(path: Path, assignments: Iterable[str] = ()) -> JobSettings:
    """Reads a YAML file and applies assignments of the form `train.steps=50`.

    Raises:
        ValueError: naming each wrong key, its value and what is allowed.
    """
    if not path.is_file():
        raise ValueError(f'settings: there is no file "{path}"')
    try:
        tree = read_yaml_mapping(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for assignment in assignments:
        _assign(tree, assignment)
    try:
        return JobSettings.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(entry) for entry in error.errors())) from None


def _assign(tree: dict[str, Any], assignment: str) -> None:
    """Sets one key of the tree from `a.b.c=value`, the value written as in YAML."""
    dotted, equals, text = assignment.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set must be key=value such as train.steps=50, got {assignment!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {dotted}: the value must be YAML, got {text!r}") from error
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise ValueError(f"--set {dotted}: {'.'.join(keys[: depth + 1])} is a value, not a section")
    tree[keys[-1]] = value


def _read_run(name: Any, body: Any) -> Config:
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"a run's name must be letters, digits, - and _, got {name!r}")
    if body is not None and not isinstance(body, dict):
        raise ValueError(f"{name} must be an lgreco config, such as {{enabled: false}}, got {body!r}")
    try:
        return Config.load(body or {})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _explain(entry: Any) -> str:
    """One line of an error: which key, what is wrong, the value."""
    where, value = entry["loc"], entry["input"]
    name = ".".join(str(part) for part in where) or "settings"
    if entry["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        return f"{name}: unknown key, known are {', '.join(known)}{did_you_mean(where[-1], known)}"
    if entry["type"] == "missing":
        return f"{name}: must be given"
    if entry["type"] == "value_error":
        return f"{name}: {entry['ctx']['error']}"
    message = entry["msg"].replace("Input should be", "must be").replace("Input should", "must")
    return f"{name}: {message}, got {value!r}"


def _known_keys(where: tuple[Any, ...]) -> list[str]:
    section: Any = JobSettings
    for part in where:
        section = section.model_fields[part].annotation
        section = next((each for each in get_args(section) if each is not type(None)), section)
    return list(section.model_fields)
