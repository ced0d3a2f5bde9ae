"""The simulated day's own run, small; and that its judgement sees each promise broken."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.day.judge import table
from tests.day.run import Day, Delivered, live_through


def first(day: Day, type_: str) -> Delivered:
    return next(one for one in day.delivered if one.type == type_ and one.call not in day.erased)


def without_an_end(day: Day) -> None:
    gone = first(day, "call.ended")
    day.delivered = [one for one in day.delivered if one.id != gone.id]


def with_a_second_settling(day: Day) -> None:
    day.delivered.append(msgspec.structs.replace(first(day, "call.settled"), id="evt_another"))


def with_a_second_analysis(day: Day) -> None:
    day.delivered.append(msgspec.structs.replace(first(day, "call.analyzed"), id="evt_another"))


def with_another_content(day: Day) -> None:
    day.delivered.append(msgspec.structs.replace(first(day, "call.ended"), content=1))


def without_what_reconciling_found(day: Day) -> None:
    found = next(one for one in day.delivered if one.via == "reconcile" and one.type == "call.ended")
    day.delivered = [one for one in day.delivered if one.id != found.id]


def with_something_found_later(day: Day) -> None:
    day.reconciled = [*day.reconciled[:2], [{"call": "x", "event": "evt_x", "type": "call.ended", "done": "accepted"}]]


def with_an_erasure_untold(day: Day) -> None:
    gone = next(iter(day.erased))
    day.delivered = [one for one in day.delivered if (one.call, one.type) != (gone, "call.erased")]


def with_an_erased_call_back(day: Day) -> None:
    gone = next(one for one in day.delivered if one.call in day.erased and one.type == "call.ended")
    day.delivered.append(msgspec.structs.replace(gone, at=time.monotonic()))


def with_a_word_left(day: Day) -> None:
    day.words_after = {"bedoka": ["aftercall:event:evt_x"]}


def with_a_search_that_finds_nothing(day: Day) -> None:
    day.words_before = 0


def with_a_webhook_refused(day: Day) -> None:
    day.resent = day.resent.copy()
    day.resent[401] += 1


def with_a_command_that_failed(day: Day) -> None:
    day.exit_codes = {**day.exit_codes, "erase retell": 4}


SPOILED: list[tuple[Callable[[Day], None], str]] = [
    (without_an_end, "each call has one call.ended, one call.settled"),
    (with_a_second_settling, "each call has one call.ended, one call.settled"),
    (with_a_second_analysis, "nothing is told under two ids"),
    (with_another_content, "an event id has one content"),
    (without_what_reconciling_found, "reconciling finds what was lost"),
    (with_something_found_later, "a second and a third reconcile find nothing"),
    (with_an_erasure_untold, "each erasure is told once"),
    (with_an_erased_call_back, "nothing brings them back"),
    (with_a_webhook_refused, "nothing brings them back"),
    (with_a_word_left, "no word of them is in Redis"),
    (with_a_search_that_finds_nothing, "no word of them is in Redis"),
    (with_a_command_that_failed, "every command exits 0"),
]


@pytest.mark.long
async def test_a_day_is_told_whole_what_is_erased_stays_so_and_the_judgement_would_see_otherwise(
    tmp_path: Path,
) -> None:
    """One test, for the day is lived through once."""
    day = await live_through(tmp_path, calls=60, drop=20, erase=9, seed=3, settle_s=1, say=lambda _: None)
    text, kept = table(day)
    assert kept, text
    assert len(day.erased) == 9
    assert len({call.provider for call in day.calls if call.id in day.erased}) == 3
    assert len(day.played["dropped"]) > 20
    for spoil, promise in SPOILED:
        spoiled = msgspec.structs.replace(day, delivered=list(day.delivered))
        spoil(spoiled)
        text, kept = table(spoiled)
        assert not kept, spoil.__name__
        assert f"BROKEN  {promise}" in text, spoil.__name__
