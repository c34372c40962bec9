"""The lab's inside: runs one process on each host, shows their output, and ends them all together."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, BinaryIO

from lab_network import Lab, Network
from lab_stream import check_links

_PORT = 29500
_GRACE_S = 5.0
_DRAIN_S = 1.0
_REMEMBERED_LINES = 30


@dataclass(frozen=True)
class Inside:
    """What to do inside the namespaces.

    Attributes:
        lab: what to simulate.
        command: run once on each host; empty for none.
        output: `all` or `rank0`.
        check: measure the links first.
        json_path: where the check writes its figures, if anywhere.
    """

    lab: Lab
    command: Sequence[str]
    output: str
    check: bool
    json_path: str | None

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Inside:
        """What `to_json` wrote."""
        fields = json.loads(text)
        changes = tuple((seconds, rate) for seconds, rate in fields["lab"].pop("changes"))
        return cls(**{**fields, "lab": Lab(**fields["lab"], changes=changes)})


class Ranks:
    """One process a host, their output, and how they end: all of them as soon as one fails or the lab is gone."""

    def __init__(self, network: Network, inside: Inside, lifeline_fd: int) -> None:
        """Starts the command on each host.

        Args:
            network: the hosts.
            inside: the command and how to show its output.
            lifeline_fd: a pipe whose end means that the lab is gone.
        """
        self._quiet = inside.output == "rank0"
        self._network = network
        self._changes = deque(inside.lab.changes)
        self._started = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._selector.register(lifeline_fd, selectors.EVENT_READ, None)
        # A child's end interrupts the wait for output.
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake_read = wake_read
        self._selector.register(wake_read, selectors.EVENT_READ, None)
        self._lifeline_fd = lifeline_fd
        self._rank_of: dict[int, int] = {}
        self._statuses: dict[int, int] = {}
        self._last_lines = [deque[bytes](maxlen=_REMEMBERED_LINES) for _ in range(inside.lab.hosts)]
        for rank in range(inside.lab.hosts):
            with network.entered(rank):
                self._start(rank, inside.command, _environment(network, rank, inside.lab.hosts))

    def _start(self, rank: int, command: Sequence[str], environment: dict[str, str]) -> None:
        direct = self._quiet and rank == 0
        pipe = None if direct else subprocess.PIPE
        try:
            # Its own session, so that its children can be ended with it.
            child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise RuntimeError(f"cannot run {command[0]!r}: {error.strerror}") from None
        self._rank_of[child.pid] = rank
        # Reaped by pid below, not by Popen: it must not warn that the child still runs.
        child.returncode = 0
        for source, sink in ((child.stdout, sys.stdout.buffer), (child.stderr, sys.stderr.buffer)):
            if source is not None:
                self._selector.register(source, selectors.EVENT_READ, Lines(rank, source, sink))

    def wait(self) -> int:
        """Waits for the ranks' end.

        Returns:
            The first failing rank's exit status, 128 + n for signal n; 0 if none failed.
        """
        failed = None
        while len(self._statuses) < len(self._rank_of) and failed is None:
            failed = self._turn(self._change_links())
        if failed is not None:
            self._end_all()
        self._drain()
        if failed is None:
            return 0
        rank, status = failed
        if rank is not None:
            self._explain(rank, status)
        return status

    def _change_links(self) -> float | None:
        """Gives the links the rate that is due now; seconds until the next change, None where there is none."""
        while self._changes:
            seconds, rate_bits = self._changes[0]
            left_s = self._started + seconds - time.monotonic()
            if left_s > 0:
                return left_s
            self._changes.popleft()
            self._network.reshape(rate_bits)
            print(f"lab: after {seconds:g} s the links carry {rate_bits / 1e6:g} Mbit/s", file=sys.stderr, flush=True)
        return None

    def _turn(self, timeout_s: float | None) -> tuple[int | None, int] | None:
        """Handles what happened; returns the rank that failed and its status, or (None, status) for a lost lab."""
        lost = None
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._lifeline_fd:
                self._selector.unregister(key.fd)
                lost = (None, 128 + signal.SIGTERM)
            elif key.fd == self._wake_read:
                os.read(self._wake_read, 4096)
            else:
                self._read(key.data)
        return self._reap() or lost

    def _read(self, lines: Lines) -> None:
        whole, ended = lines.read()
        for line in whole:
            self._last_lines[lines.rank].append(line)
            if not self._quiet:
                lines.sink.write(b"[%d] %s\n" % (lines.rank, line))
        if whole and not self._quiet:
            lines.sink.flush()
        if ended:
            self._selector.unregister(lines.source)

    def _reap(self) -> tuple[int, int] | None:
        # As first process of the PID namespace we also inherit orphans, hence any child, not only the ranks.
        failed = None
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return failed
            if not pid:
                return failed
            if pid in self._rank_of:
                code = os.waitstatus_to_exitcode(raw)
                status = code if code >= 0 else 128 - code
                self._statuses[pid] = status
                if status and failed is None:
                    failed = (self._rank_of[pid], status)

    def _end_all(self) -> None:
        deadline = time.monotonic() + _GRACE_S
        self._signal(signal.SIGTERM)
        while len(self._statuses) < len(self._rank_of) and time.monotonic() < deadline:
            self._turn(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for pid in self._rank_of:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue

    def _drain(self) -> None:
        # What the ranks wrote before they ended; a grandchild may hold a pipe open, so not until its end.
        deadline = time.monotonic() + _DRAIN_S
        while any(isinstance(key.data, Lines) for key, _ in self._selector.select(0)) and time.monotonic() < deadline:
            self._turn(0)

    def _explain(self, rank: int, status: int) -> None:
        how = f"was killed by {signal.Signals(status - 128).name}" if status > 128 else f"exited with {status}"
        if self._quiet and self._last_lines[rank]:
            sys.stderr.buffer.write(b"\n".join(self._last_lines[rank]) + b"\n")
            sys.stderr.buffer.flush()
        print(f"lab: rank {rank} {how}; the other ranks were ended", file=sys.stderr)


class Lines:
    """Cuts what one rank writes to one stream into lines."""

    def __init__(self, rank: int, source: IO[bytes], sink: BinaryIO) -> None:
        """Reads `source`, for `sink`."""
        self.rank, self.source, self.sink = rank, source, sink
        self._rest = b""

    def read(self) -> tuple[list[bytes], bool]:
        """The lines completed by one read, and whether the stream has ended."""
        got = os.read(self.source.fileno(), 1 << 16)
        # A progress bar redraws its line after a carriage return.
        *whole, self._rest = (self._rest + got).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if not got and self._rest:
            whole, self._rest = [self._rest], b""
        return whole, not got


def _environment(network: Network, rank: int, hosts: int) -> dict[str, str]:
    """What torchrun would set, for one process a host."""
    given = {
        "RANK": rank,
        "WORLD_SIZE": hosts,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "GROUP_RANK": rank,
        "GROUP_WORLD_SIZE": hosts,
        "MASTER_ADDR": network.address(0),
        "MASTER_PORT": _PORT,
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "eth0",
    }
    # One thread a host unless asked otherwise: the hosts share this machine's cores.
    return {"OMP_NUM_THREADS": "1", **os.environ, **{name: str(value) for name, value in given.items()}}


def main_inside(lifeline_fd: int, inside: Inside) -> int:
    """Builds the network, checks it, runs the ranks; returns the exit status of the lab."""

    def run_ranks(command: Sequence[str]) -> int:
        # What measures the links measures them as they are at first.
        own = (
            inside
            if command is inside.command
            else replace(inside, command=command, lab=replace(inside.lab, changes=()))
        )
        return Ranks(network, own, lifeline_fd).wait()

    try:
        network = Network(inside.lab)
        status = 0
        if inside.check:
            status = check_links(run_ranks, inside.lab.hosts, inside.lab.rate_bits, inside.json_path)
        if inside.command and not status:
            status = run_ranks(inside.command)
    except RuntimeError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return status
