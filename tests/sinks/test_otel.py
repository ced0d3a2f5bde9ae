import base64
import contextlib
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from aftercall.call import Agent, Call, End, Percentiles, Tool, Turn
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.example import example_event
from aftercall.sinks.otel import Otel
from aftercall.testing import HttpSinkContract
from aftercall.testing.destination import Answer, Destination, Sent
from tests.samples import a_call, a_delivery, an_event

SECRET = "sesame-7291"


def parsed(request: dict[str, Any]) -> ExportTraceServiceRequest:
    """As a receiver reads it. Python's protobuf knows ids as base64 alone, OTLP has them as hex."""
    request = msgspec.json.decode(msgspec.json.encode(request))
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in {"traceId", "spanId", "parentSpanId"} & span.keys():
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json_format.ParseDict(request, ExportTraceServiceRequest())


def spans_of(request: dict[str, Any]) -> list[Span]:
    return [span for part in parsed(request).resource_spans for scope in part.scope_spans for span in scope.spans]


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def otel(url: str = "http://127.0.0.1:1", http: httpx.AsyncClient | None = None, **options: Any) -> Otel:
    config = msgspec.convert({"endpoint": url, **options}, Otel.Config)
    return Otel("traces", config, http or httpx.AsyncClient())


def rendered(event: CallEvent, **options: Any) -> list[Span]:
    return spans_of(otel(**options).render(a_delivery(event)))


class Collector:
    """What a place that knows spans by their ids has of what it was sent."""

    def __init__(self) -> None:
        self.traces: dict[bytes, bytes] = {}

    def take(self, sent: Sent) -> Answer:
        for span in spans_of(sent.json()):
            if not span.parent_span_id:
                self.traces[span.trace_id + span.span_id] = sent.body
        return Answer(200, {"partialSuccess": {}})


class TestContract(HttpSinkContract):
    sink = Otel

    async def start(self) -> None:
        await super().start()
        self.collector = Collector()
        self.destination.answers = self.collector.take

    async def options(self) -> dict[str, Any]:
        return {"endpoint": self.destination.url, "headers": {"x-api-key": SECRET}, "content": True}

    async def received(self) -> Iterable[bytes]:
        return self.collector.traces.values()


# The trace


def test_a_call_is_a_root_span_with_a_child_for_each_turn() -> None:
    event = example_event(call_id="call_7f3")
    root, *children = rendered(event)

    assert [span.name for span in children] == ["agent turn", "user turn", "execute_tool move_slot", "agent turn"]
    assert root.name == "call"
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in children} == {root.span_id}
    assert {span.trace_id for span in (root, *children)} == {root.trace_id}
    assert (len(root.trace_id), len(root.span_id)) == (16, 8)
    assert len({span.span_id for span in (root, *children)}) == 5
    assert root.end_time_unix_nano - root.start_time_unix_nano == 96_000_000_000
    told = [(span.start_time_unix_nano - root.start_time_unix_nano) // 1_000_000 for span in children]
    assert told == [0, 2_900, 5_300, 6_900]
    assert children[2].end_time_unix_nano - root.start_time_unix_nano == 6_100_000_000


def test_the_attributes_are_those_of_the_conventions() -> None:
    root, agent, user, tool, _ = rendered(example_event(call_id="call_7f3"))

    assert (
        attributes(root).items()
        >= {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "retell",
            "gen_ai.conversation.id": "call_7f3",
            "gen_ai.agent.id": "agent_test",
            "gen_ai.agent.name": "Test agent",
            "aftercall.end.reason": "user_hangup",
            "aftercall.sentiment": "positive",
            "aftercall.successful": True,
            "aftercall.cost.total": 0.1432,
            "aftercall.latency.e2e.p50_ms": 740,
            "aftercall.turns": 3,
            "aftercall.tag.test": "true",
        }.items()
    )
    assert attributes(agent)["gen_ai.operation.name"] == "chat"
    assert attributes(user).items() >= {"gen_ai.conversation.id": "call_7f3", "aftercall.role": "user"}.items()
    assert (
        attributes(tool).items()
        >= {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "move_slot",
            "gen_ai.tool.call.id": "tool_1",
            "aftercall.latency.tool_ms": 800,
        }.items()
    )


def test_nothing_that_was_said_goes_out_unless_it_is_asked_for() -> None:
    event = example_event()
    private = ("piano", "Ines Varga", "Harbour", "friday", "moved", "+1555", "this is a test", "media.example.com")

    quiet = str(rendered(event))
    assert not [word for word in private if word in quiet]
    root, agent, user, tool, _ = rendered(event, content=True)

    assert "Ines Varga" in attributes(root)["aftercall.summary"]
    assert "Harbour Removals" in attributes(agent)["gen_ai.output.messages"]
    assert msgspec.json.decode(attributes(user)["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Could the piano come on Friday instead?"}]}
    ]
    assert attributes(tool)["gen_ai.tool.call.arguments"] == '{"day":"friday"}'
    assert attributes(tool)["gen_ai.tool.call.result"] == "moved"
    assert "+1555" not in str(rendered(event, content=True))


def test_what_failed_is_an_error() -> None:
    tools = [Turn(role="tool", tool=Tool(name="book", ok=ok)) for ok in (True, False, None)]
    failed = a_call(status="failed", end=End(reason="dial_failed"), error="+15550100123 is busy", transcript=tools)
    root, *children = rendered(an_event(call=failed))

    assert (root.status.code, root.status.message) == (Status.STATUS_CODE_ERROR, "dial_failed")
    assert attributes(root)["error.type"] == "dial_failed"
    unset = Status.STATUS_CODE_UNSET
    assert [span.status.code for span in children] == [unset, Status.STATUS_CODE_ERROR, unset]
    assert rendered(an_event())[0].status.code == unset


def test_the_ids_are_the_calls_own() -> None:
    def ids(call: Call) -> list[bytes]:
        return [span.trace_id + span.span_id for span in rendered(an_event(call=call))]

    assert ids(a_call()) == ids(a_call(duration_ms=1, analysis=None))
    others = [a_call(id="call_8a0"), a_call(account="other"), a_call(provider="cartesia"), a_call()]
    assert len({call_ids[0] for call_ids in map(ids, others)}) == 4
    assert ids(a_call())[0][:16].hex() == "9dc05310f02af9616e235e010e378a0a"  # stays so


# Times


def seconds(span: Span) -> tuple[float, float]:
    return span.start_time_unix_nano // 1000 / 1e6, span.end_time_unix_nano // 1000 / 1e6


SETTLED = 1795176300.0  # 2026-11-20T12:05:00Z


@pytest.mark.parametrize(
    ("known", "start", "end"),
    [
        ({"started_at": "2026-11-20T12:00:00.250Z", "ended_at": "2026-11-20T12:04:00.000Z"}, -299.75, -60),
        ({"started_at": "2026-11-20T12:00:00.000Z"}, -300, -114.6),
        ({"ended_at": "2026-11-20T12:04:00.000Z"}, -245.4, -60),
        ({}, -185.4, 0),
        ({"duration_ms": None}, 0, 0),
        ({"started_at": "soon", "ended_at": ""}, -185.4, 0),
        ({"started_at": "2026-11-20T12:00:00.000Z", "ended_at": "2026-11-20T11:00:00.000Z"}, -300, -300),
    ],
)
def test_a_call_is_placed_by_what_is_known_of_its_times(known: dict[str, Any], start: float, end: float) -> None:
    root = rendered(an_event(call=a_call(**{"transcript": None, **known})))[0]

    assert seconds(root) == (SETTLED + start, SETTLED + end)


@pytest.mark.parametrize(
    "known",
    [
        {"started_at": "9999-12-31T23:59:59.999Z"},
        {"started_at": "2026-11-20T12:00:00.000Z", "ended_at": "9999-12-31T23:59:59.999Z"},
        {"started_at": "2026-11-20T12:00:00.000Z", "duration_ms": 999_999_999_999_999},
        {"started_at": None, "ended_at": "9999-12-31T23:59:59.999Z", "duration_ms": -1},
    ],
)
def test_times_that_64_bits_cannot_hold_are_as_late_as_they_can(known: dict[str, Any]) -> None:
    for span in rendered(an_event(call=a_call(**known))):
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano < 2**63


def test_a_turn_without_a_time_stands_where_the_one_before_it_ended() -> None:
    turns = [
        Turn(role="agent", text="one"),
        Turn(role="user", text="two", start_ms=2_000, end_ms=3_000),
        Turn(role="tool", tool=Tool(name="book")),
        Turn(role="agent", text="four", start_ms=9_000, end_ms=4_000),
        Turn(role="user", text="five", start_ms=-(10**15)),
        Turn(role="user", text="six", start_ms=10**15),
    ]
    started = a_call(started_at="2026-11-20T12:05:00.000Z", duration_ms=8_000, transcript=turns)
    root, *children = rendered(an_event(call=started))

    assert [seconds(span) for span in children[:4]] == [
        (SETTLED, SETTLED),
        (SETTLED + 2, SETTLED + 3),
        (SETTLED + 3, SETTLED + 3),
        (SETTLED + 9, SETTLED + 9),
    ]
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano for span in children)


def test_numbers_of_any_size_are_encoded() -> None:
    wide = a_call(latency={"e2e": Percentiles(p50=2**62)}, agent=Agent(name="Ünal 🧵"), duration_ms=2**40)

    root = rendered(an_event(call=wide), service_name="voice")[0]

    assert attributes(root)["aftercall.latency.e2e.p50_ms"] == 2**62
    assert attributes(root)["gen_ai.agent.name"] == "Ünal 🧵"


# The delivery


async def test_it_is_posted_to_the_traces_of_the_endpoint_with_its_headers(
    destination: Destination, http: httpx.AsyncClient
) -> None:
    for endpoint in (destination.url, f"{destination.url}/otlp/", f"{destination.url}/v1/traces"):
        assert await otel(endpoint, http, headers={"X-Api-Key": SECRET}).deliver(a_delivery()) == "HTTP 200"

    assert [sent.path for sent in destination.sent] == ["/v1/traces", "/otlp/v1/traces", "/v1/traces"]
    headers = destination.sent[0].headers
    assert (headers["x-api-key"], headers["content-type"]) == (SECRET, "application/json")
    assert headers["content-encoding"] == "gzip"
    resource = parsed(destination.sent[0].json()).resource_spans[0].resource
    assert [(pair.key, pair.value.string_value) for pair in resource.attributes] == [("service.name", "voice-agent")]


@contextlib.contextmanager
def refused() -> Any:
    with pytest.raises(SinkError) as caught:
        yield caught
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("count", [3, "3"])
async def test_rejected_spans_are_a_refusal_for_good_though_the_answer_is_200(
    destination: Destination, http: httpx.AsyncClient, count: int | str
) -> None:
    told = {"partialSuccess": {"rejectedSpans": count, "errorMessage": "sesame: Mirela"}}
    async with destination.answering(200, told):
        with refused() as caught:
            await otel(destination.url, http).deliver(a_delivery())

    assert caught.value.permanent
    assert str(caught.value) == "3 of the trace's spans were rejected"


@pytest.mark.parametrize(
    "answer", [b"", b"{}", {"partialSuccess": None}, {"partialSuccess": {"rejectedSpans": "0", "errorMessage": "hm"}}]
)
async def test_an_answer_without_rejected_spans_is_a_delivery(
    destination: Destination, http: httpx.AsyncClient, answer: Any
) -> None:
    async with destination.answering(202, answer):
        assert await otel(destination.url, http).deliver(a_delivery()) == "HTTP 202"


@pytest.mark.parametrize("answer", [b"<html>sesame</html>", b"[]", b"\xff", b'{"partialSuccess": 7}'])
async def test_an_answer_of_something_else_is_no_delivery(
    destination: Destination, http: httpx.AsyncClient, answer: bytes
) -> None:
    async with destination.answering(200, answer):
        with refused() as caught:
            await otel(destination.url, http).deliver(a_delivery())

    assert not caught.value.permanent  # the trace may be sent again: it is the same


# The options


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "collector.example.com"},
        {"endpoint": "grpc://collector.example.com"},
        {"endpoint": "https://user:sesame@collector.example.com"},
        {"headers": {"x-api-key": "sesame\r\nx-other: 1"}},
        {"headers": {"x api key": "sesame"}},
        {"headers": {"x-api-key": ""}},
    ],
)
def test_options_that_cannot_work_are_refused_without_being_shown(options: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"endpoint": "https://collector.example.com", **options}, Otel.Config)

    assert "sesame" not in str(caught.value)


def test_the_values_of_headers_are_masked() -> None:
    assert SECRET not in repr(otel(headers={"x-api-key": SECRET}).config)
