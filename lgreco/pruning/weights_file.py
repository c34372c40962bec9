"""Files of weights: what torch.save or safetensors wrote, and the state_dict in it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

_SAFETENSORS = ".safetensors"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_USUAL_KEYS = ("model", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        content: all of it.
        state_dict: the part of it that is pruned, changed in place; it may hold other things than tensors.
        metadata: that of safetensors.
    """

    content: Any
    state_dict: dict[Any, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)

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
            _write_safetensors(self, path)
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
    if path.suffix == _SAFETENSORS and key is not None:
        raise ValueError(f"a file of safetensors is one state_dict, which no --key names, got {key!r}")
    file = _read_safetensors(path) if path.suffix == _SAFETENSORS else _read_torch(path, key)
    _check_tensors(file.weights, path)
    _make_whole(file)
    return file


def place_of(tensor: torch.Tensor) -> Hashable:
    """The memory that a tensor reads and how: equal for those that are tied."""
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else id(tensor)


def _read_torch(path: Path, key: str | None) -> WeightsFile:
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


def _check_tensors(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, each in weights.items():
        found = ""
        if each.is_meta:
            found = "one without data (meta)"
        elif each.layout != torch.strided:
            found = f"one of layout {str(each.layout).removeprefix('torch.')}"
        elif each.is_floating_point() and each.dtype not in _DTYPES:
            found = f"one of {_name(each.dtype)}"
        if found:
            allowed = ", ".join(map(_name, _DTYPES))
            raise ValueError(f'{path}: tensor "{name}" must be dense, and if floating one of {allowed}; got {found}')


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _make_whole(file: WeightsFile) -> None:
    """Gives each element memory of its own, which those of an expanded tensor lack; tied tensors stay tied."""
    made: dict[Hashable, torch.Tensor] = {}
    for name, each in file.weights.items():
        if _overlaps(each):
            place = place_of(each)
            if place not in made:
                made[place] = each.detach().contiguous()
            file.state_dict[name] = made[place]


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether two elements may be one in memory: where strides are not each beyond the reach of the smaller ones."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


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


def _read_safetensors(path: Path) -> WeightsFile:
    """Names that were tied when the file was written, as its metadata says, are tied again."""
    package = _safetensors()
    try:
        with package.safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            metadata = file.metadata() or {}
    except package.SafetensorError as error:
        raise ValueError(f"{path} must be a file of safetensors: {error}") from None
    weights |= {name: weights[first] for name, first in metadata.items() if name not in weights and first in weights}
    return WeightsFile(weights, weights, metadata)


def _write_safetensors(file: WeightsFile, path: Path) -> None:
    """Of tied tensors the first alone is written, as safetensors.torch.save_model does, and load_model ties them."""
    others = [str(name) for name, each in file.state_dict.items() if not isinstance(each, torch.Tensor)]
    if others:
        raise ValueError(
            f"safetensors holds nothing but tensors, and the state_dict has {', '.join(others[:5])} beside them: "
            "write it to a file with another suffix, such as .pt"
        )
    tensors: dict[str, torch.Tensor] = {}
    metadata = {"format": "pt", **file.metadata}
    first: dict[Hashable, str] = {}
    for name, each in file.state_dict.items():
        kept = first.setdefault(place_of(each), name)
        if kept != name:
            metadata[name] = kept
        else:
            tensors[name] = _alone(each)
    try:
        _safetensors("torch").save_file(tensors, path, metadata)
    except KeyError as error:
        raise ValueError(f"safetensors holds no tensors of {error}: write to a file with another suffix") from None
    except _safetensors().SafetensorError as error:
        raise OSError(str(error)) from None


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous and in memory that it fills, for safetensors refuses what shares some with another."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.nbytes == tensor.untyped_storage().nbytes() else tensor.clone()


def _safetensors(module: str = "") -> Any:
    try:
        return importlib.import_module(f"safetensors.{module}" if module else "safetensors")
    except ImportError as error:
        raise ValueError(f"files of safetensors need the package ({error}); pip install safetensors") from None
