"""When gradients become ready, by a clock that the test winds."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from lgreco.arrivals import ArrivalClock


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))


def test_gradients_come_last_layer_first_and_the_first_pass_is_left_out() -> None:
    net = model()
    ticks = itertools.chain([100.0, 200.0, 300.0], itertools.count(1000.0, 2.0))
    clock = ArrivalClock(list(net.parameters()), passes=2, now=lambda: next(ticks))
    for _ in range(3):
        assert not clock.done
        net(torch.ones(4, 2)).sum().backward()
    assert clock.ready_s() == [4.0, 2.0, 0.0]
    net(torch.ones(4, 2)).sum().backward()
    assert clock.done
    assert clock.ready_s() == [4.0, 2.0, 0.0]
    assert next(ticks) == 1012.0  # two passes of three gradients; none was timed after them


def test_nothing_is_known_before_a_second_pass_or_of_a_layer_without_gradient() -> None:
    net = model()
    clock = ArrivalClock(list(net.parameters()))
    assert clock.ready_s() is None
    net(torch.ones(4, 2)).sum().backward()
    assert clock.ready_s() is None
    unused = ArrivalClock([*net.parameters(), nn.Parameter(torch.zeros(1))])
    for _ in range(3):
        net(torch.ones(4, 2)).sum().backward()
    assert unused.ready_s() is None
    unused.stop()
    assert unused.done
