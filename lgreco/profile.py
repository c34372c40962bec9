"""Profile: what real passes take with and without exchange, and by other ways of averaging, timed in turns."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from lgreco.arrivals import ArrivalClock
from lgreco.attach import attach
from lgreco.auto import Way
from lgreco.config import Config
from lgreco.state import State

BLOCK = 3
"""Passes of a kind before the other kind's turn."""
_SETTLING = 2
"""Passes until a new DDP module is at its usual speed: it makes its buckets anew after the first."""
_FEWEST = 2
"""Turns of each kind, however slow a pass is."""


@dataclass(frozen=True)
class Profile:
    """What passes took, the same on every rank.

    Attributes:
        compute_s: passes without exchange, the slowest rank of each.
        dense_s: passes with DDP's, likewise.
        ready_s: when each layer's gradient is there; None where that is not known, then nothing counts as hidden.
    """

    compute_s: Sequence[float]
    dense_s: Sequence[float]
    ready_s: Sequence[float] | None


@dataclass(frozen=True)
class Setup:
    """How gradients are averaged in a trial.

    Attributes:
        way: who averages.
        cap_mb: `bucket_cap_mb`, MiB.
        config: lgreco's, where it is lgreco.
    """

    way: Way
    cap_mb: float
    config: Config | None = None


class Passes:
    """Forward and backward passes of one DDP module, none of which an optimizer follows; collective.

    Args:
        ddp: without a hook.
        loss: of the module that it is given, which has the same parameters.
        cpu_group: of the same ranks, reaching the CPU.
        limit_s: after this long no further turn begins, beyond the fewest that a median needs.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        loss: Callable[[DistributedDataParallel], torch.Tensor],
        cpu_group: dist.ProcessGroup,
        limit_s: float,
    ) -> None:
        self._ddp, self._loss, self._group, self._limit_s = ddp, loss, cpu_group, limit_s
        self._parameters = [each for each in ddp.module.parameters() if each.requires_grad]
        self._device = self._parameters[0].device

    def profile(self, steps: int) -> Profile:
        """`steps` passes with and as many without exchange, in turns, so that noise of the machine hits both alike."""
        times: dict[bool, list[float]] = {False: [], True: []}
        clock = None
        with self._undisturbed():
            for _ in range(_SETTLING):
                self._one(self._ddp)
            for turn in self._turns(-(-steps // BLOCK)):
                for exchanges in (False, True) if turn % 2 else (True, False):
                    if not exchanges and clock is None:
                        clock = ArrivalClock(self._parameters, passes=BLOCK - 1)
                    times[exchanges] += [self._one(self._ddp, exchanges) for _ in range(BLOCK)]
                    if clock is not None:
                        clock.stop()
        assert clock is not None, "there were passes without exchange"
        unknown = [float("nan")] * len(self._parameters)
        compute_s, dense_s, ready_s = self._slowest(times[False], times[True], clock.ready_s() or unknown)
        return Profile(compute_s, dense_s, ready_s if all(each == each for each in ready_s) else None)

    def trial(self, setups: Mapping[str, Setup | None], steps: int) -> dict[str, list[float]]:
        """Tries each in turn, again and again, so that what changes meanwhile hits all alike.

        Args:
            setups: by name, tried on twins of the module that are there only for their turn; None: without exchange.
            steps: passes of each, in turns of BLOCK, of which there are two or more.

        Returns:
            For each, of every turn the median pass; of a pass the slowest rank.
        """
        times: dict[str, list[float]] = {name: [] for name in setups}
        with self._undisturbed():
            for _ in self._turns(max(_FEWEST, -(-steps // BLOCK))):
                for name, setup in setups.items():
                    times[name] += self._turn(setup)
                    gc.collect()  # a DDP module is part of cycles; its hooks on the parameters go with it
        found = zip(times, self._slowest(*times.values()), strict=True)
        return {name: [median(each[i : i + BLOCK]) for i in range(0, len(each), BLOCK)] for name, each in found}

    def _turn(self, setup: Setup | None) -> list[float]:
        if setup is None:
            return [self._one(self._ddp, exchanges=False) for _ in range(BLOCK)]
        twin, state = _twin(self._ddp, setup)
        try:
            for _ in range(_SETTLING):
                self._one(twin)
            return [self._one(twin) for _ in range(BLOCK)]
        finally:
            twin.zero_grad()  # gradients may be views of its buckets
            if state is not None:
                state.close()

    def _one(self, ddp: DistributedDataParallel, exchanges: bool = True) -> float:
        ddp.zero_grad()
        dist.barrier(self._group)
        begun = time.perf_counter()
        with contextlib.nullcontext() if exchanges else ddp.no_sync():
            torch.autograd.backward(self._loss(ddp))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - begun

    def _turns(self, turns: int) -> Iterator[int]:
        """At most `turns`, fewer where time is up; as many on every rank."""
        begun = time.monotonic()
        for turn in range(turns):
            late = torch.tensor(turn >= _FEWEST and time.monotonic() - begun > self._limit_s)
            dist.broadcast(late, group_src=0, group=self._group)
            if late:
                return
            yield turn

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Random states are the caller's again afterwards, and gradients gone."""
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            yield
        self._ddp.zero_grad()

    def _slowest(self, *mine: Sequence[float]) -> list[list[float]]:
        """Of each figure the largest of all ranks; NaN where a rank has none."""
        flat = torch.tensor([each for figures in mine for each in figures], dtype=torch.float64)
        everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(everyone, flat, group=self._group)
        slowest = torch.stack(everyone).amax(dim=0).split([len(figures) for figures in mine])
        return [part.tolist() for part in slowest]


def _twin(ddp: DistributedDataParallel, setup: Setup) -> tuple[DistributedDataParallel, State | None]:
    """Another DDP module around the same model, which exchanges in this way; with lgreco's state, if it is that."""
    twin = DistributedDataParallel(
        ddp.module,
        device_ids=ddp.device_ids,
        output_device=ddp.output_device,
        dim=ddp.dim,
        init_sync=False,
        process_group=ddp.process_group,
        bucket_cap_mb=setup.cap_mb,
        find_unused_parameters=ddp.find_unused_parameters,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        static_graph=ddp.static_graph,
    )
    twin.broadcast_buffers = ddp.broadcast_buffers
    if setup.way == "bf16":
        twin.register_comm_hook(ddp.process_group, bf16_compress_hook)
    return twin, attach(twin, setup.config) if setup.way == "lgreco" else None
