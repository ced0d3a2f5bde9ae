"""One `call.settled` a call, the same whatever came when, came twice, or did not come."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis

from aftercall.call import Call
from aftercall.errors import RecordNotReady
from aftercall.event import encode
from simulator.calls import event_type, make_calls
from simulator.parts import Call as SimulatedCall
from simulator.parts import Webhook
from tests.inside import inside
from tests.stack import fixture

CALLS = [call for call in make_calls(seed=5, now=time.time()) if "200 KB" not in call.story]
TELLS_THE_END = ("call.ended", "call.analyzed", "call.billed")
every_call = pytest.mark.parametrize(
    "number", range(len(CALLS)), ids=[f"{call.provider}: {call.story}" for call in CALLS]
)


def facts(call: SimulatedCall) -> list[Webhook]:
    return [webhook for webhook in call.webhooks if webhook.is_fact]


def type_of(call: SimulatedCall, webhook: Webhook) -> str:
    return event_type(call.provider, webhook.event)


async def settled_after(redis_url: str, directory: Path, call: SimulatedCall, told: list[Webhook]) -> Call:
    """The call of the one settled event that comes of these webhooks, in this order."""
    async with inside(redis_url, directory, [call]) as aftercall:
        for webhook in told:
            await aftercall.receive(call, webhook)
            await aftercall.work()
        for webhook in facts(call):
            aftercall.records.show(call, webhook)
        await aftercall.finish()
        (settled,) = aftercall.of(call.id, "call.settled")
        assert settled.data.via == "settle"
        assert settled.data.provider_event is None
        assert settled.data.complete
        assert Counter(event.data.sequence for event in aftercall.events) == Counter(
            range(1, len(aftercall.events) + 1)
        )
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.settled")) == 1
        return settled.data.call


REFERENCE: dict[str, Call] = {}  # what the whole story, in its order, settles to


@every_call
@settings(
    max_examples=6, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.lists(st.integers(0, 99), min_size=1, max_size=8))
def test_any_order_and_any_part_of_a_calls_events_settle_once_and_tell_the_same(
    number: int, order: list[int], valkey_url: str, tmp_path: Path
) -> None:
    call = CALLS[number]
    known = facts(call)
    told = [known[place % len(known)] for place in order]
    if not any(type_of(call, webhook) in TELLS_THE_END for webhook in told):
        told.append(next(webhook for webhook in known if type_of(call, webhook) == "call.ended"))

    def settle(webhooks: list[Webhook]) -> Call:
        Redis.from_url(valkey_url).flushall()
        return asyncio.run(settled_after(valkey_url, tmp_path, call, webhooks))

    if call.id not in REFERENCE:
        REFERENCE[call.id] = settle(known)
    assert settle(told) == REFERENCE[call.id]


@every_call
async def test_a_call_settles_as_soon_as_all_that_its_provider_adds_is_in(
    number: int, valkey_url: str, tmp_path: Path
) -> None:
    call = CALLS[number]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        for webhook in facts(call):
            await aftercall.receive(call, webhook)
        for _ in range(6):  # records that are not there at first; the wait for what is to come is not cut short
            await aftercall.work()
            await aftercall.pass_time("process")
        types = [event.type for event in aftercall.events]
        waits = call.story == "an envelope of 2025"  # of an analysis nobody knows whether it will come
        assert types.count("call.settled") == (0 if waits else 1)


async def test_before_its_end_a_call_does_not_settle_however_long_it_takes(valkey_url: str, tmp_path: Path) -> None:
    call = CALLS[0]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        started = next(webhook for webhook in facts(call) if type_of(call, webhook) == "call.started")
        await aftercall.receive(call, started)
        await aftercall.finish()
        assert [event.type for event in aftercall.events] == ["call.started"]


async def test_the_end_alone_settles_when_the_time_for_the_rest_is_up(valkey_url: str, tmp_path: Path) -> None:
    call = CALLS[0]
    ended = next(webhook for webhook in facts(call) if type_of(call, webhook) == "call.ended")
    async with inside(valkey_url, tmp_path, [call], toml='[retention]\nsettle_after = "1s"\n') as aftercall:
        await aftercall.receive(call, ended)
        for _ in range(4):
            await aftercall.work()
            await aftercall.pass_time("process")
        assert [event.type for event in aftercall.events] == ["call.ended"]
        await asyncio.sleep(1.1)
        await aftercall.work()
        assert [event.type for event in aftercall.events] == ["call.ended", "call.settled"]


async def test_what_comes_after_the_settling_is_told_and_settles_nothing_anew(valkey_url: str, tmp_path: Path) -> None:
    call = CALLS[0]
    *before, last = facts(call)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        for webhook in before:
            await aftercall.receive(call, webhook)
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.settled")) == 1
        await aftercall.receive(call, last)
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.settled")) == 1
        assert aftercall.of(call.id, type_of(call, last))


async def test_a_settling_whose_account_is_gone_is_a_dead_letter_and_settles_when_it_is_back(
    valkey_url: str, tmp_path: Path
) -> None:
    call = CALLS[0]
    ended = next(webhook for webhook in facts(call) if type_of(call, webhook) == "call.ended")
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await aftercall.receive(call, ended)
        for _ in range(4):
            await aftercall.work()
            await aftercall.pass_time("process")
        provider = aftercall.hub.providers.pop("retell")
        await aftercall.finish()
        ((event, step),) = await aftercall.ledger.dead_letters()
        assert step == "@process"

        aftercall.hub.providers["retell"] = provider
        started = next(webhook for webhook in facts(call) if type_of(call, webhook) == "call.started")
        await aftercall.receive(call, started)
        await aftercall.finish()
        assert await aftercall.ledger.dead_letters() == [(event, step)], (
            "what comes late does not settle it beside that"
        )
        assert aftercall.of(call.id, "call.settled") == []

        assert await aftercall.ledger.replay(event, step) == "due"
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.settled")) == 1


async def test_a_settling_that_waits_for_the_record_counts_once_in_the_calls_sequence(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CALLS[0]
    ended = next(webhook for webhook in facts(call) if type_of(call, webhook) == "call.ended")
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await aftercall.receive(call, ended)
        for _ in range(4):
            await aftercall.work()
            await aftercall.pass_time("process")
        provider = aftercall.hub.providers["retell"]
        fetch, refused = provider.fetch, [429, 500]

        async def fetch_later(call_id: str) -> Any:
            if refused:
                raise RecordNotReady("not now", status=refused.pop())
            return await fetch(call_id)

        monkeypatch.setattr(provider, "fetch", fetch_later)
        for webhook in facts(call):
            aftercall.records.show(call, webhook)
        await aftercall.finish()
        assert refused == []
        assert [event.data.sequence for event in aftercall.events] == [1, 2]
        assert aftercall.events[-1].data.call.analysis is not None, "the record had it"


async def test_a_call_does_not_settle_while_its_end_is_still_being_fetched(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CALLS[0]
    ended, analyzed = (
        next(webhook for webhook in facts(call) if type_of(call, webhook) == word)
        for word in ("call.ended", "call.analyzed")
    )
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await aftercall.receive(call, analyzed)
        for _ in range(4):
            await aftercall.work()
            await aftercall.pass_time("process")
        assert [event.type for event in aftercall.events] == ["call.analyzed"]

        provider = aftercall.hub.providers["retell"]
        fetch = provider.fetch

        async def refuse(call_id: str) -> Any:
            raise RecordNotReady("not now", status=429, retry_after=60.0)

        monkeypatch.setattr(provider, "fetch", refuse)
        await aftercall.receive(call, ended)
        for _ in range(3):
            await aftercall.work()
            await aftercall.pass_time("settle")
        assert [event.type for event in aftercall.events] == ["call.analyzed"]

        monkeypatch.setattr(provider, "fetch", fetch)
        await aftercall.work()
        assert [event.type for event in aftercall.events] == ["call.analyzed"], "the end waits for its minute"
        await aftercall.pass_time("process")
        await aftercall.work()
        assert [event.type for event in aftercall.events] == ["call.analyzed", "call.ended", "call.settled"]


async def test_a_call_of_which_only_its_turns_were_told_settles_with_them(valkey_url: str, tmp_path: Path) -> None:
    """Retell's last transcript_updated comes when the call is over; its record is gone here."""
    envelope = fixture("retell", "transcript_updated")
    envelope["call"] |= {"call_status": "ended", "end_timestamp": envelope["call"]["start_timestamp"] + 60_000}
    async with inside(valkey_url, tmp_path, []) as aftercall:
        await aftercall.accept("retell", json.dumps(envelope).encode())
        await aftercall.finish()
        turn, whole = aftercall.events
        assert (turn.type, whole.type, whole.data.complete) == ("call.turn", "call.settled", False)
        assert whole.data.call.status == "ended"
        assert whole.data.call.transcript == turn.data.call.transcript
        assert await aftercall.ledger.dead_letters() == []


async def test_a_call_with_an_event_that_cannot_be_read_is_a_dead_letter_and_kills_no_worker(
    valkey_url: str, tmp_path: Path
) -> None:
    """A version that knew more words wrote it, before somebody went back to this one."""
    call = next(call for call in CALLS if call.provider == "retell" and not call.faults)
    end = next(webhook for webhook in facts(call) if type_of(call, webhook) == "call.ended")
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await aftercall.receive(call, end)
        await aftercall.work()
        (event,) = aftercall.events
        unread = encode(event).replace(b'"type":"call.ended"', b'"type":"call.fathomed"')
        await aftercall.ledger.redis.hset(f"aftercall:event:{event.id}", "event", zstandard.compress(unread))
        await aftercall.finish()
        assert [sink for _, sink in await aftercall.ledger.dead_letters()] == ["@process"]
