#!/usr/bin/env python3
"""Runs one command on each of several simulated hosts, whose links to one switch have a rate of your choice.

    launch/lab.py --hosts 4 --rate 1gbit -- python my_training.py --epochs 1
    launch/lab.py --hosts 4 --rate 1gbit --check
    launch/lab.py --hosts 2 --rate 1gbit --then 30:100mbit -- python my_training.py

Each host is a network namespace with one interface (`eth0`); a bridge joins them; `tc tbf` shapes both ends of each
link, so a host sends and receives at the rate and no faster. The command finds torchrun's environment (RANK,
WORLD_SIZE, MASTER_ADDR and so on), as if torchrun had started it on that many machines.

No root is needed where the kernel lets users make namespaces. Everything runs inside one PID namespace, and its first
process holds the read end of a pipe whose write end this process holds. So however this process ends, kill -9
included, the hosts end with it, and the kernel takes the namespaces back.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from lab_network import Lab
from lab_ranks import Inside, main_inside
from lab_stream import EXIT_REFUSED

_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_MIN_RATE, _MAX_RATE = 10**6, 100 * 10**9
_MAX_HOSTS = 64
_END_TIMEOUT_S = 15.0
# Where Debian keeps them, off the PATH of users who are not root.
_TOOL_FOLDERS = ("/usr/sbin", "/sbin")
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux"}


def parse_rate(text: str) -> int | None:
    """Bits per second of a rate as tc writes it, such as `100mbit` or `2.5gbit`; None for `unshaped`.

    Raises:
        ValueError: not a rate, or one that tbf cannot shape well.
    """
    if text == "unshaped":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text)
    if not match:
        raise ValueError(f"rate must be a number with kbit, mbit or gbit, such as 100mbit, or unshaped, got {text!r}")
    rate = round(float(match[1]) * _UNITS[match[2]])
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise ValueError(f"rate must be 1mbit to 100gbit, or unshaped, got {text!r}")
    return rate


def parse_change(text: str) -> tuple[float, int]:
    """Seconds and the rate of each link from then on, of text such as `30:10mbit`.

    Raises:
        ValueError: not of that form, or not a rate.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(.+)", text)
    rate_bits = parse_rate(match[2]) if match else None
    if not match or rate_bits is None:
        raise ValueError(f"a change must be SECONDS:RATE, such as 30:10mbit, got {text!r}")
    return float(match[1]), rate_bits


def parse_hosts(text: str) -> int:
    """Number of hosts.

    Raises:
        ValueError: not a whole number, or one out of range.
    """
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_HOSTS:
        raise ValueError(f"hosts must be 1 to {_MAX_HOSTS}, got {text!r}")
    return int(text)


def namespace_command() -> list[str]:
    """The command that makes the lab's namespaces and runs what follows it as their first process.

    The folders of the tools it needs are on this process's PATH from then on.

    Raises:
        RuntimeError: a tool is missing, or this kernel gives us no namespaces; the message says what to do.
    """
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*path, *(folder for folder in _TOOL_FOLDERS if folder not in path)])
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not installed: run `apt-get install {package}`")
    own = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
    reasons = []
    # A user namespace needs no root; where the kernel refuses one, root can do without.
    for candidate in ([*own, "--user", "--map-root-user"], own):
        # Tools that look up their own process in /proc need a /proc of the PID namespace, but a container that hides
        # parts of /proc forbids a new one; the lab itself needs none.
        for proc in (["--mount-proc"], []):
            trial = subprocess.run(
                [*candidate, *proc, "ip", "link", "add", "probe", "type", "bridge"], capture_output=True, text=True
            )
            if trial.returncode == 0:
                return [*candidate, *proc]
            reasons.append(trial.stderr.strip())
    raise RuntimeError(
        f"this kernel lets us make no network namespaces ({reasons[0] or 'no reason given'}). Allow them by one of: "
        "`sysctl -w user.max_user_namespaces=10000`; on Ubuntu from 24.04 on, `sysctl -w "
        "kernel.apparmor_restrict_unprivileged_userns=0`; in Docker, `docker run --cap-add SYS_ADMIN "
        "--cap-add NET_ADMIN --security-opt seccomp=unconfined`; run as root"
    )


def run(inside: Inside) -> int:
    """Builds the lab, runs its command, and takes everything down.

    Returns:
        The first failing rank's exit status (128 + n for signal n), else 0; 3 where the rate was refused.

    Raises:
        RuntimeError: no lab can be built here.
        KeyboardInterrupt: by SIGINT or SIGTERM, after the hosts have ended.
    """
    prefix = namespace_command()
    signal.signal(signal.SIGTERM, _interrupt)
    read_fd, write_fd = os.pipe()
    argv = [*prefix, sys.executable, str(Path(__file__).resolve()), "--inside", str(read_fd), inside.to_json()]
    # Its own session: Ctrl-C reaches this process alone, which then ends the hosts in order.
    child = subprocess.Popen(argv, pass_fds=(read_fd,), start_new_session=True)
    os.close(read_fd)
    try:
        status = child.wait()
    finally:
        os.close(write_fd)
        try:
            child.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return status if status >= 0 else 128 - status


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    if argv[:1] == ["--inside"]:
        return main_inside(int(argv[1]), Inside.from_json(argv[2]))
    parser = _parser()
    options, command = argv, []
    if "--" in argv:
        cut = argv.index("--")
        options, command = argv[:cut], argv[cut + 1 :]
    args = parser.parse_args(options)
    try:
        changes = sorted(parse_change(change) for change in args.then)
        lab = Lab(parse_hosts(args.hosts), parse_rate(args.rate), tuple(changes))
    except ValueError as error:
        parser.error(str(error))
    if not command and not args.check:
        parser.error("nothing to do: give `-- COMMAND`, or --check, or both")
    if args.check and lab.hosts < 2:
        parser.error("--check streams between two hosts: --hosts must be at least 2")
    if args.json and not args.check:
        parser.error("--json writes what --check measured: give --check too")
    inside = Inside(lab, command, args.output, args.check, os.path.abspath(args.json) if args.json else None)
    try:
        return run(inside)
    except RuntimeError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options] -- COMMAND"
    )
    parser.add_argument("--hosts", default="4", help=f"number of simulated hosts, 1 to {_MAX_HOSTS} (default: 4)")
    parser.add_argument("--rate", default="1gbit", help="of each link, both ways, such as 100mbit, 1gbit or unshaped")
    parser.add_argument(
        "--then", action="append", default=[], metavar="SECONDS:RATE",
        help="after that time every link has another rate, such as 30:10mbit; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--output", choices=("all", "rank0"), default="all",
        help="all: lines of every rank, each after its [rank]; rank0: only rank 0's, as it writes them (progress bars "
        "work), and the last lines of a rank that fails",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help=f"measure a plain TCP stream first; exit with {EXIT_REFUSED} where it is more than 5 %% off the rate",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write what --check measured")
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
