"""What a sink's author gives the contract, and how its tests treat a sink: as the worker does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, ClassVar, TypeVar

import httpx
import msgspec
import pytest

from aftercall.call import Analysis, Call, Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, LocalMemory, Sink, SinkConfig
from aftercall.testing.sink_parts import NUMBER, SAID, a_delivery, an_event, secrets_in, tasks_left, watched_loop, whole

BLOCKED_S = 10.0  # a loop that stands still for so long will not go on
CLOSES_IN_S = 5.0
WORDS = "raise SinkError(…) from None, in words of your own"

T = TypeVar("T")
Trouble = Callable[[], contextlib.AbstractAsyncContextManager[None]]


class SinkGiven:
    """The attributes and methods that a subclass of the contract sets, and what its tests share."""

    sink: ClassVar[type[Sink]]
    # False where the destination cannot know an event again, so that a repeated attempt may show twice.
    idempotent: ClassVar[bool] = True
    patience_s: ClassVar[float] = 10.0  # how long an attempt may take, and a destination after an outage

    async def options(self) -> dict[str, Any]:
        """The sink's own options, as they would stand in `aftercall.toml`; they lead to a destination that is empty."""
        raise NotImplementedError("write `async def options`: the sink's options, leading to an empty destination")

    async def received(self) -> Iterable[str | bytes]:
        """What the destination has: an entry for each event, that holds the event's id or the call's."""
        raise NotImplementedError("write `async def received`: what the destination has, an entry for each event")

    # What a subclass may add.

    async def start(self) -> None:
        """Called before everything else."""

    async def stop(self) -> None:
        """Called at the end, also after a failure."""

    # Both are methods with @asynccontextmanager: inside of `outage` the destination is down, and afterwards there
    # again; inside of `refusal` it refuses every event for good. Where that cannot happen, a text that says why.
    outage: Any = None
    refusal: Any = None

    # What the tests share

    def _run(self, test: Callable[[Sink, dict[str, Any]], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            self._ready: list[Sink] = []  # the sinks that are open
            await self.start()
            try:
                options = await self.options()
                async with self._opened(options) as sink:
                    await test(sink, options)
            finally:
                await self.stop()
            left = await tasks_left()
            assert not left, f"closed, the sink (or the test itself) leaves what runs on: {', '.join(left)}"

        async def watched() -> None:
            with watched_loop(max(BLOCKED_S, self.patience_s)):
                await all_of_it()

        assert getattr(self, "sink", None), "say which class is tested: sink = YourSink"
        asyncio.run(watched())

    def _config(self, options: dict[str, Any]) -> SinkConfig:
        try:
            return msgspec.convert(options, self.sink.Config)
        except msgspec.ValidationError as error:
            raise AssertionError(f"what `options` gives does not fit {self.sink.__name__}.Config: {error}") from None

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with make_client(guarded=False, timeout_s=self.patience_s) as http:
            yield http

    @contextlib.asynccontextmanager
    async def _opened(self, options: dict[str, Any]) -> AsyncIterator[Sink]:
        async with self._client() as http:
            sink = self.sink("contract", self._config(options), http)
            assert isinstance(getattr(sink, "http", None), httpx.AsyncClient), (
                "an __init__ of its own calls super().__init__(name, config, http) first"
            )
            sink.memory = LocalMemory()
            try:
                await self._open(sink)
            except SinkError as error:
                raise AssertionError(f"`open` failed: {error}; do `options` lead to a destination?") from error
            try:
                yield sink
            finally:
                await self._close(sink)

    async def _open(self, sink: Sink) -> None:
        """As the worker does: before each attempt until it succeeds, and then no more."""
        if sink not in self._ready:
            await self._in_time(sink.open(), self.patience_s, "open")
            self._ready.append(sink)

    async def _close(self, sink: Sink) -> None:
        if sink in self._ready:
            self._ready.remove(sink)
            await self._in_time(sink.close(), CLOSES_IN_S, "close")

    async def _in_time(self, doing: Awaitable[T], limit_s: float, what: str) -> T:
        task = asyncio.ensure_future(doing)
        try:
            done, _ = await asyncio.wait([task], timeout=limit_s)
        finally:
            task.cancel()
            task.add_done_callback(_retrieve)
        if not done:
            raise AssertionError(
                f"`{what}` neither returned nor raised within {limit_s:g} s; what waits needs a timeout"
            )
        return task.result()

    async def _deliver(self, sink: Sink, delivery: Delivery) -> str | None:
        return await self._in_time(sink.deliver(delivery), self.patience_s, "deliver")

    async def _bring(self, sink: Sink, *events: CallEvent) -> None:
        """Deliver them side by side, and find each of them there."""
        attempts = (self._deliver(sink, a_delivery(event)) for event in events)
        for outcome in await asyncio.gather(*attempts, return_exceptions=True):  # none goes on beside what comes next
            if isinstance(outcome, BaseException):
                raise outcome
        missing = [event.type for event, times in zip(events, await self._found(events), strict=True) if not times]
        assert not missing, (
            f"`deliver` returned, and the destination has not got {len(missing)} of {len(events)}: "
            f"{', '.join(sorted(set(missing)))}{self._hint()}"
        )

    async def _arrive(self, sink: Sink, *events: CallEvent) -> None:
        try:
            await self._bring(sink, *events)
        except SinkError as error:
            raise AssertionError(
                f"nothing is wrong with the destination, and `deliver` raised SinkError: {error}{self._hint()}"
            ) from error

    def _hint(self) -> str:
        """What else is known when something did not arrive."""
        return "; is it among what `received` gives, with its event's or its call's id?"

    async def _entries(self) -> list[bytes]:
        given = await self.received()
        entries = None if isinstance(given, str | bytes | dict) or given is None else list(given)
        strange = [given] if entries is None else [entry for entry in entries if not isinstance(entry, str | bytes)]
        assert entries is not None and not strange, (  # noqa: PT018 - for mypy
            "`received` gives a list with a str or bytes for each event; this is something else: "
            f"{type(strange[0]).__name__}"
        )
        return [entry if isinstance(entry, bytes) else entry.encode("utf-8", "surrogatepass") for entry in entries]

    async def _found(self, events: Iterable[CallEvent]) -> list[int]:
        """How often the destination has each of the events."""
        entries = await self._entries()
        return [
            sum(event.id.encode() in entry or event.subject.encode() in entry for entry in entries) for event in events
        ]

    def _trouble(self, name: str, what: str) -> Trouble | None:
        given = getattr(self, name)
        if given is None:
            pytest.fail(
                f"write `{name}`, a method with @contextlib.asynccontextmanager: {what}. Where there is no such thing, "
                f'say why: {name} = "…"'
            )
        return None if isinstance(given, str) else given

    async def _failure(
        self,
        sink: Sink,
        event: CallEvent | None = None,
        *,
        doing: Callable[[], Awaitable[object]] | None = None,
        what: str = "deliver",
    ) -> SinkError:
        try:
            await self._open(sink)
            await (self._deliver(sink, a_delivery(event or self._telling())) if doing is None else doing())
        except SinkError as error:
            return error
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"raise SinkError, not {type(error).__name__}: {error} (except {type(error).__name__}: "
                'raise SinkError("in words of your own") from None)'
            ) from error
        raise AssertionError(
            f"the destination did not take it, and `{what}` returned: return only when the destination has it, else "
            "raise SinkError"
        )

    async def _again(self, sink: Sink, event: CallEvent) -> None:
        """As the worker does with an event that failed: until the destination has it."""
        deadline = asyncio.get_running_loop().time() + self.patience_s
        while True:
            try:
                await self._open(sink)
                await self._bring(sink, event)
                return
            except SinkError as error:
                if final(error) or asyncio.get_running_loop().time() > deadline:
                    raise AssertionError(f"the destination is there again, and the sink still fails: {error}") from None
                await asyncio.sleep(0.1)

    def _telling(self) -> CallEvent:
        """An event with much in it that no error may tell."""
        return an_event(transcript=[Turn(role="user", text=SAID)], analysis=Analysis(summary=SAID))

    def _may_pass(self, what: str, error: SinkError, options: dict[str, Any]) -> None:
        assert not final(error), (
            f"{what} may pass, and is taken for a refusal for good: {error}; leave permanent= and gone= away"
        )
        self._is_discreet("the error", whole(error), options)

    def _is_discreet(self, what: str, text: str, options: dict[str, Any], remedy: str = WORDS) -> None:
        for name, secrets in secrets_in(options, self.sink.Config).items():
            assert not any(secret in text for secret in secrets), f"{what} tells the secret {name}; {remedy}"
        assert SAID not in text, f"{what} tells what was said in the call; {remedy}"
        assert NUMBER not in text, f"{what} tells a phone number; {remedy}"


def final(error: SinkError) -> bool:
    return error.permanent or error.gone


def erased(event: CallEvent) -> Call:
    """All that is left of the event's call when `erase` is given it."""
    call = event.data.call
    return Call(id=call.id, provider=call.provider, account=call.account, status="ended")


def _retrieve(task: asyncio.Task[Any]) -> None:
    """So that asyncio does not log, at some other moment, that nobody did."""
    if not task.cancelled():
        task.exception()
