"""Ranks as processes: runs a function on each of W ranks over Gloo on this machine and collects what they return."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_S = 90


class RankFailed(AssertionError):
    """A rank raised; the message holds its traceback."""


def _main(rank: int, world_size: int, store: str, timeout_s: float, function: Callable[..., Any], args: Any, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    try:
        pipe.send(("ok", function(rank, world_size, *args)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def run(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 30.0) -> list[Any]:
    """Calls `function(rank, world_size, *args)` on every rank; the results in rank order.

    Args:
        function: at the top level of a module, so that it can be found by the spawned processes.
        timeout_s: of the process group.

    Raises:
        RankFailed: with the traceback of the first rank that raised or did not answer in time.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe() for _ in range(world_size)]
        processes = [
            context.Process(
                target=_main,
                args=(rank, world_size, str(Path(folder) / "store"), timeout_s, function, args, ends[rank][1]),
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            answers = [_answer(ends[rank][0], processes[rank], rank) for rank in range(world_size)]
        finally:
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
                    process.join()
    for rank, (status, value) in enumerate(answers):
        if status == "error":
            raise RankFailed(f"rank {rank}:\n{value}")
    return [value for _, value in answers]


def _answer(pipe: Any, process: Any, rank: int) -> tuple[str, Any]:
    waited = 0.0
    while not pipe.poll(0.2):
        waited += 0.2
        if not process.is_alive() and not pipe.poll(0):
            return "error", f"rank {rank} died with exit code {process.exitcode}"
        if waited > TIMEOUT_S:
            return "error", f"rank {rank} did not answer within {TIMEOUT_S} s"
    answer: tuple[str, Any] = pipe.recv()
    return answer
