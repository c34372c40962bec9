"""Calibrations kept from run to run: one file for each set of hosts, in the user's cache folder.

A calibration holds for the hosts, ranks, backend, device and versions that it was measured with, for a day at
most, and only while an allreduce of 1 MiB, tried at every start, takes about what it took: links of clouds change.
Rank 0 reads and writes; all ranks take what rank 0 has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lgreco.calibration import Calibration, measure, still_holds
from lgreco.info import build_record

_FORMAT_VERSION = 1
_OLDEST_S = 24 * 3600.0
_log = logging.getLogger("lgreco")


@dataclass(frozen=True)
class Kept:
    """A calibration, where it lies on rank 0, and whether it was measured just now."""

    calibration: Calibration
    path: Path
    fresh: bool


def calibrate(
    group: dist.ProcessGroup, cpu_group: dist.ProcessGroup, device: torch.device, *, refresh: bool = False
) -> Kept:
    """The calibration of these hosts, from the cache where it is valid, else measured and kept; collective.

    Args:
        group: DDP's.
        cpu_group: of the same ranks, over the CPU, unused by others meanwhile.
        device: of the gradients.
        refresh: measure in any case.
    """
    key = _agreed_key(group, cpu_group, device)
    path = cache_folder() / f"calibration-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    leads = dist.get_rank(cpu_group) == 0
    found = [load(path, key) if leads and not refresh else None]
    dist.broadcast_object_list(found, group=cpu_group, group_src=0)
    if found[0] is not None and still_holds(found[0], group, cpu_group, device):
        return Kept(found[0], path, fresh=False)
    calibration = measure(group, cpu_group, device)
    if leads:
        save(path, key, calibration)
    return Kept(calibration, path, fresh=True)


def cache_folder() -> Path:
    """Of this user: $XDG_CACHE_HOME/lgreco, by default ~/.cache/lgreco; of one without a home a temporary folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lgreco"
    except RuntimeError:  # a container may run as a user whom the system does not know
        return Path(tempfile.gettempdir()) / f"lgreco-{os.getuid()}"


def load(path: Path, key: dict[str, Any], now_s: Callable[[], float] = time.time) -> Calibration | None:
    """What the file holds, None where it is missing, too old or of something else, or, with a log line, damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        age_s = now_s() - float(content["measured_at_s"])
        if content["key"] != key or not 0 <= age_s <= _OLDEST_S:
            return None
        return Calibration.from_dict(content["calibration"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _log.warning("the calibration kept in %s cannot be used (%r): it is measured again", path, error)
        return None


def save(path: Path, key: dict[str, Any], calibration: Calibration, now_s: Callable[[], float] = time.time) -> None:
    """Writes the file whole or not at all; a folder that cannot be written costs a log line, not the run."""
    content = {"key": key, "measured_at_s": now_s(), "calibration": calibration.to_dict()}
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        _log.warning("the calibration could not be kept in %s (%s): the next run measures again", path, error)
        with contextlib.suppress(OSError):
            fresh.unlink()


def _agreed_key(group: dist.ProcessGroup, cpu_group: dist.ProcessGroup, device: torch.device) -> dict[str, Any]:
    """What a calibration is of: the same on every rank."""
    hosts: list[Any] = [None] * dist.get_world_size(cpu_group)
    dist.all_gather_object(hosts, [socket.gethostname(), os.environ.get("MASTER_ADDR", "")], group=cpu_group)
    build = build_record()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "format": _FORMAT_VERSION,
        "hosts": hosts,
        "backend": dist.get_backend(group),
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lgreco": build["version"] if build else "",
    }
