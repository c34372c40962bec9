"""advise on real ranks: the same advice everywhere, and a model that is none the worse for it."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.distributed_c10d as distributed_c10d
from ranks import run
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import batch_of, digest, loss_of, make, same_on_all_ranks, train

import lgreco
from lgreco.calibration import Calibration
from lgreco.calibration_cache import Kept
from lgreco.cost_model import Line


def _advised(rank: int, world_size: int) -> Any:
    ddp, twin = make(), make()
    before, groups = threading.enumerate(), set(distributed_c10d._world.pg_map)
    line = Line(1e-5, 1e6)
    made = Calibration(2, line, line, (("quantize(bits=4, block=512)", 0.0),), 0.0, 0.0)
    kept = Kept(made, Path("none"), fresh=False)
    with mock.patch("lgreco.advisor.calibrate", return_value=kept):
        advice = lgreco.advise(ddp, batch_of(rank, 0), loss_of, steps=6)
    assert digest(ddp.parameters()) == digest(twin.parameters())
    assert {id(each) for each in gc.get_objects() if isinstance(each, DistributedDataParallel)} == {id(ddp), id(twin)}
    assert not [thread.name for thread in threading.enumerate() if thread not in before]
    assert set(distributed_c10d._world.pg_map) == groups
    assert all(each.grad is None or not each.grad.any() for each in ddp.parameters())
    assert train(ddp, rank, range(3)) == train(twin, rank, range(3))
    return advice.to_dict()


def test_every_rank_gets_the_same_advice_and_training_is_not_changed() -> None:
    advice = same_on_all_ranks(run(2, _advised))
    assert advice["compute"]["step_s"] > 0
    # The link is said to carry 1 MB/s; that it carries much more is what passes show.
    assert {each["way"] for each in advice["ways"]} == {"dense", "bf16", "lgreco"}
    assert all(each["measured"] and each["step_s"] < advice["ways"][0]["predicted_s"] / 2 for each in advice["ways"])


@dataclass
class _Output:
    """As models of transformers give their loss."""

    loss: torch.Tensor


class _Normed(nn.Module):
    """Buffers that DDP broadcasts, a layer that is never used, and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(96, 96), nn.BatchNorm1d(96), nn.Linear(96, 4)
        self.unused = nn.Linear(96, 96)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> _Output:
        """[n, 96], [n] -> mean cross-entropy."""
        return _Output(nn.functional.cross_entropy(self.last(self.norm(self.first(x))), labels))


def _advised_as_it_stands(rank: int, world_size: int) -> Any:
    verdicts = []
    for options in ({"find_unused_parameters": True}, {"static_graph": True, "gradient_as_bucket_view": True}):
        ddp = make(_Normed, **options)
        batch = {"x": batch_of(rank, 0), "labels": torch.arange(4)}
        heard: list[str] = []
        advice = lgreco.advise(ddp, batch, steps=6, tell=heard.append)
        assert len(heard) == 3
        verdicts.append(advice.to_dict())
        for _ in range(2):
            ddp(**batch).loss.backward()
        assert ddp.module.first.weight.grad.abs().sum() > 0
        assert ddp.module.unused.weight.grad is None or not ddp.module.unused.weight.grad.any()
    return verdicts


def test_models_as_others_write_them_are_advised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    advices = same_on_all_ranks(run(2, _advised_as_it_stands))
    # The fewest passes make two turns: no way is without an error bar.
    assert all(way["measured"] and way["error_s"] > 0 for advice in advices for way in advice["ways"])


def _refused(rank: int, world_size: int) -> None:
    ddp = make()
    with pytest.raises(ValueError, match=r"steps must be at least 6, got 5"):
        lgreco.advise(ddp, batch_of(rank, 0), loss_of, steps=5)
    lgreco.attach(ddp).close()
    with pytest.raises(ValueError, match="without a communication hook"):
        lgreco.advise(ddp, batch_of(rank, 0), loss_of)


def test_what_cannot_be_profiled_is_refused() -> None:
    run(2, _refused)
