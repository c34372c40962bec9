"""The cost model against closed forms."""

from __future__ import annotations

import pytest

from lgreco.cost_model import (
    Line,
    accumulated_s,
    allreduce_s,
    exchange_s,
    exposed_s,
    fill_buckets,
    fit_line,
    hierarchical_s,
    on_critical_path,
)

MIB = 1 << 20


def test_a_line_is_found_again_from_its_own_points() -> None:
    line = Line(2e-3, 1.25e8)
    sizes = [1e4, 1e6, 1e7]
    found = fit_line(sizes, [line.seconds(size) for size in sizes])
    assert found.latency_s == pytest.approx(2e-3)
    assert found.bytes_per_s == pytest.approx(1.25e8)


def test_noise_that_would_make_the_latency_negative_gives_a_line_through_the_origin() -> None:
    found = fit_line([1e6, 2e6], [1e-3, 3e-3])
    assert found.latency_s == 0.0
    # Least squares of 1 = b x / y at x / y = 1e9 and 2e9 / 3.
    assert 1 / found.bytes_per_s == pytest.approx((1e9 + 2e9 / 3) / (1e18 + 4e18 / 9))


@pytest.mark.parametrize(("sizes", "times"), [([1e6, 1e6], [1.0, 1.0]), ([1e6], [1.0]), ([1e6, 2e6], [0.0, 1.0])])
def test_points_that_make_no_line_are_refused(sizes: list[float], times: list[float]) -> None:
    with pytest.raises(ValueError, match="a line needs two or more sizes"):
        fit_line(sizes, times)


def test_buckets_fill_in_the_order_of_arrival_until_they_reach_the_cap() -> None:
    # The last layer's gradient comes first; ties go to the later layer, as backward does.
    schedule = fill_buckets([0.3, 0.2, 0.1, 0.1], [MIB, MIB, MIB // 2, MIB // 2], cap_mb=1.0)
    assert schedule.rows == ((3, 2), (1,), (0,))
    assert schedule.ready_s == (0.1, 0.2, 0.3)
    assert fill_buckets([0.3, 0.2], [MIB, MIB], cap_mb=25.0).rows == ((1, 0),)


def test_exposed_time_of_a_link_that_keeps_up_is_the_last_buckets() -> None:
    assert exposed_s([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]) == pytest.approx(0.5)


def test_exposed_time_of_a_link_that_never_idles_is_the_sum_less_what_backward_hides() -> None:
    assert exposed_s([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]) == pytest.approx(1.0 + 12.0 - 3.0)
    assert exposed_s([], []) == 0.0


def test_only_buckets_after_the_last_idle_moment_are_critical() -> None:
    assert on_critical_path([1.0, 2.0, 3.0], [0.5, 1.5, 1.0]) == [False, True, True]
    assert on_critical_path([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]) == [False, False, True]
    # What is said is what the model itself does: only a critical bucket's delay delays the step.
    ready, seconds = [1.0, 2.0, 3.0], [0.5, 1.5, 1.0]
    for bucket, critical in enumerate(on_critical_path(ready, seconds)):
        longer = [each + 0.01 * (at == bucket) for at, each in enumerate(seconds)]
        assert (exposed_s(ready, longer) > exposed_s(ready, seconds)) == critical


def test_seconds_of_buckets() -> None:
    schedule = fill_buckets([0.1, 0.2], [MIB, MIB], cap_mb=1.0)
    line = Line(1e-3, 1e6)
    # 4 ranks send 2 * 3 / 4 of the payload.
    assert allreduce_s(schedule, [1e6, 2e6], line, 4) == pytest.approx([1e-3 + 1.5, 1e-3 + 3.0])
    assert exchange_s(schedule, [0.25, 0.5], line) == pytest.approx([0.251, 0.501])


def test_accumulation_spreads_what_is_exposed() -> None:
    assert accumulated_s(1.0, 0.8, 4) == pytest.approx(1.2)


def test_a_hierarchy_sends_the_gradient_between_nodes_once() -> None:
    inner, outer = Line(0.0, 1e9), Line(1e-3, 1e6)
    flat = Line(1e-3, 1e6 / 8).seconds(2 * 15 / 16 * 1e6)  # 8 ranks share a node's link
    found = hierarchical_s(1e6, 2, 8, inner, outer, 1e6)
    assert found == pytest.approx(2 * 7 / 8 * 1e-3 + 1e-3 + 1.0)
    assert found < flat
    assert hierarchical_s(1e6, 1, 1, inner, outer, 1e6) == 0.0
