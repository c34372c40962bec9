"""Calibrations: what they say of a layer, and when one that was kept still counts."""

from __future__ import annotations

import json
import pwd
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibrations import calibration

from lgreco.calibration import Calibration
from lgreco.calibration_cache import cache_folder, load, save
from lgreco.choice import Dense, LowRank, Quantize, RandomK
from lgreco.layer import LayerInfo
from lgreco.plan import wire_bytes

KEY = {"hosts": ["a", "b"]}
LAYER = LayerInfo("weight", (64, 1024), "fp32")


def test_a_layer_takes_its_wire_and_what_the_codec_adds() -> None:
    made = calibration(bytes_per_s=1e6, codec_s=1e-9)
    assert made.layer_s(LAYER, Dense()) == pytest.approx(4 * LAYER.numel / 1e6)  # two ranks: one copy each
    expected = wire_bytes(LAYER, Quantize(), 2) / 1e6 + 1e-9 * LAYER.numel
    assert made.layer_s(LAYER, Quantize()) == pytest.approx(expected)


def test_low_rank_is_on_the_line_through_the_measured_ranks_and_never_below_zero() -> None:
    made = replace(calibration(), codec_s=(("lowrank(rank=4)", 1e-9), ("lowrank(rank=32)", 8e-9)))
    assert made.codec_element_s(LowRank(rank=18)) == pytest.approx(4.5e-9)
    steep = replace(made, codec_s=(("lowrank(rank=4)", 0.0), ("lowrank(rank=32)", 28e-9)))
    assert steep.codec_element_s(LowRank(rank=1)) == 0.0


def test_a_codec_that_was_not_measured_adds_nothing() -> None:
    assert calibration(codec_s=1e-9).codec_element_s(RandomK()) == 0.0


def test_a_faster_link_moves_bytes_alone() -> None:
    made = calibration(bytes_per_s=1e6, latency_s=1e-3, codec_s=1e-9)
    fast = made.at_rate(10)
    assert (fast.exchange.bytes_per_s, fast.exchange.latency_s) == (1e7, 1e-3)
    assert fast.codec_s == made.codec_s


def test_a_kept_calibration_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    save(path, KEY, calibration(), now_s=lambda: 1000.0)
    assert load(path, KEY, now_s=lambda: 2000.0) == calibration()
    assert Calibration.from_dict(calibration().to_dict()).fingerprint() == calibration().fingerprint()


@pytest.mark.parametrize(
    ("key", "now_s"), [({"hosts": ["a", "c"]}, 2000.0), (KEY, 1000.0 + 25 * 3600), (KEY, 500.0)], ids=str
)
def test_of_other_hosts_or_too_old_or_from_the_future_it_does_not_count(
    tmp_path: Path, key: dict[str, list[str]], now_s: float
) -> None:
    path = tmp_path / "file.json"
    save(path, KEY, calibration(), now_s=lambda: 1000.0)
    assert load(path, key, now_s=lambda: now_s) is None


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[" * 100_000, "\xff", '{"key": {"hosts": ["a", "b"]}, "measured_at_s": 1, "calibration": []}'],
    ids=["empty", "no keys", "deep", "no text", "no calibration"],
)
def test_a_damaged_file_does_not_count_and_is_named(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file.json"
    path.write_text(content, encoding="latin-1")
    assert load(path, KEY, now_s=lambda: 2.0) is None
    assert f"{path} cannot be used" in caplog.text


def test_a_file_that_is_cut_anywhere_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    save(path, KEY, calibration(), now_s=lambda: 1.0)
    whole = path.read_bytes().rstrip()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert load(path, KEY, now_s=lambda: 2.0) is None


@pytest.mark.parametrize("number", [None, "1", True, -1.0, float("nan"), float("inf"), [1.0]], ids=str)
@pytest.mark.parametrize("place", ["spread", "world_size", "exchange", "codec_s"])
def test_a_number_that_cannot_have_been_measured_is_refused(place: str, number: Any) -> None:
    fields = calibration().to_dict()
    if isinstance(fields[place], dict):
        fields[place] = {**fields[place], next(iter(fields[place])): number}
    else:
        fields[place] = number
    with pytest.raises(ValueError, match=r"a damaged calibration: .* must be a number from 0, rates above 0, got "):
        Calibration.from_dict(fields)


def test_no_rate_is_zero() -> None:
    fields = calibration().to_dict()
    fields["allreduce"] = {**fields["allreduce"], "bytes_per_s": 0.0}
    with pytest.raises(ValueError, match=r"allreduce\.bytes_per_s must be"):
        Calibration.from_dict(fields)


def test_a_calibration_of_another_version_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    save(path, KEY, calibration(), now_s=lambda: 1000.0)
    content = json.loads(path.read_text())
    content["calibration"]["what"] = 1
    path.write_text(json.dumps(content))
    assert load(path, KEY, now_s=lambda: 2000.0) is None


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file")
    save(tmp_path / "taken" / "file.json", KEY, calibration())
    assert "could not be kept" in caplog.text


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lgreco"


def test_a_user_without_a_home_has_a_cache_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder().parent == Path(tempfile.gettempdir())
