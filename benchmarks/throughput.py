"""Rounds of webhooks against the contestants in turn, each with a fresh Valkey and a fresh process."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from redis.asyncio import Redis

from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from benchmarks.processes import ROOT, BenchmarkError, cpu_s, free_port, python, valkey, wait_for_answer
from benchmarks.webhooks import KEY, PATH

UVICORN = ("--http", "httptools", "--loop", "uvloop", "--no-access-log", "--no-server-header", "--log-level", "warning")


class Contestant(NamedTuple):
    name: str
    arguments: tuple[str, ...]  # of `python`; PORT and REDIS_URL are in the environment, and {port} is replaced
    ready: str  # a path that answers when it is ready
    stored: Callable[[str], Coroutine[Any, Any, int]]  # how many webhooks the Valkey at this URL holds


class Round(NamedTuple):
    """What one contestant did in one round."""

    per_s: float
    p50_s: float
    p99_s: float
    cpu_s: float | None  # of the server process, for one webhook


async def stored_by_aftercall(url: str) -> int:
    ledger = Ledger(connect(url), retention_s=60)
    try:
        counters = await ledger.counters()
        open_work = await ledger.open_work(["process"])
    finally:
        await ledger.close()
    accepted = counters.get(("accepted", "retell"), 0)
    if open_work["process"][0] != accepted or ("duplicate", "retell") in counters:
        raise BenchmarkError(f"the ledger disagrees with itself: {counters}, {open_work} open")
    return accepted


def members_of(key: str) -> Callable[[str], Coroutine[Any, Any, int]]:
    async def count(url: str) -> int:
        async with Redis.from_url(url) as redis:
            return int(await redis.zcard(key))

    return count


CONTESTANTS = (
    Contestant(
        "bare", ("-m", "uvicorn", "benchmarks.bare:app", "--port", "{port}", *UVICORN), PATH, members_of("bare:index")
    ),
    Contestant("aftercall", ("-m", "service"), "/readyz", stored_by_aftercall),
    Contestant(
        "fastapi",
        ("-m", "uvicorn", "benchmarks.fastapi_arq:app", "--port", "{port}", *UVICORN),
        PATH,
        members_of("arq:queue"),
    ),
)


def run_round(contestant: Contestant, seconds: float, seed: int) -> Round:
    """One round; raises `BenchmarkError` if a webhook was refused, or answered 204 and not stored."""
    port = free_port()
    with valkey() as url:
        environ = {"REDIS_URL": url, "HOST": "127.0.0.1", "PORT": str(port), "RETELL_API_KEY": KEY}
        with python(*(part.format(port=port) for part in contestant.arguments), environ=environ) as server:
            wait_for_answer(server, f"http://127.0.0.1:{port}{contestant.ready}")
            before_s = cpu_s(server)
            generator = subprocess.run(
                [sys.executable, "-m", "benchmarks.load", str(port), str(seconds), str(seed)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds + 60,
                check=False,
            )
            after_s = cpu_s(server)
            if generator.returncode:
                raise BenchmarkError(f"the load generator failed:\n{generator.stderr[-2000:]}")
            figures = json.loads(generator.stdout)
            if figures["failures"] or not figures["answers"]:
                raise BenchmarkError(f"{contestant.name} did not answer 204: {figures['failures']}")
        stored = asyncio.run(contestant.stored(url))
    if stored != figures["answers"]:
        raise BenchmarkError(f"{contestant.name} answered {figures['answers']} webhooks 204 and stored {stored}")
    return Round(
        per_s=figures["per_s"],
        p50_s=figures["p50_s"],
        p99_s=figures["p99_s"],
        cpu_s=None if before_s is None or after_s is None else (after_s - before_s) / figures["answers"],
    )
