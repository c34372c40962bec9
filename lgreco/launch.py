"""init_process_group: joins the ranks that torchrun, mpirun or srun started, and says where this one stands."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

# First imported while a group is there, it keeps that group in defaults of its functions: Gloo's threads then outlive
# destroy_process_group and may abort the process at its exit (torch 2.15).
import torch.distributed.nn.functional

from lgreco.launch_environment import Launch, read_launch

_TIMEOUT = timedelta(minutes=5)


def init_process_group(
    backend: str | None = None,
    *,
    timeout: timedelta = _TIMEOUT,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """Joins the default process group as the launcher's environment describes it; collective over all ranks.

    Args:
        backend: of torch.distributed; None for nccl where every local rank has a GPU of its own, else gloo. With nccl
            the local rank's GPU becomes the current one.
        timeout: of the group's operations, and of waiting for the other ranks.
        environ: the environment to read; None for the process's own.

    Returns:
        Where this rank stands, its node's number included.

    Raises:
        ValueError: for a missing, wrong or contradictory environment, naming the variables.
    """
    launch = read_launch(environ)
    if backend is None:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        backend = "nccl" if gpus >= launch.local_world_size else "gloo"
    device = torch.device("cuda", launch.local_rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    if launch.launcher == "torchrun" and environ is None:
        # torchrun's agent may hold the store itself, under a prefix of this restart; env:// knows.
        dist.init_process_group(backend, timeout=timeout, device_id=device)
        return launch
    _refuse_unknown_address(launch)
    store = dist.TCPStore(launch.address, launch.port, launch.world_size, launch.rank == 0, timeout)
    place = dist.PrefixStore("lgreco/launch", store)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("default", store),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
        device_id=device,
    )
    return launch if launch.node_rank is not None else _with_node(launch, place, socket.gethostname())


def _refuse_unknown_address(launch: Launch) -> None:
    """A store would look for a name that nobody knows until its timeout."""
    try:
        socket.getaddrinfo(launch.address, launch.port)
    except OSError as error:
        raise ValueError(
            f'{launch.launcher}: the address of rank 0\'s node, "{launch.address}", is not known on '
            f"{socket.gethostname()} ({error.strerror}); set MASTER_ADDR to one that every node knows"
        ) from error


def _with_node(launch: Launch, store: dist.Store, host: str) -> Launch:
    """Numbers the nodes in the order of their first ranks: MPI's launchers tell a process nothing of its node's."""
    store.set(f"host{launch.rank}", host)
    hosts = [store.get(f"host{rank}").decode() for rank in range(launch.world_size)]
    if hosts.count(host) != launch.local_world_size:
        raise ValueError(
            f"{launch.launcher} says that {launch.local_world_size} ranks run on this node, "
            f'but {hosts.count(host)} have the host name "{host}": nodes must have different names'
        )
    return dataclasses.replace(launch, node_rank=list(dict.fromkeys(hosts)).index(host))
