"""Handwritten digits and a residual convolutional net whose layers are unlike: 3x3, wide 1x1, and large linear ones.

The images are the 1797 of 8x8 pixels that come with scikit-learn. Every third validates. Each training image is shifted
by up to a pixel and noised anew at every step; the validation images are, once and for all, in several copies, so that
their loss is of the same task and does not hang on a few images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
_SIDE = 8
_VALIDATION_EVERY = 3
_VALIDATION_COPIES = 4
# Standard deviation, of pixels between 0 and 1.
_NOISE = 0.2
# Of the validation images; no run's seed comes near it.
_VALIDATION_KEY = 2**63
_GROUPS = 8

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Digits:
    """Images and labels, split."""

    def __init__(self) -> None:
        """Reads the images from scikit-learn's package.

        Raises:
            ImportError: without scikit-learn.
        """
        from sklearn.datasets import load_digits

        found = load_digits()
        images, labels = (found.images / 16.0).astype(np.float32), found.target.astype(np.int64)
        held = np.arange(len(labels)) % _VALIDATION_EVERY == _VALIDATION_EVERY - 1
        self._images, self._labels = images[~held], labels[~held]
        copies = np.repeat(images[held], _VALIDATION_COPIES, axis=0)
        draw = np.random.Generator(np.random.Philox(key=[_VALIDATION_KEY, 0]))
        self.validation = _tensors(_disturbed(copies, draw), np.repeat(labels[held], _VALIDATION_COPIES))

    def training_batch(self, *, seed: int, rank: int, step: int, batch: int) -> tuple[Tensor, Tensor]:
        """Images drawn at random, shifted and noised, from a counter: equal arguments give equal images.

        Returns:
            Images fp32 [batch, 1, 8, 8] and labels int64 [batch].
        """
        draw = np.random.Generator(np.random.Philox(key=[seed, rank], counter=[0, 0, 0, step]))
        chosen = draw.integers(0, len(self._labels), size=batch)
        return _tensors(_disturbed(self._images[chosen], draw), self._labels[chosen])


class Residual(nn.Module):
    """Two 3x3 convolutions, the first of which may halve the image, added to a 1x1 projection of the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        inner = self.conv1(functional.gelu(self.norm1(x)))
        added: Tensor = self.project(x) + self.conv2(functional.gelu(self.norm2(inner)))
        return added


class Wide(nn.Module):
    """Two 1x1 convolutions over many channels, added to the input."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.widen = nn.Conv2d(channels, inner, 1)
        self.narrow = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same shape."""
        mixed: Tensor = x + self.narrow(functional.gelu(self.widen(self.norm(x))))
        return mixed


class DigitsNet(nn.Module):
    """1.2 M parameters; group norm, because it needs no agreement between ranks. torch's seed decides the weights.

    `width` scales all channels, which stay multiples of the norm's groups.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()

        def channels(count: int) -> int:
            return max(_GROUPS, round(count * width / _GROUPS) * _GROUPS)

        self.stem = nn.Conv2d(1, channels(32), 3, padding=1)
        self.side8 = Residual(channels(32), channels(64), 1)
        self.side4 = Residual(channels(64), channels(128), 2)
        self.wide = Wide(channels(128), channels(512))
        self.side2 = Residual(channels(128), channels(192), 2)
        self.norm = nn.GroupNorm(_GROUPS, channels(192))
        self.hidden = nn.Linear(channels(192) * (_SIDE // 4) ** 2, channels(256))
        self.head = nn.Linear(channels(256), CLASSES)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [n, 10] of images [n, 1, 8, 8]; with labels [n], the mean cross-entropy in nats, a scalar."""
        x = self.side2(self.wide(self.side4(self.side8(self.stem(images)))))
        x = functional.gelu(self.norm(x)).flatten(1)
        logits: Tensor = self.head(functional.gelu(self.hidden(x)))
        return logits if labels is None else functional.cross_entropy(logits, labels)


def _disturbed(images: Images, draw: np.random.Generator) -> Images:
    """Each image shifted by -1, 0 or 1 pixel in both directions, blank pixels coming in, and noised."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    down, right = draw.integers(0, 3, size=(2, len(images), 1, 1))
    rows, columns = np.arange(_SIDE)[:, None] + down, np.arange(_SIDE) + right
    shifted = padded[np.arange(len(images))[:, None, None], rows, columns]
    noised: Images = shifted + np.float32(_NOISE) * draw.standard_normal(shifted.shape, dtype=np.float32)
    return noised


def _tensors(images: Images, labels: Labels) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)
