"""One webhook at a time through the whole system: from sending it until a `webhook` sink's receiver has the event.

Service and worker are the real processes. Retell's API and the receiver are played here and answer at once.
"""

import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.processes import BenchmarkError, free_port, python, valkey, wait_for_answer
from benchmarks.webhooks import KEY, PATH, call_ended, make_call, signature

TIMEOUT_S = 10.0

CONFIGURATION = """
[accounts.retell]
provider = "retell"
api_key = "{key}"
base_url = "http://127.0.0.1:{port}"

[sinks.receiver]
type = "webhook"
url = "http://127.0.0.1:{port}/receiver"
secret = "whsec_YmVuY2htYXJrLWJlbmNobWFyay1iZW5jaG1hcms="
events = ["call.ended"]
allow_private_network = true
"""


class Outside:
    """Retell's record API and the receiver of the events."""

    def __init__(self) -> None:
        self.calls: dict[str, object] = {}
        self.arrivals: dict[str, asyncio.Future[float]] = {}

    async def get_call(self, request: web.Request) -> web.Response:
        call = self.calls.get(request.match_info["call_id"])
        return web.json_response(call) if call else web.json_response({"status": "error"}, status=404)

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        now = time.perf_counter()
        arrival = self.arrivals.get(json.loads(body)["subject"])
        if arrival is not None and not arrival.done():
            arrival.set_result(now)
        return web.Response(status=204)

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/v2/get-call/{call_id}", self.get_call)
        app.router.add_post("/receiver", self.receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield
        finally:
            await runner.cleanup()


async def measure(webhooks: int) -> list[float]:
    """The seconds that each webhook took, about one a second; one more before them, to warm up, is not counted."""
    outside_port, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory, valkey() as url:
        configuration = Path(directory) / "aftercall.toml"
        configuration.write_text(CONFIGURATION.format(key=KEY, port=outside_port))
        environ = {
            "REDIS_URL": url,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "AFTERCALL_CONFIG": str(configuration),
        }
        with python("-m", "service", environ=environ) as service, python("-m", "workers", environ=environ):
            await asyncio.to_thread(wait_for_answer, service, f"http://127.0.0.1:{port}/readyz")
            outside = Outside()
            async with outside.listening(outside_port), aiohttp.ClientSession() as http:
                return await _send(http, f"http://127.0.0.1:{port}{PATH}", outside, webhooks)


async def _send(http: aiohttp.ClientSession, url: str, outside: Outside, webhooks: int) -> list[float]:
    rng = random.Random(1)
    taken = []
    for number in range(webhooks + 1):
        call_id = f"call_{rng.getrandbits(104):026x}"
        outside.calls[call_id] = call = make_call(rng, call_id)
        outside.arrivals[call_id] = arrival = asyncio.get_running_loop().create_future()
        body = call_ended(call)
        headers = {"content-type": "application/json", "x-retell-signature": signature(body)}
        sent_at = time.perf_counter()
        async with http.post(url, data=body, headers=headers) as answer:
            if answer.status != 204:
                raise BenchmarkError(f"a webhook was answered {answer.status}")
        try:
            arrived_at = await asyncio.wait_for(arrival, TIMEOUT_S)
        except TimeoutError:
            raise BenchmarkError(f"an event did not reach the sink within {TIMEOUT_S:.0f} s") from None
        if number:
            taken.append(arrived_at - sent_at)
        await asyncio.sleep(rng.uniform(0.6, 1.4))  # not in step with anything in the worker
    return taken
