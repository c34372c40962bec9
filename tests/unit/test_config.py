"""Config: what it reads, what it refuses, and how two are compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from calibrations import calibration
from hypothesis import given
from hypothesis import strategies as st

from lgreco.choice import parse
from lgreco.config import Config

WHOLE = """
enabled: false
seed: 7
warmup_steps: 20
residual: bf16
check_replicas_every: 100
min_numel: 1024
default: "quantize(bits=2, block=128)"
layers:
  "*.embedding.weight": "dense(dtype=bf16)"
  "*.bias": dense
auto: true
transport: mpi
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_key_is_read_from_yaml(tmp_path: Path) -> None:
    config = Config.load(write(tmp_path / "config.yaml", WHOLE))
    assert config.to_dict() == {
        "enabled": False,
        "seed": 7,
        "warmup_steps": 20,
        "residual": "bf16",
        "check_replicas_every": 100,
        "min_numel": 1024,
        "default": "quantize(bits=2, block=128)",
        "layers": {"*.embedding.weight": "dense(dtype=bf16)", "*.bias": "dense(dtype=fp32)"},
        "auto": True,
        "transport": "mpi",
        "ranks_per_node": 1,
        "solver": None,
    }
    assert config.layers == (("*.embedding.weight", parse("dense(dtype=bf16)")), ("*.bias", parse("dense")))


def test_nodes_are_a_number_or_the_launchers(tmp_path: Path) -> None:
    for text, value in (("4", 4), ("launcher", "launcher")):
        config = Config.load(write(tmp_path / "config.yaml", f"ranks_per_node: {text}\n"))
        assert config.ranks_per_node == value
        assert Config.load(config.to_dict()) == config
        assert config.difference(Config()) == ["ranks_per_node"]


def test_a_path_may_be_text_and_a_config_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", WHOLE)
    config = Config.load(path)
    assert Config.load(str(path)) == config
    assert Config.load(config) is config


def test_defaults() -> None:
    assert Config.load({}) == Config()
    assert Config().to_dict() == {
        "enabled": True,
        "seed": 0,
        "warmup_steps": 0,
        "residual": "fp32",
        "check_replicas_every": 0,
        "min_numel": 4096,
        "default": "quantize(bits=4, block=512)",
        "layers": {},
        "auto": False,
        "transport": "c10d",
        "ranks_per_node": 1,
        "solver": None,
    }
    assert Config().difference(Config.load(None)) == ["warmup_steps"]
    assert Config.load(None).warmup_steps == 20


@pytest.mark.parametrize("text", ["residual: off", "residual: 'off'", "residual: OFF"])
def test_a_bare_off_is_off_although_yaml_reads_false(tmp_path: Path, text: str) -> None:
    assert Config.load(write(tmp_path / "config.yaml", text)).residual == "off"


@pytest.mark.parametrize("text", ["", "# nothing\n", "layers:\n"])
def test_an_empty_file_or_section_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert Config.load(write(tmp_path / "config.yaml", text)) == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, r'^unknown config key "sed", known are enabled, seed, .*; did you mean "seed"\?$'),
        ({"warmup": 1}, r'unknown config key "warmup", .*; did you mean "warmup_steps"\?$'),
        ({"enabled": 1}, r"^enabled must be true or false, got 1$"),
        ({"auto": "yes"}, r"^auto: no calibration can be read from 'yes': .*No such file"),
        ({"auto": 1}, r"^auto: must be true, false, or a calibration \(a mapping, or its JSON file\), got 1$"),
        ({"auto": {"spread": object()}}, r"^auto: a calibration holds text and numbers: "),
        ({"seed": -1}, r"^seed must be a whole number from 0 to 2\^63 - 1, got -1$"),
        ({"seed": 2**63}, r"^seed must be a whole number from 0 to 2\^63 - 1, got 9223372036854775808$"),
        ({"warmup_steps": "20"}, r"^warmup_steps must be a whole number from 0.*, got '20'$"),
        ({"warmup_steps": True}, r"^warmup_steps must be a whole number from 0.*, got True$"),
        ({"min_numel": 4096.0}, r"^min_numel must be a whole number from 0.*, got 4096\.0$"),
        ({"check_replicas_every": None}, r"^check_replicas_every must be a whole number from 0.*, got None$"),
        ({"residual": "fp16"}, r"^residual must be fp32, bf16 or off, got 'fp16'$"),
        ({"residual": True}, r"^residual must be fp32, bf16 or off, got True$"),
        ({"default": "quantize(bits=0)"}, r'^default: choice "quantize\(bits=0\)": bits must be 1\.\.8, got 0$'),
        ({"default": 4}, r"^default: a choice is text such as .*, got 4$"),
        ({"layers": {"*.w": "dens"}}, r'^layers: "\*\.w": choice "dens": unknown codec \'dens\'.*mean "dense"\?$'),
        ({"layers": {3: "dense"}}, r"^layers: a pattern is text such as .*, got 3$"),
        ({"layers": {"": "dense"}}, r"^layers: a pattern is text such as .*, got ''$"),
        ({"layers": ["*.w"]}, r"^layers: must map patterns to choices, got \['\*\.w'\]$"),
        ({4: 4}, r"^config keys are text, got 4$"),
        (4, r"^config must be an lgreco\.Config, a dict, a YAML path or None, got 4$"),
    ],
)
def test_bad_values_are_refused_by_key(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.load(values)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"^seed must be .*\nresidual must be .*\nunknown config key \"x\""):
        Config(seed="1", residual="none", x=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", r'config\.yaml: key "seed" is given twice, in lines 1 and 2$'),
        ('layers:\n  "a": dense\n  "a": quantize\n', r'key "a" is given twice, in lines 2 and 3$'),
        ("layers:\n  *.bias: dense\n", r"not valid YAML, line 2: .*; a pattern that begins with \* needs quotes$"),
        ("a: [", r"not valid YAML, line 1"),
        ("[1]", r"must hold key: value lines, got list \[1\]$"),
        ("seed", r"must hold key: value lines, got str 'seed'$"),
        ("seed: x", r"config\.yaml: seed must be a whole number from 0.*, got 'x'$"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.load(write(tmp_path / "config.yaml", text))


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(FileNotFoundError, match=r'path of a YAML file, got ".*config\.yaml", which is no file$'):
        Config.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"config\.yaml: not UTF-8 text: byte 0 is 0xff$"):
        Config.load(path)


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]


counts = st.integers(0, 2**63 - 1)
choices = st.sampled_from(["dense", "quantize", "quantize(bits=8, block=32)"])
configs = st.builds(
    Config,
    enabled=st.booleans(),
    seed=counts,
    warmup_steps=counts,
    residual=st.sampled_from(["fp32", "bf16", "off"]),
    default=choices,
    layers=st.dictionaries(st.text(min_size=1), choices, max_size=3),
)


@given(configs)
def test_a_config_survives_its_dict(config: Config) -> None:
    again = Config.load(config.to_dict())
    assert again == config
    assert hash(again) == hash(config)
    assert again.fingerprint() == config.fingerprint()


@given(configs, configs)
def test_fingerprints_differ_exactly_where_configs_do(one: Config, other: Config) -> None:
    differs = one != other
    assert bool(one.difference(other)) == differs
    assert (one.fingerprint() != other.fingerprint()) == differs


def test_difference_names_the_keys() -> None:
    one = Config(seed=1, layers={"a": "dense", "b": "dense"})
    assert one.difference(one) == []
    assert one.difference(Config(seed=2, layers={"a": "dense", "c": "dense"})) == [
        "seed",
        'layers["b"]',
        'layers["c"]',
    ]
    assert one.difference(Config(seed=1, layers={"a": "dense", "b": "quantize"})) == ['layers["b"]']
    assert one.difference(Config(seed=1, layers={"b": "dense", "a": "dense"})) == ["layers (order)"]


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    script = 'from lgreco.config import Config; print(Config(seed=5, layers={"a": "dense"}).fingerprint())'
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == Config(seed=5, layers={"a": "dense"}).fingerprint()


def test_a_calibration_to_decide_by_is_part_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibration().to_dict()))
    config = Config.load({"auto": str(path)})
    assert config == Config.load({"auto": calibration().to_dict()}) == Config.load(config.to_dict())
    assert hash(config) == hash(Config.load(config.to_dict()))
    assert config.to_dict()["auto"] == calibration().to_dict()
    assert config.difference(Config.load({"auto": calibration(world_size=3).to_dict()})) == ["auto"]
