"""Which layers are pruned: matrices and convolutions, or those that patterns name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from lgreco.layer import matrix_shape, plain_name
from lgreco.pattern import matches


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP or torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]  # checked in the line before
        else:
            return model


def _uncompiled(model: nn.Module) -> nn.Module:
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model._orig_mod  # type: ignore[assignment]  # checked in the line before
    return model


def is_ddp(model: nn.Module) -> bool:
    """Whether DDP is around all of it, so that its names are those of DDP's module."""
    return isinstance(_uncompiled(model), nn.parallel.DistributedDataParallel)


def group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """The process group of the DDP around a model; None where there is none."""
    model = _uncompiled(model)
    return model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the first name of that tensor, under which a tied one is known."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in unwrapped(model).named_parameters(remove_duplicate=False):
        name = plain_name(name)
        aliases[name] = first.setdefault(id(parameter), name)
    return aliases


class Places:
    """Where the layers' parameters hang in the model; a tied one in several places.

    Args:
        model: may be wrapped in DDP.
        layers: its parameters, by name.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Parameter]) -> None:
        self._model, self._layers = unwrapped(model), layers
        self._places = self._find()

    def missing(self) -> str | None:
        """A layer whose parameter is no longer where it was, nor anywhere else in the model; None: there is none."""
        for name, module, attribute in self._places:
            held = module._parameters
            if attribute not in held or held[attribute] is not self._layers[name]:
                break
        else:
            return None
        before, self._places = self._places, self._find()  # a parametrization moves parameters
        left = {name for name, _, _ in self._places}
        return next((name for name, _, _ in before if name not in left), None)

    def _find(self) -> list[tuple[str, nn.Module, str]]:
        names = {id(parameter): name for name, parameter in self._layers.items()}
        return [
            (names[id(parameter)], module, attribute)
            for module in self._model.modules()
            for attribute, parameter in module._parameters.items()
            if id(parameter) in names
        ]


def prunable(
    model: nn.Module,
    held: Iterable[torch.Tensor] | None,
    patterns: str | Sequence[str] | None,
) -> dict[str, nn.Parameter]:
    """The layers to prune, in the model's order; a tensor that several modules share counts once.

    Without patterns: every parameter of two or more dimensions that is trained, except those of embeddings (also where
    a matrix is tied to one) and norms, and single columns, which hold a factor for each output, as weight_norm's. With
    patterns: every trained parameter of one dimension or more whose name, or another name
    of the same tensor, matches one. Empty parameters have nothing to prune and are left out.

    Args:
        model: may be wrapped in DDP.
        held: the optimizers' parameters; others are not trained. None: what needs a gradient is.
        patterns: fnmatch over names without `module.`; one or several.

    Raises:
        ValueError: for a pattern that matches no layer, or only frozen ones; where nothing is left to prune; or for a
            layer that cannot be pruned: sharded, with sparse gradients, or without a shape yet.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    aliases = aliases_of(model)
    parameters = {plain_name(name): each for name, each in unwrapped(model).named_parameters()}
    _check_initialized(parameters, aliases, patterns)
    ids = None if held is None else {id(each) for each in held}
    trained = {
        name: each
        for name, each in parameters.items()
        if each.requires_grad and each.is_floating_point() and (ids is None or id(each) in ids)
    }
    names = _default_names(model, trained) if patterns is None else _matching(patterns, aliases, parameters, trained)
    layers = {name: trained[name] for name in trained if name in names and trained[name].numel() > 0}
    if not layers:
        trained_by = "requires a gradient" if held is None else "requires a gradient and is held by the optimizer"
        raise ValueError(
            "the model has no layer to prune: none of two or more dimensions, except embeddings and norms, "
            f"{trained_by}; name what to prune with layers=[...]"
        )
    _check_dense(model, layers)
    return layers


def _check_initialized(
    parameters: Mapping[str, nn.Parameter], aliases: Mapping[str, str], patterns: Sequence[str] | None
) -> None:
    named = {first for name, first in aliases.items() if patterns is None or any(matches(name, p) for p in patterns)}
    for name, each in parameters.items():
        if name in named and isinstance(each, nn.UninitializedParameter):
            raise ValueError(f'layer "{name}" has no shape yet (a lazy module): run one forward before making a pruner')


def _check_dense(model: nn.Module, layers: Mapping[str, nn.Parameter]) -> None:
    """Masks and moments are of whole layers with dense gradients."""
    names = {id(each): name for name, each in layers.items()}
    for name, each in layers.items():
        if hasattr(each, "device_mesh"):
            raise ValueError(
                f'layer "{name}" is sharded (a DTensor, as fully_shard makes), and a pruner takes whole layers: prune '
                "under DDP, or before sharding"
            )
    for module in unwrapped(model).modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and id(module.weight) in names:
            raise ValueError(
                f'layer "{names[id(module.weight)]}" has sparse gradients, which cannot be masked: make its embedding '
                "with sparse=False, or leave it out of layers"
            )


_NOT_MATRICES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def _default_names(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> set[str]:
    others = {
        id(parameter)
        for module in unwrapped(model).modules()
        if isinstance(module, _NOT_MATRICES)
        for parameter in module.parameters(recurse=False)
    }
    return {
        name
        for name, each in trained.items()
        if each.dim() >= 2 and matrix_shape(tuple(each.shape))[1] > 1 and id(each) not in others
    }


def _matching(
    patterns: Sequence[str],
    aliases: Mapping[str, str],
    parameters: Mapping[str, nn.Parameter],
    trained: Mapping[str, nn.Parameter],
) -> set[str]:
    names: set[str] = set()
    for pattern in patterns:
        found = {first for name, first in aliases.items() if matches(name, pattern)}
        if not found:
            raise ValueError(f'pattern "{pattern}" matches no layer; layers are {", ".join(list(parameters)[:8])}, ...')
        free = {name for name in found if name in trained and parameters[name].dim() >= 1}
        if not free:
            dtypes = {str(parameters[name].dtype) for name in found if not parameters[name].is_floating_point()}
            which = f"of {', '.join(sorted(dtypes))}, and only real floating types are pruned" if dtypes else None
            which = which or "that are frozen or in no optimizer given"
            raise ValueError(f'pattern "{pattern}" matches only layers {which}')
        names |= free
    return names
