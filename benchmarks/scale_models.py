"""Layer shapes of known models, made by formula, and how long their backward passes take on a device of given speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lgreco.layer import LayerInfo

Shapes = list[tuple[str, tuple[int, ...], int]]
"""(name, shape, how many multiply-adds each element takes part in, per sample)."""


@dataclass(frozen=True)
class Model:
    """A model as the cost model sees it.

    Attributes:
        name: for people.
        layers: in the order of the forward pass.
        weights: of each layer's share in the time of a pass.
        flops: of a forward and backward pass of one rank's batch.
    """

    name: str
    layers: tuple[LayerInfo, ...]
    weights: tuple[float, ...]
    flops: float

    @property
    def numel(self) -> int:
        """Parameters."""
        return sum(layer.numel for layer in self.layers)

    def times(self, flops_per_s: float) -> tuple[float, list[float]]:
        """Seconds of a pass, and when each layer's gradient is ready, from the beginning of backward.

        Backward takes two thirds of a pass and goes through the layers from the last to the first.
        """
        compute_s = self.flops / flops_per_s
        backward_s, total = 2 / 3 * compute_s, sum(self.weights)
        ready, done = [0.0] * len(self.layers), 0.0
        for row in reversed(range(len(self.layers))):
            done += self.weights[row]
            ready[row] = backward_s * done / total
        return compute_s, ready


def resnet50(batch: int = 64) -> Model:
    """ResNet-50 on images of 224 x 224 (He et al., arXiv 1512.03385): 25.6 million parameters."""
    shapes: Shapes = [("conv1", (64, 3, 7, 7), 112 * 112), *_norm("bn1", 64)]
    channels, side = 64, 56
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            into = side // stride
            shapes += [(f"{name}.conv1", (width, channels, 1, 1), side * side), *_norm(f"{name}.bn1", width)]
            shapes += [(f"{name}.conv2", (width, width, 3, 3), into * into), *_norm(f"{name}.bn2", width)]
            shapes += [(f"{name}.conv3", (4 * width, width, 1, 1), into * into), *_norm(f"{name}.bn3", 4 * width)]
            if block == 0:
                shapes += [(f"{name}.down", (4 * width, channels, 1, 1), into * into), *_norm(f"{name}.bnd", 4 * width)]
            channels, side = 4 * width, into
    shapes += [("fc.weight", (1000, 2048), 1), ("fc.bias", (1000,), 0)]
    return _model("ResNet-50", shapes, batch)


def gpt2_small(batch: int = 8, context: int = 1024) -> Model:
    """GPT-2 small (Radford et al., 2019): 12 blocks of width 768, head tied to the embedding; 124 M parameters."""
    width = 768
    shapes: Shapes = [("wte", (50257, width), context), ("wpe", (1024, width), 0)]
    for block in range(12):
        name = f"h.{block}"
        shapes += [(f"{name}.ln_1.weight", (width,), 0), (f"{name}.ln_1.bias", (width,), 0)]
        for part, out, into in (("attn", 3, 1), ("proj", 1, 1), ("fc", 4, 1), ("out", 1, 4)):
            shapes += [(f"{name}.{part}.weight", (out * width, into * width), context)]
            shapes += [(f"{name}.{part}.bias", (out * width,), 0)]
        shapes += [(f"{name}.ln_2.weight", (width,), 0), (f"{name}.ln_2.bias", (width,), 0)]
    shapes += [("ln_f.weight", (width,), 0), ("ln_f.bias", (width,), 0)]
    return _model("GPT-2 small", shapes, batch)


def seven_b(batch: int = 1, context: int = 4096) -> Model:
    """A 7 B model as LLaMA (Touvron et al., arXiv 2302.13971): 32 blocks of width 4096, 11008 in the gated part."""
    width, inner = 4096, 11008
    shapes: Shapes = [("embed", (32000, width), 0)]
    for block in range(32):
        name = f"layers.{block}"
        shapes += [(f"{name}.{part}", (width, width), context) for part in ("q", "k", "v", "o")]
        shapes += [(f"{name}.{part}", (inner, width), context) for part in ("gate", "up")]
        shapes += [(f"{name}.down", (width, inner), context)]
        shapes += [(f"{name}.{part}", (width,), 0) for part in ("norm_1", "norm_2")]
    shapes += [("norm", (width,), 0), ("head", (32000, width), context)]
    return _model("7 B", shapes, batch)


def byte_gpt(width: int, layers: int, context: int, batch: int) -> Model:
    """The byte-level GPT of the lab's benchmarks, its layers as the demo makes them."""
    from lgreco.demo.gpt import GPT, GPTConfig

    named = GPT(GPTConfig(width, layers, 1, context)).named_parameters()
    shapes: Shapes = [(name, tuple(each.shape), context if each.dim() > 1 else 0) for name, each in named]
    return _model("byte GPT", shapes, batch)


MODELS: dict[str, Callable[[], Model]] = {"resnet50": resnet50, "gpt2": gpt2_small, "7b": seven_b}


def _norm(name: str, width: int) -> Shapes:
    return [(f"{name}.weight", (width,), 0), (f"{name}.bias", (width,), 0)]


def _model(name: str, shapes: Shapes, batch: int) -> Model:
    layers = tuple(LayerInfo(layer, shape, "fp32") for layer, shape, _ in shapes)
    weights = tuple(float(layer.numel * uses) for layer, (_, _, uses) in zip(layers, shapes, strict=True))
    # A multiply-add is two operations; backward takes twice what forward does.
    return Model(name, layers, weights, 6.0 * batch * sum(weights))
