"""A call as a trace: a root span for the call and a child for each turn, in the JSON encoding of OTLP 1.10.

https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (2026-11): ids are hex, 64-bit integers strings, enums
integers. The names are those of https://github.com/open-telemetry/semantic-conventions-genai (2026-11, "Development"),
and what they have no word for is under `aftercall.`. Ids are made from the call's, so that a trace that is sent again
is the same trace.
"""

import gzip
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Analysis, Call, Metrics, Turn
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import SinkConfig
from aftercall.sinks.http import post
from aftercall.sinks.text import clip

INTERNAL, ERROR = 1, 2  # SpanKind and StatusCode of opentelemetry-proto
SAID = 16_000  # our own: an attribute's text, in characters
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 2**63 - 1

# Further attributes of the root (no turn) or of a turn's span.
Extra = Callable[[CallEvent, Turn | None], Mapping[str, Any]]


class SpansConfig(SinkConfig, frozen=True):
    """Base of the options of a sink that writes traces."""

    content: Annotated[
        bool, Meta(description="whether what was said, the summary and what tools got and gave go into attributes")
    ] = False
    service_name: Annotated[str, Meta(min_length=1, description="the resource's service.name")] = "voice-agent"


class _Partial(msgspec.Struct):
    rejected: int | None = msgspec.field(default=None, name="rejectedSpans")


class _Exported(msgspec.Struct):
    partial: _Partial | None = msgspec.field(default=None, name="partialSuccess")


def trace_id(call: Call) -> str:
    """The same for every event of the call, whoever sends it."""
    return _digest(call.provider, call.account, call.id)[:32]


def trace(event: CallEvent, service_name: str, extra: Extra) -> dict[str, Any]:
    """The event's call as an ExportTraceServiceRequest. Of what was said it has what `extra` adds."""
    call = event.data.call
    start, end = _times(event)
    root = _span(call, "call", "", start, end, {**_of_call(event), **extra(event, None)})
    if call.status == "failed":
        root["status"] = {"code": ERROR, "message": call.end.reason if call.end else "failed"}
    spans, at = [root], start
    for number, turn in enumerate(call.transcript or [], 1):
        # A turn without a time stands where the one before it ended, and takes none.
        begun = at if turn.start_ms is None else _moment(start, turn.start_ms)
        at = max(begun, begun if turn.end_ms is None else _moment(start, turn.end_ms))
        attributes = {"aftercall.turn": number, **_of_turn(call, turn), **extra(event, turn)}
        span = _span(call, _name(turn), str(number), begun, at, attributes)
        if turn.tool and turn.tool.ok is False:
            span["status"] = {"code": ERROR}
        spans.append(span)
        end = max(end, at)
    root["endTimeUnixNano"] = str(end)
    scope = {"scope": {"name": "aftercall"}, "spans": spans}
    resource = {"attributes": _attributes({"service.name": service_name})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def said(turn: Turn) -> tuple[str, str]:
    """What a turn got and gave: a tool's arguments and its result, what was said to the agent and what it said."""
    if tool := turn.tool:
        arguments = msgspec.json.encode(tool.arguments).decode() if tool.arguments else ""
        return clip(arguments, SAID), clip(tool.result, SAID)
    text = clip(turn.text, SAID)
    return ("", text) if turn.role == "agent" else (text, "")


async def export(http: httpx.AsyncClient, url: str, request: dict[str, Any], headers: Mapping[str, str]) -> str:
    """Send it; the receipt. A 2xx answer may still say that spans were rejected, which is for good.

    https://opentelemetry.io/docs/specs/otlp/#partial-success-1 (2026-11); every server takes gzip, as of the same page,
    and spans shrink to a tenth by it.
    """
    headers = {**headers, "content-type": "application/json", "content-encoding": "gzip"}
    answer = await post(http, url, gzip.compress(msgspec.json.encode(request), 1, mtime=0), headers)
    try:
        exported = msgspec.json.decode(answer.body.strip() or b"{}", type=_Exported, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SinkError("the answer is not that of an OTLP endpoint; check where this sink leads") from None
    if rejected := exported.partial and exported.partial.rejected:
        raise SinkError(f"{rejected} of the trace's spans were rejected", permanent=True)
    return str(answer)


def _span(call: Call, name: str, part: str, start: int, end: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    trace = trace_id(call)
    parent = {"parentSpanId": _digest(trace, "")[:16]} if part else {}
    return {
        "traceId": trace,
        "spanId": _digest(trace, part)[:16],
        **parent,
        "name": name,
        "kind": INTERNAL,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": _attributes(attributes),
    }


def _of_call(event: CallEvent) -> dict[str, Any]:
    call, data = event.data.call, event.data
    analysis, end, cost = call.analysis or Analysis(), call.end, call.cost
    return {
        **_gen_ai(call, "invoke_agent"),
        "gen_ai.agent.id": call.agent.id,
        "gen_ai.agent.name": call.agent.name,
        "gen_ai.agent.version": call.agent.version,
        "error.type": (end.reason if end else "_OTHER") if call.status == "failed" else None,
        "aftercall.account": call.account,
        "aftercall.event.id": event.id,
        "aftercall.event.type": event.type,
        "aftercall.complete": data.complete,
        "aftercall.channel": call.channel,
        "aftercall.direction": call.direction,
        "aftercall.status": call.status,
        "aftercall.end.reason": end and end.reason,
        "aftercall.end.by": end and end.by,
        "aftercall.duration_ms": call.duration_ms,
        "aftercall.sentiment": analysis.sentiment,
        "aftercall.successful": analysis.successful,
        "aftercall.voicemail": analysis.voicemail,
        "aftercall.cost.total": float(cost.total) if cost and cost.total else None,
        "aftercall.cost.currency": cost.currency if cost and cost.total else None,
        **_of_latency(call),
        **_of_metrics(call.metrics),
        **{f"aftercall.tag.{name}": value for name, value in data.tags.items()},
    }


def _of_latency(call: Call) -> dict[str, Any]:
    measured = call.latency or {}
    return {
        f"aftercall.latency.{kind}.{point}_ms": getattr(values, point)
        for kind, values in measured.items()
        for point in ("p50", "p90", "p95", "p99", "max")
    }


def _of_metrics(metrics: Metrics | None) -> dict[str, Any]:
    names = ("turns", "talk_ratio", "interruptions", "longest_silence_ms", "tool_calls", "tool_failures")
    return {f"aftercall.{name}": getattr(metrics, name) for name in names} if metrics else {}


def _of_turn(call: Call, turn: Turn) -> dict[str, Any]:
    measured = {f"aftercall.latency.{name}": value for name, value in (turn.latency or {}).items()}
    if tool := turn.tool:
        named = {"gen_ai.tool.name": tool.name, "gen_ai.tool.call.id": tool.id}
        failed = {"error.type": "_OTHER"} if tool.ok is False else {}
        return {**_gen_ai(call, "execute_tool"), **named, **failed, **measured}
    operation = _gen_ai(call, "chat") if turn.role == "agent" else {"gen_ai.conversation.id": call.id}
    return {**operation, "aftercall.role": turn.role, "aftercall.interrupted": turn.interrupted, **measured}


def _gen_ai(call: Call, operation: str) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": call.provider,
        "gen_ai.conversation.id": call.id,
    }


def _name(turn: Turn) -> str:
    if turn.tool:
        return f"execute_tool {turn.tool.name}" if turn.tool.name else "execute_tool"
    return f"{turn.role} turn"


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known, as KeyValues."""
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value not in (None, "")]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}


def _times(event: CallEvent) -> tuple[int, int]:
    """When the call began and ended; where the provider does not say, by its duration and the event's time."""
    call = event.data.call
    length = max(0, call.duration_ms or 0)
    started, ended = _nanoseconds(call.started_at), _nanoseconds(call.ended_at)
    if started is None:
        last = ended or _nanoseconds(event.time) or _nanoseconds(event.data.received_at) or 0
        started = _moment(last, -length)
    if ended is None:
        ended = _moment(started, length)
    return started, max(started, ended)


def _nanoseconds(time: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return _within((moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1) * 1000)


def _moment(start: int, ms: int) -> int:
    return _within(start + ms * 1_000_000)


def _within(nanoseconds: int) -> int:
    """As near to it as 64 bits can be: a provider may say 9999 for a time that is not known."""
    return min(max(0, nanoseconds), _LATEST)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def conversation(call: Call) -> tuple[str, str]:
    """The whole conversation as messages, in JSON, and what came of it."""
    messages = [
        {"role": "assistant" if turn.role == "agent" else turn.role, "content": clip(turn.text, SAID)}
        for turn in call.transcript or []
        if turn.text
    ]
    summary = call.analysis.summary if call.analysis else None
    return msgspec.json.encode(messages).decode() if messages else "", clip(summary, SAID)
