"""The advice that follows from made-up links and passes: each verdict that is possible, and its figures."""

from __future__ import annotations

from typing import Any

import pytest
from calibrations import calibration
from rich.console import Console

from lgreco.advice import Advice
from lgreco.advisor import Profile, advice_of
from lgreco.config import Config
from lgreco.cost_model import exposed_s
from lgreco.layer import LayerInfo

LAYERS = [LayerInfo(f"layer{index}", (1024, 1024), "fp32") for index in range(4)]
"""4 MiB each."""
BYTES = 4 * 4 * 1024 * 1024


def advice(bytes_per_s: float, dense_s: float | None = None, spread_s: float = 0.0, **more: Any) -> Advice:
    """Of a model whose backward ends at 0.3 s; a pass takes a second without exchange."""
    ready_s = [0.3, 0.2, 0.1, 0.0]
    made = calibration(bytes_per_s, **{"latency_s": 0.0, "codec_s": 1e-10, **more})
    if dense_s is None:  # as the model says: one bucket
        dense_s = 1.0 + exposed_s([0.3], [BYTES / bytes_per_s])
    around = [-spread_s, 0.0, spread_s]
    profile = Profile([1.0 + each for each in around], [dense_s + each for each in around], ready_s)
    return advice_of(made, LAYERS, profile, Config(), cap_mb=25.0)


def test_a_fast_link_needs_nothing() -> None:
    found = advice(1e10)
    assert found.verdict.startswith("do nothing:")
    assert found.compute_s == 1.0
    assert found.prediction_error == pytest.approx(0.0)


def test_what_is_within_the_noise_is_no_reason_to_change() -> None:
    assert advice(1e9, dense_s=1.1, spread_s=0.2).verdict.startswith("do nothing:")


def test_smaller_buckets_where_backward_can_hide_them() -> None:
    found = advice(1.6e8)
    assert found.verdict.startswith("use bucket_cap_mb=")
    assert found.tuned.step_s < found.dense.step_s


def test_a_slow_link_wants_the_plan() -> None:
    found = advice(1e7)
    assert found.verdict.startswith("use lgreco quantize(bits=4, block=512)")
    # Two ranks: residuals of the whole gradient at the sender, of half of it at the owner, two of each.
    assert found.plan.memory_bytes == 2 * 4 * 1.5 * BYTES / 4
    assert found.exposed_s == pytest.approx(BYTES / 1e7)


def test_bf16_where_codecs_cannot_keep_up() -> None:
    assert advice(1e7, codec_s=1e-6, dense_s=None).verdict.startswith("use bf16")


def test_a_link_too_slow_for_anything_wants_accumulation_too() -> None:
    found = advice(2e6)
    assert found.verdict.startswith("use lgreco quantize(bits=4, block=512)")
    assert "and accumulate " in found.verdict
    assert [option.name for option in found.accumulated] == ["accumulate 2", "accumulate 4", "accumulate 8"]
    assert found.accumulated[0].step_s == pytest.approx(1 + BYTES / 2e6 / 2)


def test_error_bars_grow_with_what_the_model_got_wrong() -> None:
    exact, wrong = advice(1e7), advice(1e7, dense_s=4.0)
    assert wrong.bf16.error_s > exact.bf16.error_s


def test_a_table_for_people_has_every_way() -> None:
    console = Console(width=160)
    with console.capture() as text:
        console.print(advice(1e7).to_table())
    shown = text.get()
    for word in ("compute alone", "dense as it is", "bf16", "accumulate 8", "lgreco quantize", "measured", "predicted"):
        assert word in shown
