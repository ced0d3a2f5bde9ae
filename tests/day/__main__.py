"""`python -m tests.day`: a day of 2,000 calls, a fifth of its webhooks lost, reconciled and erased; exit 1 if not kept.

What the processes wrote stays in `--directory`; without one it is kept only if a promise was broken.
"""
# ruff: noqa: T201 - it prints

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from tests.day.judge import table
from tests.day.run import live_through


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.day", description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--drop", type=float, default=20.0, help="per cent of the webhooks that are lost")
    parser.add_argument("--erase", type=int, default=50, help="how many calls are erased")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="keep the processes' logs there")
    given = parser.parse_args()
    directory = given.directory or Path(tempfile.mkdtemp(prefix="aftercall-day-"))
    directory.mkdir(parents=True, exist_ok=True)
    day = asyncio.run(
        live_through(
            directory,
            calls=given.calls,
            drop=given.drop,
            erase=given.erase,
            seed=given.seed,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    )
    text, kept = table(day)
    print(text)
    if kept and given.directory is None:
        shutil.rmtree(directory)
    else:
        print(f"logs: {directory}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
