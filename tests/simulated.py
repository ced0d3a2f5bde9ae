"""What the simulator is tried with: keys, a day of calls, a client that walks through its lists, and a receiver.

The receiver checks webhooks as the vendors document it.
"""

import hashlib
import hmac
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from litestar import Litestar
from litestar.testing import AsyncTestClient

from simulator.app import make_app
from simulator.day import make_day
from simulator.faults import Faults
from simulator.parts import Call
from simulator.records import Records

API_KEYS = {"retell": "key_r", "cartesia": "sk_car_c", "ultravox": "u.x"}
SECRETS = {"retell": "key_r", "cartesia": "hush-c", "ultravox": "hush-u"}
RETELL = {"authorization": "Bearer key_r"}
CARTESIA = {"authorization": "Bearer sk_car_c", "cartesia-version": "2026-03-01"}
ULTRAVOX = {"x-api-key": "u.x"}

NOW = time.time()
DAY = make_day(seed=7, now=NOW, count=210)

Client = AsyncTestClient[Litestar]
Json = dict[str, Any]


def of(provider: str, story: str = "") -> list[Call]:
    """The day's calls of this provider, and of this kind."""
    return [call for call in DAY if call.provider == provider and story in call.story]


def ids(calls: list[Call]) -> list[str]:
    return sorted(call.id for call in calls)


@asynccontextmanager
async def serving(records: Records, faults: Faults | None = None) -> AsyncIterator[Client]:
    """A client of the three APIs over these records."""
    async with AsyncTestClient(make_app(records, API_KEYS, faults)) as client:
        yield client


class Received:
    """One webhook as the receiver saw it."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path = path
        self.headers = headers
        self.body = body
        self.json = json.loads(body)
        self.arrived = time.monotonic()

    @property
    def provider(self) -> str:
        return self.path.removeprefix("/webhooks/")

    @property
    def event(self) -> str:
        return str(self.json.get("event") or self.json["type"])

    @property
    def call_id(self) -> str | None:
        call = self.json.get("call", {})
        found = call.get("call_id") or call.get("callId") or self.json.get("call_id") or self.json.get("request_id")
        return str(found) if found else None


def verifies(webhook: Received) -> bool:
    """Each provider's documented check, written out here once more."""
    headers, body = webhook.headers, webhook.body
    if webhook.provider == "retell":
        match = re.fullmatch(r"v=([0-9]+),d=([0-9a-f]{64})", headers["x-retell-signature"])
        assert match is not None
        stamp, given, key = match[1], [match[2]], b"key_r"
        age = time.time() - int(stamp) / 1000
    elif webhook.provider == "cartesia":
        return headers["x-webhook-secret"] == "hush-c"
    else:
        stamp = headers["x-ultravox-webhook-timestamp"]
        given, key = headers["x-ultravox-webhook-signature"].split(","), b"hush-u"
        assert stamp.endswith("Z")
        age = time.time() - datetime.fromisoformat(stamp).timestamp()
    expected = hmac.new(key, body + stamp.encode(), hashlib.sha256).hexdigest()
    return expected in given and abs(age) < 60


class Receiver:
    """A small HTTP server: answers 204, 401 to what does not verify, and whatever `answer` says instead."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.in_flight: Counter[bytes] = Counter()
        self.most_in_flight: Counter[bytes] = Counter()
        self.hold: Callable[[], object] = lambda: time.sleep(0.03)  # each request, before it is answered
        self.answer: Callable[[Received], int | None] = lambda webhook: None
        receiver, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/readyz" else 404)
                self.end_headers()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                webhook = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                with lock:
                    receiver.received.append(webhook)
                    receiver.in_flight[body] += 1
                    receiver.most_in_flight |= Counter({body: receiver.in_flight[body]})
                    status = receiver.answer(webhook) or (204 if verifies(webhook) else 401)
                receiver.hold()
                with lock:
                    receiver.in_flight[body] -= 1
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # the play opens many connections at once

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, event: str, call: Call) -> list[Received]:
        return [webhook for webhook in self.received if webhook.event == event and webhook.call_id == call.id]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


# Walks through whole lists, page by page


async def retell_list(client: Client, **body: Any) -> Json:
    answer = await client.post("/v3/list-calls", headers=RETELL, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def retell_walk(client: Client, **body: Any) -> list[Json]:
    """The items of all pages."""
    page = await retell_list(client, **body)
    items = list(page["items"])
    while page["has_more"]:
        page = await retell_list(client, **{**body, "pagination_key": page["pagination_key"]})
        items += page["items"]
    assert "pagination_key" not in page
    return items


async def cartesia_walk(client: Client, agent: str, **params: str) -> list[Json]:
    found: list[Json] = []
    while True:
        query = {"agent_id": agent, **params}
        page = (await client.get("/agents/calls", headers=CARTESIA, params=query)).json()
        found += page["data"]
        if page["next_page"] is None:
            return found
        assert page["next_page"] == page["data"][-1]["id"]
        params["starting_after"] = page["next_page"]


async def ultravox_walk(client: Client, path: str, params: Json) -> list[Json]:
    found: list[Json] = []
    while True:
        page = (await client.get(path, headers=ULTRAVOX, params=params)).json()
        assert page.keys() == {"next", "previous", "total", "results"}
        found += page["results"]
        if page["next"] is None:
            assert len(found) == page["total"]
            return found
        url = urlsplit(page["next"])
        assert (url.scheme, url.netloc, url.path) == ("https", "api.ultravox.ai", path)
        params = dict(parse_qs(url.query))
