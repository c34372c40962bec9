"""Environments as launchers set them, and those that no launcher would set."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest
import torch.distributed as dist

import lgreco
from lgreco.launch import _with_node
from lgreco.launch_environment import Launch, first_host, read_launch

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "job",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
}
HYDRA = {
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "node[07-09,12]",
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
}


def test_torchrun() -> None:
    assert read_launch(TORCHRUN) == Launch("torchrun", 5, 8, 1, 4, 1, "head", 29500)


def test_torchruns_variables_set_by_hand() -> None:
    by_hand = {
        name: TORCHRUN[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    assert read_launch({**by_hand, "RANK": "5"}) == read_launch(TORCHRUN)
    with pytest.raises(
        ValueError, match="GROUP_RANK must be set where nodes differ in size: LOCAL_WORLD_SIZE=4, RANK=4"
    ):
        read_launch({**by_hand, "RANK": "4"})


def test_open_mpi() -> None:
    assert read_launch(OPEN_MPI) == Launch("openmpi", 3, 4, 1, 2, None, "head", 29500)


def test_hydra() -> None:
    assert read_launch(HYDRA) == Launch("hydra", 3, 4, 1, 2, None, "head", 29500)


def test_srun_takes_the_first_node_and_a_port_of_the_job() -> None:
    launch = read_launch(SRUN)
    assert launch == Launch("slurm", 5, 7, 1, 2, 2, "node07", launch.port)
    assert launch.port in range(20000, 30000)
    assert read_launch({**SRUN, "SLURM_PROCID": "6", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}).port == launch.port
    assert read_launch({**SRUN, "SLURM_STEP_ID": "1"}).port != launch.port
    chosen = read_launch({**SRUN, "MASTER_ADDR": "login", "MASTER_PORT": "5000"})
    assert (chosen.address, chosen.port) == ("login", 5000)


def test_srun_with_pmi2_is_still_srun() -> None:
    assert read_launch({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "7"}).launcher == "slurm"


def test_one_node_of_open_mpi_needs_neither_address_nor_port() -> None:
    env = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "PMIX_NAMESPACE": "77"}
    del env["MASTER_ADDR"], env["MASTER_PORT"]
    launch = read_launch(env)
    assert (launch.address, launch.node_rank) == ("127.0.0.1", 0)
    assert launch.port in range(20000, 30000)


def test_the_variables_read_as_the_same_launch() -> None:
    variables = read_launch(TORCHRUN).variables()
    assert read_launch(variables) == read_launch(TORCHRUN)
    assert "GROUP_RANK" not in read_launch(OPEN_MPI).variables()


def test_the_innermost_launcher_counts() -> None:
    daemon = {**SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}  # mpirun starts one daemon a node with srun
    assert read_launch({**daemon, **OPEN_MPI}).launcher == "openmpi"
    assert read_launch({**daemon, **HYDRA}).launcher == "hydra"
    assert read_launch({**daemon, **TORCHRUN}).launcher == "torchrun"
    agents = {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    assert read_launch({**agents, **TORCHRUN}).launcher == "torchrun"


def test_a_batch_script_is_no_step_of_srun() -> None:
    batch = {**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFB)}
    assert read_launch({**batch, **TORCHRUN}).launcher == "torchrun"
    with pytest.raises(ValueError, match="SLURM_JOB_ID is, but this process was not started by srun"):
        read_launch(batch)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, r"RANK \(torchrun\), OMPI_COMM_WORLD_RANK or PMI_RANK \(mpirun\), or SLURM_PROCID .* must be set"),
        ({**TORCHRUN, "RANK": "8"}, "RANK must be less than WORLD_SIZE, got RANK=8 with WORLD_SIZE=8"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "LOCAL_RANK must be less than LOCAL_WORLD_SIZE, got LOCAL_RANK=4"),
        ({**TORCHRUN, "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "7"}, "LOCAL_WORLD_SIZE must be at most WORLD_SIZE"),
        ({**TORCHRUN, "RANK": "0"}, r"LOCAL_RANK must be at most RANK \(0\), got 1"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK must be a whole number from 0, got '-1'"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "torchrun's environment must have MASTER_ADDR, which is not set"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, r"MASTER_PORT must be 1\.\.65535, got 70000"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "4"}, "OMPI_COMM_WORLD_RANK must be less than OMPI_COMM_WORLD_SIZE"),
        ({**OPEN_MPI, "MASTER_ADDR": ""}, "MASTER_ADDR must be the address of rank 0's node, as OMPI_COMM_WORLD_SIZE"),
        ({**HYDRA, "MASTER_PORT": ""}, "MASTER_PORT must be a free port of rank 0's node, got none"),
        ({**HYDRA, "MPI_LOCALNRANKS": ""}, "hydra's environment must have MPI_LOCALNRANKS"),
        ({**SRUN, "SLURM_PROCID": "7"}, "SLURM_PROCID must be less than SLURM_STEP_NUM_TASKS"),
        ({**SRUN, "SLURM_NODEID": "4"}, "SLURM_NODEID must be one of the 4 nodes of SLURM_STEP_TASKS_PER_NODE, got 4"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2x3"}, "SLURM_STEP_TASKS_PER_NODE must be such as"),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "srun's environment must have SLURM_STEP_NODELIST"),
        ({**OPEN_MPI, "RANK": "2"}, "at odds: RANK=2, but OMPI_COMM_WORLD_RANK=3"),
        ({**OPEN_MPI, "WORLD_SIZE": "2"}, "at odds: WORLD_SIZE=2, but OMPI_COMM_WORLD_SIZE=4"),
        ({**SRUN, "RANK": "0"}, "at odds: RANK=0, but SLURM_PROCID=5"),
        ({**OPEN_MPI, **HYDRA, "PMI_RANK": "0"}, "at odds: PMI_RANK=0, but OMPI_COMM_WORLD_RANK=3"),
        ({**SRUN, "PMI_RANK": "4", "PMI_SIZE": "7"}, "at odds: PMI_RANK=4, but SLURM_PROCID=5"),
        ({**SRUN, **OPEN_MPI}, "SLURM_STEP_NUM_TASKS=7 processes, each with an mpirun of OMPI_COMM_WORLD_SIZE=4"),
        (
            {**SRUN, **TORCHRUN, "GROUP_WORLD_SIZE": "1"},
            "SLURM_STEP_NUM_TASKS=7 processes.*each torchrun trains on its",
        ),
        ({**OPEN_MPI, **TORCHRUN, "GROUP_WORLD_SIZE": "1"}, "OMPI_COMM_WORLD_SIZE=4 processes were started"),
    ],
)
def test_a_wrong_environment_is_refused_by_the_names_of_its_variables(env: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_launch(env)


@pytest.mark.parametrize(("env", "name"), [(SRUN, "slurm: .*"), ({**OPEN_MPI, "MASTER_ADDR": "hidden"}, "openmpi: .*")])
def test_a_name_that_nobody_knows_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], name: str
) -> None:
    """Without waiting for the group's timeout; what to set is said."""

    def unknown(*_: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match=rf"{name}is not known on .*Name or service not known.*set MASTER_ADDR"):
        lgreco.init_process_group("gloo", environ=env)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[07-09,12],other", "node07"), ("a,b", "a"), ("rack[1-2]node[3,5]", "rack1node3"), ("solo", "solo")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_nodes_are_numbered_by_their_first_ranks() -> None:
    """Open MPI with ranks dealt round robin: the environment does not say which node this is."""
    store = dist.HashStore()
    hosts = ["b", "a", "b", "a"]
    for rank, host in enumerate(hosts):
        store.set(f"host{rank}", host)
    base = read_launch(OPEN_MPI)
    nodes = [_with_node(dataclasses.replace(base, rank=rank), store, host).node_rank for rank, host in enumerate(hosts)]
    assert nodes == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="openmpi says that 3 ranks run on this node, but 2 have the host name"):
        _with_node(dataclasses.replace(base, local_world_size=3), store, "a")
