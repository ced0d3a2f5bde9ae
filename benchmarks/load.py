"""The load generator, a process of its own: `python -m benchmarks.load PORT SECONDS SEED` prints its figures as JSON.

Keep-alive connections over raw asyncio, one request in flight on each; everything is signed before the clock starts.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from typing import cast

import uvloop

from benchmarks.webhooks import Requests

CONNECTIONS = 64
WARM_UP_S = 1.0
MOST_PER_S = 10_000  # so many are signed beforehand; a server that is faster ends its round earlier


class Connection(asyncio.Protocol):
    def __init__(self, load: "Load") -> None:
        self.load = load
        self.buffer = b""
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is not a subclass

    def connection_lost(self, error: Exception | None) -> None:
        self.load.ended(self, "connection lost")

    def send(self) -> None:
        request = self.load.next_request()
        if request is None:
            self.load.ended(self)
            return
        self.sent_at = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if b"\r\n\r\n" not in self.buffer:
            return
        if not self.buffer.startswith(b"HTTP/1.1 204 "):
            self.load.ended(self, self.buffer.partition(b"\r\n")[0].decode("latin-1"))
            return
        self.buffer = b""
        self.load.answered(self.sent_at)
        self.send()


class Load:
    """One round against one server: warm up, measure, let what is in flight come to its end."""

    def __init__(self, seconds: float, requests: Requests) -> None:
        self.seconds = seconds
        self.requests = requests
        self.answers = 0  # all of them, warm-up included: what the store must hold afterwards
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()
        self.open: set[Connection] = set()
        self.finished = asyncio.Event()

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", port)
            self.open.add(connection)
        self.from_s = time.perf_counter() + WARM_UP_S
        self.until_s = self.from_s + self.seconds
        self.last_s = self.from_s
        for connection in list(self.open):
            connection.send()
        await asyncio.wait_for(self.finished.wait(), WARM_UP_S + self.seconds + 15)

    def next_request(self) -> bytes | None:
        return self.requests.next() if time.perf_counter() < self.until_s else None

    def answered(self, sent_at: float) -> None:
        self.answers += 1
        now = time.perf_counter()
        if self.from_s <= now <= self.until_s:
            self.latencies.append(now - sent_at)
            self.last_s = now

    def ended(self, connection: Connection, failure: str | None = None) -> None:
        if connection not in self.open:
            return
        self.open.discard(connection)
        if failure:
            self.failures[failure] += 1
        connection.transport.close()
        if not self.open:
            self.finished.set()


def main() -> None:
    port, seconds, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    load = Load(seconds, Requests(int((WARM_UP_S + seconds) * MOST_PER_S), seed=seed))
    uvloop.run(load.run(port))
    ordered = sorted(load.latencies)
    figures = {
        "answers": load.answers,
        "per_s": len(ordered) / max(load.last_s - load.from_s, 1e-9),
        "p50_s": ordered[len(ordered) // 2] if ordered else None,
        "p99_s": ordered[len(ordered) * 99 // 100] if ordered else None,
        "failures": load.failures,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
