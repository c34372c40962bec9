"""Files of weights: what torch.save or safetensors wrote, and the state_dict in it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

_SAFETENSORS = ".safetensors"
_USUAL_KEYS = ("model", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        content: all of it.
        state_dict: the part of it that is pruned, changed in place; it may hold other things than tensors.
    """

    content: Any
    state_dict: dict[Any, Any]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The state_dict's tensors, but not what modules keep as their `_extra_state`."""
        return {name: each for name, each in self.state_dict.items() if _is_tensor(name, each)}

    def write(self, path: Path, suffix: str) -> None:
        """Writes all of it, or where `suffix` is that of safetensors the state_dict alone.

        Raises:
            ValueError: where safetensors cannot hold it.
        """
        if suffix == _SAFETENSORS:
            _write_safetensors(self.state_dict, path)
        else:
            save(self.content, path)


def read(path: Path, key: str | None) -> WeightsFile:
    """Reads a file of weights.

    Args:
        path: a file of safetensors if it is called so, else of torch.save.
        key: of the state_dict in it, keys of nested dicts joined by dots; None: the only one that has matrices.

    Raises:
        ValueError: says what is wrong with the file or the key.
    """
    if not path.is_file():
        raise ValueError(f'there is no file "{path}"')
    if path.suffix == _SAFETENSORS:
        weights = _safetensors().load_file(path)
        return WeightsFile(weights, weights)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch's reader raises whatever it stumbles over
        unsafe = re.search(r"Unsupported (?:global|class).*?(?= was not|$)", str(error))
        if unsafe is not None:
            raise ValueError(
                f"{path} holds more than tensors and plain containers ({unsafe[0]}), which is not loaded: it might run "
                "code; save model.state_dict() alone"
            ) from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} must be a file that torch.save has written: {reason}") from None
    return WeightsFile(content, _find(content, path, key))


def save(content: Any, path: Path) -> None:
    """torch.save, but a file that cannot be opened is an OSError."""
    with path.open("wb") as stream:
        torch.save(content, stream)


def _find(content: Any, path: Path, key: str | None) -> dict[Any, Any]:
    """The state_dict in a checkpoint; without a key, one of vectors is taken only where none has a matrix."""
    found = _state_dicts(content, 2) or _state_dicts(content, 1)
    if key is not None:
        named = _at(content, key)
        if _holds_weights(named, 1):
            return cast("dict[Any, Any]", named)
    else:
        wanted = [each for each in found if each in _USUAL_KEYS] if len(found) > 1 else list(found)
        if len(wanted) == 1:
            return found[wanted[0]]
    there = "it has none"
    if "" in found:
        there = "it is one itself, which no --key names"
    elif found:
        there = f"it has state_dicts under {', '.join(found)}; name one by --key"
    raise ValueError(f"{path} must hold a state_dict, or a dict with one under {key or 'a key'}: {there}")


def _state_dicts(value: Any, least_dim: int, keys: tuple[str, ...] = ()) -> dict[str, dict[Any, Any]]:
    """Those in a checkpoint at any depth, by their keys joined by dots; an optimizer's is none, nor has it any."""
    if not isinstance(value, dict) or "param_groups" in value:
        return {}
    inner: dict[str, dict[Any, Any]] = {}
    for key, each in value.items():
        if isinstance(key, str) and not _is_extra_state(key):
            inner |= _state_dicts(each, least_dim, (*keys, key))
    return inner or ({".".join(keys): value} if _holds_weights(value, least_dim) else {})


def _at(value: Any, key: str) -> Any:
    """What keys joined by dots lead to, where a key may have dots itself; None where there is nothing."""
    for each in value if isinstance(value, dict) else ():
        if each == key:
            return value[each]
        if isinstance(each, str) and key.startswith(f"{each}."):
            found = _at(value[each], key[len(each) + 1 :])
            if found is not None:
                return found
    return None


def _holds_weights(value: Any, least_dim: int) -> bool:
    return isinstance(value, dict) and any(
        _is_tensor(name, each) and each.is_floating_point() and each.dim() >= least_dim for name, each in value.items()
    )


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and not _is_extra_state(name)


def _is_extra_state(name: str) -> bool:
    """Whether torch put what a module's get_extra_state() gave under this name."""
    return name.rpartition(".")[2] == "_extra_state"


def _write_safetensors(state_dict: Mapping[Any, Any], path: Path) -> None:
    others = [str(name) for name, each in state_dict.items() if not isinstance(each, torch.Tensor)]
    if others:
        raise ValueError(
            f"safetensors holds nothing but tensors, and the state_dict has {', '.join(others[:5])} beside them: "
            "write it to a file with another suffix, such as .pt"
        )
    _safetensors().save_file({name: each.contiguous() for name, each in state_dict.items()}, path, {"format": "pt"})


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ValueError(f"files of safetensors need the package ({error}); pip install safetensors") from None
