"""Calls whose content their provider must not keep: all of it reaches the sinks, then nothing of it is left here."""

import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aftercall.call import Call
from aftercall.event import encode
from simulator import cartesia_calls
from simulator.calls import event_type
from simulator.day import make_day
from simulator.parts import Call as SimulatedCall
from simulator.parts import Json, Webhook, timed
from tests.contents import words_in
from tests.inside import Inside, inside

NOW = 1_790_000_000.0
DAY = make_day(seed=33, now=NOW, count=9)
LOG = '[sinks.log]\ntype = "tests.inside:Recorder"\nevents = ["*"]\n'
SIX_HOURS_S = 6 * 3600
CONTENT = ("transcript", "from_", "to", "metadata", "variables", "analysis", "recording", "log_url")


def without_pii(call: SimulatedCall) -> SimulatedCall:
    """A Retell call under `everything_except_pii`: the record is scrubbed, the webhooks of the end came before that."""

    def scrubbed(view: Json) -> Json:
        text = msgspec.json.encode(view).decode().replace(call.marker or "", "[REFERENCE]")
        hidden: Json = {"from_number": "[PHONE]", "to_number": "[PHONE]", "metadata": {"desk": "[DESK]"}}
        left: Json = {**msgspec.json.decode(text), **hidden}
        gone = ("recording_url", "recording_multi_channel_url", "public_log_url")
        return {name: value for name, value in left.items() if name not in gone}

    webhooks = []
    for webhook in call.webhooks:
        view = {**webhook.payload["call"], "data_storage_setting": "everything_except_pii"}
        record = view if webhook is call.webhooks[0] else scrubbed(view)  # nothing is scrubbed before the call is over
        payload = {**webhook.payload, "call": view}
        webhooks.append(msgspec.structs.replace(webhook, payload=payload, record=record))
    return msgspec.structs.replace(call, webhooks=webhooks, record=webhooks[-1].record)


def whispered(call: SimulatedCall) -> SimulatedCall:
    """The call, with its word in the metadata of every webhook too, so that a start has something to hide."""
    webhooks = []
    for webhook in call.webhooks:
        about = webhook.payload.get("call", {})
        metadata = {**about.get("metadata", {}), "note": call.marker}
        payload = {**webhook.payload, "call": {**about, "metadata": metadata}} if about else webhook.payload
        webhooks.append(msgspec.structs.replace(webhook, payload=payload))
    return msgspec.structs.replace(call, webhooks=webhooks)


PRIVATE = {call.provider: whispered(call) for call in DAY if call.story == "private"}
PRIVATE["retell without pii"] = whispered(
    without_pii(next(call for call in DAY if call.provider == "retell" and call.story == "held"))
)
STORAGE = {"retell": "basic", "retell without pii": "no_pii", "cartesia": "none", "ultravox": "none"}
every_setting = pytest.mark.parametrize("setting", PRIVATE)


def told_by(aftercall: Inside, call: SimulatedCall, webhook: Webhook) -> Call:
    """What a webhook alone tells."""
    provider = aftercall.hub.providers[call.provider]
    (one,) = provider.decode(msgspec.json.encode(webhook.payload))
    return provider.normalize(one, None)


def has_all(event_call: Call, carried: Call) -> None:
    """The event's call has whatever content the webhook had."""
    for name in CONTENT:
        value, found = getattr(carried, name), getattr(event_call, name)
        if isinstance(value, dict):
            found = {key: found.get(key) for key in value}
        if value:
            assert found == value, name


def said(call: Call) -> str:
    return " ".join(turn.text or "" for turn in call.transcript or ())


def end_of(call: SimulatedCall) -> Webhook:
    return next(one for one in call.webhooks if event_type(call.provider, one.event) == "call.ended")


def start_of(call: SimulatedCall) -> Webhook:
    return call.webhooks[0]


async def receive(aftercall: Inside, call: SimulatedCall, webhooks: Iterable[Webhook]) -> None:
    for webhook in webhooks:
        await aftercall.receive(call, webhook)
        await aftercall.work()


async def give_up_fetching(aftercall: Inside) -> None:
    """Ten minutes have passed since whatever waits for its record was accepted."""
    async for key in aftercall.ledger.redis.scan_iter("aftercall:event:*"):
        if await aftercall.ledger.redis.hget(key, "state") in (b"accepted", b"waiting"):
            await aftercall.ledger.redis.hset(key, mapping={"accepted": 1, "fetches": 30})


async def left_of(aftercall: Inside, call: SimulatedCall) -> set[str]:
    """The keys in Redis that have the call's word."""
    assert call.marker is not None
    return set(await words_in(aftercall.ledger.redis, call.marker))


async def settled(aftercall: Inside, call: SimulatedCall) -> Call:
    (event,) = aftercall.of(call.id, "call.settled")
    return event.data.call


# Everything reaches the sink


ORDERS = [
    pytest.param(setting, order, id=f"{setting}: {' '.join(call.webhooks[place].event for place in order)}")
    for setting, call in PRIVATE.items()
    for order in itertools.permutations(range(len(call.webhooks)))
]


@pytest.mark.parametrize(("setting", "order"), ORDERS)
async def test_in_whichever_order_its_events_come_all_is_delivered_and_nothing_is_left(
    setting: str, order: tuple[int, ...], valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, [call.webhooks[place] for place in order])
        await give_up_fetching(aftercall)  # of a call that deleted itself
        await aftercall.finish()

        whole = await settled(aftercall, call)
        assert whole.privacy.storage == STORAGE[setting]
        for webhook in call.webhooks:
            carried = told_by(aftercall, call, webhook)
            kind = event_type(call.provider, webhook.event)
            (event,) = aftercall.of(call.id, kind)
            if kind in ("call.ended", "call.analyzed", "call.billed"):
                has_all(event.data.call, carried)
            has_all(whole, carried)
        billed_first = order.index(len(order) - 1) < order.index(len(order) - 2)
        if call.provider != "ultravox" or not billed_first:  # its webhooks have no transcript: it went with the bill
            assert call.marker in said(whole)
            assert whole.metrics is not None
        assert await left_of(aftercall, call) == set()


@pytest.mark.parametrize("setting", ["retell", "retell without pii", "ultravox"])
async def test_what_was_deleted_before_it_could_be_fetched_is_delivered_as_its_webhooks_told_it(
    setting: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        for webhook in call.webhooks:
            await aftercall.receive(call, webhook)
            aftercall.records.delete(call.provider, call.id)
        await give_up_fetching(aftercall)
        await aftercall.finish()

        whole = await settled(aftercall, call)
        for webhook in call.webhooks:
            has_all(whole, told_by(aftercall, call, webhook))
        assert not aftercall.of(call.id, "call.settled")[0].data.complete
        assert await left_of(aftercall, call) == set()


@every_setting
async def test_what_the_record_hides_by_then_is_not_lost_when_only_the_end_was_told(
    setting: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, [end_of(call)])
        aftercall.records.show(call, call.webhooks[-1])
        await aftercall.finish()  # what was awaited does not come: the record is fetched once more

        whole = await settled(aftercall, call)
        has_all(whole, told_by(aftercall, call, end_of(call)))
        assert call.marker in said(whole)
        assert whole.end is not None
        assert await left_of(aftercall, call) == set()


async def test_an_analysis_told_after_the_scrubbing_takes_nothing_of_what_was_told_before_it(
    valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE["retell without pii"]
    analyzed = call.webhooks[-1]
    assert analyzed.record is not None
    scrubbed = msgspec.structs.replace(analyzed, payload={**analyzed.payload, "call": analyzed.record})
    call = msgspec.structs.replace(call, webhooks=[*call.webhooks[:-1], scrubbed])
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, call.webhooks)
        await aftercall.finish()

        whole = await settled(aftercall, call)
        ended = told_by(aftercall, call, end_of(call))
        has_all(whole, ended)
        assert whole.analysis is not None
        assert whole.analysis == told_by(aftercall, call, scrubbed).analysis


# And then nothing is left


@every_setting
async def test_until_it_is_settled_and_delivered_it_is_kept(setting: str, valkey_url: str, tmp_path: Path) -> None:
    call = PRIVATE[setting]
    two = LOG + LOG.replace("log", "down")
    async with inside(valkey_url, tmp_path, [call], sinks=two) as aftercall:
        down = aftercall.sink("down")
        down.failing = {"down"}
        await receive(aftercall, call, [end_of(call)])
        assert await left_of(aftercall, call)
        for _ in range(3):
            await aftercall.pass_time()
            await aftercall.work()
        await settled(aftercall, call)
        assert await left_of(aftercall, call)

        down.failing = set()
        await aftercall.finish()
        assert {event.type: encode(event) for event in down.got} == {
            event.type: encode(event) for event in aftercall.events
        }
        assert call.marker in said(down.got[0].data.call)
        assert await left_of(aftercall, call) == set()


@every_setting
@pytest.mark.parametrize("way", ["replayed", "dropped"])
async def test_while_a_dead_letter_is_kept_so_is_its_content(
    setting: str, way: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    two = LOG + LOG.replace("log", "picky")
    async with inside(valkey_url, tmp_path, [call], sinks=two) as aftercall:
        picky = aftercall.sink("picky")
        picky.refusing = {"picky"}
        await receive(aftercall, call, call.webhooks)
        await aftercall.finish()
        letters = await aftercall.ledger.dead_letters()
        assert len(letters) == len(aftercall.events)
        assert len(await left_of(aftercall, call)) == len(letters)

        picky.refusing = set()
        for event_id, sink in letters:
            assert f"aftercall:event:{event_id}" in await left_of(aftercall, call)
            if way == "replayed":
                assert await aftercall.ledger.replay(event_id, sink) == "due"
                await aftercall.finish()
            else:
                assert await aftercall.ledger.drop(event_id, sink)
            assert f"aftercall:event:{event_id}" not in await left_of(aftercall, call)
        assert await left_of(aftercall, call) == set()
        assert len(picky.got) == (len(letters) if way == "replayed" else 0)


@every_setting
@pytest.mark.parametrize("sinks", ["", LOG.replace('"*"', '"call.settled"'), LOG.replace('"*"', '"call.ended"')])
async def test_what_no_sink_asks_for_goes_when_the_call_is_settled(
    setting: str, sinks: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    async with inside(valkey_url, tmp_path, [call], sinks=sinks) as aftercall:
        await receive(aftercall, call, [start_of(call), end_of(call)])
        assert await left_of(aftercall, call)
        await aftercall.finish()
        assert await left_of(aftercall, call) == set()


@every_setting
async def test_a_webhook_that_comes_after_settling_is_delivered_and_goes_by_itself(
    setting: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    end, late = end_of(call), [webhook for webhook in call.webhooks if webhook is not end_of(call)]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, [end])
        await aftercall.finish()
        assert await left_of(aftercall, call) == set()
        for webhook in late:
            before = len(aftercall.events)
            await aftercall.receive(call, webhook)
            assert await left_of(aftercall, call)
            await aftercall.work()
            await give_up_fetching(aftercall)
            await aftercall.finish()
            assert len(aftercall.events) == before + 1
            if setting != "retell without pii":  # whose record was scrubbed in the meantime
                has_all(aftercall.events[-1].data.call, told_by(aftercall, call, webhook))
            assert await left_of(aftercall, call) == set()
        await settled(aftercall, call)


# A call whose end never comes


@every_setting
async def test_a_call_whose_end_never_comes_is_kept_six_hours_and_settles_once_if_it_ends_after_that(
    setting: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    start = start_of(call)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, [start])
        assert await left_of(aftercall, call)
        ((count, overdue_s),) = (await aftercall.ledger.open_work(["settle"])).values()
        assert count == 1
        assert overdue_s is not None
        assert -SIX_HOURS_S <= overdue_s < 60 - SIX_HOURS_S

        await aftercall.pass_time("settle")
        await aftercall.work()
        assert await left_of(aftercall, call) == set()
        assert (await aftercall.ledger.open_work(["settle"]))["settle"][0] == 0
        assert [event.type for event in aftercall.events] == ["call.started"]
        assert await aftercall.ledger.dead_letters() == []

        rest = [webhook for webhook in call.webhooks if webhook is not start]
        await receive(aftercall, call, rest)
        await aftercall.finish()
        whole = await settled(aftercall, call)
        has_all(whole, told_by(aftercall, call, end_of(call)))
        assert call.marker in said(whole)
        sequences = sorted(event.data.sequence for event in aftercall.events)
        assert sequences == list(range(1, len(sequences) + 1))
        assert await left_of(aftercall, call) == set()


@every_setting
async def test_a_sink_that_was_down_for_longer_than_that_still_gets_it(
    setting: str, valkey_url: str, tmp_path: Path
) -> None:
    call = PRIVATE[setting]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        aftercall.sink().failing = {"log"}
        await receive(aftercall, call, [start_of(call)])
        await aftercall.pass_time("settle")
        await aftercall.work()
        assert await left_of(aftercall, call)

        aftercall.sink().failing = set()
        await aftercall.finish()
        assert [event.type for event in aftercall.events] == ["call.started"]
        has_all(aftercall.events[0].data.call, told_by(aftercall, call, start_of(call)))
        assert await left_of(aftercall, call) == set()


async def test_an_end_that_comes_while_the_call_is_given_up_settles_it(valkey_url: str, tmp_path: Path) -> None:
    call = PRIVATE["retell"]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, [start_of(call)])
        await aftercall.pass_time("settle")
        (claim,) = await aftercall.ledger.claim({"settle": 1}, lease_s=30)
        assert not (await aftercall.ledger.begin_settling(claim.event_id, "retell", call.id)).over
        await receive(aftercall, call, [end_of(call)])
        assert await aftercall.ledger.abandon_settling(claim, "retell", call.id)

        assert await left_of(aftercall, call)
        ((count, overdue_s),) = (await aftercall.ledger.open_work(["settle"])).values()
        assert count == 1
        assert overdue_s is not None
        assert -600 <= overdue_s < -540  # as after any end
        await aftercall.finish()
        has_all(await settled(aftercall, call), told_by(aftercall, call, end_of(call)))
        assert await left_of(aftercall, call) == set()


async def test_a_call_that_may_be_kept_is_kept(valkey_url: str, tmp_path: Path) -> None:
    for call in DAY:
        if call.story != "held":
            continue
        async with inside(valkey_url, tmp_path, [call]) as aftercall:
            await receive(aftercall, call, call.webhooks)
            await aftercall.finish()
            assert len(await left_of(aftercall, call)) >= 2  # the end, and the settled event


# Turns, which do not say that nothing may be kept


def a_call_of_turns(*, transcript_at_the_end: bool) -> SimulatedCall:
    """A Cartesia call without retention, every turn of which was told by itself."""
    private = PRIVATE["cartesia"]
    rng = random.Random(8)
    started, completed = (webhook.payload["call"] for webhook in private.webhooks)
    if not transcript_at_the_end:
        completed = {**completed, "transcript": None}
    envelope = {name: private.webhooks[0].payload[name] for name in ("request_id", "agent_id", "webhook_id", "call_id")}
    lines = timed(rng, ("agent", "Orchard line."), ("user", f"It is {private.marker}."), ("agent", "Thank you."))
    turns = [
        {
            "role": "assistant" if line.role == "agent" else "user",
            "text": line.text,
            "start_timestamp": line.start_s,
            "end_timestamp": line.end_s,
        }
        for line in lines
    ]
    kept = [webhook.record for webhook in private.webhooks]

    def webhook(event: str, at_s: float, **details: Any) -> Webhook:
        return cartesia_calls.make_webhook(rng, event, envelope, NOW, at_s, **details)

    told = [webhook("call_turn", 1.0 + place, turn=turn) for place, turn in enumerate(turns)]
    start = webhook("call_started", 0.5, call=started, record=kept[0])
    end = webhook("call_completed", 9.0, call=completed, record=kept[1])
    return msgspec.structs.replace(private, webhooks=[start, *told, end])


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 1, 2, 0, 4), (4, 3, 2, 1, 0), (2, 3, 1, 4, 0)], ids=str)
async def test_turns_become_the_transcript_where_there_is_no_other_and_go_with_the_call(
    order: tuple[int, ...], valkey_url: str, tmp_path: Path
) -> None:
    call = a_call_of_turns(transcript_at_the_end=False)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, [call.webhooks[place] for place in order])
        assert await left_of(aftercall, call)
        await aftercall.finish()

        whole = await settled(aftercall, call)
        assert whole.transcript is not None
        assert [turn.role for turn in whole.transcript] == ["agent", "user", "agent"]
        assert said(whole) == f"Orchard line. It is {call.marker}. Thank you."
        assert whole.metrics is not None
        assert whole.metrics.turns == 3
        assert len(aftercall.of(call.id, "call.turn")) == 3
        assert await left_of(aftercall, call) == set()


async def test_turns_do_not_replace_the_transcript_of_the_end(valkey_url: str, tmp_path: Path) -> None:
    call = a_call_of_turns(transcript_at_the_end=True)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, call, call.webhooks)
        await aftercall.finish()

        whole = await settled(aftercall, call)
        assert whole.transcript == told_by(aftercall, call, end_of(call)).transcript
        assert await left_of(aftercall, call) == set()


async def test_what_is_there_of_a_settled_call_goes_when_its_provider_must_not_keep_it_any_more(
    valkey_url: str, tmp_path: Path
) -> None:
    """Retell's update-call makes the setting of a call stricter at any time; the next webhook says so."""
    call = next(call for call in DAY if call.provider == "retell" and call.story == "held")
    last = call.webhooks[-1]
    analysis = {**last.payload["call"]["call_analysis"], "call_summary": "Looked at once more."}
    stricter = {**last.payload["call"], "call_analysis": analysis, "data_storage_setting": "basic_attributes_only"}
    again = msgspec.structs.replace(last, payload={**last.payload, "call": stricter}, record=stricter)
    whole = msgspec.structs.replace(call, webhooks=[*call.webhooks, again])
    async with inside(valkey_url, tmp_path, [whole]) as aftercall:
        await receive(aftercall, whole, call.webhooks)
        await aftercall.finish()
        assert await left_of(aftercall, call)

        await receive(aftercall, whole, [again])
        await aftercall.finish()
        assert str(call.marker) in said(aftercall.events[-1].data.call)
        assert await left_of(aftercall, call) == set()
