"""`aftercall replay` as an operator gives it, where not all can be replayed; the rest is in test_cli.py."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator.day import make_day
from tests.desk import Desk, a_desk, rows
from tests.test_reconcile import receive

DAY = make_day(seed=11, now=time.time(), count=24, only="retell")
PRIVATE = next(call for call in DAY if call.story == "private")
ONE, OTHER = [call for call in DAY if call.story == "held"][:2]
LOG = '[sinks.log]\ntype = "tests.inside:Recorder"\nevents = ["*"]\n'


@pytest.fixture
async def desk(valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with a_desk(tmp_path, valkey_url, monkeypatch, DAY) as made:
        made.configure(made.url, more=LOG)
        await receive(made.aftercall, [PRIVATE, ONE, OTHER])
        await made.aftercall.finish()
        yield made


async def test_what_is_not_stored_any_more_is_told_of_also_in_bulk(desk: Desk) -> None:
    delivered = len(desk.aftercall.events)
    private = {event.id for event in desk.aftercall.of(PRIVATE.id)}

    done = await desk.give("replay", "--since", "1h", "--json")
    assert done.exit_code == 0
    now = {row["event"]: row["now"] for row in rows(done)}
    assert len(now) == delivered
    assert {event for event, word in now.items() if word == "content_gone"} == private
    assert f"{len(private)} not possible: the content is no longer stored" in done.stderr

    named = await desk.give("replay", *now)
    assert named.exit_code == 4
    assert (await desk.give("replay", *private)).exit_code == 1

    only = await desk.give("replay", "--since", "1h", "--type", "call.settled", "--json")
    assert sorted(row["now"] for row in rows(only)) == ["brought_forward", "brought_forward", "content_gone"]


async def test_that_an_erased_call_stays_erased_is_no_failure(desk: Desk) -> None:
    await desk.give("erase", "retell", PRIVATE.id, ONE.id)
    erased = {event.id for event in desk.aftercall.events if event.subject in (PRIVATE.id, ONE.id)}
    await desk.aftercall.finish()

    done = await desk.give("replay", "--since", "1h", "--json")
    assert (done.exit_code, done.stderr.count("not possible")) == (0, 1)
    assert f"{len(erased)} not possible: the call was erased" in done.stderr
    assert {row["event"] for row in rows(done) if row["now"] == "erased"} == erased

    named = await desk.give("replay", next(iter(erased)))
    assert named.exit_code == 1
    await desk.give("erase", "retell", OTHER.id)
    nothing = await desk.give("replay", "--since", "1h", "--type", "call.ended")
    assert nothing.exit_code == 1

    shown = await desk.give("events", "show", next(iter(erased)))
    assert "has no content any more: its call was erased" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "1h", "--type", "call.setled"), 'did you mean "call.settled"'),
        (("--since", "1h", "--until", "2h"), "--until is before --since"),
    ],
)
async def test_what_could_find_nothing_is_wrong_usage(arguments: tuple[str, ...], said: str, desk: Desk) -> None:
    done = await desk.give("replay", *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


async def test_a_list_of_none_is_wrong_usage(desk: Desk) -> None:
    assert (await desk.give("events", "list", "--limit", "0")).exit_code == 2
