"""The methods that the step benchmark compares, each as one rank's training step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from step_turns import Variant
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.demo.gpt import GPT, GPTConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_FP32_BYTES, _BF16_BYTES = 4, 2
_LEARNING_RATE = 3e-4
_POWERSGD_RANK = 4
# The smallest that torch's PowerSGD takes with error feedback and warm start.
_POWERSGD_START = 2


@dataclass(frozen=True)
class Job:
    """What is trained, the same for every method.

    Attributes:
        width: features per token.
        layers: blocks of the GPT.
        heads: attention heads per block.
        context: tokens per sequence.
        batch: sequences per step and host.
        threads: of each host's process, for torch's operators.
        plan: the choice for lgreco's layers.
        timeout_s: of the process group.
    """

    width: int
    layers: int
    heads: int
    context: int
    batch: int
    threads: int
    plan: str
    timeout_s: float


class Step:
    """One rank's training step by one method: forward, backward, exchange, AdamW."""

    def __init__(self, job: Job, variant: Variant, port: int) -> None:
        """Builds model, optimizer and, but for compute_only, a process group of its own; collective.

        Args:
            job: what to train.
            variant: the method and its bucket cap.
            port: on the first host, free, for this variant's rendezvous.
        """
        torch.set_num_threads(job.threads)
        torch.manual_seed(0)
        self._job = job
        self._rank, self._hosts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        model = GPT(GPTConfig(job.width, job.layers, job.heads, job.context))
        self._numel = sum(parameter.numel() for parameter in model.parameters())
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
        self._model: torch.nn.Module = model
        self._sent_bytes: Callable[[int], float] = lambda steps: 0.0
        if variant.method != "compute_only":
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://{os.environ['MASTER_ADDR']}:{port}",
                rank=self._rank,
                world_size=self._hosts,
                timeout=timedelta(seconds=job.timeout_s),
            )
            # Every rank draws the same weights, so none need be sent.
            ddp = DistributedDataParallel(
                model, bucket_cap_mb=variant.bucket_cap_mb, gradient_as_bucket_view=True, init_sync=False
            )
            self._sent_bytes = getattr(self, f"_use_{variant.method}")(ddp)
            self._model = ddp
        # Data differs between ranks, weights do not.
        torch.manual_seed(1 + self._rank)

    def prepare(self) -> None:
        """Does what is to be done when no other variant works; called before every block."""

    def validation_loss(self) -> float | None:
        """Of this rank's share of the text; None where random tokens are trained on."""
        return None

    def run(self) -> None:
        """Takes one step on random tokens."""
        shape = (self._job.batch, self._job.context + 1)
        tokens = torch.randint(0, 256, shape)
        self._optimizer.zero_grad()
        self._model(tokens[:, :-1], tokens[:, 1:]).backward()
        self._optimizer.step()

    def wire_bytes(self, steps: int) -> float:
        """Bytes that this rank's method sent per step, over the last `steps` steps; without TCP's and IP's headers."""
        return self._sent_bytes(steps)

    def _allreduced(self, payload_bytes: float) -> float:
        # A ring sends each byte on in W - 1 of W parts, once to reduce it and once to hand it round.
        return 2 * (self._hosts - 1) / self._hosts * payload_bytes

    def _use_dense(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return lambda steps: self._allreduced(self._numel * _FP32_BYTES)

    def _use_bf16(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
        return lambda steps: self._allreduced(self._numel * _BF16_BYTES)

    def _use_powersgd(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=_POWERSGD_RANK, start_powerSGD_iter=_POWERSGD_START
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        before = 0

        def sent_bytes(steps: int) -> float:
            nonlocal before
            numel = state.total_numel_after_compression - before
            before = state.total_numel_after_compression
            return self._allreduced(numel * _FP32_BYTES / steps)

        return sent_bytes

    def _use_lgreco(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return self._attached(ddp, 1)

    def _use_hierarchical(self, ddp: DistributedDataParallel) -> Callable[[int], float]:
        return self._attached(ddp, int(os.environ["LOCAL_WORLD_SIZE"]))

    def _attached(self, ddp: DistributedDataParallel, ranks_per_node: int) -> Callable[[int], float]:
        state: Any = lgreco.attach(ddp, {"default": self._job.plan, "ranks_per_node": ranks_per_node})
        return lambda steps: float(state.stats()["wire_bytes"])
