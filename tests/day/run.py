"""Lives through the day: plays it, reconciles twice, erases, and tries to bring back what was erased."""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from aiohttp import web
from redis.asyncio import Redis
from standardwebhooks.webhooks import Webhook as StandardWebhook

from aftercall.cli.local import SIMULATOR_KEYS, simulated_configuration, start_valkey
from aftercall.keys import work_key
from simulator.day import make_day
from simulator.parts import Call, compact
from simulator.signing import HEADERS
from tests.contents import contents
from tests.servers import free_port
from tests.stack import ROOT, SECRET, worker_arguments

PROVIDERS = ("retell", "cartesia", "ultravox")
KEYS = {"retell": "RETELL_API_KEY", "cartesia": "CARTESIA_WEBHOOK_SECRET", "ultravox": "ULTRAVOX_WEBHOOK_SECRET"}
SETTLE_S = 4.0
# The record of an Ultravox call that deletes itself may be gone before a busy worker asks; ten minutes are not waited.
GIVE_UP = "import workers.record\nworkers.record.GIVE_UP_S = 20.0\n"
DUE_WITHIN_S = 120  # what is open for longer waits for an end that never comes
CALM_S = 0.4
DRAIN_S = 240.0
PLAY_S = 600.0
SINK = f"""
[sinks.hook]
type = "webhook"
url = "%s/hook"
secret = "{SECRET}"
events = ["*"]
allow_private_network = true
retry = ["1s", "1s", "2s"]

[retention]
settle_after = "%ss"
"""

Say = Callable[[str], None]


class Delivered(msgspec.Struct, frozen=True):
    """One event as the sink got it."""

    id: str
    type: str
    call: str
    provider_event: str | None
    via: str
    content: int  # a hash of its bytes
    at: float


class Day(msgspec.Struct, kw_only=True):
    """What happened, for the judgement."""

    calls: list[Call]
    played: dict[str, Any] = {}
    delivered: list[Delivered] = []
    reconciled: list[list[dict[str, str]]] = []  # what each round found
    erased: dict[str, bool] = {}  # call id → also at the provider
    erasing_ended: int = 0  # so many deliveries had been made
    words_before: int = 0  # erased calls of which some word was in Redis, before
    words_after: dict[str, list[str]] = {}  # marker → keys
    replayed: str = ""
    resent: Counter[int] = msgspec.field(default_factory=Counter)
    exit_codes: dict[str, int] = {}
    timings_s: dict[str, float] = {}


class Scene:
    """The processes and the sink."""

    def __init__(self, directory: Path, day: Day, environ: dict[str, str], redis: Redis) -> None:
        self.directory, self.day, self.redis = directory, day, redis
        self.environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, name: str, *arguments: str, read: bool = False) -> asyncio.subprocess.Process:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *arguments),
                env=self.environ,
                cwd=self.directory,
                stdout=asyncio.subprocess.PIPE if read else log,
                stderr=log,
                limit=64 * 1024 * 1024,
            )
        self.processes.append(process)
        return process

    async def command(self, *arguments: str) -> tuple[str, str]:
        """`aftercall …` as an operator gives it: what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aftercall.cli", *arguments),
            env=self.environ,
            cwd=self.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        name = " ".join(word for word in arguments[:2])
        self.day.exit_codes[name] = max(self.day.exit_codes.get(name, 0), process.returncode or 0)
        with (self.directory / "commands.log").open("a") as log:
            log.write(f"$ aftercall {' '.join(arguments)}\n{out.decode()}{err.decode()}exit {process.returncode}\n")
        return out.decode(), err.decode()

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        event = StandardWebhook(SECRET).verify(body, headers)
        data = event["data"]
        self.day.delivered.append(
            Delivered(
                event["id"],
                event["type"],
                event["subject"],
                data.get("provider_event"),
                data["via"],
                hash(body),
                time.monotonic(),
            )
        )
        return web.Response(status=204)

    async def drained(self) -> None:
        """When nothing is open that is due within minutes, and stays so for a moment."""
        lanes = [work_key(lane) for lane in ("process", "settle", "deliver:hook")]
        calm_since = time.monotonic()
        async with asyncio.timeout(DRAIN_S):
            while time.monotonic() - calm_since < CALM_S:
                latest = (time.time() + DUE_WITHIN_S) * 1000
                if sum([await self.redis.zcount(lane, "-inf", latest) for lane in lanes]):
                    calm_since = time.monotonic()
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.terminate()
        for process in self.processes:
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def receiving(scene: Scene) -> AsyncIterator[str]:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/hook", scene.receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def live_through(
    directory: Path, *, calls: int, drop: float, erase: int, seed: int, say: Say, settle_s: float = SETTLE_S
) -> Day:
    """The whole day; takes a little over a minute with 2,000 calls, and leaves logs in the directory."""
    day = Day(calls=make_day(seed, time.time(), calls))
    valkey = start_valkey()
    redis = Redis.from_url(valkey.connection_url)
    service, api = free_port(), free_port()
    scene = Scene(directory, day, _environ(valkey.connection_url, service), redis)
    began = time.monotonic()

    def note(what: str) -> None:
        day.timings_s[what] = time.monotonic() - began - sum(day.timings_s.values())
        say(f"{what}: {day.timings_s[what]:.1f} s")

    try:
        async with receiving(scene) as sink:
            toml = simulated_configuration(f"http://127.0.0.1:{api}", SINK % (sink, f"{settle_s:g}"))
            (directory / "aftercall.toml").write_text(toml)
            await scene.start("service", "-m", "service")
            await scene.start("worker", *worker_arguments(None, GIVE_UP))
            target = f"http://127.0.0.1:{service}"
            await _play(scene, target, api, seed, f"webhook * drop {drop:g}%")
            note("played")
            await scene.drained()
            note("settled")
            day.reconciled.append(await _reconcile(scene))
            await scene.drained()
            note("reconciled")
            day.reconciled.append(await _reconcile(scene))
            await scene.drained()
            note("reconciled again")
            await _erase(scene, erase)
            note("erased")
            await _bring_back(scene, target)
            note("tried to bring them back")
            day.words_after = await _words(scene, _erased(day))
    finally:
        await scene.close()
        await redis.aclose()
        valkey.stop()
    return day


def _environ(redis_url: str, port: int) -> dict[str, str]:
    return {**SIMULATOR_KEYS, "REDIS_URL": redis_url, "HOST": "127.0.0.1", "PORT": str(port)}


async def _play(scene: Scene, target: str, api: int, seed: int, *faults: str) -> None:
    """The simulator's own play, until its last webhook is answered."""
    rules = [word for fault in faults for word in ("--fault", fault)]
    what = ("--day", str(len(scene.day.calls)), "--seed", str(seed), "--port", str(api), "--play", target)
    simulator = await scene.start("simulator", "-m", "simulator", *what, *rules, read=True)
    assert simulator.stdout is not None
    async with asyncio.timeout(PLAY_S):
        while line := await simulator.stdout.readline():
            if b'{"played"' in line[:20]:
                scene.day.played = json.loads(line)["played"]
                return
    raise RuntimeError(f"the day was not played to its end: see {scene.directory / 'simulator.log'}")


async def _reconcile(scene: Scene) -> list[dict[str, str]]:
    """All accounts at once."""
    said = await asyncio.gather(
        *(
            scene.command("reconcile", provider, "--since", "2d", "--rate", "200/s", "--restart", "--json")
            for provider in PROVIDERS
        )
    )
    return [json.loads(line) for out, _ in said for line in out.splitlines()]


async def _erase(scene: Scene, count: int) -> None:
    """So many calls of which something was said, of all providers in turn, every other pair at the provider too."""
    day = scene.day
    held = [call for call in day.calls if call.story == "held"]
    chosen = held[:: max(1, len(held) // count)][:count]
    day.erased = {call.id: number // 3 % 2 == 0 for number, call in enumerate(chosen)}
    day.words_before = len(await _words(scene, chosen))
    commands = []
    for provider in PROVIDERS:
        for at_provider in (True, False):
            ids = [call.id for call in chosen if call.provider == provider and day.erased[call.id] is at_provider]
            if ids:
                commands.append(("erase", provider, *ids, *(["--at-provider"] if at_provider else [])))
    await asyncio.gather(*(scene.command(*words) for words in commands))
    await scene.drained()
    day.erasing_ended = len(day.delivered)


async def _bring_back(scene: Scene, target: str) -> None:
    """All that might: a replay of everything, the webhooks once more, and reconciling."""
    day = scene.day
    _, day.replayed = await scene.command("replay", "--since", "2d")
    await scene.drained()
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as http:
        for call in _erased(day):
            for webhook in call.webhooks:
                body = compact(webhook.payload).encode()
                signed = HEADERS[call.provider](body, SIMULATOR_KEYS[KEYS[call.provider]], time.time())
                headers = {"content-type": "application/json", **signed}
                answer = await http.post(f"{target}/webhooks/{call.provider}", content=body, headers=headers)
                day.resent[answer.status_code] += 1
    await scene.drained()
    day.reconciled.append(await _reconcile(scene))
    await scene.drained()


def _erased(day: Day) -> list[Call]:
    return [call for call in day.calls if call.id in day.erased]


async def _words(scene: Scene, calls: Collection[Call]) -> dict[str, list[str]]:
    """The markers of these calls that are in Redis, each with the keys that hold it."""
    markers: Sequence[bytes] = [str(call.marker).encode() for call in calls]
    found: dict[str, list[str]] = {}
    async for key, raw in contents(scene.redis):
        for marker in markers:
            if marker in raw:
                found.setdefault(marker.decode(), []).append(key)
    return found
