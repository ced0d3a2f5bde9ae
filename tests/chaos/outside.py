"""The world around aftercall, in a process that survives everything: the record APIs and the sinks' receivers.

`python -m tests.chaos.outside DIRECTORY` serves the plan of that run, and writes down every request.
"""

import asyncio
import base64
import hashlib
import hmac
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import msgspec
from aiohttp import web

from tests.chaos.facts import Arrival, Clock, Fetch, Writer
from tests.chaos.plan import Options, Plan, make_plan
from tests.stack import SECRET

TOLERANCE_S = 300
SLOW_SINK_S = 0.3
SLOW_RECORD_S = 1.5
NEVER_S = 3600.0
# What the flaky sink does when it decides at each request; it is well in three of five.
MODES = ("well",) * 6 + ("error", "hang", "busy", "reset")

_KEY = base64.b64decode(SECRET.removeprefix("whsec_"))


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where it serves: everything but the flaky sink at `main`, so that the flaky one can refuse connections."""

    main: int
    flaky: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one run agree on (`run.json`)."""

    options: Options
    plan: str
    began: float
    ports: Ports


class _Data(msgspec.Struct):
    sequence: int
    complete: bool
    provider_event: str | None = None


class _Event(msgspec.Struct):
    id: str
    source: str
    type: str
    subject: str
    data: _Data


_decoder = msgspec.json.Decoder(_Event)


class Outside:
    def __init__(self, plan: Plan, clock: Clock, facts: Writer, ports: Ports) -> None:
        self.plan = plan
        self.clock = clock
        self.facts = facts
        self.ports = ports
        self.asked: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.at_flaky: dict[int, web.Request] = {}  # under way there

    async def record(self, request: web.Request) -> web.StreamResponse:
        """What a vendor's API answers; the first requests for some calls meet a fault."""
        path = request.path
        call_id = path.removesuffix("/messages").rpartition("/")[2]
        faults = self.plan.record_faults.get(call_id, ())
        turn, at_s, answer = self.asked[call_id], self.clock(), 0
        self.asked[call_id] += 1
        fault = faults[turn] if turn < len(faults) else ""
        try:
            if fault == "hang":
                await asyncio.sleep(NEVER_S)
            if fault == "slow":
                await asyncio.sleep(SLOW_RECORD_S)
            elif fault:
                answer = int(fault)
                return web.json_response(
                    {"message": "later"}, status=answer, headers={"Retry-After": "1"} if answer == 429 else {}
                )
            body = self.plan.records.get(path)
            answer = 404 if body is None else 200
            return web.Response(status=answer, body=body or b"{}", content_type="application/json")
        finally:
            self.facts.write(Fetch(call_id=call_id, at_s=at_s, until_s=self.clock(), answer=answer))

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """One attempt at a sink."""
        sink = request.match_info["sink"]
        body = await request.read()
        event, at_s, answer = _decoder.decode(body), self.clock(), 0
        signed = is_signed(request, event.id, body)
        if sink == "flaky":
            self.at_flaky[id(request)] = request
        try:
            mode = self.mode(sink, event.id)
            if mode == "hang":
                await asyncio.sleep(NEVER_S)
            if mode in ("reset", "refuse"):
                return cut(request)
            if mode == "slow":
                await asyncio.sleep(SLOW_SINK_S)
            answer = {"error": 500, "busy": 429, "refusing": 400}.get(mode, 204)
            return web.Response(status=answer, headers={"Retry-After": "1"} if answer == 429 else {})
        finally:
            self.at_flaky.pop(id(request), None)
            self.facts.write(
                Arrival(
                    sink=sink,
                    id=event.id,
                    at_s=at_s,
                    until_s=self.clock(),
                    answer=answer,
                    signed=signed,
                    digest=hashlib.sha256(body).hexdigest()[:24],
                    source=event.source,
                    subject=event.subject,
                    type=event.type,
                    event=event.data.provider_event,
                    sequence=event.data.sequence,
                    complete=event.data.complete,
                )
            )

    def mode(self, sink: str, event_id: str) -> str:
        if sink != "flaky":
            return sink
        if self.clock() >= self.plan.options.seconds:
            return "well"
        if self.plan.phases:
            return next((phase.mode for phase in self.plan.phases if self.clock() < phase.until_s), "well")
        self.tried[event_id] += 1
        return random.Random(f"{self.plan.options.seed} {event_id} {self.tried[event_id]}").choice(MODES)

    async def serve(self) -> None:
        """Until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/alive", alive)
        app.router.add_post("/sinks/{sink}", self.receive)
        app.router.add_get("/{path:.*}", self.record)
        # A client that goes away cancels the handler, so that an attempt broken off is seen as such, and when.
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.ports.main, backlog=1024).start()
        listening = asyncio.create_task(self.open_and_close(runner))
        await stop.wait()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await runner.cleanup()

    async def open_and_close(self, runner: web.AppRunner) -> None:
        """The flaky sink's own port: closed while its phase is to refuse connections."""
        site: web.TCPSite | None = None
        while True:
            refusing = bool(self.plan.phases) and self.mode("flaky", "") == "refuse"
            if refusing and site is not None:
                await site.stop()
                site = None
                for request in list(self.at_flaky.values()):
                    cut(request)
            elif not refusing and site is None:
                site = web.TCPSite(runner, "127.0.0.1", self.ports.flaky, backlog=1024)
                await site.start()
            await asyncio.sleep(0.05)


async def alive(_: web.Request) -> web.Response:
    return web.Response()


def cut(request: web.Request) -> web.Response:
    """Break the connection off, as a crashed server does."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def is_signed(request: web.Request, event_id: str, body: bytes) -> bool:
    """As https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md has it."""
    headers = request.headers
    stamp = headers.get("webhook-timestamp", "")
    digest = hmac.digest(_KEY, f"{event_id}.{stamp}.".encode() + body, "sha256")
    expected = "v1," + base64.b64encode(digest).decode()
    fresh = stamp.isdigit() and abs(time.time() - int(stamp)) < TOLERANCE_S
    return fresh and headers.get("webhook-id") == event_id and expected in headers.get("webhook-signature", "").split()


def main() -> None:
    directory = Path(sys.argv[1])
    run = msgspec.json.decode((directory / "run.json").read_bytes(), type=Run)
    facts = Writer(directory, Arrival, Fetch)
    outside = Outside(make_plan(run.options), Clock(run.began), facts, run.ports)
    asyncio.run(outside.serve())


if __name__ == "__main__":
    main()
