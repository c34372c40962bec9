"""Types of the native module, as csrc/bindings binds it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

def build_info() -> dict[str, Any]: ...

class Faults:
    gate_closed: bool
    send_delay_ms: int
    receive_delay_ms: int

class Settings:
    seed: int
    warmup_steps: int
    residual: str
    check_replicas_every: int
    timeout_ms: int
    chunk_bytes: int
    window_bytes: int

class LayerResidual:
    def __init__(self, name: str, sender: torch.Tensor, owner: torch.Tensor | None, owner_offset: int) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def sender(self) -> torch.Tensor: ...
    @property
    def owner(self) -> torch.Tensor | None: ...
    @property
    def owner_offset(self) -> int: ...

class Engine:
    def __init__(
        self,
        settings: Settings,
        cpu_group: dist.ProcessGroup | None,
        ddp_group: dist.ProcessGroup,
        names: Sequence[str],
        parameters: Sequence[torch.Tensor],
        choices: Sequence[Mapping[str, int | float | str]],
        scale: torch.Tensor | None,
        faults: Faults | None,
    ) -> None: ...
    def register_on(self, reducer: dist.Reducer) -> None: ...
    def run(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]: ...
    def discard(self) -> None: ...
    def close(self) -> None: ...
    def committed_steps(self) -> int: ...
    def residuals(self) -> list[LayerResidual]: ...
    def load(self, committed_steps: int, residuals: Sequence[LayerResidual]) -> None: ...
    def fingerprint(self) -> int: ...
    def stats(self) -> dict[str, int]: ...

def simulate_choice(
    choice: Mapping[str, int | float | str],
    values: Sequence[torch.Tensor],
    seed: int,
    owner: torch.Tensor | None = None,
) -> float: ...

# The kernels, bound for tests and benchmarks alone.
def __getattr__(name: str) -> Any: ...
