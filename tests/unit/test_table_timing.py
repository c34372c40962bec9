"""When tables begin and plans take effect, against counting the steps one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lgreco.solver_config import SolverConfig
from lgreco.table_timing import TableTiming

TIMINGS = st.builds(
    TableTiming,
    interval=st.integers(20, 200),
    window=st.integers(1, 10),
    lag=st.integers(1, 10),
    warmup_steps=st.integers(0, 100),
)


def test_the_settings_are_taken() -> None:
    settings = SolverConfig(interval=70, window=3, lag=5)
    assert TableTiming.of(settings, 20) == TableTiming(interval=70, window=3, lag=5, warmup_steps=20)


@given(TIMINGS)
def test_the_first_plan_is_there_as_warm_up_ends_or_as_soon_as_it_can_be(timing: TableTiming) -> None:
    first = timing.next_begin(0)
    soonest = timing.window - 1 + timing.lag  # a table that begins with the very first step
    assert timing.effective_step(first) == max(timing.warmup_steps, soonest)


@given(TIMINGS, st.integers(0, 1000))
def test_the_next_table_is_the_first_of_the_raster_that_has_not_begun(timing: TableTiming, steps: int) -> None:
    raster = (timing.next_begin(0) + i * timing.interval for i in range(steps + 2))
    assert timing.next_begin(steps) == next(begin for begin in raster if begin >= steps)


@given(TIMINGS, st.integers(0, 1000), st.integers(0, 50))
def test_quiet_steps_end_at_the_table_and_are_under_the_plan_before_it(
    timing: TableTiming, steps: int, since: int
) -> None:
    begin = timing.next_begin(steps)
    swapped = timing.effective_step(begin - timing.interval)
    quiet = list(timing.quiet_steps(begin, steps + since))
    expected = [step for step in range(max(0, begin - 4), begin) if step >= swapped and step >= steps + since]
    assert quiet == expected
