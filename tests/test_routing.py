"""Which sinks an event goes to, and what of it never leaves through them."""

import re
from typing import Any

import msgspec
import pytest

from aftercall.call import Agent, Analysis, Call, Cost, CostItem, End, Metrics, Recording, Tool, Turn
from aftercall.event import CallEvent, EventData, decode, encode
from aftercall.routing import REDACTIONS, Client, Condition, check_redaction, everything, redact
from aftercall.sink_settings import SinkSettings
from aftercall.sinks.base import Delivery, Sink, SinkConfig
from tests.samples import an_event

FROM, TO = "+15550100123", "+15550100199"


def make_event(type_: str = "call.ended", *, account: str = "harbour", **fields: Any) -> CallEvent:
    known: dict[str, Any] = {
        "id": "call_quay_17",
        "provider": "retell",
        "account": account,
        "agent": Agent(id="agent_4", name="Front desk"),
        "channel": "phone",
        "direction": "inbound",
        "from_": FROM,
        "to": TO,
        "status": "ended",
        "end": End(reason="user_hangup", by="user", provider_reason="user_hangup"),
        "started_at": "2026-11-20T12:00:00.000Z",
        "ended_at": "2026-11-20T12:05:00.000Z",
        "duration_ms": 300_000,
        "transcript": [
            Turn(role="agent", text="Quay desk, good morning."),
            Turn(role="user", text=f"Mirela Okafor, my number is {FROM}, and not {TO}."),
            Turn(
                role="tool",
                tool=Tool(name="look_up", arguments={"phone": FROM, "also": [{"to": TO}]}, result=f"found {FROM}"),
            ),
        ],
        "analysis": Analysis(summary=f"Okafor asks for a call back on {FROM}.", custom={"call_back": FROM}),
        "cost": Cost(total="0.24", items=[CostItem(name="voice", amount="0.24")]),
        "metrics": Metrics(turns=2, user_words=9, agent_words=4, tool_calls=1, tool_failures=0),
        "recording": Recording(url=f"https://example.com/rec/{FROM}.wav"),
        "log_url": "https://example.com/log/17",
        "metadata": {"crm": {"phones": [FROM, "+15550100150"]}, "vip": True, "visits": 3},
        "variables": {"caller": TO},
    }
    return CallEvent(
        id="evt_quay",
        source=f"/retell/{account}",
        type=type_,  # type: ignore[arg-type]
        subject="call_quay_17",
        time="2026-11-20T12:05:00.000Z",
        data=EventData(
            received_at="2026-11-20T12:05:01.000Z", sequence=2, tags={"client": "quay"}, call=Call(**known | fields)
        ),
    )


# What a sink wants


class Keeper(Sink):
    raw = True

    async def deliver(self, delivery: Delivery) -> None: ...


class Eraser(Keeper):
    async def erase(self, call: Call) -> None: ...


class Heir(Eraser):
    pass


def a_sink(sink: type[Sink] = Keeper, **options: Any) -> SinkSettings:
    known = {"name": "quay", "sink_type": "x:X", "sink": sink, "config": SinkConfig(), "events": ("*",)}
    return SinkSettings(**{**known, **options})


@pytest.mark.parametrize("events", [["call.ended"], ["call.settled", "call.ended"], ["*"], ["call.settled", "*"]])
def test_an_event_goes_to_who_asks_for_its_type_or_for_everything(events: list[str]) -> None:
    assert a_sink(events=events).wants(make_event("call.ended"))


@pytest.mark.parametrize("events", [[], ["call.settled"], ["call"], ["call.*"], ["CALL.ENDED"]])
def test_an_event_does_not_go_to_who_asks_for_others(events: list[str]) -> None:
    assert not a_sink(events=events).wants(make_event("call.ended"))


def test_an_unknown_event_goes_only_to_who_asks_for_everything() -> None:
    event = make_event("call.unknown")
    assert a_sink().wants(event)
    assert not a_sink(events=["call.unknown", "call.ended"]).wants(event)


@pytest.mark.parametrize(
    ("accounts", "wanted"),
    [(None, True), (["harbour"], True), (["quay", "harbour"], True), (["quay"], False), ([], False)],
)
def test_a_sink_of_some_accounts_gets_only_their_events(accounts: list[str] | None, wanted: bool) -> None:
    assert a_sink(accounts=accounts).wants(make_event(account="harbour")) is wanted


@pytest.mark.parametrize(
    ("agents", "wanted"),
    [(["agent_4"], True), (["Front desk"], True), (["agent_5", "agent_4"], True), (["agent_5"], False), ([], False)],
)
def test_a_sink_of_some_agents_gets_only_their_calls_by_id_or_name(agents: list[str], wanted: bool) -> None:
    assert a_sink(agents=agents).wants(make_event()) is wanted


@pytest.mark.parametrize(("numbers", "wanted"), [([FROM], True), ([TO], True), (["+15550100777"], False), ([], False)])
def test_a_sink_of_some_numbers_gets_calls_from_and_to_them(numbers: list[str], wanted: bool) -> None:
    assert a_sink(numbers=numbers).wants(make_event()) is wanted


def test_a_call_without_agent_or_number_is_of_no_one_in_particular() -> None:
    event = make_event(agent=Agent(), from_=None, to=None)
    assert not a_sink(agents=["agent_4"]).wants(event)
    assert not a_sink(numbers=[FROM]).wants(event)
    assert a_sink().wants(event)


def test_a_sink_of_some_clients_gets_the_calls_of_any_of_them() -> None:
    mill = Client(name="mill", agents=("agent_9",))
    quay = Client(name="quay", accounts=("harbour",), where=Condition("call.metadata.vip == true"))
    assert a_sink(clients=(mill, quay)).wants(make_event())
    assert not a_sink(clients=(mill,)).wants(make_event())
    assert not a_sink(clients=(quay,)).wants(make_event(metadata={"vip": False}))
    assert not a_sink(clients=(quay,)).wants(make_event(account="mill"))
    assert not a_sink(clients=(mill, quay), events=("call.billed",)).wants(make_event())
    assert not a_sink(clients=()).wants(make_event())


def test_all_that_a_sink_asks_for_must_hold() -> None:
    everything = {
        "accounts": ("harbour",),
        "agents": ("agent_4",),
        "numbers": (TO,),
        "where": Condition("call.id != ''"),
    }
    assert a_sink(**everything).wants(make_event())
    for wrong in (
        {"accounts": ("x",)},
        {"agents": ("x",)},
        {"numbers": ("x",)},
        {"where": Condition("call.id == ''")},
        {"clients": (Client(name="x", numbers=("x",)),)},
    ):
        assert not a_sink(**everything | wrong).wants(make_event())


def test_raw_events_are_those_that_a_provider_has_told() -> None:
    def told(**data: Any) -> CallEvent:
        event = make_event(data.pop("type_", "call.ended"))
        return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, **data))

    sink = a_sink(format="raw")
    assert sink.wants(told(via="webhook"))
    assert sink.wants(told(via="reconcile"))
    assert not sink.wants(told(via="settle", type_="call.settled"))
    erased = told(via="erase", type_="call.erased")
    assert not sink.wants(erased, told=["quay"])
    assert a_sink(Eraser, format="raw").wants(erased), "what was erased must go from there too"


# redact


def test_nothing_to_redact_leaves_the_event_as_it_is() -> None:
    event = make_event()
    assert redact(event, []) == event


def changed(words: list[str]) -> set[str]:
    """The fields of the call that redaction touches; nothing outside the call is touched."""
    event = make_event()
    before, after = msgspec.to_builtins(event), msgspec.to_builtins(redact(event, words))
    call_before, call_after = before["data"].pop("call"), after["data"].pop("call")
    assert before == after
    assert call_before.keys() == call_after.keys()
    return {key for key in call_before if call_before[key] != call_after[key]}


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("transcript", {"transcript"}),
        ("summary", {"analysis"}),
        ("recording", {"recording", "log_url"}),
        ("metadata", {"metadata", "variables"}),
        ("numbers", {"from", "to", "transcript", "analysis", "recording", "metadata", "variables"}),
    ],
)
def test_each_word_touches_its_own_fields_and_no_other(word: str, fields: set[str]) -> None:
    assert changed([word]) == fields


def test_every_word_there_is_has_its_test_above() -> None:
    assert set(REDACTIONS) == {"transcript", "summary", "recording", "metadata", "numbers"}


def test_without_the_transcript_its_counts_stay() -> None:
    call = redact(make_event(), ["transcript"]).data.call
    assert call.transcript is None
    assert call.metrics is not None
    assert call.metrics.turns == 2


def test_without_the_summary_the_rest_of_the_analysis_stays() -> None:
    analysis = redact(make_event(), ["summary"]).data.call.analysis
    assert analysis is not None
    assert (analysis.summary, analysis.custom) == (None, {"call_back": FROM})


def test_an_event_without_an_analysis_stays_without_one() -> None:
    assert redact(make_event(analysis=None), ["summary"]).data.call.analysis is None


def test_the_numbers_are_gone_wherever_in_the_call_they_stood() -> None:
    event = redact(make_event(), ["numbers"])
    body = encode(event).decode()
    assert FROM not in body
    assert TO not in body
    call = event.data.call
    assert (call.from_, call.to, call.id) == (None, None, "call_quay_17")
    assert call.transcript is not None
    assert call.transcript[1].text == "Mirela Okafor, my number is [redacted], and not [redacted]."
    assert call.transcript[2].tool is not None
    assert call.transcript[2].tool.arguments == {"phone": "[redacted]", "also": [{"to": "[redacted]"}]}
    assert call.metadata == {"crm": {"phones": ["[redacted]", "+15550100150"]}, "vip": True, "visits": 3}


@pytest.mark.parametrize(
    "written",
    [
        "15550100123",
        "5550100123",
        "001 555 010 0123",
        "+1 (555) 010-0123",
        "(555) 010-0123",
        "555.010.0123",
        "1-555-010-0123",
        "tel:+1-555-010-0123",
        "https://example.com/?caller=%2B15550100123",
        15550100123,
        5550100123.0,
    ],
)
def test_the_numbers_are_gone_however_they_are_written(written: Any) -> None:
    said = [Turn(role="tool", text=f"I call from {written}.", tool=Tool(name="x", arguments={"phone": written}))]
    event = redact(make_event(transcript=said, metadata={"phone": [written]}, variables={"n": written}), ["numbers"])
    body = encode(event).decode()
    assert "0123" not in body
    assert body.count("[redacted]") >= 4


def test_other_numbers_counts_and_dates_stay_beside_redacted_ones() -> None:
    others = {"order": 20261120, "price": 12.5, "big": 1e300, "vip": True, "phone": "+15550100150", "visits": 3}
    call = redact(make_event(from_="+4720261120", metadata=others), ["numbers"]).data.call
    assert call.metadata == {**others, "order": "[redacted]"}
    assert (call.started_at, call.duration_ms) == ("2026-11-20T12:00:00.000Z", 300_000)


def test_the_number_in_a_sip_address_is_gone_where_it_stands_alone_too() -> None:
    event = make_event(from_=f"sip:{FROM}@pbx.example.com", to="sip:desk2026112012@pbx.example.com")
    call = redact(event, ["numbers"]).data.call
    assert FROM not in msgspec.json.encode(call).decode()
    assert call.started_at == "2026-11-20T12:00:00.000Z"


def test_the_numbers_are_gone_from_keys_too() -> None:
    event = redact(make_event(metadata={FROM: "Mirela"}, variables={"by_number": {TO: 1}}), ["numbers"])
    assert FROM not in encode(event).decode()
    assert TO not in encode(event).decode()


def test_a_number_that_begins_like_the_other_leaves_no_digits_behind() -> None:
    said = [Turn(role="user", text="call +155501001234 please")]
    event = make_event(from_="+15550100", to="+155501001234", transcript=said)
    transcript = redact(event, ["numbers"]).data.call.transcript
    assert transcript is not None
    assert transcript[0].text == "call [redacted] please"


def test_the_call_s_id_stays_even_if_it_holds_a_number() -> None:
    event = redact(make_event(id=f"sip-{FROM}"), ["numbers"])
    assert event.data.call.id == f"sip-{FROM}"


def test_a_call_without_numbers_is_redacted_without_harm() -> None:
    event = redact(make_event(from_=None, to=None), ["numbers"])
    assert event.data.call.metadata == make_event().data.call.metadata


@pytest.mark.parametrize("word", ["unknown", "agent", "user", "phone", "ended", "retell", "harbour", "system"])
def test_a_caller_named_like_one_of_our_own_words_is_redacted_without_harm(word: str) -> None:
    event = make_event(from_=word, end=End(reason="unknown", by="system", provider_reason="lost"))
    call = redact(event, ["numbers"]).data.call
    assert (call.from_, call.status, call.channel, call.provider, call.account) == (
        None,
        "ended",
        "phone",
        "retell",
        "harbour",
    )
    assert call.end is not None
    assert call.end.reason == "unknown"
    assert [turn.role for turn in call.transcript or []] == ["agent", "user", "tool"]


def test_a_short_extension_leaves_times_and_prices_alone() -> None:
    event = make_event(from_="2026", to="1024", cost=Cost(total="0.1024", items=[CostItem(name="x", amount="1.1024")]))
    call = redact(event, ["numbers"]).data.call
    assert (call.from_, call.to) == (None, None)
    assert (call.started_at, call.ended_at) == ("2026-11-20T12:00:00.000Z", "2026-11-20T12:05:00.000Z")
    assert call.cost == Cost(total="0.1024", items=[CostItem(name="x", amount="1.1024")])


@pytest.mark.parametrize("word", REDACTIONS)
def test_what_is_redacted_is_still_an_event_with_every_field(word: str) -> None:
    event = redact(make_event(), [word])
    assert decode(encode(event)) == event
    assert redact(event, [word]) == event  # and once more changes nothing


def test_all_words_together_leave_who_when_and_how_it_ended() -> None:
    call = redact(make_event(), REDACTIONS).data.call
    assert (call.id, call.agent.name, call.duration_ms) == ("call_quay_17", "Front desk", 300_000)
    assert call.end is not None
    assert (call.transcript, call.recording, call.log_url, call.metadata, call.variables) == (None, None, None, {}, {})
    assert (call.from_, call.to) == (None, None)


def test_a_word_that_is_none_is_an_error_and_not_silently_nothing() -> None:
    with pytest.raises(KeyError):
        redact(make_event(), ["everything"])


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ('call.analysis.sentiment == "positive"', True),
        ('call.analysis.sentiment == "negative"', False),
        ('call.duration_ms > 60000 && event.type == "call.ended"', True),
        ('call.from.startsWith("+1555")', True),
        ('tags.client == "harbour"', True),
        ("size(call.transcript) > 3", True),
        ('call.transcript.exists(turn, turn.role == "tool")', True),
        ('call.metadata.vip == "yes"', False),  # not there
        ("call.latency.e2e.p95 > 2000", False),  # null
    ],
)
def test_a_where_decides_over_the_call_its_tags_and_the_event(where: str, holds: bool) -> None:
    event = an_event(tags={"client": "harbour"})
    assert a_sink(where=Condition(where)).wants(event) is holds


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ('call.duration_ms > "60000"', "not defined for the given operand types"),
        ("call.cost.total > 1.0", "not defined for the given operand types"),
        ("call.duration_ms", "it gives 96000, and must give true or false"),
        ('call.anlysis.sentiment == "negative"', 'call has no anlysis; did you mean "analysis"?'),
        ('event.data.call.end.raeson == "busy"', 'event.data.call.end has no raeson; did you mean "reason"?'),
        ("has(call.sumary)", "call has no sumary"),
        ('call.transcript.exists(turn, turn.txt == "x")', "there is no 'txt' to ask about"),
        ("shout(call.id) == 'X'", "shout"),
    ],
)
def test_a_where_that_could_never_hold_is_refused_before_any_event(where: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Condition(where)


def test_a_mistake_in_an_expression_of_many_lines_is_told_with_its_place() -> None:
    with pytest.raises(
        ValueError, match=r"^not a CEL expression: line 2, column 16: Syntax error: mismatched input 'or'"
    ):
        Condition('call.id == "x" ||\ncall.id == "y" or call.id == "z"')


@pytest.mark.parametrize(
    "where",
    [
        "call.metadata.visits > 3",
        'call.variables.plan.name == "gold"',
        'tags.client in ["mill", "quay"]',
        "call.analysis.custom.score >= 4.5",
        "call.latency.e2e.p95 > 2000",
        'call.transcript.exists(turn, turn.text.contains("refund"))',
        'call.transcript.exists(turn, turn.role == "tool" && turn.tool.name == "pay" && !turn.tool.ok)',
        'call.transcript.exists(turn, turn.tool.arguments.amount > 100)',
        'call.metrics.response_ms.p95 > 2000 || call.metrics.longest_silence_ms > 9000',
        'call.from.startsWith("+44") && "call.nothing" in call.metadata',
        'double(call.cost.total) > 0.5',
        'call.recording.url != "" && call.privacy.storage == "full"',
        'event.type == "call.ended" && event.data.complete',
    ],
)  # fmt: skip
def test_a_where_over_what_only_some_calls_have_is_none_the_worse(where: str) -> None:
    Condition(where)


@pytest.mark.parametrize(
    "where",
    [
        'call.transcript[40].text == "x"',
        "call.metadata.visits / (call.duration_ms - 300000) > 1",
        "call.metadata.visits % (call.duration_ms - 300000) == 1",
        "call.duration_ms * 9223372036854775807 > 0",
        "int(call.metadata.large) > 1",
        'timestamp("9999-12-31T23:59:59Z") + duration(string(call.duration_ms) + "h") > timestamp(call.started_at)',
    ],
)
def test_a_where_that_cannot_be_worked_out_for_a_call_does_not_hold_and_stops_nothing(where: str) -> None:
    event = make_event(metadata={"visits": 3, "large": 2**63})
    assert not a_sink(where=Condition(where)).wants(event)
    assert not Client(name="quay", where=Condition(where)).has(event)


@pytest.mark.parametrize(
    ("where", "transcript"),
    [('call.transcript[1].text == "x"', [Turn(role="user", text="-"), Turn(role="user", text="x")])],
)
def test_a_where_may_ask_for_more_turns_than_the_event_it_is_tried_on_has(where: str, transcript: list[Turn]) -> None:
    assert Condition(where).holds(make_event(transcript=transcript))


def test_expressions_are_tried_on_an_event_that_lacks_nothing() -> None:
    def empty(value: Any, path: str = "event") -> list[str]:
        if isinstance(value, dict):
            return [found for key, item in value.items() for found in empty(item, f"{path}.{key}")]
        if isinstance(value, list):
            return [found for item in value for found in empty(item, path)] if value else [path]
        return [path] if value is None else []

    assert empty(everything()) == []


# Redaction by path


def test_what_a_path_leads_to_is_gone_and_nothing_else() -> None:
    event = make_event()
    left = redact(event, ["call.metadata.crm.phones", "call.transcript.tool.arguments.*", "call.analysis.summary"])
    assert left.data.call.metadata == {"crm": {}, "vip": True, "visits": 3}
    assert left.data.call.analysis == msgspec.structs.replace(event.data.call.analysis, summary=None)
    (tool,) = [turn.tool for turn in left.data.call.transcript or [] if turn.tool]
    (before,) = [turn.tool for turn in event.data.call.transcript or [] if turn.tool]
    assert tool == msgspec.structs.replace(before, arguments={})
    assert redact(event, ["call.cost.items"]).data.call.cost == Cost(total="0.24")
    assert redact(event, ["call.agent"]).data.call.agent == Agent()
    assert redact(event, ["tags.client"]).data.tags == {}


@pytest.mark.parametrize("path", ["call.metadata.nothing.here", "call.metadata.vip.deeper", "call.variables.*.x"])
def test_a_path_that_leads_nowhere_in_this_call_changes_nothing(path: str) -> None:
    assert redact(make_event(), [path]) == make_event()


def test_a_path_through_what_is_not_known_changes_nothing() -> None:
    event = make_event(analysis=None, transcript=None, cost=None)
    assert redact(event, ["call.analysis.summary", "call.transcript.text"]) == event


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("call.metadata.phones.*", {"phones": [], "rows": [[{"card": 1, "kept": 2}], {"card": 3}]}),
        ("call.metadata.rows.card", {"phones": ["a", "b"], "rows": [[{"kept": 2}], {}]}),
        ("call.metadata.rows.*", {"phones": ["a", "b"], "rows": [[{}], {}]}),
        ("call.metadata.*.card", {"phones": ["a", "b"], "rows": [[{"kept": 2}], {}]}),
    ],
)
def test_a_path_leads_into_lists_and_lists_of_lists(path: str, left: Any) -> None:
    event = make_event(metadata={"phones": ["a", "b"], "rows": [[{"card": 1, "kept": 2}], {"card": 3}]})
    assert redact(event, [path]).data.call.metadata == left


@pytest.mark.parametrize("path", ["call.metadata.", "call.metadata..card", "call.", ".call", "tags."])
def test_a_path_with_a_part_left_empty_would_redact_nothing_and_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"not a path; write it as in call\.metadata\.card"):
        check_redaction(path)


@pytest.mark.parametrize(
    "path", ["call.id", "call.status", "call.transcript.role", "call.cost.items.amount", "call.end.reason"]
)
def test_what_every_event_has_cannot_be_redacted(path: str) -> None:
    with pytest.raises(ValueError, match="is in every event"):
        check_redaction(path)


# Erasing sinks


HOLDS, FAILS = Condition('call.status == "ended"'), Condition('call.metadata.vip == "yes"')
ERASED_TOO, OTHERS = ("call.ended", "call.erased"), ("call.ended", "call.settled")


@pytest.mark.parametrize(("sink", "erases"), [(Keeper, False), (Eraser, True), (Heir, True)])
def test_a_sink_erases_if_it_or_what_it_extends_says_how(sink: type[Sink], erases: bool) -> None:
    assert a_sink(sink).erases is erases


@pytest.mark.parametrize("events", [("*",), ERASED_TOO, OTHERS, ()])
@pytest.mark.parametrize("where", [None, HOLDS, FAILS])
@pytest.mark.parametrize("told", [set(), {"quay"}])
@pytest.mark.parametrize(
    ("accounts", "wanted"), [(None, True), (("harbour",), True), (("orchard",), False), ((), False)]
)
def test_a_sink_that_erases_hears_of_every_erased_call_of_its_accounts(
    events: tuple[str, ...], where: Condition | None, told: set[str], accounts: tuple[str, ...] | None, wanted: bool
) -> None:
    sink = a_sink(Eraser, events=events, where=where, accounts=accounts)
    assert sink.wants(make_event("call.erased"), told=told) is wanted


@pytest.mark.parametrize(
    ("events", "where", "told", "wanted"),
    [
        (("*",), None, False, True),
        (("*",), None, True, True),
        (("*",), HOLDS, False, True),
        (("*",), FAILS, False, False),
        (("*",), FAILS, True, True),  # what it asks about may have been erased: it heard of the call, and that counts
        (ERASED_TOO, None, False, True),
        (ERASED_TOO, FAILS, False, False),
        (ERASED_TOO, FAILS, True, True),
        (OTHERS, None, False, False),
        (OTHERS, None, True, False),
        (OTHERS, HOLDS, True, False),
        ((), None, True, False),
    ],
)
def test_another_sink_hears_of_an_erasure_if_it_asks_for_that_and_heard_of_the_call_or_would_have(
    events: tuple[str, ...], where: Condition | None, told: bool, wanted: bool
) -> None:
    names = {"orchard", "quay"} if told else {"orchard"}
    event = make_event("call.erased")
    assert a_sink(events=events, where=where).wants(event, told=names) is wanted
    assert a_sink(events=events, where=where, accounts=("harbour",)).wants(event, told=names) is wanted
    assert not a_sink(events=events, where=where, accounts=("orchard",)).wants(event, told=names)


@pytest.mark.parametrize("sink", [Keeper, Eraser])
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, True),
        ({"events": ERASED_TOO}, True),
        ({"events": ("call.settled", "call.erased")}, False),
        ({"where": HOLDS}, True),
        ({"where": FAILS}, False),
        ({"accounts": ("harbour",)}, True),
        ({"accounts": ("orchard",)}, False),
    ],
)
def test_other_events_go_by_type_account_and_where_whether_the_sink_erases_or_was_told(
    sink: type[Sink], options: dict[str, Any], wanted: bool
) -> None:
    for told in (set[str](), {"quay"}):
        assert a_sink(sink, **options).wants(make_event("call.ended"), told=told) is wanted
