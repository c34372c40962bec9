"""Structures: which weights are pruned together. Each turns a layer's scores into scores of groups and back.

Every layer is seen as the matrix [out, in * kh * kw] in which torch lays it out.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from lgreco.layer import matrix_shape

Shape = tuple[int, ...]


def rows_and_columns(shape: Shape) -> tuple[int, int]:
    """Of a layer as a matrix; a vector is one row here, so that a block as 1x4 fits it."""
    return matrix_shape(shape) if len(shape) > 1 else (1, torch.Size(shape).numel())


class Structure(ABC):
    """Groups of weights of which each is kept or pruned as a whole."""

    def __str__(self) -> str:
        """As `parse_structure` reads it."""
        return type(self).__name__.lower()

    @abstractmethod
    def fits(self, shape: Shape) -> bool:
        """Whether a layer of this shape can be cut into whole groups; one that cannot stays dense."""

    @abstractmethod
    def group_numel(self, shape: Shape) -> int:
        """Weights of a group; all groups of a layer are equally large."""

    @abstractmethod
    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [layer's shape] to means over each group [groups], fp32."""

    @abstractmethod
    def expand(self, kept: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Kept groups, bool [groups], to kept weights, bool [layer's shape]."""


@dataclass(frozen=True)
class Unstructured(Structure):
    """Each weight for itself."""

    def fits(self, shape: Shape) -> bool:
        """See Structure."""
        return torch.Size(shape).numel() > 0

    def group_numel(self, shape: Shape) -> int:
        """See Structure."""
        return 1

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """See Structure; no copy of what is fp32 and contiguous."""
        return scores.float().reshape(-1)

    def expand(self, kept: torch.Tensor, shape: Shape) -> torch.Tensor:
        """See Structure."""
        return kept.view(shape)


@dataclass(frozen=True)
class Blocks(Structure):
    """Blocks of `rows` x `columns` of the matrix, such as 1x4 or 4x1.

    Raises:
        ValueError: for a block without a weight.
    """

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block must have rows and columns from 1, got {self.rows}x{self.columns}")

    def fits(self, shape: Shape) -> bool:
        """Whether the block divides rows and columns."""
        rows, columns = rows_and_columns(shape)
        return rows * columns > 0 and rows % self.rows == 0 and columns % self.columns == 0

    def group_numel(self, shape: Shape) -> int:
        """See Structure."""
        return self.rows * self.columns

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """See Structure."""
        rows, columns = rows_and_columns(tuple(scores.shape))
        cut = scores.float().reshape(rows // self.rows, self.rows, columns // self.columns, self.columns)
        return cut.mean(dim=(1, 3)).reshape(-1)

    def expand(self, kept: torch.Tensor, shape: Shape) -> torch.Tensor:
        """See Structure."""
        rows, columns = rows_and_columns(shape)
        grid = kept.view(rows // self.rows, 1, columns // self.columns, 1)
        return grid.expand(-1, self.rows, -1, self.columns).reshape(shape)


@dataclass(frozen=True)
class Rows(Structure):
    """Whole rows: an output of a linear layer, a filter of a convolution."""

    def fits(self, shape: Shape) -> bool:
        """Whether there are two or more rows."""
        rows, columns = rows_and_columns(shape)
        return rows > 1 and columns > 0

    def group_numel(self, shape: Shape) -> int:
        """See Structure."""
        return rows_and_columns(shape)[1]

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """See Structure."""
        return scores.float().reshape(rows_and_columns(tuple(scores.shape))).mean(dim=1)

    def expand(self, kept: torch.Tensor, shape: Shape) -> torch.Tensor:
        """See Structure."""
        return kept.view(-1, 1).expand(rows_and_columns(shape)).reshape(shape)


@dataclass(frozen=True)
class Columns(Structure):
    """Whole columns: an input of a linear layer, an input channel (with its kernel) of a convolution."""

    def fits(self, shape: Shape) -> bool:
        """Whether there are two dimensions and two or more columns."""
        return len(shape) >= 2 and shape[1] > 1 and torch.Size(shape).numel() > 0

    def group_numel(self, shape: Shape) -> int:
        """See Structure."""
        return torch.Size(shape).numel() // shape[1]

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """See Structure."""
        return scores.float().transpose(0, 1).reshape(scores.shape[1], -1).mean(dim=1)

    def expand(self, kept: torch.Tensor, shape: Shape) -> torch.Tensor:
        """See Structure."""
        return kept.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()


@dataclass(frozen=True)
class NofM(Structure):
    """Of every `m` weights next to each other in a row, at least `n` are kept (2:4 and its like).

    The level of each layer is that of the pattern: while a schedule rises, m - floor(level * m) of each group are kept,
    at least n; so a schedule ends at 1 - n / m, and there is nothing to allocate. A level that a decimal fraction
    misses by less than `tolerance`, as 0.6667 does 2/3, is met.

    Raises:
        ValueError: unless 1 <= n < m <= 32.
    """

    n: int
    m: int
    tolerance: ClassVar[float] = 1e-4

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m <= 32:
            raise ValueError(f"N:M must have 1 <= N < M <= 32, got {self.n}:{self.m}")

    @property
    def final(self) -> float:
        """The sparsity of the pattern."""
        return 1.0 - self.n / self.m

    def fits(self, shape: Shape) -> bool:
        """Whether m divides the row."""
        rows, columns = rows_and_columns(shape)
        return rows * columns > 0 and columns % self.m == 0

    def group_numel(self, shape: Shape) -> int:
        """Of a single weight: groups are not pruned as a whole."""
        return 1

    def reduce(self, scores: torch.Tensor) -> torch.Tensor:
        """See Structure."""
        return scores.float().reshape(-1)

    def expand(self, kept: torch.Tensor, shape: Shape) -> torch.Tensor:
        """See Structure."""
        return kept.view(shape)

    def kept_of_m(self, level: float) -> int:
        """How many of each m a level keeps."""
        return max(self.n, self.m - int((level + self.tolerance) * self.m))

    def choose(self, scores: torch.Tensor, level: float, standing: torch.Tensor | None = None) -> torch.Tensor:
        """The mask of a layer, bool [layer's shape]; ties go to the lowest index.

        What stands (bool of the layer's shape; None for all) comes before what is pruned. A weight's rank in its group
        is the number of weights before it, which takes m comparisons and no sort.
        """
        groups = scores.float().reshape(-1, self.m)
        stands = torch.ones_like(groups, dtype=torch.bool) if standing is None else standing.reshape(-1, self.m)
        rank = torch.zeros_like(groups, dtype=torch.int32)
        for other in range(self.m):
            beside, alike = groups[:, other : other + 1], stands[:, other : other + 1] == stands
            rank += (stands[:, other : other + 1] & ~stands) | (alike & (beside > groups))
            rank[:, other + 1 :] += (alike & (beside == groups))[:, other + 1 :]
        return (rank < self.kept_of_m(level)).view(scores.shape)


def parse_structure(text: str | Structure) -> Structure:
    """`unstructured`, `rows`, `columns`, a block such as `1x4`, or a pattern such as `2:4`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(text, Structure):
        return text
    plain: dict[str, Structure] = {"unstructured": Unstructured(), "rows": Rows(), "columns": Columns()}
    if text in plain:
        return plain[text]
    if found := re.fullmatch(r"(\d+)x(\d+)", str(text)):
        return Blocks(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d+):(\d+)", str(text)):
        return NofM(int(found[1]), int(found[2]))
    raise ValueError(f"structure must be unstructured, rows, columns, a block as 1x4 or a pattern as 2:4, got {text!r}")
