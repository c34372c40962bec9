"""The byte-level GPT that the quickstart trains and the benchmarks time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_INIT_STD = 0.02


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT.

    Attributes:
        width: features per token; a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads per block.
        context: longest sequence, in tokens.
        vocab: number of token values; 256 reads raw bytes.
    """

    width: int
    layers: int
    heads: int
    context: int
    vocab: int = 256

    def __post_init__(self) -> None:
        """Check the shape.

        Raises:
            ValueError: a size is below 1, or `heads` does not divide `width`.
        """
        for name in ("width", "layers", "heads", "context", "vocab"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and heads {self.heads}")


class Block(nn.Module):
    """Causal self-attention, then an MLP, each added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        """Build one block of the given shape."""
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention_in = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, 4 * config.width)
        self.mlp_out = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: features, shape (batch, tokens, width).

        Returns:
            Features of the same shape.
        """
        x = x + self._attend(self.attention_norm(x))
        mixed: Tensor = x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))
        return mixed

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.attention_in(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.attention_out(heads.transpose(1, 2).reshape(batch, tokens, width))
        return out


class GPT(nn.Module):
    """A pre-norm GPT with learned positions and its own output matrix."""

    def __init__(self, config: GPTConfig) -> None:
        """Build and initialise a GPT; torch's global seed decides the weights."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        # Each block adds two outputs to the residual stream: scaling both keeps
        # its variance independent of depth (GPT-2, section 2.3).
        residual_std = _INIT_STD / math.sqrt(2 * self.config.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                to_residual = name.endswith(("attention_out", "mlp_out"))
                nn.init.normal_(module.weight, std=residual_std if to_residual else _INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Predict the next token at every position.

        Args:
            tokens: int64, shape (batch, tokens), values below `vocab`.
            targets: int64, same shape: the token that follows each position.

        Returns:
            Without targets, logits of shape (batch, tokens, vocab); with
            targets, the mean cross-entropy in nats, a scalar.

        Raises:
            ValueError: the sequence is longer than the context.
        """
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(f"a sequence may hold at most {self.config.context} tokens, got {length}")
        positions = torch.arange(length, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.final_norm(x))
        if targets is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
