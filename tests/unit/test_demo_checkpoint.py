"""Checkpoints: whole or not there, newest found, damage named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lgreco.demo import checkpoint
from lgreco.demo.ranks import Ranks


@pytest.fixture
def alone() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"), "gloo", "a test")
    dist.destroy_process_group()


def _save(folder: Path, step: int, ranks: Ranks) -> Path:
    checkpoint.save(folder, step, {"step": step}, {"weights": torch.full((9,), float(step))}, ranks)
    saved = checkpoint.latest(folder)
    assert saved is not None
    return saved


def test_what_is_saved_is_loaded_and_only_the_newest_is_kept(tmp_path: Path, alone: Ranks) -> None:
    assert checkpoint.latest(tmp_path) is None
    _save(tmp_path, 90, alone)
    saved = _save(tmp_path, 100, alone)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000100"]
    shared, (own,) = checkpoint.load(saved)
    assert shared == {"step": 100, "world_size": 1}
    assert torch.equal(own["weights"], torch.full((9,), 100.0))


def test_a_step_saved_again_is_replaced(tmp_path: Path, alone: Ranks) -> None:
    assert _save(tmp_path, 5, alone) == _save(tmp_path, 5, alone)


def test_an_interrupted_save_keeps_the_one_before(
    tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _save(tmp_path, 1, alone)

    def half(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, 2, alone)
    assert list(tmp_path.iterdir()) == [before]
    assert checkpoint.load(before)[0]["step"] == 1


def test_a_folder_left_by_a_killed_job_is_no_checkpoint(tmp_path: Path, alone: Ranks) -> None:
    (tmp_path / "checkpoint-00000007.partial").mkdir()
    assert checkpoint.latest(tmp_path) is None
    saved = _save(tmp_path, 8, alone)
    assert list(tmp_path.iterdir()) == [saved]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
@pytest.mark.parametrize("name", ["shared.pt", "rank0.pt"])
def test_damage_is_named(tmp_path: Path, alone: Ranks, damage: str, name: str) -> None:
    file = _save(tmp_path, 1, alone) / name
    content = bytearray(file.read_bytes())
    middle = content.find(b"\x80\x3f" if name == "rank0.pt" else b"step")
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[middle] ^= 0xFF
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    with pytest.raises(ValueError, match=rf"{name} must be whole, it cannot be read"):
        checkpoint.load(file.parent)
