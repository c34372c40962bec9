"""The hook's state in checkpoints of torch.distributed.checkpoint: each rank writes its own part, any world size reads.

dcp.save({"model": model_state, "lgreco": entries(state)}, checkpoint_id=folder)
load(state, folder)
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
from lgreco.state import State

_SIDES = ("sender", "owner", "warm_p", "warm_q")


def entries(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """What this rank gives to `dcp.save` or `dcp.async_save` under a key such as "lgreco".

    The names differ between ranks, so that nothing is taken for a replica; all values are tensors, no pickled objects.
    Call it between steps, on every rank.

    Returns:
        `rank<r>` -> name -> tensor: residuals and warm starts as `<layer>/<side>`, all else as bytes in `facts`.
    """
    packed = state.state_dict()
    residuals: Mapping[str, Mapping[str, Any]] = packed.pop("residuals")
    tensors = {
        f"{layer}/{side}": part[side] for layer, part in residuals.items() for side in _SIDES if part[side] is not None
    }
    packed["owner_offsets"] = {layer: part["owner_offset"] for layer, part in residuals.items()}
    return {f"rank{state.rank}": {"facts": _to_bytes(packed), **tensors}}


def load(state: State, checkpoint: str | Path | dcp.StorageReader, key: str = "lgreco") -> None:
    """Continues from what `entries` gave; collective over the default group.

    At the world size W that saved (and, if hierarchical, on the same nodes), each rank reads its own part and goes on
    bit for bit. At another one, W', each rank reads the parts of all W (W times a rank's residuals in host memory) and,
    as `State.load_state_dict` says, every new rank's sender residual becomes sum(senders) / W + the owners' residuals,
    its owner residual zero. So what is still to be added to the averaged gradient, sum(senders) / W + owners, is the
    same before and after; warm starts of low rank, equal on all ranks, are kept.

    Args:
        state: attached.
        checkpoint: the folder, or a reader of another storage.
        key: under which the entries were saved.

    Raises:
        ValueError: for a checkpoint without these entries, or with those of another model.
    """
    reader = dcp.FileSystemReader(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    stored = {
        name: item
        for name, item in reader.read_metadata().state_dict_metadata.items()
        if isinstance(item, TensorStorageMetadata) and name.startswith(f"{key}.rank")
    }
    saved_ranks = sum(re.fullmatch(re.escape(key) + r"\.rank\d+\.facts", name) is not None for name in stored)
    if saved_ranks == 0:
        raise ValueError(f'the checkpoint has no entries of lgreco under "{key}"')
    facts = _read(reader, stored, [f"{key}.rank0.facts"])
    same = state.saved_by_same_ranks(_from_bytes(facts[f"{key}.rank0.facts"]))
    ranks = [state.rank] if same else list(range(saved_ranks))
    states = _unpack(_read(reader, stored, [f"{key}.rank{rank}." for rank in ranks]), key, ranks)
    state.load_state_dict(states[0] if same else pack_gathered(states))


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
