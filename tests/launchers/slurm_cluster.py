"""A Slurm of two nodes on this machine: munge, slurmctld and two slurmd as this user, started and stopped by a test."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "squeue", "scancel")
_PATIENCE_S = 60.0
# No cgroups and no task binding, which containers forbid; slurmd runs as the user, so only root may use root's.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName={host}-two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed; on Debian: slurmctld, slurmd, slurm-client and munge."""
    return [name for name in NEEDED if _program(name) is None]


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the daemons; the environment in which srun and sbatch find them.

    The first node has the machine's own name, so that rank 0's address is found by default.
    """
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    host = socket.gethostname().split(".")[0]
    nodes = (host, f"{host}-two")
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir()
    ports = _free_ports(3)
    conf = folder / "slurm.conf"
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    conf.write_text(_CONF.format(host=host, user=user, folder=folder, ports=ports), encoding="utf-8")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    env = {**os.environ, "SLURM_CONF": str(conf)}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        munge = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
        daemons.append(_start(["munged", "--foreground", "--force", f"--key-file={key}", *munge,
                               f"--socket={folder}/munge.socket"], env, folder))  # fmt: skip
        _wait_for((folder / "munge.socket").exists, folder)
        daemons.append(_start(["slurmctld", "-D"], env, folder))
        daemons += [_start(["slurmd", "-D", "-N", node], env, folder) for node in nodes]
        _wait_for(lambda: _idle(env), folder)
        yield env
    finally:
        _end_jobs(env, user)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _start(words: list[str], env: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    program = _program(words[0])
    assert program is not None, words[0]
    with (folder / f"{words[0]}{words[-1] if '-N' in words else ''}.out").open("wb") as output:
        return subprocess.Popen([program, *words[1:]], env=env, stdout=output, stderr=output, start_new_session=True)


def _idle(env: dict[str, str]) -> bool:
    told = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=env, capture_output=True, text=True)
    return told.stdout.split() == ["idle"]  # all nodes, on one line


def _end_jobs(env: dict[str, str], user: str) -> None:
    """Ends what a failed test left running: ranks would outlive the daemons."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--user", user], env=env, capture_output=True, timeout=20)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = subprocess.run(["squeue", "--noheader"], env=env, capture_output=True, text=True, timeout=20)
            if left.returncode != 0 or not left.stdout.strip():
                return
            time.sleep(0.2)


def _wait_for(condition: object, folder: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            told = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.[ol][ou][tg]")))
            raise RuntimeError(f"Slurm did not start within {_PATIENCE_S} s:\n{told}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
