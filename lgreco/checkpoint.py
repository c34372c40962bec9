"""Checkpoints of the exchange: residuals and step count, a rank's own or those of all ranks together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lgreco import _C
from lgreco.config import Config
from lgreco.layer import LayerInfo
from lgreco.masks import LayerMask
from lgreco.masks import pack as pack_masks
from lgreco.nodes import Nodes

FORMAT = 1


def pack(
    engine: Any,
    config: Config,
    layers: Sequence[LayerInfo],
    masks: Mapping[str, LayerMask],
    rank: int,
    world_size: int,
    nodes: Nodes | None,
) -> dict[str, Any]:
    """This rank's state as plain containers; `engine` is None where nothing was exchanged yet."""
    parts = engine.residuals() if engine is not None else []
    return {
        "lgreco_state": FORMAT,
        "rank": rank,
        "world_size": world_size,
        **described(nodes),
        "steps": engine.committed_steps() if engine is not None else 0,
        "steps_so_far": int(engine.stats()["steps"]) if engine is not None else 0,
        "config": config.to_dict(),
        "shapes": {layer.name: list(layer.shape) for layer in layers},
        "orders": _orders(layers),
        "masks": pack_masks(masks),
        "residuals": {
            part.name: {
                "sender": part.sender,
                "owner": part.owner,
                "owner_offset": part.owner_offset,
                "warm_p": part.warm_p,
                "warm_q": part.warm_q,
            }
            for part in parts
        },
    }


def described(nodes: Nodes | None) -> dict[str, Any]:
    """The entry of a state that says which ranks share a node; none where the exchange is flat."""
    return {} if nodes is None else {"nodes": nodes.describe()}


def pack_gathered(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all ranks, in rank order, as one."""
    first = states[0]
    return {
        **{key: first[key] for key in ("lgreco_state", "world_size", "steps", "config", "shapes")},
        # The same on every rank.
        **{key: first[key] for key in ("steps_so_far", "orders", "masks", "solver", "nodes", "auto") if key in first},
        "ranks": [state["residuals"] for state in states],
    }


def check(state: Mapping[str, Any]) -> None:
    """Refuses what is no state of lgreco.

    Raises:
        ValueError: says what is missing.
    """
    if not isinstance(state, Mapping) or state.get("lgreco_state") != FORMAT:
        found = state.get("lgreco_state") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"not a state of lgreco: lgreco_state must be {FORMAT}, got {found!r}")
    missing = [key for key in ("world_size", "steps", "shapes") if key not in state]
    if missing:
        raise ValueError(f"the state of lgreco is incomplete: {', '.join(missing)} missing; was the file cut short?")
    for key, least in (("world_size", 1), ("steps", 0), ("steps_so_far", 0)):
        if key in state and (type(state[key]) is not int or state[key] < least):
            allowed = f"a whole number from {least}"
            raise ValueError(f"the state of lgreco is damaged: {key} must be {allowed}, got {state[key]!r}")
    if not isinstance(state["shapes"], Mapping):
        raise ValueError(f"the state of lgreco is damaged: shapes must be a mapping, got {state['shapes']!r}")
    if "ranks" in state and len(state["ranks"]) != state["world_size"]:
        raise ValueError(
            f"the state of lgreco is damaged: it has parts of {len(state['ranks'])} ranks, of {state['world_size']}"
        )


def load(
    engine: Any,
    state: Mapping[str, Any],
    layers: Sequence[LayerInfo],
    rank: int,
    world_size: int,
    nodes: Nodes | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Puts a checked state into the engine; see `State.load_state_dict` for the rules.

    `before` is called when nothing can be refused any more and nothing but the step count has changed yet.
    """
    expected = {layer.name: list(layer.shape) for layer in layers}
    if dict(state["shapes"]) != expected:
        raise ValueError(f"the checkpoint is of another model: {_difference(state['shapes'], expected)}")
    residuals = _residuals_for(state, expected, rank, world_size, nodes)
    now = _orders(layers)
    turned = _turned(state.get("orders", now), now) & set(residuals)
    if turned:
        warnings.warn(
            "residuals start at zero where layers lie in memory in another order than in the checkpoint "
            f'(channels_last?): {len(turned)} of {len(layers)}, "{min(turned)}" among them',
            stacklevel=3,
        )
        residuals = {name: part for name, part in residuals.items() if name not in turned}
    parts = [
        _C.LayerResidual(
            name, part["sender"], part["owner"], part["owner_offset"], part.get("warm_p"), part.get("warm_q")
        )
        for name, part in residuals.items()
    ]
    engine.set_steps(state["steps"], state.get("steps_so_far", state["steps"]))
    before()
    engine.load(parts)


def _orders(layers: Sequence[LayerInfo]) -> dict[str, list[int]]:
    """The order of dimensions in memory of those layers that are not row-major."""
    return {layer.name: list(layer.order) for layer in layers if layer.order is not None}


def _turned(saved: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> set[str]:
    return {name for name in {*saved, *now} if saved.get(name) != now.get(name)}


def same_ranks(state: Mapping[str, Any], world_size: int, nodes: Nodes | None) -> bool:
    """Whether a state was saved by as many ranks, on the same nodes where the exchange is hierarchical."""
    return (state["world_size"], state.get("nodes")) == (world_size, described(nodes).get("nodes"))


def _residuals_for(
    state: Mapping[str, Any], shapes: Mapping[str, list[int]], rank: int, world_size: int, nodes: Nodes | None
) -> Mapping[str, Any]:
    if "ranks" in state:
        if same_ranks(state, world_size, nodes):
            return _checked(state["ranks"][rank], shapes)
        return _redistribute([_checked(part, shapes) for part in state["ranks"]])
    if "residuals" not in state:
        warnings.warn(
            "the checkpoint has no per-rank parts: residuals start at zero (save state.gather(), or each rank's "
            "state.state_dict(), to continue exactly)",
            stacklevel=4,
        )
        return {}
    if state["world_size"] == world_size and not same_ranks(state, world_size, nodes):
        raise ValueError(
            f"this state was saved with the nodes {state.get('nodes', 'none')}, loaded with "
            f"{described(nodes).get('nodes', 'none')} (ranks_per_node); load what state.gather() gave"
        )
    if (state.get("rank"), state["world_size"]) != (rank, world_size):
        raise ValueError(
            f"this is the state of rank {state.get('rank')} of {state['world_size']}, loaded on rank {rank} of "
            f"{world_size}; load each rank's own, or what state.gather() gave"
        )
    return _checked(state["residuals"], shapes)


def _checked(residuals: Any, shapes: Mapping[str, list[int]]) -> Mapping[str, Any]:
    """Refuses residuals that do not fit the layers, before any of them is put in place."""
    if not isinstance(residuals, Mapping):
        raise ValueError(f"the state of lgreco is damaged: residuals must be a mapping, got {type(residuals).__name__}")
    for name, part in residuals.items():
        if name not in shapes:
            raise ValueError(f'the checkpoint has a residual for layer "{name}", which the model lacks')
        if not isinstance(part, Mapping) or not {"sender", "owner", "owner_offset"} <= set(part):
            raise ValueError(f'layer "{name}": its residual must have sender, owner and owner_offset: damaged?')
        numel = torch.Size(shapes[name]).numel()
        sender, owner, offset = part["sender"], part["owner"], part["owner_offset"]
        if sender is not None and sender.numel() != numel:
            raise ValueError(f'layer "{name}" has {numel} elements, its saved residual {sender.numel()}: damaged?')
        if owner is not None and not 0 <= offset <= numel - owner.numel():
            raise ValueError(f'layer "{name}" has {numel} elements, its owner residual ends beyond them: damaged?')
    return residuals


def _redistribute(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Residuals for every rank of another world size: the old senders' mean plus the owners' residuals.

    What is still to be added to the averaged gradient is sum(sender) / W + owner, and stays so at any new W; W counts
    the ranks that have the layer's residual, of a hierarchical exchange its carriers. Warm starts are the same on all.
    """
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for residuals in ranks for name in residuals):
        parts = [residuals[name] for residuals in ranks if name in residuals]
        merged[name] = {**parts[0], "sender": _still_to_add(parts), "owner": None, "owner_offset": 0}
    return merged


def _still_to_add(parts: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
    if parts[0]["sender"] is None:
        return None
    total = torch.stack([part["sender"].float() for part in parts]).mean(dim=0)
    for part in parts:
        owner, offset = part["owner"], part["owner_offset"]
        if owner is not None:
            total[offset : offset + owner.numel()] += owner
    return total


def _difference(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    for name in [*expected, *saved]:
        if saved.get(name) != expected.get(name):
            return f'layer "{name}" is {expected.get(name, "absent")} here and {saved.get(name, "absent")} there'
    return "its layers come in another order"
