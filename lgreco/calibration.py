"""Calibration: what the exchange and DDP's allreduce take on these hosts, measured on the group itself.

A parameter whose gradient costs nothing to compute is exchanged by the engine, so that transport, lanes and codecs are
those of training. The dense exchange at several sizes gives a line (alpha-beta); what another choice takes beyond that
line is what its codec adds to the wire. All ranks begin together, a repetition counts as long as its slowest rank, and
all ranks compute from the same gathered times: so they hold the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lgreco.choice import Choice, Dense, LowRank, Quantize, RandomK, TopK, parse
from lgreco.cost_model import Line, fit_line
from lgreco.layer import LayerInfo
from lgreco.plan import wire_bytes
from lgreco.ring import ring_share

_COLUMNS = 1024
_ROWS = (16, 256, 1024)
"""Sizes of the measured parameter, in rows of 1024 elements: 64 KiB, 1 MiB and 4 MiB of fp32."""
_REPEATS, _LEAD_IN = 7, 2
_LONGEST_S = 3.0
"""What the repetitions of one size may take together; larger sizes are left out on slow links."""
_DRIFT = 1.3
"""By which factor a collective's time may change before a calibration no longer holds."""
_PROBES: tuple[Choice, ...] = (Dense("bf16"), Quantize(), TopK(), RandomK(), LowRank(rank=4), LowRank(rank=32))


@dataclass(frozen=True)
class Calibration:
    """What a collective takes on one set of hosts.

    Attributes:
        world_size: ranks.
        allreduce: DDP's own, over the bytes that a rank sends in a ring.
        exchange: lgreco's dense one, over the bytes that a rank sends in both rounds.
        codec_s: (choice, seconds) per element that a choice takes beyond the wire.
        spread: half the distance of the quartiles of repeated measurements over their median, mean over all.
        prediction_error: largest relative distance of a measured median from the fitted lines.
        bf16_element_s: what torch's bf16 hook takes beyond the wire of its allreduce, seconds per element.
    """

    world_size: int
    allreduce: Line
    exchange: Line
    codec_s: tuple[tuple[str, float], ...]
    spread: float
    prediction_error: float
    bf16_element_s: float = 0.0

    def bf16_hook_s(self, numel: int) -> float:
        """What torch's bf16 hook takes for a bucket of so many elements; seconds."""
        return self.allreduce.seconds(2 * ring_share(self.world_size) * numel) + self.bf16_element_s * numel

    def layer_s(self, layer: LayerInfo, choice: Choice) -> float:
        """What a layer adds to its bucket's exchange, the bucket's latency not counted; seconds."""
        wire_s = wire_bytes(layer, choice, self.world_size) / self.exchange.bytes_per_s
        coded_numel = layer.factored_numel if isinstance(choice, LowRank) else layer.sent_numel
        return wire_s + self.codec_element_s(choice) * coded_numel

    def codec_element_s(self, choice: Choice) -> float:
        """Seconds per element beyond the wire; for low rank on the line through the measured ranks."""
        probed = [(parse(text), seconds) for text, seconds in self.codec_s]
        akin = [(each, seconds) for each, seconds in probed if each.codec == choice.codec]
        if isinstance(choice, LowRank):
            (low, low_s), (high, high_s) = [(each.rank, s) for each, s in akin if isinstance(each, LowRank)]
            return max(0.0, low_s + (high_s - low_s) * (choice.rank - low) / (high - low))
        return 0.0 if choice == Dense("fp32") or not akin else akin[0][1]

    def at_rate(self, factor: float) -> Calibration:
        """The same hosts on links `factor` times as fast."""
        return replace(self, allreduce=_faster(self.allreduce, factor), exchange=_faster(self.exchange, factor))

    def with_overhead(self, factor: float) -> Calibration:
        """The same links, latencies and codecs `factor` times as slow."""
        slower = replace(self, allreduce=_later(self.allreduce, factor), exchange=_later(self.exchange, factor))
        codec_s = tuple((choice, factor * seconds) for choice, seconds in self.codec_s)
        return replace(slower, codec_s=codec_s, bf16_element_s=factor * self.bf16_element_s)

    def fingerprint(self) -> str:
        """64 hexadecimal digits, equal for equal calibrations on every rank."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them."""
        return {**asdict(self), "codec_s": dict(self.codec_s)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave.

        Raises:
            ValueError: for anything else.
        """
        try:
            lines = {name: Line(**fields[name]) for name in ("allreduce", "exchange")}
            codec_s = tuple((str(parse(text)), seconds) for text, seconds in fields["codec_s"].items())
            made = cls(**{**fields, **lines, "codec_s": codec_s})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no calibration of this version: {error}") from None
        made._check()
        return made

    def _check(self) -> None:
        """Refuses what no measurement gives, as a damaged file may hold it."""
        values = asdict(self)
        lines = {f"{name}.{key}": each for name in ("allreduce", "exchange") for key, each in values.pop(name).items()}
        for name, value in {**dict(values.pop("codec_s")), **values, **lines}.items():
            above = name == "world_size" or name.endswith("bytes_per_s")
            if type(value) not in (int, float) or not 0 <= value < math.inf or (above and value == 0):
                raise ValueError(f"a damaged calibration: {name} must be a number from 0, rates above 0, got {value!r}")


def measure(group: dist.ProcessGroup, cpu_group: dist.ProcessGroup, device: torch.device) -> Calibration:
    """Calibrates; collective, a few seconds, longer on slow links.

    Args:
        group: DDP's.
        cpu_group: of the same ranks, over the CPU, unused by others meanwhile.
        device: of the gradients.
    """
    clock = _Clock(cpu_group, device)
    world_size = dist.get_world_size(group)
    share = ring_share(world_size)
    reduced = _by_size(lambda rows: clock.of(_allreduce(group, device, rows)))
    dense = _by_size(lambda rows: clock.of(_exchange(group, device, rows, Dense())))
    rows = max(dense)
    halves = clock.of(_bf16_hook(group, device, max(reduced)))
    probes = {choice: clock.of(_exchange(group, device, rows, choice)) for choice in _PROBES}
    allreduce = _fit(reduced, share)
    exchange = _fit(dense, share)
    layer = LayerInfo("weight", (rows, _COLUMNS), "fp32")
    codec_s = [
        (str(choice), max(0.0, median(times) - exchange.seconds(wire_bytes(layer, choice, world_size))) / layer.numel)
        for choice, times in probes.items()
    ]
    halved_s = allreduce.seconds(share * _bytes(max(reduced)) / 2)
    everything = [*reduced.values(), *dense.values(), *probes.values()]
    return Calibration(
        world_size,
        allreduce,
        exchange,
        tuple(codec_s),
        sum(map(_spread, everything)) / len(everything),
        max(_misfit(reduced, allreduce, share), _misfit(dense, exchange, share)),
        max(0.0, median(halves) - halved_s) / (max(reduced) * _COLUMNS),
    )


def still_holds(
    calibration: Calibration, group: dist.ProcessGroup, cpu_group: dist.ProcessGroup, device: torch.device
) -> bool:
    """Whether DDP's allreduce of 1 MiB still takes about what it took; collective, the same answer on every rank."""
    rows = _ROWS[1]
    took = median(_Clock(cpu_group, device).of(_allreduce(group, device, rows)))
    expected = calibration.allreduce.seconds(ring_share(calibration.world_size) * _bytes(rows))
    return 1 / _DRIFT < took / expected < _DRIFT


class _Given(torch.autograd.Function):
    """Has the given gradient, whatever comes."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.gradient = gradient
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.gradient, None


class _Probe(nn.Module):
    """One matrix, [rows, 1024], whose gradient is drawn once."""

    def __init__(self, rows: int, device: torch.device, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, _COLUMNS, device=device))
        drawn = torch.randn(rows, _COLUMNS, generator=torch.Generator().manual_seed(seed))
        self._gradient = drawn.to(device)

    def forward(self) -> torch.Tensor:
        loss: torch.Tensor = _Given.apply(self.weight, self._gradient)
        return loss


class _Clock:
    """Times what all ranks begin together."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._world_size = dist.get_world_size(group)

    def of(self, prepared: tuple[Callable[[], None], Callable[[], None]]) -> list[float]:
        """Seconds of each repetition on its slowest rank; the same on every rank."""
        act, end = prepared
        times = torch.zeros(_REPEATS, dtype=torch.float64)
        for turn in range(-_LEAD_IN, _REPEATS):
            dist.barrier(self._group)
            begun = time.perf_counter()
            act()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if turn >= 0:
                times[turn] = time.perf_counter() - begun
        end()
        everyone = [torch.empty_like(times) for _ in range(self._world_size)]
        dist.all_gather(everyone, times, group=self._group)
        slowest: list[float] = torch.stack(everyone).amax(dim=0).tolist()
        return slowest


def _allreduce(
    group: dist.ProcessGroup, device: torch.device, rows: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    flat = torch.zeros(rows * _COLUMNS, device=device)

    def act() -> None:
        dist.all_reduce(flat, group=group)

    return act, lambda: None


def _bf16_hook(
    group: dist.ProcessGroup, device: torch.device, rows: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """As torch's hook does it: cast and divided, summed, cast back."""
    flat = torch.zeros(rows * _COLUMNS, device=device)
    world_size = dist.get_world_size(group)

    def act() -> None:
        halves = flat.to(torch.bfloat16).div_(world_size)
        dist.all_reduce(halves, group=group)
        flat.copy_(halves)

    return act, lambda: None


def _exchange(
    group: dist.ProcessGroup, device: torch.device, rows: int, choice: Choice
) -> tuple[Callable[[], None], Callable[[], None]]:
    from lgreco.state import State  # which calibrates when it is told to

    ddp = DistributedDataParallel(
        _Probe(rows, device, dist.get_rank(group)),
        process_group=group,
        bucket_cap_mb=4096,
        gradient_as_bucket_view=True,
        init_sync=False,  # every rank's are zeros
    )
    state = State({"default": str(choice), "min_numel": 0}, group)
    state._bind(ddp)
    state._register(ddp)
    return lambda: torch.autograd.backward(ddp()), state.close


def _by_size(times_of: Callable[[int], list[float]]) -> dict[int, list[float]]:
    """Times by rows; the two smallest sizes always, so that a line can be drawn."""
    found: dict[int, list[float]] = {}
    for rows in _ROWS:
        if len(found) >= 2 and median(found[max(found)]) * rows / max(found) * _REPEATS > _LONGEST_S:
            break
        found[rows] = times_of(rows)
    return found


def _fit(times: Mapping[int, Sequence[float]], share: float) -> Line:
    return fit_line([share * _bytes(rows) for rows in times], [median(each) for each in times.values()])


def _misfit(times: Mapping[int, Sequence[float]], line: Line, share: float) -> float:
    return max(abs(line.seconds(share * _bytes(rows)) / median(each) - 1) for rows, each in times.items())


def _spread(times: Sequence[float]) -> float:
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return (high - low) / 2 / middle


def _bytes(rows: int) -> int:
    return 4 * rows * _COLUMNS


def _faster(line: Line, factor: float) -> Line:
    return replace(line, bytes_per_s=line.bytes_per_s * factor)


def _later(line: Line, factor: float) -> Line:
    return replace(line, latency_s=line.latency_s * factor)
