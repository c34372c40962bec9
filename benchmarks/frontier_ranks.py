"""The processes of one job: W ranks over Gloo on this machine, watched until they have answered or died.

Ranks are forked from a server that has imported torch and lgreco, which takes a fraction of starting anew. A rank ends
when the process that asked for it is gone, however that went.
"""

from __future__ import annotations

import datetime
import functools
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from frontier_runs import Job
from frontier_training import train

from lgreco.demo.ranks import Ranks

# When one rank dies, its peers notice soon after; their word belongs to the story.
_LAST_WORDS_S = 2.0
_FIRST_TAIL_LINES, _PEER_TAIL_LINES = 4, 1
# What torch writes before a warning, which is never why a process died.
_WARNING = "[W"
_PRELOADED = ("torch", "torch.distributed.optim", "torch.nn.parallel", "torch._dynamo", "lgreco", "sklearn.datasets")


def run_job(job: Job, timeout_s: float, tell: Callable[[int, float], None]) -> dict[str, Any]:
    """Trains a job in processes of its own.

    Args:
        job: what to train.
        timeout_s: longest time for the whole job.
        tell: called now and then with steps done and the training loss.

    Returns:
        What rank 0 recorded with `died: None`, or `died` and its last words, and nothing else.
    """
    with tempfile.TemporaryDirectory(prefix="lgreco-frontier-") as name:
        folder = Path(name)
        ours, theirs = _context().Pipe(duplex=False)
        processes = [
            _context().Process(target=_serve, args=(rank, job, folder, timeout_s, theirs), daemon=True)
            for rank in range(job.world_size)
        ]
        try:
            for process in processes:
                process.start()
            theirs.close()  # so that the ranks' deaths end the pipe
            return _watch(processes, ours, folder, timeout_s, tell)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
            ours.close()


def log_path(folder: Path, rank: int) -> Path:
    """Where a rank writes what it says."""
    return folder / f"rank{rank}.log"


def last_words(folder: Path, what: str, first: int | None, world_size: int) -> str:
    """What became of a job, and the ends of what its ranks said, those of the rank that died first in front."""
    words = [what]
    for rank in sorted(range(world_size), key=lambda rank: rank != first):
        log = log_path(folder, rank)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        told = [line.strip() for line in lines if line.strip() and not line.startswith(_WARNING)]
        tail = " | ".join(told[-(_FIRST_TAIL_LINES if rank == first else _PEER_TAIL_LINES) :])
        # Where all ranks refuse the same config, once is enough.
        if tail and not any(word.endswith(tail) for word in words):
            words.append(f"rank {rank}: {tail}")
    return "; ".join(words)


def _watch(
    processes: Sequence[ForkServerProcess],
    pipe: Connection,
    folder: Path,
    timeout_s: float,
    tell: Callable[[int, float], None],
) -> dict[str, Any]:
    """Listens to rank 0 until all ranks have ended well, one has not, or time is up."""
    deadline = time.monotonic() + timeout_s
    alive: dict[Any, int] = {process.sentinel: rank for rank, process in enumerate(processes)}
    listening = [pipe]
    record: dict[str, Any] | None = None
    while alive:
        ready = wait([*alive, *listening], max(0.0, deadline - time.monotonic()))
        if not ready:
            ranks = ", ".join(str(rank) for rank in sorted(alive.values()))
            return {"died": last_words(folder, f"not done in {timeout_s:g} s: rank {ranks}", None, len(processes))}
        if pipe in ready:
            try:
                step, said = pipe.recv()
            except EOFError:
                listening.clear()
                continue
            if step is None:
                record = said
            else:
                tell(step, said)
            continue
        for rank in [alive.pop(sentinel) for sentinel in ready]:
            processes[rank].join()
            if processes[rank].exitcode:
                _wait_for_all(alive, _LAST_WORDS_S)
                return {"died": last_words(folder, _end_of(processes[rank], rank), rank, len(processes))}
    assert record is not None, "rank 0 answers before it ends well"
    return {"died": None, **record}


def _wait_for_all(alive: dict[Any, int], patience_s: float) -> None:
    """Waits until all of these processes have ended, but no longer than that."""
    deadline = time.monotonic() + patience_s
    while alive and time.monotonic() < deadline:
        for sentinel in wait(list(alive), max(0.0, deadline - time.monotonic())):
            del alive[sentinel]


def _end_of(process: ForkServerProcess, rank: int) -> str:
    code = process.exitcode
    assert code is not None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"rank {rank} {how}"


@functools.cache
def _context() -> ForkServerContext:
    # One thread in every pool, so that the server has a single thread and W ranks do not fight for the cores.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _serve(rank: int, job: Job, folder: Path, timeout_s: float, pipe: Connection) -> None:
    """One rank's whole life."""
    try:
        out = os.open(log_path(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except FileNotFoundError:
        return  # the job was interrupted while it started this rank
    os.dup2(out, 1)
    os.dup2(out, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # so that collecting does not touch, and thereby copy, what the server has imported
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=job.world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        ranks = Ranks(rank, job.world_size, torch.device("cpu"), "gloo", "asked for")
        tell: Callable[[int, float], None] = lambda step, loss: pipe.send((step, loss))  # noqa: E731
        record = train(job, ranks, tell if ranks.leads else lambda step, loss: None)
        if ranks.leads:
            pipe.send((None, record))
        ranks.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # Peers may be gone already: nothing collective, no destructors.
        os._exit(1)
    dist.destroy_process_group()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
