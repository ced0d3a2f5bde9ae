"""Carries a plan out: starts everything, posts, breaks, waits until nothing is open, asks the operator's commands."""

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.chaos import plan as plans
from tests.chaos.facts import (
    Clock,
    Command,
    CommandLine,
    Fault,
    Life,
    Post,
    Pulse,
    Sample,
    Writer,
    write_json,
)
from tests.chaos.outside import Ports, Run
from tests.chaos.processes import Breaker, Server, Supervised, low_port, note_words, python, sample
from tests.chaos.provider import Provider
from tests.stack import ACCOUNTS, KEYS, ROOT, SECRET, worker_arguments

READY_S = 60.0
CALM_S = 2.0  # nothing may be open for so long
LATE_S = 240.0  # so much longer than planned the posting may take
COMMAND_S = 300.0

# Long enough for the flaky sink to be well again; every wait is short, so that the run is.
RETRY = '["500ms", "500ms", "1s", "1s", "2s", ' + ", ".join(['"3s"'] * 120) + "]"
SINK = """
[sinks.{name}]
type = "webhook"
url = "{url}/sinks/{name}"
secret = "{secret}"
allow_private_network = true
timeout = "{timeout}"
retry = {retry}
"""

Say = Callable[[str], None]


def configuration(options: plans.Options, ports: Ports) -> str:
    """The `aftercall.toml` of the run."""
    main, flaky = (f"http://127.0.0.1:{port}" for port in (ports.main, ports.flaky))
    sinks = "".join(
        SINK.format(
            name=name,
            url=flaky if name == "flaky" else main,
            secret=SECRET,
            timeout="1500ms" if name == "flaky" else "10s",
            retry=RETRY,
        )
        for name in options.sinks
    )
    settle_after_ms = round(options.settle_after_s * 1000)
    retention = f'\n[retention]\nevents = "{options.retention_s}s"\nsettle_after = "{settle_after_ms}ms"\n'
    return ACCOUNTS % {"vendor": main} + sinks + retention


class Scene:
    """Everything that runs, from the server to the world outside."""

    def __init__(self, plan: plans.Plan, directory: Path, clock: Clock) -> None:
        self.plan, self.directory, self.clock = plan, directory, clock
        options = plan.options
        self.facts = Writer(directory, Post, Pulse, Fault, Life, Sample, CommandLine, Command)
        self.ports = Ports(main=low_port(), flaky=low_port())
        self.server = self._server = Server(
            options.server, port=low_port(), directory=directory, clock=clock, facts=self.facts
        )
        (directory / "aftercall.toml").write_text(configuration(options, self.ports))
        self.urls: list[str] = []
        self.under_test: dict[str, Supervised] = {"redis": self.server}
        for number in range(1, options.services + 1):
            port = low_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self._add(f"service-{number}", python("-m", "service"), PORT=str(port))
        for number in range(1, options.workers + 1):
            self._add(f"worker-{number}", python(*worker_arguments(options.lease_s)))
        self.outside = self._make("outside", python("-m", "tests.chaos.outside", str(directory)))

    def _add(self, name: str, command: list[str], **environ: str) -> None:
        self.under_test[name] = self._make(name, command, **environ)

    def _make(self, name: str, command: list[str], **environ: str) -> Supervised:
        return Supervised(
            name,
            command,
            environ=self.environ | environ,
            directory=self.directory,
            clock=self.clock,
            facts=self.facts,
        )

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": self.server.url,
            "HOST": "127.0.0.1",
            **KEYS,
        }

    async def start(self) -> None:
        """Redis, services and workers; then the clock begins, and with it the world outside."""
        for process in self.under_test.values():
            process.start()
            if process is self.server:
                await self.server.answers()
        async with aiohttp.ClientSession() as http:
            for url in self.urls:
                await until(http, f"{url}/readyz")
            self.clock.restart()
            run = Run(options=self.plan.options, plan=self.plan.digest, began=self.clock.began, ports=self.ports)
            write_json(self.directory / "run.json", run)
            self.outside.start()
            await until(http, f"http://127.0.0.1:{self.ports.main}/alive")

    async def stop(self) -> None:
        """As a platform stops things: first what takes work, last what it needs."""
        tested = [process for process in self.under_test.values() if process is not self.server]
        await asyncio.gather(*(process.stop() for process in tested))
        await self.outside.stop()
        await self.server.stop()

    def destroy(self) -> None:
        for process in (*self.under_test.values(), self.outside):
            process.destroy()

    async def open_work(self, http: aiohttp.ClientSession) -> dict[str, float] | None:
        """`aftercall_open_work` by lane; None: /metrics does not answer now."""
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with http.get(f"{self.urls[0]}/metrics", timeout=aiohttp.ClientTimeout(total=10)) as response:
                text = await response.text()
                if response.status == 200:
                    (self.directory / "metrics.txt").write_text(text)
                    found = re.findall(r'^aftercall_open_work\{lane="([^"]+)"\} (\S+)', text, re.MULTILINE)
                    return {lane: float(count) for lane, count in found}
        return None

    async def command(self, name: str, *arguments: str) -> None:
        """Run a command of the operator's and keep its output."""
        began_s = self.clock()
        with (self.directory / f"{name}.out").open("wb") as out, (self.directory / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *python("-m", "aftercall.cli", *arguments), env=self.environ, cwd=self.directory, stdout=out, stderr=log
            )
            note_words(name, process.pid, set(), self.facts)
            try:
                status = await asyncio.wait_for(process.wait(), COMMAND_S)
            except TimeoutError:
                process.kill()
                status = await process.wait()
        self.facts.write(Command(name=name, status=status, took_s=round(self.clock() - began_s, 2)))


async def until(http: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            with suppress(aiohttp.ClientError, OSError):
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


async def carry_out(plan: plans.Plan, directory: Path, say: Say) -> None:
    """Run the plan; all that was seen is in the directory afterwards."""
    if plan.options.server == "redis" and shutil.which("redis-server") is None:
        raise SystemExit("redis-server is not installed: apt install redis-server, or use --server valkey")
    clock = Clock(0.0)
    clock.restart()
    scene = Scene(plan, directory, clock)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asyncio.current_task().cancel)  # type: ignore[union-attr]
    try:
        await scene.start()
        provider = Provider(plan, scene.urls, clock, scene.facts)
        watching = [
            asyncio.create_task(provider.watch()),
            asyncio.create_task(sample([*scene.under_test.values(), scene.outside], scene.server, clock, scene.facts)),
        ]
        breaking = asyncio.create_task(break_all(plan, scene, say))
        await provider.play(plan.options.seconds + LATE_S)
        await breaking
        say(f"{clock():7.2f} s  everything is posted; {provider.open} were never accepted")
        await drain(scene, say)
        await scene.command("dead", "dead", "list", "--json")
        if not plan.options.soak:  # by then most of them are past their retention
            await scene.command("events", "events", "list", "--json", "--limit", str(10 * plan.options.webhooks))
        for task in watching:
            task.cancel()
        await scene.stop()
    finally:
        scene.destroy()
        scene.facts.close()


async def break_all(plan: plans.Plan, scene: Scene, say: Say) -> None:
    breaker = Breaker(scene.under_test, scene.server, scene.clock)

    async def one(planned: plans.Break) -> None:
        await asyncio.sleep(planned.at_s - scene.clock())
        fault = await breaker.carry_out(planned)
        scene.facts.write(fault)
        say(f"{fault.at_s:7.2f} s  {fault.kind} {fault.target}, over after {fault.until_s - fault.at_s:.2f} s")

    await asyncio.gather(*(one(planned) for planned in plan.breaks))


async def drain(scene: Scene, say: Say) -> None:
    """Wait until nothing is open, for a while, or until the time is up."""
    deadline_s = scene.clock() + scene.plan.options.drain_s
    calm_since_s: float | None = None
    async with aiohttp.ClientSession() as http:
        while scene.clock() < deadline_s:
            opened = await scene.open_work(http)
            if opened is None or sum(opened.values()) > 0:
                calm_since_s = None
            elif calm_since_s is None:
                calm_since_s = scene.clock()
            elif scene.clock() - calm_since_s >= CALM_S:
                say(f"{scene.clock():7.2f} s  nothing is open any more")
                return
            await asyncio.sleep(0.5)
    say(f"{scene.clock():7.2f} s  still open: {opened}")


def to_stderr(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
