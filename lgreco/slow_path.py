"""Setting up the slow path of one engine: a controller that makes plans, or a replay of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from lgreco.agreement import make_cpu_group
from lgreco.arrivals import ArrivalClock
from lgreco.auto import Verdict
from lgreco.candidates import Offers
from lgreco.config import Config
from lgreco.controller import Controller
from lgreco.link_watch import LinkWatch
from lgreco.measurement import Rail
from lgreco.nodes import Nodes
from lgreco.peers import Peers
from lgreco.plan_log import PlanLog
from lgreco.pricing import Pricing
from lgreco.replay import Replay


def make_slow_path(
    config: Config,
    offers: Offers,
    engine: Any,
    group: dist.ProcessGroup,
    parameters: Sequence[torch.Tensor],
    verdict: Verdict | None,
    cap_mb: float,
    nodes: Nodes | None = None,
) -> Controller | Replay:
    """Makes what gives the engine its plans; collective, nothing is started.

    Args:
        config: with a solver.
        offers: what it may choose.
        engine: of this rank.
        group: DDP's.
        parameters: by layer.
        verdict: of `auto`; None: plans are priced in bytes.
        cap_mb: DDP's bucket cap in MiB.
        nodes: of a hierarchical exchange.
    """
    solver = config.solver
    assert solver is not None, "there are offers"
    if solver.plan_replay is not None:
        return Replay(offers, solver.plan_replay, engine)
    peers = Peers(make_cpu_group(group, "lgreco-tables"))
    rail = None
    if nodes is not None:
        carried = nodes.carried(peers.rank, offers.layers)
        rail = Rail(Peers(make_cpu_group(group, "lgreco-rail-tables", nodes.rail_of(peers.rank))), carried)
    exchanging = peers.world_size if rail is None else rail.peers.world_size
    log = PlanLog(config, solver, offers, peers.rank, exchanging)
    watch = None
    if verdict is not None and verdict.calibration is not None:
        log.forecast(verdict.forecast())
        pricing = Pricing(offers, verdict.calibration, cap_mb)
        watch = LinkWatch(pricing, engine.stats, peers, len(parameters), ArrivalClock(parameters))
    return Controller(
        offers,
        solver,
        engine,
        peers,
        log,
        seed=config.seed,
        warmup_steps=config.warmup_steps,
        watch=watch,
        rail=rail,
    )
