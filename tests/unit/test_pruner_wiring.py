"""How a pruner finds layers, optimizers and gradients where others have wrapped or named them in their own way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lgreco.pruning import ConstantSchedule, CubicSchedule, Movement, OneShotSchedule, Pruner, Regrowth, Taylor

RAMP = CubicSchedule(0.0, 0.8, begin=2, end=8, every=2)


def _net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))


def _loss(model: nn.Module, step: int) -> torch.Tensor:
    inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(step))
    return (model(inputs) - 1.0).square().mean()


def _plain(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    _loss(model, step).backward()
    optimizer.step()


def _by_closure(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    def closure() -> torch.Tensor:
        loss = _loss(model, step)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()  # so that no step's gradient is there before its closure has run


def _by_named_closure(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _loss(model, step)
        loss.backward()
        return loss

    optimizer.step(closure=closure)


@pytest.mark.parametrize("take_step", [_by_closure, _by_named_closure])
def test_gradients_that_a_closure_makes_are_those_of_the_step(take_step: Callable[..., None]) -> None:
    def scores(take: Callable[..., None]) -> dict[str, torch.Tensor]:
        model, criterion = _net(), Movement()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        pruner = Pruner(model, optimizer, RAMP, criterion=criterion)
        for step in range(6):
            take(model, optimizer, step)
            pruner.step()
        assert pruner.steps == 6
        return {name: criterion.scores(name, model.get_parameter(name)) for name in pruner.masks}

    expected, got = scores(_plain), scores(take_step)
    assert all(each.any() for each in expected.values())
    assert all(torch.equal(got[name], expected[name]) for name in expected)


class _Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an Optimizer in name, whose own hooks do not exist and are never called."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


def test_an_optimizer_that_a_framework_has_wrapped_is_seen_through() -> None:
    model = _net()
    inner = torch.optim.AdamW(model.parameters(), 0.01)
    wrapper = _Wrapper(inner)
    pruner = Pruner(model, wrapper, RAMP)
    for step in range(9):
        _plain(model, wrapper, step)
        pruner.step()
    assert pruner.steps == 9
    for name, mask in pruner.masks.items():
        assert not inner.state[model.get_parameter(name)]["exp_avg"][~mask].any()
    assert pruner.report().sparsity == pytest.approx(0.8, abs=2e-3)


class _Held(nn.Module):
    """A model that calls a part of itself `module`, as DDP does and many wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = _net()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 12] -> [n, 4]."""
        return self.module(x) @ self.weight


def test_a_part_called_module_keeps_its_name_in_checkpoints() -> None:
    pruner = Pruner(_Held(), None, RAMP)
    pruner.prune(0.5)
    saved = pruner.state_dict()
    assert "module.0.weight" in saved["masks"]
    for masks in (saved["masks"], {f"module.{name}": mask for name, mask in saved["masks"].items()}):
        again = Pruner(_Held(), None, RAMP)
        again.load_state_dict({**saved, "masks": masks})
        assert all(torch.equal(again.masks[name], mask) for name, mask in pruner.masks.items())


def test_checkpointed_and_compiled_parts_have_the_names_of_the_plain_model() -> None:
    model = _net()
    model[0] = checkpoint_wrapper(model[0])
    model[2] = torch.compile(model[2], backend="eager")
    pruner = Pruner(model, None, RAMP, layers=["0.weight", "2.*"])
    pruner.prune(0.5)
    assert set(pruner.masks) == {"0.weight", "2.weight", "2.bias"}
    plain = Pruner(_net(), None, RAMP, layers=["0.weight", "2.*"])
    plain.load_state_dict(pruner.state_dict())
    assert set(plain.masks) == set(pruner.masks)


def test_a_layer_whose_name_reads_as_a_pattern_is_named_by_it() -> None:
    model = nn.Module()
    model.weights = nn.ParameterDict({name: torch.randn(4, 4) for name in ("w[0]", "w0", "plain")})
    pruner = Pruner(model, None, RAMP, layers=["weights.w[0]"])
    pruner.prune(0.5)
    assert "weights.w[0]" in pruner.masks
    assert "weights.plain" not in pruner.masks


@pytest.mark.parametrize(("saved_with", "loaded_into"), [("magnitude", Movement()), (Movement(), Taylor())], ids=str)
def test_what_another_criterion_has_gathered_is_refused_and_nothing_changes(saved_with: Any, loaded_into: Any) -> None:
    def made(criterion: Any) -> tuple[Any, Any, Pruner]:
        model = _net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return model, optimizer, Pruner(model, optimizer, RAMP, criterion=criterion)

    model, optimizer, pruner = made(saved_with)
    for step in range(3):
        _plain(model, optimizer, step)
        pruner.step()
    _, _, other = made(loaded_into)
    before = str(other.state_dict())
    with pytest.raises(ValueError, match=r"saved with the criterion \w+, which gathers .* same criterion"):
        other.load_state_dict(pruner.state_dict())
    assert str(other.state_dict()) == before


def test_criteria_that_gather_nothing_may_be_exchanged() -> None:
    pruner = Pruner(_net(), None, RAMP)
    pruner.prune(0.5)
    other = Pruner(_net(), None, RAMP, criterion="random")
    other.load_state_dict(pruner.state_dict())
    assert all(torch.equal(other.masks[name], mask) for name, mask in pruner.masks.items())


@pytest.mark.parametrize("structure", ["unstructured", "rows"])
@pytest.mark.parametrize("sparsity", [0.0, 0.996, 0.9995])
def test_the_solvers_own_levels_reach_any_sparsity(structure: str, sparsity: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 100), nn.Linear(100, 4))
    pruner = Pruner(model, None, OneShotSchedule(sparsity), structure=structure, allocation="solver")
    pruner.prune(sparsity)
    if structure == "unstructured":
        assert pruner.report().sparsity == pytest.approx(sparsity, abs=1e-4)
    assert all(layer.kept_numel > 0 for layer in pruner.report().layers), "one row of each layer stays"


def test_a_model_without_a_layer_to_prune_says_what_was_looked_for() -> None:
    model = _net().requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"none of two or more dimensions, except embeddings and norms, requires a gradient; name"
    ):
        Pruner(model, None, RAMP)
    with pytest.raises(ValueError, match="requires a gradient and is held by the optimizer"):
        Pruner(_net(), torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), RAMP)


class _Gains(nn.Module):
    """Factors and norms beside matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.norm = nn.LayerNorm((4, 2))
        self.row = nn.Linear(8, 1)


def test_factors_and_norms_are_no_matrices() -> None:
    pruner = Pruner(_Gains(), None, RAMP, allocation="uniform")
    assert {layer.name for layer in pruner.report().layers} == {
        "matrix.parametrizations.weight.original1",
        "row.weight",
    }
    named = Pruner(_Gains(), None, RAMP, layers=["norm.weight"])
    assert {layer.name for layer in named.report().layers} == {"norm.weight"}


def test_a_step_skipped_by_a_test_of_ones_own_does_not_reach_regrowth() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = ConstantSchedule(final=0.5, begin=1, end=5, every=2)
    pruner = Pruner(model, optimizer, schedule, regrowth=Regrowth(0.3, window=2))
    for step in range(8):
        optimizer.zero_grad()
        (_loss(model, step) * (float("nan") if step in (1, 4) else 1.0)).backward()
        if not torch.isfinite(model[0].weight.grad).all():
            continue
        optimizer.step()
        pruner.step()
    assert pruner.steps == 6
    assert [change.step for change in pruner.changes] == [1, 3, 5]


@pytest.mark.parametrize("criterion", ["movement", "taylor"])
def test_criteria_that_watch_training_say_what_they_have_not_seen(criterion: str) -> None:
    model = _net()
    with pytest.raises(ValueError, match=f"criterion {criterion} scores .* pass the optimizer, or take magnitude"):
        Pruner(model, None, RAMP, criterion)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, RAMP, criterion)
    with pytest.raises(ValueError, match=f"criterion {criterion} .* has seen none yet: prune after steps"):
        pruner.prune(0.5)
    _plain(model, optimizer, 0)
    pruner.step()
    pruner.prune(0.5)
    assert pruner.sparsity == pytest.approx(0.5, abs=1e-2)


def test_an_optimizer_that_was_rebuilt_is_noticed() -> None:
    model = _net()
    first = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, first, RAMP)
    _plain(model, first, 0)
    pruner.step()
    second = torch.optim.AdamW(model.parameters(), 0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 16):
            _plain(model, second, step)
            assert not pruner.step()
    (warned,) = caught
    assert warned.category is RuntimeWarning
    assert "running without a step of an optimizer that the pruner was given" in str(warned.message)
    again = Pruner(model, second, RAMP)
    again.load_state_dict(pruner.state_dict())
    pruner.finalize()
    for step in range(1, 9):
        _plain(model, second, step)
        again.step()
    assert again.report().sparsity == pytest.approx(0.8, abs=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pruner.step(), "it has ended"


def test_steps_that_are_skipped_and_changes_by_the_pruner_itself_are_no_matter() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner, by_calls = Pruner(model, optimizer, RAMP), Pruner(model, None, RAMP)
    saved = pruner.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(_net().state_dict())  # as DDP does, too, when it takes over rank 0's weights
        assert not pruner.step()
        for step in range(3):
            _plain(model, optimizer, step)
            pruner.step()
            by_calls.step()
            assert not pruner.step()
        pruner.prune(0.5)
        assert not pruner.step()
        model.load_state_dict(_net().state_dict())
        pruner.load_state_dict(saved)
        model.load_state_dict(_net().state_dict())
        assert not pruner.step()
        for step in range(12):  # weights that are swapped for an average of them and back, then an overflow
            model.load_state_dict(_net().state_dict())
            assert not pruner.step()
            _plain(model, optimizer, step)
            pruner.step()


@pytest.mark.parametrize(
    "move",
    [
        lambda layer: torch.nn.utils.spectral_norm(layer),
        lambda layer: torch.nn.utils.parametrizations.orthogonal(layer),
        lambda layer: torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity()),
    ],
    ids=["spectral_norm", "orthogonal", "identity"],
)
def test_a_parameter_that_a_parametrization_moves_is_the_same_layer(move: Callable[[nn.Module], Any]) -> None:
    model = _net()
    weight = model[0].weight
    pruner = Pruner(model, torch.optim.SGD(model.parameters(), 0.1), RAMP, layers=["0.weight"])
    move(model[0])
    if any(each is weight for each in model.parameters()):
        pruner.step()
    else:
        with pytest.raises(RuntimeError, match=r'layer "0\.weight" is no longer the parameter'):
            pruner.step()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_models_and_those_of_inference_mode_are_pruned() -> None:
    scripted = torch.jit.script(_net())
    optimizer = torch.optim.SGD(scripted.parameters(), 0.1)
    pruner = Pruner(scripted, optimizer, RAMP)
    for step in range(8):
        _plain(scripted, optimizer, step)
        pruner.step()
    assert pruner.report().sparsity == pytest.approx(0.8, abs=2e-3)
    with torch.inference_mode():
        pruner = Pruner(_net(), None, RAMP)
        pruner.prune(0.5)
    assert pruner.report().sparsity == pytest.approx(0.5, abs=2e-3)


def test_a_copy_of_a_pruner_has_a_window_of_its_own() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, RAMP, regrowth=Regrowth(0.2, 2))
    _plain(model, optimizer, 0)
    pruner.step()
    _loss(model, 1).backward()  # the window is open
    copied = copy.deepcopy(pruner)
    assert copied.state_dict()["regrowth"].keys() == pruner.state_dict()["regrowth"].keys()
    assert all(
        torch.equal(copied._window._step[name], gradient) and copied._window._step[name] is not gradient
        for name, gradient in pruner._window._step.items()
    )
    assert any(bool(gradient.any()) for gradient in copied._window._step.values())


@pytest.mark.parametrize("given", [True, False], ids=["optimizer", "none"])
def test_parameters_that_were_replaced_are_noticed(given: bool) -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer if given else None, RAMP)
    _plain(model, optimizer, 0)
    pruner.step()
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=r'layer "0\.weight" is no longer the parameter .* make the Pruner anew'):
        pruner.step()


def _sparse() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 8, sparse=True), nn.Linear(8, 4))


def _complex() -> nn.Module:
    model = _net()
    model.turn = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
    return model


@pytest.mark.parametrize(
    ("make", "made", "match"),
    [
        (_net, {"schedule": 0.5}, r"schedule must be a Schedule, such as OneShotSchedule\(0\.9\), got 0\.5"),
        (_net, {"regrowth": 0.1}, r"regrowth must be None or a Regrowth, .* got 0\.1"),
        (_net, {"optimizer": _net()}, "optimizer must be a torch optimizer or several of them, got Linear"),
        (lambda: torch.optim.SGD(_net().parameters(), 0.1), {}, "model must be a torch module, got SGD"),
        (_net, {"optimizer": 3}, "optimizer must be a torch optimizer or several of them, got int"),
        (_sparse, {"layers": ["0.weight"]}, r'layer "0\.weight" has sparse gradients, .* sparse=False'),
        (_complex, {"layers": ["turn"]}, r'pattern "turn" matches only layers of torch\.complex64, and only real'),
        (lambda: nn.Sequential(nn.LazyLinear(4)), {}, r'layer "0\.weight" has no shape yet .* run one forward'),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_refused_when_the_pruner_is_made(make: Any, made: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Pruner(make(), **{"optimizer": None, "schedule": RAMP, **made})


def test_a_pattern_alone_need_not_be_listed_and_sparse_embeddings_may_be_left_out() -> None:
    assert [layer.name for layer in Pruner(_net(), None, RAMP, layers="0.*").report().layers] == ["0.weight", "0.bias"]
    assert [layer.name for layer in Pruner(_sparse(), None, RAMP).report().layers] == ["1.weight"]


@pytest.mark.parametrize("sparsity", [0.6667, 0.666667, 2 / 3, 0.66666])
def test_a_pattern_whose_sparsity_no_decimal_meets_is_met(sparsity: float) -> None:
    model = nn.Linear(9, 9)
    pruner = Pruner(model, None, OneShotSchedule(sparsity), structure="1:3")
    pruner.prune(sparsity)
    assert (pruner.masks["weight"].view(-1, 3).sum(dim=1) == 1).all()
    with pytest.raises(ValueError, match=r"1:3 has a sparsity of 0\.666667, so the schedule must end at it"):
        Pruner(model, None, OneShotSchedule(0.66), structure="1:3")
