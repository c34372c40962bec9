"""Ranks as processes: runs a function on each of W ranks over Gloo on this machine and collects what they return.

Ranks are forked from a server that has imported torch and lgreco, so that a test gets fresh processes in a moment. The
server itself has one thread and touches no process group, which is what makes forking it safe.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 120.0
"""How long a rank may take to answer before the test fails; a hang is a failure, not a wait."""

LOSS_LIMIT_S = {signal.SIGKILL: 60.0, signal.SIGSTOP: 10.0}
"""Time limit of a group that loses a rank to a signal: a killed one is known at once, a stopped one by the limit."""


class RankFailed(AssertionError):
    """A rank raised or died; the message holds its traceback."""


def run(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 30.0) -> list[Any]:
    """Calls `function(rank, world_size, *args)` on every rank.

    Args:
        world_size: ranks, one process each, in one Gloo group.
        function: at the top level of a module, so that the processes find it.
        args: passed on.
        timeout_s: time limit of the process group.

    Returns:
        What the ranks returned, in rank order.

    Raises:
        RankFailed: with the traceback of every rank that raised, died or did not answer in time.
    """
    __tracebackhide__ = True  # the ranks' tracebacks say it
    with Ranks(world_size, function, *args, timeout_s=timeout_s) as ranks:
        answers = [ranks.answer(rank) for rank in range(world_size)]
    failures = [f"rank {rank}: {value}" for rank, (status, value) in enumerate(answers) if status == "error"]
    if failures:
        raise RankFailed("\n".join(failures))
    return [value for _, value in answers]


class Ranks:
    """W running ranks that a test may signal; on leaving the context they are gone, whatever state they are in.

    Where `store_on_rank_0` is true, rank 0's process serves the store, as in a job started without torchrun.
    """

    def __init__(
        self,
        world_size: int,
        function: Callable[..., Any],
        *args: Any,
        timeout_s: float = 30.0,
        store_on_rank_0: bool = False,
    ) -> None:
        context = _context()
        self._folder = tempfile.TemporaryDirectory()
        store = f"tcp://127.0.0.1:{_free_port()}" if store_on_rank_0 else f"file://{self._folder.name}/store"
        self._pipes = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_main,
                args=(rank, world_size, store, timeout_s, function, args, theirs),
                daemon=True,
            )
            process.start()
            theirs.close()  # so that a rank's death ends its pipe
            self._pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.join(0.0 if kind else 10.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Sends a signal to a rank's process."""
        os.kill(self.processes[rank].pid, number)

    def answer(self, rank: int, patience_s: float = PATIENCE_S) -> tuple[str, Any]:
        """Waits for the next thing that a rank has to say.

        Returns:
            ("ok", returned value), ("said", what `say` was given), or ("error", traceback or what became of it).
        """
        pipe = self._pipes[rank]
        if not pipe.poll(patience_s):
            return "error", f"no answer within {patience_s:g} s"
        try:
            answer: tuple[str, Any] = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            self.processes[rank].join(patience_s)
            return "error", f"died with exit code {self.processes[rank].exitcode}"
        return answer


_say: Callable[[Any], None] | None = None


def say(value: Any) -> None:
    """Called by a rank: tells the test something while it goes on."""
    assert _say is not None, "only a rank may say something"
    _say(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    # One thread in every pool, so that the server has a single thread and W ranks do not fight for two cores.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.distributed.optim", "torch.nn.parallel", "torch._dynamo", "lgreco", "pytest"]
    )
    return context


def _main(
    rank: int, world_size: int, store: str, timeout_s: float, function: Callable[..., Any], args: Any, pipe: Any
) -> None:
    global _say
    gc.freeze()  # so that collecting does not touch, and thereby copy, what the server has imported
    torch.set_num_threads(1)
    _say = functools.partial(_send, pipe, "said")
    dist.init_process_group(
        "gloo",
        init_method=store,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    dist.barrier()  # one that returns at once would take connections from those that are still making them
    try:
        result = function(rank, world_size, *args)
        gc.collect()
        _send(pipe, "ok", result)
    except BaseException:
        _send(pipe, "error", traceback.format_exc(limit=-8))  # the frames that matter
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _send(pipe: Any, status: str, value: Any) -> None:
    # Plain pickle: torch's own way of sending tensors needs the sender to stay alive.
    pipe.send_bytes(pickle.dumps((status, value)))


def eventually(condition: Callable[[], bool], patience_s: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
