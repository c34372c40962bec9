"""`plan show`, `plan diff`, `plan solve`, and the nominal bytes that they show."""

from __future__ import annotations

import dataclasses
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from synthetic_run import REFERENCE, error_table, gpt_layers, greedy, write_run

from lgreco import plan_solve
from lgreco.__main__ import main
from lgreco.choice import parse
from lgreco.config import Config
from lgreco.error_table import ErrorTable
from lgreco.layer import LayerInfo
from lgreco.norm import NORMS, additive_errors
from lgreco.plan import Plan, resolve
from lgreco.plan_solve import Budget, solve_table
from lgreco.plan_source import load_plan
from lgreco.record import Recorder, read

SMALL = gpt_layers(1)
DENSE, QUANTIZED = parse("dense"), parse("quantize(bits=4, block=512)")


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, list(map(str, arguments)))


def squeezed(text: str) -> str:
    """Without spaces and the bars that part cells here, so that a table's layout does not count."""
    return "".join(text.replace("|", "").split())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a greedy solver in the solver's place and keeps what it is called with."""
    seen: list[dict[str, Any]] = []

    def solve(errors: Any, costs: Any, budget: float, method: str = "lagrangian", reference: Any = None) -> Any:
        seen.append({"errors": errors, "costs": costs, "budget": budget, "method": method, "reference": reference})
        if sum(np.nanmin(errors, axis=1)) > budget:
            raise ValueError(f"no plan is within the budget {budget}")
        table = types.SimpleNamespace(squared_errors=errors, costs=costs, choices=range(errors.shape[1]))
        columns = greedy(table, budget)  # type: ignore[arg-type]  # has what greedy looks at
        return types.SimpleNamespace(
            choices=np.array(columns, dtype=np.int32), cost=0.0, error=0.0, lower_bound=0.0, gap=0.0125
        )

    def minimise_error(errors: Any, costs: Any, cost_budget: float, **settings: Any) -> Any:
        return solve(np.where(np.isnan(errors), np.nan, costs), errors, cost_budget, **settings)

    monkeypatch.setattr(plan_solve.solver, "solve", solve)
    monkeypatch.setattr(plan_solve.solver, "minimise_error", minimise_error)
    return seen


@pytest.fixture
def table(tmp_path: Path) -> Path:
    error_table(100, layers=SMALL).save(tmp_path / "table.json")
    return tmp_path / "table.json"


def test_show_a_plan_of_yaml(tmp_path: Path) -> None:
    plan = resolve(Config(), SMALL)
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    result = run("plan", "show", tmp_path / "plan.yaml")
    assert result.exit_code == 0, result.output
    text = squeezed(result.output)
    assert plan.fingerprint()[:12] in text
    assert (
        squeezed("|blocks.0.mlp_in.weight|1024x256|quantize(bits=4,block=512)|default|1,048,576|135,168|7.76|") in text
    )


@pytest.mark.parametrize("as_folder", [True, False])
def test_show_the_last_plan_of_a_record(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "record.jsonl"
    write_run(path, layers=SMALL, solves=2)
    result = run("plan", "show", tmp_path if as_folder else path)
    assert result.exit_code == 0, result.output
    last = read(path).solves[-1]
    text = squeezed(result.output)
    assert "record.jsonl,step70" in text
    name = "blocks.0.mlp_in.weight"
    sent = f"{round(last.layer_bytes[name] * 4 / 6):,}"
    assert squeezed(f"|{name}|1024x256|{squeezed(str(last.plan[name]))}|1,048,576|{sent}|") in text
    assert squeezed(f"|{last.dense_bytes / last.wire_bytes:.2f}|") in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lgreco_plan: 2", r"plan.yaml: plan: lgreco_plan must be 1, got 2"),
        (b"\xff\xfe", r"neither a plan (YAML) nor a record"),
        (b'{"kind": "start"}\n', r"line 1: no record of a run: start: step is missing"),
    ],
)
def test_show_refuses_what_is_no_plan_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "plan.yaml").write_bytes(content)
    result = run("plan", "show", tmp_path / "plan.yaml")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert run("plan", "show", tmp_path / "none.yaml").exit_code == 1


def test_show_says_that_a_record_holds_no_plan_yet(tmp_path: Path) -> None:
    write_run(tmp_path / "record.jsonl", layers=SMALL, solves=0)
    result = run("plan", "show", tmp_path)
    assert result.exit_code == 1
    assert "the record holds no plan, no solve is noted up to step" in result.output


def test_a_plan_of_layers_that_the_start_lacks_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "full.jsonl", layers=SMALL, solves=1)
    record = read(tmp_path / "full.jsonl")
    with Recorder(tmp_path / "record.jsonl") as recorder:
        recorder.start(dataclasses.replace(record.start, layers=SMALL[1:]))
        recorder.solve(record.solves[0])
    with pytest.raises(ValueError, match=r'the plan of step 20 names the layer "token_embedding.weight", the start'):
        load_plan(tmp_path)


def test_diff_lists_the_layers_that_differ(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(resolve(Config(), SMALL).to_yaml())
    changed = Config(layers={"head.weight": "quantize(bits=2)"})
    (tmp_path / "b.yaml").write_text(resolve(changed, [*SMALL[1:], LayerInfo("new", (4,), "fp32")]).to_yaml())
    result = run("plan", "diff", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert result.exit_code == 0, result.output
    text = squeezed(result.output)
    assert squeezed("|head.weight|quantize(bits=4,block=512)|quantize(bits=2,block=512)|33,792|17,408|") in text
    assert squeezed("|token_embedding.weight|quantize(bits=4,block=512)|-|33,792|-|") in text
    assert squeezed("|new|-|dense(dtype=fp32)|-|16|") in text
    assert "3differ" in text
    assert "blocks.0" not in text


def test_recorded_bytes_stand_before_counted_ones(tmp_path: Path) -> None:
    write_run(tmp_path / "record.jsonl", layers=SMALL, solves=1)
    source = load_plan(tmp_path)
    layer = next(layer for layer in SMALL if layer.name == "head.weight")
    counted = dataclasses.replace(source, recorded={})
    assert source.wire_bytes(layer, source.plan[layer.name]) == round(source.recorded[layer.name])
    assert counted.wire_bytes(layer, DENSE) == layer.dense_bytes
    assert counted.wire_bytes(layer, QUANTIZED) == 256 * 256 // 2 + 128 * 8


def test_diff_of_equal_plans_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(resolve(Config(), SMALL).to_yaml())
    result = run("plan", "diff", tmp_path / "a.yaml", tmp_path / "a.yaml")
    assert result.exit_code == 0
    assert f"equal: {len(SMALL)} layers, plan" in result.output


def test_solve_spends_the_references_error_and_compares(tmp_path: Path, table: Path, calls: list[Any]) -> None:
    result = run("plan", "solve", table, "--reference", "lowrank(rank=8)", "--out", tmp_path / "plan.yaml")
    assert result.exit_code == 0, result.output
    loaded = ErrorTable.load(table)
    reference = loaded.uniform(REFERENCE)
    error = sum(additive_errors(loaded, "adam")[row, column] for row, column in enumerate(reference))
    assert calls[0]["budget"] == pytest.approx(error)
    assert tuple(calls[0]["reference"]) == reference
    assert (calls[0]["method"], calls[0]["reference"].dtype) == ("lagrangian", np.int32)
    plan = Plan.from_yaml((tmp_path / "plan.yaml").read_text())
    columns = [loaded.index(choice) for choice in plan.values()]
    cost = sum(loaded.costs[row, column] for row, column in enumerate(columns))
    uniform = sum(loaded.costs[row, column] for row, column in enumerate(reference))
    text = squeezed(result.output)
    assert squeezed(f"|solved|{cost:,.0f}|") in text
    assert squeezed(f"|lowrank(rank=8,factors=int8)|{uniform:,.0f}|") in text
    assert squeezed(f"|1.00|{uniform / cost:.2f}|") in text
    assert "topk:nonewithinthelimit" in text
    assert "gap 1.250%" in result.output
    assert list(plan) == [layer.name for layer in SMALL]


@pytest.mark.parametrize("norm", NORMS)
def test_solve_within_a_share_of_the_norm(table: Path, calls: list[Any], norm: str) -> None:
    result = run("plan", "solve", table, "--relative-error", "0.25", "--norm", norm, "--method", "dp")
    assert result.exit_code == 0, result.output
    loaded = ErrorTable.load(table)
    numels = np.array([layer.numel for layer in loaded.layers])
    lengths = np.sqrt(loaded.squared_norms)
    expected = {"squared": lengths**2, "l2": lengths, "adam": lengths * np.sqrt(numels)}[norm]
    assert calls[0]["budget"] == pytest.approx(0.25 * expected.sum())
    assert (calls[0]["method"], calls[0]["reference"]) == ("dp", None)


def test_solve_within_bytes_exchanges_the_tables(table: Path, calls: list[Any]) -> None:
    result = run("plan", "solve", table, "--bytes", "200000", "--norm", "squared")
    assert result.exit_code == 0, result.output
    assert calls[0]["budget"] == 200000
    loaded = ErrorTable.load(table)
    assert np.array_equal(calls[0]["errors"], np.where(loaded.offered, loaded.costs, np.nan), equal_nan=True)
    assert np.array_equal(calls[0]["costs"], loaded.squared_errors, equal_nan=True)
    solved = solve_table(loaded, Budget(bytes=200000.0), "squared")
    assert solved.spent.cost <= 200000
    assert solved.limit == solved.spent.error


def test_the_best_uniform_choice_is_the_cheapest_within_the_limit(calls: list[Any]) -> None:
    made = error_table(100, layers=SMALL)
    solved, errors = solve_table(made, Budget(reference=REFERENCE, alpha=1.0)), additive_errors(made, "adam")
    assert [uniform.family for uniform in solved.uniforms] == ["dense", "quantize", "topk", "lowrank"]
    for uniform in solved.uniforms:
        within = []
        for column, choice in enumerate(made.choices):
            columns = made.uniform(choice)
            error = math.fsum(errors[row, each] for row, each in enumerate(columns))
            if choice.codec == uniform.family and error <= solved.limit * (1 + 1e-12):
                within.append((math.fsum(made.costs[row, each] for row, each in enumerate(columns)), column))
        assert (uniform.spent.cost if uniform.spent else None) == (min(within)[0] if within else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget-alpha", "2", "--bytes", "5"], "one budget may be given, got --budget-alpha and --bytes"),
        (["--bytes", "-1"], "--bytes must be a number from 0, got -1.0"),
        (["--relative-error", "nan"], "--relative-error must be a number from 0, got nan"),
        (["--reference", "lowrank(rank=7)"], "--reference: choice must be one of dense(dtype=fp32), "),
        ([], "--reference: choice must be one of dense(dtype=fp32), "),  # the default is not in this table
        (["--reference", "lowrnk"], "unknown codec 'lowrnk'"),
        (["--bytes", "5"], "no plan is within the budget 5.0"),
    ],
)
def test_solve_refuses_in_one_line(table: Path, calls: list[Any], options: list[str], message: str) -> None:
    result = run("plan", "solve", table, *options)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("as_folder", [True, False])
def test_solve_takes_the_last_table_of_a_run(tmp_path: Path, calls: list[Any], as_folder: bool) -> None:
    """Not one that an earlier run has left there, whatever its step."""
    path = tmp_path / "record.jsonl"
    write_run(path, layers=SMALL, solves=2)
    first, last = read(path).solves
    with Recorder(path) as recorder:
        recorder.start(read(path).start)
        for solve in (first, last):
            recorder.solve(dataclasses.replace(solve, table=f"table-{solve.step}.json"))
    for step in (first.step, last.step, 900):
        error_table(step, layers=SMALL).save(tmp_path / f"table-{step}.json")
    result = run("plan", "solve", tmp_path if as_folder else path, "--bytes", "1e9")
    assert result.exit_code == 0, result.output
    assert f"table-{last.step}.json" in result.output


def test_solve_says_that_a_folder_has_no_table(tmp_path: Path, calls: list[Any]) -> None:
    result = run("plan", "solve", tmp_path)
    assert (result.exit_code, "holds no record.jsonl" in result.output) == (1, True)
    write_run(tmp_path / "record.jsonl", layers=SMALL, solves=1)
    result = run("plan", "solve", tmp_path)
    assert result.exit_code == 1
    assert "no table of this record lies beside it; name a table-STEP.json" in result.output


def test_solve_refuses_a_damaged_table(table: Path, calls: list[Any]) -> None:
    table.write_text(table.read_text()[:-40])
    result = run("plan", "solve", table)
    assert result.exit_code == 1
    assert "table.json: not valid JSON" in result.output
    assert calls == []
