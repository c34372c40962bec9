"""Candidates: what a layer is offered, what it never is, and the reference plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lgreco import _C
from lgreco.candidates import Offers, default_candidates, is_free, make_offers
from lgreco.choice import Choice, Dense, LowRank, Quantize, parse
from lgreco.config import Config
from lgreco.layer import LayerInfo
from lgreco.plan import resolve

LAYERS = [
    LayerInfo("embedding", (1000, 64), "fp32"),
    LayerInfo("conv", (64, 32, 3, 3), "fp32"),
    LayerInfo("thin", (4, 2048), "fp32"),
    LayerInfo("bias", (64,), "fp32"),
    LayerInfo("head", (64, 100), "fp32"),
    LayerInfo("empty", (0, 64), "fp32"),
]


def offers_of(config: dict[str, Any] | None = None, layers: list[LayerInfo] = LAYERS, **solver: Any) -> Offers:
    """Around rank 8, unless said otherwise."""
    made = Config.load({**(config or {}), "solver": {"reference": "lowrank(rank=8, factors=int8)", **solver}})
    assert made.solver is not None
    plan = resolve(made, layers)

    free = [is_free(made, layer) for layer in layers]
    return make_offers(made.solver, plan, free, 4, made.residual)


def offered(offers: Offers, name: str) -> list[Choice]:
    row = [layer.name for layer in offers.layers].index(name)
    return [offers.choices[column] for column in np.flatnonzero(offers.offered[row])]


def test_default_candidates_surround_the_reference() -> None:
    made = default_candidates(LowRank(rank=8, factors="int6"), ["lowrank", "quantize", "dense"])
    ranks = [choice.rank for choice in made if isinstance(choice, LowRank)]
    assert ranks == [4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert {choice.factors for choice in made if isinstance(choice, LowRank)} == {"int6"}
    assert [choice.bits for choice in made if isinstance(choice, Quantize)] == [2, 3, 4, 6, 8]
    assert Dense("bf16") in made
    near = default_candidates(Quantize(bits=4, block=128), ["quantize"])
    assert near == [Quantize(bits=bits, block=128) for bits in (2, 3, 4, 5, 6, 7, 8)]
    assert parse("topk(density=0.03)") in default_candidates(parse("topk(density=0.03)"), ["topk"])


def test_no_layer_is_offered_what_costs_more_than_dense_or_cannot_be() -> None:
    offers = offers_of()
    for row, layer in enumerate(offers.layers):
        dense_bytes = _C.layer_wire_bytes(layer.shape, "fp32", Dense().to_native(), 4)
        assert np.nanmax(offers.costs[row]) <= dense_bytes
        assert (np.isnan(offers.costs[row]) == ~offers.offered[row]).all()
    assert all(choice.rank <= 4 for choice in offered(offers, "thin") if isinstance(choice, LowRank))
    assert offered(offers, "bias") == [Dense()]
    assert offered(offers, "empty") == [Dense()]
    assert not offers.measurable().count(3)


def test_the_reference_plan_takes_what_is_nearest_or_dense() -> None:
    offers = offers_of()
    plan = offers.plan(offers.reference, "reference")
    assert plan["embedding"] == LowRank(rank=8)
    assert plan["thin"] == LowRank(rank=4)
    assert plan["bias"] == Dense()
    only = offers_of(reference="lowrank(rank=32)", candidates=["lowrank(rank=32)"])
    assert only.plan(only.reference, "reference")["thin"] == Dense()
    assert offered(only, "thin") == [Dense()]


def test_nothing_is_offered_but_what_is_listed() -> None:
    """But dense, where nothing that is listed applies."""
    alone = offers_of(families=["quantize"], reference=None)
    assert {type(choice) for choice in offered(alone, "embedding")} == {Quantize}
    assert alone.plan(alone.reference, "reference")["embedding"] == Quantize(bits=4)
    listed = [parse("topk(density=0.01)"), parse("topk(density=0.1)")]
    sparse = offers_of(candidates=listed, reference=None, ratio=20)
    assert offered(sparse, "embedding") == listed
    assert sparse.plan(sparse.reference, "reference")["embedding"] == listed[1]
    half = offers_of(families=["lowrank", "dense"], reference="dense(dtype=fp16)")
    assert half.plan(half.reference, "reference")["embedding"] == Dense("fp16")


def test_patterns_pin_and_limits_hold() -> None:
    offers = offers_of(
        {"layers": {"head": "quantize(bits=5, block=32)"}},
        floor={"embedding": "lowrank(rank=7)"},
        ceiling={"conv": "quantize(bits=3)"},
    )
    assert offered(offers, "head") == [Quantize(bits=5, block=32)]
    assert min(c.rank for c in offered(offers, "embedding") if isinstance(c, LowRank)) == 7
    assert max(c.bits for c in offered(offers, "conv") if isinstance(c, Quantize)) == 3
    assert min(c.rank for c in offered(offers, "conv") if isinstance(c, LowRank)) == 4
    with pytest.raises(ValueError, match=r'pattern "nothing\*" of config key solver.floor matches no layer'):
        offers_of(floor={"nothing*": "lowrank(rank=2)"})


def test_a_floor_above_a_ceiling_is_refused() -> None:
    """Of the same layer and codec; of a layer that is pinned it says nothing."""
    low, high = "lowrank(rank=4)", "lowrank(rank=8)"
    with pytest.raises(
        ValueError,
        match=r'layer "conv": its floor lowrank\(rank=8, .*\(pattern "c\*" of config key solver.floor\) is above its '
        r'ceiling lowrank\(rank=4, .*\(pattern "\*" of solver.ceiling\)',
    ):
        offers_of(floor={"c*": high}, ceiling={"*": low})
    for floor, ceiling in ((low, high), (low, low), ("quantize(bits=8)", low)):
        assert len(offered(offers_of(floor={"c*": floor}, ceiling={"*": ceiling}), "conv")) > 2
    offers_of({"layers": {"conv": "dense"}}, floor={"conv": high}, ceiling={"*": low})


def test_the_memory_ceiling_keeps_layers_exact() -> None:
    each = 2 * 4 * 1.25
    total = sum(layer.numel for layer in LAYERS)
    offers = offers_of(memory=each * 0.5)
    lossy = sum(offers.layers[row].numel for row in offers.measurable())
    assert 0 < lossy <= 0.5 * total
    assert not offers_of(memory=0).measurable()
    with pytest.raises(ValueError, match=r"solver.memory is 0 bytes a parameter, but layers that must keep"):
        offers_of({"layers": {"head": "quantize(bits=4)"}}, memory=0)


def test_half_precision_layers_are_never_exact() -> None:
    offers = offers_of(layers=[LayerInfo("w", (128, 128), "bf16")])
    assert Dense("fp32") not in offered(offers, "w")
    assert Dense("bf16") in offered(offers, "w")
