"""Auto between ranks: measurements are agreed, DDP is left alone where it is faster, records replay bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from training import make, same_on_all_ranks, train

import lgreco
from lgreco import calibration, calibration_cache
from lgreco.agreement import make_cpu_group
from lgreco.calibration import Calibration
from lgreco.calibration_cache import Kept, calibrate
from lgreco.cost_model import Line
from lgreco.record import read

SOLVER = {"reference": "quantize(bits=4)", "families": ["quantize", "dense"], "interval": 8, "window": 3, "lag": 2}


def config(record: Path, **solver: Any) -> dict[str, Any]:
    return {"auto": True, "warmup_steps": 8, "solver": {**SOLVER, "record": str(record), **solver}}


def measured_as(allreduce_bytes_per_s: float, exchange_bytes_per_s: float, bf16_element_s: float = 1.0) -> Any:
    """Replaces the calibration by links of these rates; casting to bf16 takes ages, unless said otherwise."""
    lines = Line(1e-5, allreduce_bytes_per_s), Line(1e-5, exchange_bytes_per_s)
    made = Calibration(2, *lines, (("quantize(bits=4, block=512)", 1e-9),), 0.0, 0.0, bf16_element_s)
    return mock.patch("lgreco.auto.calibrate", return_value=Kept(made, Path("none"), fresh=True))


def _trained(rank: int, world_size: int, settings: dict[str, Any], rates: tuple[float, ...] | None) -> Any:
    ddp = make()
    with measured_as(*rates) if rates else mock.patch("lgreco.auto.calibrate", side_effect=AssertionError):
        state = lgreco.attach(ddp, settings)
    digests = train(ddp, rank, range(22))
    if state.registered:
        state.state_dict()  # waits for what completed steps have left to do
    plan = {name: str(choice) for name, choice in state.plan.items()}
    sent, dense = state.stats()["wire_bytes"], state.stats()["dense_bytes"]
    hooks = len(ddp._comm_hooks)
    state.close()
    return digests, plan, state.way, hooks, sent / dense


def _plain(rank: int, world_size: int, bf16: bool = False) -> Any:
    ddp = make()
    if bf16:
        ddp.register_comm_hook(ddp.process_group, bf16_compress_hook)
    return train(ddp, rank, range(22))


def test_where_ddp_is_faster_nothing_is_registered_and_a_replay_repeats_that(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    digests, plan, way, hooks, sent = same_on_all_ranks(run(2, _trained, config(path), (1e9, 1e8)))
    assert (way, hooks, sent) == ("dense", 0, 1.0)
    assert set(plan.values()) == {"dense(dtype=fp32)"}
    assert digests == same_on_all_ranks(run(2, _plain))
    (forecast,) = read(path).forecasts
    assert forecast.way == "dense"
    assert "DDP averages as always" in forecast.text
    replay = {**config(path), "solver": {**SOLVER, "plan_replay": str(path)}}
    assert same_on_all_ranks(run(2, _trained, replay, None))[:4] == (digests, plan, "dense", 0)


def test_where_the_bf16_hook_is_faster_it_averages_and_a_replay_repeats_that(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    digests, plan, way, hooks, sent = same_on_all_ranks(run(2, _trained, config(path), (1e6, 1e4, 0.0)))
    assert (way, hooks, sent) == ("bf16", 1, 0.5)
    assert set(plan.values()) == {"dense(dtype=bf16)"}
    assert digests == same_on_all_ranks(run(2, _plain, True))
    assert [forecast.way for forecast in read(path).forecasts] == ["bf16"]
    replay = {**config(path), "solver": {**SOLVER, "plan_replay": str(path)}}
    assert same_on_all_ranks(run(2, _trained, replay, None))[:4] == (digests, plan, "bf16", 1)


def test_plans_in_seconds_are_the_same_everywhere_and_replay_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    digests, plan, way, hooks, _ = same_on_all_ranks(run(2, _trained, config(path), (1e6, 1e6)))
    assert (way, hooks) == ("lgreco", 1)
    assert any(choice.startswith("quantize") for choice in plan.values())
    assert digests[-1] != same_on_all_ranks(run(2, _plain))[-1]
    record = read(path)
    assert len(record.solves) >= 2
    attached, *later = record.forecasts
    assert "lgreco is registered" in attached.text
    assert later
    for forecast in later:
        assert forecast.predicted_busy_ms > 0
        assert forecast.busy_ms is not None
        assert forecast.busy_ms > 0
    # This machine's loopback is far from 1 MB/s: that is noticed.
    assert later[0].bytes_per_s > 2e6
    assert later[0].text.startswith("link: 1 -> ")
    replay = {**config(path), "solver": {**SOLVER, "plan_replay": str(path)}}
    assert same_on_all_ranks(run(2, _trained, replay, None))[0] == digests


PLAIN = {"auto": True, "warmup_steps": 2}
QUANTISED, DENSE_LAYERS, LEFT_ALONE = (1e6, 1e6), (1e6, 1e10), (1e9, 1e8)
"""Links under which lgreco is registered and layers are quantised, or faster dense; and such on which DDP is faster."""


def _resumed(
    rank: int, world_size: int, rates: list[tuple[float, ...]], gathered: bool = False, given: bool = False
) -> Any:
    """Twelve steps in as many parts as there are links, each a new model that goes on from the last one's checkpoint.

    With `given`, later parts are attached with the first one's calibration.
    """
    digests: list[str] = []
    plans, said, saved, model = [], [], None, None
    for part, links in enumerate(rates):
        ddp = make()
        repeats = given and saved is not None
        settings = {**PLAIN, "auto": saved["auto"]["calibration"]} if repeats else PLAIN
        with mock.patch("lgreco.auto.calibrate", side_effect=AssertionError) if repeats else measured_as(*links):
            state = lgreco.attach(ddp, settings)
        if saved is not None:
            ddp.module.load_state_dict(model)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                state.load_state_dict(saved)
            said += [str(each.message) for each in caught]
        length = 12 // len(rates)
        digests += train(ddp, rank, range(part * length, (part + 1) * length))
        saved, model = state.gather() if gathered else state.state_dict(), ddp.module.state_dict()
        plans.append((state.way, {name: str(choice) for name, choice in state.plan.items()}))
        state.close()
    return digests, plans, said


@pytest.mark.parametrize("gathered", [False, True])
def test_a_resumed_run_keeps_the_decision_about_layers_bit_for_bit(gathered: bool) -> None:
    straight, [(way, plan)], _ = same_on_all_ranks(run(2, _resumed, [QUANTISED]))
    assert way == "lgreco"
    assert any(choice.startswith("quantize") for choice in plan.values())
    # Left to itself, a run on these links would decide otherwise.
    other, [(_, dense_plan)], _ = same_on_all_ranks(run(2, _resumed, [DENSE_LAYERS]))
    assert set(dense_plan.values()) == {"dense(dtype=fp32)"}
    assert other != straight
    resumed, plans, said = same_on_all_ranks(run(2, _resumed, [QUANTISED, DENSE_LAYERS, QUANTISED], gathered))
    assert resumed == straight
    assert plans == [("lgreco", plan)] * 3
    assert said == []


def test_a_resumed_run_that_averages_another_way_says_so_and_a_given_calibration_repeats_the_way() -> None:
    straight, _, _ = same_on_all_ranks(run(2, _resumed, [QUANTISED]))
    resumed, plans, said = same_on_all_ranks(run(2, _resumed, [QUANTISED, LEFT_ALONE]))
    assert [way for way, _ in plans] == ["lgreco", "dense"]
    assert resumed != straight
    (words,) = said
    assert "auto has decided for dense, the run that was saved for lgreco" in words
    assert "auto=saved['auto']['calibration']" in words
    resumed, plans, said = same_on_all_ranks(run(2, _resumed, [QUANTISED, LEFT_ALONE], False, True))
    assert [way for way, _ in plans] == ["lgreco", "lgreco"]
    assert resumed == straight
    assert said == []


@pytest.mark.parametrize("gathered", [False, True])
def test_a_run_that_left_all_to_ddp_is_resumed_with_or_without_lgreco(gathered: bool) -> None:
    straight, _, _ = same_on_all_ranks(run(2, _resumed, [LEFT_ALONE]))
    resumed, plans, said = same_on_all_ranks(run(2, _resumed, [LEFT_ALONE, LEFT_ALONE], gathered))
    assert ([way for way, _ in plans], resumed, said) == (["dense", "dense"], straight, [])
    resumed, plans, said = same_on_all_ranks(run(2, _resumed, [LEFT_ALONE, QUANTISED], gathered))
    assert [way for way, _ in plans] == ["dense", "lgreco"]
    assert "auto has decided for lgreco, the run that was saved for dense" in said[0]
    assert resumed[:6] == straight[:6]


def _given(rank: int, world_size: int, calibration: Any) -> str:
    with pytest.raises(ValueError, match="auto: ") as refusal:
        lgreco.attach(make(), {"auto": calibration})
    return str(refusal.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"world_size": 3}, "the calibration is of 3 ranks, here are 2"),
        ({"spread": None}, "a damaged calibration: spread must be"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused_on_every_rank(changed: dict[str, Any], words: str) -> None:
    made = Calibration(2, Line(1e-5, 1e6), Line(1e-5, 1e6), (), 0.0, 0.0)
    assert words in same_on_all_ranks(run(2, _given, {**made.to_dict(), **changed}))


def _measured(rank: int, world_size: int, folder: str) -> Any:
    group = dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    cpu_group, device = make_cpu_group(group), torch.device("cpu")
    with (
        mock.patch.object(calibration, "_ROWS", (4, 16)),
        mock.patch.object(calibration_cache, "cache_folder", return_value=Path(folder)),
        mock.patch.object(calibration_cache, "still_holds", return_value=True),
    ):
        first = calibrate(group, cpu_group, device)
        second = calibrate(group, cpu_group, device)
        third = calibrate(group, cpu_group, device, refresh=True)
    return first.calibration.to_dict(), first.fresh, second.calibration == first.calibration, second.fresh, third.fresh


def test_ranks_agree_on_what_was_measured_and_keep_it(tmp_path: Path) -> None:
    results = run(2, _measured, str(tmp_path))
    fields, *rest = same_on_all_ranks(results)
    assert rest == [True, True, False, True]
    assert fields["exchange"]["bytes_per_s"] > 0
    assert fields["bf16_element_s"] >= 0
    assert set(fields["codec_s"]) >= {"quantize(bits=4, block=512)", "lowrank(rank=4, factors=int8)"}
    assert len(list(tmp_path.iterdir())) == 1


def _conventional(rank: int, world_size: int) -> str:
    ddp = make()
    ddp.register_comm_hook(lgreco.State({"auto": True}, ddp.process_group), lgreco.hook)
    with pytest.raises(ValueError, match=r"auto decides before a hook is registered: use lgreco\.attach") as refusal:
        train(ddp, rank, range(1))
    return str(refusal.value)


def test_a_hook_that_is_registered_already_cannot_be_declined() -> None:
    assert same_on_all_ranks(run(2, _conventional))
