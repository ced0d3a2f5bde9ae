import base64
import json
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.example import example_event
from aftercall.sinks.langfuse import Langfuse
from aftercall.testing import HttpSinkContract
from aftercall.testing.destination import Answer, Destination, Sent
from tests.samples import a_call, a_delivery, an_event

KEYS = {"public_key": "pk-lf-lantern", "secret_key": "sk-lf-sesame-7291"}
BASIC = "Basic " + base64.b64encode(b"pk-lf-lantern:sk-lf-sesame-7291").decode()
TRACES = "/api/public/otel/v1/traces"


def spans_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return spans


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}


def langfuse(url: str = "https://langfuse.example.com", http: httpx.AsyncClient | None = None, **more: Any) -> Langfuse:
    config = msgspec.convert({"host": url, **KEYS, **more}, Langfuse.Config)
    return Langfuse("traces", config, http or httpx.AsyncClient())


def rendered(event: CallEvent, **options: Any) -> list[dict[str, Any]]:
    return [attributes(span) for span in spans_of(langfuse(**options).render(a_delivery(event)))]


class Project:
    """A project of Langfuse: one trace of each id, until it is deleted; nothing without its keys."""

    def __init__(self) -> None:
        self.traces: dict[str, bytes] = {}

    def take(self, sent: Sent) -> Answer:
        if sent.headers.get("authorization") != BASIC:
            return Answer(401, {"message": "Invalid credentials"})
        if sent.method == "DELETE":
            gone = self.traces.pop(sent.path.removeprefix("/api/public/traces/"), None)
            return (
                Answer(200, {"message": "Trace deleted successfully"}) if gone else Answer(404, {"error": "not found"})
            )
        if (sent.path, sent.headers.get("x-langfuse-ingestion-version")) != (TRACES, "4"):
            return Answer(400, {"error": "Unsupported"})
        self.traces[spans_of(sent.json())[0]["traceId"]] = sent.body
        return Answer(200, {})


class TestContract(HttpSinkContract):
    sink = Langfuse

    async def start(self) -> None:
        await super().start()
        self.project = Project()
        self.destination.answers = self.project.take

    async def options(self) -> dict[str, Any]:
        return {"host": self.destination.url, **KEYS, "content": True}

    async def received(self) -> Iterable[bytes]:
        return self.project.traces.values()


# The trace


def test_what_is_of_the_trace_stands_on_every_span() -> None:
    spans = rendered(example_event(call_id="call_7f3"))

    assert len(spans) == 5
    for span in spans:
        assert span["langfuse.trace.name"] == "Test agent"
        assert span["langfuse.session.id"] == "call_7f3"
        assert span["langfuse.trace.tags"] == {"values": [{"stringValue": "test:true"}]}


def test_each_span_is_an_observation_of_its_kind() -> None:
    root, *turns = rendered(example_event())

    kinds = [span["langfuse.observation.type"] for span in (root, *turns)]
    assert kinds == ["agent", "generation", "span", "tool", "generation"]
    assert json.loads(root["langfuse.observation.cost_details"]) == {"total": 0.1432}
    assert not [turn for turn in turns if "langfuse.observation.cost_details" in turn]


def test_nothing_that_was_said_goes_out_unless_it_is_asked_for() -> None:
    event = example_event()
    private = ("piano", "Ines Varga", "Harbour", "friday", "moved", "+1555", "media.example.com")

    quiet = str(rendered(event))
    assert not [word for word in private if word in quiet]
    root, agent, user, tool, _ = rendered(event, content=True)

    assert json.loads(root["langfuse.observation.input"]) == [
        {"role": "assistant", "content": "Harbour Removals, how can I help?"},
        {"role": "user", "content": "Could the piano come on Friday instead?"},
        {"role": "assistant", "content": "Friday at ten is yours."},
    ]
    assert "Ines Varga" in root["langfuse.observation.output"]
    assert agent["langfuse.observation.output"] == "Harbour Removals, how can I help?"
    assert user["langfuse.observation.input"] == "Could the piano come on Friday instead?"
    assert (tool["langfuse.observation.input"], tool["langfuse.observation.output"]) == ('{"day":"friday"}', "moved")


def test_it_is_otlp() -> None:
    request = langfuse(content=True).render(a_delivery(example_event()))
    for span in spans_of(request):
        for name in {"traceId", "spanId", "parentSpanId"} & span.keys():
            span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()

    read = json_format.ParseDict(request, ExportTraceServiceRequest())

    assert len(read.resource_spans[0].scope_spans[0].spans) == 5


def test_a_call_of_which_little_is_known_has_a_name_and_no_empty_attributes() -> None:
    bare = Call(id="c" * 300, provider="retell", account="acme", status="created")

    (root,) = rendered(an_event(call=bare), content=True)

    assert root["langfuse.trace.name"] == "call"
    assert root["langfuse.session.id"] == "c" * 199  # Langfuse drops what is longer
    assert not root.keys() & {"langfuse.trace.tags", "langfuse.observation.input", "langfuse.observation.output"}


# The delivery


async def test_the_keys_and_the_version_go_with_it(destination: Destination, http: httpx.AsyncClient) -> None:
    project = Project()
    destination.answers = project.take

    await langfuse(f"{destination.url}/", http).deliver(a_delivery())

    assert [sent.path for sent in destination.sent] == [TRACES]
    assert len(project.traces) == 1


async def test_wrong_keys_are_refused(destination: Destination, http: httpx.AsyncClient) -> None:
    destination.answers = Project().take

    with pytest.raises(SinkError, match=r"^HTTP 401$") as caught:
        await langfuse(destination.url, http, secret_key="sk-lf-other").deliver(a_delivery())

    assert caught.value.permanent


async def test_a_span_that_langfuse_drops_is_a_refusal(destination: Destination, http: httpx.AsyncClient) -> None:
    async with destination.answering(200, {"partialSuccess": {"rejectedSpans": 1}}):
        with pytest.raises(SinkError, match=r"^1 of the trace's spans were rejected$") as caught:
            await langfuse(destination.url, http).deliver(a_delivery())

    assert caught.value.permanent


async def test_erasing_fails_when_langfuse_does_not_take_the_order(
    destination: Destination, http: httpx.AsyncClient
) -> None:
    async with destination.answering(503):
        with pytest.raises(SinkError, match=r"^HTTP 503$") as caught:
            await langfuse(destination.url, http).erase(a_call())

    assert not caught.value.permanent


@pytest.mark.parametrize("host", ["cloud.langfuse.com", "ftp://langfuse.example.com", "https://a:sesame@example.com"])
def test_a_host_that_is_none_is_refused_without_being_shown(host: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="host: expected") as caught:
        langfuse(host)

    assert "sesame" not in str(caught.value)


def test_the_cloud_is_the_default() -> None:
    assert msgspec.convert(KEYS, Langfuse.Config).host == "https://cloud.langfuse.com"
