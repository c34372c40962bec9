"""What the lab's links really carry: plain TCP streams between hosts, against the rate that was asked for.

The rate of a shaped link counts whole Ethernet frames (without preamble, checksum and gap), as tbf does. A stream's
goodput counts payload alone: 1448 of the 1514 bytes of a full frame (14 Ethernet, 20 IPv4, 32 TCP with timestamps).
The line rate below is goodput times 1514 / 1448, and it is what must come within 5 % of the rate.

Run as a script, this file is the part of one host; the measuring window is the receiver's, its start left out.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOLERANCE = 0.05
EXIT_REFUSED = 3
_FRAME_BYTES, _PAYLOAD_BYTES = 1514, 1448
_PORT = 29510
_CHUNK_BYTES = 1 << 20
_SETTLE_S = 0.5
_WINDOW_S = 1.5
_CONNECT_TIMEOUT_S = 10.0
# `stream`: host 0 to host 1 alone. `ring`: each host to the next, all at once; no port receives from two.
_PATTERNS = ("stream", "ring")


@dataclass(frozen=True)
class LinkRate:
    """One measured pattern.

    Attributes:
        pattern: `stream` or `ring`.
        rate_bits: asked for, in bits per second; None for an unshaped link.
        goodput_bits: payload in bits per second; the slowest stream's in a ring.
        line_bits: the same, headers counted.
        within_tolerance: whether `line_bits` is within 5 % of the rate; None where there is no rate.
    """

    pattern: str
    rate_bits: int | None
    goodput_bits: float
    line_bits: float
    within_tolerance: bool | None


def judge(pattern: str, rate_bits: int | None, goodput_bits: float) -> LinkRate:
    """Sets a measured goodput against the rate."""
    line_bits = goodput_bits * _FRAME_BYTES / _PAYLOAD_BYTES
    within = None if rate_bits is None else abs(line_bits / rate_bits - 1) <= TOLERANCE
    return LinkRate(pattern, rate_bits, goodput_bits, line_bits, within)


def check_links(run: Callable[[Sequence[str]], int], hosts: int, rate_bits: int | None, json_path: str | None) -> int:
    """Measures each pattern, prints what it carried, writes it where asked.

    Only the plain stream is judged: several streams at a high rate may need more processor than the machine has,
    which says nothing about the links.

    Args:
        run: runs a command on all hosts and returns its exit status.
        hosts: number of hosts, at least 2.
        rate_bits: asked for; None for an unshaped link.
        json_path: file for the figures, if any.

    Returns:
        0, `EXIT_REFUSED` where the plain stream is off the rate, or the status of a run that failed.
    """
    rates = []
    for pattern in _PATTERNS:
        with tempfile.TemporaryDirectory(prefix="lgreco-lab-") as folder:
            status = run([sys.executable, os.path.abspath(__file__), pattern, folder])
            if status:
                return status
            measured = [float(path.read_text(encoding="utf-8")) for path in Path(folder).iterdir()]
        rates.append(judge(pattern, rate_bits, min(measured)))
        print(f"lab: {_sentence(rates[-1])}", flush=True)
    if json_path is not None:
        congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="utf-8").strip()
        report = {"hosts": hosts, "congestion_control": congestion, "rows": [asdict(rate) for rate in rates]}
        Path(json_path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if rates[0].within_tolerance is False:
        print(f"lab: refused, the plain stream is more than {TOLERANCE:.0%} off the rate asked for", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def _sentence(rate: LinkRate) -> str:
    figures = f"{rate.line_bits / 1e6:.1f} Mbit/s on the line, {rate.goodput_bits / 1e6:.1f} of it payload"
    if rate.rate_bits is None:
        return f"{rate.pattern}: {figures}, unshaped"
    return f"{rate.pattern}: {figures}, {100 * rate.line_bits / rate.rate_bits:.1f} % of the rate asked for"


def _stream(pattern: str, folder: str) -> None:
    """The part of the host whose rank is in the environment."""
    rank, hosts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    sends, receives = (True, True) if pattern == "ring" else (rank == 0, rank == 1)
    sender = threading.Thread(target=_send, args=(_neighbour(rank, hosts),))
    listener = socket.create_server(("", _PORT)) if receives else None
    if sends:
        sender.start()
    if listener is not None:
        goodput_bits = _receive(listener)
        (Path(folder) / str(rank)).write_text(repr(goodput_bits), encoding="utf-8")
    if sends:
        sender.join()


def _neighbour(rank: int, hosts: int) -> str:
    network = os.environ["MASTER_ADDR"].rpartition(".")[0]
    return f"{network}.{(rank + 1) % hosts + 1}"


def _send(address: str) -> None:
    """Sends until the receiver has had enough."""
    deadline = time.monotonic() + _CONNECT_TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((address, _PORT))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    chunk = bytes(_CHUNK_BYTES)
    try:
        while True:
            connection.sendall(chunk)
    except OSError:
        return


def _receive(listener: socket.socket) -> float:
    """Goodput of one stream in bits per second."""
    listener.settimeout(_CONNECT_TIMEOUT_S)
    connection, _ = listener.accept()
    chunk = bytearray(_CHUNK_BYTES)
    start = time.perf_counter() + _SETTLE_S
    got_bytes, opened = 0, None
    with connection:
        while True:
            size = connection.recv_into(chunk)
            if not size:
                raise ConnectionError("the sending host closed its stream before the measurement was over")
            now = time.perf_counter()
            if opened is None:
                opened = now if now >= start else None
                continue
            got_bytes += size
            if now - opened >= _WINDOW_S:
                return got_bytes * 8 / (now - opened)


if __name__ == "__main__":
    _stream(*sys.argv[1:])
