"""uvicorn's HTTP/1.1 protocol, with an end to whatever a client could draw out.

httptools (0.9) limits neither the head nor the trailers of a request, and uvicorn (0.54) times nothing but an idle
connection. Here a head, a body and the taking of an answer each have their time, a head has its size, and what breaks a
limit is answered with problem JSON where an answer can still be understood, and then closed. `service/limits.py` has
the figures.
"""

import asyncio
from collections.abc import Callable
from itertools import chain
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.limits import ANSWER_TIMEOUT_S, BODY_TIMEOUT_S, HEAD_TIMEOUT_S, LINGER_S, MAX_HEAD_BYTES, MAX_HEADERS
from service.problems import problem

REFUSED = "refused"  # in a scope's `state`: why the body of this request never came to its end

log = structlog.get_logger("service.protocol")

# Cause → status and the words of the answer.
REFUSALS = {
    "head_too_large": (
        431,
        f"the request line with the headers, or the trailers, are over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields",
    ),
    "head_timeout": (408, f"the request line and headers did not come whole within {HEAD_TIMEOUT_S:g} s"),
    "body_timeout": (
        408,
        f"the body did not come whole within {BODY_TIMEOUT_S:g} s: a slow network, or fewer bytes than announced",
    ),
    "upgrade": (400, "only HTTP/1.1 is spoken here: send the request without CONNECT and without an Upgrade header"),
    "malformed": (400, "this is not HTTP/1.1 as RFC 9112 has it: a client or a proxy on the way writes it wrongly"),
}


class RefusedError(Exception):
    """Stops the parser; the cause is one of `REFUSALS`."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `refused` is told the cause of each refusal that the application does not see."""

    def __init__(self, *arguments: Any, refused: Callable[[str], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._count = refused
        self._in_head = True  # from the end of one request to the end of the next one's head
        self._cause = "malformed"
        self._moved = False
        self._stray_bytes = 0  # since the parser last got on: of a head or a trailer without an end
        self._lingers = False  # refused; what still comes is thrown away
        self._due: float | None = None  # when what is under way must be over, by the loop's clock; None: nothing is
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._due = self.loop.time() + HEAD_TIMEOUT_S
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        if self._due is None:  # the next request begins
            self._due = self.loop.time() + HEAD_TIMEOUT_S
        self._moved = False
        super().data_received(data)
        self._stray_bytes = 0 if self._moved else self._stray_bytes + len(data)
        if self._stray_bytes > MAX_HEAD_BYTES and not self._lingers:
            self._refuse("head_too_large")

    # What the parser calls; an exception makes it stop, and uvicorn call `send_400_response`.

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: it must not pass for a header
        if len(self.headers) == MAX_HEADERS:
            self._stop("head_too_large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._moved = True
        if len(self.url) + sum(map(len, chain.from_iterable(self.headers))) > MAX_HEAD_BYTES:
            self._stop("head_too_large")
        if self.parser.should_upgrade():  # the parser would take the body for another protocol, or another request
            self._stop("upgrade")
        super().on_headers_complete()
        self._in_head = False
        self._due = self.loop.time() + BODY_TIMEOUT_S

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = self._in_head = True
        super().on_message_complete()
        self._due = None if self.cycle.response_complete else self.loop.time() + ANSWER_TIMEOUT_S

    def _stop(self, cause: str) -> None:
        self._cause = cause
        raise RefusedError(cause)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._cause)

    # What ends a connection

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head and self.cycle.response_complete:
            self._due = None  # from here on uvicorn's timer for idle connections

    def _arm(self) -> None:
        """One timer a connection, and none a request: every new time limit is at least `HEAD_TIMEOUT_S` away."""
        if self._timer is not None:
            self._timer.cancel()
        latest = self.loop.time() + HEAD_TIMEOUT_S
        self._timer = self.loop.call_at(latest if self._due is None else min(self._due, latest), self._look)

    def _look(self) -> None:
        now = self.loop.time()
        if self._due is None and self.transport.is_closing():  # and still here: the client takes no answer
            self._due = now + LINGER_S
        elif self._due is not None and self._due <= now:
            self._end()
        self._arm()

    def _end(self) -> None:
        """The time is over for what is under way."""
        answered = self.cycle is None or self.cycle.response_complete
        if self._lingers or self.transport.is_closing():
            self.transport.abort()
        elif not self._in_head and not answered:
            self._refuse("body_timeout")
        elif not self._in_head or not answered:  # a body that was not wanted goes on, or the answer is not taken
            self.transport.abort()
        elif self._stray_bytes:
            self._refuse("head_timeout")
        else:
            self.transport.close()

    def _refuse(self, cause: str) -> None:
        self._lingers = True
        log.warning("request_refused", cause=cause)
        cycle = self.cycle
        if self._in_head:
            self._count(cause)
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False  # the requests before it are answered, in their order; then it closes
                self.flow.pause_reading()
                return
        else:
            cycle.scope["state"][REFUSED] = cause
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:  # no place for an answer
                self.transport.abort()
                return
        status, headers, body = problem(*REFUSALS[cause], cause=cause)
        headers = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
        lines = (b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        self.transport.write_eof()
        self.flow.resume_reading()
        self._due = self.loop.time() + LINGER_S
        self._arm()
