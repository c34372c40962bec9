"""The pruner on one process: what is pruned stays zero, whatever trains the model, and resuming changes no bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lgreco.pruning import (
    ConstantSchedule,
    CubicSchedule,
    CyclicSchedule,
    OneShotSchedule,
    Pruner,
    Regrowth,
    Taylor,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


RAMP = CubicSchedule(0.0, 0.8, begin=2, end=8, every=2)


class Net(nn.Module):
    """An embedding, a convolution, matrices, norms and biases."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(12, 16)
        self.conv = nn.Conv1d(16, 24, 3, padding=1)
        self.norm = nn.LayerNorm(24)
        self.inner = nn.Linear(24, 32)
        self.out = nn.Linear(32, 8, bias=False)
        self.to(dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, length] -> [n, 8]."""
        x = self.conv(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        return self.out(torch.tanh(self.inner(self.norm(x)))).mean(dim=1)


def tokens_of(step: int) -> torch.Tensor:
    return torch.randint(0, 12, (6, 5), generator=torch.Generator().manual_seed(step))


def backward(model: nn.Module, step: int, scaler: Any = None) -> None:
    loss = (model(tokens_of(step)).float() - 1.0).square().mean()
    torch.autograd.backward(loss if scaler is None else scaler.scale(loss))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        pruner.step()


def bits(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def assert_pruned_is_zero(model: nn.Module, pruner: Pruner, optimizers: list[torch.optim.Optimizer]) -> None:
    parameters = dict(model.named_parameters())
    for name, mask in pruner.masks.items():
        assert not parameters[name][~mask].any(), name
        assert parameters[name][mask].any(), name
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameters[name], {}).items():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape and key != "step_size":
                    # Adamax's maximum is never less than its eps.
                    assert (value[~mask].abs() <= 1e-8).all(), f"{name} {key}"


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_moments_are_zero_in_every_step(name: str) -> None:
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = Pruner(model, optimizer, RAMP)
    for step in range(12):
        train(model, optimizer, pruner, range(step, step + 1))
        if pruner.masks:
            assert_pruned_is_zero(model, pruner, [optimizer])
    assert set(pruner.masks) == {"conv.weight", "inner.weight", "out.weight"}
    assert pruner.report().sparsity == pytest.approx(0.8, abs=1e-3)
    assert [change.step for change in pruner.changes] == [2, 4, 6, 8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype: torch.dtype) -> None:
    model = Net(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = Pruner(model, optimizer, RAMP)
    train(model, optimizer, pruner, range(9))
    assert_pruned_is_zero(model, pruner, [optimizer])
    assert pruner.report().sparsity == pytest.approx(0.8, abs=1e-3)


def test_several_optimizers_and_groups() -> None:
    model = Net()
    first = torch.optim.AdamW([{"params": [model.conv.weight]}, {"params": [model.inner.weight], "lr": 1e-3}], 0.01)
    second = torch.optim.SGD([model.out.weight, model.embedding.weight], 0.05, momentum=0.9)
    pruner = Pruner(model, [first, second], RAMP)
    for step in range(9):
        first.zero_grad()
        second.zero_grad()
        backward(model, step)
        first.step()
        second.step()
        pruner.step()
    assert pruner.steps == 9, "two optimizers, one step"
    assert_pruned_is_zero(model, pruner, [first, second])


def test_gradients_of_pruned_weights_do_not_count_when_clipping() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner = Pruner(model, optimizer, OneShotSchedule(0.8))
    train(model, optimizer, pruner, range(1))
    for step in range(3):  # accumulates
        backward(model, step)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(not model.get_parameter(name).grad[~mask].any() for name, mask in pruner.masks.items())
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert norm == pytest.approx(float(torch.cat([each.flatten() for each in gradients]).norm()))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_gradscaler_skips_do_not_count(fused: bool) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    pruner = Pruner(model, optimizer, CubicSchedule(0.0, 0.5, 1, 4, 1), criterion="taylor", scaler=scaler)
    counted = []
    for step in range(6):
        optimizer.zero_grad()
        backward(model, step, scaler)
        if step in (1, 3):
            model.inner.bias.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        counted.append(pruner.steps)
    assert counted == [1, 1, 2, 2, 3, 4]
    assert pruner.report().sparsity == pytest.approx(0.5, abs=1e-3)
    assert_pruned_is_zero(model, pruner, [optimizer])


def test_a_step_that_loading_takes_does_not_count() -> None:
    """torch.distributed.checkpoint makes an optimizer's state by a step; a skipped step after it must not count."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = Pruner(model, optimizer, RAMP)
    saved = pruner.state_dict()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    pruner.load_state_dict(saved)
    assert not pruner.step()
    assert pruner.steps == 0
    backward(model, 0)
    optimizer.step()
    pruner.step()
    assert pruner.steps == 1


def test_taylor_sees_unscaled_gradients() -> None:
    def scores(scale: float | None, fused: bool) -> torch.Tensor:
        model, criterion = Net(), Taylor(decay=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), 0.0, weight_decay=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        Pruner(model, optimizer, RAMP, criterion=criterion)
        backward(model, 0, scaler)
        scaler.step(optimizer)
        return criterion.scores("inner.weight", model.inner.weight)

    plain = scores(None, False)
    assert plain.any()
    for fused in (False, True):
        torch.testing.assert_close(scores(1024.0, fused), plain)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"criterion": "movement"},
        {"criterion": "taylor", "structure": "rows"},
        {"criterion": "random", "allocation": "erk", "seed": 3},
        {"structure": "2:4", "schedule": CubicSchedule(0.0, 0.5, 2, 8, 2)},
        {"structure": "1x4", "allocation": "solver"},
        {"regrowth": Regrowth(0.3, window=2)},
        {"regrowth": Regrowth(0.3), "schedule": ConstantSchedule(final=0.6, begin=1, end=9, every=3)},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_resuming_at_any_step_continues_bit_for_bit(made: dict[str, Any], prefix: str) -> None:
    made = {"schedule": RAMP, **made}

    def fresh() -> tuple[Net, torch.optim.Optimizer, Pruner]:
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        return model, optimizer, Pruner(model, optimizer, **made)

    straight, optimizer, pruner = fresh()
    train(straight, optimizer, pruner, range(10))
    for stop in range(10):
        model, optimizer, pruner = fresh()
        train(model, optimizer, pruner, range(stop))
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model, optimizer, pruner = fresh()
        model.load_state_dict(saved[0], strict=True)
        optimizer.load_state_dict(saved[1])
        saved[2]["masks"] = {prefix + name: packed for name, packed in saved[2]["masks"].items()}
        pruner.load_state_dict(saved[2])
        train(model, optimizer, pruner, range(stop, 10))
        assert bits(model) == bits(straight), f"stopped after {stop}"
        assert len(pruner.changes) == len({change.step for change in pruner.changes})


def test_masks_are_one_bit_a_weight_in_the_state() -> None:
    model = Net()
    pruner = Pruner(model, None, OneShotSchedule(0.5))
    pruner.prune(0.5)
    packed = pruner.state_dict()["masks"]["conv.weight"]
    assert packed["bits"].dtype == torch.uint8
    assert packed["bits"].numel() == -(-model.conv.weight.numel() // 8)


def test_a_model_keeps_names_and_copies_as_ever() -> None:
    model = Net()
    names = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, OneShotSchedule(0.5))
    train(model, optimizer, pruner, range(2))
    assert list(model.state_dict()) == names
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert bits(copied) == bits(model)
        backward(copied, 0)
        assert copied.inner.weight.grad[~pruner.masks["inner.weight"]].any(), "the copy is a plain model"
    Net().load_state_dict(model.state_dict(), strict=True)


def test_a_dense_checkpoint_goes_on_as_a_pruned_run_and_a_late_one_catches_up() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    pruner = Pruner(model, optimizer, CubicSchedule(0.0, 0.7, begin=0, end=0, every=1))
    optimizer.zero_grad()
    train(model, optimizer, pruner, range(3, 4))
    assert pruner.report().sparsity == pytest.approx(0.7, abs=1e-3)
    assert not train_changes(model, optimizer, pruner), "the schedule is past its end and nothing is due"


def train_changes(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner) -> bool:
    before = len(pruner.changes)
    train(model, optimizer, pruner, range(20, 23))
    return len(pruner.changes) > before


def test_tied_parameters_are_pruned_once_and_embeddings_only_when_named() -> None:
    model = Net()
    model.head = nn.Linear(16, 12, bias=False)
    model.head.weight = model.embedding.weight
    default = Pruner(model, None, RAMP)
    assert {layer.name for layer in default.report().layers} == {"conv.weight", "inner.weight", "out.weight"}
    named = Pruner(model, None, RAMP, layers=["head.*"])
    named.prune(0.5)
    assert list(named.masks) == ["embedding.weight"]
    assert model.head.weight is model.embedding.weight
    saved = named.state_dict()
    saved["masks"] = {"module.head.weight": saved["masks"].pop("embedding.weight")}
    again = Pruner(model, None, RAMP, layers=["embedding.weight"])
    again.load_state_dict(saved)
    assert torch.equal(again.masks["embedding.weight"], named.masks["embedding.weight"])


def test_frozen_and_empty_parameters_are_left_alone() -> None:
    model = Net()
    model.inner.weight.requires_grad_(False)
    model.empty = nn.Parameter(torch.empty(0, 4))
    pruner = Pruner(model, None, RAMP)
    pruner.prune(0.5)
    assert set(pruner.masks) == {"conv.weight", "out.weight"}
    with pytest.raises(ValueError, match=r'"inner\.weight" matches only layers that are frozen'):
        Pruner(model, None, RAMP, layers=["inner.weight"])


def test_layers_too_small_for_the_structure_stay_dense_and_are_named() -> None:
    model = Net()
    pruner = Pruner(model, None, OneShotSchedule(0.5), structure="1x32")
    pruner.prune(0.5)
    assert set(pruner.masks) == {"out.weight"}
    assert set(pruner.report().unfit) == {"conv.weight", "inner.weight"}
    with pytest.raises(ValueError, match="no layer can be cut into"):
        Pruner(model, None, OneShotSchedule(0.5), structure="7x7")


def test_nan_weights_and_scores_are_named() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = Net(dtype)
        with torch.no_grad():
            model.inner.weight[3, 4] = float("nan")
        for structure in ("unstructured", "rows", "2:4"):
            pruner = Pruner(model, None, OneShotSchedule(0.5), structure=structure)
            with pytest.raises(ValueError, match=r'layer "inner\.weight": scores must be numbers, got NaN'):
                pruner.prune(0.5)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), "0.5"])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match="must be a sparsity from 0 to below 1"):
        Pruner(Net(), None, RAMP).prune(sparsity)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({"criterion": "magnitud"}, "criterion must be magnitude, movement, taylor, random"),
        ({"criterion": "obert"}, "needs the losses of samples"),
        ({"structure": "2x"}, "structure must be unstructured"),
        ({"structure": "4:2"}, "1 <= N < M"),
        ({"structure": "2:4"}, "has a sparsity of 0.5, so the schedule must end at it, not at 0.8"),
        ({"structure": "1:4", "schedule": OneShotSchedule(0.75), "allocation": "erk"}, "must be global or uniform"),
        ({"allocation": "evolution"}, "needs a calibration loss"),
        ({"allocation": "best"}, "allocation must be global, uniform, erk, solver"),
        ({"layers": ["nothing.*"]}, 'pattern "nothing.\\*" matches no layer'),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(made: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Pruner(Net(), None, **{"schedule": RAMP, **made})


def test_a_wrong_state_is_refused_and_changes_nothing() -> None:
    model = Net()
    pruner = Pruner(model, None, RAMP)
    pruner.prune(0.5)
    saved = pruner.state_dict()
    for wrong, match in (
        ({}, "not a state of a pruner"),
        ({"lgreco_pruner": 1}, "incomplete"),
        ({**saved, "masks": {"other": saved["masks"]["conv.weight"]}}, 'layer "other", which is not pruned here'),
        ({**saved, "masks": {"conv.weight": saved["masks"]["out.weight"]}}, "is \\[24, 16, 3\\] here"),
        ({**saved, "masks": {"conv.weight": saved["masks"]["conv.weight"]}}, "no mask for inner.weight, out.weight"),
    ):
        before = pruner.state_dict()
        with pytest.raises(ValueError, match=match):
            pruner.load_state_dict(wrong)
        assert str(pruner.state_dict()) == str(before)


def test_cyclic_recovers_and_prunes_again() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = CyclicSchedule(low=0.0, final=0.6, begin=1, end=9, every=4, recover_steps=2)
    pruner = Pruner(model, optimizer, schedule)
    train(model, optimizer, pruner, range(10))
    levels = [round(change.sparsity, 2) for change in pruner.changes]
    assert levels == [0.0, 0.6, 0.0, 0.6, 0.6]


def test_regrowth_brings_back_the_steepest() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner = Pruner(
        model, optimizer, ConstantSchedule(final=0.75, begin=1, end=3, every=2), regrowth=Regrowth(0.2, window=1)
    )  # fmt: skip
    train(model, optimizer, pruner, range(2))
    before = pruner.masks
    twin = copy.deepcopy(model)
    backward(twin, 2)
    train(model, optimizer, pruner, range(2, 3))
    after = pruner.masks
    grown = {name: after[name] & ~before[name] for name in before}
    assert sum(int(each.sum()) for each in grown.values()) > 0
    assert pruner.report().sparsity == pytest.approx(0.75, abs=1e-3)
    for name, mask in grown.items():
        steep = twin.get_parameter(name).grad.abs()
        least_grown = steep[mask].min() if mask.any() else torch.tensor(torch.inf)
        still_pruned = steep[~after[name] & ~before[name]]
        assert still_pruned.numel() == 0 or least_grown >= still_pruned.max()


class _State:
    """Stands in for lgreco's State."""

    def __init__(self, model: nn.Module) -> None:
        self.told: list[dict[str, torch.Tensor]] = []
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    def names_of(self, parameters: Iterable[torch.Tensor]) -> list[str | None]:
        return [self._names.get(id(parameter)) for parameter in parameters]

    def set_masks(self, masks: dict[str, torch.Tensor]) -> None:
        self.told.append({name: mask.clone() for name, mask in masks.items()})


def test_loading_a_state_without_masks_tells_that_everything_is_kept() -> None:
    model = Net()
    early = Pruner(model, None, RAMP).state_dict()
    pruner, state = Pruner(model, None, RAMP), _State(model)
    pruner.attach(state)
    pruner.prune(0.5)
    pruner.load_state_dict(early)
    assert not pruner.masks
    assert set(state.told[-1]) == {"conv.weight", "inner.weight", "out.weight"}
    assert all(mask.all() for mask in state.told[-1].values())


def test_attach_tells_of_every_change_and_after_loading() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner, state = Pruner(model, optimizer, RAMP), _State(model)
    pruner.attach(state)
    assert not state.told
    train(model, optimizer, pruner, range(10))
    assert len(state.told) == len(pruner.changes) == 4
    other, late = Pruner(model, optimizer, RAMP), _State(model)
    other.attach(late)
    other.load_state_dict(pruner.state_dict())
    joined = _State(model)
    pruner.attach(joined)
    for told in (state.told[-1], late.told[-1], joined.told[-1]):
        assert {name: mask.tolist() for name, mask in told.items()} == {
            name: mask.tolist() for name, mask in pruner.masks.items()
        }
    with pytest.raises(ValueError, match="it has set_masks"):
        pruner.attach(object())


def test_finalize_leaves_a_plain_model() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = Pruner(model, optimizer, RAMP)
    train(model, optimizer, pruner, range(9))
    report = pruner.finalize()
    assert report.sparsity == pytest.approx(0.8, abs=1e-3)
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
