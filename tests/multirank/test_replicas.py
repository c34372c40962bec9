"""Replicas stay bit-identical, whatever the codec, the dtype, the world size and DDP's buckets."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch import nn
from training import Deep, batch_of, everything, local_gradients, loss_of, make, same_on_all_ranks, train

import lgreco

CHOICES = [
    "dense(dtype=fp32)",
    "dense(dtype=bf16)",
    "dense(dtype=fp16)",
    "quantize(bits=1, block=64)",
    "quantize(bits=4, block=512)",
    "quantize(bits=8, block=4096)",
    "quantize(bits=4, block=128, grid=symmetric)",
    "quantize(bits=3, block=96, rounding=stochastic)",
    "quantize(bits=2, block=512, grid=clipped)",
    "quantize(bits=5, block=256, grid=symmetric, rounding=stochastic, scales=bf16)",
    "lowrank(rank=2, factors=fp32)",
    "lowrank(rank=4, factors=int8)",
    "lowrank(rank=4, factors=int6, q=bf16, iterate=alternate)",
    "lowrank(rank=12, factors=int4)",
    "topk(density=0.01)",
    "topk(density=0.1, block=96, values=int4)",
    "topk(density=0.3, block=65536, values=fp32)",
    "randomk(density=0.05, block=512)",
    "randomk(density=0.2, block=64, values=int8)",
]


def _each_choice(rank: int, world_size: int) -> dict[str, list[str]]:
    dense = train(make(), rank, range(4))
    digests = {}
    for choice in CHOICES:
        ddp = make()
        state = lgreco.attach(ddp, everything(choice, layers={"odd.*": choice}))
        bias = "dense(dtype=fp32)" if choice.startswith("lowrank") else choice  # a vector has no rank to lower
        assert (state.plan["wide.weight"], state.plan["odd.bias"]) == (lgreco.parse(choice), lgreco.parse(bias))
        digests[choice] = train(ddp, rank, range(4))
        lossless = world_size == 1 or choice == "dense(dtype=fp32)"
        assert (digests[choice] == dense) or not (world_size <= 2 and lossless)
        assert lossless or digests[choice][0] != dense[0]
        state.close()
    return digests


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_codec_leaves_the_same_bits_on_every_rank(world_size: int) -> None:
    """After every step all ranks hold the same parameters, and lossy codecs differ from dense and from each other."""
    digests = same_on_all_ranks(run(world_size, _each_choice))
    if world_size > 1:
        assert len({tuple(steps) for steps in digests.values()}) == len(CHOICES)


class _Mixed(nn.Module):
    """fp32 and bf16 layers in one model, so that DDP forms buckets of both types."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(96, 160)
        self.middle = nn.Linear(160, 160, dtype=torch.bfloat16)
        self.last = nn.Linear(160, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.middle(torch.tanh(self.first(x)).bfloat16()))
        return self.last(x.float())


def _each_dtype(rank: int, world_size: int) -> dict[str, list[str]]:
    choices = ["dense(dtype=fp32)", "dense(dtype=bf16)", "quantize(bits=4, block=128)",
               "quantize(bits=2, block=32, rounding=stochastic)", "lowrank(rank=4, factors=int8)",
               "lowrank(rank=10, factors=int8, iterate=alternate)", "topk(density=0.05, values=bf16)",
               "randomk(density=0.1, block=128, values=int8)"]  # fmt: skip
    models = {
        "bf16": lambda: make(dtype=torch.bfloat16),
        "fp16": lambda: make(dtype=torch.float16),
        "mixed": lambda: make(_Mixed),
    }
    digests = {}
    for dtype, make_ddp in models.items():
        for residual in ("fp32", "bf16", "off"):
            for choice in choices:
                ddp = make_ddp()
                state = lgreco.attach(ddp, everything(choice, residual=residual))
                digests[f"{dtype} {residual} {choice}"] = train(ddp, rank, range(3))
                assert all(parameter.isfinite().all() for parameter in ddp.parameters())
                state.close()
    return digests


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_gradient_and_residual_type_leaves_the_same_bits_on_every_rank(world_size: int) -> None:
    """bf16, fp16 and mixed buckets, with the residual in fp32, in bf16 or off."""
    digests = same_on_all_ranks(run(world_size, _each_dtype))
    for dtype in ("bf16", "fp16", "mixed"):
        for choice in ("quantize(bits=4, block=128)", "lowrank(rank=4, factors=int8)"):
            last = {digests[f"{dtype} {residual} {choice}"][-1] for residual in ("fp32", "bf16", "off")}
            assert len(last) == 3, "the residual's type must make a difference"


def _each_bucket_size(rank: int, world_size: int, choice: str) -> list[list[str]]:
    runs = []
    for options in (
        {"bucket_cap_mb": 0.05},
        {"bucket_cap_mb": 1},
        {"bucket_cap_mb": 4},
        {"bucket_cap_mb": 25},
        {"bucket_cap_mb": 1, "static_graph": True},  # rebuilds later
        {"bucket_cap_mb": 1, "find_unused_parameters": True},  # does not rebuild
        {"bucket_cap_mb": 1, "gradient_as_bucket_view": True},
    ):
        ddp = make(Deep, **options)
        state = lgreco.attach(ddp, everything(choice))
        runs.append(train(ddp, rank, range(4), width=256))
        assert len(ddp.reducer._get_zeros_like_grad_buckets()) > 2 or options["bucket_cap_mb"] > 1
        state.close()
    return runs


@pytest.mark.parametrize(
    "choice",
    [
        "quantize(bits=4, block=512)",
        "quantize(bits=2, block=96, rounding=stochastic)",
        "lowrank(rank=4, factors=int8)",
        "lowrank(rank=9, factors=int8, iterate=alternate)",
        "topk(density=0.02, block=512)",
        "randomk(density=0.05, block=96)",
    ],
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_buckets_do_not_change_the_bits(world_size: int, choice: str) -> None:
    """The same bits for every bucket_cap_mb, across DDP's rebuild after a step, and where it does not rebuild."""
    runs = same_on_all_ranks(run(world_size, _each_bucket_size, choice))
    assert all(digests == runs[0] for digests in runs), runs


def _dense_and_ddp(rank: int, world_size: int) -> tuple[list[str], list[str]]:
    plain, attached = make(), make()
    lgreco.attach(attached, everything("dense(dtype=fp32)"))
    return train(plain, rank, range(5)), train(attached, rank, range(5))


@pytest.mark.parametrize("world_size", [1, 2])
def test_dense_equals_ddp_without_a_hook(world_size: int) -> None:
    """With one or two ranks, where the order of a sum cannot matter, fp32 on the wire gives DDP's own bits."""
    for plain, attached in run(world_size, _dense_and_ddp):
        assert plain == attached


def _dense_and_hand(rank: int, world_size: int) -> None:
    ddp = make()
    lgreco.attach(ddp, everything("dense(dtype=fp32)"))
    for step in range(3):
        x = batch_of(rank, step)
        mine = local_gradients(ddp, x)
        loss_of(ddp, x).backward()
        for name, parameter in ddp.module.named_parameters():
            theirs = [torch.empty_like(parameter) for _ in range(world_size)]
            dist.all_gather(theirs, mine[name])
            total = torch.zeros_like(parameter)
            for gradient in theirs:
                total += gradient
            assert torch.equal(parameter.grad, total * torch.tensor(1 / world_size)), name
        ddp.zero_grad()


@pytest.mark.parametrize("world_size", [3, 4])
def test_dense_sums_in_rank_order(world_size: int) -> None:
    """With more ranks, fp32 on the wire gives (g0 + g1 + ...) / W, summed in rank order, bit for bit."""
    run(world_size, _dense_and_hand)


def _same_seed(rank: int, world_size: int, seed: int) -> list[str]:
    ddp = make()
    lgreco.attach(ddp, everything("quantize(bits=3, block=64, rounding=stochastic)", seed=seed))
    return train(ddp, rank, range(5))


def test_a_seed_repeats_a_run() -> None:
    """Two runs with one seed are equal bit for bit; another seed gives another run."""
    first, again, other = (same_on_all_ranks(run(3, _same_seed, seed)) for seed in (5, 5, 6))
    assert first == again
    assert first[0] != other[0]


def _world_of_one(rank: int, world_size: int) -> None:
    plain, attached = make(), make()
    state = lgreco.attach(attached, everything("quantize(bits=1, block=32)"))
    assert train(plain, rank, range(3)) == train(attached, rank, range(3))
    assert state.stats()["wire_bytes"] == 0
    assert state.state_dict()["residuals"] == {}
    state.close()


def test_one_rank_trains_as_without_a_hook() -> None:
    """A world of one has nothing to exchange: the bucket comes back as it went in."""
    run(1, _world_of_one)


def _nothing_is_lost(rank: int, world_size: int, choice: str) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything(choice, layers={"wide.bias": "dense(dtype=fp32)"}))
    before = state.gather()["ranks"]
    for step in range(3):
        x = batch_of(rank, step)
        mine = local_gradients(ddp, x)
        loss_of(ddp, x).backward()
        after = state.gather()["ranks"]
        everyone: list[dict[str, torch.Tensor]] = [{} for _ in range(world_size)]
        dist.all_gather_object(everyone, mine)
        for name in after[0]:
            delivered = dict(ddp.module.named_parameters())[name].grad.flatten().double()
            total = torch.zeros_like(delivered)
            for r in range(world_size):
                total += everyone[r][name].flatten().double() / world_size
                total += (_sender(before, r, name, delivered) - _sender(after, r, name, delivered)) / world_size
                total += _owner(before, r, name, delivered) - _owner(after, r, name, delivered)
            scale = max(gradients[name].abs().max() for gradients in everyone)
            assert (total - delivered).abs().max() <= 1e-5 * scale, name
        assert max(part["sender"].abs().max() for part in after[rank].values()) > 0
        if "lowrank" not in choice:  # there the owner's error goes into its residual as a sender
            assert max(part["owner"].abs().max() for part in after[rank].values() if part["owner"] is not None) > 0
        before = after
        ddp.zero_grad()


def _sender(ranks: list[dict], rank: int, name: str, like: torch.Tensor) -> torch.Tensor:
    return ranks[rank][name]["sender"].double() if name in ranks[rank] else torch.zeros_like(like)


def _owner(ranks: list[dict], rank: int, name: str, like: torch.Tensor) -> torch.Tensor:
    """What a rank keeps as owner, in its place within the layer, flat."""
    whole = torch.zeros_like(like)
    part = ranks[rank].get(name)
    if part is not None and part["owner"] is not None:
        offset = part["owner_offset"]
        whole[offset : offset + part["owner"].numel()] = part["owner"].double()
    return whole


@pytest.mark.parametrize(
    "choice",
    [
        "quantize(bits=2, block=64)",
        "quantize(grid=symmetric)",
        "dense(dtype=bf16)",
        "lowrank(rank=2, factors=fp32)",
        "lowrank(rank=4, factors=int4)",
        "lowrank(rank=12, factors=int8, q=int3)",
        "lowrank(rank=4, factors=int5, iterate=alternate)",
        "topk(density=0.3, block=512)",
        "randomk(density=0.4, block=96, values=int8)",
    ],
)
def test_what_is_left_out_is_kept(choice: str) -> None:
    """Mean(gradient + sender's residual) + owner's residual = delivered + what both keep, within fp32 rounding."""
    run(3, _nothing_is_lost, choice)


def _diverged(rank: int, world_size: int, check_every: int) -> str | None:
    ddp = make()
    lgreco.attach(ddp, everything("quantize(bits=4, block=128)", check_replicas_every=check_every))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2)
    train(ddp, rank, range(4), optimizer)
    if rank == 2:
        with torch.no_grad():
            ddp.module.gain += 1e-6
    try:
        train(ddp, rank, range(4, 8), optimizer)
    except RuntimeError as error:
        return str(error)
    return None


def test_diverged_replicas_are_found() -> None:
    """check_replicas_every: N finds a replica that differs within N steps, and names its rank; 0 never looks."""
    messages = run(3, _diverged, 3)
    assert all(message and re.search(r"at step 7.*rank 2 ", message) for message in messages), messages
    assert any("rank 2 holds other parameters than rank 0 (check_replicas_every)" in message for message in messages)
    assert run(3, _diverged, 0) == [None] * 3


def _delivered_at(rank: int, world_size: int, choice: str, scale: float) -> list[torch.Tensor]:
    """What eight backward passes deliver, over `scale`, where their losses are multiplied by it."""
    torch.manual_seed(0)
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(48, 80, bias=False))
    state = lgreco.attach(ddp, everything(choice, min_numel=0))
    delivered = []
    for step in range(8):
        ddp.zero_grad()
        (ddp(batch_of(rank, step, 48)).square().mean() * scale).backward()
        delivered.append(ddp.module.weight.grad / scale)
    state.close()
    return delivered


@pytest.mark.parametrize("choice", ["lowrank(rank=4, factors=int8)", "lowrank(rank=10, factors=int8)",
                                    "lowrank(rank=4, factors=bf16, iterate=alternate)",
                                    "quantize(bits=3, grid=clipped)"])  # fmt: skip
@pytest.mark.parametrize("scale", [2.0**64, 2.0**-64])
def test_a_gradient_of_any_scale_is_delivered_alike(choice: str, scale: float) -> None:
    """By powers of two, which change no bit of a mantissa: warm starts must not carry the scale into a product."""
    for before, after in zip(
        run(2, _delivered_at, choice, 1.0)[0], run(2, _delivered_at, choice, scale)[0], strict=True
    ):
        assert torch.equal(before, after)
