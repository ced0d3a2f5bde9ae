"""Sinks that delete their copy of an erased call: what becomes of `erase` when it fails, and of `deliver` beside it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aftercall.call import Call
from aftercall.erasure import erase_call
from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery
from simulator.calls import make_calls
from tests.inside import Forgetful, Inside, inside

CALL = next(call for call in make_calls(seed=21, now=1_790_000_000) if call.provider == "ultravox")
TABLE = '[sinks.crm]\ntype = "tests.test_erasing_sinks:Stubborn"\nretry = ["5s", "30s"]\n'
ALL = 3  # attempts by a schedule of two waits


class Stubborn(Forgetful):
    """Answers its next calls with these errors; `asked` is what it was asked."""

    not_erasing: list[Exception]
    not_delivering: list[Exception]
    asked: list[str]

    async def erase(self, call: Call) -> None:
        self.asked.append("erase")
        if self.not_erasing:
            raise self.not_erasing.pop(0)
        await super().erase(call)

    async def deliver(self, delivery: Delivery) -> None:
        self.asked.append(f"deliver {delivery.attempt}")
        if self.not_delivering:
            raise self.not_delivering.pop(0)
        await super().deliver(delivery)


@asynccontextmanager
async def erased(
    redis_url: str, directory: Path, *, erase: list[Exception], deliver: list[Exception], options: str = ""
) -> AsyncIterator[tuple[Inside, Stubborn]]:
    """A call that was erased, and a sink that has made its first attempt to erase it too."""
    async with inside(redis_url, directory, [CALL], sinks=TABLE + options) as aftercall:
        sink: Stubborn = aftercall.sink("crm")  # type: ignore[assignment]
        sink.asked, sink.not_erasing, sink.not_delivering = [], [], []
        for webhook in CALL.webhooks:
            await aftercall.receive(CALL, webhook)
        await aftercall.finish()
        sink.asked.clear()
        sink.not_erasing, sink.not_delivering = erase, deliver
        provider = aftercall.hub.providers[CALL.provider]
        await erase_call(aftercall.ledger, provider, CALL.id, sinks=aftercall.hub.settings.sinks)
        await aftercall.work()
        yield aftercall, sink


async def waiting_s(aftercall: Inside) -> float | None:
    """In how many seconds the sink's delivery is due; None if there is none."""
    count, overdue_s = (await aftercall.ledger.open_work(["deliver:crm"]))["deliver:crm"]
    return None if not count or overdue_s is None else -overdue_s


async def test_an_erasure_that_fails_is_tried_again_by_the_schedule(valkey_url: str, tmp_path: Path) -> None:
    errors: list[Exception] = [SinkError("locked"), SinkError("locked")]
    async with erased(valkey_url, tmp_path, erase=errors, deliver=[]) as (aftercall, sink):
        wait_s = await waiting_s(aftercall)
        assert wait_s is not None
        assert 4 < wait_s < 6
        assert sink.erased == []

        await aftercall.finish()
        assert sink.asked == ["erase"] * 3
        assert [call.id for call in sink.erased] == [CALL.id]
        assert await aftercall.ledger.dead_letters() == []


@pytest.mark.parametrize(
    ("errors", "attempts"),
    [
        ([SinkError("no such table", permanent=True)], 1),
        ([SinkError("locked")] * 9, ALL),
        ([RuntimeError("boom")] * 9, ALL),
    ],
    ids=["refused for good", "the schedule is used up", "an error of another kind"],
)
async def test_an_erasure_that_cannot_be_made_is_a_dead_letter_and_can_be_replayed(
    valkey_url: str, tmp_path: Path, errors: list[Exception], attempts: int
) -> None:
    async with erased(valkey_url, tmp_path, erase=list(errors), deliver=[]) as (aftercall, sink):
        await aftercall.finish()
        assert sink.asked == ["erase"] * attempts
        ((event_id, sink_name),) = await aftercall.ledger.dead_letters()
        assert sink_name == "crm"
        assert await waiting_s(aftercall) is None

        sink.not_erasing = []
        assert await aftercall.ledger.replay(event_id, "crm") == "due"
        await aftercall.finish()
        assert [call.id for call in sink.erased] == [CALL.id]
        assert await aftercall.ledger.dead_letters() == []


async def test_a_sink_that_is_gone_is_disabled_by_an_erasure_too_and_erases_when_resumed(
    valkey_url: str, tmp_path: Path
) -> None:
    errors: list[Exception] = [SinkError("the table was dropped", gone=True)]
    async with erased(valkey_url, tmp_path, erase=errors, deliver=[]) as (aftercall, sink):
        assert (await aftercall.ledger.sink_health(["crm"]))["crm"].state == "disabled"
        await aftercall.pass_time()
        await aftercall.work()
        assert sink.asked == ["erase"]

        await aftercall.ledger.resume("crm")
        await aftercall.finish()
        assert [call.id for call in sink.erased] == [CALL.id]


async def test_an_erasure_waits_for_as_long_as_it_is_asked_to(valkey_url: str, tmp_path: Path) -> None:
    errors: list[Exception] = [SinkError("HTTP 429", retry_after=20.0)]
    async with erased(valkey_url, tmp_path, erase=errors, deliver=[]) as (aftercall, sink):
        wait_s = await waiting_s(aftercall)
        assert wait_s is not None
        assert 19 < wait_s < 24
        await aftercall.finish()
        assert len(sink.erased) == 1


@pytest.mark.parametrize("events", [None, ["*"], ["call.settled"]], ids=str)
async def test_a_sink_that_erases_is_not_given_the_event_besides_unless_it_names_it(
    valkey_url: str, tmp_path: Path, events: list[str] | None
) -> None:
    options = f"events = {events}\n" if events else ""
    async with erased(valkey_url, tmp_path, erase=[], deliver=[], options=options) as (aftercall, sink):
        await aftercall.finish()
        assert sink.asked == ["erase"]


NAMED = 'events = ["call.settled", "call.erased"]\n'


async def test_a_sink_that_names_the_event_is_given_it_after_it_erased(valkey_url: str, tmp_path: Path) -> None:
    async with erased(valkey_url, tmp_path, erase=[], deliver=[], options=NAMED) as (aftercall, sink):
        await aftercall.finish()
        assert sink.asked == ["erase", "deliver 1"]
        assert [event.type for event in sink.got] == ["call.settled", "call.erased"]


async def test_what_was_erased_is_erased_again_when_the_delivery_after_it_failed(
    valkey_url: str, tmp_path: Path
) -> None:
    errors: list[Exception] = [SinkError("HTTP 503")]
    async with erased(valkey_url, tmp_path, erase=[], deliver=errors, options=NAMED) as (aftercall, sink):
        await aftercall.finish()
        assert sink.asked == ["erase", "deliver 1", "erase", "deliver 2"]
        assert [event.type for event in sink.got] == ["call.settled", "call.erased"]


async def test_the_event_is_not_delivered_before_the_call_is_erased(valkey_url: str, tmp_path: Path) -> None:
    errors: list[Exception] = [SinkError("locked")]
    async with erased(valkey_url, tmp_path, erase=errors, deliver=[], options=NAMED) as (aftercall, sink):
        await aftercall.finish()
        assert sink.asked == ["erase", "erase", "deliver 2"]
