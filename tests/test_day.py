"""A simulated day: its calls are of all kinds and of all hours, and it is played with few connections."""

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import httpx
import msgspec
import pytest

from simulator.day import DAY_S, KINDS, make_day
from simulator.parts import Call, compact
from simulator.player import play
from tests.simulated import RETELL, SECRETS, Receiver, receiving

NOW = time.time()
DAY = make_day(seed=1, now=NOW, count=2000)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def of(provider: str, story: str = "") -> list[Call]:
    return [call for call in DAY if call.provider == provider and story in call.story]


def events(call: Call) -> list[str]:
    return [webhook.event for webhook in call.webhooks]


def times(call: Call) -> tuple[float, float]:
    """When the record says that the call began and ended, in Unix seconds."""
    record = call.record
    if call.provider == "retell":
        ended = record["end_timestamp"] / 1000
        return record.get("start_timestamp", record["end_timestamp"]) / 1000, ended
    names = ("start_time", "end_time") if call.provider == "cartesia" else ("created", "ended")
    began, ended = (time_of(record[name]) for name in names)
    return began, ended


def time_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_third_of_the_calls_is_each_provider_s() -> None:
    assert len(DAY) == 2000
    assert len({call.id for call in DAY}) == 2000
    assert all(abs(count - 667) <= 1 for count in Counter(call.provider for call in DAY).values())
    alone = make_day(seed=1, now=NOW, count=50, only="cartesia")
    assert [call.provider for call in alone] == ["cartesia"] * 50


def test_every_kind_of_call_is_there_in_its_share() -> None:
    for provider in ("retell", "cartesia", "ultravox"):
        count = len(of(provider))
        for story in set(KINDS):
            assert len(of(provider, story)) / count == pytest.approx(KINDS.count(story) / len(KINDS), abs=0.01)


def test_the_calls_are_spread_over_the_last_day_and_are_all_over() -> None:
    hours: Counter[int] = Counter()
    for call in DAY:
        began, ended = times(call)
        assert NOW - DAY_S - 60 < began <= ended < NOW
        assert ended - began < 120
        hours[int((began - NOW + DAY_S) // 3600)] += 1
    assert all(hours[hour] > 50 for hour in range(23))


def test_each_kind_is_told_by_the_webhooks_that_the_vendor_sends() -> None:
    for provider, story, expected in (
        ("retell", "held", ["call_started", "call_ended", "call_analyzed"]),
        ("retell", "private", ["call_started", "call_ended", "call_analyzed"]),
        ("retell", "unreached", ["call_ended", "call_analyzed"]),
        ("cartesia", "held", ["call_started", "call_completed", "post_call_analysis"]),
        ("cartesia", "private", ["call_started", "call_completed"]),
        ("cartesia", "unreached", ["call_failed"]),
        ("ultravox", "held", ["call.started", "call.joined", "call.ended", "call.billed"]),
        ("ultravox", "private", ["call.started", "call.joined", "call.ended", "call.billed"]),
        ("ultravox", "unreached", ["call.started", "call.ended"]),
    ):
        assert {tuple(events(call)) for call in of(provider, story)} == {tuple(expected)}
    assert {call.record["disconnection_reason"] for call in of("retell", "unreached")} == {"dial_no_answer"}
    assert not any("start_timestamp" in call.record for call in of("retell", "unreached"))
    assert {call.record["endReason"] for call in of("ultravox", "unreached")} == {"unjoined"}
    assert {call.record["status"] for call in of("cartesia", "unreached")} == {"failed"}


def test_under_a_privacy_setting_what_was_said_is_where_the_vendor_leaves_it() -> None:
    for call in of("retell", "private"):
        assert call.record["data_storage_setting"] == "basic_attributes_only"
        assert not {"transcript", "from_number", "metadata", "recording_url"} & call.record.keys()
        assert str(call.marker) in compact(call.webhooks[1].payload)
    for call in of("cartesia", "private"):
        assert call.record["zdr_enabled"] is True
        assert not {"transcript", "summary"} & call.record.keys()
        assert str(call.marker) in compact(call.webhooks[1].payload)
    for call in of("ultravox", "private"):
        assert call.record["retentionPolicy"] == "auto_delete"
        assert str(call.marker) in compact(call.messages)
    private = [call for call in DAY if call.story == "private" and call.provider != "ultravox"]
    assert not any(str(call.marker) in compact([webhook.record, call.record]) for call in private
                   for webhook in call.webhooks)  # fmt: skip


def test_a_marker_is_in_its_own_call_s_transcript_and_in_no_other() -> None:
    said = {call.id: compact([[webhook.payload for webhook in call.webhooks], call.messages]) for call in DAY}
    marked = [call for call in DAY if call.marker]
    assert {call.story for call in marked} == {"held", "private"}
    assert [call for call in DAY if not call.marker] == [call for call in DAY if call.story == "unreached"]
    words = {call.id: set(re.findall(r"[a-z]{12}", said[call.id])) for call in DAY}
    homes = Counter(word for found in words.values() for word in found)
    for call in marked:
        assert str(call.marker) in words[call.id]
        assert homes[str(call.marker)] == 1


def test_a_call_is_small() -> None:
    sizes = [len(compact([call.record, call.messages])) for call in DAY if call.story == "held"]
    assert min(sizes) > 1500
    assert max(sizes) < 4000


def test_the_same_seed_makes_the_same_day_and_another_seed_shares_nothing() -> None:
    one, same, other = (make_day(seed=seed, now=1e9, count=60) for seed in (4, 4, 5))
    assert one == same
    assert not {call.id for call in one} & {call.id for call in other}
    assert not {call.marker for call in one if call.marker} & {call.marker for call in other}


def test_two_thousand_calls_are_played_in_about_a_minute() -> None:
    assert 30 < max(webhook.at_s for call in DAY for webhook in call.webhooks) < 65


async def test_a_day_is_played_whole(receiver: Receiver) -> None:
    calls = DAY[:120]
    result = await play(receiver.url, SECRETS, calls, speed=50)
    due = sum(len(call.webhooks) for call in calls)
    assert len(result["facts"]) == result["webhooks"] == len(receiver.received) == due


async def test_no_more_than_64_requests_are_open_at_once(receiver: Receiver) -> None:
    most, crowded = 0, threading.Event()

    def count(webhook: object) -> None:
        nonlocal most
        most = max(most, receiver.in_flight.total())
        if most == 64:
            crowded.set()

    def hold() -> None:
        crowded.wait(20)
        time.sleep(0.3)  # in which one more would show

    receiver.answer, receiver.hold = count, hold  # type: ignore[assignment]
    call = DAY[0]
    crowd = msgspec.structs.replace(call, webhooks=[msgspec.structs.replace(call.webhooks[0], copies=160)])
    result = await play(receiver.url, SECRETS, [crowd])
    assert result["webhooks"] == 160
    assert most == 64


async def test_the_command_plays_a_day_with_what_goes_wrong(receiver: Receiver) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulator", "--day", "30", "--speed", "20", "--seed", "2", "--play", receiver.url),
        *("--fault", "webhook retell drop", "--fault", "get retell 503 first 1"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ
        | {"RETELL_API_KEY": "key_r", "CARTESIA_WEBHOOK_SECRET": "hush-c", "ULTRAVOX_WEBHOOK_SECRET": "hush-u"},
        limit=1 << 20,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            listening = json.loads(await process.stdout.readline())["listening"]
            line: dict[str, dict[str, list[dict[str, str]]]] = {}
            while "played" not in line:
                line = json.loads(await process.stdout.readline())
        played = line["played"]
        calls = make_day(2, time.time(), 30)
        assert {fact["account"] for fact in played["facts"]} == {"cartesia", "ultravox"}
        assert len(played["dropped"]) == sum(len(call.webhooks) for call in calls if call.provider == "retell")
        call_id = played["dropped"][0]["call_id"]
        async with httpx.AsyncClient(trust_env=False, headers=RETELL) as http:
            answers = [await http.get(f"{listening}/v2/get-call/{call_id}") for _ in range(2)]
            page = (await http.post(f"{listening}/v3/list-calls")).json()
        assert [answer.status_code for answer in answers] == [503, 200]
        assert len(page["items"]) == 10
    finally:
        process.terminate()
        await process.wait()
