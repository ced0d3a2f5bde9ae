"""`aftercall demo`: calls of all three providers, from signed webhook to sink, on this machine, in under a minute."""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from aftercall.cli.local import (
    SIMULATOR_KEYS,
    Processes,
    check_checkout,
    free_port,
    simulated_configuration,
    start_valkey,
)
from aftercall.event import CallEvent, decode
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from aftercall.sinks.console_lines import render

SINK = '[sinks.console]\ntype = "console"\nformat = "json"\nevents = ["*"]\n\n[retention]\nsettle_after = "3s"\n'
PLAY_TIMEOUT_S = 90.0
ARRIVAL_TIMEOUT_S = 30.0
LATE_COPIES_S = 1.5  # how long to listen on for an event that comes a second time

Fact = tuple[str, str, str]  # account, call id, the provider's word
SETTLED = "call.settled"  # which is no provider's word


@click.command("demo")
@click.option("--seed", default=1, show_default=True, help="Which calls are played.")
def command(seed: int) -> None:
    """Play a dozen calls from three simulated providers through a real service, worker and Valkey.

    On a terminal it stays up afterwards; otherwise it exits 0 only if every event arrived exactly once.
    """
    check_checkout()
    try:
        code = asyncio.run(run_demo(seed))
    except KeyboardInterrupt:
        click.echo("\nStopped.", err=True)
        code = 130
    sys.exit(code)


async def run_demo(seed: int) -> int:
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with tempfile.TemporaryDirectory(prefix="aftercall-demo-") as directory:
        valkey = start_valkey()
        try:
            return await _play(Path(directory), valkey.connection_url, seed, on_terminal)
        finally:
            valkey.stop()


async def _play(directory: Path, redis_url: str, seed: int, on_terminal: bool) -> int:
    port = free_port()
    config = directory / "aftercall.toml"
    environ = {
        **SIMULATOR_KEYS,
        "REDIS_URL": redis_url,
        "AFTERCALL_CONFIG": str(config),
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    url = f"http://127.0.0.1:{port}"
    with (
        (directory / "service.log").open("wb") as service_log,
        (directory / "simulator.log").open("wb") as simulator_log,
    ):
        async with Processes(environ) as processes:
            simulator = await processes.start(
                "simulator", "--port", "0", "--seed", str(seed), "--play", url, stderr=simulator_log, read=True
            )
            listening = msgspec.json.decode(await _line(simulator) or b"{}").get("listening")
            if not listening:
                return _failed(directory, "the simulator did not start")
            config.write_text(simulated_configuration(listening, SINK))
            await processes.start("service", stderr=service_log)
            worker = await processes.start("workers", stderr=asyncio.subprocess.PIPE, read=True)
            watch = Watch()
            watching = [
                asyncio.create_task(watch.read_events(worker)),
                asyncio.create_task(watch.read_log(worker)),
                asyncio.create_task(watch.read_play(simulator)),
            ]
            try:
                await watch.until_complete()
                counters = await _counters(redis_url)
            finally:
                for task in watching:
                    task.cancel()
            if not watch.facts:
                return _failed(directory, "the calls were not played to their end")
            _report(watch, counters)
            missing, doubled = watch.verdict()
            for fact in missing:
                click.echo(f"missing: {' '.join(fact)}", err=True)
            for fact in doubled:
                click.echo(f"more than once: {' '.join(fact)}", err=True)
            if on_terminal:
                await _stay(url)
            return 1 if missing or doubled else 0


class Watch:
    """What was sent and what arrived."""

    def __init__(self) -> None:
        self.arrived: list[tuple[float, CallEvent]] = []
        self.facts: dict[Fact, float] = {}  # what must arrive, and when it was first sent
        self.settling: set[Fact] = set()  # and once for each of these calls, when all of it is known
        self.calls = 0
        self.webhooks = 0
        self.refused = 0
        self.retried = 0
        self._played = asyncio.Event()
        self._news = asyncio.Event()

    async def read_events(self, worker: asyncio.subprocess.Process) -> None:
        """Each line of the worker's stdout is an event that reached the console sink."""
        while line := await _line(worker):
            event = decode(line)
            self.arrived.append((time.time(), event))
            click.echo(render(event, colour=None if sys.stdout.isatty() else False))
            self._news.set()

    async def read_log(self, worker: asyncio.subprocess.Process) -> None:
        """Show what the worker could not do at once."""
        assert worker.stderr is not None  # noqa: S101 - it was started with a pipe
        while line := await worker.stderr.readline():
            entry = _json(line)
            if entry.get("event") == "record_deferred":
                self.retried += 1
                click.echo(f"         … {entry['account']}: {entry['reason']}, again in {entry['wait_s']:.1f} s")
            elif entry.get("level") in ("warning", "error"):
                click.echo(f"         ! {line.decode().strip()}", err=True)

    async def read_play(self, simulator: asyncio.subprocess.Process) -> None:
        while line := await _line(simulator):
            played = _json(line).get("played")
            if played:
                self.calls, self.webhooks, self.refused = played["calls"], played["webhooks"], played.get("refused", 0)
                for fact in played["facts"]:
                    self.facts[fact["account"], fact["call_id"], fact["event"]] = fact["at"]
                    if fact["type"] == "call.ended":
                        self.settling.add((fact["account"], fact["call_id"], SETTLED))
                self._played.set()

    async def until_complete(self) -> None:
        """Until everything arrived and nothing comes twice, or for as long as that may take."""
        try:
            await asyncio.wait_for(self._played.wait(), PLAY_TIMEOUT_S)
        except TimeoutError:
            return
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while self.verdict()[0] and (left := deadline - time.monotonic()) > 0:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                break
        await asyncio.sleep(LATE_COPIES_S)

    def verdict(self) -> tuple[list[Fact], list[Fact]]:
        """The facts that did not arrive, and those that arrived more than once or were never sent."""
        seen = Counter(_fact(event) for _, event in self.arrived)
        due = {*self.facts, *self.settling}
        return [fact for fact in due if not seen[fact]], [
            fact for fact, count in seen.items() if count > 1 or fact not in due
        ]

    def latencies_ms(self) -> list[float]:
        sent = ((at, self.facts.get(_fact(event))) for at, event in self.arrived)
        return sorted((at - first) * 1000 for at, first in sent if first is not None)


def _fact(event: CallEvent) -> Fact:
    return event.data.call.account, event.subject, event.data.provider_event or SETTLED


def _report(watch: Watch, counters: dict[tuple[str, str], int]) -> None:
    latencies = watch.latencies_ms()
    table = Table(show_header=False, title="aftercall demo", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    rows: list[tuple[str, int | str]] = [
        ("calls", watch.calls),
        ("webhooks received", watch.webhooks),
        ("duplicates suppressed", sum(count for (what, _), count in counters.items() if what == "duplicate")),
        ("forged webhooks refused", watch.refused),
        ("records fetched again later", watch.retried),
        ("events delivered", len(watch.arrived)),
    ]
    if latencies:
        rows.append(("webhook → sink, p50", f"{_percentile(latencies, 50):.0f} ms"))
        rows.append(("webhook → sink, p99 (records that came late included)", f"{_percentile(latencies, 99):.0f} ms"))
    for name, value in rows:
        table.add_row(name, str(value))
    Console(soft_wrap=True).print("", table)


def _percentile(ordered: list[float], percent: int) -> float:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def _counters(redis_url: str) -> dict[tuple[str, str], int]:
    ledger = Ledger(connect(redis_url), retention_s=60)
    try:
        return await ledger.counters()
    finally:
        await ledger.close()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    return await process.stdout.readline()


def _json(line: bytes) -> dict[str, Any]:
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return entry if isinstance(entry, dict) else {}


async def _stay(url: str) -> None:
    click.echo(f"\nStill running. The service's API is described at {url}/schema, its health at {url}/readyz.")
    click.echo("Press Ctrl-C to stop.")
    await asyncio.Event().wait()


def _failed(directory: Path, why: str) -> int:
    click.echo(f"The demo failed: {why}.", err=True)
    for log in sorted(directory.glob("*.log")):
        click.echo(f"--- {log.name}\n{log.read_text()[-4000:]}", err=True)
    return 1
