"""The sinks' contract is red where a promise is broken: sinks that keep it, which are green, with one defect each."""

import asyncio
import contextlib
import json
import logging
import socket
import sqlite3
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import aiohttp
import httpx
import msgspec
import pytest
from msgspec import Meta

from aftercall import Call, Delivery, Secret, Sink, SinkConfig, SinkError
from aftercall.sinks.http import post, request
from aftercall.testing import Answer, Destination, HttpSinkContract, RecordingSink, SinkContract
from tests.samples import a_delivery, an_event

TOKEN = "sesame-7291"


class Notes(Sink):
    """Keeps the contract: a note an event, by HTTP."""

    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="where notes are posted")]
        token: Annotated[Secret, Meta(description="the API token")]

    config: Config

    async def deliver(self, delivery: Delivery) -> str | None:
        body = self.render(delivery)
        return str(await post(self.http, self.config.url, body, self.headers(delivery)))

    def headers(self, delivery: Delivery) -> dict[str, str]:
        return {"authorization": f"Bearer {self.config.token}", "idempotency-key": delivery.event.id}


class Table(Sink):
    """Keeps the contract: a row an event, in a SQLite file, without HTTP."""

    raw = True
    insert = "insert or ignore into events values (?, ?, ?)"
    forget = "delete from events where call = ?"  # with its account

    class Config(SinkConfig, frozen=True):
        path: Annotated[str, Meta(description="the SQLite file")]

    config: Config

    async def open(self) -> None:
        try:
            self.table = sqlite3.connect(f"file:{self.config.path}?mode=rw", uri=True, timeout=0.1)
        except sqlite3.Error as error:
            raise SinkError(f"SQLite: {type(error).__name__}") from None

    async def close(self) -> None:
        self.table.close()

    async def deliver(self, delivery: Delivery) -> str | None:
        event = delivery.event
        self.write(self.insert, event.id, self.key(event.data.call), self.render(delivery).decode())
        return None

    async def erase(self, call: Call) -> None:
        self.write(self.forget, self.key(call))

    def key(self, call: Call) -> str:
        return f"{call.provider}/{call.account}/{call.id}"

    def write(self, statement: str, *values: str) -> None:
        try:
            with self.table:
                self.table.execute(statement, values)
        except sqlite3.Error as error:
            raise SinkError(f"SQLite: {type(error).__name__}", permanent="no such table" in str(error)) from None


class TestNotes(HttpSinkContract):
    sink = Notes

    async def options(self) -> dict[str, Any]:
        return {"url": f"{self.destination.url}/notes/violet-otter", "token": TOKEN}

    async def received(self) -> Iterable[str | bytes]:
        return {sent.headers["idempotency-key"]: sent.body for sent in self.destination.sent}.values()


class TestTable(SinkContract):
    sink = Table

    async def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "calls.db"
        self.sql("create table events (id text primary key, call text, body text)")

    async def stop(self) -> None:
        self.folder.cleanup()

    async def options(self) -> dict[str, Any]:
        return {"path": str(self.path)}

    async def received(self) -> Iterable[str | bytes]:
        return [f"{id_} {body}" for id_, body in self.sql("select id, body from events")]

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path)) as table, table:
            return table.execute(statement).fetchall()

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("begin exclusive")
            yield

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        self.sql("alter table events rename to elsewhere")
        yield


def failures(base: type[SinkContract], test: str, **attributes: Any) -> Iterator[BaseException]:
    """What the contract's test says of a subclass with these attributes."""
    contract = type("Contract", (base,), attributes)()
    try:
        getattr(contract, f"test_{test}")()
    except (Exception, pytest.fail.Exception) as error:
        yield error


def nobody_asked(task: "asyncio.Task[Any]") -> None:
    """Asked for here, since asyncio would log it at the next garbage collection, in the midst of another test."""
    if not task.cancelled():
        task.exception()


# Defects of what speaks HTTP


class Unkind(Notes):
    """With an option more."""

    class Config(Notes.Config, frozen=True):
        colour: str = "violet"


class Undocumented(Sink):
    Config = Notes.Config
    deliver = Notes.deliver
    headers = Notes.headers


Undocumented.__module__ = "nowhere"


class TakesOneEventByItsLetters(Notes):
    events = "call.ended"  # type: ignore[assignment]


class TakesEventsThatAreNone(Notes):
    events = ("call.finished",)


class WritesTheTokenAsText(Notes):
    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="where notes are posted")]
        token: Annotated[str, Meta(description="the API token")]


class ShowsItsOptions(Notes):
    class Config(Notes.Config, frozen=True):
        def __repr__(self) -> str:
            return f"Config({self.url}, {self.token})"


class TakesAnyOption(Notes):
    class Config(Notes.Config, frozen=True, forbid_unknown_fields=False):
        pass


class SwallowsErrors(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        with contextlib.suppress(SinkError):
            return await super().deliver(delivery)
        return None


class ReturnsBeforeItIsSent(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        self.sending = asyncio.create_task(super().deliver(delivery))
        self.sending.add_done_callback(nobody_asked)
        return None


class WantsASummary(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        assert delivery.event.data.call.analysis is not None
        return await super().deliver(delivery)


class BreaksOnNull(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        _ = delivery.event.data.call.duration_ms / 1000  # type: ignore[operator]
        return await super().deliver(delivery)


class BreaksOnOddCharacters(Notes):
    def headers(self, delivery: Delivery) -> dict[str, str]:
        return super().headers(delivery) | {"x-agent": delivery.event.data.call.agent.name or ""}


class KnowsEndsOnly(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        return await super().deliver(delivery) if delivery.event.type in ("call.ended", "call.settled") else None


class LosesOneOfMany(Notes):
    current: Delivery

    async def deliver(self, delivery: Delivery) -> str | None:
        self.current = delivery
        await asyncio.sleep(0.01)
        return await super().deliver(self.current)


class KeysByTheAttempt(Notes):
    def headers(self, delivery: Delivery) -> dict[str, str]:
        return super().headers(delivery) | {"idempotency-key": f"{delivery.event.id}-{delivery.attempt}"}


class ReceiptsTheSummary(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        await super().deliver(delivery)
        analysis = delivery.event.data.call.analysis
        return analysis.summary if analysis else None


class ReceiptsTheToken(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        await super().deliver(delivery)
        return f"sent with {self.config.token}"


class ReceiptsTheAnswer(Notes):
    async def deliver(self, delivery: Delivery) -> Any:
        return await post(self.http, self.config.url, delivery.body, self.headers(delivery))


class CatchesCancellation(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        with contextlib.suppress(asyncio.CancelledError):
            return await super().deliver(delivery)
        return None


class MakesAnErrorOfCancellation(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except asyncio.CancelledError:
            raise SinkError("cancelled") from None


class GoesOnWhenCancelled(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except asyncio.CancelledError:
            await asyncio.sleep(3)
            raise


class EncodesAnew(Notes):
    def render(self, delivery: Delivery) -> Any:
        return msgspec.json.encode(delivery.event)


class RendersTheTime(Notes):
    rendered = 0

    def render(self, delivery: Delivery) -> Any:
        self.rendered += 1
        return b"%s %d" % (delivery.body, self.rendered)


class RendersWhatIsNoJson(Notes):
    def render(self, delivery: Delivery) -> Any:
        return {"event": self}


class ConnectsToRender(Notes):
    def render(self, delivery: Delivery) -> Any:
        with socket.create_connection(("127.0.0.1", int(self.config.url.split(":")[2].split("/")[0]))):
            return delivery.body


class SendsToRender(Notes):
    def render(self, delivery: Delivery) -> Any:
        self.sending = asyncio.create_task(self.deliver(delivery))
        self.sending.add_done_callback(nobody_asked)
        return delivery.body


class BringsTheRowToRender(Table):
    def render(self, delivery: Delivery) -> Any:
        with contextlib.closing(sqlite3.connect(self.config.path)) as table, table:
            table.execute(self.insert, (delivery.event.id, delivery.event.subject, delivery.body.decode()))
        return delivery.body


class SendsElse(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        note = json.dumps({"call": delivery.event.subject}).encode()
        return str(await post(self.http, self.config.url, note, self.headers(delivery)))


class TakesAnOutageForARefusal(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(str(error), permanent=True) from None


class LetsTheClientSpeak(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        answer = await self.http.post(self.config.url, content=delivery.body, headers=self.headers(delivery))
        answer.raise_for_status()
        return None


class TriesARefusalAgain(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(str(error)) from None


class TellsTheToken(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(f"{error} with {self.config.token}", permanent=error.permanent) from None


class TellsTheUrlsPath(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(f"{error} at {httpx.URL(self.config.url).path}", permanent=error.permanent) from None


class ChainsWhatTellsTheToken(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            try:
                return await super().deliver(delivery)
            except SinkError as error:
                raise RuntimeError(f"401 for {self.config.token}") from error
        except RuntimeError as error:
            raise SinkError("not taken") from error


class TellsTheNumber(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError:
            raise SinkError(f"no note for {delivery.event.data.call.from_}") from None


class RepeatsTheAnswer(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        answer = await self.http.post(self.config.url, content=delivery.body, headers=self.headers(delivery))
        if not answer.is_success:
            raise SinkError(f"HTTP {answer.status_code}: {answer.text}", permanent=True)
        return None


class ForgetsHowLongToWait(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(str(error), permanent=error.permanent, gone=error.gone) from None


class TakesGoneForBusy(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(str(error), permanent=error.permanent, retry_after=error.retry_after) from None


class ForgetsItsParent(Notes):
    def __init__(self, name: str, config: Notes.Config, _: httpx.AsyncClient) -> None:
        self.config = config


class LeavesATask(Notes):
    async def open(self) -> None:
        self.idle = asyncio.create_task(asyncio.sleep(60))


class BlocksTheLoop(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        with urllib.request.urlopen(self.config.url, data=delivery.body):  # noqa: ASYNC210, S310
            return None


class SleepsOnTheLoop(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        time.sleep(0.05)  # noqa: ASYNC251
        return await super().deliver(delivery)


class LogsWhatWasSaid(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        logging.getLogger("notes").warning("posting %s", delivery.body)
        return await super().deliver(delivery)


class PrintsTheCaller(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        print("a call of", delivery.event.data.call.from_)  # noqa: T201
        return await super().deliver(delivery)


class LogsWhatFailed(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError:
            logging.getLogger("notes").exception("not taken with %s", self.config.token)
            raise


class BringsItsOwnClient(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        async with httpx.AsyncClient() as http:
            return str(await post(http, self.config.url, delivery.body, self.headers(delivery)))


class FollowsRedirects(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            answer = await self.http.post(
                self.config.url, content=delivery.body, headers=self.headers(delivery), follow_redirects=True
            )
        except httpx.HTTPError:
            raise SinkError("not taken") from None
        if not answer.is_success:
            raise SinkError(f"HTTP {answer.status_code}")
        return None


class TakesARevokedTokenForYes(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        headers = self.headers(delivery)
        return str(await request(self.http, "POST", self.config.url, delivery.body, headers, accept={401}))


class RemembersBeforeItSent(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        if await self.memory.add(delivery.event.id, "sent"):
            return await super().deliver(delivery)
        return "sent before"


class TriesThreeTimes(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        for _ in range(2):
            with contextlib.suppress(SinkError):
                return await super().deliver(delivery)
        return await super().deliver(delivery)


class HeedsOnlyTooMany(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            if "429" in str(error):
                raise
            raise SinkError(str(error), permanent=error.permanent, gone=error.gone) from None


class TellsTheUrl(Notes):
    async def deliver(self, delivery: Delivery) -> str | None:
        try:
            return await super().deliver(delivery)
        except SinkError as error:
            raise SinkError(f"{error} at {httpx.URL(self.config.url).netloc.decode()}") from None


class NamesAnOptionTimeout(Notes):
    class Config(Notes.Config, frozen=True):
        timeout: Annotated[int, Meta(description="seconds")] = 3


# Defects of what has a connection of its own


class KeysByTheCall(Table):
    async def deliver(self, delivery: Delivery) -> str | None:
        key = self.key(delivery.event.data.call)
        self.write(self.insert, key, key, self.render(delivery).decode())
        return None


class HangsOnClose(Table):
    async def close(self) -> None:
        self.table.close()
        await asyncio.sleep(60)


class InsertsAgain(Table):
    insert = "insert into events values (? || random(), ?, ?)"


class IsOpenOnce(Table):
    async def open(self) -> None:
        if hasattr(self, "tried"):
            raise SinkError("opened before")
        self.tried = True
        await super().open()
        try:
            self.table.execute("select * from events limit 1")
        except sqlite3.Error:
            self.table.close()
            raise SinkError("locked") from None


class FailsForGoodWhenOpened(Table):
    async def open(self) -> None:
        await super().open()
        try:
            self.table.execute("select * from events limit 1")
        except sqlite3.Error:
            self.table.close()
            raise SinkError("no table", permanent=True) from None


class ErasesAll(Table):
    forget = "delete from events where call = ? or true"


class ErasesNothing(Table):
    async def erase(self, call: Call) -> None:
        return


class ErasesOneEvent(Table):
    forget = "delete from events where id = (select id from events where call = ? limit 1)"


class ErasesQuietly(Table):
    async def erase(self, call: Call) -> None:
        with contextlib.suppress(SinkError):
            await super().erase(call)


class ErasesByTheIdAlone(Table):
    def key(self, call: Call) -> str:
        return call.id


class ForgetfulNotes(Notes):
    """Keeps the contract: a note that can be deleted."""

    async def erase(self, call: Call) -> None:
        headers = {"idempotency-key": f"{call.account}/{call.id}"}
        await request(self.http, "DELETE", self.config.url, headers=headers)


class TakesAnyAnswerToErasing(ForgetfulNotes):
    async def erase(self, call: Call) -> None:
        headers = {"idempotency-key": f"{call.account}/{call.id}"}
        await request(self.http, "DELETE", self.config.url, headers=headers, accept=range(300, 600))


class TakesAnOutageOfErasureForARefusal(Table):
    async def erase(self, call: Call) -> None:
        try:
            await super().erase(call)
        except SinkError as error:
            raise SinkError(str(error), permanent=True) from None


DEFECTS: list[tuple[type[Sink], str, str]] = [  # the sink, the test that must be red, and a word of what it says
    (TakesEventsThatAreNone, "the_class_is_one_that_a_worker_takes", "its events name 'call.finished'"),
    (NamesAnOptionTimeout, "the_class_is_one_that_a_worker_takes", "Config.timeout: every sink has an option"),
    (Unkind, "every_option_is_described", "colour: write it as Annotated"),
    (Undocumented, "every_option_is_described", "say in a docstring"),
    (TakesOneEventByItsLetters, "its_events_are_such_as_there_are", "with a comma"),
    (TakesEventsThatAreNone, "its_events_are_such_as_there_are", "call.finished; there are *, call.started"),
    (WritesTheTokenAsText, "secrets_are_marked_and_masked", "token: mark a credential as Secret"),
    (ShowsItsOptions, "secrets_are_marked_and_masked", "url is shown where options are"),
    (TakesAnyOption, "an_option_that_does_not_exist_is_refused", "class Config(SinkConfig, frozen=True)"),
    (ReturnsBeforeItIsSent, "an_event_arrives", "has not got 1 of 1: call.settled"),
    (ForgetsItsParent, "an_event_arrives", "super().__init__(name, config, http)"),
    (LeavesATask, "an_event_arrives", "leaves what runs on: sleep"),
    (KnowsEndsOnly, "every_kind_of_event_arrives", "has not got 7 of 9: call.analyzed, call.billed"),
    (BreaksOnNull, "a_call_of_which_little_is_known_arrives", "unsupported operand"),
    (WantsASummary, "a_call_of_which_little_is_known_arrives", "assert None is not None"),
    (BreaksOnOddCharacters, "whatever_was_said_arrives", ""),
    (LosesOneOfMany, "many_at_once_arrive", "has not got 31 of 32"),
    (KeysByTheAttempt, "an_event_that_comes_again_is_there_once", "has the event 3 times: let it know"),
    (InsertsAgain, "an_event_that_comes_again_is_there_once", "has the event 3 times: let it know"),
    (KeysByTheCall, "a_later_event_of_the_call_arrives_too", "know them apart by event.id"),
    (SleepsOnTheLoop, "it_does_not_block", "ms without `await`"),
    (LogsWhatWasSaid, "nothing_of_a_call_is_logged", "what is logged tells what was said in the call"),
    (PrintsTheCaller, "nothing_of_a_call_is_logged", "what is logged tells a phone number"),
    (LogsWhatFailed, "a_destination_that_is_down_is_tried_again", "what is logged tells the secret token"),
    (LogsWhatFailed, "an_event_that_failed_arrives_with_the_next_attempt", "what is logged tells the secret token"),
    (RemembersBeforeItSent, "an_event_that_failed_arrives_with_the_next_attempt", "has not got 1 of 1"),
    (TriesThreeTimes, "an_attempt_is_one_attempt", "after HTTP 429 the sink sent the same again"),
    (BringsItsOwnClient, "every_request_is_made_with_self_http", "make every request with self.http"),
    (FollowsRedirects, "server_errors_and_redirects_are_tried_again", "a redirect was followed"),
    (TakesARevokedTokenForYes, "only_2xx_is_a_delivery", "and `deliver` returned"),
    (HeedsOnlyTooMany, "a_request_for_patience_is_heeded", "Retry-After: 7 of HTTP 503 became None"),
    (TellsTheUrl, "only_2xx_is_a_delivery", "tells the destination's URL"),
    (ReceiptsTheSummary, "a_receipt_says_nothing_of_the_call", "the receipt tells what was said"),
    (ReceiptsTheToken, "a_receipt_says_nothing_of_the_call", "the receipt tells the secret token"),
    (ReceiptsTheAnswer, "a_receipt_says_nothing_of_the_call", "returned Answer: a receipt is a str"),
    (CatchesCancellation, "a_delivery_can_be_cancelled", "returned as if the destination had the event"),
    (MakesAnErrorOfCancellation, "a_delivery_can_be_cancelled", "it raised SinkError('cancelled')"),
    (GoesOnWhenCancelled, "a_delivery_can_be_cancelled", "goes on: let CancelledError through"),
    (EncodesAnew, "the_providers_own_body_is_passed_on_as_it_is", "send `delivery.body`"),
    (RendersTheTime, "rendering_sends_nothing", "rendered in two ways"),
    (RendersWhatIsNoJson, "rendering_sends_nothing", "what JSON can hold"),
    (ConnectsToRender, "rendering_sends_nothing", "`render` connects"),
    (SendsToRender, "rendering_sends_nothing", "`render` starts a task"),
    (BringsTheRowToRender, "rendering_sends_nothing", "brought the event to the destination"),
    (SendsElse, "what_is_rendered_is_what_is_sent", "write `render`"),
    (SwallowsErrors, "a_destination_that_is_down_is_tried_again", "and `deliver` returned"),
    (TakesAnOutageForARefusal, "a_destination_that_is_down_is_tried_again", "an outage may pass"),
    (LetsTheClientSpeak, "a_destination_that_is_down_is_tried_again", "raise SinkError, not Connect"),
    (TellsTheToken, "a_destination_that_is_down_is_tried_again", "the error tells the secret token"),
    (TellsTheUrlsPath, "a_destination_that_is_down_is_tried_again", "the error tells the secret url"),
    (ChainsWhatTellsTheToken, "a_destination_that_is_down_is_tried_again", "the error tells the secret token"),
    (TellsTheNumber, "a_destination_that_is_down_is_tried_again", "the error tells a phone number"),
    (IsOpenOnce, "it_can_be_opened_when_the_destination_is_there_again", "the sink still fails: opened before"),
    (FailsForGoodWhenOpened, "it_can_be_opened_when_the_destination_is_there_again", "an outage may pass"),
    (TriesARefusalAgain, "a_refusal_is_for_good", "raise SinkError(…, permanent=True)"),
    (RepeatsTheAnswer, "what_a_refusal_says_is_not_repeated", "the error tells"),
    (RepeatsTheAnswer, "server_errors_and_redirects_are_tried_again", "HTTP 301 may pass"),
    (ForgetsHowLongToWait, "a_request_for_patience_is_heeded", "Retry-After: 7 of HTTP 429 became None"),
    (TakesGoneForBusy, "a_destination_that_is_gone_disables_the_sink", "HTTP 410 gave gone=False"),
    (HangsOnClose, "it_closes_in_the_midst_of_deliveries", "`close` neither returned nor raised"),
    (GoesOnWhenCancelled, "it_closes_in_the_midst_of_deliveries", "goes on after `close`"),
    (ErasesAll, "an_erased_call_is_gone", "`erase` deleted another call too"),
    (ErasesNothing, "an_erased_call_is_gone", "still has 2 of the call's events"),
    (ErasesOneEvent, "an_erased_call_is_gone", "still has 1 of the call's events"),
    (ErasesByTheIdAlone, "a_call_of_the_same_id_in_another_account_stays", "go by call.provider, call.account"),
    (TakesAnyAnswerToErasing, "an_erasure_that_fails_there_is_tried_again", "and `erase` returned"),
    (ErasesQuietly, "an_erasure_while_the_destination_is_down_is_tried_again", "and `erase` returned"),
    (TakesAnOutageOfErasureForARefusal, "an_erasure_while_the_destination_is_down_is_tried_again", "outage may pass"),
]  # fmt: skip


@pytest.mark.parametrize(("defect", "test", "said"), DEFECTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_promise_is_seen(defect: type[Sink], test: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftercall.testing.sink_given.CLOSES_IN_S", 0.5)
    contract = TestTable if issubclass(defect, Table) else TestNotes

    [failure] = list(failures(contract, test, sink=defect, patience_s=2.0)) or [None]

    assert failure is not None, "the suite is green"
    assert said in str(failure)


def test_every_test_of_both_suites_has_a_defect_that_it_sees() -> None:
    tests = {name for suite in (SinkContract, HttpSinkContract) for name in vars(suite) if name.startswith("test_")}
    assert tests == {f"test_{test}" for _, test, _ in DEFECTS}


# What the suites lack from their author


class Asking(SinkContract):
    sink = Table


def test_what_the_suite_needs_is_asked_for(tmp_path: Path) -> None:
    async def elsewhere(_: object) -> dict[str, Any]:
        return {"url": "http://127.0.0.1:1/notes", "token": TOKEN}

    async def incomplete(_: object) -> dict[str, Any]:
        return {"url": "http://127.0.0.1:1/notes"}

    async def nowhere(_: object) -> dict[str, Any]:
        return {"path": str(tmp_path / "nowhere.db")}

    async def records(_: object) -> Any:
        return [{"id": "evt_1"}]

    async def text(_: object) -> Any:
        return "evt_1"

    async def nothing(_: object) -> Any:
        return None

    for base, attributes, test, remedy in (
        (HttpSinkContract, {}, "an_event_arrives", "say which class is tested: sink = YourSink"),
        (Asking, {}, "an_event_arrives", "write `async def options`"),
        (
            Asking,
            {"options": nowhere},
            "an_event_arrives",
            "`open` failed: SQLite: OperationalError; do `options` lead",
        ),
        (
            TestNotes,
            {"options": elsewhere},
            "an_event_arrives",
            "cannot connect; the destination got no request at all",
        ),
        (TestNotes, {"options": incomplete}, "an_event_arrives", "does not fit Notes.Config: Object missing required"),
        (TestNotes, {"answer": Answer(403)}, "an_event_arrives", "HTTP 403; the destination refused it, as `answer`"),
        (TestNotes, {"received": SinkContract.received}, "an_event_arrives", "write `async def received`"),
        (TestNotes, {"received": records}, "an_event_arrives", "this is something else: dict"),
        (TestNotes, {"received": text}, "an_event_arrives", "this is something else: str"),
        (TestNotes, {"received": nothing}, "an_event_arrives", "this is something else: NoneType"),
        (TestTable, {"outage": None}, "a_destination_that_is_down_is_tried_again", 'say why: outage = "…"'),
        (TestTable, {"refusal": None}, "a_refusal_is_for_good", "write `refusal`, a method with @contextlib"),
    ):
        [failure] = failures(base, test, **attributes)
        assert remedy in str(failure)


@pytest.mark.parametrize("name", ["outage", "refusal"])
def test_where_there_is_no_such_trouble_the_reason_is_enough(name: str) -> None:
    reason = {name: "a book of paper is always there"}

    for _, test, _ in DEFECTS:
        if "is_down" in test or "opened_when" in test or "refusal_is" in test:
            assert list(failures(TestTable, test, **reason)) == []


def test_what_blocks_the_loop_is_stopped_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftercall.testing.sink_given.BLOCKED_S", 1.0)

    [failure] = failures(TestNotes, "an_event_arrives", sink=BlocksTheLoop, patience_s=1.0)

    assert "the event loop stood still for 1 s" in str(failure)
    assert "asyncio.to_thread" in str(failure)


def test_a_sink_without_options_or_http_can_be_tested() -> None:
    class Kept(RecordingSink):
        """Keeps what it is given."""

        kept: ClassVar[list[Delivery]] = []

        async def deliver(self, delivery: Delivery) -> None:
            self.kept.append(delivery)

    class Contract(SinkContract):
        sink = Kept
        idempotent = False
        outage = refusal = "a list is always there"

        async def options(self) -> dict[str, Any]:
            Kept.kept.clear()
            return {}

        async def received(self) -> Iterable[str | bytes]:
            return [delivery.body for delivery in Kept.kept]

    tests = [test.removeprefix("test_") for test in dir(Contract) if test.startswith("test_")]
    assert [error for test in tests for error in failures(Contract, test)] == []


def test_secrets_in_lists_and_tables_are_looked_for_too() -> None:
    class Keyed(Notes):
        class Config(SinkConfig, frozen=True):
            url: Annotated[Secret, Meta(description="where notes are posted")]
            token: Annotated[Secret, Meta(description="the API token")]
            headers: Annotated[dict[str, Secret], Meta(description="more headers")]
            keys: Annotated[list[Secret], Meta(description="keys")]

        async def deliver(self, delivery: Delivery) -> str | None:
            await super().deliver(delivery)
            return told

    async def options(contract: TestNotes) -> dict[str, Any]:
        known = {"headers": {"x-key": "opal-lantern"}, "keys": ["quartz-heron"]}
        return await TestNotes.options(contract) | known

    for told, name in (  # noqa: B007 - `deliver` reads it
        ("opal-lantern", "headers"),
        ("quartz-heron", "keys"),
    ):
        given = {"sink": Keyed, "options": options}
        [failure] = failures(TestNotes, "a_receipt_says_nothing_of_the_call", **given)
        assert f"the receipt tells the secret {name}" in str(failure)
        assert list(failures(TestNotes, "secrets_are_marked_and_masked", **given)) == []


# The parts


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[tuple[Destination, aiohttp.ClientSession]]:
    destination = Destination()
    await destination.start()
    try:
        async with aiohttp.ClientSession() as client:
            yield destination, client
    finally:
        await destination.stop()


async def test_a_destination_keeps_what_it_took_apart_from_what_it_refused() -> None:
    async with started() as (destination, client):
        async with client.put(f"{destination.url}/notes?page=2", json={"a": 1}, headers={"X-Key": "k"}) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        destination.answers = lambda sent: Answer(409 if sent.method == "POST" else 200, {"told": "no"}, {"x-id": "7"})
        async with client.post(f"{destination.url}/notes", data=b"again") as answer:
            assert (answer.status, await answer.json(), answer.headers["x-id"]) == (409, {"told": "no"}, "7")

        [taken], [refused] = destination.sent, destination.refused
        assert (taken.method, taken.path, taken.headers["x-key"], taken.json()) == (
            "PUT",
            "/notes?page=2",
            "k",
            {"a": 1},
        )
        assert (refused.method, refused.path, refused.body) == ("POST", "/notes", b"again")


async def test_a_destination_answers_text_and_bytes_as_they_are() -> None:
    async with started() as (destination, client):
        for body, sent in (("ok", b"ok"), (b"\xff", b"\xff"), (None, b"null"), ([1], b"[1]")):
            async with destination.answering(201, body), client.get(destination.url) as answer:
                assert (answer.status, await answer.read()) == (201, sent)
        async with client.get(destination.url) as answer:
            assert answer.status == 200


async def test_a_destination_that_is_down_refuses_connections_and_keeps_its_port() -> None:
    async with started() as (destination, client):
        with contextlib.suppress(LookupError):
            async with destination.down():
                with pytest.raises(aiohttp.ClientConnectorError):
                    await client.get(destination.url)
                with socket.socket() as other, pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", destination.port))
                raise LookupError
        with contextlib.suppress(LookupError):
            async with destination.answering(500):
                raise LookupError
        async with client.get(destination.url) as answer:
            assert answer.status == 200


async def test_a_recording_sink_keeps_deliveries_and_fails_as_told() -> None:
    sink = RecordingSink()
    sink.fails_with = [SinkError("busy"), SinkError("no", permanent=True)]
    for message in ("busy", "no"):
        with pytest.raises(SinkError, match=message):
            await sink.deliver(a_delivery())
    await sink.deliver(a_delivery(attempt=3))

    assert sink.received == [an_event()]
    assert [delivery.attempt for delivery in sink.deliveries] == [3]
    assert sink.name == "recording"
