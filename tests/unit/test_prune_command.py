"""`python -m lgreco prune`, pruning settings in YAML, and the report page of a pruned run."""

from __future__ import annotations

import importlib
import os
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from lgreco.__main__ import main
from lgreco.demo import text as demo_text
from lgreco.demo.settings import load_settings
from lgreco.pruning import Change, OneShotSchedule, Pruner
from lgreco.pruning.changes_file import CHANGES_NAME, read_changes, write_changes
from lgreco.pruning.config import PruningSettings
from lgreco.report import write_report

REPOSITORY = Path(__file__).parents[2]


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model.add_module("embedding", nn.Embedding(5, 8))
    return model


@pytest.mark.parametrize("key", ["", "model"])
def test_once_prunes_a_file_as_the_pruner_prunes_the_model(tmp_path: Path, key: str) -> None:
    model = _model()
    saved = {"model": model.state_dict(), "step": 3} if key else model.state_dict()
    torch.save(saved, tmp_path / "dense.pt")
    words = ["prune", "once", str(tmp_path / "dense.pt"), "--sparsity", "0.75", "--out", str(tmp_path / "sparse.pt")]
    result = CliRunner().invoke(main, [*words, "--masks", str(tmp_path / "masks.pt")])
    assert result.exit_code == 0, result.output
    assert "75.00% of 192 weights pruned" in result.output
    pruner = Pruner(model, None, OneShotSchedule(0.75))
    pruner.prune(0.75)
    written = torch.load(tmp_path / "sparse.pt", weights_only=True)
    weights = written["model"] if key else written
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not key or written["step"] == 3
    pruner.load_state_dict(torch.load(tmp_path / "masks.pt", weights_only=True))


def _once(file: Path, out: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["prune", "once", str(file), "--sparsity", "0.75", "--out", str(out), *words])


@pytest.mark.parametrize(
    ("around", "words"),
    [
        (lambda weights: {"state_dict": weights, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, []),
        (lambda weights: {"weights": weights, "optimizer": {"state": {}, "param_groups": []}}, []),
        (lambda weights: {"model": weights, "ema": {**weights}}, []),
        (lambda weights: {"teacher": {**weights}, "student": weights}, ["--key", "student"]),
        (lambda weights: {f"module._orig_mod.{name}": each for name, each in weights.items()}, []),
        (lambda weights: {name: nn.Parameter(each) for name, each in weights.items()}, []),
    ],
)  # fmt: skip
def test_once_finds_the_weights_in_checkpoints_of_many_forms(tmp_path: Path, around: Any, words: list[str]) -> None:
    model = _model()
    torch.save(around({name: each.clone() for name, each in model.state_dict().items()}), tmp_path / "dense.pt")
    result = _once(tmp_path / "dense.pt", tmp_path / "sparse.pt", "--masks", str(tmp_path / "masks.pt"), *words)
    assert result.exit_code == 0, result.output
    pruner = Pruner(model, None, OneShotSchedule(0.75))
    pruner.prune(0.75)
    written = torch.load(tmp_path / "sparse.pt", weights_only=True)
    expected = around(model.state_dict())
    flat = {key: value for key, value in expected.items() if isinstance(value, torch.Tensor)}
    entry = next((key for key in ("state_dict", "weights", "model", "student") if key in written), None)
    for name, value in (flat if entry is None else expected[entry]).items():
        assert torch.equal((written if entry is None else written[entry])[name], value), name
    pruner.load_state_dict(torch.load(tmp_path / "masks.pt", weights_only=True))


def _others(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: each + 1.0 for name, each in weights.items()}


def _trained(weights: dict[str, Any]) -> dict[str, Any]:
    """What the optimizer, the scaler and a tracker save beside a model: tensors under names as well."""
    moments = {name: {"exp_avg": torch.ones_like(each)} for name, each in weights.items()}
    return {
        "optimizer": {"state": moments, "param_groups": []},
        "scaler": {"scale": torch.tensor(2.0), "growth_factor": 2.0},
        "history": {"loss": torch.rand(10)},
    }


@pytest.mark.parametrize(
    ("around", "keys", "words"),
    [
        (lambda weights: {"outer": {"net": weights}, **_trained(weights)}, ["outer", "net"], []),
        (lambda weights: {"a": {"x": {"b": weights, "c": _others(weights)}}}, ["a", "x", "b"], ["--key", "a.x.b"]),
        (lambda weights: {"a": {"x": _others(weights)}, "a.x": {"b": weights}}, ["a.x", "b"], ["--key", "a.x.b"]),
        (lambda weights: {"model": weights, "class": torch.rand(4), "ema": {"w": _others(weights)}}, ["model"], []),
        (lambda weights: {**weights, "_extra_state": {"version": 1, "amax": torch.rand(2, 2)}}, [], []),
        (lambda weights: {"model": {**weights, "2._extra_state": b"x", "0.calls": 7}, "step": 3}, ["model"], []),
        (lambda weights: {**weights, "0._extra_state": torch.rand(8, 8)}, [], []),
    ],
)  # fmt: skip
def test_once_finds_the_weights_at_any_depth_and_keeps_what_is_beside_them(
    tmp_path: Path, around: Any, keys: list[str], words: list[str]
) -> None:
    model = _model()
    dense = around({name: each.clone() for name, each in model.state_dict().items()})
    torch.save(dense, tmp_path / "dense.pt")
    result = _once(tmp_path / "dense.pt", tmp_path / "sparse.pt", *words)
    assert "75.00% of 192 weights pruned" in result.output, result.output
    Pruner(model, None, OneShotSchedule(0.75)).prune(0.75)
    written = torch.load(tmp_path / "sparse.pt", weights_only=True)
    expected, found = dense, written
    for key in keys:
        expected, found = expected[key], found[key]
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    expected.update(model.state_dict())
    torch.testing.assert_close(written, dense, rtol=0, atol=0)


def test_once_prunes_vectors_where_a_file_has_nothing_else(tmp_path: Path) -> None:
    torch.save({"vector": torch.rand(8)}, tmp_path / "dense.pt")
    assert "75.00% of 8 weights" in _once(tmp_path / "dense.pt", tmp_path / "sparse.pt", "--layers", "*").output


def test_once_prunes_a_tied_tensor_once_and_by_all_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared, other = torch.randn(12, 8), torch.randn(8, 8)
    torch.save({"head.weight": shared, "transformer.wte.weight": shared, "h.w[0].weight": other}, tmp_path / "dense.pt")
    result = _once(tmp_path / "dense.pt", tmp_path / "sparse.pt")
    assert "75.00% of 64 weights" in result.output, result.output
    written = torch.load(tmp_path / "sparse.pt", weights_only=True)
    assert torch.equal(written["head.weight"], shared), "it is an embedding, by its other name"
    result = _once(tmp_path / "dense.pt", tmp_path / "sparse.pt", "--layers", "head.weight")
    assert "75.00% of 96 weights" in result.output, result.output
    written = torch.load(tmp_path / "sparse.pt", weights_only=True)
    assert written["head.weight"].count_nonzero() == 24
    assert written["head.weight"].data_ptr() == written["transformer.wte.weight"].data_ptr()


def test_once_prunes_of_embeddings_what_the_pruner_prunes(tmp_path: Path) -> None:
    """A Pruner knows them by their modules: parameters and convolutions that are called so are none."""
    torch.manual_seed(0)
    model = nn.Module()
    model.pos_embedding = nn.Parameter(torch.randn(1, 5, 8))
    model.positional_embedding = nn.Parameter(torch.randn(5, 8))
    model.patch_embed = nn.Sequential(nn.Conv2d(3, 8, 2))
    model.embeddings = nn.ModuleDict({"words": nn.Embedding(6, 8), "places": nn.Embedding(6, 8)})
    model.head = nn.Linear(8, 4)
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    result = _once(tmp_path / "dense.pt", tmp_path / "sparse.pt", "--masks", str(tmp_path / "masks.pt"))
    assert result.exit_code == 0, result.output
    pruner = Pruner(model, None, OneShotSchedule(0.75))
    pruner.load_state_dict(torch.load(tmp_path / "masks.pt", weights_only=True))
    assert list(pruner.masks) == ["pos_embedding", "positional_embedding", "patch_embed.0.weight", "head.weight"]
    written = torch.load(tmp_path / "sparse.pt", weights_only=True)
    assert all(torch.equal(written[name], value) for name, value in model.state_dict().items())


def test_once_prunes_safetensors(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    model = _model()
    files.save_file(model.state_dict(), tmp_path / "dense.safetensors")
    result = _once(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors")
    assert result.exit_code == 0, result.output
    Pruner(model, None, OneShotSchedule(0.75)).prune(0.75)
    written = files.load_file(tmp_path / "sparse.safetensors")
    assert all(torch.equal(written[name], value) for name, value in model.state_dict().items())


def test_once_keeps_the_metadata_of_safetensors(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    metadata = {"format": "pt", "made_by": "someone"}
    files.save_file(_model().state_dict(), tmp_path / "dense.safetensors", metadata)
    assert _once(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors").exit_code == 0
    with importlib.import_module("safetensors").safe_open(tmp_path / "sparse.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_once_writes_tied_tensors_to_safetensors_once_and_reads_them_tied(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    model = nn.Module()
    model.wte, model.head, model.other = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False), nn.Linear(8, 8, bias=False)
    model.head.weight = model.wte.weight
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    once = tmp_path / "once.safetensors"
    assert "75.00% of 64 weights" in _once(tmp_path / "dense.pt", once, "--layers", "other*").output
    assert list(files.load_file(once)) == ["other.weight", "wte.weight"]
    twice = tmp_path / "twice.safetensors"
    assert "75.00% of 96 weights" in _once(once, twice, "--layers", "head.weight").output
    files.load_model(model, twice)
    assert model.wte.weight.count_nonzero() == 24
    assert model.head.weight is model.wte.weight
    assert "75.00% of 64 weights" in _once(twice, tmp_path / "again.pt").output, "head is still known as an embedding"
    written = torch.load(tmp_path / "again.pt", weights_only=True)
    assert written["head.weight"].data_ptr() == written["wte.weight"].data_ptr()


def test_once_writes_parts_of_one_storage_to_safetensors(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    whole = torch.randn(16, 8)
    torch.save({"whole": whole, "part": whole[:8], "across": whole[:, ::2]}, tmp_path / "dense.pt")
    result = _once(tmp_path / "dense.pt", tmp_path / "sparse.safetensors", "--layers", "whole")
    assert result.exit_code == 0, result.output
    written = files.load_file(tmp_path / "sparse.safetensors")
    assert written["whole"].count_nonzero() == 32
    assert torch.equal(written["part"], written["whole"][:8])
    assert torch.equal(written["across"], written["whole"][:, ::2])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_once_gives_expanded_tensors_memory_of_their_own(tmp_path: Path, suffix: str) -> None:
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    torch.manual_seed(0)
    tied = torch.randn(1, 8).expand(8, 8)
    last = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    torch.save({"a": tied, "b": tied, "c": nn.Parameter(torch.randn(8, 1)).expand(8, 8), "d": last}, tmp_path / "in.pt")
    result = _once(tmp_path / "in.pt", tmp_path / f"out.{suffix}", "--masks", str(tmp_path / "masks.pt"))
    assert "75.00% of 416 weights" in result.output, result.output
    assert _once(tmp_path / f"out.{suffix}", tmp_path / "again.pt").exit_code == 0
    written = torch.load(tmp_path / "again.pt", weights_only=True)
    assert sum(int(written[name].count_nonzero()) for name in "acd") == 104
    assert written["a"].data_ptr() == written["b"].data_ptr()
    assert suffix == "safetensors" or written["d"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.randn(8, 8).to(torch.float8_e4m3fn), "got one of float8_e4m3fn"),
        (torch.eye(8).to_sparse(), "got one of layout sparse_coo"),
        (torch.randn(8, 8, device="meta"), r"got one without data \(meta\)"),
    ],
)
def test_once_names_a_tensor_it_cannot_prune(tmp_path: Path, tensor: torch.Tensor, match: str) -> None:
    torch.save({"good": torch.randn(8, 8), "bad.weight": tensor}, tmp_path / "in.pt")
    result = _once(tmp_path / "in.pt", tmp_path / "out.pt")
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert re.search(f'"bad.weight" must be dense, and if floating one of float16, .*float64; {match}', text), text
    assert not (tmp_path / "out.pt").exists()


def test_once_shows_names_with_brackets_as_they_are(tmp_path: Path) -> None:
    torch.save({"a[b]": torch.randn(8, 8), "[/x]": torch.randn(8, 8), "[u]odd": torch.randn(3, 3)}, tmp_path / "in.pt")
    result = _once(tmp_path / "in.pt", tmp_path / "out[red].pt", "--structure", "1x4")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("a[b] ", "[/x] ", "[u]odd", "out[red].pt")), result.output


def test_once_says_what_safetensors_cannot_read_or_hold(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"abc")
    weights = {"weight": torch.randn(8, 8)}
    torch.save({**weights, "_extra_state": 1}, tmp_path / "extra.pt")
    torch.save({**weights, "phases": torch.ones(2, dtype=torch.complex128)}, tmp_path / "complex.pt")
    for name, words, match in (
        ("bad.safetensors", [], "must be a file of safetensors: .*header"),
        ("bad.safetensors", ["--key", "model"], "is one state_dict, which no --key names, got 'model'"),
        ("extra.pt", [], "holds nothing but tensors, and the state_dict has _extra_state beside them"),
        ("complex.pt", [], "safetensors holds no tensors of torch.complex128"),
    ):
        result = _once(tmp_path / name, tmp_path / "out.safetensors", *words)
        assert result.exit_code == 1
        assert re.search(match, " ".join(result.output.split())), result.output
        assert not (tmp_path / "out.safetensors").exists()


def test_once_says_what_to_do_about_a_file_it_cannot_use(tmp_path: Path) -> None:
    weights = _model().state_dict()
    torch.save(_model(), tmp_path / "module.pt")
    torch.save({"a": weights, "b": weights}, tmp_path / "two.pt")
    torch.save({"x": {"a": weights, "b": weights}}, tmp_path / "nested.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save(weights, tmp_path / "good.pt")
    for name, out, words, match in (
        ("module.pt", "out.pt", [], "more than tensors and plain containers"),
        ("two.pt", "out.pt", [], "it has state_dicts under a, b; name one by --key"),
        ("two.pt", "out.pt", ["--key", "c"], "one under c: it has state_dicts under a, b"),
        ("nested.pt", "out.pt", [], "it has state_dicts under x.a, x.b; name one by --key"),
        ("nested.pt", "out.pt", ["--key", "x"], "one under x: it has state_dicts under x.a, x.b"),
        ("none.pt", "out.pt", [], "it has none"),
        ("good.pt", "out.pt", ["--key", "model"], "it is one itself, which no --key names"),
        ("good.pt", "missing/out.pt", [], "there is no folder"),
        ("good.pt", "out.pt", ["--masks", str(tmp_path / "missing" / "masks.pt")], "there is no folder"),
    ):
        result = _once(tmp_path / name, tmp_path / out, *words)
        assert result.exit_code == 1, result.output
        assert match in " ".join(result.output.split())
        assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("out", "masks", "match"),
    [
        ("out.pt", "out.pt", "--masks must be a file of its own, got .* which is --out"),
        ("out.pt", "folder/../out.pt", "which is --out"),
        ("out.pt", "in.pt", "which is CHECKPOINT"),
        ("out.pt", "linked/in.pt", "which is CHECKPOINT"),
        ("out.pt", "link.pt", "which is CHECKPOINT"),
        ("in.pt", "in.pt", "which is CHECKPOINT"),
        ("out.pt", "folder", "--masks must be a file to write, got .* which is a folder"),
        ("folder", "masks.pt", "--out must be a file to write, got .* which is a folder"),
        ("", "masks.pt", "--out must be a file to write, got .* which is a folder"),
        ("pipe", "masks.pt", "which is no ordinary file"),
        ("masks.pt.partial", "masks.pt", "one is first written as the other"),
    ],
)
def test_once_refuses_to_write_over_anything_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, masks: str, match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    torch.save(_model().state_dict(), "in.pt")
    Path("linked").symlink_to(".")
    Path("link.pt").symlink_to("in.pt")
    os.mkfifo("pipe")
    before = {path.name: path.read_bytes() if path.name.endswith(".pt") else b"" for path in tmp_path.iterdir()}
    words = ["prune", "once", "in.pt", "--sparsity", "0.5", "--out", out, "--masks", masks]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1, result.output
    assert re.search(match, " ".join(result.output.split())), result.output
    after = {path.name: path.read_bytes() if path.name.endswith(".pt") else b"" for path in tmp_path.iterdir()}
    assert after == before


def test_once_keeps_a_checkpoint_that_has_the_name_of_an_unfinished_file(tmp_path: Path) -> None:
    torch.save(_model().state_dict(), tmp_path / "out.pt.partial")
    result = _once(tmp_path / "out.pt.partial", tmp_path / "out.pt")
    assert result.exit_code == 1
    assert "which is CHECKPOINT: rename that" in " ".join(result.output.split())
    assert (tmp_path / "out.pt.partial").exists()


def test_once_writes_both_files_or_none(tmp_path: Path) -> None:
    torch.save(_model().state_dict(), tmp_path / "in.pt")
    (tmp_path / "masks.pt.partial").mkdir()  # so that the masks cannot be written
    result = _once(tmp_path / "in.pt", tmp_path / "out.pt", "--masks", str(tmp_path / "masks.pt"))
    assert result.exit_code == 1
    assert "Is a directory" in result.output
    assert not (tmp_path / "out.pt").exists()


def test_once_may_write_the_pruned_checkpoint_over_the_dense_one(tmp_path: Path) -> None:
    torch.save(_model().state_dict(), tmp_path / "in.pt")
    assert _once(tmp_path / "in.pt", tmp_path / "in.pt", "--masks", str(tmp_path / "masks.pt")).exit_code == 0
    assert torch.load(tmp_path / "in.pt", weights_only=True)["0.weight"].count_nonzero() < 128
    assert "lgreco_pruner" in torch.load(tmp_path / "masks.pt", weights_only=True)


def test_once_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("nothing")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(_model().state_dict(), tmp_path / "good.pt")
    for name, sparsity, match in (
        ("absent.pt", "0.5", "there is no file"),
        ("text.pt", "0.5", "torch.save has written"),
        ("list.pt", "0.5", "must hold a state_dict"),
        ("good.pt", "1.5", "must be a sparsity from 0 to below 1, got 1.5"),
    ):
        words = ["prune", "once", str(tmp_path / name), "--sparsity", sparsity, "--out", str(tmp_path / "out.pt")]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 1
        assert match in " ".join(result.output.split())
        assert not (tmp_path / "out.pt").exists()


def test_gradual_prunes_a_checkpoint_while_it_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    config = tmp_path / "job.yaml"
    job: dict[str, Any] = {
        "model": {"width": 32, "layers": 1, "heads": 2, "context": 16},
        "data": {"source": demo_text.__file__},
        "train": {"steps": 12, "batch": 2, "lr_warmup_steps": 2, "eval_every": 6, "eval_windows": 4},
        "runs": {"plain": {"enabled": False}, "sparse": {"enabled": False}},
        "pruning": {"runs": ["sparse"], "schedule": {"final": 0.8, "begin": 2, "end": 10, "every": 3}},
        "out": str(tmp_path / "first"),
    }
    config.write_text(yaml.safe_dump(job))
    result = CliRunner().invoke(main, ["prune", "gradual", str(config)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    changes = read_changes(tmp_path / "first" / "sparse-seed0")
    assert [change.step for change in changes] == [2, 5, 8, 10]
    assert changes[-1].sparsity == pytest.approx(0.8, abs=1e-3)
    assert not (tmp_path / "first" / "plain-seed0" / CHANGES_NAME).exists()
    assert (tmp_path / "first" / "curves.png").stat().st_size > 10_000
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    start = tmp_path / "first" / "plain-seed0"
    words = ["prune", "gradual", str(config), "--start", str(start), "--set", f"out={tmp_path / 'second'}"]
    result = CliRunner().invoke(main, [*words, "--set", "train.lr=1.0e-6"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    begun = torch.load(next(start.glob("checkpoint-*")) / "shared.pt", weights_only=True)["model"]
    saved = torch.load(
        next((tmp_path / "second" / "sparse-seed0").glob("checkpoint-*")) / "shared.pt", weights_only=True
    )
    weight = saved["model"]["blocks.0.mlp_in.weight"]
    kept = weight != 0
    torch.testing.assert_close(weight[kept], begun["blocks.0.mlp_in.weight"][kept], rtol=0, atol=1e-4)
    assert saved["pruner"]["steps"] == 12


@pytest.mark.parametrize("start", ["2024", "a #b", "null", "[x", "k: v"])
def test_gradual_takes_start_as_a_path_and_not_as_yaml(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    taken: list[Path | None] = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("lgreco.demo.ranks.joined", lambda device: nullcontext(SimpleNamespace(leads=True)))
    monkeypatch.setattr("lgreco.demo.job.run_job", lambda settings, *rest: taken.append(settings.start))
    config = str(REPOSITORY / "configs" / "prune_quickstart.yaml")
    words = ["prune", "gradual", config, "--start", start, "--set", "start=other"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert taken == [Path(start)]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("kind=[1]", r"pruning\.schedule: schedule must be one of .*one_shot, got \[1\]"),
        ("kind={a: 1}", r"pruning\.schedule: schedule must be one of .*one_shot, got \{'a': 1\}"),
        ("power=x", r"pruning\.schedule: power must be a number above 0, got 'x'"),
        ("power=[2]", r"pruning\.schedule: power must be a number above 0, got \[2\]"),
        ("power=true", r"pruning\.schedule: power must be a number above 0, got True"),
    ],
)
def test_gradual_names_a_schedule_s_wrong_value(value: str, match: str) -> None:
    config = str(REPOSITORY / "configs" / "prune_quickstart.yaml")
    words = ["--set", "pruning.schedule.kind=polynomial", "--set", f"pruning.schedule.{value}"]
    result = CliRunner().invoke(main, ["prune", "gradual", config, *words])
    assert result.exit_code == 1
    assert re.search(match, " ".join(result.output.split())), result.output


def test_the_quickstart_of_pruning_can_be_read() -> None:
    settings = load_settings(REPOSITORY / "configs" / "prune_quickstart.yaml")
    assert settings.pruning is not None
    assert settings.pruning_of("dense") is None
    assert settings.pruning_of("pruned") is settings.pruning
    assert settings.pruning.make(_model(), None).schedule.final == 0.9


@pytest.mark.parametrize(
    ("assignment", "match"),
    [
        ("pruning.schedule.kind=cubik", "schedule must be one of"),
        ("pruning.schedule.final=1.5", "final must be a sparsity"),
        ("pruning.criterion=best", "criterion must be"),
        ("pruning.runs=[other]", r"pruning\.runs must name some of dense, pruned"),
        ("pruning.regrowth={part: 1}", "regrowth takes fraction and window, got part"),
        ("pruning.structur=rows", 'did you mean "structure"'),
    ],
)
def test_mistakes_in_the_pruning_block_are_named(assignment: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_settings(REPOSITORY / "configs" / "prune_quickstart.yaml", [assignment])


def test_yaml_reads_2_4_as_a_number_and_is_understood() -> None:
    assert (
        PruningSettings(schedule={"kind": "one_shot", "final": 0.5}, structure=yaml.safe_load("2:4")).structure == "2:4"
    )


def test_the_report_page_shows_sparsity_without_a_record_too(tmp_path: Path) -> None:
    write_changes(tmp_path, [Change(2, 0.3, {"a": 0.2, "b<": 0.4}), Change(6, 0.8, {"a": 0.7, "b<": 0.9})])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "80.00% after step 6" in page
    assert "b&lt;" in page
    assert "<svg" in page
    (tmp_path / CHANGES_NAME).write_text("{}")
    with pytest.raises(ValueError, match="no changes of masks"):
        write_report(tmp_path)
