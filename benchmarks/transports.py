#!/usr/bin/env python3
"""Step times over MPI beside those over Gloo, on simulated hosts: the same model, plan and messages, by turns.

    python benchmarks/transports.py --hosts 4 --rate 1gbit --json benchmarks/results/transports-4hosts-1gbit.json

The lab's hosts are joined by mpirun (Open MPI, messages over TCP), which needs a remote shell to start its daemons;
here that is this script, which passes a daemon's command to the host through a folder. Every rank then holds one DDP
model for each transport and trains them by turns, a block of steps each. `step_ms_median`: the slowest host's, median;
`over_gloo`: of the medians of blocks that follow each other, median. Both must end with the same weights.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import lgreco
from lgreco.demo.gpt import GPT, GPTConfig

_LAB = Path(__file__).resolve().parent.parent / "launch" / "lab.py"
_TRANSPORTS = ("c10d", "mpi")
_COLUMNS = ("transport", "step_ms_median", "over_gloo", "wire_bytes")
_PORT = 29650
_POLL_S = 0.05
# What a launcher left in the environment would be at odds with mpirun's.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")


def host(folder: Path, args: list[str]) -> int:
    """On one of the lab's hosts: the first runs mpirun, the others what its remote shell asks for."""
    rank, hosts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    first = os.environ["MASTER_ADDR"]
    addresses = [f"{first.rpartition('.')[0]}.{int(first.rpartition('.')[2]) + each}" for each in range(hosts)]
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", MASTER_PORT=str(_PORT))
    if rank:
        return _serve(folder, addresses[rank])
    script = [sys.executable, str(Path(__file__).resolve())]
    parameters = {
        "plm_rsh_agent": shlex.join([*script, "--agent", str(folder)]),
        "btl": "self,tcp",  # its hosts are one machine, but they share no memory
        "btl_tcp_if_include": "eth0",
        "oob_tcp_if_include": "eth0",
    }
    command = [
        os.environ.get("MPIRUN", "mpirun"),
        "-np",
        str(hosts),
        "--host",
        ",".join(f"{each}:1" for each in addresses),
    ]
    command += [
        "--bind-to",
        "none",
        "-x",
        "MASTER_ADDR",
        "-x",
        "MASTER_PORT",
        "-x",
        "OMP_NUM_THREADS",
        "-x",
        "PYTHONPATH",
    ]
    for name, value in parameters.items():
        command += ["--mca", name, value]
    try:
        return subprocess.run([*command, *script, "--rank", *args]).returncode
    finally:
        (folder / "over").touch()


def _serve(folder: Path, address: str) -> int:
    """Runs what is asked for on this host, until the first host is done."""
    asked = folder / address
    while not (folder / "over").exists():
        if asked.exists():
            words = asked.read_text(encoding="utf-8")
            asked.unlink()
            # The daemon, not the remote shell, lives on.
            subprocess.Popen(["sh", "-c", words])
        time.sleep(_POLL_S)
    return 0


def agent(folder: Path, address: str, words: list[str]) -> int:
    """As ssh would: passes a command to a host."""
    part = folder / f".{address}"
    part.write_text(" ".join(words), encoding="utf-8")
    part.rename(folder / address)
    while (folder / address).exists():
        time.sleep(_POLL_S)
    return 0


class _Run:
    """A model that trains over one transport."""

    def __init__(self, transport: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        model = GPT(GPTConfig(args.width, args.layers, 4, args.context))
        self._ddp = DistributedDataParallel(
            model, bucket_cap_mb=args.cap, gradient_as_bucket_view=True, process_group=dist.new_group()
        )
        self.state = lgreco.attach(self._ddp, {"default": args.plan, "transport": transport})
        self._optimizer = torch.optim.AdamW(self._ddp.parameters(), lr=3e-4, fused=True)
        self._args, self._draw = args, torch.Generator().manual_seed(1 + dist.get_rank())

    def block(self, steps: int) -> list[float]:
        """Milliseconds of each step."""
        times = []
        for _ in range(steps):
            tokens = torch.randint(0, 256, (self._args.batch, self._args.context + 1), generator=self._draw)
            begun = time.perf_counter()
            self._optimizer.zero_grad()
            self._ddp(tokens[:, :-1], tokens[:, 1:]).backward()
            self._optimizer.step()
            times.append(1e3 * (time.perf_counter() - begun))
        return times

    def weights(self) -> torch.Tensor:
        """All of them, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self._ddp.parameters()])


def rank(args: argparse.Namespace) -> int:
    """One of mpirun's ranks."""
    torch.set_num_threads(1)
    # Not lgreco.init_process_group(): the lab's hosts share one name, which it refuses.
    place = {name: int(os.environ[f"OMPI_COMM_WORLD_{name.upper()}"]) for name in ("rank", "size")}
    address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    dist.init_process_group("gloo", init_method=address, rank=place["rank"], world_size=place["size"])
    runs = {transport: _Run(transport, args) for transport in _TRANSPORTS}
    blocks: dict[str, list[list[float]]] = {transport: [] for transport in _TRANSPORTS}
    for turn in range(args.blocks + 1):
        for transport in _TRANSPORTS if turn % 2 else reversed(_TRANSPORTS):
            dist.barrier()
            times = torch.tensor(runs[transport].block(args.block_steps))
            dist.all_reduce(times, dist.ReduceOp.MAX)
            if turn:  # the first settles
                blocks[transport].append(times.tolist())
    one, other = (runs[transport].weights() for transport in _TRANSPORTS)
    if not torch.equal(one, other):
        raise RuntimeError("the transports end with other weights, so they did not do the same work")
    if dist.get_rank() == 0:
        rows = [_row(transport, blocks, runs[transport]) for transport in _TRANSPORTS]
        report.print_table(rows, _COLUMNS, title=f"{args.hosts} hosts, {args.rate}")
        if args.json:
            report.write_json(args.json, settings=vars(args), rows=rows)
    dist.barrier()
    for run in runs.values():
        run.state.close()
    dist.destroy_process_group()
    return 0


def _row(transport: str, blocks: dict[str, list[list[float]]], run: _Run) -> dict[str, Any]:
    pairs = zip(blocks[transport], blocks[_TRANSPORTS[0]], strict=True)
    return {
        "transport": transport,
        "step_ms_median": median(ms for block in blocks[transport] for ms in block),
        "over_gloo": median(median(mine) / median(gloo) for mine, gloo in pairs),
        "wire_bytes": run.state.stats()["wire_bytes"],
    }


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    if argv[:1] == ["--agent"]:
        return agent(Path(argv[1]), argv[2], argv[3:])
    if argv[:1] == ["--host"]:
        return host(Path(argv[1]), argv[2:])
    args = _parser().parse_args(argv[1:] if argv[:1] == ["--rank"] else argv)
    if argv[:1] == ["--rank"]:
        sys.argv.remove("--rank")  # what is reported is the command that a user gave
        return rank(args)
    with tempfile.TemporaryDirectory(prefix="lgreco-transports-") as folder:
        lab = [sys.executable, str(_LAB), "--hosts", str(args.hosts), "--rate", args.rate, "--output", "rank0", "--"]
        command = [*lab, sys.executable, str(Path(__file__).resolve()), "--host", folder, *argv]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4, help="simulated, one rank each (default: %(default)s)")
    add("--rate", default="1gbit", help="of each link (default: %(default)s)")
    add("--plan", default="quantize(bits=4, block=512)", help="choice of all layers (default: %(default)s)")
    add("--cap", type=float, default=5.0, help="bucket_cap_mb (default: %(default)s)")
    add("--blocks", type=int, default=8, help="of each transport (default: %(default)s)")
    add("--block-steps", type=int, default=8, help="of one transport before the other's turn (default: %(default)s)")
    add("--width", type=int, default=256, help="of the GPT (default: %(default)s)")
    add("--layers", type=int, default=4, help="of the GPT (default: %(default)s)")
    add("--context", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    add("--batch", type=int, default=4, help="sequences per step and host (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
