"""Masks: packing, what is refused, and how costs, tables, plans and records follow what is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lgreco import _C, masks
from lgreco.candidates import Offers, make_offers
from lgreco.choice import LowRank, parse
from lgreco.config import Config
from lgreco.error_table import ErrorTable
from lgreco.layer import LayerInfo
from lgreco.plan import Plan, resolve, wire_bytes
from lgreco.plan_source import load_plan
from lgreco.plan_table import plan_table
from lgreco.record import Recorder, Solve, Start
from lgreco.sketch import masked_spectrum_of

WHOLE = LayerInfo("w", (200, 300), "fp32")
KEPT = dataclasses.replace(WHOLE, kept=6000)
MATRIX = dataclasses.replace(WHOLE, kept=6000, kept_matrix=(50, 120))


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 64, 1001])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_a_mask_takes_one_bit_an_element(numel: int, dtype: torch.dtype) -> None:
    kept = torch.rand(numel, generator=torch.Generator().manual_seed(numel)) < 0.4
    mask = masks.LayerMask.of(kept.to(dtype) * 3 if dtype == torch.uint8 else kept)
    assert (mask.bits.numel(), mask.kept, mask.numel) == (-(-numel // 8), int(kept.sum()), numel)
    assert torch.equal(mask.tensor(), kept)
    assert mask.digest == masks.LayerMask.of(kept).digest


def test_a_mask_that_keeps_everything_is_none() -> None:
    present = masks.update({}, {"w": torch.zeros(200, 300, dtype=torch.bool)}, [WHOLE])
    assert present["w"].kept == 0
    assert masks.update(present, {"w": torch.ones(200, 300, dtype=torch.uint8)}, [WHOLE]) == {}
    assert masks.update(present, {}, [WHOLE]) == present


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([], "masks must be a mapping, got list"),
        ({"v": torch.zeros(3, dtype=torch.uint8)}, 'a mask for layer "v", the model lacks it'),
        ({"w": torch.zeros(3, dtype=torch.uint8)}, r'layer "w": its saved mask must be uint8 \[7500\]'),
        ({"w": torch.zeros(7500)}, r'layer "w": its saved mask must be uint8 \[7500\]'),
        ({"w": None}, r'layer "w": its saved mask must be uint8 \[7500\]'),
    ],
)
def test_damaged_masks_are_refused(saved: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks.unpack(saved, [WHOLE])


def test_saved_masks_come_back() -> None:
    present = masks.update({}, {"w": torch.arange(60_000).view(200, 300) % 3 == 0}, [WHOLE])
    saved = masks.pack(present)
    assert saved["w"].numel() == 7500
    assert masks.digests(masks.unpack(saved, [WHOLE])) == masks.digests(present)


def test_a_layer_cannot_keep_more_than_it_has() -> None:
    with pytest.raises(ValueError, match=r"kept must be 0\.\.60000, got 60001"):
        dataclasses.replace(WHOLE, kept=60_001)
    with pytest.raises(ValueError, match=r"kept must be 0\.\.6, got 7"):
        _C.layer_wire_bytes((2, 3), "fp32", parse("dense").to_native(), 2, 7)
    with pytest.raises(ValueError, match=r"kept_matrix must be \(rows, columns\) of 6000 elements, got \(50, 121\)"):
        dataclasses.replace(KEPT, kept_matrix=(50, 121))


def test_a_mask_of_whole_rows_and_columns_keeps_a_matrix() -> None:
    """Found by the mask itself; of a convolution in its matrix of filters by weights."""
    layer = LayerInfo("w", (20, 3, 7, 7), "bf16")
    rows, columns = torch.arange(20) % 4 > 0, torch.arange(147) % 5 > 1
    kept = rows.view(20, 1) & columns

    def masked(mask: torch.Tensor) -> LayerInfo:
        return masks.masked(layer, masks.update({}, {"w": mask.view(layer.shape)}, [layer]))

    assert masked(kept).kept_matrix == masked(kept).matrix == (15, int(columns.sum()))
    assert masked(rows.view(20, 1).expand(20, 147)).matrix == (15, 147)
    assert masked(columns.expand(20, 147)).matrix == (20, int(columns.sum()))
    one_less = kept.clone()
    one_less[1, 2] = False
    for other in (one_less, torch.zeros(20, 147) > 0, torch.ones(20, 147) > 0):
        assert masked(other).kept_matrix is None
        assert masked(other).matrix == (20, 147)


@pytest.mark.parametrize("factors", ["fp32", "int4"])
def test_factors_of_a_kept_matrix_cost_what_a_layer_of_its_shape_costs(factors: str) -> None:
    alone = LayerInfo("w", (50, 120), "fp32")
    for rank in (1, 8, 20):
        choice = parse(f"lowrank(rank={rank}, factors={factors})")
        assert wire_bytes(MATRIX, choice, 4) == wire_bytes(alone, choice, 4) < wire_bytes(KEPT, choice, 4)


def test_no_rank_above_a_kept_matrix_is_offered() -> None:
    thin = dataclasses.replace(WHOLE, kept=1200, kept_matrix=(4, 300))
    ranks = [f"lowrank(rank={rank}, factors=int2)" for rank in (2, 4, 5, 8)]
    made = offers_of(thin, candidates=ranks, reference=ranks[-1])
    there = [made.choices[column] for column in np.flatnonzero(made.offered[0])]
    assert [choice.rank for choice in there if isinstance(choice, LowRank)] == [2, 4]
    wide = offers_of(MATRIX)
    assert wide.offered.sum() >= offers_of(KEPT).offered.sum()
    config = Config.load({"default": "lowrank(rank=5, factors=int2)", "min_numel": 1})
    assert resolve(config, [thin])["w"] == parse("dense(dtype=fp32)")
    assert resolve(config, [MATRIX])["w"] == config.default


def offers_of(layer: LayerInfo, **solver: Any) -> Offers:
    around = {"reference": "lowrank(rank=8, factors=int8)", "families": ["lowrank", "quantize", "topk", "dense"]}
    config = Config.load({"solver": {**around, **solver}})
    assert config.solver is not None
    return make_offers(config.solver, resolve(config, [layer]), [True], 4, "fp32")


def test_a_masked_layer_is_offered_nothing_dearer_than_what_is_kept() -> None:
    """Factors of the whole matrix drop out as it empties; at last nothing is left to choose, nor to measure."""
    counts = []
    for kept in (60_000, 6000, 1500, 100, 0):
        layer = dataclasses.replace(WHOLE, kept=kept)
        made = offers_of(layer)
        dense = wire_bytes(layer, parse("dense"), 4)
        assert np.nanmax(made.costs) <= dense
        there = [made.choices[column] for column in np.flatnonzero(made.offered[0])]
        counts.append(sum(isinstance(choice, LowRank) for choice in there))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == counts[4] == 0
    assert there == [parse("dense")]
    assert made.measurable() == []


def test_memory_counts_what_is_kept() -> None:
    with pytest.raises(ValueError, match="must keep residuals hold"):
        offers_of(dataclasses.replace(WHOLE, dtype="bf16"), memory=2.0)
    kept = offers_of(dataclasses.replace(KEPT, dtype="bf16"), memory=2.0, families=["quantize"], reference="quantize")
    assert kept.measurable() == [0]
    with pytest.raises(ValueError, match="must keep residuals hold 10"):
        offers_of(dataclasses.replace(KEPT, dtype="bf16"), memory=2.0)
    assert offers_of(dataclasses.replace(MATRIX, dtype="bf16"), memory=2.0).measurable() == [0]


def test_plans_say_which_matrix_is_kept() -> None:
    config = Config.load({"default": "lowrank(rank=2)"})
    plan = resolve(config, [MATRIX])
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert plan.fingerprint() != resolve(config, [KEPT]).fingerprint()
    for wrong in ("[50]", "[50, x]", "[50, 121]"):
        text = plan.to_yaml().replace("kept_matrix:\n    - 50\n    - 120\n", f"kept_matrix: {wrong}\n")
        with pytest.raises(ValueError, match="kept_matrix must be"):
            Plan.from_yaml(text)


def test_plans_say_what_is_kept() -> None:
    config = Config.load({"default": "quantize(bits=4)"})
    whole, kept = resolve(config, [WHOLE]), resolve(config, [KEPT])
    assert whole.fingerprint() != kept.fingerprint()
    again = Plan.from_yaml(kept.to_yaml())
    assert again == kept
    assert again.fingerprint() == kept.fingerprint()
    assert "kept" not in whole.to_yaml()
    with pytest.raises(ValueError, match=r"kept must be a whole number, got 'some'"):
        Plan.from_yaml(kept.to_yaml().replace("kept: 6000", "kept: some"))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table(kept, lambda layer, choice: round(wire_bytes(layer, choice, 2))))
    shown = console.export_text()
    assert "10.0%" in shown
    assert f"{round(wire_bytes(KEPT, parse('quantize(bits=4)'), 2)):,}" in shown


def table_of(layer: LayerInfo) -> ErrorTable:
    choices = (parse("dense"), parse("quantize(bits=4)"))
    costs = [[wire_bytes(layer, choice, 4) for choice in choices]]
    return ErrorTable((layer,), choices, np.array([[0.0, 1.0]]), np.ones(1), np.array(costs), 4, 10)


@pytest.mark.parametrize("layer", [KEPT, MATRIX])
def test_tables_and_records_say_what_is_kept(tmp_path: Path, layer: LayerInfo) -> None:
    table = table_of(layer)
    table.save(tmp_path / "table.json")
    assert ErrorTable.load(tmp_path / "table.json") == table != table_of(WHOLE)
    plan = resolve(Config.load({"default": "quantize(bits=4)"}), [layer])
    recorder = Recorder(tmp_path / "record.jsonl", 1)
    recorder.start(Start(0, (WHOLE,), table.choices, {}, 4))
    fields = {"budget": 2.0, "predicted_error": 1.0, "reference": "", "method": "dp", "gap": 0.0}
    solve = Solve.of(table, [1], plan, None, effective_step=12, solve_ms=0.0, measure_ms=0.0, **fields)
    recorder.solve(solve)
    recorder.close()
    source = load_plan(tmp_path)
    assert source.plan == plan
    planned = plan.planned[0]
    assert source.wire_bytes(planned.layer, planned.choice) == round(table.costs[0, 1] / 1.5)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_a_masked_matrix_sketch_knows_the_error_of_kept_elements(density: float) -> None:
    """Against the best rank of the masked matrix, taken at its kept elements alone."""
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(80, 6, generator=generator) @ torch.randn(6, 50, generator=generator)
    kept = torch.rand(80, 50, generator=generator) < density
    matrix = torch.where(kept, low + 0.3 * torch.randn(80, 50, generator=generator), 0.0).double()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    v = vt.T.float().contiguous()
    places = kept.flatten().nonzero().flatten().numpy()
    mean = matrix.flatten().numpy()[places]
    spectrum = masked_spectrum_of((matrix @ vt.T).float(), v, 0.0, 1.0, mean, places)
    for rank in (1, 4, 20, 50):
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        exact = float((matrix - torch.where(kept, best, 0.0)).square().sum())
        assert spectrum.error(rank, 0.0, 4) == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert spectrum.squared_norm == pytest.approx(float(matrix.square().sum()))
    assert spectrum.error(4, 10.0, 4) > spectrum.error(4, 0.01, 4) > spectrum.error(4, 0.0, 4)
