"""`python -m tests.chaos` carries a plan of faults out and verifies it; exit 1 names each promise broken, and the ids.

`… soak` does it for minutes at a steady rate, `… verify DIRECTORY` looks once more at what a run left behind.
"""
# ruff: noqa: T201 - it prints

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.plan import MIN_FAULTS, Options, describe, make_plan
from tests.chaos.report import table
from tests.chaos.run import carry_out, to_stderr
from tests.chaos.soak import soak_options


def main() -> int:
    name, arguments = "chaos", sys.argv[1:]
    if arguments and arguments[0] in ("soak", "verify"):
        name, arguments = arguments[0], arguments[1:]
    parser = argparse.ArgumentParser(prog=f"python -m tests.chaos {name}".removesuffix(" chaos"), description=__doc__)
    if name == "verify":
        parser.add_argument("directory", type=Path)
        return verify(parser.parse_args(arguments).directory)
    parser.add_argument("--seed", type=int, default=1, help="the same seed (and numbers) is the same plan")
    parser.add_argument("--server", choices=("redis", "valkey"), default="redis", help="redis: Debian's redis-server")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="keep the facts there; default: a new one, gone if all is well")
    make = soak if name == "soak" else chaos
    options, directory = make(parser, arguments)
    return run(options, directory)


def chaos(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[Options, Path | None]:
    parser.add_argument("--webhooks", type=int, default=5000, help="distinct facts; copies come on top")
    parser.add_argument("--seconds", type=float, default=120.0, help="over which they and the faults are spread")
    parser.add_argument("--fast", action="store_true", help="post as fast as it goes")
    parser.add_argument("--kills", type=int, default=30, help=f"how many faults; {MIN_FAULTS} hold each kind once")
    parser.add_argument("--outage", type=float, default=0.0, help="one failure of Redis of so many seconds besides")
    parser.add_argument("--stall", type=float, default=0.0, help="one worker frozen for so many seconds besides")
    parser.add_argument("--flaky", choices=("phases", "requests", "either"), default="either", help="that sink's turns")
    parser.add_argument("--services", type=int, default=1)
    parser.add_argument("--lease", type=float, help="shorter leases than in production, in seconds")
    parser.add_argument("--doubles", type=float, default=0.5, help="per cent of the deliveries that may come twice")
    parser.add_argument("--drain", type=float, default=240.0, help="seconds until nothing may be open any more")
    given = parser.parse_args(arguments)
    options = Options(
        seed=given.seed,
        server=given.server,
        webhooks=given.webhooks,
        seconds=given.seconds,
        fast=given.fast,
        faults=given.kills,
        outage_s=given.outage,
        stall_s=given.stall,
        flaky=given.flaky,
        workers=given.workers,
        services=given.services,
        lease_s=given.lease,
        doubles=given.doubles / 100,
        drain_s=given.drain,
    )
    return options, given.directory


def soak(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[Options, Path | None]:
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=50.0, help="distinct facts a second; copies come on top")
    parser.add_argument("--kills", type=int, default=0, help="how many faults")
    parser.add_argument("--retention", type=int, help="of events, in seconds; default: a fifth of the time")
    given = parser.parse_args(arguments)
    options = soak_options(
        seed=given.seed,
        server=given.server,
        minutes=given.minutes,
        rate=given.rate,
        faults=given.kills,
        retention_s=given.retention,
        workers=given.workers,
    )
    return options, given.directory


def run(options: Options, directory: Path | None) -> int:
    plan = make_plan(options)
    print(describe(plan), flush=True)
    kept = (directory or Path(tempfile.mkdtemp(prefix="aftercall-chaos-"))).resolve()  # each process has its own cwd
    kept.mkdir(parents=True, exist_ok=True)
    if any(kept.iterdir()):
        print(f"{kept} is not empty: name a new directory", file=sys.stderr)
        return 2
    try:
        asyncio.run(carry_out(plan, kept, to_stderr))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(f"interrupted; what was seen is in {kept}", file=sys.stderr)
        return 130
    # By a program of its own, so that it can know nothing but what is in the files.
    status = subprocess.run([sys.executable, "-m", "tests.chaos", "verify", str(kept)], check=False).returncode
    if status == 0 and directory is None:
        shutil.rmtree(kept)
    return status


def verify(directory: Path) -> int:
    text, good = table(directory)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
