"""The command-line arguments of a small GPT that is trained in the lab, and the job that hosts make of them."""

from __future__ import annotations

import argparse
from typing import Any

_NAMES = ("width", "layers", "heads", "context", "batch", "threads", "plan", "timeout_s")


def add_arguments(parser: argparse.ArgumentParser, *, width: int, layers: int, heads: int) -> None:
    """What `job_of` takes, but for `plan`, whose meaning each benchmark says itself; the size is the default one."""
    add = parser.add_argument
    add("--threads", type=int, default=1, help="of each host's process (default: %(default)s)")
    add("--width", type=int, default=width, help="of the GPT (default: %(default)s)")
    add("--layers", type=int, default=layers, help="of the GPT (default: %(default)s)")
    add("--heads", type=int, default=heads, help="of the GPT (default: %(default)s)")
    add("--context", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    add("--batch", type=int, default=4, help="sequences per pass and host (default: %(default)s)")
    add("--timeout-s", type=float, default=300.0, help="longest time for a block (default: %(default)s)")


def job_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `step_methods.Job` takes."""
    return {name: getattr(args, name) for name in _NAMES}
