"""aftercall as a user runs it: `python -m service` and `python -m workers`, with vendors and a receiver on loopback.

The vendors here know nothing of aftercall's code, and sign with the standard library alone.
"""

import asyncio
import hashlib
import hmac
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from standardwebhooks.webhooks import Webhook as StandardWebhook

from aftercall.ledger import Ledger
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
SECRET = "whsec_c2l4dGVlbi1wbHVzLWVpZ2h0LWJ5dGVz"
KEYS = {
    "RETELL_KEY": "key_3f1c0a9d7b",
    "CARTESIA_KEY": "sk_car_51d0e2",
    "CARTESIA_SECRET": "kestrel-lantern-44",
    "ULTRAVOX_KEY": "aZ81.kk20dd",
    "ULTRAVOX_SECRET": "harbour-violet-19",
}
ACCOUNTS = """
[accounts.clinic]
provider = "retell"
api_key = "${RETELL_KEY}"
base_url = "%(vendor)s"
tags = { client = "clinic" }

[accounts.parcel]
provider = "cartesia"
api_key = "${CARTESIA_KEY}"
webhook_secrets = ["${CARTESIA_SECRET}"]
base_url = "%(vendor)s"

[accounts.ferry]
provider = "ultravox"
api_key = "${ULTRAVOX_KEY}"
webhook_secrets = ["${ULTRAVOX_SECRET}"]
base_url = "%(vendor)s"
"""
SINK = """
[sinks.hook]
type = "webhook"
url = "%(receiver)s"
secret = "%(secret)s"
allow_private_network = true
timeout = "2s"
retry = ["200ms", "200ms"]
"""

Answer = web.Response | Callable[[], web.Response]


class Vendor:
    """The record APIs. `records[path]` is the JSON; `faults[path]` are answers given first, one each."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.faults: dict[str, list[Callable[[], web.Response]]] = {}
        self.asked: Counter[str] = Counter()
        self.asked_at: defaultdict[str, list[float]] = defaultdict(list)
        self.delay_s = 0.0
        self.headers: dict[str, dict[str, str]] = {}

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path
        self.asked[path] += 1
        self.asked_at[path].append(time.monotonic())
        self.headers[path] = {name.lower(): value for name, value in request.headers.items()}
        await asyncio.sleep(self.delay_s)
        if self.faults.get(path):
            return self.faults[path].pop(0)()
        if path in self.records:
            return web.json_response(self.records[path])
        return web.json_response({"status": "error", "message": "not found"}, status=404)


class Receiver:
    """Where the webhook sink posts. Checks each signature with the standard's own library."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.arrived: list[float] = []
        self.answers: list[Callable[[], web.Response]] = []  # given first, one each
        self.delay_s = 0.0
        self.started = 0
        self.started_at: list[float] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.started += 1
        self.started_at.append(time.monotonic())
        body = await request.read()
        await asyncio.sleep(self.delay_s)
        headers = {name.lower(): value for name, value in request.headers.items()}
        event = StandardWebhook(SECRET).verify(body, headers)
        if self.answers:
            answer = self.answers.pop(0)()
            if answer.status >= 300:
                return answer
        self.events.append(event)
        self.headers.append(headers)
        self.arrived.append(time.monotonic())
        return web.Response(status=204)

    async def until(self, count: int, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """The events, when so many have come."""
        deadline = time.monotonic() + timeout_s
        while len(self.events) < count:
            assert time.monotonic() < deadline, f"{len(self.events)} of {count} events came within {timeout_s} s"
            await asyncio.sleep(0.005)
        return self.events

    async def stays_at(self, count: int, for_s: float = 0.7) -> None:
        """Nothing more comes."""
        await asyncio.sleep(for_s)
        assert len(self.events) == count


async def hang(_: web.Request) -> web.Response:
    """A destination that takes requests and never answers."""
    await asyncio.sleep(60)
    return web.Response()


class Stack:
    def __init__(self, directory: Path, redis_url: str) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.vendor = Vendor()
        self.receiver = Receiver()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.python_path = [str(ROOT)]
        self.ledgers: list[Ledger] = []  # closed at the end, also when the test fails
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "Stack":
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/hook", self.receiver.answer)
        app.router.add_post("/hang", hang)
        app.router.add_get("/{path:.*}", self.vendor.answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        port = free_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.loopback = f"http://127.0.0.1:{port}"
        self.http = aiohttp.ClientSession()
        self.configure(ACCOUNTS + SINK)
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for ledger in self.ledgers:
            await ledger.close()
        await self.http.close()
        assert self._runner is not None
        await self._runner.cleanup()
        await asyncio.sleep(0.01)  # a transport closes its socket in a turn of its own

    def configure(self, toml: str) -> None:
        values = {"vendor": self.loopback, "receiver": f"{self.loopback}/hook", "secret": SECRET}
        (self.directory / "aftercall.toml").write_text(toml % values)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(self.python_path),
            "REDIS_URL": self.redis_url,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            **KEYS,
        }

    def spawn(self, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self.environ, cwd=self.directory, stdout=stream, stderr=stream
            )
        self.processes.append(process)
        return process

    async def start_service(self, *, max_held_bytes: int | None = None, first: str = "") -> subprocess.Popen[bytes]:
        """The service; with `max_held_bytes` it takes less at once than in production. `first`: code to run first."""
        if max_held_bytes is not None:
            first += f"import service.webhooks; service.webhooks.MAX_HELD_BYTES = {max_held_bytes}\n"
        patched = f"{first}import sys, service.__main__\nsys.exit(service.__main__.main())"
        process = self.spawn(*(("-c", patched) if first else ("-m", "service")), log="service.log")
        for _ in range(1600):
            try:
                async with self.http.get(f"{self.url}/livez"):
                    return process
            except aiohttp.ClientConnectionError:
                assert process.poll() is None, self.log("service.log")
                await asyncio.sleep(0.025)
        raise AssertionError(self.log("service.log"))

    def start_worker(self, *, lease_s: float | None = None, first: str = "") -> subprocess.Popen[bytes]:
        """A worker; with `lease_s` its leases are shorter than in production, so that a test need not wait. `first` is
        code it runs first.
        """
        return self.spawn(*worker_arguments(lease_s, first), log="worker.log")

    async def start(self) -> None:
        self.start_worker()
        await self.start_service()

    async def median_s(self, call_ids: Iterable[str]) -> float:
        """From a webhook's post to its event at the receiver, for one call after the other."""
        taken = []
        for call_id in call_ids:
            have, started = len(self.receiver.events), time.perf_counter()
            await self.post("clinic", a_retell_call(call_id))
            await self.receiver.until(have + 1)
            taken.append(time.perf_counter() - started)
            await asyncio.sleep(0.02)
        return statistics.median(taken)

    def log(self, name: str) -> str:
        return (self.directory / name).read_text()

    async def post(
        self, account: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Post a webhook, signed as its provider does unless headers are given: status, problem, headers."""
        raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        signed = SIGN[account](raw) if headers is None and account in SIGN else headers or {}
        async with self.http.post(f"{self.url}/webhooks/{account}", data=io.BytesIO(raw), headers=signed) as response:
            content = await response.read()
            problem = json.loads(content) if content else {}
            return response.status, problem, {name.lower(): value for name, value in response.headers.items()}


def worker_arguments(lease_s: float | None = None, first: str = "") -> tuple[str, ...]:
    """What Python is to run for a worker, with leases of that length, and with code to run first."""
    if lease_s is not None:
        first += "import workers.main, workers.process\n"
        first += f"workers.main.LEASE_S = workers.process.LEASE_S = {lease_s}\n"
    patched = f"{first}import sys, workers.__main__\nsys.exit(workers.__main__.main())"
    return ("-c", patched) if first else ("-m", "workers")


def sign_retell(body: bytes, *, key: str = KEYS["RETELL_KEY"], at: float | None = None) -> dict[str, str]:
    stamp = str(int((at or time.time()) * 1000))
    return {"x-retell-signature": f"v={stamp},d={hmac.new(key.encode(), body + stamp.encode(), 'sha256').hexdigest()}"}


def sign_cartesia(body: bytes) -> dict[str, str]:
    return {"X-Webhook-Secret": KEYS["CARTESIA_SECRET"]}


def sign_ultravox(body: bytes, *, at: float | None = None) -> dict[str, str]:
    stamp = datetime.fromtimestamp(at or time.time(), UTC).isoformat()
    digest = hmac.new(KEYS["ULTRAVOX_SECRET"].encode(), body + stamp.encode(), hashlib.sha256).hexdigest()
    return {"X-Ultravox-Webhook-Timestamp": stamp, "X-Ultravox-Webhook-Signature": digest}


SIGN: dict[str, Callable[[bytes], dict[str, str]]] = {
    "clinic": sign_retell,
    "parcel": sign_cartesia,
    "ferry": sign_ultravox,
}


def fixture(provider: str, name: str) -> Any:
    return json.loads((ROOT / "tests" / "fixtures" / provider / f"{name}.json").read_text())


def a_retell_call(call_id: str, **changes: Any) -> dict[str, Any]:
    """A `call_ended` webhook."""
    payload: dict[str, Any] = fixture("retell", "call_ended")
    payload["call"] |= {"call_id": call_id, **changes}
    return payload
