"""FSDP2: the scatter-reduce of gradients coded with quantize, error feedback at the sender; on the CPU.

fully_shard(model)
compression = lgreco.fsdp.attach(model, "quantize(bits=4, block=512)")

FSDP's own collective does one round: each rank gets the sum of everybody's gradient of its shard. Only that round is
coded; each shard has one owner, who decodes all payloads and sums them in fp32 in rank order, so no second round is
needed and replicas of a shard (HSDP averages them, dense) stay equal. Called from Python once a module and step, the
exchange waits for its peers before backward goes on: it saves bytes, and unlike DDP's hook hides no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from lgreco import _C
from lgreco.choice import Quantize, parse

FORMAT = 1
_MAX_RANKS = 4096


class CodedReduceScatter(ReduceScatter):
    """The scatter-reduce of one FSDP module's gradients.

    Attributes:
        calls: so far.
        wire_bytes: that this rank sent in the last call.
        dense_bytes: that it would have sent uncoded.
    """

    def __init__(self, choice: Quantize, seed: int, layer: int) -> None:
        self.calls = 0
        self.wire_bytes = 0
        self.dense_bytes = 0
        self._spec = (
            choice.bits,
            choice.block,
            choice.grid,
            choice.rounding == "stochastic",
            choice.scales == "bf16",
        )
        self._seed = seed
        self._layer = layer
        self._residual: torch.Tensor | None = None
        self._shadow: torch.Tensor | None = None
        self._fresh = False

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for input and output, as FSDP's default takes it."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Averages (or sums) over ranks; rank r gets part r.

        Args:
            output_tensor: this rank's part, [n], fp32, bf16 or fp16.
            input_tensor: the gradients of all parts, [W * n], the same type.
            group: of the W ranks that hold shards.
            op: AVG or SUM.
            async_op: not used: the output is there on return.

        Raises:
            ValueError: for another op or device, or where the gradient's size has changed.
        """
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM):
            raise ValueError(
                f"lgreco's reduce-scatter takes AVG or SUM, got {op}: leave set_gradient_divide_factor out"
            )
        if input_tensor.device.type != "cpu":
            raise ValueError(f"lgreco's reduce-scatter needs gradients on the CPU, got {input_tensor.device}")
        rank, world_size, numel = dist.get_rank(group), dist.get_world_size(group), output_tensor.numel()
        committed, shadow = self._buffers(input_tensor.numel())
        part_bytes = _C.quantize_wire_bytes(self._spec, numel)
        outbox = torch.empty(world_size * part_bytes, dtype=torch.uint8)
        blocks = -(-numel // self._spec[1])
        stream = (self._layer * _MAX_RANKS + rank) * 2  # as csrc/core/philox.h counts: layer, rank, first round
        for part in range(world_size):
            here = slice(part * numel, (part + 1) * numel)
            wire = outbox[part * part_bytes : (part + 1) * part_bytes]
            noise = (self._seed, self.calls, stream, part * blocks)
            _C.quantize_encode(self._spec, input_tensor[here], committed[here], shadow[here], 1.0, noise, wire)
        self._fresh = True
        inbox = torch.empty_like(outbox)
        dist.all_to_all_single(inbox, outbox, group=group)
        total = torch.zeros(numel)
        for wire in inbox.chunk(world_size):
            _C.quantize_decode_add(self._spec, wire, total)
        output_tensor.copy_(total / world_size if op == dist.ReduceOp.AVG else total)
        self.calls += 1
        self.wire_bytes = (world_size - 1) * part_bytes
        self.dense_bytes = (world_size - 1) * numel * input_tensor.element_size()

    def discard(self) -> None:
        """Drops the residual that the last call left; the one before it counts again."""
        self._fresh = False

    def residual(self) -> torch.Tensor | None:
        """What this rank has still to send, [W * n], fp32; None before the first call."""
        return self._shadow if self._fresh else self._residual

    def load(self, calls: int, residual: torch.Tensor | None) -> None:
        """Continues from `calls` and `residual`."""
        self.calls, self._residual, self._fresh = calls, None if residual is None else residual.clone(), False
        self._shadow = None if residual is None else torch.empty_like(residual)

    def _buffers(self, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual to add and the one to write; what the last call wrote is committed by this one."""
        if self._residual is None or self._shadow is None:
            self._residual, self._shadow = torch.zeros(numel), torch.empty(numel)
        if self._residual.numel() != numel:
            raise ValueError(
                f"the gradients of an FSDP module must keep their size, got {numel} elements after "
                f"{self._residual.numel()}: does a parameter get no gradient in some steps?"
            )
        if self._fresh:
            self._residual, self._shadow = self._shadow, self._residual
        return self._residual, self._shadow


class Compression:
    """The coded exchange of one FSDP model: counters and checkpoints.

    Attributes:
        parts: FSDP module's name -> its exchange.
    """

    def __init__(self, parts: Mapping[str, CodedReduceScatter]) -> None:
        self.parts = dict(parts)

    def stats(self) -> dict[str, int]:
        """`calls` so far; `wire_bytes` and `dense_bytes` that this rank sent, or would have sent, in the last step."""
        parts = self.parts.values()
        return {name: sum(getattr(part, name) for part in parts) for name in ("calls", "wire_bytes", "dense_bytes")}

    def discard(self) -> None:
        """For a step whose gradients are not used (an inf found by GradScaler); call it on every rank."""
        for part in self.parts.values():
            part.discard()

    def state_dict(self) -> dict[str, Any]:
        """This rank's residuals, as tensors and plain containers; each rank saves its own."""
        return {
            "lgreco_fsdp": FORMAT,
            "rank": dist.get_rank(),
            "world_size": dist.get_world_size(),
            "parts": {name: {"calls": part.calls, "residual": part.residual()} for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what this rank saved.

        Raises:
            ValueError: for another rank's state, another world size's or another model's: shards are cut differently.
        """
        if not isinstance(state, Mapping) or state.get("lgreco_fsdp") != FORMAT:
            raise ValueError(f"not a state of lgreco.fsdp: lgreco_fsdp must be {FORMAT}")
        here = (dist.get_rank(), dist.get_world_size())
        if (state["rank"], state["world_size"]) != here:
            raise ValueError(
                f"this is the state of rank {state['rank']} of {state['world_size']}, "
                f"loaded on rank {here[0]} of {here[1]}"
            )
        if set(state["parts"]) != set(self.parts):
            raise ValueError(f"the state has the modules {sorted(state['parts'])}, the model {sorted(self.parts)}")
        for name, saved in state["parts"].items():
            self.parts[name].load(saved["calls"], saved["residual"])


def attach(model: nn.Module, choice: str | Quantize = "quantize(bits=4, block=512)", seed: int = 0) -> Compression:
    """Codes the gradients of every FSDP module in `model`; call it once, after the last `fully_shard`.

    Args:
        model: to which `torch.distributed.fsdp.fully_shard` was applied, on the CPU.
        choice: `quantize(...)`, the same for all parameters of an FSDP module, which travel as one vector.
        seed: of stochastic rounding.

    Raises:
        ValueError: for another choice, or a model without FSDP modules.
    """
    parsed = parse(choice) if isinstance(choice, str) else choice
    if not isinstance(parsed, Quantize):
        raise ValueError(f"FSDP gradients can be coded with quantize(...) only, got {parsed}")
    modules = {name: module for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    if not modules:
        raise ValueError(
            "lgreco.fsdp.attach takes a model to which fully_shard was applied, this one has no FSDPModule"
        )
    parts = {}
    for layer, (name, module) in enumerate(modules.items()):
        parts[name] = CodedReduceScatter(parsed, seed, layer)
        module.set_custom_reduce_scatter(parts[name])
    return Compression(parts)
