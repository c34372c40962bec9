"""The training text: which bytes are read, which validate, and windows that depend on their arguments alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lgreco.demo.text import Corpus, training_windows, validation_windows


def _write(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def _windows(corpus: Corpus, **changed: int) -> torch.Tensor:
    arguments = {"seed": 0, "rank": 0, "step": 0, "part": 0, "batch": 4, "context": 8, **changed}
    return training_windows(corpus, **arguments)[0]  # type: ignore[arg-type]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "own.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(1, 256, size=5000, dtype=np.uint8)))
    return Corpus.load(str(path))


def test_the_standard_library_is_there_and_the_same_each_time() -> None:
    corpus = Corpus.load("stdlib")
    assert len(corpus.training) > 2_000_000
    assert 0.02 < len(corpus.validation) / len(corpus.training) < 0.3
    assert corpus.digest == Corpus.load("stdlib").digest


def test_every_third_file_validates_in_the_order_of_names(tmp_path: Path) -> None:
    files = {"b": b"2", "a": b"1", "sub/d": b"4", "c": b"3", "sub/e": b"5", "sub/f": b"6"}
    corpus = Corpus.load(_write(tmp_path, files), validation_every=3)
    assert bytes(corpus.training) == b"1245"
    assert bytes(corpus.validation) == b"36"


def test_of_few_files_the_end_of_each_validates(tmp_path: Path) -> None:
    corpus = Corpus.load(_write(tmp_path, {"a": b"0123456789", "b": b"abcdefghij"}), validation_every=5)
    assert bytes(corpus.training) == b"01234567abcdefgh"
    assert bytes(corpus.validation) == b"89ij"


def test_binary_hidden_and_empty_files_are_left_out(tmp_path: Path) -> None:
    files = {"a.txt": b"0123456789", "image": b"\x00\x01", ".hidden": b"x", ".git/config": b"x", "empty": b""}
    corpus = Corpus.load(_write(tmp_path, files), validation_every=2)
    assert bytes(corpus.training) + bytes(corpus.validation) == b"0123456789"


def test_unusable_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be 'stdlib', a text file or a folder, got '/nowhere'"):
        Corpus.load("/nowhere")
    with pytest.raises(ValueError, match=r"must hold text \(bytes other than 0\), got .*: 1 files"):
        Corpus.load(_write(tmp_path, {"zeros": b"\x00"}))
    with pytest.raises(ValueError, match=r"holds 2 MB, data\.max_mb allows 1"):
        Corpus.load(_write(tmp_path, {"large": b"x" * 2_000_000}), max_mb=1.0)


def test_a_text_shorter_than_a_window_is_refused(corpus: Corpus) -> None:
    corpus.require_windows_of(500)
    with pytest.raises(ValueError, match=r"validation text must have at least 501 bytes .*, got 500"):
        corpus.require_windows_of(501)


def test_training_windows_depend_on_their_arguments_alone(corpus: Corpus) -> None:
    first = _windows(corpus)
    for changed in ({"seed": 1}, {"rank": 1}, {"step": 1}, {"part": 1}):
        assert not torch.equal(first, _windows(corpus, **changed)), changed
    assert torch.equal(first, _windows(corpus))


def test_targets_follow_their_tokens(corpus: Corpus) -> None:
    tokens, targets = training_windows(corpus, seed=0, rank=0, step=0, part=0, batch=3, context=8)
    text = bytes(corpus.training)
    for row, following in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert row[1:] == following[:-1]
        assert bytes([*row, following[-1]]) in text


def test_validation_windows_are_shared_out_between_ranks(corpus: Corpus) -> None:
    def rows(rank: int, world_size: int) -> set[tuple[int, ...]]:
        parts = validation_windows(corpus, windows=10, batch=4, context=8, rank=rank, world_size=world_size)
        return {tuple(row) for tokens, _ in parts for row in tokens.tolist()}

    together = [rows(rank, 3) for rank in range(3)]
    assert [len(part) for part in together] == [4, 3, 3]
    assert set.union(*together) == rows(0, 1)


def test_a_window_as_long_as_the_text_is_the_text(tmp_path: Path) -> None:
    corpus = Corpus.load(_write(tmp_path, {"a": b"0123456789"}), validation_every=2)
    tokens, targets = training_windows(corpus, seed=0, rank=0, step=0, part=0, batch=2, context=4)
    assert tokens.tolist() == [list(b"0123")] * 2
    assert targets.tolist() == [list(b"1234")] * 2
    assert [t.tolist() for t, _ in validation_windows(corpus, windows=9, batch=4, context=4)] == [[list(b"5678")]]
