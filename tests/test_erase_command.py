"""`aftercall erase` as an operator gives it: what it says, how it ends, and what is left where a provider refuses."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator.day import make_day
from tests.contents import words_in
from tests.desk import Desk, a_desk, rows
from tests.servers import free_port
from tests.test_reconcile import receive

DAY = make_day(seed=31, now=time.time(), count=4, only="retell")
ONE, OTHER, *_ = DAY
IDS = (ONE.id, OTHER.id)


@pytest.fixture
async def desk(valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with a_desk(tmp_path, valkey_url, monkeypatch, DAY) as made:
        await receive(made.aftercall, DAY)
        await made.aftercall.finish()
        yield made


async def erased_ids(desk: Desk) -> list[str]:
    await desk.aftercall.finish()
    return [event.subject for event in desk.aftercall.events if event.type == "call.erased"]


async def test_it_says_of_each_call_whether_it_was_erased_now_or_before(desk: Desk) -> None:
    first = await desk.give("erase", "retell", ONE.id, "--json")
    assert (first.exit_code, first.stderr, rows(first)) == (0, "", [{"call": ONE.id, "erased": "now"}])
    assert await words_in(desk.aftercall.ledger.redis, str(ONE.marker)) == []
    assert await words_in(desk.aftercall.ledger.redis, str(OTHER.marker))

    again = await desk.give("erase", "retell", ONE.id, OTHER.id, OTHER.id, "--json")
    assert (again.exit_code, again.stderr) == (0, "")
    assert rows(again) == [{"call": ONE.id, "erased": "before"}, {"call": OTHER.id, "erased": "now"}]
    assert await erased_ids(desk) == [ONE.id, OTHER.id]
    kept = {call["call_id"] for call in desk.aftercall.records.listed("retell")}
    assert kept >= set(IDS), "without --at-provider the provider keeps it"


async def test_of_an_id_that_nothing_is_known_of_it_says_so(desk: Desk) -> None:
    done = await desk.give("erase", "retell", "call_mistyped", "--json")

    assert (done.exit_code, rows(done)) == (0, [{"call": "call_mistyped", "erased": "now"}])
    assert done.stderr == "nothing was known of call_mistyped; it is kept away from now on\n"


async def test_what_the_provider_does_not_delete_is_not_erased_here_either(desk: Desk) -> None:
    desk.fault("delete retell 500 first 3")

    done = await desk.give("erase", "retell", *IDS, "--at-provider", "--json")
    assert done.exit_code == 4
    assert "1 could not be deleted at the provider and are not erased; give the command again" in done.stderr
    refused, erased = rows(done)
    assert (refused["call"], erased) == (ONE.id, {"call": OTHER.id, "erased": "now"})
    assert refused["erased"].startswith("not: ")
    assert "500" in refused["erased"]
    assert await erased_ids(desk) == [OTHER.id]
    assert await words_in(desk.aftercall.ledger.redis, str(ONE.marker))

    again = await desk.give("erase", "retell", *IDS, "--at-provider", "--json")
    assert (again.exit_code, [row["erased"] for row in rows(again)]) == (0, ["now", "before"])
    assert await words_in(desk.aftercall.ledger.redis, str(ONE.marker)) == []


@pytest.mark.parametrize("fault", ["429", "503"])
async def test_what_passes_at_the_provider_is_asked_for_again(fault: str, desk: Desk) -> None:
    desk.fault(f"delete retell {fault} first 2")

    done = await desk.give("erase", "retell", ONE.id, "--at-provider", "--json")
    assert (done.exit_code, rows(done)) == (0, [{"call": ONE.id, "erased": "now"}])
    assert len([path for _, path in desk.asked if path == f"/v2/delete-call/{ONE.id}"]) == 3


@pytest.mark.parametrize(("trouble", "code"), [("a fault", 5), ("nobody there", 5), ("another key", 1)])
async def test_where_none_could_be_deleted_its_exit_tells_whether_the_provider_could_be_asked(
    trouble: str, code: int, desk: Desk
) -> None:
    desk.fault("delete retell 503")
    if trouble == "nobody there":
        desk.configure(f"http://127.0.0.1:{free_port()}")
    if trouble == "another key":
        desk.fault()
        desk.configure(desk.url, key="key_of_somebody_else")

    done = await desk.give("erase", "retell", *IDS, "--at-provider")
    assert done.exit_code == code
    assert "2 could not be deleted at the provider" in done.stderr
    assert await erased_ids(desk) == []


@pytest.mark.parametrize("id_", ["", " "])
async def test_an_empty_id_is_no_call(id_: str, desk: Desk) -> None:
    done = await desk.give("erase", "retell", ONE.id, id_)

    assert done.exit_code == 2
    assert "a CALL_ID is empty" in done.stderr
    assert await erased_ids(desk) == []


async def test_it_is_told_of_an_account_that_is_not_there(desk: Desk) -> None:
    done = await desk.give("erase", "retel", ONE.id)

    assert done.exit_code == 2
    assert "retel" in done.stderr
    assert await erased_ids(desk) == []
