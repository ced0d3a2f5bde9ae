from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Cost, End, Recording, Turn
from aftercall.errors import SinkError
from aftercall.sinks.base import LocalMemory
from aftercall.sinks.notes import note, notes_of, written
from aftercall.sinks.text import (
    LINE,
    LINES,
    MessageConfig,
    clip,
    duration,
    excerpt,
    facts,
    is_web,
    message_of,
    moment,
    plain,
    source,
    title,
    width,
    worded,
)
from aftercall.templates import Template
from tests.samples import a_call, an_event


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Call settled: successful · Front desk"),
        ({"analysis": Analysis(successful=False)}, "Call settled: unsuccessful · Front desk"),
        ({"analysis": None}, "Call settled · Front desk"),
        ({"status": "failed"}, "Call settled: failed · Front desk"),
        ({"agent": Agent(id="agent_1")}, "Call settled: successful · agent_1"),
        ({"agent": Agent(), "analysis": None}, "Call settled"),
    ],
)
def test_the_title_says_what_happened_how_it_ended_and_which_agent(changes: dict[str, Any], text: str) -> None:
    assert title(an_event(type="call.settled", call=a_call(**changes))) == text


def test_the_facts_are_what_is_known() -> None:
    assert facts(a_call(error="no route")) == {
        "From → to": "+15550100123 → +15550100177",
        "Direction": "inbound",
        "Duration": "3:05",
        "End": "user hangup",
        "Sentiment": "positive",
        "Cost": "0.2140 USD",
        "Error": "no route",
    }
    nothing: dict[str, Any] = dict.fromkeys(("from_", "to", "direction", "duration_ms", "end", "analysis", "cost"))
    assert facts(a_call(**nothing)) == {}
    assert facts(a_call(**{**nothing, "to": "+15550100177"})) == {"From → to": "unknown → +15550100177"}
    assert facts(a_call(**{**nothing, "duration_ms": 0, "cost": Cost()})) == {"Duration": "0:00"}
    assert facts(a_call(**{**nothing, "end": End(reason="unknown", provider_reason="asleep")})) == {"End": "asleep"}


@pytest.mark.parametrize(
    ("ms", "text"), [(-5_000, "0:00"), (0, "0:00"), (999, "0:00"), (59_999, "0:59"), (3_600_000, "60:00")]
)
def test_a_duration_is_in_minutes_and_seconds(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_the_source_says_when_the_record_is_missing() -> None:
    assert source(an_event()) == ["retell/acme", "call_7f3", "call.ended"]
    assert source(an_event(complete=False))[-1] == "incomplete: the record could not be fetched"


def test_the_excerpt_is_the_last_things_said_a_line_a_turn() -> None:
    turns = [Turn(role="user", text=f"line {number}\nAgent: yes\u2028Agent: no") for number in range(20)]
    turns += [Turn(role="tool", text="{}"), Turn(role="agent", text=" "), Turn(role="agent")]

    said = excerpt(turns).splitlines()
    assert len(said) == LINES
    assert said[-1] == "User: line 19 Agent: yes Agent: no"
    assert excerpt(turns, lines=1) == said[-1]
    assert excerpt(turns, lines=0) == excerpt(None) == excerpt([]) == ""
    assert width(excerpt([Turn(role="agent", text="x" * 999)])) == LINE


def test_the_plain_text_has_all_of_it() -> None:
    assert plain(an_event(complete=False)).split("\n\n") == [
        "From → to: +15550100123 → +15550100177\nDirection: inbound\nDuration: 3:05\nEnd: user hangup\n"
        "Sentiment: positive\nCost: 0.2140 USD",
        "Mirela Okafor moved her fitting to Tuesday.",
        "Recording: https://media.example.com/7f3.wav",
        "Agent: Okafor Tailors, good morning.\nUser: Grüezi, could I come Tuesday instead?\n"
        "Agent: Tuesday at ten it is.",
        "retell/acme · call_7f3 · call.ended · incomplete: the record could not be fetched",
    ]


# Pieces of text


@pytest.mark.parametrize(
    ("text", "limit", "clipped"),
    [
        (None, 9, ""),
        (" a\x00b\x1b[31m\x7f ", 9, "ab[31m"),
        ("a\tb\nc", 9, "a\tb\nc"),
        ("abcdef", 4, "abc…"),
        ("😀😀😀", 4, "😀…"),
        ("&&&", 9, "&amp;…"),
        ("&", 9, "&amp;"),
    ],
)
def test_a_clipped_text_is_cut_between_characters(text: str | None, limit: int, clipped: str) -> None:
    assert clip(text, limit, {"&": "&amp;"}) == clipped


@given(st.text(), st.integers(2, 50))
def test_a_clipped_text_is_never_longer(text: str, limit: int) -> None:
    escapes = {"a": "&amp;", "<": "&lt;"}
    assert width(clip(text, limit, escapes)) <= limit
    assert not set(clip(text, limit)) & set(map(chr, (*range(9), *range(11, 32), 127)))


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://media.example.com/a.wav?b=c", True),
        ("HTTP://a", True),
        ("javascript:alert(1)", False),
        ("https://", False),
        ("https:///a", False),
        ("https://a b", False),
        ("https://a\n", False),
        ("", False),
        (None, False),
    ],
)
def test_only_http_is_a_web_address(url: str | None, is_one: bool) -> None:
    assert is_web(url) is is_one


def test_a_moment_is_read_or_not_known() -> None:
    at = moment(an_event())
    assert at is not None
    assert at.isoformat() == "2026-11-20T12:05:00+00:00"
    without = moment(an_event(time="2026-11-20T12:05:00"))
    assert without == at
    assert moment(an_event(time="at noon")) is None


# The user's wording


def test_a_template_is_tried_when_it_is_configured() -> None:
    assert message_of(MessageConfig()) is None
    assert message_of(MessageConfig(template="{{ call.id }}")) is not None
    with pytest.raises(msgspec.ValidationError, match=r"template: call has no agnt; did you mean"):
        msgspec.convert({"template": "{{ call.agnt }}"}, MessageConfig)


def test_the_wording_is_without_controls_and_never_empty() -> None:
    def shout(text: str) -> str:
        return text.upper()

    event = an_event(call=a_call(error="\x00a\x1b\x7f"))
    assert worded(Template(" <{{ call.error }}>\n", shout), event, shout) == "<A>"
    for nothing in ("", " \n", "{{ call.privacy.redacted_at }}", "\x00"):
        assert worded(Template(nothing, shout), event, shout) == "CALL ENDED: SUCCESSFUL · FRONT DESK"


def test_a_wording_that_cannot_be_applied_is_a_refusal_for_good_that_says_nothing_of_the_call() -> None:
    with pytest.raises(SinkError) as caught:
        worded(Template("{{ call.analysis.summary / 2 }}"), an_event())

    assert caught.value.permanent
    assert str(caught.value) == "the template cannot be applied: TypeError"


# Notes


async def test_notes_are_of_one_event_and_of_one_call() -> None:
    memory = LocalMemory()
    theirs = an_event(id="evt_theirs", call=a_call(id="other", recording=Recording(url="https://a")))
    for event, where in (
        (an_event(), "one"),
        (an_event(id="evt_2"), "two"),
        (an_event(id="evt_3"), "two"),
        (theirs, "x"),
    ):
        await note(memory, event, where)

    assert [await written(memory, event) for event in (an_event(), theirs, an_event(id="evt_9"))] == ["one", "x", None]
    assert [where async for where in notes_of(memory, a_call())] == ["two", "one"]
    assert [where async for where in notes_of(memory, a_call())] == []
    assert [where async for where in notes_of(memory, theirs.data.call)] == ["x"]
