"""What every sink promises, as tests that a sink's author reads when one of them is red."""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import count
from typing import Any, ClassVar

import httpx
import msgspec

try:
    import pytest
except ModuleNotFoundError:
    raise ImportError("aftercall.testing is run by pytest, which is not installed: pip install pytest") from None

from aftercall.call import Agent, Analysis, Call, Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent, EventType, encode
from aftercall.example import example_event
from aftercall.sinks.base import Delivery, LocalMemory, Sink, SinkConfig, is_secret
from aftercall.testing.destination import Answer, Destination

KINDS: tuple[EventType, ...] = (
    *("call.started", "call.connected", "call.turn", "call.transfer", "call.ended"),
    *("call.analyzed", "call.billed", "call.settled", "call.unknown"),
)
SAID = "vermilion-otter"  # in every transcript and summary here: no error may repeat it
NUMBER = "+15550100142"  # likewise: example_event's caller
AWKWARD = "\u202eGr\u00fc\u00dfe \U0001f9f5 <!channel> @everyone {{ 7*7 }} *_`~ \"';--\\\n\x00\x1b[31m" + SAID
WORDS_OF_SECRETS = ("secret", "token", "password", "api_key", "apikey", "credential", "private_key", "access_key")
_numbers = count(1)


def an_event(type_: EventType = "call.settled", *, call_id: str | None = None, **call: Any) -> CallEvent:
    """An event of a call of its own; `call` replaces fields of the call."""
    event = example_event(type_, call_id=call_id or f"call-of-the-contract-{next(_numbers):06}")
    filled = msgspec.structs.replace(event.data.call, **{"error": None, **call})
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, call=filled))


def a_delivery(event: CallEvent) -> Delivery:
    """As the worker hands it over."""
    return Delivery(event=event, body=encode(event))


class SinkContract:
    """What every sink promises. Subclass it as `Test…`, set `sink`, and write `options` and `received`.

    A test gets a fresh object of the subclass: `options` is called once in each, in the event loop of the test.
    Where the destination speaks HTTP, subclass `HttpSinkContract`, which brings one.
    """

    sink: ClassVar[type[Sink]]
    # False where the destination cannot know an event again, so that a repeated attempt may show twice.
    idempotent: ClassVar[bool] = True
    patience_s: ClassVar[float] = 10.0  # how long an attempt may take, and a destination after an outage

    async def options(self) -> dict[str, Any]:
        """The sink's own options, as they would stand in `aftercall.toml`; they lead to a destination that is empty."""
        raise NotImplementedError("write `options`: the sink's options, leading to a destination that is there")

    async def received(self) -> Iterable[str | bytes]:
        """What the destination has: an entry for each event, that holds the event's id or the call's."""
        raise NotImplementedError("write `received`: what the destination has, an entry for each event")

    # What a subclass may add.

    async def start(self) -> None:
        """Called before everything else."""

    async def stop(self) -> None:
        """Called at the end, also after a failure."""

    # Both are methods with @asynccontextmanager: inside of `outage` the destination is down, and afterwards there
    # again; inside of `refusal` it refuses every event for good.
    outage: Any = None
    refusal: Any = None

    # The class

    def test_every_option_is_described(self) -> None:
        assert self.sink.__doc__ or self.sink.__module__, "say in a docstring what the sink does"
        for field in msgspec.structs.fields(self.sink.Config):
            metas = [part for part in getattr(field.type, "__metadata__", ()) if isinstance(part, msgspec.Meta)]
            assert any(meta.description for meta in metas), (
                f"{field.name}: write it as Annotated[…, Meta(description=…)]; documentation and checks come from that"
            )

    def test_secrets_are_marked_and_masked(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            config = msgspec.convert(options, self.sink.Config)
            for field in msgspec.structs.fields(config):
                if any(word in field.name.lower() for word in WORDS_OF_SECRETS):
                    assert is_secret(field.type), f"{field.name}: mark a credential as Secret instead of str"
                value = options.get(field.encode_name)
                if is_secret(field.type) and isinstance(value, str):
                    assert value not in repr(config), f"{field.name} is shown where options are"

        self._run(run)

    def test_an_option_that_does_not_exist_is_refused(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert({**options, "no_such_option": 1}, self.sink.Config)

        self._run(run)

    # deliver

    def test_an_event_arrives(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            await self._arrive(sink, an_event())

        self._run(run)

    def test_every_kind_of_event_arrives(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            await self._arrive(sink, *(an_event(kind) for kind in KINDS))

        self._run(run)

    def test_a_call_of_which_little_is_known_arrives(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            event = an_event("call.started")
            known = event.data.call
            bare = Call(id=known.id, provider=known.provider, account=known.account, status="created")
            await self._arrive(
                sink, msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, call=bare))
            )

        self._run(run)

    def test_whatever_was_said_arrives(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            turns = [Turn(role="user" if number % 2 else "agent", text=AWKWARD) for number in range(1_500)]
            analysis = Analysis(summary=AWKWARD * 100, sentiment="negative", custom={AWKWARD: AWKWARD})
            agent = Agent(id=AWKWARD, name=AWKWARD * 10)
            await self._arrive(sink, an_event(transcript=turns, analysis=analysis, agent=agent, error=AWKWARD * 10))

        self._run(run)

    def test_many_at_once_arrive(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            await self._arrive(sink, *(an_event() for _ in range(32)))

        self._run(run)

    def test_an_event_that_comes_again_is_there_once(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            delivery = a_delivery(an_event())
            for attempt in (1, 2, 3):
                await self._deliver(sink, msgspec.structs.replace(delivery, attempt=attempt))
            found = await self._found([delivery.event])
            if self.idempotent:
                assert found == [1], (
                    f"an attempt was repeated, and the destination has the event {found[0]} times: let it know the "
                    "event by its id, or set idempotent = False where the destination cannot"
                )

        self._run(run)

    def test_a_receipt_says_nothing_of_the_call(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            receipt = await self._deliver(sink, a_delivery(self._telling()))
            assert receipt is None or isinstance(receipt, str), "deliver returns a str or nothing"
            self._is_discreet("the receipt", receipt or "", options)

        self._run(run)

    def test_a_delivery_can_be_cancelled(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            for wait_s in (0.0, 0.0005, 0.002, 0.01):
                attempt = asyncio.create_task(sink.deliver(a_delivery(an_event())))
                await asyncio.sleep(wait_s)
                attempt.cancel()
                done, _pending = await asyncio.wait([attempt], timeout=2)
                assert done, "a cancelled delivery goes on: let CancelledError through"
                if not attempt.cancelled() and attempt.exception() is not None:
                    raise AssertionError(f"cancelled, it raised {attempt.exception()!r}") from None
            await self._arrive(sink, an_event())

        self._run(run)

    def test_the_providers_own_body_is_passed_on_as_it_is(self) -> None:
        if not self.sink.raw:
            return  # and then a table with format = "raw" is refused

        async def run(sink: Sink, _: dict[str, Any]) -> None:
            event = an_event("call.ended")
            body = b'{"event" : "call_ended", "call": {"call_id": "%s"}}' % event.subject.encode()
            await self._deliver(sink, Delivery(event=event, body=body, format="raw"))
            assert await self._found([event]) == [1]

        self._run(run)

    # render

    def test_rendering_sends_nothing(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            event = an_event()
            async with self._client() as http:
                closed = self.sink("contract", msgspec.convert(options, self.sink.Config), http)
                shown = closed.render(a_delivery(event))
                assert shown == closed.render(a_delivery(event)), "the same event is rendered in two ways"
            if not isinstance(shown, bytes):
                msgspec.json.encode(shown)
            assert await self._found([event]) == [0], "`render` brought the event to the destination"

        self._run(run)

    # Destinations in trouble

    def test_a_destination_that_is_down_is_tried_again(self) -> None:
        if self.outage is None:
            pytest.skip("`outage` is not written")
        outage = self.outage

        async def run(sink: Sink, options: dict[str, Any]) -> None:
            await self._arrive(sink, an_event())
            async with outage():
                error = await self._failure(sink)
                assert not _final(error), f"an outage is taken for a refusal for good: {error}"
                self._is_discreet("the error", _whole(error), options)
            await self._again(sink, an_event())

        self._run(run)

    def test_it_can_be_opened_when_the_destination_is_there_again(self) -> None:
        if self.outage is None:
            pytest.skip("`outage` is not written")
        outage = self.outage

        async def run(_: Sink, options: dict[str, Any]) -> None:
            async with self._client() as http:
                sink = self.sink("contract", msgspec.convert(options, self.sink.Config), http)
                async with outage():
                    error = await self._failure(sink, opening=True)
                    assert not _final(error), f"an outage is taken for a refusal for good: {error}"
                    self._is_discreet("the error", _whole(error), options)
                try:
                    await self._again(sink, an_event(), reopen=True)
                finally:
                    await sink.close()

        self._run(run)

    def test_a_refusal_is_for_good(self) -> None:
        if self.refusal is None:
            pytest.skip("`refusal` is not written")
        refusal = self.refusal

        async def run(sink: Sink, options: dict[str, Any]) -> None:
            async with refusal():
                error = await self._failure(sink)
                assert _final(error), f"it would be tried again for days: {error}"
                self._is_discreet("the error", _whole(error), options)

        self._run(run)

    # close, erase

    def test_it_closes_in_the_midst_of_deliveries(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            attempts = [asyncio.create_task(sink.deliver(a_delivery(an_event()))) for _ in range(5)]
            await asyncio.sleep(0)
            for attempt in attempts:
                attempt.cancel()
            await asyncio.wait_for(sink.close(), 5)
            await asyncio.gather(*attempts, return_exceptions=True)

        self._run(run)

    def test_an_erased_call_is_gone(self) -> None:
        if self.sink.erase is Sink.erase:
            return  # then it gets call.erased by `deliver`

        async def run(sink: Sink, _: dict[str, Any]) -> None:
            ended, other = an_event("call.ended"), an_event()
            settled = an_event(call_id=ended.subject)
            await self._arrive(sink, ended, other)
            await self._deliver(sink, a_delivery(settled))
            of = ended.data.call
            erased = Call(id=of.id, provider=of.provider, account=of.account, status="ended")
            for _again in (1, 2):
                await asyncio.wait_for(sink.erase(erased), self.patience_s)
            assert await self._found([ended, other]) == [0, 1], "the erased call alone must go"

        self._run(run)

    # What the tests share

    def _run(self, test: Callable[[Sink, dict[str, Any]], Awaitable[None]]) -> None:
        async def whole() -> None:
            await self.start()
            try:
                options = await self.options()
                async with self._opened(options) as sink:
                    await test(sink, options)
            finally:
                await self.stop()

        asyncio.run(whole())

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with make_client(guarded=False, timeout_s=self.patience_s) as http:
            yield http

    @contextlib.asynccontextmanager
    async def _opened(self, options: dict[str, Any]) -> AsyncIterator[Sink]:
        config: SinkConfig = msgspec.convert(options, self.sink.Config)
        async with self._client() as http:
            sink = self.sink("contract", config, http)
            sink.memory = LocalMemory()
            await asyncio.wait_for(sink.open(), self.patience_s)
            try:
                yield sink
            finally:
                await asyncio.wait_for(sink.close(), 5)

    async def _deliver(self, sink: Sink, delivery: Delivery) -> str | None:
        return await asyncio.wait_for(sink.deliver(delivery), self.patience_s)

    async def _arrive(self, sink: Sink, *events: CallEvent) -> None:
        """Deliver them side by side, and find each of them there."""
        await asyncio.gather(*(self._deliver(sink, a_delivery(event)) for event in events))
        missing = [event.type for event, times in zip(events, await self._found(events), strict=True) if not times]
        assert not missing, f"`deliver` returned, and the destination has not got {', '.join(missing)}"

    async def _found(self, events: Iterable[CallEvent]) -> list[int]:
        """How often the destination has each of the events."""
        entries = [entry if isinstance(entry, bytes) else entry.encode() for entry in await self.received()]
        return [
            sum(event.id.encode() in entry or event.subject.encode() in entry for entry in entries) for event in events
        ]

    async def _failure(self, sink: Sink, *, opening: bool = False) -> SinkError:
        try:
            if opening:
                await asyncio.wait_for(sink.open(), self.patience_s)
            await self._deliver(sink, a_delivery(self._telling()))
        except SinkError as error:
            return error
        except Exception as error:
            raise AssertionError(f"raise SinkError, not {type(error).__name__}: {error}") from error
        raise AssertionError("the destination did not take the event, and `deliver` returned")

    async def _again(self, sink: Sink, event: CallEvent, *, reopen: bool = False) -> None:
        """As the worker does: until the destination has the event."""
        deadline = asyncio.get_running_loop().time() + self.patience_s
        while True:
            try:
                if reopen:
                    await asyncio.wait_for(sink.open(), self.patience_s)
                    reopen = False
                await self._arrive(sink, event)
                return
            except SinkError as error:
                if _final(error) or asyncio.get_running_loop().time() > deadline:
                    raise AssertionError(f"the destination is there again, and the sink still fails: {error}") from None
                await asyncio.sleep(0.1)

    def _telling(self) -> CallEvent:
        """An event with much in it that no error may tell."""
        return an_event(transcript=[Turn(role="user", text=SAID)], analysis=Analysis(summary=SAID))

    def _is_discreet(self, what: str, text: str, options: dict[str, Any]) -> None:
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(self.sink.Config)}
        told = [name for name, value in options.items() if is_secret(fields[name]) and str(value) in text]
        assert not told, f"{what} tells the secret {told[0]}; raise SinkError(…) from None, in words of your own"
        assert SAID not in text, f"{what} tells what was said in the call; raise SinkError(…) from None"
        assert NUMBER not in text, f"{what} tells a phone number; raise SinkError(…) from None"


def _final(error: SinkError) -> bool:
    return error.permanent or error.gone


def _whole(error: BaseException) -> str:
    """The error with all that is chained to it, as a log would show it; without the source lines."""
    shown = "".join(traceback.format_exception(error))
    return "\n".join(line for line in shown.splitlines() if not line.startswith("    "))


class HttpSinkContract(SinkContract):
    """For a sink that speaks HTTP: `self.destination` is a server on loopback; its outages and refusals come with it.

    `options` leads the sink there (`self.destination.url`); `received` gives the bodies it took unless you write it.
    """

    answer: ClassVar[Answer] = Answer()  # what the vendor answers when all is well
    gone_is_disabled: ClassVar[bool] = True  # whether HTTP 410 says that there is nothing any more

    async def start(self) -> None:
        self.destination = Destination()
        self.destination.answers = lambda _: self.answer
        await self.destination.start()

    async def stop(self) -> None:
        await self.destination.stop()

    async def received(self) -> Iterable[str | bytes]:
        return [sent.body for sent in self.destination.sent]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        async with self.destination.down():
            yield

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        async with self.destination.answering(400, b"no"):
            yield

    def test_server_errors_and_redirects_are_tried_again(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            for status in (301, 307, 408, 425, 500, 502, 503):
                async with self.destination.answering(status, b"no", {"location": self.destination.url}):
                    error = await self._failure(sink)
                assert not _final(error), f"HTTP {status} may pass: {error}"
                self._is_discreet("the error", _whole(error), options)

        self._run(run)

    def test_a_request_for_patience_is_heeded(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            async with self.destination.answering(429, b"slow down", {"retry-after": "7"}):
                error = await self._failure(sink)
            assert not _final(error), "HTTP 429 passes"
            assert error.retry_after == 7, f"Retry-After: 7 became {error.retry_after}"

        self._run(run)

    def test_a_destination_that_is_gone_disables_the_sink(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            async with self.destination.answering(410, b"gone"):
                error = await self._failure(sink)
            assert error.gone == self.gone_is_disabled, f"HTTP 410 gave gone={error.gone}"

        self._run(run)

    def test_what_a_refusal_says_is_not_repeated(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            async with self.destination.answering(422, f"cannot take {SAID} of {NUMBER}: {options}"):
                error = await self._failure(sink)
            self._is_discreet("the error", _whole(error), options)

        self._run(run)
