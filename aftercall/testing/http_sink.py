"""What a sink that speaks HTTP promises beside what every sink does, against a server on loopback."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, ClassVar

from aftercall.client import make_client
from aftercall.sinks.base import Sink
from aftercall.testing.destination import Answer, Destination
from aftercall.testing.sink import SinkContract
from aftercall.testing.sink_given import WORDS, erased
from aftercall.testing.sink_parts import NUMBER, SAID, a_delivery, an_event, logged, whole


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

    def _hint(self) -> str:
        if self.destination.sent:
            return super()._hint()
        if self.destination.refused:
            return "; the destination refused it, as `answer` (or destination.answers) says"
        return "; the destination got no request at all: do `options` lead to self.destination.url?"

    def test_what_is_rendered_is_what_is_sent(self) -> None:
        if self.sink.render is not Sink.render:
            return  # it has a shape of its own

        async def run(sink: Sink, _: dict[str, Any]) -> None:
            delivery = a_delivery(an_event())
            await self._deliver(sink, delivery)
            assert any(delivery.body in sent.body for sent in self.destination.sent), (
                "something else is sent than `delivery.body`, which `aftercall sinks render` would show: write "
                "`render`, and let `deliver` send what it gives"
            )

        self._run(run)

    def _is_discreet(self, what: str, text: str, options: dict[str, Any], remedy: str = WORDS) -> None:
        super()._is_discreet(what, text, options, remedy)
        assert f"127.0.0.1:{self.destination.port}" not in text, f"{what} tells the destination's URL; {remedy}"

    def test_every_request_is_made_with_self_http(self) -> None:
        async def run(_: Sink, options: dict[str, Any]) -> None:
            before = [*self.destination.sent, *self.destination.refused]
            async with make_client(guarded=True, timeout_s=self.patience_s) as guarded:
                sink = self.sink("contract", self._config(options), guarded)
                try:
                    with contextlib.suppress(Exception):  # whatever self.http raises, a worker knows what to do with it
                        await self._open(sink)
                        await self._deliver(sink, a_delivery(an_event()))
                finally:
                    await self._close(sink)
            assert [*self.destination.sent, *self.destination.refused] == before, (
                "self.http refused the private address, and the destination got a request: make every request with "
                "self.http, so that no table leads a sink into the private network"
            )

        self._run(run)

    def test_server_errors_and_redirects_are_tried_again(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            elsewhere = "/elsewhere-of-the-contract"
            for status in (301, 302, 303, 304, 307, 308, 408, 425, 500, 502, 503):
                answering = self.destination.answering(status, b"no", {"location": self.destination.url + elsewhere})
                async with answering:
                    self._may_pass(f"HTTP {status}", await self._failure(sink), options)
            assert elsewhere not in {refused.path for refused in self.destination.refused}, (
                "a redirect was followed: leave follow_redirects away, it may lead to where nobody should get"
            )

        self._run(run)

    def test_only_2xx_is_a_delivery(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            for status in (400, 401, 403, 404, 405, 413, 422):
                async with self.destination.answering(status, b"no"):
                    error = await self._failure(sink)
                self._is_discreet(f"the error of HTTP {status}", whole(error), options)

        self._run(run)

    def test_an_event_that_failed_arrives_with_the_next_attempt(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            event = self._telling()
            async with self.destination.answering(503, b"no"):
                with logged() as lines:
                    await self._failure(sink, event)
            self._is_discreet("what is logged", "\n".join(lines), options, "the worker logs the SinkError")
            await self._again(sink, event)

        self._run(run)

    def test_an_attempt_is_one_attempt(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            for status in (429, 500, 503):
                before = len(self.destination.refused)
                async with self.destination.answering(status, b"no"):
                    await self._failure(sink)
                made = [(one.method, one.path, one.body) for one in self.destination.refused[before:]]
                assert len(made) == len(set(made)), (
                    f"after HTTP {status} the sink sent the same again: raise SinkError, and leave the next attempt to "
                    "the worker, which knows the table's `retry`"
                )

        self._run(run)

    def test_an_erasure_that_fails_there_is_tried_again(self) -> None:
        if self.sink.erase is Sink.erase:
            return

        async def run(sink: Sink, options: dict[str, Any]) -> None:
            event = an_event()
            await self._arrive(sink, event)
            for status in (500, 503):
                async with self.destination.answering(status, b"no"):
                    error = await self._failure(sink, doing=lambda: sink.erase(erased(event)), what="erase")
                self._may_pass(f"HTTP {status}", error, options)

        self._run(run)

    def test_a_request_for_patience_is_heeded(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            for status in (429, 503):
                async with self.destination.answering(status, b"slow down", {"retry-after": "7"}):
                    error = await self._failure(sink)
                self._may_pass(f"HTTP {status}", error, options)
                assert error.retry_after == 7, (
                    f"Retry-After: 7 of HTTP {status} became {error.retry_after}: raise SinkError(…, retry_after=7), "
                    "as sinks.http.post does"
                )

        self._run(run)

    def test_a_destination_that_is_gone_disables_the_sink(self) -> None:
        async def run(sink: Sink, _: dict[str, Any]) -> None:
            async with self.destination.answering(410, b"gone"):
                error = await self._failure(sink)
            assert error.gone == self.gone_is_disabled, (
                f"HTTP 410 gave gone={error.gone}; set gone_is_disabled = {error.gone} if the vendor means that by it"
            )

        self._run(run)

    def test_what_a_refusal_says_is_not_repeated(self) -> None:
        async def run(sink: Sink, options: dict[str, Any]) -> None:
            async with self.destination.answering(422, f"cannot take {SAID} of {NUMBER}: {options}"):
                error = await self._failure(sink)
            self._is_discreet("the error", whole(error), options)

        self._run(run)
