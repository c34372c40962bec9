"""A made-up calibration for tests."""

from __future__ import annotations

from lgreco.calibration import Calibration
from lgreco.choice import parse
from lgreco.cost_model import Line


def calibration(
    bytes_per_s: float = 1e6,
    latency_s: float = 1e-3,
    world_size: int = 2,
    codec_s: float = 0.0,
    dense_factor: float = 1.0,
) -> Calibration:
    """Links of that rate; DDP's allreduce is `dense_factor` times as fast; each codec adds `codec_s` an element."""
    probes = ("quantize(bits=4)", "topk(density=0.01)", "dense(dtype=bf16)", "lowrank(rank=4)", "lowrank(rank=32)")
    return Calibration(
        world_size,
        Line(latency_s, bytes_per_s * dense_factor),
        Line(latency_s, bytes_per_s),
        tuple((str(parse(probe)), codec_s) for probe in probes),
        spread=0.05,
        prediction_error=0.02,
    )
