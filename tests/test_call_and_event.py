"""The event as it leaves: exactly the fields promised, none absent, and nothing lost on the way back."""

import re
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftercall.call import (
    Agent,
    Analysis,
    Call,
    Cost,
    CostItem,
    End,
    Metrics,
    Model,
    Percentiles,
    Privacy,
    Recording,
    ResponseTime,
    Tool,
    Turn,
)
from aftercall.event import CONTENT_TYPE, CallEvent, EventData, decode, encode, event_id

# What the contract promises, written down a second time: a field that is renamed or lost fails here.
ENVELOPE = {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"}
DATA = {"provider_event", "via", "received_at", "sequence", "complete", "tags", "call"}
CALL = {
    "id",
    "provider",
    "account",
    "agent",
    "channel",
    "direction",
    "from",
    "to",
    "status",
    "end",
    "started_at",
    "ended_at",
    "duration_ms",
    "transcript",
    "analysis",
    "cost",
    "latency",
    "metrics",
    "recording",
    "log_url",
    "error",
    "privacy",
    "metadata",
    "variables",
}
AGENT = {"id", "name", "version"}
END = {"reason", "by", "provider_reason"}
TURN = {"role", "text", "start_ms", "end_ms", "interrupted", "tool", "latency"}
TOOL = {"id", "name", "arguments", "result", "ok"}
ANALYSIS = {"summary", "sentiment", "successful", "voicemail", "custom"}
COST = {"currency", "total", "items"}
COST_ITEM = {"name", "amount"}
PERCENTILES = {"p50", "p90", "p95", "p99", "min", "max", "count"}
METRICS = {
    "turns",
    "user_words",
    "agent_words",
    "talk_ratio",
    "interruptions",
    "longest_silence_ms",
    "response_ms",
    "tool_calls",
    "tool_failures",
}
RESPONSE = {"p50", "p95", "max"}
RECORDING = {"url", "expires_at"}
PRIVACY = {"storage", "redacted_at"}

TYPES = {
    "call.started",
    "call.connected",
    "call.turn",
    "call.transfer",
    "call.ended",
    "call.analyzed",
    "call.billed",
    "call.settled",
    "call.erased",
    "call.unknown",
}
REASONS = {
    "user_hangup",
    "agent_hangup",
    "transferred",
    "voicemail",
    "inactivity",
    "max_duration",
    "no_answer",
    "busy",
    "declined",
    "dial_failed",
    "unjoined",
    "cancelled",
    "limit_reached",
    "blocked",
    "agent_error",
    "provider_error",
    "telephony_error",
    "unknown",
}

FULL = Call(
    id="call_quay_17",
    provider="retell",
    account="harbour",
    agent=Agent(id="agent_4", name="Front desk", version="3"),
    channel="phone",
    direction="inbound",
    from_="+15550100123",
    to="+15550100199",
    status="ended",
    end=End(reason="user_hangup", by="user", provider_reason="user_hangup"),
    started_at="2026-11-20T12:00:00.000Z",
    ended_at="2026-11-20T12:05:00.250Z",
    duration_ms=300_250,
    transcript=[
        Turn(role="agent", text="Quay desk.", start_ms=0, end_ms=900, interrupted=False, latency={"tts_ttfb_ms": 120}),
        Turn(role="tool", tool=Tool(id="t1", name="book", arguments={"nights": 2}, result="B-12", ok=True)),
    ],
    analysis=Analysis(
        summary="A berth for two nights.", sentiment="positive", successful=True, voicemail=False, custom={"berth": 12}
    ),
    cost=Cost(total="0.24", items=[CostItem(name="voice", amount="0.2375")]),
    latency={"e2e": Percentiles(p50=800, p90=900, p95=950, p99=990, min=500, max=1000, count=9)},
    metrics=Metrics(
        turns=1,
        user_words=0,
        agent_words=2,
        talk_ratio=1.0,
        interruptions=0,
        longest_silence_ms=0,
        response_ms=ResponseTime(p50=1, p95=2, max=3),
        tool_calls=1,
        tool_failures=0,
    ),
    recording=Recording(url="https://example.com/17.wav", expires_at="2026-11-21T12:00:00.000Z"),
    log_url="https://example.com/17",
    error="error_asr",
    privacy=Privacy(storage="no_pii", redacted_at="2026-11-20T13:00:00.000Z"),
    metadata={"crm": "m-7"},
    variables={"berth": "B-12"},
)
BARE = Call(id="call_quay_18", provider="ultravox", account="harbour", status="created")


def make_event(call: Call = FULL, **fields: Any) -> CallEvent:
    data = EventData(
        provider_event="call_analyzed",
        received_at="2026-11-20T12:05:01.120Z",
        sequence=3,
        tags={"client": "quay"},
        call=call,
    )
    known: dict[str, Any] = {
        "id": "evt_1",
        "source": "/retell/harbour",
        "type": "call.analyzed",
        "subject": call.id,
        "time": "2026-11-20T12:05:00.250Z",
        "data": data,
    }
    return CallEvent(**known | fields)


def as_json(event: CallEvent) -> dict[str, Any]:
    loaded: dict[str, Any] = msgspec.json.decode(encode(event))
    return loaded


# What leaves


def test_every_object_has_exactly_the_fields_promised() -> None:
    event = as_json(make_event())
    call = event["data"]["call"]
    spoken, tool = call["transcript"]
    assert set(event) == ENVELOPE
    assert set(event["data"]) == DATA
    assert set(call) == CALL
    assert set(call["agent"]) == AGENT
    assert set(call["end"]) == END
    assert set(spoken) == set(tool) == TURN
    assert set(tool["tool"]) == TOOL
    assert set(call["analysis"]) == ANALYSIS
    assert set(call["cost"]) == COST
    assert set(call["cost"]["items"][0]) == COST_ITEM
    assert set(call["latency"]["e2e"]) == PERCENTILES
    assert set(call["metrics"]) == METRICS
    assert set(call["metrics"]["response_ms"]) == RESPONSE
    assert set(call["recording"]) == RECORDING
    assert set(call["privacy"]) == PRIVACY


def test_no_object_of_the_model_is_missing_above() -> None:
    promised = {Agent, End, Tool, Turn, Analysis, CostItem, Cost, Percentiles, ResponseTime, Metrics, Recording}
    assert set(Model.__subclasses__()) == promised | {Privacy, Call, EventData, CallEvent}


def test_what_is_not_known_is_null_or_empty_and_never_absent() -> None:
    event = as_json(make_event(BARE, type="call.settled"))
    event["data"]["provider_event"] = None
    assert set(event["data"]["call"]) == CALL
    assert event["data"]["call"] == {
        "id": "call_quay_18",
        "provider": "ultravox",
        "account": "harbour",
        "agent": {"id": None, "name": None, "version": None},
        "channel": "other",
        "direction": None,
        "from": None,
        "to": None,
        "status": "created",
        "end": None,
        "started_at": None,
        "ended_at": None,
        "duration_ms": None,
        "transcript": None,
        "analysis": None,
        "cost": None,
        "latency": None,
        "metrics": None,
        "recording": None,
        "log_url": None,
        "error": None,
        "privacy": {"storage": "full", "redacted_at": None},
        "metadata": {},
        "variables": {},
    }


@pytest.mark.parametrize(
    ("thing", "fields"),
    [
        (Turn(role="user"), TURN),
        (Tool(), TOOL),
        (End(reason="unknown"), END),
        (Analysis(), ANALYSIS),
        (Cost(), COST),
        (Percentiles(), PERCENTILES),
        (Metrics(turns=0, user_words=0, agent_words=0, tool_calls=0, tool_failures=0), METRICS),
        (Recording(url="https://example.com/x"), RECORDING),
        (EventData(received_at="2026-11-20T12:00:00.000Z", sequence=1, call=BARE), DATA),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_with_nothing_but_what_it_needs_has_all_its_fields(thing: Any, fields: set[str]) -> None:
    assert set(msgspec.to_builtins(thing)) == fields


def test_the_caller_stands_under_from() -> None:
    call = as_json(make_event())["data"]["call"]
    assert call["from"] == "+15550100123"
    assert "from_" not in call


def test_a_cost_is_in_dollars_and_an_event_is_of_cloudevents_1_0() -> None:
    event = as_json(make_event())
    assert event["data"]["call"]["cost"]["currency"] == "USD"
    assert (event["specversion"], event["datacontenttype"]) == ("1.0", "application/json")
    assert CONTENT_TYPE == "application/cloudevents+json"


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in strings(item)]
    if isinstance(value, list):
        return [found for item in value for found in strings(item)]
    return [value] if isinstance(value, str) else []


def test_times_have_milliseconds_and_a_z() -> None:
    times = [text for text in strings(as_json(make_event())) if re.match(r"\d{4}-\d\d-\d\dT", text)]
    assert len(times) == 6
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text) for text in times)


def test_text_leaves_as_utf8_and_not_escaped() -> None:
    event = make_event(msgspec.structs.replace(BARE, error="née Ünal 李 😀"))
    assert "née Ünal 李 😀".encode() in encode(event)


# What comes back

SAMPLE = b"""{
  "specversion": "1.0",
  "id": "evt_sample",
  "source": "/cartesia/quay",
  "type": "call.analyzed",
  "subject": "ac_quay",
  "time": "2026-11-20T12:05:00.000Z",
  "datacontenttype": "application/json",
  "data": {
    "provider_event": "post_call_analysis",
    "via": "webhook",
    "received_at": "2026-11-20T12:05:01.120Z",
    "sequence": 3,
    "complete": true,
    "tags": {"client": "quay"},
    "call": {"id": "ac_quay", "provider": "cartesia", "account": "quay", "status": "ended", "from": "+15550100123"}
  }
}"""


def test_the_contract_s_form_is_read() -> None:
    event = decode(SAMPLE)
    assert (event.id, event.type, event.data.sequence, event.data.tags) == (
        "evt_sample",
        "call.analyzed",
        3,
        {"client": "quay"},
    )
    assert (event.data.call.from_, event.data.call.transcript) == ("+15550100123", None)


@pytest.mark.parametrize("event", [make_event(), make_event(BARE)], ids=["full", "bare"])
def test_what_was_written_reads_the_same(event: CallEvent) -> None:
    assert decode(encode(event)) == event
    assert encode(decode(encode(event))) == encode(event)


def test_a_consumer_of_today_ignores_the_fields_of_tomorrow() -> None:
    event = as_json(make_event())
    event["traceparent"] = "00-1"
    event["data"]["region"] = "eu"
    event["data"]["call"]["mood"] = {"deep": [1]}
    event["data"]["call"]["transcript"][0]["emotion"] = "calm"
    assert decode(msgspec.json.encode(event)) == make_event()


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (b'"call.analyzed"', b'"call.vanished"', r"\$\.type"),
        (b'"1.0"', b'"2.0"', r"\$\.specversion"),
        (b'"ended"', b'"over"', r"\$\.data\.call\.status"),
        (b'"webhook"', b'"pigeon"', r"\$\.data\.via"),
        (b'"sequence": 3', b'"sequence": 0', r"\$\.data\.sequence"),
        (b'"subject": "ac_quay",', b"", "subject"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(old: bytes, new: bytes, path: str) -> None:
    assert SAMPLE.count(old) == 1
    with pytest.raises(msgspec.ValidationError, match=path):
        decode(SAMPLE.replace(old, new))


@pytest.mark.parametrize("amount", ["0.24", "-0.05", "12", "0.0000001"])
def test_money_is_a_decimal_string(amount: str) -> None:
    assert msgspec.convert({"total": amount}, Cost).total == amount


@pytest.mark.parametrize("amount", ["1e-7", "$1", "1,50", "", ".5", "NaN", 0.24, 24])
def test_money_is_nothing_else(amount: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"total": amount}, Cost)


# The schema


def test_a_json_schema_can_be_made_and_the_events_are_valid_under_it() -> None:
    schema = msgspec.json.schema(CallEvent)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for event in (as_json(make_event()), as_json(make_event(BARE)), msgspec.json.decode(SAMPLE)):
        assert list(validator.iter_errors(event)) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("id"),
        lambda event: event.update(type="call.vanished"),
        lambda event: event["data"].update(sequence=0),
        lambda event: event["data"]["call"].update(status="over"),
        lambda event: event["data"]["call"]["cost"].update(total="1e3"),
        lambda event: event["data"]["call"].update(duration_ms="5 min"),
    ],
)
def test_an_event_that_breaks_the_contract_is_not_valid_under_the_schema(spoil: Any) -> None:
    event = as_json(make_event())
    spoil(event)
    assert not jsonschema.Draft202012Validator(msgspec.json.schema(CallEvent)).is_valid(event)


def test_the_schema_knows_the_words_of_the_contract() -> None:
    definitions = msgspec.json.schema(CallEvent)["$defs"]
    assert set(definitions["CallEvent"]["properties"]["type"]["enum"]) == TYPES
    assert set(definitions["End"]["properties"]["reason"]["enum"]) == REASONS
    assert set(definitions["Call"]["properties"]) == CALL
    assert set(definitions["EventData"]["properties"]["via"]["enum"]) == {"webhook", "reconcile", "settle", "erase"}


# The id


def test_the_id_of_a_fact_is_the_same_in_every_process_and_version() -> None:
    assert event_id("retell", "harbour", "call_ended:call_quay_17") == "evt_ivmekw5zb5lcklskzs62boga"


@given(st.text(), st.text(), st.text())
def test_an_id_is_short_and_plain_whatever_it_is_made_of(provider: str, account: str, key: str) -> None:
    made = event_id(provider, account, key)
    assert re.fullmatch(r"evt_[a-z2-7]{24}", made)
    assert event_id(provider, account, key) == made


def test_a_key_with_half_a_character_still_has_an_id() -> None:
    assert event_id("retell", "harbour", "\ud83d") != event_id("retell", "harbour", "\ufffd")


def test_other_facts_have_other_ids() -> None:
    parts = [
        ("retell", "harbour", "k"),
        ("retell", "harbour", "K"),
        ("retell", "quay", "k"),
        ("cartesia", "harbour", "k"),
        ("retellharbour", "", "k"),
        ("retell", "harbourk", ""),
        ("", "retellharbour", "k"),
    ]
    assert len({event_id(*part) for part in parts}) == len(parts)


PARTS = st.tuples(*[st.text(st.sampled_from("a:/é"), max_size=3)] * 3)


@given(st.sets(PARTS, min_size=2, max_size=20))
def test_the_parts_of_an_id_do_not_run_into_each_other(facts: set[tuple[str, str, str]]) -> None:
    assert len({event_id(*fact) for fact in facts}) == len(facts)


# Immutable, and by keyword


def test_an_event_and_a_call_cannot_be_changed() -> None:
    event = make_event()
    for thing, field in ((event, "id"), (event.data, "complete"), (event.data.call, "status"), (FULL.agent, "name")):
        with pytest.raises(AttributeError):
            setattr(thing, field, "other")


def test_a_misspelt_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="form_"):
        Call(id="a", provider="b", account="c", status="ended", form_="+15550100123")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        msgspec.structs.replace(BARE, statsu="ended")


def test_fields_are_given_by_name_and_the_needed_ones_must_be() -> None:
    with pytest.raises(TypeError):
        Recording("https://example.com/x")  # type: ignore[misc]
    with pytest.raises(TypeError, match="status"):
        Call(id="a", provider="b", account="c")  # type: ignore[call-arg]


def test_two_calls_do_not_share_their_empty_metadata() -> None:
    first = Call(id="a", provider="b", account="c", status="ended")
    first.metadata["leaked"] = True
    assert Call(id="a", provider="b", account="c", status="ended").metadata == {}
