"""Files of weights: what torch.save or safetensors wrote, and the state_dict in it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_SAFETENSORS = ".safetensors"
_USUAL_KEYS = ("model", "state_dict", "model_state_dict")


def read(path: Path, key: str | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """A checkpoint's content and, of it, the weights."""
    if not path.is_file():
        raise ValueError(f'there is no file "{path}"')
    if path.suffix == _SAFETENSORS:
        weights = _safetensors().load_file(path)
        return weights, weights
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
    return content, _weights_of(content, path, key)


def _weights_of(content: Any, path: Path, key: str | None) -> dict[str, torch.Tensor]:
    if key is None and _is_weights(content):
        return dict(content)
    entries = content if isinstance(content, Mapping) else {}
    found = [each for each, value in entries.items() if _is_weights(value)]
    wanted = [each for each in found if each == key] if key is not None else found
    if len(wanted) > 1:
        wanted = [each for each in found if each in _USUAL_KEYS]
    if len(wanted) == 1:
        return dict(content[wanted[0]])
    there = f"it has state_dicts under {', '.join(map(str, found))}; name one by --key" if found else "it has none"
    raise ValueError(f"{path} must hold a state_dict, or a dict with one under {key or 'a key'}: {there}")


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in value.items())
    )


def write(content: Any, weights: Mapping[str, torch.Tensor], path: Path, suffix: str) -> None:
    """Writes all of a checkpoint, or where `suffix` is that of safetensors its weights alone."""
    if suffix == _SAFETENSORS:
        _safetensors().save_file({name: each.contiguous() for name, each in weights.items()}, path, {"format": "pt"})
    else:
        save(content, path)


def save(content: Any, path: Path) -> None:
    """torch.save, but a file that cannot be opened is an OSError."""
    with path.open("wb") as stream:
        torch.save(content, stream)


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ValueError(f"files of safetensors need the package ({error}); pip install safetensors") from None
