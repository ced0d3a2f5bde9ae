"""The call of a settled event, put together from what the call's events told."""

from typing import Any

import pytest

from aftercall.call import Agent, Analysis, Call, Cost, CostItem, End, Percentiles, Privacy, Recording, Tool, Turn
from aftercall.event import CallEvent, EventType
from tests.samples import an_event
from workers.settle import combine, join_turns, update

HUNG_UP = End(reason="user_hangup", by="user", provider_reason="caller_left")
UNKNOWN = End(reason="unknown", provider_reason="odd_word")


def known(**fields: Any) -> Call:
    return Call(**{"id": "call_9", "provider": "retell", "account": "quay", "status": "ongoing", **fields})


def told(type_: EventType, sequence: int, **fields: Any) -> CallEvent:
    return an_event(type=type_, sequence=sequence, call=known(**fields))


def turn(sequence: int, *turns: Turn) -> CallEvent:
    return told("call.turn", sequence, transcript=list(turns))


def said(text: str, start_ms: int | None = None, role: Any = "user") -> Turn:
    return Turn(role=role, text=text, start_ms=start_ms)


# combine


def test_of_no_events_there_is_no_call() -> None:
    assert combine([]) is None


def test_of_one_event_it_is_that_events_call() -> None:
    event = an_event()
    assert combine([event]) == event.data.call


def test_what_knows_more_counts_in_whichever_order_it_came() -> None:
    kinds: tuple[EventType, ...] = (
        "call.unknown",
        "call.started",
        "call.connected",
        "call.transfer",
        "call.ended",
        "call.billed",
        "call.analyzed",
    )
    for sequences in (range(1, 8), range(7, 0, -1)):
        events = [told(kind, number, error=kind) for kind, number in zip(kinds, sequences, strict=True)]
        for count in range(1, len(events) + 1):
            for some in (events[:count], events[:count][::-1]):
                call = combine(some)
                assert call is not None
                assert call.error == kinds[count - 1]


def test_of_two_of_a_kind_the_one_accepted_last_counts() -> None:
    events = [told("call.analyzed", 4, error="again"), told("call.analyzed", 3, error="first")]
    for some in (events, events[::-1]):
        call = combine(some)
        assert call is not None
        assert call.error == "again"


def test_what_only_one_event_told_is_kept() -> None:
    recording, cost = Recording(url="https://media.example.com/9.wav"), Cost(total="0.20")
    call = combine(
        [
            told("call.analyzed", 3, status="ended", end=HUNG_UP, analysis=Analysis(summary="Two pears.")),
            told("call.started", 1, from_="+15550100101", to="+15550100102", metadata={"desk": "4"}),
            told("call.ended", 2, status="ended", end=HUNG_UP, transcript=[said("Hi")], recording=recording, cost=cost),
        ]
    )
    assert call == known(
        status="ended",
        end=HUNG_UP,
        from_="+15550100101",
        to="+15550100102",
        metadata={"desk": "4"},
        transcript=[said("Hi")],
        recording=recording,
        cost=cost,
        analysis=Analysis(summary="Two pears."),
    )


def test_where_personal_data_is_scrubbed_the_end_is_whole_and_what_came_later_adds_to_it() -> None:
    privacy = Privacy(storage="no_pii")
    end = {"status": "ended", "end": HUNG_UP, "privacy": privacy}
    events = [
        told("call.started", 1, from_="[PHONE]", metadata={"name": "[NAME]", "desk": "4"}, privacy=privacy),
        told("call.ended", 2, from_="+15550100101", transcript=[said("It's Ines.")], metadata={"name": "Ines"}, **end),
        told(
            "call.analyzed",
            3,
            from_="[PHONE]",
            transcript=[said("It's [NAME].")],
            metadata={"name": "[NAME]", "late": 1},
            analysis=Analysis(summary="She asked."),
            **end,
        ),
    ]
    for some in (events, events[::-1]):
        call = combine(some)
        assert call is not None
        assert (call.from_, call.transcript) == ("+15550100101", [said("It's Ines.")])
        assert call.metadata == {"name": "Ines", "desk": "4", "late": 1}
        assert call.analysis == Analysis(summary="She asked.")


def test_where_nothing_is_scrubbed_the_transcript_that_was_told_last_counts() -> None:
    call = combine(
        [
            told("call.ended", 2, status="ended", end=HUNG_UP, transcript=[said("Hi")]),
            told("call.analyzed", 3, status="ended", end=HUNG_UP, transcript=[said("Hi"), said("Bye")]),
        ]
    )
    assert call is not None
    assert call.transcript == [said("Hi"), said("Bye")]


# update


@pytest.mark.parametrize(
    ("fields", "newer", "expected"),
    [
        ({"from_": "+15550100101"}, {}, {"from_": "+15550100101"}),
        ({"from_": "+15550100101"}, {"from_": "+15550100102"}, {"from_": "+15550100102"}),
        ({"duration_ms": 5000}, {"duration_ms": 0}, {"duration_ms": 0}),  # which is known, too
        ({"transcript": [said("Hi")]}, {"transcript": []}, {"transcript": [said("Hi")]}),
        (
            {"transcript": [said("a"), said("b")]},
            {"transcript": [said("c")]},
            {"transcript": [said("c")]},  # whole, not turn by turn
        ),
        ({"agent": Agent(id="a", name="Ada")}, {"agent": Agent(id="a")}, {"agent": Agent(id="a", name="Ada")}),
        ({"metadata": {"a": 1, "b": 1}}, {"metadata": {"b": 2, "c": 3}}, {"metadata": {"a": 1, "b": 2, "c": 3}}),
        ({"variables": {"a": 1}}, {}, {"variables": {"a": 1}}),
        (
            {"analysis": Analysis(summary="Short.", successful=True)},
            {"analysis": Analysis(summary="Longer.", successful=False, custom={"guests": 2})},
            {"analysis": Analysis(summary="Longer.", successful=False, custom={"guests": 2})},
        ),
        (
            {"analysis": Analysis(summary="Short.", custom={"guests": 2})},
            {"analysis": Analysis(sentiment="positive", custom={"room": "plum"})},
            {"analysis": Analysis(summary="Short.", sentiment="positive", custom={"guests": 2, "room": "plum"})},
        ),
        (
            {"cost": Cost(total="0.10", items=[CostItem(name="voice", amount="0.10")])},
            {"cost": Cost(total="0.30", items=[CostItem(name="all", amount="0.30")])},
            {"cost": Cost(total="0.30", items=[CostItem(name="all", amount="0.30")])},
        ),
        (
            {"cost": Cost(items=[CostItem(name="voice", amount="0.10")])},
            {"cost": Cost(total="0.10")},
            {"cost": Cost(total="0.10", items=[CostItem(name="voice", amount="0.10")])},
        ),
        (
            {"latency": {"e2e": Percentiles(p50=800), "tts": Percentiles(p50=90)}},
            {"latency": {"e2e": Percentiles(p50=820, count=9)}},
            {"latency": {"e2e": Percentiles(p50=820, count=9), "tts": Percentiles(p50=90)}},
        ),
    ],
)
def test_newer_knowledge_replaces_and_what_it_leaves_open_stays(
    fields: dict[str, Any], newer: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert update(known(**fields), known(**newer)) == known(**expected)


@pytest.mark.parametrize("over", ["ended", "failed"])
@pytest.mark.parametrize("before", ["created", "ongoing"])
def test_a_call_that_was_over_is_not_so_no_more(over: Any, before: Any) -> None:
    call = update(known(status=over, end=HUNG_UP), known(status=before, error="late"))
    assert (call.status, call.end, call.error) == (over, HUNG_UP, "late")


def test_a_call_that_went_on_may_end() -> None:
    call = update(known(status="ongoing"), known(status="failed", end=HUNG_UP))
    assert (call.status, call.end) == ("failed", HUNG_UP)


@pytest.mark.parametrize(
    ("first", "newer", "expected"),
    [
        (HUNG_UP, UNKNOWN, HUNG_UP),
        (HUNG_UP, End(reason="unknown"), HUNG_UP),
        (UNKNOWN, HUNG_UP, HUNG_UP),
        (UNKNOWN, End(reason="unknown"), UNKNOWN),
        (HUNG_UP, End(reason="transferred", by="agent", provider_reason="bridged"), None),
    ],
)
def test_an_end_whose_reason_is_known_stays_until_another_is(first: End, newer: End, expected: End | None) -> None:
    call = update(known(status="ended", end=first), known(status="ended", end=newer))
    assert call.end == (expected or newer)


@pytest.mark.parametrize("stricter", ["no_pii", "basic", "none"])
def test_what_the_provider_must_not_keep_stays_so_whoever_does_not_say_it(stricter: Any) -> None:
    strict, silent = known(privacy=Privacy(storage=stricter)), known()
    assert update(strict, silent).privacy.storage == stricter
    assert update(silent, strict).privacy.storage == stricter
    deleted = known(privacy=Privacy(redacted_at="2026-11-20T12:00:00.000Z"))
    assert update(strict, deleted).privacy == Privacy(storage=stricter, redacted_at="2026-11-20T12:00:00.000Z")


# join_turns


def test_turns_stand_in_the_order_of_their_times_whenever_they_were_told() -> None:
    first, second, third = said("Hello?", 0, "agent"), said("Hi.", 900), said("Bye.", 2000)
    for events in (
        [turn(2, third), turn(3, first), turn(4, second)],
        [turn(9, second), turn(2, third), turn(3, first)],
    ):
        assert join_turns(events) == [first, second, third]


def test_turns_without_times_stand_in_the_order_of_their_acceptance() -> None:
    turns = [said(f"Sentence {number}.") for number in range(200)]
    events = [turn(number + 1, one) for number, one in enumerate(turns)]
    assert join_turns(events[::-1]) == turns  # Redis gives the fields of a large hash in no order


def test_a_turn_told_twice_counts_once_as_it_was_told_longest() -> None:
    half, whole = said("I would", 500), said("I would like pears.", 500)
    for events in ([turn(1, half), turn(2, whole)], [turn(1, whole), turn(2, half)]):
        assert join_turns(events) == [whole]


def test_two_who_speak_at_once_are_two_turns() -> None:
    user, agent = said("Wait", 500), said("So", 500, "agent")
    assert join_turns([turn(1, user), turn(2, agent)]) == [user, agent]


def test_all_turns_so_far_in_each_event_are_each_there_once() -> None:
    turns = [said("a", 0), said("b", 100), said("c", 200)]
    assert join_turns([turn(count, *turns[:count]) for count in (1, 2, 3)]) == turns


def test_a_tool_call_stays_where_it_was_told_and_gets_its_result() -> None:
    asked = Turn(role="tool", tool=Tool(id="t1", name="look_up"))
    answered = Turn(role="tool", tool=Tool(id="t1", name="look_up", result="found"))
    other = Turn(role="tool", tool=Tool(id="t2", name="look_up"))
    before, after = said("One moment.", 500, "agent"), said("Here it is.", 2000, "agent")
    events = [turn(1, said("Hi", 0)), turn(2, before, asked), turn(3, after, other), turn(4, before, answered)]
    assert join_turns(events) == [said("Hi", 0), before, answered, after, other]


def test_of_events_without_turns_there_are_none() -> None:
    assert join_turns([]) == []
    assert join_turns([told("call.turn", 1)]) == []
