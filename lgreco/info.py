"""What this lgreco was built with, what is missing and why; and whether it fits the torch that it meets."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from rich.text import Text

_FOLDER = Path(__file__).parent
_BUILD_RECORD = _FOLDER / "_build.json"
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


@dataclass(frozen=True)
class Part:
    """One line of the report: a part, whether it can be used here, and what there is to say of it."""

    name: str
    usable: bool
    detail: str


def check_torch() -> None:
    """Refuses to go on without the native module, or under a torch with another C++ interface than it was built for.

    That interface changes with torch's minor version and, where CUDA is built in, with CUDA's major version. A build
    without a record (plain `cmake --install`) cannot be checked here.

    Raises:
        ImportError: one sentence with what is missing, or both versions, and the way out.
    """
    if find_spec("lgreco._C") is None:
        raise ImportError(_no_native_module())
    built = build_record()
    if not built:
        return
    built_torch, built_cuda = built["torch"], built["torch_cuda"] if built["cuda"] else None
    same_torch = built_torch.split(".")[:2] == torch.__version__.split(".")[:2]
    same_cuda = built_cuda is None or _major(built_cuda) == _major(torch.version.cuda)
    if not (same_torch and same_cuda):
        raise ImportError(
            f"lgreco was built with {_torch_text(built_torch, built['torch_cuda'])} but runs under "
            f"{_torch_text(torch.__version__, torch.version.cuda)}; install that torch, or rebuild lgreco in its "
            f"repository with: {_REBUILD}"
        )


def _no_native_module() -> str:
    if (_FOLDER.parent / "csrc").is_dir():  # Python prefers the folder it is started in to what is installed
        return (
            f"{_FOLDER} is lgreco's source, without a native module for this Python: if lgreco is installed, start "
            f"from another folder; else install it from here with: {_REBUILD}"
        )
    return f"lgreco has no native module for this Python; in its repository, build it with: {_REBUILD}"


def build_record() -> dict[str, Any]:
    """What setup.py noted beside the native module (version, torch, torch_cuda, cuda, commit); empty without it."""
    if not _BUILD_RECORD.is_file():
        return {}
    record: dict[str, Any] = json.loads(_BUILD_RECORD.read_text(encoding="utf-8"))
    return record


def collect() -> list[Part]:
    """Looks at the native module, torch and the devices; never raises for what is missing, but says why it is."""
    record = build_record()
    version = f"{record['version']}, commit {record['commit']}" if record else "no record of a build by setup.py"
    native, why_not = _native()
    parts = [Part("lgreco", native is not None, version if native is not None else why_not)]
    built_torch = native["torch"] if native else record.get("torch")
    built_with = f", lgreco was built with {built_torch}" if built_torch else ""
    parts.append(Part("torch", True, torch.__version__ + built_with))
    if native is not None:
        parts.append(Part("instruction set", True, f"{native['isa']} in use"))
        parts.append(Part("compiler", True, native["compiler"]))
    parts += [_cuda(native), _nccl(native), _gloo(), _mpi(native)]
    return parts


def to_table(parts: list[Part]) -> Table:
    """The report for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for part in parts:
        mark = Text("yes", "green") if part.usable else Text("no", "yellow")
        table.add_row(Text(part.name, "bold"), mark, Text(part.detail))
    return table


def to_json(parts: list[Part]) -> str:
    """The report for programs: part -> {usable, detail}."""
    return json.dumps({part.name: {k: v for k, v in asdict(part).items() if k != "name"} for part in parts}, indent=2)


def _native() -> tuple[dict[str, Any] | None, str]:
    """What the native module says of itself, or None and the reason."""
    try:
        return importlib.import_module("lgreco._C").build_info(), ""
    except ImportError as error:
        return None, f"the native module cannot be loaded ({error}); build it with: {_REBUILD}"


def _cuda(native: dict[str, Any] | None) -> Part:
    if native is None:
        return Part("CUDA", False, "no native module")
    if not native["cuda"]:
        return Part("CUDA", False, f"not built in: {native['cuda_reason']}")
    built = f"built in for sm_{native['cuda_archs'].replace(',', ', sm_')}"
    if torch.version.cuda is None:
        return Part("CUDA", False, f"{built}, but torch {torch.__version__} has no CUDA")
    if not torch.cuda.is_available():
        return Part("CUDA", False, f"{built}, but torch finds no device")
    devices = [
        f"{torch.cuda.get_device_name(index)} (sm_{''.join(map(str, torch.cuda.get_device_capability(index)))})"
        for index in range(torch.cuda.device_count())
    ]
    return Part("CUDA", True, f"{built}; {', '.join(devices)}")


def _nccl(native: dict[str, Any] | None) -> Part:
    if not (dist.is_available() and dist.is_nccl_available()):
        return Part("NCCL", False, f"torch {torch.__version__} has none")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    if native is None:
        return Part("NCCL", False, f"torch brings {version}, but there is no native module")
    if not native["nccl"]:
        return Part("NCCL", False, f"torch brings {version}, but lgreco was built without its CUDA exchange")
    if not torch.cuda.is_available():
        return Part("NCCL", False, f"torch brings {version}, but finds no device")
    return Part("NCCL", True, f"{version}, by torch")


def _gloo() -> Part:
    usable = dist.is_available() and dist.is_gloo_available()
    return Part("Gloo", usable, "by torch" if usable else f"torch {torch.__version__} has none")


def _mpi(native: dict[str, Any] | None) -> Part:
    if native is None:
        return Part("MPI", False, "no native module")
    return Part("MPI", native["mpi"], "built in" if native["mpi"] else f"not built in: {native['mpi_reason']}")


def _major(version: str | None) -> str | None:
    return version.split(".")[0] if version else None


def _torch_text(version: str, cuda: str | None) -> str:
    return f"torch {version} ({f'CUDA {cuda}' if cuda else 'no CUDA'})"
