"""Bad input ends in an error that says what was wrong, the value and what is allowed, before training starts."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision
from training import batch_of, everything, loss_of, make, same_on_all_ranks, train

import lgreco

BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"default": "quantize(bits=0)"}, "bits must be 1..8, got 0"),
    ({"default": "quantize(bits=9)"}, "bits must be 1..8, got 9"),
    ({"default": "quantize(block=48)"}, "block must be a multiple of 32.*48"),
    ({"default": "quantise(bits=4)"}, "(?s)codec.*quantise.*dense.*quantize"),
    ({"default": "quantize(level=4)"}, "(?s)level.*bits"),
    ({"warmup": 3}, 'unknown config key "warmup", known are .*warmup_steps'),
    ({"residual": "fp8"}, "residual must be fp32, bf16 or off, got 'fp8'"),
    ({"seed": -1}, "seed must be a whole number from 0"),
    ({"layers": {"*.wieght": "dense"}}, r'pattern "\*\.wieght" .*matches no layer; close are'),
]


def _bad_configs(rank: int, world_size: int) -> None:
    ddp = make()
    for config, message in BAD_CONFIGS:
        with pytest.raises(ValueError, match=message):
            lgreco.attach(ddp, config)
    lgreco.attach(ddp)


def test_a_bad_config_is_refused() -> None:
    """Bits 0 or 9, an unknown codec, parameter or key, a pattern that matches nothing; no hook stays."""
    run(1, _bad_configs)


class _Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16, sparse=True)
        self.out = nn.Linear(16, 4)


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(8, dtype=torch.complex64))


class _Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Parameter(torch.zeros(8, dtype=torch.float64))


@contextlib.contextmanager
def _python_reducer() -> Iterator[None]:
    before = torch._dynamo.config.optimize_ddp
    torch._dynamo.config.optimize_ddp = "python_reducer"
    try:
        yield
    finally:
        torch._dynamo.config.optimize_ddp = before


def _models(rank: int, world_size: int, folder: str) -> None:
    with pytest.raises(ValueError, match="attach takes a DistributedDataParallel module, got Linear"):
        lgreco.attach(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='layer "words" has sparse=True: sparse gradients are not supported'):
        lgreco.attach(make(_Sparse))
    with pytest.raises(ValueError, match=r'layer "phase" is torch\.complex64: complex gradients are not supported'):
        lgreco.attach(make(_Complex))
    with pytest.raises(ValueError, match='layer "fine": dtype must be fp32, bf16, fp16, got float64'):
        lgreco.attach(make(_Double))
    with _python_reducer(), pytest.raises(ValueError, match=r'optimize_ddp="python_reducer".*would train dense'):
        lgreco.attach(make())
    mixed = make()
    mixed.mixed_precision = _MixedPrecision()  # the constructor itself asks for an accelerator
    with pytest.raises(ValueError, match=r"DDP\(mixed_precision=\.\.\.\) installs a hook of its own"):
        lgreco.attach(mixed)
    with pytest.raises(FileNotFoundError, match="must be the path of a YAML file"):
        lgreco.attach(make(), Path(folder) / "none.yaml")

    stepped_in_backward = make()
    _apply_optimizer_in_backward(torch.optim.SGD, stepped_in_backward.module.parameters(), {"lr": 0.1})
    with pytest.raises(ValueError, match='layer "gain" is stepped by an optimizer in backward'):
        lgreco.attach(stepped_in_backward)

    late = make()
    lgreco.attach(late)
    with pytest.raises(ValueError, match=r"hook is registered already \(hook\); a DDP module takes one"):
        lgreco.attach(late)
    with pytest.raises(RuntimeError, match="register_comm_hook"):
        late.register_comm_hook(lgreco.State(), lgreco.hook)
    other = make()
    other.register_comm_hook(None, bf16_compress_hook)
    with pytest.raises(ValueError, match=r"registered already \(bf16_compress_hook\)"):
        lgreco.attach(other)
    with pytest.raises(RuntimeError, match="no plan yet"):
        _ = lgreco.State().plan


def test_a_model_that_cannot_be_attached_is_refused(tmp_path: Path) -> None:
    """Sparse, complex and double layers, DDP's own hooks, a hook registered twice, optimizers in backward."""
    run(1, _models, str(tmp_path))


def _unlike(rank: int, world_size: int) -> list[str]:
    messages = []
    for config in (
        {"seed": rank // 2},
        {"layers": {"wide.weight": f"quantize(bits={4 if rank < 2 else 5})"}},
        {"default": "dense(dtype=bf16)" if rank == 2 else "dense(dtype=fp16)", "warmup_steps": 2 * (rank == 2)},
    ):
        with pytest.raises(ValueError, match="config differs between ranks") as caught:
            lgreco.attach(make(), config)
        messages.append(str(caught.value))

    with pytest.raises(ValueError, match="model differs between ranks") as caught:
        # DDP compares shapes, not names.
        lgreco.attach(make(_Renamed if rank == 1 else _Named))
    messages.append(str(caught.value))
    return messages


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)


class _Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Linear(4, 4)


def test_ranks_that_are_configured_differently_are_told() -> None:
    """On every rank the error names the rank and the key that differ."""
    seed, layers, several, model = same_on_all_ranks(run(3, _unlike))
    assert re.search("rank 2 and rank 0 disagree on seed$", seed)
    assert re.search(r'rank 2 and rank 0 disagree on layers\["wide.weight"\]$', layers)
    assert re.search("rank 2 and rank 0 disagree on warmup_steps, default$", several)
    assert re.search("rank 1 has layer .*two.weight.*, rank 0 has .*one.weight", model)


def _closed(rank: int, world_size: int) -> None:
    ddp = make()
    state = lgreco.attach(ddp, everything("quantize(bits=4)"))
    train(ddp, rank, range(2))
    state.close()
    state.close()
    with pytest.raises(RuntimeError, match=r"was closed \(state.close\(\)\); no backward may follow"):
        loss_of(ddp, batch_of(rank, 0)).backward()


def test_a_closed_state_refuses_to_go_on() -> None:
    """After state.close(), which may be called twice, a backward raises and says why."""
    run(2, _closed)


def _conventional(rank: int, world_size: int) -> None:
    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(96, 96)))
    state = lgreco.State(everything("quantize(bits=4)"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ddp.register_comm_hook(state, lgreco.hook)
    loss_of(ddp, batch_of(rank, 0)).backward()
    assert list(state.plan) == ["0.weight", "0.bias"]
    state.close()


def test_the_conventional_form_learns_the_layers_at_the_first_bucket() -> None:
    """A State made before DDP knows the layers has a plan after the first backward."""
    run(2, _conventional)
