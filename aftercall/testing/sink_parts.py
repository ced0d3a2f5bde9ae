"""What the contract of sinks stands on: events to send, and eyes for secrets, connections and what stands still."""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import threading
import time
import traceback
import types
from collections.abc import Callable, Collection, Coroutine, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any, get_args
from unittest import mock
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from aftercall.event import CallEvent, EventType, encode
from aftercall.example import example_event
from aftercall.sinks.base import Delivery, SinkConfig, is_secret

KINDS: tuple[EventType, ...] = (
    *("call.started", "call.connected", "call.turn", "call.transfer", "call.ended"),
    *("call.analyzed", "call.billed", "call.settled", "call.unknown"),
)
SAID = "vermilion-otter"  # in every transcript and summary here: no error may repeat it
NUMBER = "+15550100142"  # likewise: example_event's caller
AWKWARD = "\u202eGr\u00fc\u00dfe \U0001f9f5 <!channel> @everyone {{ 7*7 }} *_`~ \"';--\\\n\x00\x1b[31m" + SAID
_WORDS_OF_SECRETS = ("secret", "token", "password", "api_key", "apikey", "credential", "private_key", "access_key")
_SHORTEST_PIECE = 6  # of a secret URL: `/0` and `/hook` may stand anywhere
_numbers = count(1)


def an_event(type_: EventType = "call.settled", *, call_id: str | None = None, **call: Any) -> CallEvent:
    """An event of a call of its own; `call` replaces fields of the call."""
    event = example_event(type_, call_id=call_id or f"call-of-the-contract-{next(_numbers):06}")
    filled = msgspec.structs.replace(event.data.call, **{"error": None, **call})
    data, source = msgspec.structs.replace(event.data, call=filled), f"/{filled.provider}/{filled.account}"
    return msgspec.structs.replace(event, id=f"{event.id}{next(_numbers)}", source=source, data=data)


def a_delivery(event: CallEvent) -> Delivery:
    """As the worker hands it over."""
    return Delivery(event=event, body=encode(event))


# Secrets


def should_be_secret(name: str, option: Any) -> bool:
    """Whether an option of that name and type is a credential by its looks."""
    return any(word in name.lower() for word in _WORDS_OF_SECRETS) and _holds_text(option)


def _holds_text(option: Any) -> bool:
    return option is str or any(map(_holds_text, get_args(option)))


def secrets_in(options: dict[str, Any], config: type[SinkConfig]) -> dict[str, list[str]]:
    """Under each secret option's name the texts that must not be seen; of a URL also its path and its password."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(config)}
    return {
        name: [piece for text in _texts(value) for piece in _pieces(text)]
        for name, value in options.items()
        if name in fields and is_secret(fields[name])
    }


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else (value,):
        yield from _texts(item) if isinstance(item, dict | list | tuple) else (str(item),)


def _pieces(text: str) -> Iterator[str]:
    yield text
    if "://" in text:
        parts = urlsplit(text)
        pieces = (parts.path, parts.query, parts.password, unquote(parts.password or ""))
        yield from (piece for piece in pieces if piece and len(piece) >= _SHORTEST_PIECE)


def whole(error: BaseException) -> str:
    """The error with all that is chained to it, as a log would show it; without the lines of source."""
    shown = "".join(traceback.format_exception(error))
    return "\n".join(line for line in shown.splitlines() if not line.startswith(("    ", '  File "')))


# What must not happen


@contextlib.contextmanager
def without_connections() -> Iterator[None]:
    """Inside of it nothing can be connected to: it fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("`render` connects: it must give what would be sent without asking anybody")

    with contextlib.ExitStack() as stack:
        for name in ("connect", "connect_ex", "sendto"):
            stack.enter_context(mock.patch.object(socket.socket, name, refuse))
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", refuse))
        yield


@contextlib.contextmanager
def watched_loop(limit_s: float) -> Iterator[None]:
    """Fails the test when the event loop stands still for so long. Else a client that blocks it would hang for ever."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stuck(*_: object) -> None:
        pytest.fail(
            f"the event loop stood still for {limit_s:g} s: something in the sink, or in the test itself, waits "
            "without `await`. Use self.http or a client for asyncio, or put the call into asyncio.to_thread(…)"
        )

    loop = asyncio.get_running_loop()
    beat: asyncio.TimerHandle | None = None

    def rearm() -> None:
        nonlocal beat
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        beat = loop.call_later(limit_s / 4, rearm)

    before = signal.signal(signal.SIGALRM, stuck)
    rearm()
    try:
        yield
    finally:
        if beat is not None:
            beat.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged and printed inside of it, but for the libraries that a worker keeps quiet."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.partition(".")[0] not in ("httpx", "httpcore", "aiohttp", "asyncio"):
                lines.append(self.format(record))

    root, handler = logging.getLogger(), Lines()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with mock.patch("builtins.print", lambda *said, **_: lines.append(" ".join(map(str, said)))):
            yield lines
    finally:
        root.setLevel(before)
        root.removeHandler(handler)


async def longest_wait_s(doing: Coroutine[Any, Any, Any]) -> float:
    """Run it to its end; the longest that it kept the loop in one go without computing, as `time.sleep` does."""
    longest = 0.0

    @types.coroutine
    def step_by_step() -> Generator[Any, Any, None]:
        nonlocal longest
        send: Callable[[], Any] = functools.partial(doing.send, None)
        while True:
            before = _idle_s()
            try:
                awaited = send()
            except StopIteration:
                return
            finally:
                longest = max(longest, _idle_s() - before)
            try:
                send = functools.partial(doing.send, (yield awaited))
            except BaseException as error:
                send = functools.partial(doing.throw, error)

    await step_by_step()
    return longest


def _idle_s() -> float:
    """A clock that stands still while this thread computes, or could and another program has the processor."""
    try:
        waited_ns = int(Path("/proc/thread-self/schedstat").read_text("ascii").split()[1])
    except (OSError, IndexError):  # only Linux tells
        waited_ns = 0
    return time.monotonic() - time.thread_time() - waited_ns / 1e9


async def tasks_left(patience_s: float = 1.0) -> Collection[str]:
    """What still runs beside the caller when there was time enough to end, by name."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        if asyncio.get_running_loop().time() > deadline:
            return sorted(getattr(task.get_coro(), "__qualname__", repr(task)) for task in left)
        await asyncio.sleep(0.01)
    return ()
