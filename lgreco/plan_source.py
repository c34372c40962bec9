"""A plan or its table as a person names it: a file, a record, or the folder of a run; with the bytes of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lgreco.choice import Choice
from lgreco.layer import LayerInfo, kept_matrix_from
from lgreco.plan import Plan, PlannedLayer, wire_bytes
from lgreco.record import find, read
from lgreco.record_kinds import Solve, Start

_ONE_COPY = 2
"""World size at which a rank sends, in both rounds, as much as one copy: 2 (W-1)/W is 1."""


@dataclass(frozen=True)
class PlanSource:
    """A plan and where it is from.

    Attributes:
        plan: all layers.
        title: for people: the file, and of a record the step.
        recorded: layer -> encoded bytes of one copy, of those layers that a record tells.
    """

    plan: Plan
    title: str
    recorded: Mapping[str, float]

    def wire_bytes(self, layer: LayerInfo, choice: Choice) -> int:
        """Encoded bytes of one copy of a layer: as recorded, else as the engine counts them.

        Raises:
            ValueError: for a codec that this build lacks.
        """
        known = self.recorded.get(layer.name)
        return round(wire_bytes(layer, choice, _ONE_COPY) if known is None else known)


def load_plan(path: str | Path) -> PlanSource:
    """Reads a plan's YAML file, or the last plan of a record or of the record in a folder.

    Raises:
        ValueError: for what is neither; names the file.
        FileNotFoundError: where there is no such file.
    """
    path = find(path)
    content = path.read_bytes()
    if path.suffix == ".jsonl" or content.startswith(b'{"kind"'):
        record = read(path)
        if not record.solves:
            raise ValueError(f"{path}: the record holds no plan, no solve is noted up to step {record.last_step}")
        return of_solve(record.solves[-1], record.start, str(path))
    try:
        return PlanSource(Plan.from_yaml(content.decode("utf-8")), str(path), {})
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: neither a plan (YAML) nor a record: not UTF-8 text, byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_table(path: str | Path) -> Path:
    """The error table that a path leads to: the file itself, or, of a record or a run's folder, the last plan's.

    Raises:
        ValueError: for a record beside which no table lies.
        FileNotFoundError: for a folder without a record.
    """
    path = Path(path)
    if not path.is_dir() and path.suffix != ".jsonl":
        return path
    record = find(path)
    kept = [record.parent / solve.table for solve in read(record).solves if solve.table is not None]
    there = [table for table in kept if table.is_file()]
    if not there:
        raise ValueError(f"{record}: no table of this record lies beside it; name a table-STEP.json")
    return there[-1]


def of_solve(solve: Solve, start: Start, title: str) -> PlanSource:
    """The plan of a recorded solve.

    Raises:
        ValueError: where the plan names a layer that the start does not.
    """
    layers = {layer.name: layer for layer in start.layers}
    for name in solve.plan:
        if name not in layers:
            raise ValueError(f'{title}: the plan of step {solve.step} names the layer "{name}", the start does not')
    because = f"solved at step {solve.step}"
    plan = Plan(
        PlannedLayer(
            replace(layers[name], kept=solve.kept.get(name), kept_matrix=kept_matrix_from(solve.kept_matrix.get(name))),
            choice,
            because,
        )
        for name, choice in solve.plan.items()
    )
    copies = 2 * (start.world_size - 1) / start.world_size  # sent by a rank in a step: both rounds
    recorded = {name: sent / copies for name, sent in solve.layer_bytes.items()} if copies else {}
    return PlanSource(plan, f"{title}, step {solve.step}", recorded)
