"""What was deleted at the provider is erased here; and reconciling by itself, every quarter of an hour."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aftercall.errors import ProviderError
from aftercall.providers.base import CallPage
from simulator.calls import make_calls
from simulator.day import make_day
from simulator.faults import Faults, parse_rule
from simulator.parts import Call
from tests.contents import words_in
from tests.inside import Inside, inside
from tests.stack import Stack, fixture
from tests.test_end_to_end import open_ledger
from tests.test_reconcile import PROVIDERS, assert_told_once, of, receive, reconcile, type_of
from workers.reconcile import note_beginning
from workers.reconcile import reconcile as reconcile_all

NOW = time.time()
DAY = make_day(seed=11, now=NOW, count=42)
CROWD = make_day(seed=12, now=NOW, count=13, only="retell")
HELD = {provider: next(call for call in of(provider, DAY) if call.story == "held") for provider in PROVIDERS}
AT_ONCE = timedelta(seconds=-5)  # lists are up to date


def erased_ids(aftercall: Inside) -> list[str]:
    return [event.subject for event in aftercall.events if event.type == "call.erased"]


async def heard_of(aftercall: Inside, calls: list[Call]) -> None:
    """All webhooks arrive, each processed before the next: some calls are soon gone."""
    for number in range(max(len(call.webhooks) for call in calls)):
        for call in calls:
            for webhook in call.webhooks[number : number + 1]:
                await aftercall.receive(call, webhook)
        await aftercall.work()
    await aftercall.finish()


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_call_deleted_at_the_provider_is_erased_here_and_nothing_else_is(
    provider: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.reconcile.UNLISTED_AFTER", AT_ONCE)
    calls, gone = of(provider, DAY), HELD[provider]
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await heard_of(aftercall, calls)
        assert await words_in(aftercall.ledger.redis, str(gone.marker))
        await reconcile(aftercall, provider)
        await aftercall.finish()
        assert erased_ids(aftercall) == []

        aftercall.records.delete(provider, gone.id)
        found = await reconcile(aftercall, provider)
        assert [(one.call, one.type, one.done) for one in found] == [(gone.id, "call.erased", "erased")]
        assert await words_in(aftercall.ledger.redis, str(gone.marker)) == []
        await aftercall.finish()
        (told,) = aftercall.of(gone.id, "call.erased")
        assert (told.id, told.data.via) == (found[0].event, "erase")
        assert erased_ids(aftercall) == [gone.id]
        assert told.data.call.transcript is None
        assert await words_in(aftercall.ledger.redis, str(gone.marker)) == []

        assert await reconcile(aftercall, provider) == []
        await receive(aftercall, [gone])
        await aftercall.finish()
        assert erased_ids(aftercall) == [gone.id]
        assert aftercall.events[-1].type == "call.erased"


async def test_a_call_that_its_provider_deletes_by_itself_is_not_erased(valkey_url: str, tmp_path: Path) -> None:
    calls = of("ultravox", DAY)
    private = {call.id for call in calls if call.story == "private"}
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await heard_of(aftercall, calls)
        assert private <= {tombstone["callId"] for tombstone in aftercall.records.tombstones()}
        await reconcile(aftercall, "ultravox")
        await aftercall.finish()
        assert erased_ids(aftercall) == []


async def test_a_call_that_is_only_not_in_the_list_is_not_erased(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began before the list does, and its webhooks came late: its record is still to be had."""
    monkeypatch.setattr("aftercall.reconcile.UNLISTED_AFTER", AT_ONCE)
    calls = of("retell", DAY)
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await heard_of(aftercall, calls)
        assert await reconcile(aftercall, "retell", timedelta(hours=1)) == []
        await aftercall.finish()
        assert erased_ids(aftercall) == []

        aftercall.records.delete("retell", calls[0].id)
        assert [one.call for one in await reconcile(aftercall, "retell", timedelta(hours=1))] == [calls[0].id]


async def test_the_end_of_a_call_that_no_list_shows_is_found_in_its_record(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dial without an answer has no start_timestamp, by which Retell's list is filtered."""
    monkeypatch.setattr("aftercall.reconcile.UNLISTED_AFTER", AT_ONCE)
    calls = of("retell", DAY)
    call = next(call for call in calls if any(type_of(call, webhook) == "call.analyzed" for webhook in call.webhooks))
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await receive(aftercall, [call], but=("call.ended",))
        await aftercall.work()

        async def list_calls(since: datetime, cursor: str | None = None) -> CallPage:
            return CallPage(calls=[])

        monkeypatch.setattr(aftercall.hub.providers["retell"], "list_calls", list_calls)
        assert [(one.type, one.done) for one in await reconcile(aftercall, "retell")] == [("call.ended", "accepted")]
        await aftercall.finish()
        assert_told_once(aftercall, [call])
        assert await reconcile(aftercall, "retell") == []


async def test_a_call_that_came_just_now_is_not_missed_in_a_list_that_may_be_behind(
    valkey_url: str, tmp_path: Path
) -> None:
    async with inside(valkey_url, tmp_path, of("retell", DAY)) as aftercall:
        await heard_of(aftercall, of("retell", DAY))
        aftercall.records.delete("retell", HELD["retell"].id)
        assert await reconcile(aftercall, "retell") == []


async def test_a_call_whose_record_was_never_had_is_not_taken_for_deleted(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.reconcile.UNLISTED_AFTER", AT_ONCE)
    monkeypatch.setattr("workers.record.GIVE_UP_S", 0.0)
    call = HELD["retell"]
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        aftercall.records.delete("retell", call.id)
        await heard_of(aftercall, [call])
        (ended,) = aftercall.of(call.id, "call.ended")
        assert not ended.data.complete
        assert await reconcile(aftercall, "retell") == []
        await aftercall.finish()
        assert erased_ids(aftercall) == []


async def test_when_too_many_are_gone_at_once_nothing_is_erased(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than ten, and more than a tenth, look like the key of another workspace."""
    monkeypatch.setattr("aftercall.reconcile.UNLISTED_AFTER", AT_ONCE)
    async with inside(valkey_url, tmp_path, CROWD) as aftercall:
        await heard_of(aftercall, CROWD)
        for call in CROWD[:11]:
            aftercall.records.delete("retell", call.id)
        with pytest.raises(ProviderError, match=r"11 of the 13 calls known are gone .* nothing was erased"):
            await reconcile(aftercall, "retell")
        await aftercall.finish()
        assert erased_ids(aftercall) == []
        assert await words_in(aftercall.ledger.redis, str(CROWD[0].marker))

        monkeypatch.setattr("aftercall.reconcile.UNLISTED_AT_MOST", 11)
        assert len(await reconcile(aftercall, "retell")) == 11


# By itself: what the worker's cron does


async def noted(aftercall: Inside, account: str, **hours_ago: float) -> None:
    times = {name: time.time() - hours * 3600 for name, hours in hours_ago.items()}
    await aftercall.ledger.note_progress(account, {name: str(at) for name, at in times.items()})


async def test_the_first_run_notes_where_it_began_and_finds_nothing_older(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, DAY) as aftercall:
        begin = time.time()
        await reconcile_all({"hub": aftercall.hub})
        for provider in PROVIDERS:
            note = await aftercall.ledger.reconcile_progress(provider)
            assert {begin <= float(note[name]) <= time.time() for name in ("first", "until", "wide")} == {True}
        await reconcile_all({"hub": aftercall.hub})
        await aftercall.finish()
        assert aftercall.events == []


async def test_calls_of_the_time_before_the_first_run_came_to_its_end_are_looked_at_too(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.reconcile.RETRY_S", ())
    faults = Faults([parse_rule("list retell 503 first 1")])
    async with inside(valkey_url, tmp_path, [], faults=faults) as aftercall:
        begin = time.time()
        await note_beginning(aftercall.hub)  # when the worker starts
        noted = await aftercall.ledger.reconcile_progress("retell")
        assert begin <= float(noted["first"]) <= time.time()
        for until_is_noted in (False, True):
            await reconcile_all({"hub": aftercall.hub})
            note = await aftercall.ledger.reconcile_progress("retell")
            assert note["first"] == noted["first"]
            assert ("until" in note) == until_is_noted


async def test_a_later_run_finds_a_lost_end_and_passes_by_what_ended_just_now(valkey_url: str, tmp_path: Path) -> None:
    now = time.time()  # the day was made when the suite began
    fresh = make_calls(seed=4, now=now)
    day = [call for call in DAY if (call.provider, call.story) != ("ultravox", "private")]
    async with inside(valkey_url, tmp_path, [*day, *fresh]) as aftercall:
        for call in fresh:
            aftercall.records.show(call, next(one for one in reversed(call.webhooks) if one.record))
        await receive(aftercall, day, but=("call.ended",))
        for provider in PROVIDERS:
            await noted(aftercall, provider, first=200, until=0.25, wide=1)
        await reconcile_all({"hub": aftercall.hub})
        await aftercall.finish()
        ended = {event.subject for event in aftercall.events if event.type == "call.ended"}
        assert ended >= {call.id for call in day if began_s(call) > now - 3 * 3600}
        assert ended <= {call.id for call in day if began_s(call) > now - 3.5 * 3600}
        assert len(ended) > 3

        for provider in PROVIDERS:
            await noted(aftercall, provider, wide=25)
        await reconcile_all({"hub": aftercall.hub})
        await aftercall.finish()
        assert {event.subject for event in aftercall.events if event.data.via == "reconcile"}.isdisjoint(
            call.id for call in fresh
        )
        assert_told_once(aftercall, day)


async def test_a_run_reaches_back_to_the_last_one_after_a_pause(valkey_url: str, tmp_path: Path) -> None:
    calls = of("retell", DAY)
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await receive(aftercall, calls, but=("call.ended",))
        await noted(aftercall, "retell", first=200, until=22, wide=1)
        await reconcile_all({"hub": aftercall.hub})
        await aftercall.finish()
        assert_told_once(aftercall, calls)


async def test_an_account_whose_provider_fails_does_not_keep_the_others_from_it(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aftercall.reconcile.RETRY_S", (0.01,))
    faults = Faults([parse_rule("list retell 503")])
    async with inside(valkey_url, tmp_path, DAY, faults=faults) as aftercall:
        for call in DAY:
            aftercall.records.show(call, call.webhooks[-1])
        for provider in PROVIDERS:
            await noted(aftercall, provider, first=200, until=24, wide=25)
        before = await aftercall.ledger.reconcile_progress("retell")
        await reconcile_all({"hub": aftercall.hub})
        assert await aftercall.ledger.reconcile_progress("retell") == before
        await aftercall.finish()
        found = {event.data.call.provider for event in aftercall.events if event.data.via == "reconcile"}
        assert found == {"cartesia", "ultravox"}
        assert "reconcile_failed" in capsys.readouterr().out


def began_s(call: Call) -> float:
    """As the lists count it; of a Retell call that never connected that is its end."""
    record = call.record
    if call.provider == "retell":
        return float(record.get("start_timestamp") or record["end_timestamp"]) / 1000
    field = "start_time" if call.provider == "cartesia" else "created"
    return datetime.fromisoformat(record[field]).astimezone(UTC).timestamp()


def test_every_call_of_the_day_is_told_by_an_end() -> None:
    """What the tests above count on."""
    assert all("call.ended" in {type_of(call, webhook) for webhook in call.webhooks} for call in DAY)


async def test_of_a_call_that_ultravox_deleted_by_its_policy_the_end_is_found_and_nothing_erased(
    valkey_url: str, tmp_path: Path
) -> None:
    call = next(call for call in DAY if (call.provider, call.story) == ("ultravox", "private"))
    lost = next(webhook for webhook in call.webhooks if webhook.event == "call.ended")
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        for webhook in call.webhooks:
            aftercall.records.show(call, webhook)
            if webhook is not lost:
                await aftercall.receive(call, webhook)
            await aftercall.work()
        assert aftercall.of(call.id, "call.ended") == []
        found = await reconcile(aftercall, "ultravox")
        await aftercall.finish()

        assert [(one.type, one.done) for one in found] == [("call.ended", "accepted")]
        assert len(aftercall.of(call.id, "call.ended")) == 1
        assert len(aftercall.of(call.id, "call.settled")) == 1
        assert aftercall.of(call.id, "call.erased") == []
        assert await reconcile(aftercall, "ultravox") == []


async def test_the_worker_reconciles_by_itself_beside_its_other_work(stack: Stack) -> None:
    """With arq's own clock, and two accounts whose vendors have no list here."""
    call = fixture("ultravox", "call.ended")["call"]
    listed = call | {"created": datetime.now(UTC).isoformat()}
    stack.vendor.records |= {
        f"/api/calls/{call['callId']}": call,
        f"/api/calls/{call['callId']}/messages": {"results": [], "next": None},
        "/api/calls": {"results": [listed], "next": None},
        "/api/deleted_calls": {"results": [], "next": None},
    }
    ledger = await open_ledger(stack)
    await ledger.note_progress("ferry", {"first": "0"})
    await ledger.close()
    often = (
        "import workers.main\nfor job in workers.main.CRON:\n    job.minute, job.second = None, set(range(0, 60, 2))\n"
    )
    stack.start_worker(first=often)

    ended = (await stack.receiver.until(1, timeout_s=60))[0]
    assert (ended["type"], ended["subject"], ended["data"]["via"]) == ("call.ended", call["callId"], "reconcile")
    assert stack.vendor.asked["/agents"]
    await asyncio.sleep(2.5)
    assert [event["type"] for event in stack.receiver.events].count("call.ended") == 1


async def test_a_worker_notes_at_its_start_from_when_on_calls_are_looked_at(stack: Stack) -> None:
    begin = time.time()
    stack.start_worker(first="import workers.main\nworkers.main.CRON.clear()\n")
    ledger = await open_ledger(stack)
    async with asyncio.timeout(20):
        while not (noted := await ledger.reconcile_progress("ferry")):
            await asyncio.sleep(0.05)
    await ledger.close()
    assert noted.keys() == {"first"}
    assert begin <= float(noted["first"]) <= time.time()
