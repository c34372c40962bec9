"""One host of the step benchmark: a process for each variant and each of its ranks, each waiting for its turn.

The lab starts this file once on each host. Forking after torch is imported costs a fraction of starting anew, and a
variant that dies takes nobody with it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, NoReturn

from proof_methods import TextJob, TextStep
from step_methods import Job, Step
from step_turns import SETTINGS_NAME, SOCKET_NAME, Block, Variant, log_path

_FIRST_PORT = 29600
_INTERFACE = os.environ.get("GLOO_SOCKET_IFNAME", "eth0")


def main(folder: Path) -> None:
    """Starts the variants and outlives them, so that the lab goes on when one dies."""
    settings = json.loads((folder / SETTINGS_NAME).read_text(encoding="utf-8"))
    host, hosts, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), settings["ranks_per_host"]
    logs = {}
    for index, fields in enumerate(settings["variants"]):
        for rank in range(host * count, (host + 1) * count):
            variant = Variant(**fields)
            log = log_path(folder, variant, rank)
            pid = os.fork()
            if not pid:
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(hosts * count), LOCAL_WORLD_SIZE=str(count))
                _serve(folder, settings["job"], variant, index, log)
            logs[pid] = log
    while logs:
        pid, raw = os.wait()
        code = os.waitstatus_to_exitcode(raw)
        with logs.pop(pid).open("a", encoding="utf-8") as log_file:
            if code < 0:
                log_file.write(f"killed by {signal.Signals(-code).name}\n")


def _serve(folder: Path, job: dict[str, Any], variant: Variant, index: int, log: Path) -> NoReturn:
    """Builds a variant, then runs blocks of steps as they are asked for; never returns."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        connection = Client(str(folder / SOCKET_NAME), family="AF_UNIX")
        connection.send((variant, int(os.environ["RANK"])))
        step = _step_of(job, variant, _FIRST_PORT + index)
        connection.send(None)
        while (asked := connection.recv()) is not None:
            connection.send(_run_block(step, *asked))
    except EOFError:
        # The benchmark is gone.
        pass
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # The other ranks may be gone already: nothing collective, no destructors.
    os._exit(0)


def _step_of(job: dict[str, Any], variant: Variant, port: int) -> Step:
    return TextStep(TextJob(**job), variant, port) if "text" in job else Step(Job(**job), variant, port)


def _run_block(step: Step, lead_in: int, steps: int) -> Block:
    step.prepare()
    for _ in range(lead_in):
        step.run()
    step_ms: list[float] = []
    cpu_s, link_bytes = _cpu_s(), _link_bytes()
    for _ in range(steps):
        start = time.perf_counter()
        step.run()
        step_ms.append(1e3 * (time.perf_counter() - start))
    block = Block(
        step_ms=step_ms,
        cpu_ms=1e3 * (_cpu_s() - cpu_s) / max(1, steps),
        link_bytes=(_link_bytes() - link_bytes) / max(1, steps),
        wire_bytes=step.wire_bytes(lead_in + steps) if lead_in + steps else 0.0,
    )
    return replace(block, loss=step.validation_loss() if steps else None)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _link_bytes() -> int:
    # /sys shows the namespace it was mounted in, /proc/self/net that of the reader.
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == _INTERFACE:
            return int(counters.split()[8])
    raise RuntimeError(f"no interface {_INTERFACE} in /proc/self/net/dev")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
