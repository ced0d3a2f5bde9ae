"""What every sink promises, as tests that a sink's author reads when one of them is red."""

import asyncio
import sys
from typing import Any, get_args

import msgspec

try:
    import pytest  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("aftercall.testing is run by pytest, which is not installed: pip install pytest") from None

from aftercall.call import Agent, Analysis, Call, Turn
from aftercall.event import EventType
from aftercall.sink_checks import flaw
from aftercall.sink_settings import shadowed
from aftercall.sinks.base import Delivery, Sink, is_secret
from aftercall.testing.sink_given import SinkGiven, erased, final
from aftercall.testing.sink_parts import (
    AWKWARD,
    KINDS,
    a_delivery,
    an_event,
    logged,
    longest_wait_s,
    secrets_in,
    should_be_secret,
    whole,
    without_connections,
)

BLOCKED_MOST_S = 0.04  # a disk that is written to takes some milliseconds


class SinkContract(SinkGiven):
    """What every sink promises. Subclass it as `Test…`, set `sink`, and write `options` and `received`.

    A test gets a fresh object of the subclass: `options` is called once in each, in the event loop of the test.
    Where the destination speaks HTTP, subclass `HttpSinkContract`, which brings one.
    """

    # The class

    def test_the_class_is_one_that_a_worker_takes(self) -> None:
        wrong = flaw(self.sink)
        assert wrong is None, f"{self.sink.__name__}: {wrong}"
        taken = shadowed(self.sink)
        assert taken is None, f"Config.{taken}: every sink has an option of that name; give it another one"

    def test_every_option_is_described(self) -> None:
        module = sys.modules.get(self.sink.__module__)
        assert self.sink.__doc__ or (module and module.__doc__), f"say in a docstring what {self.sink.__name__} does"
        for field in msgspec.structs.fields(self.sink.Config):
            metas = [part for part in getattr(field.type, "__metadata__", ()) if isinstance(part, msgspec.Meta)]
            assert any(meta.description for meta in metas), (
                f"{field.name}: write it as Annotated[…, Meta(description=…)]; documentation and checks come from that"
            )

    def test_its_events_are_such_as_there_are(self) -> None:
        known, events = ("*", *get_args(EventType)), self.sink.events
        assert isinstance(events, tuple), f'`events` is a tuple, with a comma also after one: events = ("{KINDS[4]}",)'
        unknown = [name for name in events if name not in known]
        assert not unknown, f"`events` names {', '.join(map(str, unknown))}; there are {', '.join(known)}"

    def test_secrets_are_marked_and_masked(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            config = self._config(options)
            for field in msgspec.structs.fields(config):
                if should_be_secret(field.name, field.type):
                    assert is_secret(field.type), f"{field.name}: mark a credential as Secret instead of str"
            for name, secrets in secrets_in(options, self.sink.Config).items():
                assert not any(secret in repr(config) for secret in secrets), f"{name} is shown where options are"

        self._run(run)

    def test_an_option_that_does_not_exist_is_refused(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            try:
                msgspec.convert({**options, "no_such_option": 1}, self.sink.Config)
            except msgspec.ValidationError:
                return
            raise AssertionError(
                "an option that does not exist is taken: `class Config(SinkConfig, frozen=True)` refuses it"
            )

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
            [times] = await self._found([delivery.event])
            assert times, f"`deliver` returned, and the destination has not got the event{self._hint()}"
            assert times == 1 or not self.idempotent, (
                f"an attempt was repeated, and the destination has the event {times} times: let it know the "
                "event by its id, or set idempotent = False where the destination cannot"
            )

        self._run(run)

    def test_a_later_event_of_the_call_arrives_too(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            ended = an_event("call.ended")
            settled = an_event("call.settled", call_id=ended.subject)
            settled = msgspec.structs.replace(settled, data=msgspec.structs.replace(settled.data, sequence=9))
            await self._arrive(sink, ended)
            by_event = any(ended.id.encode() in entry for entry in await self._entries())
            await self._arrive(sink, settled)
            assert not by_event or any(settled.id.encode() in entry for entry in await self._entries()), (
                "of two events of one call the destination has only the first: let it know them apart by event.id, and "
                "not by the call's id"
            )

        self._run(run)

    def test_it_does_not_block(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            waits = [await longest_wait_s(sink.deliver(a_delivery(an_event()))) for _ in range(5)]
            assert min(waits) < BLOCKED_MOST_S, (
                f"`deliver` waits {min(waits) * 1000:.0f} ms without `await`, and nothing else goes on meanwhile: use "
                "self.http or a client for asyncio, or put the call into asyncio.to_thread(…)"
            )

        self._run(run)

    def test_nothing_of_a_call_is_logged(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            with logged() as lines:
                await self._deliver(sink, a_delivery(self._telling()))
            self._is_discreet("what is logged", "\n".join(lines), options, "the worker logs what there is to say")

        self._run(run)

    def test_a_receipt_says_nothing_of_the_call(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            receipt = await self._deliver(sink, a_delivery(self._telling()))
            assert receipt is None or isinstance(receipt, str), (
                f"`deliver` returned {type(receipt).__name__}: a receipt is a str, the destination's id say, or None"
            )
            self._is_discreet("the receipt", receipt or "", options)

        self._run(run)

    def test_a_delivery_can_be_cancelled(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            returned = []
            for wait_s in (0.0, 0.0005, 0.002, 0.01):
                event = an_event()
                attempt = asyncio.create_task(sink.deliver(a_delivery(event)))
                await asyncio.sleep(wait_s)
                attempt.cancel()
                done, _pending = await asyncio.wait([attempt], timeout=2)
                assert done, "a cancelled delivery goes on: let CancelledError through"
                if not attempt.cancelled() and attempt.exception() is not None:
                    raise AssertionError(
                        f"cancelled, it raised {attempt.exception()!r}: let CancelledError through"
                    ) from None
                returned += [] if attempt.cancelled() else [event]
            assert all(await self._found(returned)), (
                "cancelled, `deliver` returned as if the destination had the event: let CancelledError through"
            )
            await self._arrive(sink, an_event())

        self._run(run)

    def test_the_providers_own_body_is_passed_on_as_it_is(self) -> None:
        if not self.sink.raw:
            return  # and then a table with format = "raw" is refused

        async def run(sink: Sink, _: dict[str, Any]) -> None:
            event = an_event("call.ended")
            body = b'{"event" : "call_ended", "call": {"call_id": "%s"}}' % event.subject.encode()
            await self._deliver(sink, Delivery(event=event, body=body, format="raw"))
            theirs = [entry for entry in await self._entries() if event.subject.encode() in entry]
            assert theirs, f"`deliver` returned, and the destination has not got it{self._hint()}"
            assert all(body in entry for entry in theirs if b"{" in entry), (
                "the sink says raw = True, and the provider's own body did not arrive as it was: send `delivery.body`"
            )

        self._run(run)

    # render

    def test_rendering_sends_nothing(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            event = an_event()
            async with self._client() as http:
                closed = self.sink("contract", self._config(options), http)
                running = asyncio.all_tasks()
                with without_connections():
                    shown = closed.render(a_delivery(event))
                    assert shown == closed.render(a_delivery(event)), "the same event is rendered in two ways"
                started = asyncio.all_tasks() - running
            if not isinstance(shown, bytes):
                try:
                    msgspec.json.encode(shown)
                except (TypeError, ValueError) as error:
                    raise AssertionError(f"`render` gives bytes, or what JSON can hold: {error}") from None
            assert not started, "`render` starts a task: it must give what would be sent, and do nothing else"
            assert await self._found([event]) == [0], "`render` brought the event to the destination"

        self._run(run)

    # Destinations in trouble

    def test_a_destination_that_is_down_is_tried_again(self) -> None:
        outage = self._trouble("outage", "it takes the destination down, and brings it back")
        if outage is None:
            return

        async def run(sink: Sink, options: dict[str, Any]) -> None:
            await self._arrive(sink, an_event())
            event = self._telling()
            async with outage():
                with logged() as lines:
                    self._may_pass("an outage", await self._failure(sink, event), options)
            self._is_discreet("what is logged", "\n".join(lines), options, "the worker logs the SinkError")
            await self._again(sink, event)

        self._run(run)

    def test_it_can_be_opened_when_the_destination_is_there_again(self) -> None:
        outage = self._trouble("outage", "it takes the destination down, and brings it back")
        if outage is None:
            return

        async def run(_: Sink, options: dict[str, Any]) -> None:
            async with self._client() as http:
                sink = self.sink("contract", self._config(options), http)
                try:
                    async with outage():
                        self._may_pass("an outage", await self._failure(sink), options)
                    await self._again(sink, an_event())
                finally:
                    await self._close(sink)

        self._run(run)

    def test_a_refusal_is_for_good(self) -> None:
        refusal = self._trouble("refusal", "inside of it the destination refuses every event for good")
        if refusal is None:
            return

        async def run(sink: Sink, options: dict[str, Any]) -> None:
            async with refusal():
                error = await self._failure(sink)
                assert final(error), (
                    f"the destination refuses the event for good, and it would be tried again for days: {error}; "
                    "raise SinkError(…, permanent=True)"
                )
                self._is_discreet("the error", whole(error), options)

        self._run(run)

    # close, erase

    def test_it_closes_in_the_midst_of_deliveries(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            attempts = [asyncio.create_task(sink.deliver(a_delivery(an_event()))) for _ in range(5)]
            await asyncio.sleep(0)
            for attempt in attempts:
                attempt.cancel()
            await self._close(sink)
            done, _pending = await asyncio.wait(attempts, timeout=2)
            assert len(done) == len(attempts), "a cancelled delivery goes on after `close`: let CancelledError through"

        self._run(run)

    def test_an_erased_call_is_gone(self) -> None:
        if self.sink.erase is Sink.erase:
            return  # then it gets call.erased by `deliver`

        async def run(sink: Sink, _: dict[str, Any]) -> None:
            ended, other = an_event("call.ended"), an_event()
            settled = an_event(call_id=ended.subject)
            await self._arrive(sink, ended, other)
            await self._deliver(sink, a_delivery(settled))
            for _again in (1, 2):
                await self._in_time(sink.erase(erased(ended)), self.patience_s, "erase")
                theirs, others = await self._found([ended, other])
                assert not theirs, f"`erase` returned, and the destination still has {theirs} of the call's events"
                assert others, "`erase` deleted another call too"

        self._run(run)

    def test_a_call_of_the_same_id_in_another_account_stays(self) -> None:
        if self.sink.erase is Sink.erase:
            return

        async def run(sink: Sink, _: dict[str, Any]) -> None:
            event = an_event()
            other = an_event(call_id=event.subject, account="another-account")
            await self._arrive(sink, other)
            before = await self._found([other])
            await self._arrive(sink, event)
            await self._in_time(sink.erase(erased(event)), self.patience_s, "erase")
            assert await self._found([other]) == before, (
                "`erase` took a call of the same id in another account for its own: go by call.provider, call.account "
                "and call.id"
            )

        self._run(run)

    def test_an_erasure_while_the_destination_is_down_is_tried_again(self) -> None:
        outage = self._trouble("outage", "it takes the destination down, and brings it back")
        if self.sink.erase is Sink.erase or outage is None:
            return

        async def run(sink: Sink, options: dict[str, Any]) -> None:
            event = an_event()
            await self._arrive(sink, event)
            async with outage():
                error = await self._failure(sink, doing=lambda: sink.erase(erased(event)), what="erase")
                self._may_pass("an outage", error, options)

        self._run(run)
