"""`aftercall reconcile` as an operator gives it: what it says, how it ends, and that it goes on where it was."""

import asyncio
import os
import pty
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aftercall.errors import RecordNotReady
from aftercall.providers import retell_api
from aftercall.providers.base import CallPage
from simulator.day import make_day
from tests.desk import Desk, a_desk, rows
from tests.servers import until
from tests.test_reconcile import PROVIDERS, assert_told_once, of, receive

DAY = [
    call
    for call in make_day(seed=21, now=time.time(), count=42)
    if (call.provider, call.story) not in (("ultravox", "private"), ("ultravox", "unreached"))
]
LISTS = {"retell": "/v3/list-calls", "cartesia": "/agents/calls", "ultravox": "/api/calls"}
LISTLESS = """
from aftercall import Provider

class Listless(Provider):
    name = "listless"
    base_url = "https://api.listless.example"
    needs = ()

    def verify(self, request, secrets, now): ...
    def decode(self, body): return []
    async def fetch(self, call_id): return {}
    def normalize(self, webhook, record): raise NotImplementedError
"""


@pytest.fixture
async def desk(valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with a_desk(tmp_path, valkey_url, monkeypatch, DAY) as made:
        yield made


async def lose_ends(desk: Desk, provider: str) -> None:
    await receive(desk.aftercall, of(provider, DAY), but=("call.ended",))
    await desk.aftercall.work()


async def test_a_walk_that_was_killed_goes_on_where_it_was_and_all_is_there_once(desk: Desk) -> None:
    """Cartesia lists each agent's calls apart: at least three pages."""
    calls = of("cartesia", DAY)
    await lose_ends(desk, "cartesia")
    desk.fault("list cartesia slow 2")
    ledger = desk.aftercall.ledger

    async def has_a_cursor() -> bool:
        return "walk_cursor" in await ledger.reconcile_progress("cartesia")

    process = await desk.spawn("cartesia", "--since", "7d")
    await until(has_a_cursor)
    process.kill()
    await process.communicate()
    asked = len(lists(desk, "/agents/calls"))
    first = await ledger.counters()
    assert asked < 4
    desk.fault()

    again = await desk.spawn("cartesia", "--since", "7d")
    _, said = await again.communicate()
    assert again.returncode == 0
    assert b"going on with the walk that broke off at" in said
    assert len(lists(desk, "/agents/calls")) - asked < 3
    assert not await has_a_cursor()
    counters = await ledger.counters()
    assert first["accepted", "cartesia"] < counters["accepted", "cartesia"]
    assert ("duplicate", "cartesia") not in counters
    await desk.aftercall.finish()
    assert_told_once(desk.aftercall, calls)


def lists(desk: Desk, path: str) -> list[float]:
    return [at for at, asked in desk.asked if asked == path]


async def break_off(desk: Desk) -> dict[str, str]:
    """A walk of Cartesia's calls that broke off at its second page; what was noted."""
    await lose_ends(desk, "cartesia")
    provider = desk.aftercall.hub.providers["cartesia"]
    since = datetime.now(UTC) - timedelta(days=7, minutes=1)
    page = await provider.list_calls(since)
    assert page.next is not None
    noted = {"walk_since": since.isoformat(), "walk_cursor": page.next, "walk_at": datetime.now(UTC).isoformat()}
    await desk.aftercall.ledger.note_progress("cartesia", noted)
    return noted


async def test_a_walk_that_is_stopped_tells_what_it_found_and_goes_on(desk: Desk) -> None:
    await lose_ends(desk, "retell")
    calls = of("retell", DAY)

    async def found_some() -> bool:
        return (await desk.aftercall.ledger.counters()).get(("accepted", "retell"), 0) >= before + 2

    before = (await desk.aftercall.ledger.counters()).get(("accepted", "retell"), 0)
    process = await desk.spawn("retell", "--since", "7d", "--rate", "1/s", "--json")
    await until(found_some)
    process.send_signal(signal.SIGINT)
    told, said = await process.communicate()
    found = (await desk.aftercall.ledger.counters())["accepted", "retell"] - before
    assert process.returncode == 4
    assert b"stopped; what was found so far stays" in said
    assert b"Traceback" not in said
    # Of one that was on its way to Redis at that instant nobody can tell.
    assert found - 1 <= len(told.splitlines()) <= found < len(calls)
    assert told

    assert (await desk.reconcile("retell", "--since", "7d")).exit_code == 0
    await desk.aftercall.finish()
    assert_told_once(desk.aftercall, calls)


async def test_ids_are_whole_where_they_are_not_shown_on_a_terminal(desk: Desk) -> None:
    await lose_ends(desk, "ultravox")
    found = rows(await desk.reconcile("ultravox", "--since", "7d", "--dry-run", "--json"))
    table = (await desk.reconcile("ultravox", "--since", "7d", "--dry-run")).stdout
    assert found
    for row in found:
        assert any(row["event"] in line and row["call"] in line for line in table.splitlines())


async def test_restart_begins_anew(desk: Desk) -> None:
    await break_off(desk)
    result = await desk.reconcile("cartesia", "--since", "7d", "--restart")
    assert result.exit_code == 0
    assert "going on" not in result.stderr
    await desk.aftercall.finish()
    assert_told_once(desk.aftercall, of("cartesia", DAY))


@pytest.mark.parametrize(
    ("minutes", "since", "goes_on"), [(50, "7d", True), (70, "7d", False), (50, "8d", False), (50, "2d", True)]
)
async def test_it_goes_on_only_within_the_hour_and_if_it_reached_as_far_back(
    minutes: float, since: str, goes_on: bool, desk: Desk
) -> None:
    await break_off(desk)
    at = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
    await desk.aftercall.ledger.note_progress("cartesia", {"walk_at": at})
    result = await desk.reconcile("cartesia", "--since", since)
    assert result.exit_code == 0
    assert ("going on" in result.stderr) is goes_on
    assert len(lists(desk, "/agents/calls")) == (2 if goes_on else 3)


async def test_a_dry_run_neither_goes_on_nor_forgets_where_it_was(desk: Desk) -> None:
    noted = await break_off(desk)
    result = await desk.reconcile("cartesia", "--dry-run", "--json")
    assert result.exit_code == 0
    assert "going on" not in result.stderr
    count = len(of("cartesia", DAY))
    assert f"{count} calls listed, {count} events would be accepted or erased" in result.stderr
    assert {row["done"] for row in rows(result)} == {"nothing"}
    assert await desk.aftercall.ledger.reconcile_progress("cartesia") == noted


async def test_json_is_one_object_a_line_and_messages_are_elsewhere(desk: Desk) -> None:
    await lose_ends(desk, "retell")
    result = await desk.reconcile("retell", "--json")
    assert result.exit_code == 0
    found = rows(result)
    assert {row["call"] for row in found} == {call.id for call in of("retell", DAY)}
    assert {(*row, row["type"], row["done"]) for row in found} == {
        ("call", "event", "type", "done", "call.ended", "accepted")
    }
    assert result.stderr == f"{len(found)} calls listed, {len(found)} events accepted\n"
    again = await desk.reconcile("retell", "--json")
    assert (again.stdout, again.stderr) == ("", f"{len(found)} calls listed, 0 events accepted\n")


async def test_calls_erased_and_dead_letters_replayed_are_counted_apart(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [call for call in of("cartesia", DAY) if call.story == "held"]
    await receive(desk.aftercall, held[:1])
    await desk.aftercall.finish()
    desk.aftercall.records.delete("cartesia", held[0].id)
    with monkeypatch.context() as patched:
        patched.setattr("workers.record.GIVE_UP_S", 0.0)
        patched.setattr(desk.aftercall.hub.providers["cartesia"], "fetch", refuse)
        await receive(desk.aftercall, held[1:2], but=("call.started", "call.analyzed"))
        await desk.aftercall.work()
    result = await desk.reconcile("cartesia")
    assert result.exit_code == 0, result.output
    assert "\n1 dead letters processed again\n1 calls erased\n" in result.stderr


async def refuse(call_id: str) -> dict[str, Any]:
    raise RecordNotReady("the provider's API answered HTTP 404", status=404)


async def test_the_rate_is_kept_at_the_vendor(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here each call's record is asked for, because no list has it."""
    monkeypatch.setattr("aftercall.reconcile.UNLISTED_AFTER", timedelta(seconds=-5))
    await receive(desk.aftercall, of("retell", DAY))
    await desk.aftercall.finish()
    result = await desk.reconcile("retell", "--since", "1h", "--rate", "10/s")
    assert result.exit_code == 0
    times = [at for at, _ in desk.asked]
    assert len(times) > 10
    assert times[-1] - times[0] >= 0.9 * (len(times) - 1) / 10

    desk.asked.clear()
    await desk.reconcile("retell", "--since", "1h", "--rate", "1000/s")
    assert desk.asked[-1][0] - desk.asked[0][0] < 0.7 * (len(times) - 1) / 10


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_provider_that_asks_for_patience_gets_it(provider: str, desk: Desk) -> None:
    """The simulator's 429 says `Retry-After: 1`."""
    await lose_ends(desk, provider)
    desk.fault(f"list {provider} 429 first 1")
    result = await desk.reconcile(provider, "--rate", "1000/s")
    assert result.exit_code == 0
    times = lists(desk, LISTS[provider])
    assert times[1] - times[0] >= 0.99
    await desk.aftercall.finish()
    assert_told_once(desk.aftercall, of(provider, DAY))


@pytest.mark.parametrize("fault", ["5xx", "502", "truncated"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_may_pass_is_asked_for_again(provider: str, fault: str, desk: Desk) -> None:
    await lose_ends(desk, provider)
    desk.fault(f"list {provider} {fault} first 2")
    result = await desk.reconcile(provider, "--rate", "1000/s")
    assert result.exit_code == 0, result.stderr
    await desk.aftercall.finish()
    assert_told_once(desk.aftercall, of(provider, DAY))


@pytest.mark.parametrize(
    ("fault", "says"), [("503", "the provider is in trouble; try again later"), ("truncated", "other than JSON")]
)
async def test_what_does_not_pass_ends_it_with_exit_5_and_it_goes_on_from_there(
    fault: str, says: str, desk: Desk
) -> None:
    await lose_ends(desk, "cartesia")
    desk.on_asking(lambda: desk.fault(f"list cartesia {fault}") if len(lists(desk, "/agents/calls")) == 2 else None)
    result = await desk.reconcile("cartesia", "--json")
    assert result.exit_code == 5
    assert says in result.stderr
    assert "what was found so far stays; the command given again goes on from there" in result.stderr
    had = rows(result)
    assert had
    assert len(lists(desk, "/agents/calls")) == 4  # each failure was tried three times

    desk.on_asking(lambda: None)
    desk.fault()
    again = await desk.reconcile("cartesia", "--json")
    assert again.exit_code == 0
    assert "going on with the walk that broke off" in again.stderr
    assert len(lists(desk, "/agents/calls")) == 6
    assert not {row["event"] for row in had} & {row["event"] for row in rows(again)}
    await desk.aftercall.finish()
    assert_told_once(desk.aftercall, of("cartesia", DAY))


async def test_a_record_that_cannot_be_had_is_told_and_exits_4(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = retell_api.list_calls

    async def without_analysis(*arguments: Any) -> CallPage:
        page = await listed(*arguments)
        return CallPage(calls=[{**row, "call_analysis": None} for row in page.calls], next=page.next)

    monkeypatch.setattr(retell_api, "list_calls", without_analysis)
    await receive(desk.aftercall, of("retell", DAY), but=("call.analyzed",))
    desk.fault("get retell 500 first 3")  # the first record is asked for three times
    result = await desk.reconcile("retell", "--rate", "1000/s")
    assert result.exit_code == 4, result.stderr
    assert "1 records could not be had, the first of call_" in result.stderr
    assert "give the command again" in result.stderr
    again = await desk.reconcile("retell", "--rate", "1000/s")
    assert again.exit_code == 0
    assert "1 events accepted" in again.stderr


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_wrong_key_is_named_and_not_tried_again(provider: str, desk: Desk) -> None:
    desk.configure(desk.url, key="quince-77")
    result = await desk.reconcile(provider)
    assert result.exit_code == 1
    assert f"is accounts.{provider}.api_key right" in result.stderr
    assert "quince-77" not in result.output
    assert len({path for _, path in desk.asked}) == len(desk.asked)


async def test_a_provider_that_is_not_reached_is_exit_5(desk: Desk) -> None:
    desk.configure("http://127.0.0.1:9")
    result = await desk.reconcile("retell")
    assert result.exit_code == 5
    assert "is the network up, and accounts.retell.base_url right, if it is set?" in result.stderr


async def test_wrong_usage_is_exit_2(desk: Desk) -> None:
    assert (await desk.reconcile("retell", "--since", "2999-01-01")).exit_code == 2
    unknown = await desk.reconcile("nobody")
    assert unknown.exit_code == 2
    assert "no such account: nobody; there are retell, cartesia, ultravox" in unknown.stderr
    assert (await desk.reconcile("retell", "--rate", "fast")).exit_code == 2
    assert (await desk.reconcile("retell", "--since", "yesterday")).exit_code == 2
    assert desk.asked == []


async def test_a_provider_without_a_list_of_calls_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(desk.directory)
    (desk.directory / "listless.py").write_text(LISTLESS)
    desk.configure(desk.url, more='[accounts.other]\nprovider = "listless:Listless"\n')
    result = await desk.reconcile("other")
    assert result.exit_code == 1
    assert result.stderr == "listless has no list of calls\n"


async def test_progress_is_shown_on_a_terminal_and_nowhere_else(desk: Desk) -> None:
    desk.fault("list cartesia slow 0.2")
    await lose_ends(desk, "cartesia")
    ours, theirs = pty.openpty()
    shown = await desk.spawn("cartesia", "--dry-run", stderr=theirs)
    os.close(theirs)
    reading = asyncio.create_task(asyncio.to_thread(read_all, ours))
    hidden = await desk.spawn("cartesia", "--dry-run")
    _, said = await hidden.communicate()
    await shown.communicate()
    assert b"reconciling" in await reading
    assert b"reconciling" not in said
    assert b"calls listed" in said


def read_all(terminal: int) -> bytes:
    read = b""
    with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as stream:  # EIO: nobody has it open any more
        while part := stream.read(65536):
            read += part
    return read
