"""torch.distributed.checkpoint of a pruner, alone and with the hook: bit for bit, same masks at any world size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import RankFailed, run
from torch.nn.parallel import DistributedDataParallel
from training import Net, digest, everything, same_on_all_ranks, state_digest, undelivered

import lgreco
from lgreco.distributed_checkpoint import entries, load
from lgreco.pruning import CubicSchedule, Pruner, Regrowth

EXAMPLES = Path(__file__).parents[2] / "examples"
RAMP = CubicSchedule(0.3, 0.8, begin=1, end=7, every=3)  # updates after steps 1, 4 and 7
MADE = {
    "movement": {"criterion": "movement"},
    "taylor": {"criterion": "taylor", "allocation": "uniform"},
    "regrowth": {"regrowth": Regrowth(0.3, window=2)},  # step 3 begins the window of the update after step 4
    "random": {"criterion": "random", "structure": "1x4"},
}
FOUR_BITS = "quantize(bits=4, block=64, rounding=stochastic)"
LOW_RANK = "lowrank(rank=4, factors=int8)"


class Job:
    """A model in DDP, its optimizer and its pruner; with a choice also lgreco's exchange, which knows the masks."""

    def __init__(self, rank: int, made: str, choice: str | None = None, seed: int = 0, width: int = 24) -> None:
        torch.manual_seed(seed)
        self.rank, self.width = rank, width
        self.ddp = DistributedDataParallel(Net(width), bucket_cap_mb=0.01)
        self.optimizer = torch.optim.AdamW(self.ddp.parameters(), 0.01)
        self.state = lgreco.attach(self.ddp, everything(choice)) if choice else None
        self.pruner = Pruner(self.ddp, self.optimizer, RAMP, **MADE[made])  # type: ignore[arg-type]
        if self.state is not None:
            self.pruner.attach(self.state)

    def train(self, steps: range) -> list[str]:
        """The digest of weights and masks after each step; what is pruned is zero."""
        digests = []
        for step in steps:
            generator = torch.Generator().manual_seed(100 * step + self.rank)
            self.optimizer.zero_grad()
            (self.ddp(torch.randn(4, self.width, generator=generator)) - 1.0).square().mean().backward()
            self.optimizer.step()
            self.pruner.step()
            layers = self.ddp.module
            assert all(not layers.get_parameter(name)[~mask].any() for name, mask in self.pruner.masks.items())
            digests.append(digest([*self.ddp.parameters(), *self.pruner.masks.values()]))
        return digests

    def save(self, folder: Path) -> None:
        """Everything, the hook's and the pruner's state as a user would."""
        hook = {} if self.state is None else {"lgreco": entries(self.state)}
        dcp.save({"model": self.ddp.module.state_dict(), "pruner": entries(self.pruner), **hook}, checkpoint_id=folder)
        if self.rank == 0:  # the optimizer's way into a checkpoint is torch's own business
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.distributed.barrier()

    def load(self, folder: Path, pruner_first: bool) -> None:
        """What `save` saved, pruner and hook in either order."""
        saved = {"model": self.ddp.module.state_dict()}
        dcp.load(saved, checkpoint_id=folder)
        self.ddp.module.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        for each in [self.pruner, self.state] if pruner_first else [self.state, self.pruner]:
            if each is not None:
                load(each, folder)

    def told(self) -> tuple[Any, ...]:
        """Everything that a checkpoint has to bring back on this rank."""
        exchange = None if self.state is None else (state_digest(self.state), digest(self.state.masks.values()))
        return digest(self.ddp.parameters()), _facts(self.pruner), exchange


def _facts(pruner: Pruner) -> Any:
    """A pruner's state with a digest in place of each tensor."""

    def told(content: Any) -> Any:
        if isinstance(content, dict):
            return {name: told(value) for name, value in content.items()}
        return digest([content]) if isinstance(content, torch.Tensor) else content

    return told(pruner.state_dict())


def _straight(rank: int, world_size: int, made: str, choice: str | None) -> Any:
    job = Job(rank, made, choice)
    return job.train(range(8)), job.told()


def _stopped(rank: int, world_size: int, made: str, choice: str | None, folder: Path, pruner_first: bool) -> Any:
    job = Job(rank, made, choice)
    first = job.train(range(3))
    job.save(folder)
    if job.state is not None:
        job.state.close()
    job = Job(rank, made, choice, seed=7)
    job.load(folder, pruner_first)
    return [*first, *job.train(range(3, 8))], job.told()


@pytest.mark.parametrize("made", MADE)
def test_a_pruner_goes_on_bit_for_bit(tmp_path: Path, made: str) -> None:
    straight = same_on_all_ranks(run(2, _straight, made, None))
    assert same_on_all_ranks(run(2, _stopped, made, None, tmp_path, False)) == straight
    assert straight[1][1]["steps"] == 8
    assert len(set(straight[0])) == 8


@pytest.mark.parametrize("pruner_first", [True, False], ids=["pruner-first", "hook-first"])
@pytest.mark.parametrize("choice", [FOUR_BITS, LOW_RANK])
def test_pruner_and_hook_go_on_together_bit_for_bit(tmp_path: Path, choice: str, pruner_first: bool) -> None:
    straight = run(3, _straight, "regrowth", choice)
    assert run(3, _stopped, "regrowth", choice, tmp_path, pruner_first) == straight
    assert same_on_all_ranks([digests for digests, _ in straight]) != run(1, _straight, "regrowth", None)[0][0]
    assert len({exchange for _, (_, _, exchange) in straight}) == 3, "residuals are each rank's own"


def _save(rank: int, world_size: int, made: str, folder: Path) -> Any:
    job = Job(rank, made, FOUR_BITS)
    job.train(range(3))
    job.save(folder)
    return _facts(job.pruner), digest(job.pruner.masks.values()), undelivered(job.state)


def _load(rank: int, world_size: int, made: str, folder: Path, pruner_first: bool) -> Any:
    job = Job(rank, made, FOUR_BITS, seed=7)
    job.load(folder, pruner_first)
    known = digest(job.state.masks.values())
    loaded = _facts(job.pruner), digest(job.pruner.masks.values()), undelivered(job.state)
    return loaded, known, job.train(range(3, 8)), job.pruner.report().sparsity


@pytest.mark.parametrize("made", ["movement", "regrowth"])
@pytest.mark.parametrize(("world_size", "pruner_first"), [(2, False), (4, True)])
def test_another_world_size_holds_the_same_masks_on_all_ranks(
    tmp_path: Path, made: str, world_size: int, pruner_first: bool
) -> None:
    facts, masks, before = run(3, _save, made, tmp_path)[0]
    answers = run(world_size, _load, made, tmp_path, pruner_first)
    for (now, held, _), known, _, _ in answers:
        assert (now, held, known) == (facts, masks, masks), "pruner and exchange, on every rank"
    _, _, after = answers[0][0]
    assert facts["changes"][-1]["sparsity"] == pytest.approx(0.3, abs=2e-3)
    assert any(residual.any() for residual in before.values())
    for name, residual in before.items():
        torch.testing.assert_close(after[name], residual, rtol=1e-5, atol=1e-7)
    _, sparsity = same_on_all_ranks([(digests, sparsity) for _, _, digests, sparsity in answers])
    assert sparsity == pytest.approx(0.8, abs=2e-3)


def test_what_is_the_same_on_all_ranks_is_written_once_and_as_tensors(tmp_path: Path) -> None:
    run(2, _save, "regrowth", tmp_path)
    metadata = dcp.FileSystemReader(tmp_path).read_metadata()
    written = [index.fqn for index in metadata.storage_data if index.fqn.startswith("pruner.")]
    assert len(written) == len(set(written))
    numel = {name: parameter.numel() for name, parameter in Net(24).named_parameters()}
    for layer in ("wide.weight", "odd.weight", "narrow.weight", "out.weight"):
        assert metadata.state_dict_metadata[f"pruner.masks/{layer}/bits"].size == torch.Size([-(-numel[layer] // 8)])
        assert f"pruner.regrowth/sums/{layer}" in written


def _another_model(rank: int, world_size: int, folder: Path) -> None:
    load(Job(rank, "movement", width=32).pruner, folder)


def _other_entries(rank: int, world_size: int, folder: Path, key: str) -> None:
    load(Job(rank, "movement").pruner, folder, key)


def _something_else(rank: int, world_size: int, folder: Path) -> None:
    load({"pruner": 1}, folder)  # type: ignore[arg-type]


def test_another_model_and_other_entries_are_refused(tmp_path: Path) -> None:
    run(2, _save, "movement", tmp_path)
    with pytest.raises(RankFailed, match=r'layer "wide.weight" is \[96, 32\] here and \[72, 24\] in the pruner'):
        run(2, _another_model, tmp_path)
    there = 'pass the key given to dcp.save; it has "lgreco", "model", "pruner"'
    for key in ("lgreco", "masks"):
        with pytest.raises(RankFailed, match=f'no entries of a pruner under "{key}": {there}'):
            run(2, _other_entries, tmp_path, key)
    with pytest.raises(RankFailed, match=r"load takes what lgreco\.attach gave or a Pruner, got dict"):
        run(2, _something_else, tmp_path)
    with pytest.raises(ValueError, match=r"entries takes what lgreco\.attach gave or a Pruner, got Net"):
        entries(Net(24))  # type: ignore[arg-type]


def _example(rank: int, world_size: int, folder: Path, steps: int, resume: bool) -> Any:
    sys.path.insert(0, str(EXAMPLES))
    import checkpoint_training

    model, state, pruner = checkpoint_training.train(folder, steps, 20, resume)
    stats = state.stats()
    return digest([*model.parameters(), *pruner.masks.values()]), stats["wire_bytes"] / stats["dense_bytes"]


def test_the_example_stops_and_goes_on_with_other_ranks(tmp_path: Path) -> None:
    straight = same_on_all_ranks(run(2, _example, tmp_path / "straight", 40, False))
    halves = run(2, _example, tmp_path / "halves", 25, False)
    assert same_on_all_ranks(run(2, _example, tmp_path / "halves", 40, True)) == straight
    same_on_all_ranks(halves)
    run(2, _example, tmp_path / "three", 25, False)
    answers = run(3, _example, tmp_path / "three", 40, True)
    assert same_on_all_ranks([digest for digest, _ in answers]) != straight[0]
    assert all(0 < ratio < 0.15 for _, ratio in answers)
