"""Which ranks share a node, for an exchange that is dense inside nodes and coded between them.

Each layer has a carrier, one local rank, the same on all nodes: it averages the layer over its node and exchanges the
average with the carriers of the other nodes. The carriers of one place are a rail.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch.distributed as dist

from lgreco import _C
from lgreco.agreement import make_cpu_group
from lgreco.launch_environment import read_launch
from lgreco.layer import LayerInfo


@dataclass(frozen=True)
class Nodes:
    """DDP's ranks by node; every node has equally many, two or more, and there are two nodes or more.

    Attributes:
        ranks: [nodes][ranks of a node], each ascending, nodes in the order of their first ranks.
    """

    ranks: tuple[tuple[int, ...], ...]

    def node_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of a rank's node."""
        return next(node for node in self.ranks if rank in node)

    def rail_of(self, rank: int) -> tuple[int, ...]:
        """The ranks that have the same place in their nodes."""
        place = self.node_of(rank).index(rank)
        return tuple(sorted(node[place] for node in self.ranks))

    def carriers(self, layers: Sequence[LayerInfo]) -> list[int]:
        """By layer: place in the node of the rank that carries it; the largest go first to who has least."""
        carriers, loads = [0] * len(layers), np.zeros(len(self.ranks[0]), dtype=np.int64)
        for row in sorted(range(len(layers)), key=lambda row: -layers[row].numel):
            carriers[row] = int(loads.argmin())
            loads[carriers[row]] += layers[row].numel
        return carriers

    def carried(self, rank: int, layers: Sequence[LayerInfo]) -> frozenset[int]:
        """Ids of the layers that a rank carries."""
        place = self.node_of(rank).index(rank)
        return frozenset(row for row, carrier in enumerate(self.carriers(layers)) if carrier == place)

    def describe(self) -> list[list[int]]:
        """Plain lists, for checkpoints."""
        return [list(node) for node in self.ranks]


@dataclass(frozen=True)
class NodeGroups:
    """The groups of one rank, over Gloo: of its node and of its rail."""

    nodes: Nodes
    node: dist.ProcessGroup
    rail: dist.ProcessGroup

    def native(self, rank: int, layers: Sequence[LayerInfo]) -> Any:
        """What the engine of DDP's `rank` is told."""
        return _C.Nodes(self.node, self.nodes.node_of(rank), self.nodes.rail_of(rank), self.nodes.carriers(layers))


def find_nodes(per_node: int | Literal["launcher"], group: dist.ProcessGroup) -> Nodes | None:
    """The nodes of a group's ranks; collective where the launcher is asked.

    Args:
        per_node: ranks of each node, dealt in order (0 to n-1 are the first node's), or "launcher": what the
            environment of torchrun, mpirun or srun says.
        group: reaches the CPU, of DDP's ranks.

    Returns:
        None where all ranks are on one node or each has a node of its own: there is nothing between the two then.

    Raises:
        ValueError: on every rank, where nodes have different numbers of ranks, or the environment says nothing.
    """
    world_size = dist.get_world_size(group)
    if per_node == "launcher":
        nodes = _launched(group)
    elif world_size % per_node:
        raise ValueError(f"ranks_per_node must divide the number of ranks, got {per_node} for {world_size} ranks")
    else:
        nodes = [tuple(range(first, first + per_node)) for first in range(0, world_size, per_node)]
    sizes = {len(node) for node in nodes}
    if len(sizes) > 1:
        counts = ", ".join(str(len(node)) for node in nodes)
        raise ValueError(f"ranks_per_node: nodes must have equally many ranks, the launcher says {counts}")
    return None if len(nodes) == 1 or sizes == {1} else Nodes(tuple(nodes))


def join_nodes(nodes: Nodes, group: dist.ProcessGroup) -> NodeGroups:
    """Makes the groups of this rank's node and rail; collective over `group`, which is DDP's.

    Args:
        nodes: as all ranks have found them.
        group: DDP's.
    """
    rank = dist.get_rank(group)
    return NodeGroups(
        nodes,
        make_cpu_group(group, "lgreco-node", nodes.node_of(rank)),
        make_cpu_group(group, "lgreco-rail", nodes.rail_of(rank)),
    )


def _launched(group: dist.ProcessGroup) -> list[tuple[int, ...]]:
    """The nodes as the launcher has dealt the ranks to them."""
    said: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(said, _place(), group=group)
    problems = [f"rank {rank}: {place[1]}" for rank, place in enumerate(said) if place[0] == "nowhere"]
    if problems:
        raise ValueError(f"ranks_per_node: launcher, but {problems[0]}")
    nodes: dict[Any, list[int]] = {}
    for rank, place in enumerate(said):
        nodes.setdefault(place, []).append(rank)
    return [tuple(node) for node in nodes.values()]


def _place() -> tuple[str, Any]:
    """This rank's node: by number, or by name where the environment tells none."""
    try:
        launch = read_launch()
    except ValueError as error:
        return "nowhere", str(error)
    return ("host", socket.gethostname()) if launch.node_rank is None else ("node", launch.node_rank)
