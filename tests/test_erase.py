"""An erased call stays erased: nothing of it is left in Redis, its sinks are told, and nothing brings it back."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
import zstandard
from structlog.testing import capture_logs

from aftercall.erasure import erase_call
from aftercall.event import encode, event_id
from aftercall.states import ERASED
from simulator.calls import event_type, make_calls
from simulator.parts import Call as SimulatedCall
from tests.contents import words_in
from tests.inside import Inside, inside
from workers.deliver import deliver
from workers.lanes import Lanes
from workers.process import process

CALLS = make_calls(seed=9, now=time.time())
RETELL = next(call for call in CALLS if call.provider == "retell" and len(call.webhooks) > 2)
WORD = "Wollemi"  # planted in what is said
FORGETFUL = '[sinks.forgetful]\ntype = "tests.inside:Forgetful"\nevents = ["call.settled"]\n'
LOG = '[sinks.log]\ntype = "tests.inside:Recorder"\nevents = ["*"]\n'


def planted(call: SimulatedCall) -> SimulatedCall:
    """The call, with the word in what was said."""
    text = msgspec.json.encode(call).decode().replace("Goodbye", f"Goodbye {WORD}")
    made = msgspec.json.decode(text, type=SimulatedCall)
    assert WORD in text
    return made


async def receive_all(aftercall: Inside, call: SimulatedCall) -> None:
    for webhook in call.webhooks:
        if webhook.is_fact:
            await aftercall.receive(call, webhook)


async def erase(aftercall: Inside, call: SimulatedCall, *, at_provider: bool = False) -> bool:
    provider = aftercall.hub.providers[call.provider]
    sinks = aftercall.hub.settings.sinks
    return await erase_call(aftercall.ledger, provider, call.id, sinks=sinks, at_provider=at_provider)


async def test_an_erased_call_leaves_no_word_in_redis_and_its_sinks_are_told_once(
    valkey_url: str, tmp_path: Path
) -> None:
    call = planted(RETELL)
    async with inside(valkey_url, tmp_path, [call], sinks=LOG + FORGETFUL) as aftercall:
        await receive_all(aftercall, call)
        await aftercall.finish()
        assert await words_in(aftercall.ledger.redis, WORD)

        assert await erase(aftercall, call)
        assert await words_in(aftercall.ledger.redis, WORD) == []
        await aftercall.finish()
        assert await words_in(aftercall.ledger.redis, WORD) == []

        (erased,) = aftercall.of(call.id, "call.erased")
        told = erased.data.call
        assert (erased.data.via, told.id, told.status) == ("erase", call.id, "ended")
        assert told.privacy.redacted_at is not None
        assert told.duration_ms is not None
        nothing = (told.transcript, told.analysis, told.recording, told.from_, told.to, told.metadata, told.variables)
        assert nothing == (None, None, None, None, None, {}, {})
        forgetful = aftercall.sink("forgetful")
        assert [one.id for one in forgetful.erased] == [call.id]
        assert "call.erased" not in {event.type for event in forgetful.got}

        assert not await erase(aftercall, call)
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.erased")) == 1


async def test_neither_a_late_webhook_nor_a_replay_brings_an_erased_call_back(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, [RETELL]) as aftercall:
        facts = [webhook for webhook in RETELL.webhooks if webhook.is_fact]
        for webhook in facts[:-1]:
            await aftercall.receive(RETELL, webhook)
        await aftercall.finish()
        before = {event.id for event in aftercall.events}
        await erase(aftercall, RETELL)
        await aftercall.finish()
        aftercall.events.clear()

        for webhook in facts:
            assert [one.sequence for one in await aftercall.receive(RETELL, webhook)] == [ERASED]
        for event in before:
            assert await aftercall.ledger.replay(event, "log", only_dead=False) == "content_gone"
            assert await aftercall.ledger.replay(event, "@process", only_dead=False) == "content_gone"
        await aftercall.finish()
        assert aftercall.events == []
        assert (await aftercall.ledger.counters())["erased", "retell"] == len(facts)


async def test_what_was_still_to_be_done_for_an_erased_call_is_not_done(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + LOG.replace("log", "down")) as aftercall:
        down = aftercall.sink("down")
        down.failing = {"down"}
        await receive_all(aftercall, RETELL)
        await aftercall.work()
        assert (await aftercall.ledger.open_work(["deliver:down"]))["deliver:down"][0] > 0
        await aftercall.receive(RETELL, RETELL.webhooks[0])

        await erase(aftercall, RETELL)
        down.failing = set()
        await aftercall.finish()
        assert {event.type for event in down.got} == {"call.erased"}
        assert await aftercall.ledger.dead_letters() == []


async def test_dead_letters_and_a_settling_that_waits_go_with_the_call(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, [RETELL], sinks=LOG + LOG.replace("log", "picky")) as aftercall:
        aftercall.sink("picky").refusing = {"picky"}
        ended = next(one for one in RETELL.webhooks if event_type("retell", one.event) == "call.ended")
        await aftercall.receive(RETELL, ended)
        for _ in range(4):  # the record is not there at first
            await aftercall.work()
            await aftercall.pass_time("process")
        assert await aftercall.ledger.dead_letters()
        assert (await aftercall.ledger.open_work(["settle"]))["settle"][0] == 1

        await erase(aftercall, RETELL)
        assert await aftercall.ledger.dead_letters() == []
        assert (await aftercall.ledger.open_work(["settle"]))["settle"][0] == 0
        aftercall.sink("picky").refusing = set()
        await aftercall.finish()
        assert aftercall.of(RETELL.id, "call.settled") == []


async def test_the_sinks_hear_of_an_erasure_after_the_attempts_that_were_under_way(
    valkey_url: str, tmp_path: Path
) -> None:
    async with inside(valkey_url, tmp_path, [RETELL]) as aftercall:
        await aftercall.receive(RETELL, RETELL.webhooks[-1])
        (claim,) = await aftercall.ledger.claim({"process": 1}, lease_s=30)  # a worker has it in its hands
        await erase(aftercall, RETELL)

        assert await aftercall.ledger.claim({"process": 1}, lease_s=30) == []
        ((_, overdue_s),) = (await aftercall.ledger.open_work(["process"])).values()
        assert overdue_s is not None
        assert -31 < overdue_s < -25
        assert not await aftercall.ledger.defer(claim, 0.0)
        await aftercall.pass_time()
        await aftercall.finish()
        assert {event.type for event in aftercall.events} == {"call.erased"}


async def test_what_is_erased_while_a_worker_has_it_is_no_failure(valkey_url: str, tmp_path: Path) -> None:
    call = planted(RETELL)
    async with inside(valkey_url, tmp_path, [call], sinks=LOG) as aftercall:
        await aftercall.receive(call, call.webhooks[0])
        claimed = await aftercall.ledger.claim({"process": 1}, lease_s=30)
        assert await erase(aftercall, call)
        with capture_logs() as logs:
            for claim in claimed:
                await process({"hub": aftercall.hub, "claim": claim, "lanes": Lanes({"log": 0.0}, {})}, claim.event_id)
            await deliver(
                {"hub": aftercall.hub, "claim": claimed[0], "lanes": Lanes({}, {})}, claimed[0].event_id, "log"
            )
        assert len(claimed) == 1
        assert logs == []
        assert await aftercall.ledger.dead_letters() == []


async def test_a_webhook_that_comes_in_the_midst_of_an_erasure_goes_with_the_call(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = planted(RETELL)
    *before, last = [webhook for webhook in call.webhooks if webhook.is_fact]
    async with inside(valkey_url, tmp_path, [call], sinks=LOG) as aftercall:
        for webhook in before:
            await aftercall.receive(call, webhook)
        await aftercall.work()
        told = len(aftercall.events)
        read, readings = aftercall.ledger.call_events, 0

        async def read_a_little_early(account: str, call_id: str) -> dict[str, str]:
            nonlocal readings
            events, readings = await read(account, call_id), readings + 1
            if readings == 2:  # the first is for what `call.erased` tells, the second for what is purged
                await aftercall.receive(call, last)
            return events

        monkeypatch.setattr(aftercall.ledger, "call_events", read_a_little_early)
        assert await erase(aftercall, call)
        assert readings == 3
        assert await words_in(aftercall.ledger.redis, WORD) == []
        await aftercall.finish()
        assert [event.type for event in aftercall.events[told:]] == ["call.erased"]


async def test_a_call_of_very_many_turns_is_erased_without_keeping_redis_from_all_else(
    valkey_url: str, tmp_path: Path
) -> None:
    """Each event may be open at each sink; nobody else is answered while a script runs."""
    many, sinks = 600, [f"sink{number}" for number in range(20)]
    envelope = {"type": "call_turn", "call_id": "ac_long"}
    async with inside(valkey_url, tmp_path, []) as aftercall:
        redis, provider = aftercall.ledger.redis, aftercall.hub.providers["cartesia"]
        bodies = [msgspec.json.encode(envelope | {"turn": {"text": f"{WORD} {number}"}}) for number in range(many)]
        await asyncio.gather(*(aftercall.accept("cartesia", body) for body in bodies))
        claimed = await aftercall.ledger.claim({"process": many}, lease_s=30)
        for sink in sinks:
            await redis.zadd(f"aftercall:work:deliver:{sink}", {claim.event_id: 1 for claim in claimed})
            await redis.zadd("aftercall:dead", {f"{claim.event_id}|{sink}": 1 for claim in claimed})
        assert len(claimed) == many
        await redis.config_resetstat()
        assert await erase_call(aftercall.ledger, provider, "ac_long", sinks=sinks)
        assert (await redis.info("commandstats"))["cmdstat_zrem"]["calls"] < many
        lanes = ["process", *(f"deliver:{sink}" for sink in sinks)]
        assert sum(count for count, _ in (await aftercall.ledger.open_work(lanes)).values()) == 1  # it is told later
        assert await aftercall.ledger.dead_letters() == []
        assert await words_in(redis, WORD) == []


async def test_a_call_never_heard_of_can_be_erased_before_it_comes(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, [RETELL]) as aftercall:
        await erase(aftercall, RETELL)
        await receive_all(aftercall, RETELL)
        await aftercall.finish()

        assert [event.type for event in aftercall.events] == ["call.erased"]
        assert await aftercall.ledger.redis.ttl(f"aftercall:call:retell:{RETELL.id}") == -1


async def test_only_sinks_that_heard_of_the_call_or_can_forget_it_hear_of_its_erasure(
    valkey_url: str, tmp_path: Path
) -> None:
    options = """type = "tests.inside:Recorder"\nevents = ["*"]\n"""
    sinks = f"""[sinks.log]\n{options}
[sinks.theirs]\n{options}where = 'call.analysis.summary != ""'\n
[sinks.others]\n{options}where = 'call.duration_ms < 0'\n
[sinks.elsewhere]\ntype = "tests.inside:Forgetful"\naccounts = ["ultravox"]\n
[sinks.forgetful]\ntype = "tests.inside:Forgetful"\nwhere = 'call.duration_ms < 0'\n"""
    async with inside(valkey_url, tmp_path, [RETELL], sinks=sinks) as aftercall:
        await receive_all(aftercall, RETELL)
        await aftercall.finish()
        await erase(aftercall, RETELL)
        await aftercall.finish()

        assert [event.type for event in aftercall.sink("theirs").got][-1] == "call.erased"
        assert aftercall.sink("others").got == []
        assert len(aftercall.sink("forgetful").erased) == 1
        assert aftercall.sink("elsewhere").erased == []


async def test_the_event_of_an_erasure_has_an_id_of_its_own_and_the_next_sequence(
    valkey_url: str, tmp_path: Path
) -> None:
    async with inside(valkey_url, tmp_path, [RETELL]) as aftercall:
        await receive_all(aftercall, RETELL)
        await aftercall.finish()
        last = max(event.data.sequence for event in aftercall.events)
        await erase(aftercall, RETELL)
        await aftercall.finish()

        (erased,) = aftercall.of(RETELL.id, "call.erased")
        assert erased.id == event_id("retell", "retell", f"@erased:{RETELL.id}")
        assert erased.data.sequence == last + 1


async def test_what_is_told_of_an_erased_call_does_not_hang_on_which_of_its_events_came_last(
    valkey_url: str, tmp_path: Path
) -> None:
    call = next(call for call in CALLS if any(webhook.event == "call_turn" for webhook in call.webhooks))
    (turn,) = (webhook.payload for webhook in call.webhooks if webhook.event == "call_turn")
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive_all(aftercall, call)
        await aftercall.finish()
        for number in range(4):
            await aftercall.accept(call.provider, msgspec.json.encode({**turn, "number": number}))
        await aftercall.finish()
        await erase(aftercall, call)
        await aftercall.finish()

        (erased,) = aftercall.of(call.id, "call.erased")
        told = erased.data.call
        assert told.status == "ended"
        assert told.end is not None
        assert told.duration_ms is not None


async def test_a_call_is_erased_also_where_its_event_cannot_be_read(valkey_url: str, tmp_path: Path) -> None:
    """A version that knew more words wrote it, before somebody went back to this one."""
    call = planted(RETELL)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive_all(aftercall, call)
        await aftercall.finish()
        redis = aftercall.ledger.redis
        for event in aftercall.of(call.id):
            unread = encode(event).replace(b'"type":"call.', b'"type":"call.not_yet_')
            await redis.hset(f"aftercall:event:{event.id}", "event", zstandard.compress(unread))
        assert await erase(aftercall, call)
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.erased")) == 1
        assert await words_in(redis, WORD) == []
