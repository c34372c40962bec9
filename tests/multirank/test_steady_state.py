"""In the steady state nothing is allocated and nothing grows, counted under the program by an allocator that counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scripts import outputs_of, start_script

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
CHOICES = ["quantize(bits=4, block=128)", "quantize(bits=4, block=128, rounding=stochastic)", "dense(dtype=bf16)"]

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="counting allocations needs a C++ compiler (g++, or CXX)")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks of steady_job.py counted."""
    folder = tmp_path_factory.mktemp("steady")
    library = folder / "count_allocations.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([str(COMPILER), *flags, str(HERE / "count_allocations.cpp"), "-o", str(library)], check=True)
    jobs = start_script("steady_job.py", folder, LD_PRELOAD=str(library))
    outputs = outputs_of(jobs, timeout_s=200)
    assert [job.returncode for job in jobs] == [0, 0]
    return [json.loads(next(line for line in output.splitlines() if line.startswith("{"))) for output in outputs]


@needs_compiler
@pytest.mark.parametrize("choice", [*CHOICES, "masked"])
def test_a_step_allocates_nothing(ranks: list[dict[str, Any]], choice: str) -> None:
    """The lanes allocate no storage and no host memory; DDP's thread only what torch's hook interface is made of.

    That is, for each bucket, a Future and the list that GradBucket::getParameters() gives by value; and no storage
    beyond what a backward makes without lgreco.
    """
    for counts in ranks:
        plain, attached = counts["plain"], counts[choice]
        assert attached["direct_in_lanes"] == 0
        assert attached["storages_in_lanes"] == 0
        assert attached["buckets"] > 1
        assert attached["direct_elsewhere"] <= 2 * attached["buckets"]
        assert attached["storages_elsewhere"] <= plain["storages_elsewhere"]


@needs_compiler
def test_the_counter_counts(ranks: list[dict[str, Any]]) -> None:
    """It sees tensors made by a backward, and what lgreco sets up in its first step: its zeros mean something."""
    for counts in ranks:
        assert counts["plain"]["storages_elsewhere"] > 10
        assert counts["plain"]["direct_elsewhere"] == 0
        assert all(counts[choice]["direct_elsewhere"] >= counts[choice]["buckets"] for choice in CHOICES)
        assert counts["first_step"]["direct_in_lanes"] > 0
        assert counts["first_step"]["direct_elsewhere"] > 20


@needs_compiler
def test_a_thousand_steps_grow_nothing(ranks: list[dict[str, Any]]) -> None:
    """Live memory, lgreco's buffers and threads are after 1000 steps what they were before."""
    for counts in ranks:
        before, after = counts["growth"]["live_bytes"]
        assert after - before < 64 * 1000, "a forgotten Future a step would be more"
        for unchanged in ("memory_bytes_per_parameter", "threads"):
            before, after = counts["growth"][unchanged]
            assert before == after
