"""Plans: which choice each layer gets, and the forms a plan takes."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lgreco.choice import Choice, parse
from lgreco.config import Config
from lgreco.layer import LayerInfo, layer_of
from lgreco.plan import Plan, PlannedLayer, resolve
from lgreco.plan_table import plan_table

DEFAULT = parse("quantize(bits=4, block=512)")
DENSE = parse("dense")
LAYERS = [
    LayerInfo("embedding.weight", (256, 384), "fp32"),
    LayerInfo("blocks.0.attention.weight", (1152, 384), "bf16"),
    LayerInfo("blocks.0.attention.bias", (8192,), "bf16"),
    LayerInfo("blocks.0.norm.weight", (384,), "fp32"),
    LayerInfo("blocks.0.gate.weight", (4, 384), "fp16"),
    LayerInfo("scale", (), "fp32"),
    LayerInfo("empty", (0, 7), "fp32"),
]


def test_matrices_get_the_default_small_and_flat_layers_are_dense() -> None:
    plan = resolve(Config(), LAYERS)
    assert dict(plan) == {
        "embedding.weight": DEFAULT,
        "blocks.0.attention.weight": DEFAULT,
        "blocks.0.attention.bias": DENSE,
        "blocks.0.norm.weight": DENSE,
        "blocks.0.gate.weight": DENSE,
        "scale": DENSE,
        "empty": DENSE,
    }
    assert [planned.because for planned in plan.planned] == [
        "default",
        "default",
        "1-D",
        "1-D",
        "below 4096 elements",
        "scalar",
        "below 4096 elements",
    ]


def test_min_numel_is_the_smallest_compressed_size() -> None:
    layers = [LayerInfo("at", (2, 50), "fp32"), LayerInfo("below", (3, 33), "fp32")]
    assert dict(resolve(Config(min_numel=100), layers)) == {"at": DEFAULT, "below": DENSE}


def test_the_first_pattern_wins_and_patterns_reach_small_layers_too() -> None:
    config = Config(
        layers={
            "blocks.?.norm.*": "quantize(bits=8)",
            "*.weight": "quantize(bits=2)",
            "blocks.0.gate.*": "dense(dtype=bf16)",
        }
    )
    plan = resolve(config, LAYERS)
    assert str(plan["blocks.0.norm.weight"]) == "quantize(bits=8, block=512)"
    assert str(plan["blocks.0.gate.weight"]) == "quantize(bits=2, block=512)"
    assert plan["scale"] == DENSE
    assert plan.planned[3].because == 'pattern "blocks.?.norm.*"'


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "*.embeding.weight",
            r'^pattern "\*\.embeding\.weight" of config key layers matches no layer; close are embedding',
        ),
        ("Embedding.weight", r"matches no layer; close are embedding\.weight"),
        ("x", r"matches no layer; layers are embedding\.weight, .* and 2 more$"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(Config(layers={pattern: "dense"}), LAYERS)


def test_a_name_that_reads_as_a_pattern_means_itself() -> None:
    layers = [LayerInfo(name, (64, 128), "fp32") for name in ("w[0]", "w[1]", "w*")]
    plan = resolve(Config(layers={"w[0]": "dense", "w[*]": "topk(density=0.1)"}), layers)
    assert [str(choice) for choice in plan.values()] == [
        "dense(dtype=fp32)",
        str(Config().default),
        "topk(density=0.1)",
    ]


def test_a_layers_very_name_comes_before_patterns() -> None:
    """Wherever it stands, and where it is itself a pattern: a plan that names every layer is pinned as it is."""
    layers = [LayerInfo(name, (128, 128), "fp32") for name in ("heads.b*.weight", "heads.bc.weight", "body")]
    plan = resolve(Config(layers={"heads.*": "dense", "heads.bc.weight": "quantize(bits=8)"}), layers)
    assert [str(plan[layer.name].codec) for layer in layers] == ["dense", "quantize", "quantize"]
    choices = ("quantize(bits=2)", "lowrank(rank=4)", "dense(dtype=bf16)")
    saved = Plan(PlannedLayer(layer, parse(choice), "") for layer, choice in zip(layers, choices, strict=True))
    pinned = Config(layers=Plan.from_yaml(saved.to_yaml()))
    assert resolve(pinned, layers) == saved
    assert Config.load(pinned.to_dict()) == pinned


def test_a_pattern_for_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matches no layer; the model has no layers that get gradients$"):
        resolve(Config(layers={"*": "dense"}), [])
    assert len(resolve(Config(), [])) == 0


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r'^layer names must be unique, got "scale" twice$'):
        resolve(Config(), [*LAYERS, LayerInfo("scale", (2, 2), "fp32")])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_a_layer_that_cannot_be_exchanged_is_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf'^layer "w": dtype must be fp32, bf16, fp16, got {name}$'):
        layer_of("w", torch.zeros(2, dtype=dtype))


def test_layers_are_read_off_parameters() -> None:
    assert layer_of("w", torch.zeros(2, 3, dtype=torch.bfloat16)) == LayerInfo("w", (2, 3), "bf16")
    assert LayerInfo("w", (2, 3), "bf16").dense_bytes == 12
    assert LayerInfo("w", (), "fp32").numel == 1


layers = st.lists(
    st.builds(
        LayerInfo,
        name=st.text(min_size=1),
        shape=st.lists(st.integers(0, 5000), max_size=2).map(tuple),
        dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
    ),
    unique_by=lambda layer: layer.name,
    max_size=6,
)


@given(layers)
def test_a_plan_survives_yaml(layers: list[LayerInfo]) -> None:
    plan = resolve(Config(), layers)
    again = Plan.from_yaml(plan.to_yaml())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.fingerprint() == plan.fingerprint()
    assert again.planned == plan.planned
    assert [planned.because for planned in again.planned] == [planned.because for planned in plan.planned]


def test_plans_differ_by_layers_choices_and_order() -> None:
    plan = resolve(Config(), LAYERS)
    others = [
        resolve(Config(), LAYERS[1:]),
        resolve(Config(), LAYERS[::-1]),
        resolve(Config(), [LayerInfo("embedding.weight", (384, 256), "fp32"), *LAYERS[1:]]),
        resolve(Config(), [LayerInfo("embedding.weight", (256, 384), "bf16"), *LAYERS[1:]]),
        resolve(Config(layers={"scale": "dense(dtype=bf16)"}), LAYERS),
    ]
    assert all(plan != other for other in others)
    assert len({plan.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert plan == resolve(Config(layers={"scale": "dense"}), LAYERS), "why a layer got its choice does not count"


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    script = """if True:
        from lgreco.config import Config
        from lgreco.layer import LayerInfo
        from lgreco.plan import resolve
        print(resolve(Config(), [LayerInfo("w", (64, 64), "fp32")]).fingerprint())
    """
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == resolve(Config(), [LayerInfo("w", (64, 64), "fp32")]).fingerprint()


ENTRY = "{shape: [2, 3], dtype: fp32, choice: dense, because: default}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^plan: lgreco_plan must be 1, got None$"),
        ("lgreco_plan: 2\nlayers: {}", r"^plan: lgreco_plan must be 1, got 2$"),
        ("lgreco_plan: 1", r"^plan: keys must be lgreco_plan and layers \(a mapping\), got lgreco_plan$"),
        ("lgreco_plan: 1\nlayers: []", r"^plan: keys must be lgreco_plan and layers"),
        ("lgreco_plan: 1\nlayers: {}\nx: 1", r"^plan: keys must be .*, got lgreco_plan, layers, x$"),
        ("lgreco_plan: 1\nlayers: {w: dense}", r'^plan: layer "w": must have the keys because, choice, dtype, shape'),
        (f"lgreco_plan: 1\nlayers: {{3: {ENTRY}}}", r'^plan: layer "3": must have the keys'),
        (f"lgreco_plan: 1\nlayers: {{w: {ENTRY}, w: {ENTRY}}}", r'^key "w" is given twice'),
        (
            f"lgreco_plan: 1\nlayers: {{w: {ENTRY.replace('[2, 3]', '[2, -3]')}}}",
            r'^plan: layer "w": shape must be a list of whole numbers from 0, got \[2, -3\]$',
        ),
        (
            f"lgreco_plan: 1\nlayers: {{w: {ENTRY.replace('fp32', 'int8')}}}",
            r'^layer "w": dtype must be fp32, bf16, fp16, got int8$',
        ),
        (
            f"lgreco_plan: 1\nlayers: {{w: {ENTRY.replace('dense', 'quantize(bits=9)')}}}",
            r'^plan: layer "w": choice "quantize\(bits=9\)": bits must be 1\.\.8, got 9$',
        ),
        ("lgreco_plan: [", r"^not valid YAML, line 1"),
        ("{" * 5000, r"^not valid YAML: nested too deeply$"),
    ],
)
def test_bad_plan_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_yaml(text)


def test_the_table_shows_each_layer_and_the_sums() -> None:
    def wire_bytes(layer: LayerInfo, choice: Choice) -> int:
        return layer.dense_bytes // 8 if choice.codec == "quantize" else layer.dense_bytes

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(resolve(Config(), LAYERS), wire_bytes))
    text = console.export_text()
    assert "embedding.weight" in text
    assert "256 x 384" in text
    assert "scalar" in text
    assert "393,216" in text
    assert "49,152" in text
    assert "8.00" in text
    dense = sum(layer.dense_bytes for layer in LAYERS)
    wire = sum(
        wire_bytes(layer, choice) for layer, choice in zip(LAYERS, resolve(Config(), LAYERS).values(), strict=True)
    )
    assert f"{dense:,}" in text
    assert f"{wire:,}" in text
    assert f"{dense / wire:.2f}" in text
