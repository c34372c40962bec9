"""The lab's network: a switch, and hosts in namespaces of their own behind shaped links."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000
_NETWORK = "10.77.0."
# tbf lets a link that was idle send this long at full speed. Longer would flatter short messages; shorter, and a busy
# machine that serves the queue late loses part of the rate.
_BURST_S = 0.001
_MIN_BURST_BYTES = 20_000
# A full queue holds this much: several round trips, so that TCP keeps the link busy, yet not so much that one stream
# delays the others for long.
_QUEUE_MS = 25
# A link carries packets of up to 64 KiB that the kernel cuts only where it must; tbf cuts those above its burst, which
# costs a processor much more than sending smaller ones at once.
_MAX_PACKET_BYTES = 65_536
_PACKET_HEADROOM_BYTES = 512

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Lab:
    """What to simulate.

    Attributes:
        hosts: how many.
        rate_bits: of each link in bits per second; None: as fast as it goes.
        changes: (seconds after the command's start, rate of each link from then on), in order of time.
    """

    hosts: int
    rate_bits: int | None
    changes: tuple[tuple[float, int], ...] = ()

    @property
    def slowest_bits(self) -> int | None:
        """The least rate that the links ever have; None where they are never shaped."""
        return min((rate for rate in (self.rate_bits, *(rate for _, rate in self.changes)) if rate), default=None)


class Network:
    """The switch, in the namespace this process starts in, and one namespace for each host.

    The namespaces are held by file descriptors and by the processes in them, so the kernel frees them when all of
    these are gone. This process must have one thread: entering a namespace moves the calling thread alone.
    """

    def __init__(self, lab: Lab) -> None:
        """Builds switch and links.

        Raises:
            RuntimeError: `ip` or `tc` failed; the message carries its own.
        """
        self._switch_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "switch", "type", "bridge")
        _ip("link", "set", "switch", "addrgenmode", "none", "up")
        self._host_fds = [self._add_host(host, lab) for host in range(lab.hosts)]

    def address(self, host: int) -> str:
        """IPv4 address of a host."""
        return f"{_NETWORK}{host + 1}"

    @contextmanager
    def entered(self, host: int) -> Iterator[None]:
        """What is started in this block runs on the host."""
        _set_namespace(self._host_fds[host])
        try:
            yield
        finally:
            _set_namespace(self._switch_fd)

    def reshape(self, rate_bits: int) -> None:
        """Gives every link another rate, whatever is under way on it."""
        for host in range(len(self._host_fds)):
            with self.entered(host):
                _shape("eth0", rate_bits)
            _shape(f"port{host}", rate_bits)

    def _add_host(self, host: int, lab: Lab) -> int:
        port = f"port{host}"
        # Packets that any of the link's rates can take at once.
        packet = [] if lab.slowest_bits is None else ["gso_max_size", str(_packet_bytes(lab.slowest_bits))]
        if _libc.unshare(_CLONE_NEWNET):
            raise RuntimeError(f"unshare(CLONE_NEWNET) failed: {os.strerror(ctypes.get_errno())}")
        host_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            _ip("link", "set", "lo", "up")
            switch = f"/proc/self/fd/{self._switch_fd}"
            _ip("link", "add", "eth0", *packet, "type", "veth", "peer", "name", port, "netns", switch,
                pass_fd=self._switch_fd)  # fmt: skip
            _ip("address", "add", f"{self.address(host)}/24", "dev", "eth0")
            # No IPv6 addresses: their discovery would count as traffic.
            _ip("link", "set", "eth0", "addrgenmode", "none", "up")
            _shape("eth0", lab.rate_bits)
        finally:
            _set_namespace(self._switch_fd)
        _ip("link", "set", port, "addrgenmode", "none", "master", "switch", "up")
        _shape(port, lab.rate_bits)
        return host_fd


def _burst_bytes(rate_bits: int) -> int:
    return max(_MIN_BURST_BYTES, round(rate_bits / 8 * _BURST_S))


def _packet_bytes(rate_bits: int) -> int:
    return min(_MAX_PACKET_BYTES, _burst_bytes(rate_bits) - _PACKET_HEADROOM_BYTES)


def _shape(interface: str, rate_bits: int | None) -> None:
    if rate_bits is not None:
        _call("tc", "qdisc", "replace", "dev", interface, "root", "tbf", "rate", f"{rate_bits}bit",
              "burst", f"{_burst_bytes(rate_bits)}b", "latency", f"{_QUEUE_MS}ms")  # fmt: skip


def _ip(*words: str, pass_fd: int | None = None) -> None:
    _call("ip", *words, pass_fd=pass_fd)


def _call(*words: str, pass_fd: int | None = None) -> None:
    done = subprocess.run(words, capture_output=True, text=True, pass_fds=() if pass_fd is None else (pass_fd,))
    if done.returncode:
        raise RuntimeError(f"`{' '.join(words)}` failed: {done.stderr.strip() or done.returncode}")


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise RuntimeError(f"setns() failed: {os.strerror(ctypes.get_errno())}")
