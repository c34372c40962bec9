"""oBERT: second-order scores from a block-diagonal empirical Fisher matrix, and weights that make up for the pruned.

Kurtic et al., arXiv 2203.07259. The matrix F = damping I + (1/m) sum g g^T over m samples is kept as its inverse, in
blocks of a few weights, by Woodbury's update (equation 5). A weight's score is w^2 / (2 [F^-1]_qq) (equation 3), and
those that are kept in a block move by -F^-1[:, Q] (F^-1[Q, Q])^-1 w_Q when the set Q of it is pruned (equation 4).

Blocks are dealt to ranks: each rank takes the gradients of its own samples and sends every owner what belongs to its
blocks, so W ranks take 1/W of the time and memory each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from lgreco.pruning.agreement import device_of, distributed
from lgreco.pruning.criteria import Criterion, Tensors


class OBert(Criterion):
    """Second-order scores; gathered anew at each update.

    Scores and moves are fp32. Weights of a block of which nothing is pruned stay as they are, of whatever type.

    Args:
        losses: losses(i) is the loss of this rank's sample (or small batch) number i, a scalar that leads back to the
            weights. It calls the model itself, not the DDP module around it.
        count: samples of each rank; the matrix averages those of all ranks. Take more of them, over all ranks, than a
            block has weights: of directions that no sample speaks of, the matrix says that they cost nothing, and the
            kept weights move far in them.
        block: weights of a block; all ranks together hold 8 * block bytes for each weight while they choose.
        damping: added to the matrix's diagonal, above 0; the paper's by default. More of it keeps moves short.
        process_group: of the ranks; None for the pruner's.

    Raises:
        ValueError: for a value that is not allowed.
    """

    def __init__(
        self,
        losses: Callable[[int], torch.Tensor],
        count: int,
        block: int = 50,
        damping: float = 1e-7,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        for name, value in (("count", count), ("block", block)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if not damping > 0:
            raise ValueError(f"damping must be above 0, got {damping!r}")
        self._losses, self._count, self._block, self._damping = losses, count, block, damping
        self._group = process_group
        self._inverse: torch.Tensor | None = None
        self._weights = torch.empty(0)
        self._scores: dict[str, torch.Tensor] = {}

    def join(self, group: dist.ProcessGroup | None) -> None:
        """See Criterion."""
        self._group = group if self._group is None else self._group

    def prepare(self, layers: Tensors, masks: Tensors, step: int) -> None:
        """See Criterion; collective."""
        weights = list(layers.values())
        self._weights = self._mine(self._flat([weight.detach() for weight in weights]))
        blocks = self._weights.numel() // self._block
        identity = torch.eye(self._block, dtype=torch.float64, device=self._weights.device)
        inverse = (identity / self._damping).repeat(blocks, 1, 1)
        samples = self._count * (dist.get_world_size(self._group) if distributed(self._group) else 1)
        for sample in range(self._count):
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._losses(sample), weights, materialize_grads=True)
            kept = [
                gradient if name not in masks else gradient.masked_fill(~masks[name], 0)
                for name, gradient in zip(layers, gradients, strict=True)
            ]
            for gradient in self._exchanged(self._flat(kept)):
                _woodbury(inverse, gradient.double().view(blocks, self._block), samples)
        self._inverse = inverse
        diagonal = inverse.diagonal(dim1=1, dim2=2).reshape(-1)
        scores = self._everyones((self._weights.double().square() / (2.0 * diagonal)).float())
        self._scores = dict(zip(layers, self._cut(scores, weights), strict=True))

    def scores(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """See Criterion."""
        return self._scores[name]

    def settle(self, layers: Tensors, masks: Tensors) -> None:
        """Moves the kept weights of each block to where the loss of the quadratic model is least; collective."""
        assert self._inverse is not None, "prepare comes before"
        kept = self._mine(self._flat([masks[name].float() for name in layers])).view(-1, self._block) > 0
        weights = self._weights.double().view(-1, self._block)
        gone = ~kept & (weights != 0)
        both = gone.unsqueeze(1) & gone.unsqueeze(2)
        system = self._inverse * both + torch.diag_embed((~gone).double())
        multipliers = torch.linalg.solve(system, (weights * gone).unsqueeze(2))
        moves = -(self._inverse @ multipliers).squeeze(2) * kept
        everyones = self._everyones(moves.float().reshape(-1))
        for weight, move in zip(layers.values(), self._cut(everyones, list(layers.values())), strict=True):
            weight.add_(move)
        self._inverse, self._weights = None, torch.empty(0)
        self._scores = {}

    def _flat(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """One vector of whole blocks; no block reaches over two layers."""
        where = device_of(self._group) if distributed(self._group) else tensors[0].device
        parts = []
        for tensor in tensors:
            flat = tensor.detach().float().reshape(-1).to(where)
            parts += [flat, flat.new_zeros(-flat.numel() % self._block)]
        return torch.cat(parts)

    def _cut(self, flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tensors, begin = [], 0
        for tensor in like:
            tensors.append(flat[begin : begin + tensor.numel()].view(tensor.shape).to(tensor.device))
            begin += tensor.numel() + -tensor.numel() % self._block
        return tensors

    def _shares(self, numel: int) -> list[int]:
        """Elements of each rank: whole blocks."""
        ranks, blocks = dist.get_world_size(self._group), numel // self._block
        return [((rank + 1) * blocks // ranks - rank * blocks // ranks) * self._block for rank in range(ranks)]

    def _mine(self, flat: torch.Tensor) -> torch.Tensor:
        if not distributed(self._group):
            return flat.clone()
        parts: Sequence[torch.Tensor] = flat.split(self._shares(flat.numel()))
        return parts[dist.get_rank(self._group)].clone()

    def _exchanged(self, flat: torch.Tensor) -> Sequence[torch.Tensor]:
        """What each rank's sample says of this rank's blocks, in rank order."""
        if not distributed(self._group):
            return [flat]
        shares = self._shares(flat.numel())
        receive = [shares[dist.get_rank(self._group)]] * len(shares)
        inbox = flat.new_empty(sum(receive))
        dist.all_to_all_single(inbox, flat, receive, shares, group=self._group)
        parts: Sequence[torch.Tensor] = inbox.split(receive)
        return parts

    def _everyones(self, mine: torch.Tensor) -> torch.Tensor:
        """All ranks' parts one after the other."""
        if not distributed(self._group):
            return mine
        ranks = dist.get_world_size(self._group)
        numel = torch.tensor([mine.numel()], device=mine.device)
        numels = [torch.empty_like(numel) for _ in range(ranks)]
        dist.all_gather(numels, numel, group=self._group)
        most = max(int(each) for each in numels)
        padded = torch.cat([mine, mine.new_zeros(most - mine.numel())])
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[: int(each)] for part, each in zip(parts, numels, strict=True)])


def _woodbury(inverse: torch.Tensor, gradient: torch.Tensor, samples: int) -> None:
    """Adds g g^T / samples to the matrices whose inverses are given, in place.

    Args:
        inverse: float64 [blocks, block, block]. What is left of 1 / damping where there are gradients is a difference
            of numbers that may be 10^9 times as large, of which float32 keeps no digit.
        gradient: float64 [blocks, block].
        samples: m of equation 5.
    """
    product = torch.bmm(inverse, gradient.unsqueeze(2))
    scale = samples + torch.bmm(gradient.unsqueeze(1), product)
    inverse.baddbmm_(product / scale, product.transpose(1, 2), alpha=-1.0)
