"""Hook and pruner in checkpoints of torch.distributed.checkpoint, saved by all ranks and read by any number of them.

dcp.save({"model": model_state, "lgreco": entries(state), "pruner": entries(pruner)}, checkpoint_id=folder)
load(state, folder)
load(pruner, folder)
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lgreco.checkpoint import pack_gathered
from lgreco.pruning.pruner import Pruner
from lgreco.state import State

_SIDES = ("sender", "owner", "warm_p", "warm_q")
_HOOK_KEY, _PRUNER_KEY = "lgreco", "pruner"


def entries(of: State | Pruner) -> dict[str, Any]:
    """What this rank gives to `dcp.save` or `dcp.async_save`: under "lgreco" the hook's, under "pruner" a pruner's.

    All values are tensors, no pickled objects. A rank's residuals have names of their own, so that nothing is taken for
    a replica; what a pruner holds is the same on every rank, and is written once, by one rank or another. Call it
    between steps, on every rank.

    Args:
        of: what `lgreco.attach` gave, or a pruner.

    Returns:
        Of a state `rank<r>` -> name -> tensor: residuals and warm starts as `<layer>/<side>`, all else as bytes in
        `facts`. Of a pruner name -> tensor: masks (1 bit a weight) as `masks/<layer>/bits`, what criterion and regrowth
        have summed as `criterion/sums/<layer>` and `regrowth/sums/<layer>`, all else as bytes in `facts`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(of, State):
        return {f"rank{of.rank}": _entries_of_rank(of.state_dict())}
    if isinstance(of, Pruner):
        return _entries_of_all(of.state_dict())
    raise ValueError(f"entries takes what lgreco.attach gave or a Pruner, got {type(of).__name__}")


def load(into: State | Pruner, checkpoint: str | Path | dcp.StorageReader, key: str | None = None) -> None:
    """Continues from what `entries` gave; collective over the default group.

    **A state.** At the world size W that saved (and, if hierarchical, on the same nodes), each rank reads its own part
    and goes on bit for bit. At another one, W', each rank reads the parts of all W (W times a rank's residuals in host
    memory) and, as `State.load_state_dict` says, every new rank's sender residual becomes sum(senders) / W + the
    owners' residuals, its owner residual zero. So what is still to be added to the averaged gradient, sum(senders) / W
    + owners, is the same before and after; warm starts of low rank, equal on all ranks, are kept.

    **A pruner.** Every rank reads the same masks, steps and sums, at any world size; load model and optimizer before.
    Of a pruner that is joined with a state (`Pruner.attach`) and that state, either may be loaded first.

    Args:
        into: attached state, or a pruner made with the same settings.
        checkpoint: the folder, or a reader of another storage.
        key: under which the entries were saved; None for "lgreco" of a state and "pruner" of a pruner.

    Raises:
        ValueError: for a checkpoint without these entries, or with those of another model.
    """
    reader = dcp.FileSystemReader(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    stored = {
        name: item
        for name, item in reader.read_metadata().state_dict_metadata.items()
        if isinstance(item, TensorStorageMetadata)
    }
    if isinstance(into, State):
        _load_state(into, reader, stored, _HOOK_KEY if key is None else key)
    elif isinstance(into, Pruner):
        _load_pruner(into, reader, stored, _PRUNER_KEY if key is None else key)
    else:
        raise ValueError(f"load takes what lgreco.attach gave or a Pruner, got {type(into).__name__}")


def _load_state(state: State, reader: dcp.StorageReader, stored: Mapping[str, TensorStorageMetadata], key: str) -> None:
    saved_ranks = sum(re.fullmatch(re.escape(key) + r"\.rank\d+\.facts", name) is not None for name in stored)
    if saved_ranks == 0:
        raise ValueError(_without("lgreco", stored, key))
    facts = _read(reader, stored, [f"{key}.rank0.facts"])
    same = state.saved_by_same_ranks(_from_bytes(facts[f"{key}.rank0.facts"]))
    ranks = [state.rank] if same else list(range(saved_ranks))
    states = _unpack(_read(reader, stored, [f"{key}.rank{rank}." for rank in ranks]), key, ranks)
    state.load_state_dict(states[0] if same else pack_gathered(states))


def _load_pruner(
    pruner: Pruner, reader: dcp.StorageReader, stored: Mapping[str, TensorStorageMetadata], key: str
) -> None:
    if f"{key}.facts" not in stored:
        raise ValueError(_without("a pruner", stored, key))
    read = {name.removeprefix(f"{key}."): tensor for name, tensor in _read(reader, stored, [f"{key}."]).items()}
    facts = _from_bytes(read["facts"])
    packed: dict[str, Any] = facts["plain"]
    for name, path in facts["paths"].items():
        place = packed
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = read[name]
    pruner.load_state_dict(packed)


def _without(whose: str, stored: Mapping[str, Any], key: str) -> str:
    there = ", ".join(f'"{name}"' for name in sorted({name.split(".")[0] for name in stored})) or "nothing"
    return f'the checkpoint has no entries of {whose} under "{key}": pass the key given to dcp.save; it has {there}'


def _entries_of_rank(packed: dict[str, Any]) -> dict[str, torch.Tensor]:
    residuals: Mapping[str, Mapping[str, Any]] = packed.pop("residuals")
    tensors = {
        f"{layer}/{side}": part[side] for layer, part in residuals.items() for side in _SIDES if part[side] is not None
    }
    packed["owner_offsets"] = {layer: part["owner_offset"] for layer, part in residuals.items()}
    return {"facts": _to_bytes(packed), **tensors}


def _entries_of_all(packed: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors under their paths; where each belongs is among the facts, as names may contain the separator."""
    plain, tensors = _split(packed, ())
    paths = {"/".join(path): list(path) for path in tensors}
    facts = _to_bytes({"plain": plain, "paths": paths})
    return {"facts": facts, **{"/".join(path): tensor for path, tensor in tensors.items()}}


def _split(
    content: Mapping[str, Any], path: tuple[str, ...]
) -> tuple[dict[str, Any], dict[tuple[str, ...], torch.Tensor]]:
    """Nested containers without their tensors, and the tensors by path."""
    plain: dict[str, Any] = {}
    tensors: dict[tuple[str, ...], torch.Tensor] = {}
    for name, value in content.items():
        here = (*path, name)
        if isinstance(value, torch.Tensor):
            tensors[here] = value
        elif isinstance(value, Mapping):
            plain[name], inner = _split(value, here)
            tensors.update(inner)
        else:
            plain[name] = value
    return plain, tensors


def _read(
    reader: dcp.StorageReader, stored: Mapping[str, TensorStorageMetadata], beginnings: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The stored tensors whose names begin with one of `beginnings`; collective."""
    read = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in stored.items()
        if name.startswith(tuple(beginnings))
    }
    dcp.load(read, storage_reader=reader)
    return read


def _unpack(read: Mapping[str, torch.Tensor], key: str, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """The state dict of each rank, as `State.state_dict` gave it."""
    states = []
    for rank in ranks:
        prefix = f"{key}.rank{rank}."
        packed = _from_bytes(read[f"{prefix}facts"])
        packed["residuals"] = {
            layer: {"owner_offset": offset, **{side: read.get(f"{prefix}{layer}/{side}") for side in _SIDES}}
            for layer, offset in packed.pop("owner_offsets").items()
        }
        states.append(packed)
    return states


def _to_bytes(content: Any) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(content, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _from_bytes(tensor: torch.Tensor) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(tensor.numpy().tobytes()), map_location="cpu", weights_only=True)
    return content
