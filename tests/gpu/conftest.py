"""Tests that need a GPU, and a build with CUDA kernels; elsewhere they are skipped, and say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lgreco import _C


def reason_to_skip() -> str | None:
    """What these tests miss here; None where they can run."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    info = _C.build_info()
    if not info["cuda"]:
        return f"lgreco has no CUDA kernels: {info['cuda_reason']}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = reason_to_skip()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
