"""The advice that follows from made-up links and passes: each verdict that is possible, and its figures."""

from __future__ import annotations

from typing import Any

import pytest
from calibrations import calibration
from rich.console import Console

from lgreco.advice import Advice, _student, in_blocks, median_of
from lgreco.advisor import options_of
from lgreco.config import Config
from lgreco.cost_model import exposed_s
from lgreco.layer import LayerInfo
from lgreco.profile import Profile

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
    return Advice(made, 4 * 1024 * 1024, options_of(made, LAYERS, profile, Config(), cap_mb=25.0))


def tried(found: Advice, **seconds: float) -> Advice:
    """After a trial in which each way took so long, in three passes; where nothing is said, what was predicted."""
    options = found.options
    times = {each.name: [seconds.get(str(each.way), each.step_s)] * 3 for each in (options.compute, *options.ways)}
    return Advice(found.calibration, found.numel, found.options.tried(times))


def test_a_fast_link_needs_nothing() -> None:
    found = advice(1e10)
    assert found.verdict.startswith("do nothing:")
    assert found.options.compute.step_s == 1.0
    assert found.options.dense.predicted_s == pytest.approx(found.options.dense.step_s)


def test_what_is_within_the_noise_is_no_reason_to_change() -> None:
    assert advice(1e9, dense_s=1.1, spread_s=0.2).verdict.startswith("do nothing:")


def test_smaller_buckets_where_backward_can_hide_them() -> None:
    found = advice(1.6e8)
    assert found.verdict.startswith("use bucket_cap_mb=")
    assert found.best.step_s < found.options.dense.step_s


def test_a_slow_link_wants_the_plan() -> None:
    found = advice(1e7)
    assert found.verdict.startswith("use lgreco quantize(bits=4, block=512)")
    # Two ranks: residuals of the whole gradient at the sender, of half of it at the owner, two of each.
    assert found.best.memory_bytes == 2 * 4 * 1.5 * BYTES / 4
    assert found.exposed_s == pytest.approx(BYTES / 1e7)


def test_bf16_where_codecs_cannot_keep_up() -> None:
    assert advice(1e7, codec_s=1e-6, dense_s=None).verdict.startswith("use bf16")


def test_a_link_too_slow_for_anything_wants_accumulation_too() -> None:
    found = advice(2e6)
    assert found.verdict.startswith("use lgreco quantize(bits=4, block=512)")
    assert "and accumulate " in found.verdict
    assert [option.name for option in found.options.accumulated] == ["accumulate 2", "accumulate 4", "accumulate 8"]
    assert found.options.accumulated[0].step_s == pytest.approx(1 + BYTES / 2e6 / 2)


def test_error_bars_grow_with_what_the_model_got_wrong() -> None:
    exact, wrong = advice(1e7), advice(1e7, dense_s=4.0)
    assert wrong.options.by("bf16")[0].error_s > exact.options.by("bf16")[0].error_s


def test_what_a_trial_shows_counts_and_not_what_was_predicted() -> None:
    slow = advice(1e7)
    assert tried(slow).verdict == slow.verdict
    assert tried(slow, lgreco=10.0).verdict.startswith("use bf16")
    assert tried(slow, lgreco=10.0, bf16=10.0, dense=0.9).verdict.startswith("do nothing:")
    fast = advice(1e10)
    assert tried(fast, lgreco=0.5).verdict.startswith("use lgreco")


def test_a_bucket_cap_is_advised_only_where_it_gains() -> None:
    slow = advice(1e7)
    assert len(slow.options.by("lgreco")) == 2
    assert tried(slow, lgreco=1.2).best.name == "lgreco quantize(bits=4, block=512)"


def test_a_trial_tries_each_way_once() -> None:
    as_it_is = advice(1e10, latency_s=1.0).options.to_try()  # one bucket is best for all
    assert list(as_it_is)[1:] == ["dense as it is", "bf16", "lgreco quantize(bits=4, block=512)"]
    compute, *setups = advice(1.6e8).options.to_try().values()
    assert compute is None
    assert [(setup.way, setup.cap_mb) for setup in setups if setup] == [
        (way, cap_mb) for way in ("dense", "bf16", "lgreco") for cap_mb in (25.0, 1.0)
    ]
    plan = setups[-1].config if setups[-1] else None
    assert plan is not None
    assert plan.warmup_steps == 0
    assert str(dict(plan.layers)["layer0"]) == "quantize(bits=4, block=512)"


def test_what_a_turn_adds_to_all_ways_is_not_their_error() -> None:
    turns = [1.0, 1.3, 0.8, 1.1]
    steady = in_blocks({"one": [0.2 * turn for turn in turns], "other": [0.1 * turn for turn in turns]})
    assert steady["one"][0] == pytest.approx(2 * steady["other"][0])
    assert steady["one"][1] == pytest.approx(0.0, abs=1e-9)
    noisy = in_blocks({"one": turns, "other": turns[::-1]})
    assert noisy["one"][1] > 0.1


def test_of_one_turn_or_one_way_no_interval_follows() -> None:
    for times in ({"one": [1.0], "other": [2.0]}, {"one": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="an interval takes two ways and two turns"):
            in_blocks(times)


@pytest.mark.parametrize("freedom", [3, 5, 12, 40])
def test_intervals_are_students(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.04)


def test_a_median_is_surer_the_more_passes_there_are() -> None:
    few, many = median_of([1.0, 2.0, 3.0]), median_of([1.0, 2.0, 3.0] * 100)
    assert few[0] == many[0] == 2.0
    assert many[1] < few[1] / 5


def test_what_the_model_gets_wrong_of_dense_it_expects_of_others_by_the_length_of_their_exchange() -> None:
    exact = advice(1e7)
    dense_s = exact.options.dense.step_s
    wrong = advice(1e7, dense_s=dense_s + 1.0)
    more = {
        each.name: each.step_s - same.step_s for each, same in zip(wrong.options.ways, exact.options.ways, strict=True)
    }
    assert more["dense as it is"] == pytest.approx(1.0)
    assert more["bf16"] == pytest.approx(0.5, abs=0.02)  # half the bytes
    assert 0.05 < more["lgreco quantize(bits=4, block=512)"] < 0.2
    assert wrong.options.dense.predicted_s == exact.options.dense.predicted_s


def test_a_table_for_people_has_every_way() -> None:
    console = Console(width=160)
    with console.capture() as text:
        console.print(advice(1e7).to_table())
    shown = text.get()
    for word in ("compute alone", "dense as it is", "bf16", "accumulate 8", "lgreco quantize", "measured", "predicted"):
        assert word in shown
