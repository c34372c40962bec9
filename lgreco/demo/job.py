"""A whole job: every run for every seed, one after the other, then table, summary and figure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from lgreco.demo import checkpoint
from lgreco.demo.display import Display
from lgreco.demo.figure import draw
from lgreco.demo.history import Row
from lgreco.demo.loop import Training
from lgreco.demo.ranks import Ranks
from lgreco.demo.results import Result, write_summary
from lgreco.demo.settings import JobSettings
from lgreco.demo.text import Corpus
from lgreco.pruning.changes_file import CHANGES_NAME, write_changes
from lgreco.quantities import bytes_text
from lgreco.record import RECORD_NAME
from lgreco.whole_file import replace_text


def run_job(settings: JobSettings, ranks: Ranks, display: Display, resume: bool) -> list[Result]:
    """Trains, or goes on training, everything that the settings name; collective.

    Args:
        settings: checked.
        ranks: of the job; they must see the same folder `settings.out`.
        display: speaks on rank 0.
        resume: go on from the newest checkpoint of each run; otherwise earlier results are moved aside.

    Raises:
        ValueError: before any training, if the text or a run's config cannot be used.
        RuntimeError: if a loss is not finite.
    """
    corpus = Corpus.load(settings.data.source, settings.data.validation_every, settings.data.max_mb)
    corpus.require_windows_of(settings.model.context + 1)
    if not ranks.all_equal(bytes.fromhex(corpus.digest)):
        raise ValueError(f"data.source must be the same text on every rank, {corpus.origin} differs between ranks")
    display.console.print(
        f"{ranks.world_size} ranks, {ranks.device.type} ({ranks.reason}), {ranks.backend}; {corpus.origin}: "
        f"{bytes_text(len(corpus.training))} to train on, {bytes_text(len(corpus.validation))} to validate",
        highlight=False,
        soft_wrap=True,
    )
    _refuse_early(settings, corpus, ranks)
    results = []
    for name, seed in _trainings(settings):
        folder = settings.out / f"{name}-seed{seed}"
        if ranks.leads:
            if not resume:
                _move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
        ranks.barrier()
        training = Training(settings, name, seed, corpus, ranks, folder / RECORD_NAME)
        results.append(_train(training, settings, folder, ranks, display))
    if ranks.leads:
        write_summary(settings.out / "summary.json", results, settings, ranks.world_size)
        draw(results, settings.reference, settings.out / "curves.png")
        display.results(results, settings.reference)
        display.console.print(
            f"Written: {settings.out}/summary.json, curves.png, a folder for each run", soft_wrap=True
        )
        for recorded in (result.record for result in results if result.record is not None):
            display.console.print(f"How its plan changed: python -m lgreco report {recorded.parent}", soft_wrap=True)
        for changes in sorted(settings.out.glob(f"*/{CHANGES_NAME}")):
            display.console.print(f"How sparse it is: python -m lgreco report {changes.parent}", soft_wrap=True)
    ranks.barrier()
    return results


def _trainings(settings: JobSettings) -> Iterator[tuple[str, int]]:
    yield from ((name, seed) for seed in settings.seeds for name in settings.runs)
    if settings.reference is not None:
        yield from ((settings.reference, seed) for seed in settings.reference_seeds if seed not in settings.seeds)


def _refuse_early(settings: JobSettings, corpus: Corpus, ranks: Ranks) -> None:
    """Attaches each compressed run once, so that a config that does not fit the model is refused before training."""
    for name in settings.runs:
        if settings.compressed(name) or settings.pruning_of(name) is not None:
            Training(settings, name, settings.seeds[0], corpus, ranks).close()


def _train(training: Training, settings: JobSettings, folder: Path, ranks: Ranks, display: Display) -> Result:
    """Trains one run to its end, from its newest checkpoint if the folder holds one."""
    title, steps = f"{training.name}, seed {training.seed}", settings.train.steps
    try:
        saved = checkpoint.latest(folder)
        if saved is not None:
            exact = training.restore(saved)
            note = "" if exact else ", not bit for bit: another number of ranks saved it"
            display.console.print(f"{title}: goes on from step {training.step}{note}", soft_wrap=True)
        if training.state is not None and training.step < steps:
            numels = {layer: parameter.numel() for layer, parameter in training.ddp.module.named_parameters()}
            display.plan(title, training.state.plan, numels)
        with display.run(title, steps, training.step):
            while training.step < steps:
                _advance(training, settings, folder, ranks, display, title)
    finally:
        training.close()
    row = Row.of(
        training.history,
        method=training.name,
        seed=training.seed,
        warmup_steps=training.warmup_steps,
        dense_bytes=training.dense_bytes,
    )
    record = folder / RECORD_NAME
    return Result(row, training.history, record if ranks.leads and record.exists() else None)


def _advance(
    training: Training, settings: JobSettings, folder: Path, ranks: Ranks, display: Display, title: str
) -> None:
    """One step and what falls due after it."""
    train = settings.train
    training.advance()
    ended = training.step == train.steps

    def due(every: int) -> bool:
        return ended or (every > 0 and training.step % every == 0)

    if due(train.log_every):
        training.settle()
    if due(train.eval_every):
        training.settle()
        training.evaluate()
    if due(train.checkpoint_every):
        training.save(folder)
    if ranks.leads and training.pruner is not None and due(train.eval_every):
        write_changes(folder, training.pruner.changes)
    if ranks.leads and (due(train.eval_every) or due(train.checkpoint_every)):
        replace_text(folder / "metrics.jsonl", training.history.json_lines())
    display.step(title, training.step, train.steps, training.history, due(train.eval_every))


def _move_aside(folder: Path) -> None:
    """Keeps what an earlier job left, one generation of it."""
    if folder.exists():
        previous = folder.with_name(folder.name + ".previous")
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
