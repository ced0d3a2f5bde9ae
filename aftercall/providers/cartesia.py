"""Cartesia's voice agents: https://docs.cartesia.ai/agents/webhooks (2026-11).

Nothing signs the body: the only proof is a fixed secret in a header, so an event counts once the record confirms it.
Timeouts, retries and order of webhooks are not documented; a webhook that got lost is found by reconciling.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import quote

import msgspec

from aftercall.call import (
    Agent,
    Analysis,
    Call,
    Channel,
    Direction,
    End,
    EndedBy,
    EndReason,
    Privacy,
    Role,
    Status,
    Tool,
    Turn,
)
from aftercall.errors import RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers import shapes
from aftercall.providers.base import Provider, Record, Request, Webhook
from aftercall.providers.http import get_json
from aftercall.signing import matches_any, missing_header

API_VERSION = "2026-03-01"  # errors are JSON and `status` has its present words from this version on

# https://docs.cartesia.ai/agents/webhooks (2026-11). The third column is what tells two facts of a kind apart: a call
# starts and ends once, its analysis may be made again, and turns have no id.
Kind = tuple[EventType, Literal["wait", "once", "skip"], Literal["call", "analysis", "body"]]
EVENTS: dict[str, Kind] = {
    "call_started": ("call.started", "wait", "call"),
    "call_turn": ("call.turn", "skip", "body"),
    "call_completed": ("call.ended", "wait", "call"),
    "call_failed": ("call.ended", "wait", "call"),
    "post_call_analysis": ("call.analyzed", "wait", "analysis"),
}
UNKNOWN: Kind = ("call.unknown", "once", "body")

# https://docs.cartesia.ai/api-reference/agents/calls/get-call (2026-11); `active` and `cancelled` are the words of
# versions up to 2025-04-16.
STATUSES: dict[str, Status] = {
    "created": "created",
    "started": "ongoing",
    "active": "ongoing",
    "completed": "ended",
    "cancelled": "ended",
    "failed": "failed",
}
OVER = ("completed", "failed", "cancelled")
# What the event itself tells, where the record is behind: how the call ended, or the least that must be true.
ENDED: dict[str, Status] = {"call_completed": "ended", "call_failed": "failed"}
AT_LEAST: dict[str, Status] = {"call_started": "ongoing", "call_turn": "ongoing", "post_call_analysis": "ended"}
PROGRESS: dict[Status, int] = {"created": 0, "ongoing": 1, "ended": 2, "failed": 2}

# https://docs.cartesia.ai/api-reference/agents/calls/get-call, `end_reason` (2026-11). `error` does not say whether the
# agent's own code or the platform failed; both run at Cartesia, hence provider_error.
ENDS: dict[str, tuple[EndReason, EndedBy | None]] = {
    "agent_hangup": ("agent_hangup", "agent"),
    "client_hangup": ("user_hangup", "user"),
    "client_disconnected": ("user_hangup", "user"),
    "api_cancelled": ("cancelled", "system"),
    "cancelled": ("cancelled", "system"),  # the old `status`, where it stands in for a reason
    "max_duration": ("max_duration", "system"),
    "inactivity": ("inactivity", "system"),
    "dial_busy": ("busy", None),
    "dial_failed": ("dial_failed", None),
    "dial_no_answer": ("no_answer", None),
    "error": ("provider_error", "system"),
}

# `telephony_account_type`, same page (2026-11): cartesia, twilio or sip_trunk.
CHANNELS: dict[str, Channel] = {"sip_trunk": "sip"}
DIRECTIONS: dict[str, Direction] = {"inbound": "inbound", "outbound": "outbound"}

# A transcript's `role` and `end_reason`, same page (2026-11). `system` rows are log_event and log_metric, not speech.
ROLES: dict[str, Role] = {"user": "user", "assistant": "agent", "system": "system"}
INTERRUPTED: dict[str, bool] = {"interrupted": True, "call_ended": False, "tts_completed": False}
# Field, our name, milliseconds per unit: times to first byte come in seconds.
LATENCIES = (
    ("tts_ttfb", "tts_ttfb_ms", 1000),
    ("stt_ttfb", "stt_ttfb_ms", 1000),
    ("vad_buffer_ms", "vad_buffer_ms", 1),
)


class _CallId(msgspec.Struct):
    id: str | None = None


class _Envelope(msgspec.Struct):
    """Only what routing needs. The 2025 envelope has no other id than `request_id`."""

    type: str
    call_id: str | None = None
    call: _CallId | None = None
    request_id: str | None = None
    timestamp: Any = None
    analysis: msgspec.Raw = msgspec.Raw(b"null")


T = TypeVar("T")
_envelopes = msgspec.json.Decoder(_Envelope)


class Cartesia(Provider):
    name: ClassVar[str] = "cartesia"
    base_url: ClassVar[str] = "https://api.cartesia.ai"
    needs: ClassVar[tuple[str, ...]] = ("api_key", "webhook_secrets")
    believes_body: ClassVar[bool] = False

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        """Compare the secret in the header. There is no timestamp, so a replay is caught by its dedupe key alone."""
        sent = request.headers.get("x-webhook-secret")
        if not sent:  # also what keeps an empty configured secret from ever matching
            raise missing_header("X-Webhook-Secret")
        candidate = sent.encode("latin-1", "backslashreplace")  # HTTP servers hand header bytes over as Latin-1
        if not matches_any([candidate], [secret.encode() for secret in secrets]):
            raise SignatureError(
                "mismatch",
                "the X-Webhook-Secret is another one than configured: set this account's webhook_secrets to what the "
                "webhook has at Cartesia, which shows a secret only when the webhook is created",
            )

    def decode(self, body: bytes) -> list[Webhook]:
        try:
            envelope = shapes.decode_routing(_envelopes, body)
            kind = EVENTS.get(envelope.type)
            event_type, record, apart = kind or UNKNOWN
            content = {"call": b"", "analysis": bytes(envelope.analysis), "body": body}[apart]
            digest = f":{_digest(content)}" if content else ""
        except (ValueError, RecursionError) as error:
            raise shapes.undecodable(error) from None
        call_id = envelope.call_id or (envelope.call and envelope.call.id) or envelope.request_id
        if not call_id:
            if kind is None:
                return []
            raise UndecodableWebhook(f"a {envelope.type} webhook needs one of call_id, call.id and request_id")
        return [
            Webhook(
                event=envelope.type,
                type=event_type,
                call_id=call_id,
                dedupe_key=f"{envelope.type}:{call_id}{digest}",
                body=body,
                record=record,
                # Start and end have their times in the call; the envelope's is when it was sent, a moment later.
                happened_at=None if apart == "call" else shapes.timestamp(envelope.timestamp),
            )
        ]

    async def fetch(self, call_id: str) -> Record:
        """One GET. https://docs.cartesia.ai/api-reference/agents/calls/get-call (2026-11)"""
        record = await get_json(
            self.http,
            f"{self.root}/agents/calls/{quote(call_id, safe='')}",
            headers={"authorization": f"Bearer {self.account.api_key}", "cartesia-version": API_VERSION},
        )
        # The record is what makes an event believed, so anything that is no call confirms nothing.
        if not isinstance(record, dict) or not shapes.text(record.get("id")):
            raise RecordNotReady("the provider's API answered with something other than a call")
        return record

    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        """Ended calls must look ended. An analysis never waits: the webhook itself carries the summary."""
        if webhook.event not in ENDED:
            return True
        return record.get("status") in OVER or bool(record.get("end_time") or record.get("end_reason"))

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        call = shapes.merge(_carried(webhook), shapes.mapping(record))
        status = _status(webhook.event, call)
        start, end, redacted = call.get("start_time"), call.get("end_time"), shapes.timestamp(call.get("redacted_at"))
        # Only these few keys: its `headers` and `parameters` may hold SIP credentials.
        telephony = shapes.mapping(call.get("telephony_params"))
        summary = shapes.text(call.get("summary"))
        return Call(
            id=webhook.call_id,
            provider=self.name,
            account=self.account.name,
            status=status,
            agent=Agent(
                id=shapes.text(call.get("agent_id")),
                name=shapes.text(call.get("agent_name")),
                version=shapes.text(call.get("deployment_version_id")),
            ),
            channel=_channel(call),
            direction=_word(DIRECTIONS, telephony.get("direction"), None),
            # As given. The vendor's SDK calls `to` the caller's number and `from` the agent's, which looks swapped; no
            # inbound call was there to settle it (2026-11).
            from_=shapes.address(telephony.get("from")),
            to=shapes.address(telephony.get("to")),
            end=_end(call) if status in ("ended", "failed") else None,
            started_at=shapes.timestamp(start),
            ended_at=shapes.timestamp(end),
            duration_ms=shapes.elapsed_ms(start, end),
            transcript=_transcript(call.get("transcript")),
            analysis=Analysis(summary=summary) if summary else None,
            error=shapes.text(call.get("error_message")),
            privacy=Privacy(storage="none" if call.get("zdr_enabled") is True else "full", redacted_at=redacted),
            metadata=shapes.mapping(call.get("metadata")),
        )


def _digest(content: bytes) -> str:
    """Equal for equal JSON, however it is spaced or ordered."""
    canonical = msgspec.json.encode(shapes.decode_json(content), order="sorted")
    return hashlib.sha256(canonical).hexdigest()[:32]


def _word(table: Mapping[str, T], value: Any, otherwise: T) -> T:
    return table.get(value, otherwise) if isinstance(value, str) else otherwise


def _carried(webhook: Webhook) -> dict[str, Any]:
    """What the webhook itself tells, in the shape of the record. Under zero retention it may be the only copy."""
    try:
        envelope = shapes.mapping(shapes.decode_json(webhook.body))
    except (ValueError, RecursionError):
        envelope = {}  # what reconciling found has no body
    beside = {
        "agent_id": envelope.get("agent_id"),
        "end_reason": envelope.get("end_reason"),
        "summary": shapes.mapping(envelope.get("analysis")).get("summary"),
        "transcript": [envelope["turn"]] if "turn" in envelope else envelope.get("body"),  # `body` in 2025
    }
    call: dict[str, Any] = shapes.merge(beside, shapes.mapping(envelope.get("call")))
    return call


def _status(event: str, call: Mapping[str, Any]) -> Status:
    if event in ENDED and call.get("status") not in OVER:
        return ENDED[event]
    unsaid: Status = "ended" if call.get("end_time") or call.get("end_reason") else "created"
    said = _word(STATUSES, call.get("status"), unsaid)
    return max(said, AT_LEAST.get(event, said), key=lambda status: PROGRESS[status])


def _end(call: Mapping[str, Any]) -> End:
    cancelled = "cancelled" if call.get("status") == "cancelled" else None
    word = shapes.text(call.get("end_reason")) or cancelled
    reason, by = _word(ENDS, word, ("unknown", None))
    return End(reason=reason, by=by, provider_reason=word)


def _channel(call: Mapping[str, Any]) -> Channel:
    if "id" not in call:
        return "other"  # only an envelope: nothing says how the caller came
    if not shapes.mapping(call.get("telephony_params")):
        return "web"
    return _word(CHANNELS, call.get("telephony_account_type"), "phone")


def _transcript(rows: Any) -> list[Turn] | None:
    return [turn for row in shapes.items(rows) for turn in _turns(row)] if isinstance(rows, list) else None


def _turns(row: Mapping[str, Any]) -> Iterator[Turn]:
    """The turn, if anything was said or logged, then each tool that the agent called in it."""
    role: Role = _word(ROLES, row.get("role"), "system")
    text = _text(row)
    tools = shapes.items(row.get("tool_calls"))
    if text or not tools:
        yield Turn(
            role=role,
            text=text,
            start_ms=shapes.milliseconds(
                row.get("start_timestamp"), per_unit=1000
            ),  # seconds from the start of the call
            end_ms=shapes.milliseconds(row.get("end_timestamp"), per_unit=1000),
            interrupted=_interrupted(row) if role == "agent" else None,
            latency=_latency(row),
        )
    for tool in tools:
        yield Turn(
            role="tool",
            tool=Tool(
                id=shapes.text(tool.get("id")),
                name=shapes.text(tool.get("name")),
                arguments=shapes.json_object(tool.get("arguments")),
                result=_result(tool.get("result")),
            ),
        )


def _latency(row: Mapping[str, Any]) -> dict[str, int] | None:
    measured = {ours: shapes.milliseconds(row.get(key), per_unit=per_unit) for key, ours, per_unit in LATENCIES}
    return {name: ms for name, ms in measured.items() if ms is not None} or None


def _text(row: Mapping[str, Any]) -> str | None:
    """What was said; of a log row its name alone, since its value and metadata are the agent author's own data."""
    chunks = [shapes.text(chunk.get("text")) or "" for chunk in shapes.items(row.get("text_chunks"))]
    logged = shapes.mapping(row.get("log_event")).get("event") or shapes.mapping(row.get("log_metric")).get("name")
    return shapes.text(row.get("text")) or "".join(chunks) or shapes.text(logged)


def _interrupted(row: Mapping[str, Any]) -> bool | None:
    """`was_interrupted` is in webhooks of 2026, `end_reason` in records; either may tell."""
    said = (shapes.flag(row.get("was_interrupted")), _word(INTERRUPTED, row.get("end_reason"), None))
    return True if True in said else False if False in said else None


def _result(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()
