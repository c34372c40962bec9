"""Gives each variant of the step benchmark its turn, on hosts in the lab, and survives what dies.

Every variant is alive on every host from the start and waits on a Unix socket, which namespaces of the network do not
cut; so blocks of steps can be interleaved freely, and a variant whose process dies is known by its closed socket.
A variant that waits is stopped by a signal: its Gloo threads wake up a hundred times a second each, which with nine
variants alive costs the one at work an eighth of its speed, and nobody trains with eight others beside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import fmean
from typing import Any

# The method without an exchange.
UNSYNCHRONISED = "compute_only"
SETTINGS_NAME, SOCKET_NAME = "settings.json", "turns"
_LAB_JSON, _LAB_LOG = "lab.json", "lab.log"
_LAB = Path(__file__).resolve().parent.parent / "launch" / "lab.py"
_HOST = Path(__file__).resolve().parent / "step_host.py"
_POLL_S = 0.5
# When one rank dies, its peers notice soon after; their word belongs to the story.
_LAST_WORDS_S = 1.0
_TAIL_LINES = 4
# What torch writes before a warning, which is never why a process died.
_WARNING = "[W"


@dataclass(frozen=True)
class Variant:
    """A method with its bucket cap in MiB (None where there are no buckets)."""

    method: str
    bucket_cap_mb: float | None

    @property
    def name(self) -> str:
        """For people and for names of files."""
        return self.method if self.bucket_cap_mb is None else f"{self.method}-{self.bucket_cap_mb:g}"


@dataclass(frozen=True)
class Block:
    """What one rank measured over a block of steps; the bytes and the processor time are per step.

    `loss` is the validation loss after the block, of this rank's share of the text, where one is trained on.
    """

    step_ms: list[float]
    cpu_ms: float
    link_bytes: float
    wire_bytes: float
    loss: float | None = None


@dataclass
class Measured:
    """All blocks of one variant.

    Attributes:
        variant: which.
        blocks: one for each round; in each, one for each rank.
        error: why it died; None while it lives.
    """

    variant: Variant
    blocks: list[list[Block]] = field(default_factory=list)
    error: str | None = None


def _joined(blocks: Sequence[Block]) -> Block:
    """One rank's blocks of equal length, one after the other, as one."""
    return Block(
        step_ms=[step_ms for block in blocks for step_ms in block.step_ms],
        cpu_ms=fmean(block.cpu_ms for block in blocks),
        link_bytes=fmean(block.link_bytes for block in blocks),
        wire_bytes=fmean(block.wire_bytes for block in blocks),
        loss=blocks[-1].loss,
    )


def log_path(folder: Path, variant: Variant, rank: int) -> Path:
    """Where a variant's process writes what it says."""
    return folder / f"{variant.name}.{rank}.log"


class Turns:
    """A lab with all variants alive on all its hosts."""

    def __init__(
        self,
        folder: Path,
        hosts: int,
        rate: str,
        variants: Sequence[Variant],
        job: Mapping[str, Any],
        timeout_s: float,
        ranks_per_host: int = 1,
    ) -> None:
        """Starts the lab, checks its links, waits until each variant is built.

        Args:
            folder: for the socket and the logs; private to us.
            hosts: how many.
            rate: of each link, as the lab takes it.
            variants: what to run; no two alike.
            job: what `step_methods.Job` takes; with a `text` among it, what `proof_methods.TextJob` takes.
            timeout_s: longest time for one block.
            ranks_per_host: processes of each variant on each host.

        Raises:
            RuntimeError: the lab could not start, or its links are off the rate asked for.
        """
        self.measured = {variant: Measured(variant) for variant in variants}
        self._folder, self._hosts, self._timeout_s = folder, hosts, timeout_s
        self._ranks = hosts * ranks_per_host
        self._connections: dict[Variant, dict[int, Connection]] = {variant: {} for variant in variants}
        self._pids: dict[Variant, list[int]] = {variant: [] for variant in variants}
        settings: dict[str, Any] = {"variants": [asdict(variant) for variant in variants], "job": dict(job)}
        settings["ranks_per_host"] = ranks_per_host
        (folder / SETTINGS_NAME).write_text(json.dumps(settings), encoding="utf-8")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / SOCKET_NAME))
            listener.listen(self._ranks * len(variants))
            self._start_lab(rate, int(job["threads"]))
            try:
                self._meet(listener, self._ranks * len(variants))
                for variant in variants:
                    self._collect(variant)
                for variant in variants:
                    self._signal(variant, signal.SIGSTOP)
            except BaseException:
                self.close()
                raise

    @property
    def link_check(self) -> dict[str, Any]:
        """What the lab measured on its links before the hosts started."""
        found: dict[str, Any] = json.loads((self._folder / _LAB_JSON).read_text(encoding="utf-8"))
        return found

    def run(self, variant: Variant, lead_in: int, steps: int) -> None:
        """Runs one block on all hosts at once and keeps what it measured; nothing where the variant is dead.

        Args:
            variant: whose turn it is.
            lead_in: steps before the measured ones.
            steps: measured; 0 keeps nothing.
        """
        # Hosts that exchange nothing would drift apart, and the slowest one's time of each step would be nobody's step.
        # Started together they show what a step would take if the exchange took no time.
        parts = [1] * steps if variant.method == UNSYNCHRONISED and steps else [steps]
        blocks = []
        for index, part in enumerate(parts):
            answers = self._ask(variant, 0 if index else lead_in, part)
            if answers is None:
                return
            blocks.append(answers)
        if steps:
            self.measured[variant].blocks.append([_joined(of_rank) for of_rank in zip(*blocks, strict=True)])

    def _ask(self, variant: Variant, lead_in: int, steps: int) -> list[Block] | None:
        if self.measured[variant].error is not None:
            return None
        self._signal(variant, signal.SIGCONT)
        for connection in self._connections[variant].values():
            try:
                connection.send((lead_in, steps))
            except OSError:
                # It died while it waited; collecting tells which and why.
                continue
        answers = self._collect(variant)
        if answers is not None:
            self._signal(variant, signal.SIGSTOP)
        return answers

    def close(self) -> None:
        """Ends the hosts and the lab."""
        for variant in self.measured:
            self._signal(variant, signal.SIGCONT)
        self._lab.terminate()
        self._lab.wait()

    def _signal(self, variant: Variant, number: signal.Signals) -> None:
        for pid in self._pids[variant]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _start_lab(self, rate: str, threads: int) -> None:
        # However this process ends, the lab does too: stopped variants could not see that their socket has closed.
        command = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            sys.executable,
            str(_LAB),
            "--hosts",
            str(self._hosts),
            "--rate",
            rate,
            "--check",
        ]
        command += ["--json", str(self._folder / _LAB_JSON), "--", sys.executable, str(_HOST), str(self._folder)]
        with (self._folder / _LAB_LOG).open("wb") as log:
            # Its own session: on Ctrl-C this process ends the lab, once.
            self._lab = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip

    def _meet(self, listener: socket.socket, expected: int) -> None:
        listener.settimeout(_POLL_S)
        for _ in range(expected):
            while True:
                try:
                    accepted, _address = listener.accept()
                    break
                except TimeoutError:
                    if self._lab.poll() is not None:
                        log = (self._folder / _LAB_LOG).read_text(encoding="utf-8", errors="replace").strip()
                        raise RuntimeError(f"the lab ended with status {self._lab.returncode}: {log}") from None
            # The pid is translated to our namespace, which the process itself could not tell us.
            credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            connection = Connection(accepted.detach())
            variant, rank = connection.recv()
            self._connections[variant][rank] = connection
            self._pids[variant].append(struct.unpack("3i", credentials)[0])

    def _collect(self, variant: Variant) -> list[Block] | None:
        """One answer from each rank, in rank order; None, and the variant is dead, where one does not come."""
        answers: dict[int, Block] = {}
        waiting = {connection: rank for rank, connection in self._connections[variant].items()}
        deadline = time.monotonic() + self._timeout_s
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                ranks = ", ".join(str(rank) for rank in sorted(waiting.values()))
                self._bury(variant, f"no answer within {self._timeout_s:g} s from rank {ranks}", set())
                return None
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                try:
                    answers[rank] = connection.recv()
                except (EOFError, OSError):
                    self._bury(variant, f"rank {rank} died", {rank})
                    return None
        return [answers[rank] for rank in sorted(answers)]

    def _bury(self, variant: Variant, what: str, dead: set[int]) -> None:
        time.sleep(_LAST_WORDS_S)
        words = [what]
        for rank in sorted(dead) or range(self._ranks):
            log = log_path(self._folder, variant, rank)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
            told = [line.strip() for line in lines if not line.startswith(_WARNING)]
            if told:
                words.append(f"rank {rank}: " + " | ".join(told[-_TAIL_LINES:]))
        self.measured[variant].error = "; ".join(words)
        self._signal(variant, signal.SIGKILL)
        for connection in self._connections[variant].values():
            connection.close()
