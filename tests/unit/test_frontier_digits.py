"""The digits that the frontier trains on, and their net: big enough, unlike layers, data that can be drawn again."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from frontier_digits import Digits, DigitsNet
from frontier_tasks import DigitsTask, settings_of


def test_the_net_is_big_and_its_layers_are_unlike() -> None:
    shapes = {tuple(parameter.shape) for parameter in DigitsNet().parameters()}
    assert sum(parameter.numel() for parameter in DigitsNet().parameters()) >= 1_000_000
    assert {(64, 32, 3, 3), (192, 192, 3, 3), (512, 128, 1, 1), (256, 768)} <= shapes


def test_one_image_does_not_change_what_another_gives() -> None:
    torch.manual_seed(0)
    net, images = DigitsNet(), Digits().validation[0][:3]
    torch.testing.assert_close(net(images)[1], net(images[1:2])[0])


def test_the_loss_is_that_of_the_logits() -> None:
    net, (images, labels) = DigitsNet(), Digits().training_batch(seed=0, rank=0, step=0, batch=4)
    assert torch.equal(net(images, labels), torch.nn.functional.cross_entropy(net(images), labels))


def test_the_same_arguments_draw_the_same_images_and_others_draw_others() -> None:
    first, again = (Digits().training_batch(seed=1, rank=2, step=3, batch=8) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape == (8, 1, 8, 8)
    assert first[0].dtype == torch.float32
    for other in ({"seed": 2}, {"rank": 1}, {"step": 4}):
        arguments = {"seed": 1, "rank": 2, "step": 3, "batch": 8, **other}
        assert not torch.equal(Digits().training_batch(**arguments)[0], first[0])


def test_ranks_share_the_validation_images_and_leave_none_out() -> None:
    task, whole = DigitsTask(settings_of("digits", "adamw", None)), Digits().validation
    assert len(whole[0]) == 4 * 599
    shares = [list(task.validation(rank=rank, world_size=3)) for rank in range(3)]
    assert sum(len(labels) for share in shares for _, labels in share) == len(whole[1])
    assert torch.equal(shares[1][0][0], whole[0][1::3][:64])
