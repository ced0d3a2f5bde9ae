"""Reconciling makes good what no webhook told, under the same event ids, and doubles nothing."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from aftercall.errors import ProviderError
from aftercall.event import event_id
from aftercall.providers.base import CallPage
from aftercall.reconcile import Found, Reconciler
from simulator.calls import event_type, make_calls
from simulator.day import make_day
from simulator.faults import Faults, parse_rule
from simulator.parts import Call, Webhook, compact
from tests.inside import Inside, inside

PROVIDERS = ("retell", "cartesia", "ultravox")
TOLD = ("call.ended", "call.analyzed", "call.billed")
# The kinds of call that a day has, of each provider. An Ultravox call that deletes itself is in no list afterwards.
DAY = [
    call
    for call in make_day(seed=3, now=time.time(), count=21)
    if (call.provider, call.story) != ("ultravox", "private")
]
DAY_AGO = timedelta(days=1, hours=1)
ADDED_LATER = {"call_analysis", "summary", "billingStatus", "billedDuration"}  # to the records, some time after the end
LOST = {
    "all webhooks": ("call.started", "call.connected", *TOLD),
    "the end": ("call.ended",),
    "the analysis or the bill": ("call.analyzed", "call.billed"),
}


def of(provider: str, calls: list[Call] = DAY) -> list[Call]:
    return [call for call in calls if call.provider == provider]


def type_of(call: Call, webhook: Webhook) -> str:
    return event_type(call.provider, webhook.event)


def id_of(aftercall: Inside, call: Call, webhook: Webhook) -> str:
    (one,) = aftercall.hub.providers[call.provider].decode(compact(webhook.payload).encode())
    return event_id(call.provider, call.provider, one.dedupe_key)


def is_findable(call: Call, webhook: Webhook) -> bool:
    """Whether the record tells it too."""
    return type_of(call, webhook) in TOLD


async def receive(aftercall: Inside, calls: list[Call], *, but: tuple[str, ...] = ()) -> None:
    """All webhooks arrive but those of these types; the records go on in any case."""
    for call in calls:
        for webhook in call.webhooks:
            if type_of(call, webhook) in but:
                aftercall.records.show(call, webhook)
            else:
                await aftercall.receive(call, webhook)


def walk_of(aftercall: Inside, account: str, ago: timedelta = DAY_AGO, **options: Any) -> Reconciler:
    hub = aftercall.hub
    given: dict[str, Any] = {"per_s": 1000.0, **options}
    return Reconciler(hub.ledger, hub.providers[account], datetime.now(UTC) - ago, sinks=hub.settings.sinks, **given)


async def reconcile(aftercall: Inside, account: str, ago: timedelta = DAY_AGO, **options: Any) -> list[Found]:
    walk = walk_of(aftercall, account, ago, **options)
    return [found async for step in walk.walk() for found in step.found]


def bills_nobody_sends(call: Call) -> int:
    """The simulator's Ultravox sends no bill of a call that nobody joined, and its record shows that it is free."""
    return int((call.provider, call.story) == ("ultravox", "unreached"))


def assert_told_once(aftercall: Inside, calls: list[Call]) -> None:
    for call in calls:
        counts: Counter[str] = Counter(event.type for event in aftercall.of(call.id))
        assert (counts["call.ended"], counts["call.settled"]) == (1, 1), (call.provider, call.story, counts)
        due = {type_of(call, webhook) for webhook in call.webhooks if is_findable(call, webhook)}
        assert all(counts[type_] == 1 for type_ in due), (call.provider, call.story, counts)
        assert max(counts.values()) == 1
    assert len({event.id for event in aftercall.events}) == len(aftercall.events)


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_no_webhook_told_is_found_under_the_webhook_s_own_event_id(
    provider: str, lost: tuple[str, ...], valkey_url: str, tmp_path: Path
) -> None:
    calls = of(provider)
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await receive(aftercall, calls, but=lost)
        await aftercall.work()

        found = await reconcile(aftercall, provider)
        missed = [(call, webhook) for call in calls for webhook in call.webhooks if type_of(call, webhook) in lost]
        expected = {id_of(aftercall, *told) for told in missed if is_findable(*told)}
        ids = {one.event for one in found}
        extra = sum(bills_nobody_sends(call) for call in calls)
        assert expected <= ids
        assert len(found) == len(ids) == len(expected) + extra
        assert {one.done for one in found} == {"accepted"}

        await aftercall.finish()
        assert_told_once(aftercall, calls)
        for event in aftercall.events:
            due = "reconcile" if event.id in ids else "settle" if event.type == "call.settled" else "webhook"
            assert event.data.via == due
        for call, webhook in missed:
            if is_findable(call, webhook):
                assert [one.sequence for one in await aftercall.receive(call, webhook)] == [0]
        assert await reconcile(aftercall, provider) == []
        count = len(aftercall.events)
        await aftercall.finish()
        assert len(aftercall.events) == count


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_where_no_webhook_was_lost_nothing_is_found_and_nothing_doubled(
    provider: str, valkey_url: str, tmp_path: Path
) -> None:
    calls = of(provider)
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await receive(aftercall, calls)
        found = await reconcile(aftercall, provider)
        assert [one.type for one in found] == ["call.billed"] * sum(bills_nobody_sends(call) for call in calls)
        await aftercall.finish()
        assert_told_once(aftercall, calls)
        assert await reconcile(aftercall, provider) == []


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_the_list_does_not_show_is_asked_of_the_record_by_a_thorough_walk(
    provider: str, thorough: bool, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [call for call in of(provider) if call.story == "held"]
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await receive(aftercall, calls, but=("call.analyzed", "call.billed"))
        await aftercall.work()
        listed = aftercall.hub.providers[provider].list_calls

        async def less(*arguments: Any) -> CallPage:
            page = await listed(*arguments)
            shown = [{name: row[name] for name in row.keys() - ADDED_LATER} for row in page.calls]
            return CallPage(calls=shown, next=page.next)

        monkeypatch.setattr(aftercall.hub.providers[provider], "list_calls", less)
        found = await reconcile(aftercall, provider, thorough=thorough)
        assert [one.done for one in found] == ["accepted"] * len(calls) * thorough
        await aftercall.finish()
        if thorough:
            assert_told_once(aftercall, calls)
            assert await reconcile(aftercall, provider) == []


@pytest.mark.parametrize(("broken", "hidden"), [(1, False), (2, False), (3, True)])
async def test_a_record_that_cannot_be_had_hides_no_other_unless_none_can(
    broken: int, hidden: bool, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.reconcile.RETRY_S", ())
    calls = [call for call in of("retell") if any(webhook.event == "call_analyzed" for webhook in call.webhooks)]
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await receive(aftercall, calls, but=("call.analyzed",))
        await aftercall.work()
        provider = aftercall.hub.providers["retell"]
        listed, fetch, asked = provider.list_calls, provider.fetch, []

        async def without_analysis(*arguments: Any) -> CallPage:
            page = await listed(*arguments)
            shown = [{name: row[name] for name in row.keys() - ADDED_LATER} for row in page.calls]
            return CallPage(calls=shown, next=page.next)

        async def fails_at_first(call_id: str) -> Any:
            asked.append(call_id)
            if len(asked) <= broken:
                raise ProviderError("the provider's API answered HTTP 500", status=500)
            return await fetch(call_id)

        monkeypatch.setattr(provider, "list_calls", without_analysis)
        monkeypatch.setattr(provider, "fetch", fails_at_first)
        walk = walk_of(aftercall, "retell")
        with pytest.raises(ProviderError) if hidden else nullcontext():
            found = [found async for step in walk.walk() for found in step.found]
            assert {one.call for one in found} == {call.id for call in calls} - set(asked[:broken])
            assert walk.unanswered == asked[:broken]
        assert len(asked) == (broken if hidden else len(calls))


async def test_an_agent_whose_list_never_ends_does_not_hide_the_next_one_s(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that takes no notice of where to go on."""
    calls = of("cartesia")
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        for call in calls:
            for webhook in call.webhooks:
                aftercall.records.show(call, webhook)
        provider: Any = aftercall.hub.providers["cartesia"]

        async def ask(method: str, path: str, *, params: Any = None, **_: Any) -> Any:
            if path != "agents/calls":
                return {"data": [{"id": "agent_early"}, {"id": "agent_late"}]}
            one = calls[params["agent_id"] == "agent_late"].record
            return {"data": [one], "next_page": one["id"]}

        monkeypatch.setattr(provider, "_ask", ask)
        found = await reconcile(aftercall, "cartesia", thorough=False)
        assert {one.call for one in found} == {call.id for call in calls[:2]}


@pytest.mark.parametrize("following", [lambda page: str(page + 1), lambda page: str((page + 1) % 2)])
async def test_a_list_that_goes_in_circles_or_brings_nothing_new_ends(
    following: Callable[[int], str], valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = of("retell")
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        await receive(aftercall, calls, but=TOLD)
        asked: list[str | None] = []

        async def list_calls(since: datetime, cursor: str | None = None) -> CallPage:
            asked.append(cursor)
            assert len(asked) < 10, "it would go on for ever"
            return CallPage(calls=[calls[0].record], next=following(int(cursor or 0)))

        monkeypatch.setattr(aftercall.hub.providers["retell"], "list_calls", list_calls)
        found = await reconcile(aftercall, "retell", thorough=False)
        assert {one.call for one in found} == {calls[0].id}
        assert len(found) == len({one.event for one in found})


@pytest.mark.parametrize("moment", ["list_calls", "known_calls"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_webhook_that_comes_while_the_walk_goes_on_doubles_nothing(
    provider: str, moment: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They all come after the list was had, or after the ledger was asked what it knows."""
    calls = of(provider)
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        for call in calls:
            for webhook in call.webhooks:
                aftercall.records.show(call, webhook)
        owner: Any = aftercall.hub.providers[provider] if moment == "list_calls" else aftercall.ledger
        ask = getattr(owner, moment)

        async def ask_and_receive(*arguments: Any) -> Any:
            answer = await ask(*arguments)
            await receive(aftercall, calls)
            return answer

        monkeypatch.setattr(owner, moment, ask_and_receive)
        found = await reconcile(aftercall, provider)
        assert len(found) == sum(bills_nobody_sends(call) for call in calls)
        assert all(one.done == "accepted" for one in found)
        await aftercall.finish()
        assert_told_once(aftercall, calls)


async def test_a_dry_run_says_what_would_be_done_and_changes_nothing(valkey_url: str, tmp_path: Path) -> None:
    async with inside(valkey_url, tmp_path, DAY) as aftercall:
        gone = of("cartesia")[0]
        await receive(aftercall, [gone])
        await receive(aftercall, [call for call in DAY if call is not gone], but=("call.ended",))
        await aftercall.finish()
        aftercall.records.delete("cartesia", gone.id)
        redis = aftercall.ledger.redis

        async def contents() -> dict[bytes, bytes]:
            return {key: await redis.dump(key) async for key in redis.scan_iter("*")}

        before = await contents()
        for provider in PROVIDERS:
            would = await reconcile(aftercall, provider, dry_run=True)
            assert {one.done for one in would} == {"nothing"}
            assert await contents() == before
            really = await reconcile(aftercall, provider)
            assert [(one.call, one.event, one.type) for one in would] == [
                (one.call, one.event, one.type) for one in really
            ]
            assert {one.done for one in really} == ({"accepted", "erased"} if provider == "cartesia" else {"accepted"})
            before = await contents()


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_call_that_is_not_over_is_left_alone(provider: str, valkey_url: str, tmp_path: Path) -> None:
    calls = [call for call in of(provider) if call.story == "held"]
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        for call in calls:
            aftercall.records.show(call, call.webhooks[0])
        walk = walk_of(aftercall, provider)
        steps = [step async for step in walk.walk()]
        assert sum(step.calls for step in steps) == len(calls)
        assert [found for step in steps for found in step.found] == []
        assert await aftercall.ledger.redis.dbsize() == 0


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_within_the_grace_the_webhooks_of_a_call_that_just_ended_are_waited_for(
    provider: str, valkey_url: str, tmp_path: Path
) -> None:
    just_now = [call for call in make_calls(seed=4, now=time.time(), only=provider) if not call.faults]
    fresh = next(call for call in just_now if "call.ended" in {type_of(call, webhook) for webhook in call.webhooks})
    calls = [*of(provider), fresh]
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        found = await reconcile(aftercall, provider, grace=timedelta(minutes=5))
        assert {one.call for one in found} == {call.id for call in calls} - {fresh.id}
        later = await reconcile(aftercall, provider)
        assert {one.call for one in later} == {fresh.id}


async def test_an_event_that_died_before_it_was_one_is_processed_again(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cartesia's record confirms what its webhook says; while it cannot be had for too long, the event dies."""
    call = next(call for call in of("cartesia") if call.story == "held")
    ended = next(webhook for webhook in call.webhooks if type_of(call, webhook) == "call.ended")
    faults = Faults([parse_rule("get cartesia 503 first 1")])
    monkeypatch.setattr("workers.record.GIVE_UP_S", 0.0)
    async with inside(valkey_url, tmp_path, [call], faults=faults) as aftercall:
        await aftercall.receive(call, ended)
        await aftercall.work()
        assert await aftercall.ledger.dead_letters() == [(id_of(aftercall, call, ended), "@process")]

        found = await reconcile(aftercall, "cartesia")
        assert [(one.event, one.done) for one in found] == [(id_of(aftercall, call, ended), "replayed")]
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.ended")) == len(aftercall.of(call.id, "call.settled")) == 1
        assert await aftercall.ledger.dead_letters() == []
        assert await reconcile(aftercall, "cartesia") == []


async def test_a_dead_letter_that_was_dropped_is_not_found_again_and_again(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = next(call for call in of("cartesia") if call.story == "held")
    ended = next(webhook for webhook in call.webhooks if type_of(call, webhook) == "call.ended")
    faults = Faults([parse_rule("get cartesia 503")])
    monkeypatch.setattr("workers.record.GIVE_UP_S", 0.0)
    async with inside(valkey_url, tmp_path, [call], faults=faults) as aftercall:
        await aftercall.receive(call, ended)
        await aftercall.work()
        assert await aftercall.ledger.drop(id_of(aftercall, call, ended), "@process")
        assert await reconcile(aftercall, "cartesia", thorough=False) == []


async def test_the_requests_to_the_provider_keep_to_the_rate(valkey_url: str, tmp_path: Path) -> None:
    """Counted at the vendor; what is accepted takes a turn too, since the worker will ask for its record."""
    calls = of("retell")
    async with inside(valkey_url, tmp_path, calls) as aftercall:
        times: list[float] = []

        async def note(_: httpx.Request) -> None:
            times.append(time.monotonic())

        http = aftercall.hub.providers["retell"].http
        http.event_hooks = {"request": [note]}
        begin = time.monotonic()
        found = await reconcile(aftercall, "retell", per_s=40.0)
        turns = len(times) + len(found)
        assert turns >= 15
        assert time.monotonic() - begin >= (turns - 2) / 40

        begin = time.monotonic()
        times.clear()
        assert await reconcile(aftercall, "retell", per_s=1000.0) == []
        assert time.monotonic() - begin < 10
