"""The scripts of launch/, each with the launcher itself: torchrun, both mpiruns, srun in a batch job."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import missing, slurm_cluster

from lgreco import _C

REPOSITORY = Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
JOINING = Path(__file__).with_name("joining.py")
ENV = {
    **os.environ,
    "PYTHON": sys.executable,
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    # Open MPI's words for "as root" and "more ranks than cores", which are for its user to say.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def _run(*words: str | Path, succeeds: bool = True, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], env={**ENV, **env}, capture_output=True, text=True, timeout=180, check=False
    )
    assert (done.returncode == 0) is succeeds, done.stdout + done.stderr
    return done.stdout + done.stderr


def _check(folder: Path, world_size: int, launcher: str) -> list[dict[str, Any]]:
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]
    assert sorted(path.name for path in folder.glob("rank*.json")) == [f"rank{rank}.json" for rank in range(world_size)]
    assert [rank["rank"] for rank in ranks] == list(range(world_size))
    assert {(rank["launcher"], rank["world_size"]) for rank in ranks} == {(launcher, world_size)}
    assert len({rank["digest"] for rank in ranks}) == 1
    assert all(rank["wire_bytes"] > 0 for rank in ranks)
    return ranks


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_torchrun_on_one_node(tmp_path: Path) -> None:
    _run(LAUNCH / "torchrun.sh", "--per-node", "2", "--", JOINING, tmp_path)
    ranks = _check(tmp_path, 2, "torchrun")
    assert [(rank["local_rank"], rank["node_rank"]) for rank in ranks] == [(0, 0), (1, 0)]


def test_torchrun_on_two_nodes_that_meet(tmp_path: Path) -> None:
    port = _free_port()
    words = [LAUNCH / "torchrun.sh", "--nodes", "2", "--per-node", "1", "--head", f"localhost:{port}", "--", JOINING]
    other = subprocess.Popen([str(word) for word in [*words, tmp_path]], env=ENV)
    try:
        _run(*words, tmp_path)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    ranks = _check(tmp_path, 2, "torchrun")
    assert sorted(rank["node_rank"] for rank in ranks) == [0, 1]
    assert [(rank["local_rank"], rank["local_world_size"]) for rank in ranks] == [(0, 1), (0, 1)]


@pytest.mark.parametrize(("mpirun", "launcher"), [("mpirun.openmpi", "openmpi"), ("mpirun.mpich", "hydra")])
def test_mpirun(tmp_path: Path, mpirun: str, launcher: str) -> None:
    if shutil.which(mpirun) is None:
        pytest.skip(f"no {mpirun}; on Debian: apt-get install openmpi-bin mpich")
    _run(LAUNCH / "mpirun.sh", "--ranks", "3", "--", JOINING, tmp_path, MPIRUN=mpirun)
    ranks = _check(tmp_path, 3, launcher)
    assert [(rank["local_rank"], rank["node_rank"]) for rank in ranks] == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(("mpirun", "launcher"), [("mpirun.openmpi", "openmpi"), ("mpirun.mpich", "hydra")])
def test_mpirun_on_two_nodes(tmp_path: Path, mpirun: str, launcher: str) -> None:
    """Each node is this machine under another host name, reached by what stands for ssh."""
    if shutil.which(mpirun) is None:
        pytest.skip(f"no {mpirun}; on Debian: apt-get install openmpi-bin mpich")
    ssh = str(JOINING.with_name("stand_in_ssh.sh"))
    if subprocess.run([ssh, "node01", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("unshare --user --uts is not allowed here")
    remote = {"OMPI_MCA_plm_rsh_agent": ssh, "HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": ssh}
    words = [LAUNCH / "mpirun.sh", "--ranks", "4", "--hosts", "node01:2,node02:2", "--", JOINING, tmp_path]
    told = _run(*words, succeeds=False, MPIRUN=mpirun, **remote)
    assert f'{launcher}: the address of rank 0\'s node, "node01", is not known on node0' in told
    _run(*words, MPIRUN=mpirun, MASTER_ADDR="127.0.0.1", **remote)
    ranks = _check(tmp_path, 4, launcher)
    assert [(rank["local_rank"], rank["local_world_size"], rank["node_rank"]) for rank in ranks] == [
        (0, 2, 0),
        (1, 2, 0),
        (0, 2, 1),
        (1, 2, 1),
    ]


@pytest.mark.skipif(not _C.build_info()["mpi"], reason=_C.build_info()["mpi_reason"])
def test_over_mpi_the_bits_are_those_over_gloo(tmp_path: Path) -> None:
    digests = []
    for transport in ("c10d", "mpi"):
        for choice in ("quantize(bits=4, rounding=stochastic)", "lowrank(rank=4, factors=int8)"):
            folder = tmp_path / f"{transport}-{len(digests)}"
            folder.mkdir()
            config = json.dumps({"transport": transport, "default": choice})
            _run(LAUNCH / "mpirun.sh", "--ranks", "4", "--", JOINING, folder, config, MPIRUN="mpirun.openmpi")
            digests.append(_check(folder, 4, "openmpi")[0]["digest"])
    assert digests[:2] == digests[2:]
    assert digests[0] != digests[1]


@pytest.mark.skipif(not _C.build_info()["mpi"], reason=_C.build_info()["mpi_reason"])
def test_mpi_refuses_ranks_that_mpirun_did_not_start(tmp_path: Path) -> None:
    words = [LAUNCH / "torchrun.sh", "--per-node", "2", "--", JOINING, tmp_path, '{"transport": "mpi"}']
    told = _run(*words, succeeds=False)
    assert re.search(r"rank 1 of 2 of DDP's group is rank 0 of 1 there; start all ranks with mpirun", told), told


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if missing():
        pytest.skip(f"no {', '.join(missing())}; on Debian: apt-get install slurmctld slurmd slurm-client munge")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as env:
        yield {"SLURM_CONF": env["SLURM_CONF"]}


def test_a_batch_job_of_slurm(tmp_path: Path, slurm: dict[str, str]) -> None:
    options = ["--wait", "--ntasks", "3", "--output", tmp_path / "output"]
    _run("sbatch", *options, LAUNCH / "slurm.sbatch", JOINING, tmp_path, **slurm)
    ranks = _check(tmp_path, 3, "slurm")
    assert [(rank["local_rank"], rank["local_world_size"], rank["node_rank"]) for rank in ranks] == [
        (0, 3, 0),
        (1, 3, 0),
        (2, 3, 0),
    ]


def test_a_batch_job_of_slurm_on_two_nodes(tmp_path: Path, slurm: dict[str, str]) -> None:
    options = [
        "--wait",
        "--nodes",
        "2",
        "--ntasks-per-node",
        "2",
        "--cpus-per-task",
        "2",
        "--output",
        tmp_path / "output",
    ]
    _run("sbatch", *options, LAUNCH / "slurm.sbatch", JOINING, tmp_path, **slurm)
    ranks = _check(tmp_path, 4, "slurm")
    assert [(rank["local_rank"], rank["local_world_size"], rank["node_rank"]) for rank in ranks] == [
        (0, 2, 0),
        (1, 2, 0),
        (0, 2, 1),
        (1, 2, 1),
    ]


def test_srun_of_a_torchrun_on_each_of_two_nodes(tmp_path: Path, slurm: dict[str, str]) -> None:
    port = _free_port()
    job = [LAUNCH / "torchrun.sh", "--nodes", "2", "--per-node", "2", "--head", f"localhost:{port}", "--restarts", "1"]
    _run("srun", "--nodes", "2", "--ntasks-per-node", "1", *job, "--", JOINING, tmp_path, **slurm)
    ranks = _check(tmp_path, 4, "torchrun")
    assert [(rank["local_rank"], rank["node_rank"]) for rank in ranks] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_srun_of_several_torchruns_that_do_not_meet_is_refused(tmp_path: Path, slurm: dict[str, str]) -> None:
    words = [LAUNCH / "torchrun.sh", "--per-node", "1", "--", JOINING, tmp_path]
    told = _run("srun", "--ntasks", "2", *words, succeeds=False, **slurm)
    assert "two launchers are at odds: SLURM_STEP_NUM_TASKS=2 processes were started, but GROUP_WORLD_SIZE=1" in told
    assert not list(tmp_path.glob("rank*.json"))


@pytest.mark.parametrize(
    "words", [("torchrun.sh", "--per-node", "2"), ("mpirun.sh", "--ranks", "2"), ("slurm.sbatch",)]
)
def test_a_python_without_torch_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    """The usual mistake of a new shell: the environment is not active."""
    if words[0] == "mpirun.sh" and shutil.which("mpirun") is None:
        pytest.skip("no mpirun; on Debian: apt-get install openmpi-bin")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    script = ["a.py"] if words[0] == "slurm.sbatch" else ["--", "a.py"]
    told = _run(LAUNCH / words[0], *words[1:], *script, succeeds=False, PYTHON=str(bare))
    assert f"error: {bare} has no torch; activate the environment" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("torchrun.sh", "--per-node", "2"), "the script must come after --"),
        (("torchrun.sh", "--per-node", "x", "--", "a.py"), "--per-node must be a number of ranks from 1, got 'x'"),
        (("torchrun.sh", "--nodes", "2", "--per-node", "2", "--", "a.py"), "--head must be HOST:PORT"),
        (("mpirun.sh", "--", "a.py"), "--ranks must be a number from 1, got ''"),
        (("mpirun.sh", "--rank", "2", "--", "a.py"), "unknown option --rank"),
    ],
)
def test_the_scripts_name_a_mistake(words: tuple[str, ...], message: str) -> None:
    assert message in _run(LAUNCH / words[0], *words[1:], succeeds=False)
