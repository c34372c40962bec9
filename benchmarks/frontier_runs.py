"""What is to be trained: runs, each a name and an lgreco config, and their results kept in files of their own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report

import lgreco
from lgreco.yaml_mapping import read_yaml_mapping

# The reference: DistributedDataParallel without lgreco. `dense(dtype=fp32)` is lgreco's own dense codec.
PLAIN = "dense"
NAMED = "named"
_NAMED_RUN = re.compile(r"([\w./-]+)=(.+)")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Run:
    """One way to exchange gradients.

    Attributes:
        name: in tables.
        family: what is drawn in one colour: the codec, or what the name says before a slash, or `named`.
        config: an lgreco config as a dict; where it has no seed, each job's own is taken.
    """

    name: str
    family: str
    config: dict[str, Any]

    @property
    def plain(self) -> bool:
        """Whether lgreco stays out of it."""
        return not self.config.get("enabled", True)


@dataclass(frozen=True)
class Job:
    """One training run of one seed.

    Attributes:
        model: a key of `frontier_tasks.TASKS`.
        optimizer: one of `frontier_tasks.OPTIMIZERS`.
        run: name of the run.
        config: lgreco's, complete.
        seed: of the initial weights and the data.
        world_size: ranks.
        train: fields of TrainSettings.
    """

    model: str
    optimizer: str
    run: str
    config: dict[str, Any]
    seed: int
    world_size: int
    train: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the result, as JSON reads it back."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.model}, {self.run}, seed {self.seed}"


def read_runs(words: Iterable[str], files: Iterable[Path], warmup_steps: int) -> list[Run]:
    """The runs that a command line names.

    Args:
        words: `dense`, a choice, NAME=CHOICE or NAME=FILE.yaml (an lgreco config).
        files: YAML files with one mapping NAME: config, or NAME: choice.
        warmup_steps: of every config that does not say.

    Raises:
        ValueError: for what is no choice, config or name, and for a name given twice.
    """
    runs = [_read_word(word, warmup_steps) for word in words]
    for file in files:
        runs += [_named(name, body, warmup_steps) for name, body in _mapping_of(file).items()]
    names = [run.name for run in runs]
    if not runs:
        raise ValueError("at least one run must be named")
    if len(set(names)) < len(names):
        raise ValueError(f"each run must stand once, got {', '.join(names)}")
    return runs


def only(names: Sequence[str] | None, runs: Sequence[Run]) -> list[Run]:
    """The runs of these names; all where None.

    Raises:
        ValueError: a name that no run has.
    """
    known = [run.name for run in runs]
    for name in names or ():
        if name not in known:
            raise ValueError(f"only must name runs, which are {', '.join(known)}, got {name!r}")
    return [run for run in runs if names is None or run.name in names]


def config_of(run: Run, seed: int) -> dict[str, Any]:
    """The run's config, complete; seeds differ in lgreco's random numbers too, unless the config names one."""
    return lgreco.Config.load({"seed": seed, **run.config}).to_dict()


class Results:
    """A folder with one JSON file for each job; what decides a result is part of its file's name."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder where there is none."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, job: Job) -> Path:
        """Where a job's result is kept."""
        digest = hashlib.sha256(json.dumps(job.identity, sort_keys=True).encode()).hexdigest()[:10]
        name = re.sub(r"[^\w.=-]+", "-", job.run).strip("-")
        return self._folder / f"{job.model}-{name}-seed{job.seed}-{digest}.json"

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The result of this very job; None where it has not run, or died."""
        record = report.read_json(self.path(job), ("job", "died"))
        if record is None or record["job"] != job.identity or record["died"] is not None:
            return None
        return record

    def adopt(self, file: Path, jobs: Iterable[Job]) -> None:
        """Keeps what an earlier --json file holds of jobs that have not finished here.

        Raises:
            ValueError: the file is missing, or holds no frontier.
        """
        content = report.read_json(file)
        if content is None:
            raise ValueError(f"known must be files that --json wrote, got {file}")
        for job in jobs:
            record = _known(job, content) if self.finished(job) is None else None
            if record is not None:
                self.keep(job, record)

    def keep(self, job: Job, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a job's result, whole or not at all; returns what `finished` would."""
        whole = {"job": job.identity, "commit": report.commit(), **record}
        path = self.path(job)
        part = path.with_suffix(".partial")
        part.write_text(json.dumps(whole, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
        return whole


def _known(job: Job, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """This very job's record in what --json wrote, without its loss curve; None where it is another's."""
    settings = content["settings"]
    if any(settings.get(name) != job.identity[name] for name in ("model", "optimizer", "world_size", "train")):
        return None
    row = next((row for row in content["rows"] if row["run"] == job.run), None)
    record = row["by_seed"].get(str(job.seed)) if row is not None else None
    if row is None or record is None:
        return None
    # What it was then: keys that have come since have their defaults. The row has its first seed's own.
    if lgreco.Config.load({**row["config"], "seed": job.config["seed"]}).to_dict() != job.config:
        return None
    planned = next((seed for seed, each in row["by_seed"].items() if each["died"] is None), None)
    plan = row["plan"] if planned == str(job.seed) else None  # a row has that of its first seed that lived
    return {**record, "parameters": row["parameters"], "plan": plan}


def _read_word(word: str, warmup_steps: int) -> Run:
    if word == PLAIN:
        return Run(PLAIN, PLAIN, {"enabled": False})
    named = _NAMED_RUN.fullmatch(word)
    if named is None:
        choice = lgreco.parse(word)
        return Run(str(choice), choice.codec, {"warmup_steps": warmup_steps, "default": str(choice)})
    name, body = named.groups()
    is_file = body.endswith((".yaml", ".yml"))
    return _named(name, _mapping_of(Path(body)) if is_file else body, warmup_steps)


def _named(name: Any, body: Any, warmup_steps: int) -> Run:
    """A run whose body is a config, or the text of a choice."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a run's name must be letters, digits, . _ and -, at most one /, got {name!r}")
    if not isinstance(body, str | dict):
        raise ValueError(f"{name} must be a choice or an lgreco config, such as {{enabled: false}}, got {body!r}")
    config = {"default": body} if isinstance(body, str) else body
    try:
        if config.get("enabled", True):
            config = {"warmup_steps": warmup_steps, **config}
        lgreco.Config.load(config)
        family = lgreco.parse(body).codec if isinstance(body, str) else NAMED
        family = family if config.get("enabled", True) else PLAIN
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Run(name, name.partition("/")[0] if "/" in name else family, config)


def _mapping_of(file: Path) -> dict[Any, Any]:
    if not file.is_file():
        raise ValueError(f'there is no file "{file}"')
    try:
        return read_yaml_mapping(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
