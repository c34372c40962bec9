"""Trains a byte-level GPT, dense and compressed side by side; start it with torchrun.

torchrun --standalone --nproc-per-node 2 launch/train.py --config configs/quickstart.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from lgreco.demo.display import Display
from lgreco.demo.job import run_job
from lgreco.demo.ranks import joined, launched_rank
from lgreco.demo.settings import load_settings

_REFUSED, _INTERRUPTED = 2, 130


def main() -> int:
    """Reads the command line and runs the job; the exit status."""
    options = _parser().parse_args()
    assignments = list(options.set)
    if options.data:
        assignments.append(f"data.source={json.dumps(options.data)}")
    if options.out:
        assignments.append(f"out={json.dumps(options.out)}")
    try:
        settings = load_settings(options.config, assignments)
        with joined(settings.device) as ranks:
            run_job(settings, ranks, Display(Console(quiet=not ranks.leads)), options.resume)
    except ValueError as error:
        # Every rank says it: the launcher ends the others as soon as one has failed, perhaps before rank 0 spoke.
        print(f"error on rank {launched_rank()}: {error}", file=sys.stderr)
        return _REFUSED
    except KeyboardInterrupt:
        if launched_rank() == 0:
            print("interrupted: the same command with --resume goes on from the newest checkpoint", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as configs/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.steps=50")
    parser.add_argument("--data", metavar="PATH", help="a text file or a folder of text files to train on")
    parser.add_argument("--out", metavar="FOLDER", help="where results go")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of each run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
