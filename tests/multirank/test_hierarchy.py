"""Nodes of several ranks: dense inside a node, coded between nodes, each layer carried by one rank of every node."""

from __future__ import annotations

import io
import os
import re
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import LOSS_LIMIT_S, Ranks, run
from training import (
    Net,
    batch_of,
    digest,
    everything,
    local_gradients,
    loss_of,
    make,
    same_on_all_ranks,
    train,
    train_for_ever,
)

import lgreco
from lgreco.plan import wire_bytes

CHOICES = [
    "dense(dtype=fp32)",
    "quantize(bits=4, block=128)",
    "quantize(bits=3, block=96, rounding=stochastic)",
    "lowrank(rank=4, factors=int8)",
    "lowrank(rank=10, factors=int6, iterate=alternate)",
    "topk(density=0.05)",
    "randomk(density=0.1, block=64)",
]
FOUR_BITS = "quantize(bits=4, block=128)"


def nodes_of(world_size: int, per_node: int) -> list[list[int]]:
    return [list(range(first, first + per_node)) for first in range(0, world_size, per_node)]


def delivered_and_owed(rank: int, world_size: int, choice: str, per_node: int) -> Any:
    """After one step: the gradient on this rank, the exact mean of all ranks' own, and what carriers still owe."""
    ddp = make()
    own = local_gradients(ddp, batch_of(rank, 0))
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, own)
    exact = {name: sum(each[name].double() for each in everyone) / world_size for name in own}
    state = lgreco.attach(ddp, everything(choice, ranks_per_node=per_node))
    loss_of(ddp, batch_of(rank, 0)).backward()
    delivered = {name: parameter.grad.double() for name, parameter in ddp.module.named_parameters()}
    owed: dict[str, torch.Tensor] = {}
    for part in state.gather()["ranks"]:
        for name, residual in part.items():
            layer = owed.setdefault(name, torch.zeros(exact[name].numel(), dtype=torch.float64))
            layer += residual["sender"].double() * per_node / world_size
            if residual["owner"] is not None:
                begin = residual["owner_offset"]
                layer[begin : begin + residual["owner"].numel()] += residual["owner"].double()
    state.close()
    return delivered, exact, owed


@pytest.mark.parametrize(("world_size", "per_node"), [(4, 2), (6, 2), (6, 3)])
def test_what_is_delivered_and_what_carriers_owe_is_the_exact_mean(world_size: int, per_node: int) -> None:
    """For every family, with 2 and 3 nodes of 2 and 3 ranks: original = decoded + residual, no gradient lost."""
    for choice in ("dense(dtype=fp32)", FOUR_BITS, "lowrank(rank=4, factors=int8)", "topk(density=0.05)"):
        answers = run(world_size, delivered_and_owed, choice, per_node)
        delivered, exact, owed = answers[0]
        for other, _, _ in answers:
            assert all(torch.equal(other[name], delivered[name]) for name in delivered), choice
        for name, mean in exact.items():
            whole = delivered[name].flatten() + owed.get(name, torch.zeros(mean.numel(), dtype=torch.float64))
            torch.testing.assert_close(whole, mean.flatten(), rtol=1e-4, atol=1e-6 * float(mean.abs().max()) + 1e-12)
        assert ("wide.weight" in owed) == (choice != "dense(dtype=fp32)")


def _each_choice(rank: int, world_size: int, per_node: int) -> dict[str, list[str]]:
    digests = {}
    for choice in CHOICES:
        ddp = make()
        config = everything(choice, ranks_per_node=per_node, warmup_steps=1, check_replicas_every=1)
        state = lgreco.attach(ddp, config)
        assert state.plan["wide.weight"] == lgreco.parse(choice)
        digests[choice] = train(ddp, rank, range(4))
        state.close()
    return digests


@pytest.mark.parametrize(("world_size", "per_node"), [(4, 2), (6, 3)])
def test_every_codec_leaves_the_same_bits_on_every_rank(world_size: int, per_node: int) -> None:
    """After every step all ranks of all nodes hold the same parameters; each codec gives other ones."""
    digests = same_on_all_ranks(run(world_size, _each_choice, per_node))
    assert len({tuple(steps) for steps in digests.values()}) == len(CHOICES)


def _bytes(rank: int, world_size: int) -> Any:
    sent = {}
    for per_node in (1, 2):
        ddp = make()
        state = lgreco.attach(ddp, everything(FOUR_BITS, ranks_per_node=per_node))
        train(ddp, rank, range(2))
        stats = state.stats()
        predicted = sum(
            wire_bytes(planned.layer, planned.choice, world_size // per_node) for planned in state.plan.planned
        )
        sent[per_node] = (stats["wire_bytes"], stats["node_bytes"], predicted, stats["dense_bytes"])
        state.close()
    return sent


def test_a_node_sends_over_its_link_what_one_rank_would() -> None:
    """Two nodes of two: a node's ranks together send what the cost of a plan for two ranks says, and headers."""
    answers = run(4, _bytes)
    for node in ((0, 1), (2, 3)):
        between = sum(answers[rank][2][0] for rank in node)
        assert between == pytest.approx(answers[0][2][2], rel=0.02)
        # Flat, each rank sends 2/3 of its bytes to the two ranks of the other node.
        assert between < 0.55 * sum(answers[rank][1][0] * 2 / 3 for rank in node)
    numel = sum(parameter.numel() for parameter in Net().parameters())
    inside = sum(answer[2][1] for answer in answers)
    assert inside == pytest.approx(2 * 2 * 4 * numel, rel=0.02)  # per node: 1/2 of the model each way and rank, fp32
    assert all(answer[1][1] == 0 for answer in answers)


def _with_bad_steps(rank: int, world_size: int, poisoned: bool) -> Any:
    ddp = make(bucket_cap_mb=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    config = everything("lowrank(rank=4, factors=int8)", ranks_per_node=2, layers={"odd.*": FOUR_BITS})
    state = lgreco.attach(ddp, config, scaler=scaler)
    layers = dict(ddp.module.named_parameters())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2, momentum=0.9)
    digests, step = [], 0
    for layer in ("wide.weight", "odd.weight", "narrow.weight", "out.weight", "out.bias"):
        for culprit in range(world_size):
            if poisoned:
                optimizer.zero_grad()
                handle = (
                    layers[layer].register_hook(lambda gradient: gradient * float("nan")) if rank == culprit else None
                )
                scaler.scale(loss_of(ddp, batch_of(rank, 1000 + step))).backward()
                assert not layers["wide.weight"].grad.isfinite().all(), "the last bucket, on every rank"
                before = digest(ddp.parameters())
                scaler.step(optimizer)
                scaler.update(new_scale=1024.0)
                assert digest(ddp.parameters()) == before
                if handle is not None:
                    handle.remove()
            optimizer.zero_grad()
            scaler.scale(loss_of(ddp, batch_of(rank, step))).backward()
            scaler.step(optimizer)
            scaler.update(new_scale=1024.0)
            digests.append(digest(ddp.parameters()))
            step += 1
    steps = state.stats()["steps"]
    state.close()
    return digests, steps


def test_a_step_with_a_nan_on_any_rank_leaves_no_trace_on_any_rail() -> None:
    """A NaN that only one rail can see drops the step on all: the run goes on as if it had not been."""
    clean = same_on_all_ranks(run(4, _with_bad_steps, False))
    assert same_on_all_ranks(run(4, _with_bad_steps, True)) == clean
    assert clean[1] == 20


SOLVER = {
    "reference": "lowrank(rank=4, factors=int8)",
    "alpha": 0.6,
    "interval": 6,
    "window": 2,
    "lag": 2,
    "families": ["lowrank", "quantize", "dense"],
}


def _solved(rank: int, world_size: int, steps: int, way: str, spoil: bool = False) -> Any:
    """Trains with a solver; saved and resumed after 7 steps in one of three ways."""

    def start() -> tuple[Any, Any, Any]:
        ddp = make()
        config = {"warmup_steps": 3, "ranks_per_node": 2, "solver": SOLVER}
        return ddp, lgreco.attach(ddp, config), torch.optim.SGD(ddp.parameters(), lr=0.2)

    ddp, state, optimizer = start()
    digests, plans = [], []
    for step in range(steps):
        if spoil and step in (1, 6, 7):  # also where layers are measured
            optimizer.zero_grad()
            (loss_of(ddp, batch_of(rank, step)) * (float("nan") if rank == step % world_size else 1.0)).backward()
        digests += train(ddp, rank, [step], optimizer)
        state.state_dict()  # waits for what completed steps have left to do
        plans.append({name: str(choice) for name, choice in state.plan.items()})
        if step == 6 and way != "through":
            saved = state.gather() if way == "gathered" else state.state_dict()
            saved = torch.load(io.BytesIO(_file_of(saved)), weights_only=True)
            weights = {name: tensor.clone() for name, tensor in ddp.module.state_dict().items()}
            state.close()
            ddp, state, optimizer = start()
            ddp.module.load_state_dict(weights)
            state.load_state_dict(saved)
    assert state._binding.controller is not None
    assert state._binding.controller.failure is None
    state.close()
    return digests, plans


def _file_of(saved: Any) -> bytes:
    file = io.BytesIO()
    torch.save(saved, file)
    return file.getvalue()


def test_plans_by_the_solver_are_the_same_on_all_rails_and_resume_bit_for_bit() -> None:
    """Each rail measures what it carries; all ranks of all nodes follow one plan, through a save and load as well."""
    digests, plans = same_on_all_ranks(run(4, _solved, 14, "through"))
    weights = [{choice for name, choice in plan.items() if name.endswith(".weight")} for plan in plans]
    assert weights[4] != weights[0]
    assert plans[-1] != plans[0]
    for way in ("gathered", "each its own"):
        assert same_on_all_ranks(run(4, _solved, 14, way)) == (digests, plans)


def test_a_dropped_step_is_measured_again_on_every_rail() -> None:
    """A NaN in a step that is measured: the rails agree to measure its repetition, and nothing waits for ever."""
    digests, _ = same_on_all_ranks(run(4, _solved, 14, "through"))
    assert same_on_all_ranks(run(4, _solved, 14, "through", True))[0] == digests


def _masked(rank: int, world_size: int, per_node: int) -> Any:
    ddp = make()
    state = lgreco.attach(ddp, everything("dense(dtype=fp32)", ranks_per_node=per_node, layers={"odd.*": FOUR_BITS}))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    train(ddp, rank, range(2), optimizer)
    generator = torch.Generator().manual_seed(3)
    names = ("wide.weight", "odd.weight", "narrow.weight", "out.weight")
    shapes = {name: parameter.shape for name, parameter in ddp.module.named_parameters()}
    masks = {name: torch.rand(shapes[name], generator=generator) < 0.3 for name in names}
    before = state.stats()["wire_bytes"]
    state.set_masks(masks)
    digests = train(ddp, rank, range(2, 5), optimizer)
    for name, parameter in ddp.module.named_parameters():
        if name in masks:
            assert not parameter.grad[~masks[name]].any()
            assert parameter.grad[masks[name]].any()
    after = state.stats()["wire_bytes"]
    state.close()
    return digests, before, after


def test_masks_shrink_what_goes_between_nodes() -> None:
    """Pruned entries are zero on every rank, and a node sends less than 0.4 of what it sent before."""
    answers = run(4, _masked, 2)
    same_on_all_ranks([digests for digests, _, _ in answers])
    assert sum(after for _, _, after in answers) < 0.4 * sum(before for _, before, _ in answers)


def _owed(state: lgreco.State, carriers: int) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for part in state.gather()["ranks"]:
        for name, residual in part.items():
            layer = total.setdefault(name, torch.zeros(residual["sender"].numel(), dtype=torch.float64))
            layer += residual["sender"].double() / carriers
            if residual["owner"] is not None:
                begin = residual["owner_offset"]
                layer[begin : begin + residual["owner"].numel()] += residual["owner"].double()
    return total


def _change_nodes(rank: int, world_size: int, before: int, after: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(FOUR_BITS, ranks_per_node=before))
    train(ddp, rank, range(3))
    saved, owed = state.gather(), _owed(state, world_size // before)
    own = state.state_dict()
    state.close()
    ddp = make()
    state = lgreco.attach(ddp, everything(FOUR_BITS, ranks_per_node=after))
    with pytest.raises(ValueError, match=r"saved with the nodes .* load what state.gather\(\) gave"):
        state.load_state_dict(own)
    state.load_state_dict(saved)
    now = _owed(state, world_size // after)
    assert owed.keys() == now.keys()
    for name, layer in owed.items():
        torch.testing.assert_close(now[name], layer, rtol=1e-5, atol=1e-9)
    train(ddp, rank, range(3, 5))
    state.close()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_a_gathered_state_loads_with_other_nodes(before: int, after: int) -> None:
    """What is still to be added to the averaged gradient stays when ranks are dealt to nodes in another way."""
    run(6, _change_nodes, before, after)


@pytest.mark.parametrize("culprit", [0, 3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_survivors_name_the_rank_that_is_lost(number: signal.Signals, culprit: int) -> None:
    """Ranks of its node, of its rail, and of neither: all raise in time and call it by its number in DDP's group."""
    config = everything(FOUR_BITS, ranks_per_node=2)
    limit_s = LOSS_LIMIT_S[number]
    with Ranks(4, train_for_ever, config, timeout_s=limit_s, store_on_rank_0=True) as ranks:
        for rank in range(4):
            assert ranks.answer(rank) == ("said", "going")
        ranks.signal(culprit, number)
        begin = time.monotonic()
        for rank in {0, 1, 2, 3} - {culprit}:
            status, message = ranks.answer(rank, patience_s=3 * limit_s)
            assert status == "error"
            assert re.search(rf"compressed exchange failed on rank {rank} at .*rank {culprit} ", message), message
        assert time.monotonic() - begin < (limit_s / 2 if number == signal.SIGKILL else 2 * limit_s)
        for rank in {0, 1, 2, 3} - {culprit}:
            ranks.processes[rank].join(10)
            assert ranks.processes[rank].exitcode == 0
        ranks.processes[culprit].kill()


def _launched(rank: int, world_size: int, node_of: list[int], config: dict[str, Any]) -> Any:
    here = [other for other in range(world_size) if node_of[other] == node_of[rank]]
    launch = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": here.index(rank),
        "LOCAL_WORLD_SIZE": len(here),
        "GROUP_RANK": node_of[rank],
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
    }
    for name, value in launch.items():
        os.environ[name] = str(value)
    ddp = make()
    state = lgreco.attach(ddp, everything(FOUR_BITS, ranks_per_node="launcher", **config))
    found = state.state_dict().get("nodes")
    digests = train(ddp, rank, range(3))
    state.close()
    return found, digests


def test_the_launcher_tells_the_nodes() -> None:
    """Ranks dealt to nodes in turn, as `mpirun --map-by node` does, share nodes as the environment says."""
    found, _ = same_on_all_ranks(run(4, _launched, [0, 1, 0, 1], {}))
    assert found == [[0, 2], [1, 3]]
    for flat in ([0, 0, 0, 0], [0, 1, 2, 3]):
        assert same_on_all_ranks(run(4, _launched, flat, {}))[0] is None


def _refused(rank: int, world_size: int, node_of: list[int] | None, per_node: Any) -> str:
    try:
        if node_of is None:
            lgreco.attach(make(), everything(FOUR_BITS, ranks_per_node=per_node))
        else:
            _launched(rank, world_size, node_of, {})
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def test_odd_nodes_are_refused_on_every_rank() -> None:
    """Unequal nodes, a number that does not divide the ranks, and no launcher: an error that says what is wrong."""
    assert "nodes must have equally many ranks, the launcher says 2, 1" in same_on_all_ranks(
        run(3, _refused, [0, 0, 1], None)
    )
    assert "ranks_per_node must divide the number of ranks, got 2 for 3 ranks" in same_on_all_ranks(
        run(3, _refused, None, 2)
    )
    assert "no launcher's environment" in same_on_all_ranks(run(2, _refused, None, "launcher"))


def test_what_does_not_go_together_is_refused() -> None:
    """What auto measures is the flat exchange, and MPI's transport knows the world alone."""
    with pytest.raises(ValueError, match="auto measures the flat exchange"):
        lgreco.Config(auto=True, ranks_per_node=2)
    with pytest.raises(ValueError, match='needs transport "c10d", got "mpi"'):
        lgreco.Config(transport="mpi", ranks_per_node="launcher")
    for wrong in (0, -1, True, 2.0, "nodes"):
        with pytest.raises(ValueError, match="ranks_per_node"):
            lgreco.Config(ranks_per_node=wrong)
