"""A made-up run of adaptive plans that looks like a real one: a byte-level GPT of four blocks, twelve solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lgreco.choice import Choice, parse
from lgreco.error_table import ErrorTable
from lgreco.layer import LayerInfo
from lgreco.plan import Plan, PlannedLayer
from lgreco.record import Realised, Recorder, Solve, Start

WIDTH, CONTEXT, VOCAB = 256, 128, 256
CHOICES: tuple[Choice, ...] = tuple(
    parse(text)
    for text in (
        "dense(dtype=fp32)",
        *(f"quantize(bits={bits})" for bits in (8, 6, 4, 3, 2)),
        *(f"topk(density={density})" for density in (0.05, 0.01, 0.003)),
        *(f"lowrank(rank={rank})" for rank in (16, 12, 8, 6, 4, 2)),
    )
)
REFERENCE = parse("lowrank(rank=8)")


def gpt_layers(blocks: int = 4, prefix: str = "") -> tuple[LayerInfo, ...]:
    """Names and shapes as in the quickstart's GPT."""

    def pair(name: str, *shape: int) -> list[LayerInfo]:
        return [
            LayerInfo(f"{prefix}{name}.weight", shape, "fp32"),
            LayerInfo(f"{prefix}{name}.bias", shape[:1], "fp32"),
        ]

    layers = [
        LayerInfo(f"{prefix}token_embedding.weight", (VOCAB, WIDTH), "fp32"),
        LayerInfo(f"{prefix}position_embedding.weight", (CONTEXT, WIDTH), "fp32"),
    ]
    for block in range(blocks):
        layers += pair(f"blocks.{block}.attention_norm", WIDTH)
        layers += pair(f"blocks.{block}.attention_in", 3 * WIDTH, WIDTH)
        layers += pair(f"blocks.{block}.attention_out", WIDTH, WIDTH)
        layers += pair(f"blocks.{block}.mlp_norm", WIDTH)
        layers += pair(f"blocks.{block}.mlp_in", 4 * WIDTH, WIDTH)
        layers += pair(f"blocks.{block}.mlp_out", WIDTH, 4 * WIDTH)
    layers += pair("final_norm", WIDTH)
    return (*layers, LayerInfo(f"{prefix}head.weight", (VOCAB, WIDTH), "fp32"))


def error_table(step: int, seed: int = 0, world_size: int = 4, layers: Sequence[LayerInfo] | None = None) -> ErrorTable:
    """Errors of layers with spectra that decay at different speeds and flatten as training goes on."""
    layers = gpt_layers() if layers is None else tuple(layers)
    speed = np.random.default_rng(seed).uniform(0.25, 1.6, len(layers)) * (1.0 + 0.5 * math.exp(-step / 150))
    scale = np.random.default_rng(seed + 1).lognormal(0.0, 1.2, len(layers)) * (0.3 + math.exp(-step / 200))
    share = 2 * (world_size - 1) / world_size
    rows, costs = [], []
    for layer, decay in zip(layers, speed, strict=True):
        matrix = len(layer.shape) == 2
        rows.append([_error(choice, layer, float(decay)) if matrix or choice.codec == "dense" else math.nan
                     for choice in CHOICES])  # fmt: skip
        costs.append([share * _encoded(choice, layer) if matrix else share * layer.dense_bytes for choice in CHOICES])
    return ErrorTable(
        layers=layers,
        choices=CHOICES,
        squared_errors=np.array(rows) * scale[:, None],
        squared_norms=scale,
        costs=np.array(costs),
        world_size=world_size,
        step=step,
    )


def greedy(table: ErrorTable, budget: float) -> list[int]:
    """A stand-in for the solver: from the best choice of each layer down to the cheapest that fits."""
    columns = [int(np.nanargmin(row)) for row in table.squared_errors]
    while True:
        left = budget - sum(table.squared_errors[row, column] for row, column in enumerate(columns))
        best: tuple[float, int, int] | None = None
        for row, now in enumerate(columns):
            for column in range(len(table.choices)):
                more = table.squared_errors[row, column] - table.squared_errors[row, now]
                saved = table.costs[row, now] - table.costs[row, column]
                if saved > 0 and more <= left:
                    worth = saved / max(more, 1e-30)
                    best = max(best or (0.0, 0, 0), (worth, row, column))
        if best is None:
            return columns
        columns[best[1]] = best[2]


def write_run(path: Path, layers: Sequence[LayerInfo] | None = None, solves: int = 12, interval: int = 50) -> None:
    """Records a whole run: warm-up, solves, steps with loss, realised errors, notes."""
    layers = gpt_layers() if layers is None else tuple(layers)
    rng = np.random.default_rng(7)
    previous: Plan | None = None
    with Recorder(path, every=5) as recorder:
        start = Start(0, layers, CHOICES, {"warmup_steps": 20, "default": str(REFERENCE)}, 4, {"lgreco": "0.1.0"})
        recorder.start(start)
        recorder.note(20, "first compressed step")
        sent = start.dense_bytes
        for step in range(1, solves * interval + 1):
            if step % interval == 20:
                table = error_table(step, layers=layers)
                reference = table.squared_errors[range(len(layers)), table.uniform(REFERENCE)].sum()
                if previous is not None:  # what was in force meets the new table
                    errors = zip(layers, previous.values(), table.squared_errors, strict=True)
                    predicted = {layer.name: float(row[table.index(choice)]) for layer, choice, row in errors}
                    noisy = {name: error * rng.lognormal(0.0, 0.12) for name, error in predicted.items()}
                    recorder.realised(Realised(step, predicted, noisy))
                solve, plan = _solve(table, float(reference), previous)
                recorder.solve(solve)
                previous, sent = plan, solve.wire_bytes
            loss = 2.1 + 3.4 * math.exp(-step / 60) + 0.05 * rng.normal()
            step_ms, codec_ms, wait_ms = 210 + 8 * rng.normal(), 14 + rng.normal(), 3 + abs(rng.normal())
            recorder.steps(step, wire_bytes=sent, step_ms=step_ms, codec_ms=codec_ms, wait_ms=wait_ms, loss=loss)
        recorder.note(331, "solve took 41 ms and was waited for: lag of 2 steps is short")


def _solve(table: ErrorTable, budget: float, previous: Plan | None) -> tuple[Solve, Plan]:
    columns = greedy(table, budget)
    chosen = [table.choices[column] for column in columns]
    plan = Plan(PlannedLayer(layer, choice, "solved") for layer, choice in zip(table.layers, chosen, strict=True))
    error = sum(float(table.squared_errors[row, column]) for row, column in enumerate(columns))
    solve = Solve.of(
        table,
        columns,
        plan,
        previous,
        effective_step=table.step + 2,
        budget=budget,
        predicted_error=error,
        reference=f"1.0 x {REFERENCE}",
        method="greedy",
        gap=0.004,
        solve_ms=11.5,
        measure_ms=38.0,
    )
    return solve, plan


def _error(choice: Choice, layer: LayerInfo, decay: float) -> float:
    """Share of the squared norm that a choice leaves out, for singular values that fall as k^-decay."""
    native = choice.to_native()
    if choice.codec == "dense":
        return 0.0
    if choice.codec == "quantize":
        return float(0.9 / (2 ** int(native["bits"]) - 1) ** 2)
    if choice.codec == "topk":
        return float(1.0 - float(native["density"]) ** (0.22 + 0.1 / decay))
    spectrum = np.arange(1, min(layer.shape) + 1) ** (-2.0 * decay)
    return float(spectrum[int(native["rank"]) :].sum() / spectrum.sum()) + 1e-4


def _encoded(choice: Choice, layer: LayerInfo) -> float:
    native, numel = choice.to_native(), layer.numel
    if choice.codec == "dense":
        return float(layer.dense_bytes)
    if choice.codec == "quantize":
        return numel * int(native["bits"]) / 8 + numel / 64
    if choice.codec == "topk":
        return numel * float(native["density"]) * 2.1
    rows, columns = layer.shape
    return int(native["rank"]) * (rows + columns + 8.0)
