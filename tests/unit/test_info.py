"""The report on what is built in, and the check of the torch at import."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lgreco import info
from lgreco.__main__ import main

NATIVE = {
    "cuda": True,
    "cuda_reason": "",
    "cuda_archs": "80,90",
    "nccl": True,
    "mpi": False,
    "mpi_reason": "not part of this version",
    "torch": "2.15.0+cu132",
    "torch_cuda": "13.2",
    "compiler": "g++ 12.2.0",
    "isa": "avx2",
}


def put_native(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Puts a native module in place that says of itself what the test wants."""
    monkeypatch.setitem(sys.modules, "lgreco._C", SimpleNamespace(build_info=lambda: {**NATIVE, **changes}))


def put_record(monkeypatch: pytest.MonkeyPatch, folder: Path, **record: Any) -> None:
    """Puts setup.py's record in place: a build of lgreco 0.1.0."""
    path = folder / "_build.json"
    path.write_text(json.dumps({"version": "0.1.0", "commit": "abc+", **record}))
    monkeypatch.setattr(info, "_BUILD_RECORD", path)


def put_torch(monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def details() -> dict[str, str]:
    return {part.name: f"{'yes' if part.usable else 'no'}: {part.detail}" for part in info.collect()}


@pytest.mark.parametrize(
    ("built", "built_cuda", "with_cuda", "running", "running_cuda"),
    [
        ("2.15.0+cu132", "13.2", True, "2.15.0+cu132", "13.2"),
        ("2.15.0+cu132", "13.2", True, "2.15.1+cu130", "13.0"),
        ("2.15.0+cu132", "13.2", False, "2.15.0+cpu", None),
        ("2.15.0+cpu", None, False, "2.15.0", "12.8"),
    ],
)
def test_a_torch_with_the_same_interface_passes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    built: str,
    built_cuda: str | None,
    with_cuda: bool,
    running: str,
    running_cuda: str | None,
) -> None:
    put_record(monkeypatch, tmp_path, torch=built, torch_cuda=built_cuda, cuda=with_cuda)
    put_torch(monkeypatch, running, running_cuda)
    info.check_torch()


@pytest.mark.parametrize(
    ("with_cuda", "running", "running_cuda", "message"),
    [
        (
            True,
            "2.11.0+cu130",
            "13.0",
            r"^lgreco was built with torch 2\.15\.0\+cu132 \(CUDA 13\.2\) but runs under torch 2\.11\.0\+cu130 "
            r"\(CUDA 13\.0\); install that torch, or rebuild lgreco in its repository with: pip install "
            r"--no-build-isolation --force-reinstall --no-deps \.$",
        ),
        (False, "2.1.5", None, r"but runs under torch 2\.1\.5 \(no CUDA\); install that torch"),
        (False, "3.15.0", None, r"but runs under torch 3\.15\.0"),
        (True, "2.15.0+cu128", "12.8", r"but runs under torch 2\.15\.0\+cu128 \(CUDA 12\.8\)"),
        (True, "2.15.0+cpu", None, r"but runs under torch 2\.15\.0\+cpu \(no CUDA\)"),
    ],
)
def test_another_torch_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    with_cuda: bool,
    running: str,
    running_cuda: str | None,
    message: str,
) -> None:
    put_record(monkeypatch, tmp_path, torch="2.15.0+cu132", torch_cuda="13.2", cuda=with_cuda)
    put_torch(monkeypatch, running, running_cuda)
    with pytest.raises(ImportError, match=message):
        info.check_torch()


def test_without_a_native_module_the_import_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Inside the repository it may be built but hidden by the source beside it."""
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    monkeypatch.setattr(info, "_FOLDER", tmp_path / "lgreco")
    with pytest.raises(ImportError, match=r"^lgreco has no native module for this Python; .* pip install --no-build"):
        info.check_torch()
    (tmp_path / "csrc").mkdir()
    with pytest.raises(ImportError, match=r"lgreco is lgreco's source, .* start from another folder; else install it"):
        info.check_torch()


def test_without_a_record_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(info, "_BUILD_RECORD", tmp_path / "_build.json")
    info.check_torch()
    assert info.build_record() == {}


def test_a_build_with_cuda_and_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_native(monkeypatch)
    put_record(monkeypatch, tmp_path, torch="2.15.0+cu132", torch_cuda="13.2", cuda=True)
    put_torch(monkeypatch, "2.15.0+cu132", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 30, 7))
    monkeypatch.setattr(info.dist, "is_nccl_available", lambda: True)
    assert details() == {
        "lgreco": "yes: 0.1.0, commit abc+",
        "torch": "yes: 2.15.0+cu132, lgreco was built with 2.15.0+cu132",
        "instruction set": "yes: avx2 in use",
        "compiler": "yes: g++ 12.2.0",
        "CUDA": "yes: built in for sm_80, sm_90; H200 (sm_90)",
        "NCCL": "yes: 2.30.7, by torch",
        "Gloo": "yes: by torch",
        "MPI": "no: not built in: not part of this version",
    }


@pytest.mark.parametrize(
    ("native", "torch_cuda", "detail"),
    [
        ({"cuda": False, "cuda_reason": "no nvcc found"}, "13.2", "no: not built in: no nvcc found"),
        ({}, None, "no: built in for sm_80, sm_90, but torch 2.15.0 has no CUDA"),
        ({}, "13.2", "no: built in for sm_80, sm_90, but torch finds no device"),
    ],
)
def test_why_cuda_is_missing(
    monkeypatch: pytest.MonkeyPatch, native: dict[str, Any], torch_cuda: str | None, detail: str
) -> None:
    put_native(monkeypatch, **native)
    put_torch(monkeypatch, "2.15.0", torch_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert details()["CUDA"] == detail


@pytest.mark.parametrize(
    ("built", "available", "detail"),
    [
        (True, False, "no: torch 2.15.0 has none"),
        (False, True, "no: torch brings 2.30.7, but lgreco was built without its CUDA exchange"),
        (True, True, "no: torch brings 2.30.7, but finds no device"),
    ],
)
def test_why_nccl_is_missing(monkeypatch: pytest.MonkeyPatch, built: bool, available: bool, detail: str) -> None:
    put_native(monkeypatch, nccl=built)
    put_torch(monkeypatch, "2.15.0", "13.2")
    monkeypatch.setattr(info.dist, "is_nccl_available", lambda: available)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 30, 7))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert details()["NCCL"] == detail


def test_without_a_native_module_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lgreco._C", None)
    found = details()
    assert found["lgreco"].startswith("no: the native module cannot be loaded (")
    assert found["lgreco"].endswith("build it with: pip install --no-build-isolation --force-reinstall --no-deps .")
    assert found["CUDA"] == "no: no native module"
    assert found["MPI"] == "no: no native module"


def test_the_command_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    put_native(monkeypatch, cuda=False, cuda_reason="[switched off]")
    table = CliRunner().invoke(main, ["info"])
    assert table.exit_code == 0
    assert "not built in: [switched off]" in table.output
    report = json.loads(CliRunner().invoke(main, ["info", "--json"]).output)
    assert report["CUDA"] == {"usable": False, "detail": "not built in: [switched off]"}
    assert report["instruction set"] == {"usable": True, "detail": "avx2 in use"}


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["inof"])
    assert result.exit_code == 2
    assert "No such command" in result.output
