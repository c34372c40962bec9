"""Plans made while training: at exact steps, the same everywhere, resumed bit for bit, and never in training's way."""

from __future__ import annotations

import io
import json
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch import nn
from training import Net, batch_of, digest, loss_of, make, same_on_all_ranks, state_digest, train

import lgreco
from lgreco.choice import Dense
from lgreco.measurement import Meter
from lgreco.record import read

SOLVER = {
    "reference": "lowrank(rank=4, factors=int8)",
    "interval": 8,
    "window": 3,
    "lag": 2,
    "families": ["lowrank", "quantize", "dense"],
}


def config(warmup_steps: int = 4, **solver: Any) -> dict[str, Any]:
    return {"warmup_steps": warmup_steps, "solver": {**SOLVER, **solver}}


def choices(state: lgreco.State) -> dict[str, str]:
    return {name: str(choice) for name, choice in state.plan.items()}


def matrices(plan: dict[str, str]) -> set[str]:
    return {choice for name, choice in plan.items() if name in ("wide.weight", "odd.weight", "narrow.weight")}


def _plans_of(rank: int, world_size: int, settings: dict[str, Any], steps: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, settings)
    seen = []
    for step in range(steps):
        train(ddp, rank, [step])
        state.state_dict()  # waits for what completed steps have left to do
        seen.append((choices(state), state._binding.engine.fingerprint()))
    final = digest(ddp.parameters())
    state.close()
    return seen, final


def _load_while_measuring(rank: int, world_size: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, config(warmup_steps=0, lag=5))
    train(ddp, rank, [0])
    saved, weights = state.state_dict(), {name: value.clone() for name, value in ddp.state_dict().items()}
    straight = train(ddp, rank, range(1, 12))
    measure = Meter.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meter, "measure", lambda meter, gradients: (time.sleep(0.5), measure(meter, gradients))[1])
        ddp.load_state_dict(weights)
        state.load_state_dict(saved)
        assert train(ddp, rank, range(1, 11)) == straight[:10]  # the last of the second table is being measured
        ddp.load_state_dict(weights)
        state.load_state_dict(saved)
    again = train(ddp, rank, range(1, 12))
    state.close()
    return straight == again, again


def test_a_running_state_loads_while_a_table_is_measured() -> None:
    """What the thread is at does not reach into the steps that are repeated: bit for bit, and nobody waits for ever."""
    equal, _ = same_on_all_ranks(run(2, _load_while_measuring))
    assert equal


def _closed_while_waited_for(rank: int, world_size: int, far: int = 10**6) -> int:
    ddp = make()
    state = lgreco.attach(ddp, config())
    train(ddp, rank, [0])
    controller = state._binding.controller
    waiting = [
        threading.Thread(target=call, args=(far,), daemon=True) for call in (controller.wait, controller.plan)
    ]  # for tables of steps that never come
    for each in waiting:
        each.start()
    time.sleep(0.2)
    dist.barrier()
    state.close()
    for each in waiting:
        each.join(20.0)
    return sum(each.is_alive() for each in waiting)


def test_who_waits_for_a_plan_is_let_go_as_the_state_is_closed() -> None:
    assert run(2, _closed_while_waited_for) == [0, 0]


def test_plans_change_at_exact_steps_on_every_rank() -> None:
    """Warm-up of 4: measured in steps 0 to 2, in force from step 4; measured again in 8 to 10, in force from 12."""
    seen, _ = same_on_all_ranks(run(3, _plans_of, config(alpha=0.6), 14))
    plans, fingerprints = [plan for plan, _ in seen], [fingerprint for _, fingerprint in seen]
    assert len(set(fingerprints[:4])) == 1  # dense
    assert fingerprints[3] != fingerprints[4]
    assert len(set(fingerprints[4:12])) == 1
    assert matrices(plans[2]) == {"lowrank(rank=4, factors=int8)"}  # after three steps; effective at the fourth
    assert matrices(plans[3]) != {"lowrank(rank=4, factors=int8)"}
    assert plans[3] == plans[10]
    assert all(plan["gain"] == "dense(dtype=fp32)" and plan["wide.bias"] == "dense(dtype=fp32)" for plan in plans)


def _read_early(rank: int, world_size: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, config(alpha=0.6))
    assert state._binding.controller is not None
    planner = state._binding.controller._planner
    decide = planner.decide

    def late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.5 * rank)
        return decide(*args, **kwargs)

    planner.decide = late
    seen = []
    for step in range(5):
        train(ddp, rank, [step])
        seen.append(choices(state))
    state.close()
    return seen


def test_a_plan_that_is_due_is_waited_for_where_it_is_read() -> None:
    """After four steps, on the rank that is still solving too."""
    seen = same_on_all_ranks(run(2, _read_early))
    assert seen[2] != seen[3]
    assert seen[3] == seen[4]


def _timing_free(rank: int, world_size: int, settings: dict[str, Any], wait: bool) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, settings)
    digests = []
    for step in range(22):
        digests += train(ddp, rank, [step])
        if wait:
            state.state_dict()
    final = choices(state)
    state.close()
    return digests, final


def test_bits_do_not_depend_on_how_fast_the_solver_is() -> None:
    first = same_on_all_ranks(run(2, _timing_free, config(alpha=0.7), False))
    assert first == same_on_all_ranks(run(2, _timing_free, config(alpha=0.7), True))
    dense = run(2, _timing_free, {"layers": {"*": "dense"}}, False)
    assert dense[0][0] != first[0]


def _stopped(rank: int, world_size: int, settings: dict[str, Any], stops: list[int], gathered: bool) -> Any:
    saved: bytes | None = None
    digests = []
    for begin, end in zip([0, *stops], [*stops, 20], strict=True):
        ddp = make()
        optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
        state = lgreco.attach(ddp, settings)
        if saved is not None:
            parts = torch.load(io.BytesIO(saved), weights_only=True)
            ddp.module.load_state_dict(parts["model"])
            optimizer.load_state_dict(parts["optimizer"])
            state.load_state_dict(parts["lgreco"])
        digests += train(ddp, rank, range(begin, end), optimizer)
        file = io.BytesIO()
        saved_state = state.gather() if gathered else state.state_dict()
        torch.save({"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "lgreco": saved_state}, file)
        saved = file.getvalue()
        final = choices(state), state_digest(state)
        state.close()
    return digests, final


@pytest.mark.parametrize("gathered", [False, True])
def test_a_run_resumed_in_the_middle_of_an_interval_continues_bit_for_bit(gathered: bool) -> None:
    """Stopped in warm-up, in mid-table, before a pending plan and right at a swap."""
    settings = config(alpha=0.7, average=2)
    straight = run(2, _stopped, settings, [], gathered)
    assert run(2, _stopped, settings, [1, 9, 11, 12, 17], gathered) == straight


def _gathered(rank: int, world_size: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, config(alpha=0.7))
    train(ddp, rank, range(10))
    return state.gather()


def _elsewhere(rank: int, world_size: int, saved: Any, settings: dict[str, Any]) -> Any:
    ddp = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = lgreco.attach(ddp, settings)
        state.load_state_dict(saved)
        loaded = choices(state)
        train(ddp, rank, range(10, 22))
        state.state_dict()
    assert state._binding.controller is None or state._binding.controller.failure is None
    final = choices(state)
    state.close()
    return loaded, final, digest(ddp.parameters()), [str(each.message) for each in caught]


def test_plans_go_along_to_another_world_size_or_config() -> None:
    saved = run(3, _gathered)[0]
    loaded, *_, said = same_on_all_ranks(run(2, _elsewhere, saved, config(alpha=0.7)))
    assert loaded == {
        name: saved["solver"]["choices"][column]
        for name, column in zip(saved["solver"]["layers"], saved["solver"]["plans"][-1][1], strict=True)
    }
    assert not said
    loaded, *_, said = same_on_all_ranks(run(2, _elsewhere, saved, config(interval=9)))
    assert matrices(loaded) == {"lowrank(rank=4, factors=int8)"}
    assert len(said) == 1
    assert "the checkpoint's solver had other candidates, layers or steps" in said[0]
    same_on_all_ranks(run(2, _elsewhere, saved, {}))  # without a solver it is left out


def _frozen(rank: int, world_size: int) -> Any:
    class Zeroed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Net()
            self.unused = nn.Parameter(torch.ones(128, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + 0 * self.unused.sum()

    ddp = make(Zeroed)
    state = lgreco.attach(ddp, config())
    train(ddp, rank, range(14))
    plan = choices(state)
    assert state._binding.controller.failure is None
    state.close()
    return plan


def test_a_layer_without_gradient_takes_the_cheapest_choice() -> None:
    plan = same_on_all_ranks(run(2, _frozen))
    assert plan["unused"] in ("lowrank(rank=2, factors=int8)", "quantize(bits=2, block=512)")


def _recorded(rank: int, world_size: int, folder: str, replay: bool) -> Any:
    path = str(Path(folder) / "record.jsonl")
    extra = {"plan_replay": path} if replay else {"record": path, "record_every": 2}
    ddp = make()
    state = lgreco.attach(ddp, config(alpha=0.7, **extra))
    digests = []
    for step in range(24):
        digests += train(ddp, rank, [step])
        state.note_step(loss=1.0)
    final = choices(state)
    state.close()
    return digests, final


def test_a_recorded_run_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    first = run(2, _recorded, str(tmp_path), False)
    record = read(tmp_path / "record.jsonl")
    assert [solve.effective_step for solve in record.solves] == [4, 12, 20]
    assert record.solves[0].plan != record.solves[1].plan
    assert len(record.realised) == 2  # the first table was measured in warm-up
    assert record.steps[0].loss == 1.0
    assert (tmp_path / str(record.solves[0].table)).is_file()
    assert run(2, _recorded, str(tmp_path), True) == first


def _one_record(rank: int, world_size: int, folder: str) -> None:
    settings = config(record=str(Path(folder) / "record.jsonl"))
    first = lgreco.attach(make(), settings)
    with pytest.raises(
        ValueError, match=r"another state in this process records to \".*record.jsonl\"; give each a path"
    ):
        lgreco.attach(make(), config(record=str(Path(folder) / "." / "record.jsonl")))
    for other in (config(record=str(Path(folder) / "other" / "record.jsonl")), config()):
        lgreco.attach(make(), other).close()
    first.close()
    lgreco.attach(make(), settings)  # dropped at once, with its module
    ddp = make()
    last = lgreco.attach(ddp, settings)
    train(ddp, rank, range(2))
    last.close()


def test_a_record_is_written_by_one_state_at_a_time(tmp_path: Path) -> None:
    """Two would set each other's lines aside and overwrite each other's tables."""
    run(2, _one_record, str(tmp_path))


def _other_model(rank: int, world_size: int, folder: str) -> None:
    ddp = make(lambda: nn.Sequential(nn.Linear(96, 100)))
    with pytest.raises(
        ValueError, match=r"record is of another model: layer \"gain\"|layer \".*\" is not in this model"
    ):
        lgreco.attach(ddp, config(plan_replay=folder))


def test_a_record_of_another_model_is_refused(tmp_path: Path) -> None:
    run(2, _recorded, str(tmp_path), False)
    run(2, _other_model, str(tmp_path))


def _infeasible(rank: int, world_size: int) -> Any:
    ddp = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = lgreco.attach(ddp, config(bytes=10))
        train(ddp, rank, range(22))
        state.state_dict()
    said = [str(each.message) for each in caught if "no plan for step" in str(each.message)]
    plan = choices(state)
    state.close()
    return len(said), matrices(plan)


def test_an_infeasible_budget_warns_once_and_keeps_the_plan() -> None:
    assert same_on_all_ranks(run(2, _infeasible)) == (1, {"lowrank(rank=4, factors=int8)"})


def _broken_thread(rank: int, world_size: int, where: str) -> Any:
    ddp = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = lgreco.attach(ddp, config())
        if rank == 1:

            def fail(*_: Any) -> Any:
                raise RuntimeError("made on purpose")

            target = state._binding.controller._meter if where == "measure" else state._binding.controller._planner
            setattr(target, where, fail)
        digests = train(ddp, rank, range(16))
        failure = state._binding.controller.failure
        state.close()
    assert failure is not None
    assert sum("the solver has stopped, training goes on" in str(each.message) for each in caught) == 1
    if rank == 1:
        assert "made on purpose" in str(failure)
    return digests


@pytest.mark.parametrize("where", ["measure", "decide"])
def test_training_goes_on_when_the_slow_path_fails_on_one_rank(where: str) -> None:
    same_on_all_ranks(run(2, _broken_thread, where))


def _differing_plans(rank: int, world_size: int) -> Any:
    ddp = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = lgreco.attach(ddp, config())
        if rank == 1:
            state._binding.controller._planner._corrections[:] = 1.9
            state._binding.controller._planner._settings = lgreco.config.SolverConfig(**{**SOLVER, "alpha": 3.0})
        train(ddp, rank, range(10))
        failure = str(state._binding.controller.failure)
        state.close()
    return failure


def test_differing_plans_are_named_and_not_used() -> None:
    assert same_on_all_ranks(run(3, _differing_plans)) == "rank 1 found another plan than rank 0 from the same table"


def _no_cuda_scaler(rank: int, world_size: int) -> Any:
    """Steps that hold an inf are dropped; the table waits for their repetition."""
    ddp = make()
    state = lgreco.attach(ddp, config())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(18):
        optimizer.zero_grad()
        loss = loss_of(ddp, batch_of(rank, step))
        (loss * (float("inf") if step in (1, 2, 9) else 1)).backward()
        if all(bool(torch.isfinite(p.grad).all()) for p in ddp.parameters()):
            optimizer.step()
    state.state_dict()
    plan, steps = choices(state), state.stats()["steps"]
    failure = state._binding.controller.failure
    state.close()
    return plan, steps, failure, digest(ddp.parameters())


def test_dropped_steps_are_measured_when_they_are_repeated() -> None:
    plan, steps, failure, _ = same_on_all_ranks(run(2, _no_cuda_scaler))
    assert steps == 15
    assert failure is None
    assert matrices(plan)


def _predictions(rank: int, world_size: int, folder: str) -> None:
    ddp = make()
    path = str(Path(folder) / "record.jsonl")
    state = lgreco.attach(ddp, config(record=path, families=["lowrank", "quantize"], interval=6, relative_error=0.3))
    train(ddp, rank, range(60), torch.optim.AdamW(ddp.parameters(), lr=1e-3))
    state.close()


def test_predicted_errors_come_true(tmp_path: Path) -> None:
    """Sums over layers, within a third: layers are tiny here and gradients noisy."""
    run(4, _predictions, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "realised" for line in lines)
    for realised in read(tmp_path / "record.jsonl").realised[2:]:
        predicted, came = realised.totals()
        assert predicted == pytest.approx(came, rel=0.35)


def _one_rank(rank: int, world_size: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, config())
    train(ddp, rank, range(3))
    plan = choices(state)
    state.close()
    return plan["gain"] == str(Dense())


def test_one_rank_needs_no_solver() -> None:
    assert run(1, _one_rank) == [True]


def _owed(rank: int, world_size: int, saved: Any, settings: dict[str, Any]) -> Any:
    """Whether residuals are there: as loaded, and after a step."""
    ddp, owed = make(), []
    state = lgreco.attach(ddp, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state.load_state_dict(saved)
    for step in (10, 11):
        parts = state.state_dict()["residuals"].values()
        owed.append(
            any(side is not None and bool(side.any()) for part in parts for side in (part["sender"], part["owner"]))
        )
        train(ddp, rank, [step])
    state.close()
    return owed


def test_a_config_that_offers_less_comes_before_the_checkpoint() -> None:
    """At once, where nothing is left to measure too; what is offered as before keeps its choice."""
    saved = run(2, _gathered)[0]
    before = {
        name: saved["solver"]["choices"][column]
        for name, column in zip(saved["solver"]["layers"], saved["solver"]["plans"][-1][1], strict=True)
    }
    dense = "dense(dtype=fp32)"
    assert dense not in matrices(before)

    for settings in ({**config(alpha=0.7), "layers": {"*": dense}}, config(alpha=0.7, memory=0)):
        loaded, final, _, said = same_on_all_ranks(run(2, _elsewhere, saved, settings))
        assert set(loaded.values()) == set(final.values()) == {dense}
        assert len(said) == 1
        assert "the config no longer offers what the checkpoint's plans give 3 of 9 layers" in said[0]

    assert same_on_all_ranks(run(2, _owed, saved, {**config(alpha=0.7), "layers": {"*": dense}})) == [True, False]

    pinned = {**config(alpha=0.7, average=2), "layers": {"wide.weight": dense}}
    loaded, final, _, said = same_on_all_ranks(run(2, _elsewhere, saved, pinned))
    assert loaded == {**before, "wide.weight": dense}
    assert final["wide.weight"] == dense
    assert len(said) == 1
    assert "give 1 of 9 layers" in said[0]

    limited = config(alpha=0.7, ceiling={"*": "lowrank(rank=2)"}, floor={"*": "quantize(bits=8)"})
    loaded, final, *_ = same_on_all_ranks(run(2, _elsewhere, saved, limited))
    allowed = {"lowrank(rank=2, factors=int8)", "quantize(bits=8, block=512)", "dense(dtype=bf16)", dense}
    assert matrices(loaded) == {"lowrank(rank=2, factors=int8)"}
    assert matrices(final) <= allowed
