"""Settings of a training job: what is read, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgreco.demo.settings import JobSettings, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text('runs:\n  dense: {enabled: false}\n  small: {default: "quantize(bits=2, block=64)"}\n')
    return path


@pytest.mark.parametrize("name", ["quickstart.yaml", "own_text.yaml"])
def test_shipped_configs_are_valid(name: str) -> None:
    settings = load_settings(CONFIGS / name)
    assert any(settings.compressed(run) for run in settings.runs)


def test_runs_hold_lgreco_configs_and_the_plain_one_is_the_reference(config: Path) -> None:
    settings = load_settings(config)
    assert settings.reference == "dense"
    assert [settings.compressed(name) for name in settings.runs] == [False, True]
    assert str(settings.runs["small"].default) == "quantize(bits=2, block=64)"


def test_assignments_change_any_key(config: Path) -> None:
    settings = load_settings(
        config, ["train.steps=7", "train.lr=1e-4", "seeds=[3, 4]", "runs.small.residual=off", "runs.other="]
    )
    assert settings.train.steps == 7
    assert settings.train.lr == 1e-4
    assert settings.seeds == [3, 4]
    assert settings.runs["small"].residual == "off"
    assert settings.compressed("other")


def test_settings_survive_json(config: Path) -> None:
    settings = load_settings(config)
    assert JobSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.steps=0", r"train\.steps: must be greater than or equal to 1, got 0"),
        ("train.stepz=3", r'train\.stepz: unknown key, known are steps, .* did you mean "steps"\?'),
        ("nonsense=3", r"nonsense: unknown key, known are model, data, "),
        ("train.precision=fp8", r"train\.precision: must be 'fp32' or 'bf16', got 'fp8'"),
        ("train.lr=.nan", r"train\.lr: must be a finite number, got nan"),
        ("model.heads=3", r"width must be a multiple of heads \(3\), got 256"),
        ("seeds=[]", r"seeds: .*at least 1 item"),
        ("seeds=[1, 1]", r"seeds: each seed must stand once, got \[1, 1\]"),
        ("runs={}", r"runs: .*at least 1 item"),
        ("runs.small.bits=3", r'runs: small: unknown config key "bits"'),
        ("runs.small.default=quantize(bits=9)", r"runs: small: .*bits must be 1\.\.8, got 9"),
        ("runs.small=3", r"runs: small must be an lgreco config, .* got 3"),
        ("runs.a/b={}", r"runs: a run's name must be letters, digits, - and _, got 'a/b'"),
        ("train.steps", r"--set must be key=value such as train\.steps=50, got 'train\.steps'"),
        ("train.steps.x=3", r"--set train\.steps\.x: train\.steps is a value, not a section"),
        ("train.steps=[", r"--set train\.steps: the value must be YAML, got '\['"),
    ],
)
def test_mistakes_are_named(config: Path, assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(config, ["train.steps=5", assignment])


def test_a_missing_file_and_a_file_without_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'there is no file ".*absent\.yaml"'):
        load_settings(tmp_path / "absent.yaml")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(ValueError, match="runs: must be given"):
        load_settings(empty)
