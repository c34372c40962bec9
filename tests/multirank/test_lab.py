"""The lab: torchrun's environment on each host, honest links, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
LAB = LAUNCH / "lab.py"
sys.path.insert(0, str(LAUNCH))

import lab  # noqa: E402
import lab_stream  # noqa: E402

_MARK = "LGRECO_LAB_TEST"
_PATIENCE_S = 20.0

try:
    lab.namespace_command()
    _refusal = ""
except RuntimeError as error:
    _refusal = str(error)
needs_namespaces = pytest.mark.skipif(bool(_refusal), reason=_refusal)


def run_lab(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAB), *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Trace:
    """A lab whose every process carries a mark in its environment, and whose hosts write down their namespaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {_MARK: uuid.uuid4().hex}

    def pids(self) -> list[int]:
        """The processes of this lab that live."""
        mark = f"{_MARK}={self.env[_MARK]}".encode()
        return [pid for pid in _all_pids() if mark in _read(Path(f"/proc/{pid}/environ"))]

    def hosts_up(self) -> int:
        """How many hosts have run this lab's command."""
        return len(list(self.folder.glob("*.up")))

    def namespaces_in_use(self) -> set[str]:
        """The hosts' network namespaces that some process is in."""
        ours = {path.read_text().strip() for path in self.folder.glob("*.up")}
        return ours & {_link(Path(f"/proc/{pid}/ns/net")) for pid in _all_pids()}

    def command(self, then: str) -> list[str]:
        """A shell that leaves a grandchild in a session of its own, writes its host's namespace down, and goes on."""
        up = f"{self.folder}/$RANK"
        return ["bash", "-c", f"setsid sleep 600 & readlink /proc/self/ns/net > {up}; mv {up} {up}.up; {then}"]


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    made = Trace(tmp_path)
    yield made
    for pid in made.pids():
        os.kill(pid, signal.SIGKILL)


@needs_namespaces
def test_each_host_has_torchruns_environment_and_its_own_address() -> None:
    names = "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $GLOO_SOCKET_IFNAME $OMP_NUM_THREADS"
    show = f"echo {names} $MASTER_PORT; ip -brief -4 address show up"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(LAB), "--hosts", "3", "--", "bash", "-c", show],
        capture_output=True, text=True, timeout=120, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        own = [line.removeprefix(f"[{rank}] ") for line in done.stdout.splitlines() if line.startswith(f"[{rank}] ")]
        *values, port = own[0].split()
        assert values == [str(rank), "3", "0", "1", "10.77.0.1", "eth0", "1"]
        assert int(port) > 0
        assert any(line.startswith("lo ") and "127.0.0.1/8" in line for line in own)
        assert any(line.startswith("eth0") and f"10.77.0.{rank + 1}/24" in line for line in own)


@needs_namespaces
def test_gloo_ranks_meet_over_the_lab() -> None:
    program = (
        "import torch, torch.distributed as dist; dist.init_process_group('gloo'); "
        "x = torch.tensor([dist.get_rank() + 1.0]); dist.all_reduce(x); print('sum', x.item()); "
        "dist.destroy_process_group()"
    )
    done = run_lab("--hosts", "3", "--rate", "100mbit", "--output", "rank0", "--", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["sum 6.0"]


@needs_namespaces
@pytest.mark.parametrize(("ending", "status"), [("exit 7", 7), ("kill -SEGV $$", 128 + signal.SIGSEGV)])
def test_a_failing_rank_gives_the_status_and_ends_the_others(trace: Trace, ending: str, status: int) -> None:
    wait_for_all = f"until [ $(ls {trace.folder} | grep -c up) = 3 ]; do sleep 0.05; done"
    then = f"{wait_for_all}; if [ $RANK = 1 ]; then echo its last words >&2; {ending}; fi; sleep 600"
    done = run_lab("--hosts", "3", "--output", "rank0", "--", *trace.command(then), env=trace.env)
    assert done.returncode == status
    assert "lab: rank 1" in done.stderr
    assert "its last words" in done.stderr
    assert trace.hosts_up() == 3
    assert eventually(lambda: not trace.pids())
    assert eventually(lambda: not trace.namespaces_in_use())


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_lab_ended_by_a_signal_leaves_nothing(trace: Trace, number: signal.Signals) -> None:
    # A rank that ignores every request to end, and one that does not even run.
    then = "if [ $RANK = 0 ]; then kill -STOP $$; fi; trap '' TERM INT HUP; while true; do sleep 1; done"
    child = subprocess.Popen(
        [sys.executable, str(LAB), "--hosts", "2", "--", *trace.command(then)], env={**os.environ, **trace.env}
    )
    assert eventually(lambda: trace.hosts_up() == 2)
    assert len(trace.namespaces_in_use()) == 2
    child.send_signal(number)
    status = child.wait(_PATIENCE_S)
    assert status in (128 + number, -number)
    assert eventually(lambda: not trace.pids())
    assert eventually(lambda: not trace.namespaces_in_use())


@needs_namespaces
def test_a_lab_that_succeeds_leaves_no_grandchild(trace: Trace) -> None:
    done = run_lab("--hosts", "2", "--", *trace.command("true"), env=trace.env)
    assert done.returncode == 0, done.stderr
    assert trace.hosts_up() == 2
    assert eventually(lambda: not trace.pids())


@needs_namespaces
def test_a_command_that_does_not_exist_is_named() -> None:
    done = run_lab("--hosts", "2", "--", "no-such-command")
    assert done.returncode == 1
    assert "cannot run 'no-such-command'" in done.stderr


@needs_namespaces
def test_check_writes_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "lab.json"
    done = run_lab("--hosts", "2", "--rate", "100mbit", "--check", "--json", str(path), "--", "echo", "ran")
    rows = json.loads(path.read_text())["rows"]
    assert [row["pattern"] for row in rows] == ["stream", "ring"]
    assert all(row["rate_bits"] == 100_000_000 and row["goodput_bits"] > 0 for row in rows)
    # Whether a busy machine meets the rate is no matter of this test; that the verdict decides is.
    assert done.returncode == (0 if rows[0]["within_tolerance"] else lab_stream.EXIT_REFUSED)
    assert ("[1] ran" in done.stdout) == rows[0]["within_tolerance"]


@pytest.mark.parametrize(("factor", "status"), [(0.94, 3), (0.96, 0), (1.04, 0), (1.06, 3)])
def test_links_more_than_5_percent_off_are_refused(factor: float, status: int) -> None:
    def run(command: list[str]) -> int:
        payload_bits = 1e9 * factor * 1448 / 1514
        (Path(command[-1]) / "1").write_text(repr(payload_bits))
        return 0

    assert lab_stream.check_links(run, 2, 10**9, None) == status


def test_a_measurement_that_fails_gives_its_status() -> None:
    assert lab_stream.check_links(lambda command: 41, 2, 10**9, None) == 41


def test_an_unshaped_link_has_no_rate_to_miss() -> None:
    assert lab_stream.judge("stream", None, 1e9).within_tolerance is None


@pytest.mark.parametrize(
    ("text", "rate_bits"), [("100mbit", 10**8), ("2.5gbit", 2_500_000_000), ("1500kbit", 1_500_000), ("unshaped", None)]
)
def test_rates_read_as_tc_writes_them(text: str, rate_bits: int | None) -> None:
    assert lab.parse_rate(text) == rate_bits


@pytest.mark.parametrize("text", ["1gb", "fast", "", "-1mbit", "1 gbit"])
def test_a_bad_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate must be a number with kbit, mbit or gbit.*got"):
        lab.parse_rate(text)


@pytest.mark.parametrize("text", ["10kbit", "200gbit"])
def test_a_rate_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"rate must be 1mbit to 100gbit, or unshaped, got '{text}'"):
        lab.parse_rate(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hosts", "0", "--", "true"], "hosts must be 1 to 64, got '0'"),
        (["--hosts", "many", "--", "true"], "hosts must be 1 to 64, got 'many'"),
        (["--hosts", "2"], "nothing to do"),
        (["--hosts", "1", "--check"], "--hosts must be at least 2"),
        (["--hosts", "2", "--json", "x", "--", "true"], "give --check too"),
    ],
)
def test_a_bad_command_line_is_refused(words: list[str], message: str) -> None:
    done = run_lab(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_missing_tool_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("ip", "unshare"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(lab, "_TOOL_FOLDERS", ())
    with pytest.raises(RuntimeError, match="tc is not installed: run `apt-get install iproute2`"):
        lab.namespace_command()


@needs_namespaces
def test_tools_off_a_users_path_are_found() -> None:
    """Debian keeps tc in /usr/sbin, which only root's PATH names."""
    done = run_lab("--hosts", "2", "--rate", "10mbit", "--", "true", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr


def test_a_kernel_without_namespaces_is_said_clearly(tmp_path: Path) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    unshare.chmod(0o755)
    done = run_lab("--hosts", "2", "--", "true", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 1
    assert "lets us make no network namespaces" in done.stderr
    assert "Operation not permitted" in done.stderr
    assert "max_user_namespaces" in done.stderr


def test_a_change_reads_as_seconds_and_a_rate() -> None:
    assert lab.parse_change("1.5:10mbit") == (1.5, 10_000_000)


@pytest.mark.parametrize("text", ["10mbit", "x:10mbit", "5:", "5:10", "-1:10mbit", "5:unshaped"])
def test_a_bad_change_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        lab.parse_change(text)


@needs_namespaces
def test_links_change_their_rate_while_a_command_runs() -> None:
    wait = "for i in $(seq 1000); do tc qdisc show dev eth0 | grep -q 'rate {}' && break; sleep 0.05; done; "
    command = "tc qdisc show dev eth0; " + wait.format("7Mbit") + "tc qdisc show dev eth0"
    done = run_lab("--hosts", "2", "--rate", "50mbit", "--then", "4:7mbit", "--", "sh", "-c", command)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        before, after = (line for line in done.stdout.splitlines() if line.startswith(f"[{rank}]"))
        assert "rate 50Mbit" in before
        assert "rate 7Mbit" in after
    assert "lab: after 4 s the links carry 7 Mbit/s" in done.stderr
