"""The solver's settings: what they read, what they refuse, how two are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgreco import plan_commands
from lgreco.choice import parse
from lgreco.config import Config
from lgreco.solver_config import Accordion, SolverConfig

ROOT = Path(__file__).resolve().parents[2]
WHOLE = """
warmup_steps: 20
solver:
  reference: "lowrank(rank=4, factors=int6)"
  families: [lowrank, topk]
  candidates: ["quantize(bits=2)", "lowrank(rank=4, factors=int6)", "topk(density=0.01)"]
  alpha: [[0, 1], [100, 2.5]]
  norm: l2
  family_weights: {topk: 4}
  layer_weights: {"*.embedding.*": 0.5}
  floor: {"*": "lowrank(rank=2)"}
  ceiling: {"*.head.*": "quantize(bits=6)"}
  memory: 9.5
  method: dp
  interval: 50
  lag: 4
  window: 5
  average: 3
  record: runs/record.jsonl
  record_every: 7
"""


def test_every_key_is_read_from_yaml_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(WHOLE)
    config = Config.load(path)
    solver = config.solver
    assert solver is not None
    assert solver.reference == parse("lowrank(rank=4, factors=int6)")
    assert solver.candidates == (parse("quantize(bits=2)"), solver.reference, parse("topk(density=0.01)"))
    assert solver.alpha == ((0, 1.0), (100, 2.5))
    assert solver.floor == (("*", parse("lowrank(rank=2)")),)
    assert Config.load(config.to_dict()) == config
    assert hash(Config.load(config.to_dict())) == hash(config)
    assert Config.load({"solver": {"accordion": {"tight": 0.5}}}).solver == SolverConfig(accordion=Accordion(tight=0.5))


def test_the_default_reference_is_the_one_that_users_read_of() -> None:
    reference = str(SolverConfig().reference)
    assert reference == "lowrank(rank=32, factors=int8)"
    for path in ("README.md", "configs/quickstart.yaml"):
        assert reference in (ROOT / path).read_text(encoding="utf-8"), path
    options = {option.name: option.default for option in plan_commands.solve.params}
    assert options["reference"] == reference


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"families": ["quantize", "lowrank"]}, "lowrank(rank=32, factors=int8)"),
        ({"families": ["dense", "topk", "quantize"], "ratio": 12}, "quantize(bits=4, block=512)"),
        ({"families": ["randomk", "topk"]}, "topk(density=0.01)"),
        ({"families": ["randomk"], "reference": None}, "randomk(density=0.01)"),
        ({"families": ["dense"], "reference": "dense(dtype=bf16)"}, "dense(dtype=bf16)"),
        (
            {"families": ["topk"], "candidates": ["quantize(bits=2)"], "reference": "quantize(bits=2)"},
            "quantize(bits=2)",
        ),
    ],
)
def test_the_reference_is_of_what_may_be_chosen(settings: dict[str, Any], reference: str) -> None:
    config = Config.load({"solver": settings})
    assert config.solver is not None
    assert config.solver.reference == parse(reference)
    assert Config.load(config.to_dict()) == config


@pytest.mark.parametrize("budget", [{"relative_error": 0.3}, {"bytes": 5000}, {"ratio": 20}])
def test_candidates_need_no_reference_where_the_budget_needs_none(budget: dict[str, Any]) -> None:
    config = Config.load({"solver": {"candidates": ["topk(density=0.01)", "topk(density=0.1)"], **budget}})
    assert config.solver is not None
    assert config.solver.reference is None
    assert Config.load(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": ["dense"]}, "reference: families of dense alone leave nothing to choose"),
        (
            {"families": ["quantize", "topk"], "reference": "lowrank(rank=8)"},
            r"reference: lowrank\(rank=8, factors=int8\) is not of families \(quantize, topk\).*add lowrank to them",
        ),
        (
            {"candidates": ["topk(density=0.1)"], "reference": "topk(density=0.01)"},
            r"reference: topk\(density=0.01.*\) is not among candidates, which are all.*; add it to them",
        ),
        *(
            ({"candidates": ["topk(density=0.1)"], **budget}, "candidates without a reference.*set solver.reference to")
            for budget in ({}, {"alpha": 2.0}, {"accordion": {}})
        ),
        ({"alpha": -1}, "solver: alpha: must be a number above 0, got -1"),
        ({"alpha": "fast"}, r"alpha: must be a number above 0 or a list of \[step, alpha\], got 'fast'"),
        ({"alpha": [[5, 1], [5, 2]]}, "steps must rise, got 5 after 5"),
        ({"alpha": [[-5, 1]]}, r"a point is \[step, alpha\] with a whole step from 0, got \[-5, 1\]"),
        ({"bytes": 5, "ratio": 2}, "at most one budget may be given, got bytes, ratio"),
        ({"alpha": 2, "accordion": {}}, "at most one budget may be given, got alpha, accordion"),
        ({"interval": 10, "window": 8, "lag": 3}, r"window \+ lag must be at most interval \(10\), got 8 \+ 3"),
        ({"lag": 0}, "lag must be a whole number from 1, got 0"),
        ({"familes": ["topk"]}, 'unknown key "familes".*did you mean "families"'),
        ({"families": ["top"]}, "codecs are dense, .*got 'top'; did you mean \"topk\""),
        ({"families": []}, r"must be a list of codecs .*, got \[\]"),
        ({"candidates": ["quantize(bits=9)"]}, r"candidates: choice \"quantize\(bits=9\)\": bits must be 1..8, got 9"),
        ({"reference": "rank 8"}, "reference: choice"),
        ({"norm": "l1"}, "norm must be adam, squared or l2, got 'l1'"),
        ({"family_weights": {"topk": 0}}, "family_weights: must be a number above 0, got 0"),
        ({"accordion": {"tigth": 1}}, 'unknown key "tigth".*did you mean "tight"'),
        ({"accordion": 5}, "accordion must be a mapping with threshold, tight and loose, got 5"),
        ({"relative_error": -0.1}, "relative_error must be a number from 0, got -0.1"),
        ({"bytes": 1.5}, "bytes must be a whole number from 1, got 1.5"),
        ({"record": 5}, "record must be the path of a file, got 5"),
        ({"method": "greedy"}, "method must be lagrangian or dp, got 'greedy'"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.load({"solver": settings})


@pytest.mark.parametrize("value", [5, ["alpha"], {1: 2}])
def test_the_section_must_be_a_mapping(value: object) -> None:
    with pytest.raises(ValueError, match="solver: must map the solver's settings to values, got"):
        Config.load({"solver": value})


def test_differences_name_the_solvers_keys() -> None:
    one, other = Config(solver=SolverConfig(lag=5)), Config(solver=SolverConfig(norm="l2"))
    assert one.difference(other) == ["solver.norm", "solver.lag"]
    assert one.difference(Config()) == ["solver"]
    assert one.difference(one) == []
