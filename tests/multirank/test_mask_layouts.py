"""Masks of parameters whose memory is not row-major: DDP's buckets follow the memory, masks the dimensions."""

from __future__ import annotations

import pytest
import torch
from ranks import run
from torch import nn
from training import everything, make

import lgreco


class _Layouts(nn.Module):
    """A channels_last convolution, a transposed matrix, one of both, and one with holes in its memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 8, (3, 2)).to(memory_format=torch.channels_last)
        self.transposed = nn.Parameter(torch.randn(16, 12).t())
        self.turned = nn.Parameter(torch.randn(5, 2, 7).permute(2, 0, 1))
        self.holes = nn.Parameter(torch.randn(9, 10)[:, ::2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = x[:, :120].reshape(-1, 6, 5, 4)
        parts = (self.conv(images), x[:, :12] @ self.transposed, x[:, :70] * self.turned.reshape(70))
        return torch.cat([part.flatten(1) for part in (*parts, x[:, :9] @ self.holes)], dim=1)


def _gradients(ddp: nn.Module, rank: int, step: int) -> dict[str, torch.Tensor]:
    x = torch.randn(6, 130, generator=torch.Generator().manual_seed(10 * step + rank))
    ddp.zero_grad()
    ddp(x).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in ddp.module.named_parameters()}


def _masks(ddp: nn.Module, kind: str, step: int) -> dict[str, torch.Tensor]:
    masks = {}
    for name, parameter in ddp.module.named_parameters():
        draw = torch.Generator().manual_seed(step)
        if kind == "any":
            masks[name] = torch.rand(parameter.shape, generator=draw) < 0.4
        elif parameter.dim() > 1:  # whole rows and columns of the first two dimensions
            mask = torch.zeros(parameter.shape, dtype=torch.bool)
            mask[::2, 1:] = True
            masks[name] = mask
    return masks


def _like_dense(rank: int, world_size: int, kind: str) -> None:
    dense, masked = make(_Layouts), make(_Layouts)
    lgreco.attach(dense, everything("dense(dtype=fp32)"))
    state = lgreco.attach(masked, everything("dense(dtype=fp32)"))
    for step in range(3):
        masks = _masks(masked, kind, step)
        state.set_masks(masks)
        assert all(torch.equal(state.masks[name], mask) for name, mask in masks.items())
        expected, delivered = _gradients(dense, rank, step), _gradients(masked, rank, step)
        for name in expected:
            kept = masks.get(name, torch.ones(()) > 0)
            assert torch.equal(torch.where(kept, expected[name], 0.0), delivered[name]), (step, name)
    saved = state.state_dict()
    again = make(_Layouts)
    state = lgreco.attach(again, everything("dense(dtype=fp32)"))
    state.load_state_dict(saved)
    assert all(torch.equal(state.masks[name], mask) for name, mask in masks.items())
    expected, delivered = _gradients(masked, rank, 3), _gradients(again, rank, 3)
    assert all(torch.equal(expected[name], delivered[name]) for name in expected)


@pytest.mark.parametrize("kind", ["any", "rows and columns"])
def test_dense_values_are_those_of_masking_after_a_dense_exchange(kind: str) -> None:
    """Bit for bit, also from a checkpoint."""
    run(2, _like_dense, kind)


def _turned(rank: int, world_size: int) -> None:
    ddp, config = make(_Layouts), everything("quantize(bits=2, block=128)")
    state = lgreco.attach(ddp, config)
    _gradients(ddp, rank, 0)
    saved = state.gather()
    again = make(lambda: _Layouts().to(memory_format=torch.contiguous_format))
    state = lgreco.attach(again, config)
    with pytest.warns(UserWarning, match=r"residuals start at zero where layers lie .*: 1 of 5, \"conv.weight\""):
        state.load_state_dict(saved)
    now = state.state_dict()["residuals"]
    assert not now["conv.weight"]["sender"].any()
    assert now["transposed"]["sender"].any()
    state = lgreco.attach(make(_Layouts), config)
    state.load_state_dict({key: value for key, value in saved.items() if key != "orders"})  # from before there were any
    assert state.state_dict()["residuals"]["conv.weight"]["sender"].any()


def test_residuals_of_another_layout_are_not_added_elsewhere() -> None:
    """A run that goes on with a convolution that is no longer channels_last."""
    run(2, _turned)


def _only_kept(rank: int, world_size: int, choice: str) -> None:
    ddp = make(_Layouts)
    state = lgreco.attach(ddp, everything(choice))
    for kind in ("any", "rows and columns"):
        masks = _masks(ddp, kind, 0)
        state.set_masks({name: masks[name] for name in ("conv.weight", "transposed")})
        for name, gradient in _gradients(ddp, rank, 0).items():
            if name in ("conv.weight", "transposed"):
                assert not gradient[~masks[name]].any(), (kind, name)
                assert (gradient[masks[name]] != 0).float().mean() > 0.5, (kind, name)


@pytest.mark.parametrize("choice", ["lowrank(rank=2, factors=int8)", "quantize(bits=8, block=128)"])
def test_what_is_pruned_gets_nothing(choice: str) -> None:
    """Low rank works on the matrix of what is kept, however that lies in memory."""
    run(2, _only_kept, choice)
