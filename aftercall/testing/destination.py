"""An HTTP destination on loopback, for the tests of sinks: it keeps what it is sent and answers what it is told."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from aiohttp import web


class Sent(NamedTuple):
    """A request that was answered 2xx. `headers` are in lower case, `path` begins with a slash and has the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Answer(NamedTuple):
    """What to answer. `bytes` and `str` bodies go out as they are, everything else as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = {}


class Destination:
    """Listens on a port of its own, or on the one given, between `start` and `stop`.

    `url` is its root, without a slash at the end. `answers` decides what to answer; it is given each request and may be
    replaced at any time. `sent` are the requests answered 2xx, in order; `refused` the others.
    """

    def __init__(self, port: int = 0) -> None:
        self.sent: list[Sent] = []
        self.refused: list[Sent] = []
        self.answers: Callable[[Sent], Answer] = lambda _: Answer()
        self._runner: web.AppRunner | None = None
        self.port = port or _free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; raises OSError if the port was taken meanwhile."""
        await self._serve(self._bound())

    async def _serve(self, listener: socket.socket) -> None:
        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    def _bound(self) -> socket.socket:
        """The port, held: until somebody listens there, connections are refused."""
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
        except OSError:
            listener.close()
            raise
        return listener

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            await asyncio.sleep(0.01)  # a transport closes its socket in a turn of its own

    @contextlib.asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Inside of it nobody listens; afterwards it is there again, on the same port."""
        await self.stop()
        listener = self._bound()  # so that no other program takes the port meanwhile
        try:
            yield
        finally:
            await self._serve(listener)

    @contextlib.asynccontextmanager
    async def answering(
        self, status: int, body: Any = b"", headers: dict[str, str] | None = None
    ) -> AsyncIterator[None]:
        """Inside of it every request is answered so."""
        before, self.answers = self.answers, lambda _: Answer(status, body, headers or {})
        try:
            yield
        finally:
            self.answers = before

    async def _take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent = Sent(request.method, request.path_qs, headers, await request.read())
        status, body, answer_headers = self.answers(sent)
        (self.sent if 200 <= status < 300 else self.refused).append(sent)
        content = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else None
        if content is None:
            return web.json_response(body, status=status, headers=answer_headers)
        return web.Response(status=status, body=content, headers=answer_headers)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
