"""Prices of plans in exposed seconds, and how they follow a link; with made-up links, no clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from calibrations import calibration

from lgreco.auto import judge, plan_without
from lgreco.candidates import Offers, make_offers
from lgreco.choice import Dense, Quantize, parse
from lgreco.config import Config
from lgreco.layer import LayerInfo
from lgreco.link_watch import LinkWatch
from lgreco.measurement import Row
from lgreco.plan import Plan, resolve
from lgreco.planner import Planner
from lgreco.pricing import Pricing
from lgreco.solver_config import SolverConfig

LAYERS = tuple(LayerInfo(name, (256, 1024), "fp32") for name in ("first", "middle", "last"))
"""1 MiB each: a bucket each at a cap of 1 MiB."""
SETTINGS = SolverConfig(
    reference="quantize(bits=4)",
    candidates=["quantize(bits=2)", "quantize(bits=4)", "quantize(bits=8)", "dense(dtype=fp32)"],
)


def offers() -> Offers:
    plan = resolve(Config(default=Quantize()), LAYERS)
    return make_offers(SETTINGS, plan, [True] * 3, 2, "fp32")


def column(text: str) -> int:
    return offers().choices.index(parse(text))


def pricing(bytes_per_s: float = 1e6, **more: Any) -> Pricing:
    return Pricing(offers(), calibration(bytes_per_s, **more), cap_mb=1.0)


def test_without_arrivals_nothing_is_hidden() -> None:
    prices = pricing()
    dense = [column("dense(dtype=fp32)")] * 3
    assert prices.exposed_s(None) == pytest.approx(3 * (1e-3 + 4 * 256 * 1024 / 1e6))
    assert prices.exposed_s(dense) == prices.exposed_s(None) == prices.busy_s(None)


def test_what_backward_hides_costs_next_to_nothing() -> None:
    prices = pricing(bytes_per_s=1e9)
    prices.learn_arrivals([1.0, 0.5, 0.0])  # a second of backward, about 2 ms a bucket
    dense = [column("dense(dtype=fp32)")] * 3
    weighted, seconds, costs = prices.tables(dense)
    # The first layer's gradient comes last and alone is exposed.
    assert weighted[0, dense[0]] == seconds[0, dense[0]]
    assert weighted[1, dense[1]] == pytest.approx(0.05 * seconds[1, dense[1]])
    assert costs is offers().costs or np.array_equal(costs, offers().costs, equal_nan=True)
    assert prices.exposed_s(dense) == pytest.approx(1e-3 + 4 * 256 * 1024 / 1e9)


def rows(errors: dict[str, float]) -> dict[int, Row]:
    made = offers()
    values = np.array([errors.get(str(choice), 0.0) for choice in made.choices])
    return {row: Row(values, 10.0, 1.0) for row in range(3)}


def test_plans_spend_the_budget_where_backward_hides_nothing() -> None:
    prices = pricing(bytes_per_s=2e7)
    prices.learn_arrivals([1.0, 0.5, 0.0])
    errors = {
        str(parse("quantize(bits=2)")): 2.0,
        str(parse("quantize(bits=4)")): 1.0,
        str(parse("quantize(bits=8)")): 0.0,
    }
    made = offers()
    priced = Planner(made, SETTINGS, 2, prices).decide(rows(errors), (-1,) * 3, made.reference, 0, 10)
    # A budget of 3: two bits cost 2 there, so that one hidden layer must be (nearly) exact.
    assert priced.columns[0] == column("quantize(bits=2)")
    assert prices.exposed_s(priced.columns) < prices.exposed_s(made.reference)


def test_dense_is_taken_where_a_codec_takes_longer_than_the_wire() -> None:
    prices = pricing(bytes_per_s=1e12, codec_s=1e-6)
    made = offers()
    errors = {str(choice): 1.0 for choice in made.choices if choice != Dense()}
    decision = Planner(made, SETTINGS, 2, prices).decide(rows(errors), (-1,) * 3, made.reference, 0, 10)
    assert decision.columns == (column("dense(dtype=fp32)"),) * 3


def test_a_link_as_predicted_changes_nothing_and_noise_neither() -> None:
    prices = pricing()
    assert not prices.observe(prices.busy_s(None), None)
    assert not prices.observe(prices.busy_s(None) * 1.2, None)
    assert prices.bytes_per_s == 1e6


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_link_of_another_speed_is_found_from_one_exchange(factor: float) -> None:
    now, then = pricing(1e6), pricing(1e6 * factor)
    now.observe(now.busy_s(offers().reference), offers().reference)  # as calibrated
    assert now.observe(then.busy_s(offers().reference), offers().reference)
    assert now.bytes_per_s == pytest.approx(then.bytes_per_s)
    assert now.exposed_s(None) == pytest.approx(then.exposed_s(None))


def test_a_small_drift_counts_when_it_is_seen_twice_running() -> None:
    prices, plan = pricing(1e6, latency_s=0.0), offers().reference
    usual_s = prices.busy_s(plan)
    prices.observe(usual_s, plan)  # as calibrated
    for busy_s in (1.6 * usual_s, usual_s, usual_s / 1.6, 1.6 * usual_s):  # noise
        assert not prices.observe(busy_s, plan)
    again = pricing(1e6, latency_s=0.0)
    again.load(prices.state())
    for each in (prices, again):
        assert each.observe(1.6 * usual_s, plan)
        assert each.bytes_per_s == pytest.approx(1e6 / 1.6)
        assert not each.observe(1.6 * usual_s, plan)  # as predicted now


def test_what_differs_under_the_first_compressed_plan_is_latency_and_codecs() -> None:
    now = pricing(1e6, latency_s=1.0, codec_s=1e-6)
    plan = offers().reference
    wire_s = pricing(1e6, latency_s=0.0).busy_s(plan)
    rest_s = now.busy_s(plan) - wire_s
    assert now.observe(wire_s + 3 * rest_s, plan)
    assert now.bytes_per_s == 1e6
    assert now.overhead == pytest.approx(3.0)
    assert now.busy_s(plan) == pytest.approx(wire_s + 3 * rest_s)


def test_prices_of_a_checkpoint_are_those_that_were_saved() -> None:
    prices = pricing()
    prices.learn_arrivals([1.0, 0.5, 0.0])
    prices.observe(100.0, None)
    again = pricing(5e5)
    again.load(prices.state())
    assert again.exposed_s(None) == prices.exposed_s(None)


class Twins:
    """Two ranks' gathers, one after the other, as if they had met."""

    def __init__(self, other: list[float]) -> None:
        self.other = torch.tensor(other, dtype=torch.float64)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """This rank's and the other's."""
        return [tensor, self.other]


def test_the_watch_goes_by_the_rank_that_waited_least() -> None:
    prices = pricing()
    usual_ms = prices.busy_s(None) * 1e3
    figures = {"busy_ms": usual_ms * 10, "exposed_ms": 7.0}
    watch = LinkWatch(prices, lambda: figures, Twins([usual_ms / 1e3, 0.005, 1.0, 0.5, 0.0]), 3, None)
    watch.sample()
    forecast = watch.agree(19, None)
    assert forecast.text == ""
    assert forecast.busy_ms == pytest.approx(usual_ms)
    assert forecast.predicted_busy_ms == pytest.approx(usual_ms)
    assert forecast.exposed_ms == pytest.approx(5.0)
    assert not prices.knows_arrivals  # this rank has no arrivals to tell


def test_the_watch_follows_a_link_that_slows_down_and_the_plan_follows() -> None:
    """A link so fast that dense is best becomes a hundred times slower: the next plan is compressed."""
    prices = pricing(bytes_per_s=1e9, codec_s=4e-9)
    made = offers()
    errors = {str(choice): 1.0 for choice in made.choices if choice != Dense()}
    planner = Planner(made, SETTINGS, 2, prices)
    first = planner.decide(rows(errors), (-1,) * 3, made.reference, 0, 10)
    assert first.columns == (column("dense(dtype=fp32)"),) * 3
    slow_s = pricing(bytes_per_s=1e7, codec_s=4e-9).busy_s(None)
    prices.observe(prices.busy_s(first.columns), first.columns)  # as calibrated
    watch = LinkWatch(
        prices, lambda: {"busy_ms": slow_s * 1e3, "exposed_ms": 1.0}, Twins([slow_s, 0.0, *[float("nan")] * 3]), 3, None
    )
    watch.sample()
    assert watch.agree(100, first.columns).text == "link: 1e+03 -> 10 MB/s"
    second = planner.decide(rows(errors), first.columns, first.columns, 100, 110)
    assert column("dense(dtype=fp32)") not in second.columns


def plan() -> Plan:
    return resolve(Config(default=Quantize()), LAYERS)


def test_attach_registers_where_the_exchange_is_shorter() -> None:
    verdict = judge(calibration(1e6), plan(), 25.0)
    assert verdict.way == "lgreco"
    assert verdict.plan == plan()
    assert "lgreco is registered" in verdict.sentence
    assert verdict.forecast().way == "lgreco"
    assert verdict.forecast().predicted_busy_ms == pytest.approx(verdict.exchange_s * 1e3)


def test_attach_leaves_it_to_the_bf16_hook_where_codecs_cannot_keep_up() -> None:
    verdict = judge(calibration(1e6, codec_s=1e-3), plan(), 25.0, solved=True)
    assert verdict.way == "bf16"
    assert set(plan_without("bf16", plan()).values()) == {Dense("bf16")}
    assert "torch's bf16 hook is registered" in verdict.sentence
    assert verdict.forecast().predicted_busy_ms == pytest.approx(verdict.bf16_s * 1e3)
    numel = sum(layer.numel for layer in LAYERS)
    assert verdict.bf16_s == pytest.approx(1e-3 + 2 * numel * 1e-6)  # two ranks: each sends all of it once


def test_attach_leaves_ddp_alone_where_casting_costs_more_than_it_saves() -> None:
    slow_casts = replace(calibration(1e6, codec_s=1e-3), bf16_element_s=1e-3)
    verdict = judge(slow_casts, plan(), 25.0, solved=True)
    assert verdict.way == "dense"
    assert verdict.forecast().predicted_busy_ms == pytest.approx(verdict.dense_s * 1e3)
    assert slow_casts.with_overhead(2.0).bf16_element_s == 2e-3


def test_attach_leaves_ddp_alone_where_bytes_do_not_matter() -> None:
    verdict = judge(calibration(1e12, codec_s=1e-6, dense_factor=1.0), plan(), 25.0)
    assert verdict.way == "dense"
    assert set(plan_without("dense", plan()).values()) == {Dense()}
    assert "DDP averages as always" in verdict.sentence


def test_without_a_solver_layers_that_are_faster_dense_are_dense() -> None:
    verdict = judge(calibration(1e9, codec_s=1e-6, dense_factor=0.1), plan(), 25.0)
    assert set(verdict.plan.values()) == {Dense()}
    assert judge(calibration(1e9, codec_s=1e-6, dense_factor=0.1), plan(), 25.0, solved=True).plan == plan()
