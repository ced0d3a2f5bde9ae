"""What leaves aftercall through a sink: the event, or the provider's own body; its recording, its tags, its receipt."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aftercall.call import Call, Recording
from aftercall.errors import SinkError
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from aftercall.sinks.base import Delivery, LocalMemory, Memory, Sink
from aftercall.testing import RecordingSink
from simulator.calls import make_calls
from simulator.parts import Call as SimulatedCall
from tests.inside import Inside, inside
from tests.servers import until
from workers import deliver

CALLS = make_calls(seed=9, now=time.time())
RETELL = next(call for call in CALLS if call.provider == "retell" and len(call.webhooks) > 2)
LOG = '[sinks.log]\ntype = "tests.inside:Recorder"\nevents = ["*"]\n'
RAW = '[sinks.raw]\ntype = "tests.test_what_is_sent:RawSink"\nformat = "raw"\n'
ARCHIVED = """
[sinks.archive]
type = "tests.test_what_is_sent:Archive"
events = ["call.ended"]
[sinks.chat]
type = "tests.test_what_is_sent:Kept"
events = ["call.ended", "call.settled"]
recording_from = "archive"
"""


class Kept(RecordingSink):
    async def deliver(self, delivery: Delivery) -> str:  # type: ignore[override]
        await super().deliver(delivery)
        return f"message-{len(self.deliveries)}"


class RawSink(Kept):
    raw = True


class Archive(Kept):
    """Has a recording once it is told to."""

    has: Recording | None = None

    async def archived_recording(self, _: Call) -> Recording | None:
        return self.has


def kept(aftercall: Inside, name: str) -> Kept:
    return aftercall.hub.sinks[name]._sink  # type: ignore[return-value]


async def receive_all(aftercall: Inside, call: SimulatedCall) -> list[bytes]:
    """Their bodies."""
    bodies = []
    for webhook in call.webhooks:
        if webhook.is_fact:
            await aftercall.receive(call, webhook)
            bodies.append(json.dumps(webhook.payload, ensure_ascii=False, separators=(",", ":")).encode())
    return bodies


async def test_a_raw_sink_gets_each_body_as_it_arrived_and_nothing_of_our_making(
    valkey_url: str, tmp_path: Path
) -> None:
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + RAW) as aftercall:
        bodies = await receive_all(aftercall, RETELL)
        await aftercall.finish()

        deliveries = kept(aftercall, "raw").deliveries
        assert sorted(delivery.body for delivery in deliveries) == sorted(bodies)
        assert {(delivery.format, delivery.content_type) for delivery in deliveries} == {("raw", "application/json")}
        assert {event.type for event in aftercall.events} - {
            event.type for event in kept(aftercall, "raw").received
        } == {"call.settled"}


async def test_a_body_that_is_no_longer_stored_is_a_dead_letter_and_never_an_empty_message(
    valkey_url: str, tmp_path: Path
) -> None:
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + RAW) as aftercall:
        await aftercall.ledger.pause("raw")
        await receive_all(aftercall, RETELL)
        for _ in range(4):
            await aftercall.work()
            await aftercall.pass_time("process")
        assert aftercall.of(RETELL.id, "call.ended")
        for key in await aftercall.ledger.redis.keys("aftercall:event:*"):
            await aftercall.ledger.redis.hdel(key, "body")
        await aftercall.ledger.resume("raw")
        await aftercall.finish()

        assert kept(aftercall, "raw").deliveries == []
        dead = await aftercall.ledger.dead_letters()
        assert {sink for _, sink in dead} == {"raw"}
        states = await aftercall.ledger.delivery_states(dead)
        assert {state.attempts[-1].error for state in states} == {"the provider's own body is no longer stored"}


async def test_a_delivery_waits_for_the_archive_and_then_leads_to_its_copy(valkey_url: str, tmp_path: Path) -> None:
    copy = Recording(url="https://archive.example.com/7f3.wav", expires_at=None)
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + ARCHIVED) as aftercall:
        await receive_all(aftercall, RETELL)
        for _ in range(3):
            await aftercall.work()
            await aftercall.pass_time()
        assert kept(aftercall, "chat").deliveries == []
        assert [event.type for event in kept(aftercall, "archive").received] == ["call.ended"]

        archive = kept(aftercall, "archive")
        assert isinstance(archive, Archive)
        archive.has = copy
        await aftercall.finish()

        chat = kept(aftercall, "chat")
        assert {event.type for event in chat.received} == {"call.ended", "call.settled"}
        assert {event.data.call.recording for event in chat.received} == {copy}
        assert {delivery.attempt for delivery in chat.deliveries} == {1}, "waiting spends no attempt"
        assert b"archive.example.com" in chat.deliveries[0].body
        assert (await aftercall.ledger.sink_health(["chat"]))["chat"].state == "ok"
        theirs = {event.data.call.recording for event in aftercall.events if event.data.call.recording}
        assert copy not in theirs, "only the sink that asks for the archive's copy gets it"


async def test_an_archive_that_never_has_the_recording_holds_nobody_up_for_long(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "RECORDING_WAIT_S", 0.0)
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + ARCHIVED) as aftercall:
        await receive_all(aftercall, RETELL)
        for _ in range(4):
            await aftercall.work()
            await aftercall.pass_time("process")
        assert aftercall.of(RETELL.id, "call.ended")
        assert kept(aftercall, "chat").deliveries == [], "it waits for a while all the same"
        await aftercall.finish()

        (ended, settled) = kept(aftercall, "chat").received
        assert ended.data.call.recording is not None
        assert ended.data.call.recording.url.startswith("https://recordings.example.com/")
        assert settled.data.call.recording == ended.data.call.recording


async def test_a_delivery_s_history_has_the_destination_s_receipt(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + RAW) as aftercall:
        await receive_all(aftercall, RETELL)
        await aftercall.finish()

        (first, *_) = kept(aftercall, "raw").deliveries
        _, state = await aftercall.ledger.load_delivery(first.event.id, "raw") or pytest.fail("it is not there")
        assert state.attempts[-1].receipt == "message-1"


async def test_a_receipt_that_is_no_text_is_none_and_costs_nothing(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deliver_all(_: Sink, __: Delivery) -> int:
        return 7

    monkeypatch.setattr(RawSink, "deliver", deliver_all)
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + RAW) as aftercall:
        await receive_all(aftercall, RETELL)
        await aftercall.finish()

        (ended,) = aftercall.of(RETELL.id, "call.ended")
        _, state = await aftercall.ledger.load_delivery(ended.id, "raw") or pytest.fail("it is not there")
        assert (state.state, state.attempts[-1].receipt) == ("delivered", None)


async def test_an_archive_that_fails_is_one_that_has_nothing_yet(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Sink, __: Call) -> None:
        raise SinkError("the bucket does not answer")

    monkeypatch.setattr(deliver, "RECORDING_WAIT_S", 0.0)
    monkeypatch.setattr(Archive, "archived_recording", fail)
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + ARCHIVED) as aftercall:
        await receive_all(aftercall, RETELL)
        await aftercall.finish()

        assert {event.type for event in kept(aftercall, "chat").received} == {"call.ended", "call.settled"}


async def test_an_event_names_the_client_whose_call_it_is(valkey_url: str, tmp_path: Path) -> None:
    toml = (
        LOG
        + "[clients.quay]\nwhere = 'call.provider == \"retell\"'\n"
        + LOG.replace("log]", 'quay]\nclients = ["quay"]')
    )
    other = next(call for call in CALLS if call.provider == "ultravox")
    async with inside(valkey_url, tmp_path, [RETELL, other], sinks=toml) as aftercall:
        await receive_all(aftercall, RETELL)
        await receive_all(aftercall, other)
        await aftercall.finish()

        of = {event.subject: event.data.tags for event in aftercall.events}
        assert of == {RETELL.id: {"client": "quay"}, other.id: {}}
        assert {event.subject for event in aftercall.sink("quay").got} == {RETELL.id}


# Notes


@pytest.fixture(params=["shared", "local"])
async def memories(request: pytest.FixtureRequest, valkey_url: str) -> AsyncIterator[tuple[Memory, Memory]]:
    """The notes of a sink as two workers see them, or as two deliveries in one process do."""
    if request.param == "local":
        memory = LocalMemory()
        yield memory, memory
        return
    ledgers = [Ledger(connect(valkey_url), retention_s=60) for _ in (1, 2)]
    yield ledgers[0].memory("chat"), ledgers[1].memory("chat")
    for ledger in ledgers:
        await ledger.close()


async def test_what_one_worker_notes_another_knows(memories: tuple[Memory, Memory]) -> None:
    here, there = memories
    assert await here.get("message:7") is None
    await here.set("message:7", "1732.5 ☎")
    assert await there.get("message:7") == "1732.5 ☎"
    await there.set("message:7", "1733")
    assert await here.get("message:7") == "1733"
    await here.delete("message:7")
    await here.delete("message:7")
    assert await there.get("message:7") is None


async def test_of_several_who_add_the_same_note_one_succeeds(memories: tuple[Memory, Memory]) -> None:
    added = await asyncio.gather(*(memory.add("claim", str(n)) for n, memory in enumerate(memories * 10)))
    assert added.count(True) == 1
    assert await memories[0].get("claim") == str(added.index(True))


async def test_a_note_is_forgotten_after_its_time(memories: tuple[Memory, Memory]) -> None:
    here, there = memories
    assert await here.add("claim", "x", for_s=1)
    assert not await there.add("claim", "y", for_s=1)

    async def is_forgotten() -> bool:
        return await there.get("claim") is None

    await until(is_forgotten)
    assert await there.add("claim", "y", for_s=60)


async def test_a_worker_s_sinks_write_notes_that_others_can_read(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, []) as aftercall:
        await aftercall.sink("log").memory.set("message:7", "1732.5")
        assert await aftercall.ledger.memory("log").get("message:7") == "1732.5"


async def test_a_sink_s_notes_are_its_own(valkey_url: str) -> None:
    ledger = Ledger(connect(valkey_url), retention_s=60)
    await ledger.memory("chat").set("x", "1")
    assert await ledger.memory("other").get("x") is None
    await ledger.close()
