"""What the launcher's environment says of this process: torchrun, Open MPI, Hydra (MPICH, Intel MPI) or srun."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
_LAST_STEP_ID = 0xFFFFFF00  # above are Slurm's own steps: batch scripts, interactive shells
_PORTS = range(20000, 30000)  # below those that systems hand out on their own


@dataclass(frozen=True)
class Launch:
    """Where a process stands among those that its launcher started.

    Attributes:
        launcher: torchrun (or the same variables set by hand), openmpi, hydra or slurm.
        rank: 0 to world_size - 1.
        world_size: number of ranks.
        local_rank: among the ranks of this node, 0 to local_world_size - 1.
        local_world_size: number of ranks on this node.
        node_rank: of this node; None where the environment does not say and no ranks have been asked yet.
        address: of the node where rank 0 runs.
        port: on which rank 0 waits for the others.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int | None
    address: str
    port: int

    def variables(self) -> dict[str, str]:
        """The same as torchrun would set it, for libraries that read nothing else."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            **({} if self.node_rank is None else {"GROUP_RANK": str(self.node_rank), "NODE_RANK": str(self.node_rank)}),
        }


def read_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """Reads the innermost launcher: torchrun under mpirun or srun, and mpirun under Slurm, go before the outer one.

    Raises:
        ValueError: for a missing, wrong or contradictory environment, naming the variables.
    """
    env = os.environ if environ is None else environ
    if "RANK" in env and ("TORCHELASTIC_RUN_ID" in env or not (_mpi(env) or _in_step(env))):
        launch = _torchrun(env)
    elif _mpi(env) and not (_in_step(env) and "MPI_LOCALRANKID" not in env and "OMPI_COMM_WORLD_RANK" not in env):
        launch = _from_mpi(env)
    elif _in_step(env):
        launch = _from_slurm(env)
    else:
        raise ValueError(_nothing_found(env))
    _refuse_odds(env, launch)
    return launch


def _torchrun(env: Mapping[str, str]) -> Launch:
    _refuse_missing(env, "torchrun", (*_TORCH, "MASTER_ADDR", "MASTER_PORT"))
    ranks = _ranks(env, _TORCH)
    # torchrun deals ranks to nodes in order; who sets its variables by hand may leave out the node's.
    node, offset = divmod(ranks[0] - ranks[2], ranks[3])
    if "GROUP_RANK" in env:
        node = _whole(env, "GROUP_RANK")
    elif offset:
        raise ValueError(
            f"GROUP_RANK must be set where nodes differ in size: LOCAL_WORLD_SIZE={ranks[3]}, "
            f"RANK={env['RANK']} and LOCAL_RANK={env['LOCAL_RANK']}"
        )
    return Launch("torchrun", *ranks, node, env["MASTER_ADDR"], _port(env, ""))


def _from_mpi(env: Mapping[str, str]) -> Launch:
    open_mpi = "OMPI_COMM_WORLD_RANK" in env
    name, names = ("openmpi" if open_mpi else "hydra"), (_OPEN_MPI if open_mpi else _HYDRA)
    _refuse_missing(env, name, names)
    ranks = _ranks(env, names)
    alone = ranks[1] == ranks[3]
    if not alone and not env.get("MASTER_ADDR"):
        raise ValueError(
            f"MASTER_ADDR must be the address of rank 0's node, as {names[1]} ({ranks[1]}) is more than "
            f"{names[3]} ({ranks[3]}), got none; pass it on with mpirun, as launch/mpirun.sh does"
        )
    job = env.get("PMIX_NAMESPACE", "") if name == "openmpi" else ""
    return Launch(name, *ranks, 0 if alone else None, env.get("MASTER_ADDR") or "127.0.0.1", _port(env, job))


def _from_slurm(env: Mapping[str, str]) -> Launch:
    names = _SLURM
    _refuse_missing(env, "srun", (*names, "SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"))
    node = _whole(env, "SLURM_NODEID")
    per_node = _tasks_per_node(env[names[3]])
    if node >= len(per_node):
        raise ValueError(f"SLURM_NODEID must be one of the {len(per_node)} nodes of {names[3]}, got {node}")
    ranks = _ranks({**env, names[3]: str(per_node[node])}, names)
    address = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    return Launch("slurm", *ranks, node, address, _port(env, f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"))


def _ranks(env: Mapping[str, str], names: tuple[str, str, str, str]) -> tuple[int, int, int, int]:
    """Rank, size, local rank and local size, each in its range."""
    rank, size, local_rank, local_size = (_whole(env, name) for name in names)
    for number, limit, name, limit_name in (
        (rank, size, names[0], names[1]),
        (local_rank, local_size, names[2], names[3]),
        (local_size - 1, size, names[3], names[1]),
    ):
        if number >= limit:
            got = f"{name}={env[name]} with {limit_name}={env[limit_name]}"
            allowed = "at most" if name == names[3] else "less than"
            raise ValueError(f"{name} must be {allowed} {limit_name}, got {got}")
    if local_rank > rank:
        raise ValueError(f"{names[2]} must be at most {names[0]} ({rank}), got {local_rank}")
    return rank, size, local_rank, local_size


def _refuse_odds(env: Mapping[str, str], launch: Launch) -> None:
    """Refuses an environment in which two launchers tell different stories."""
    outer = [(names[0], names[1]) for names in (_OPEN_MPI, _HYDRA) if names[0] in env and names[1] in env]
    if _in_step(env) and _SLURM[1] in env:
        outer.append((_SLURM[0], _SLURM[1]))
    if launch.launcher == "torchrun":
        agents = env.get("GROUP_WORLD_SIZE")
        for _, size in outer:
            if agents == "1" and _whole(env, size) > 1:
                raise ValueError(
                    f"two launchers are at odds: {size}={env[size]} processes were started, but GROUP_WORLD_SIZE=1: "
                    "each torchrun trains on its own; give torchrun --nnodes and --rdzv-endpoint, as "
                    "launch/torchrun.sh does"
                )
        return
    mine = {"openmpi": _OPEN_MPI, "hydra": _HYDRA, "slurm": _SLURM}[launch.launcher]
    by_hand = [(name, of) for name, of in zip(_TORCH, mine, strict=True) if name in env and name != "LOCAL_WORLD_SIZE"]
    if launch.launcher != "slurm" and _in_step(env) and launch.world_size < _whole(env, _SLURM[1]):
        raise ValueError(
            f"two launchers are at odds: srun started {_SLURM[1]}={env[_SLURM[1]]} processes, each with an mpirun of "
            f"{mine[1]}={launch.world_size}: start one mpirun, or no mpirun"
        )
    same = [(other[i], mine[i]) for other in outer if other[0] in (_OPEN_MPI[0], _HYDRA[0]) for i in (0, 1)]
    for name, of in (*by_hand, *same):
        if _whole(env, name) != _whole(env, of):
            raise ValueError(
                f"two launchers are at odds: {name}={env[name]}, but {of}={env[of]}; unset the one that did not start "
                "this process"
            )


def _nothing_found(env: Mapping[str, str]) -> str:
    text = "no launcher's environment: RANK (torchrun), OMPI_COMM_WORLD_RANK or PMI_RANK (mpirun), or SLURM_PROCID "
    text += "with SLURM_STEP_ID (srun) must be set"
    if "SLURM_JOB_ID" in env:
        text += "; SLURM_JOB_ID is, but this process was not started by srun"
    return text + "; start this with torchrun, such as torchrun --standalone --nproc-per-node 2 train.py"


def _mpi(env: Mapping[str, str]) -> bool:
    return "OMPI_COMM_WORLD_RANK" in env or "PMI_RANK" in env


def _in_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process, or one above it; a batch script itself is no such step."""
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdecimal() and int(step) < _LAST_STEP_ID


def _refuse_missing(env: Mapping[str, str], launcher: str, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise ValueError(f"{launcher}'s environment must have {', '.join(missing)}, which is not set: was it cleared?")


def _whole(env: Mapping[str, str], name: str) -> int:
    if not env[name].isdecimal():
        raise ValueError(f"{name} must be a whole number from 0, got {env[name]!r}")
    return int(env[name])


def _port(env: Mapping[str, str], job: str) -> int:
    """MASTER_PORT, or one that all ranks derive from the job's name, so that jobs on one node seldom meet."""
    if env.get("MASTER_PORT"):
        port = _whole(env, "MASTER_PORT")
        if not 1 <= port <= 65535:
            raise ValueError(f"MASTER_PORT must be 1..65535, got {port}")
        return port
    if not job:
        raise ValueError(
            "MASTER_PORT must be a free port of rank 0's node, got none; pass it on with mpirun, as "
            "launch/mpirun.sh does"
        )
    return _PORTS[int(hashlib.sha256(job.encode()).hexdigest(), 16) % len(_PORTS)]


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" is [2, 2, 2, 1]."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE must be such as 2(x3),1, got {text!r}")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def first_host(nodes: str) -> str:
    """The first name of a node list of Slurm: node[07-09,12],other gives node07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST must be such as node[07-09], got {nodes!r}")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first[0])
