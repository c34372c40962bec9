"""Types of the native module, as csrc/bindings binds it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

def build_info() -> dict[str, Any]: ...
def layer_wire_bytes(
    shape: Sequence[int],
    dtype: str,
    choice: Mapping[str, int | float | str],
    world_size: int,
    kept: int | None = None,
    kept_matrix: tuple[int, int] | None = None,
) -> float: ...
def pack_mask(mask: torch.Tensor) -> tuple[torch.Tensor, int]: ...
def unpack_mask(bits: torch.Tensor, numel: int) -> torch.Tensor: ...
def kept_matrix(bits: torch.Tensor, numel: int, cols: int) -> tuple[int, int] | None: ...

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
    transport: str
    chunk_bytes: int
    window_bytes: int

class LayerResidual:
    def __init__(
        self,
        name: str,
        sender: torch.Tensor | None,
        owner: torch.Tensor | None,
        owner_offset: int,
        warm_p: torch.Tensor | None = None,
        warm_q: torch.Tensor | None = None,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def sender(self) -> torch.Tensor | None: ...
    @property
    def warm_p(self) -> torch.Tensor | None: ...
    @property
    def warm_q(self) -> torch.Tensor | None: ...
    @property
    def owner(self) -> torch.Tensor | None: ...
    @property
    def owner_offset(self) -> int: ...

class Snapshot:
    @property
    def step(self) -> int: ...
    @property
    def layers(self) -> list[int]: ...
    @property
    def values(self) -> list[torch.Tensor]: ...
    @property
    def delivered(self) -> list[torch.Tensor]: ...
    @property
    def owed(self) -> list[tuple[int, torch.Tensor] | None]: ...
    @property
    def dropped(self) -> bool: ...

class Nodes:
    def __init__(
        self,
        group: dist.ProcessGroup,
        node_ranks: Sequence[int],
        rail_ranks: Sequence[int],
        carriers: Sequence[int],
    ) -> None: ...

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
        nodes: Nodes | None = None,
    ) -> None: ...
    def register_on(self, reducer: dist.Reducer) -> None: ...
    def run(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]: ...
    def watch(self, step: int, layers: Sequence[int]) -> None: ...
    def next_snapshot(self) -> Snapshot | None: ...
    def promise_plan(self, step: int) -> None: ...
    def set_plan(self, step: int, choices: Sequence[Mapping[str, int | float | str]] | None) -> None: ...
    def replace_plans(self, choices: Sequence[Mapping[str, int | float | str]]) -> None: ...
    def set_masks(
        self,
        masks: Sequence[tuple[int, torch.Tensor] | None],
        choices: Sequence[Mapping[str, int | float | str]],
    ) -> None: ...
    def discard(self) -> None: ...
    def close(self) -> None: ...
    def committed_steps(self) -> int: ...
    def residuals(self) -> list[LayerResidual]: ...
    def load(self, committed_steps: int, residuals: Sequence[LayerResidual]) -> None: ...
    def fingerprint(self) -> int: ...
    def stats(self) -> dict[str, float]: ...

def solve(
    method: str,
    errors: npt.NDArray[np.float64],
    costs: npt.NDArray[np.float64],
    budget: float,
    reference: npt.NDArray[np.int32] | None,
    error_name: str,
    cost_name: str,
) -> tuple[npt.NDArray[np.int32], float, float, float, float]: ...
def simulate_choice(
    choice: Mapping[str, int | float | str],
    values: Sequence[torch.Tensor],
    seed: int,
    owner: torch.Tensor | None = None,
) -> float: ...

# The kernels, bound for tests and benchmarks alone.
def __getattr__(name: str) -> Any: ...
def find_threshold(
    arrays: Sequence[torch.Tensor], kept: int, order: str, stream: int | None = None
) -> tuple[int, int, int, bool]: ...
def mark_kept(
    scores: torch.Tensor,
    order: str,
    key: int,
    ties: int,
    kept: torch.Tensor,
    weights: torch.Tensor | None,
    stream: int | None = None,
) -> int: ...
def hold_mask(kept: torch.Tensor, weights: torch.Tensor) -> None: ...
