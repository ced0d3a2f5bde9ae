"""Ultravox: https://docs.ultravox.ai (2026-11). Calls over WebRTC, WebSocket, SIP and telephony carriers.

A call object holds secrets of its owner (callbacks, SIP passwords, join URL, system prompt, voice headers). `normalize`
therefore picks single fields and never passes an object of the vendor's on, `metadata` excepted.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import parse_qs, quote

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
    Storage,
    Tool,
    Turn,
)
from aftercall.errors import RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers import shapes
from aftercall.providers.base import Provider, Record, Request, Webhook
from aftercall.providers.http import get_json
from aftercall.signing import check_age, hmac_sha256, matches_any, mismatch, missing_header

# https://docs.ultravox.ai/webhooks/securing-webhooks (2026-11): refuse what is over a minute old.
TOLERANCE_S = 60
TIMESTAMP_HEADER = "X-Ultravox-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Ultravox-Webhook-Signature"

MAX_PAGES = 500

# https://docs.ultravox.ai/webhooks/available-webhooks (2026-11)
EVENTS: dict[str, EventType] = {
    "call.started": "call.started",  # created; nobody is connected yet
    "call.joined": "call.connected",
    "call.ended": "call.ended",  # also for a call that nobody joined
    "call.billed": "call.billed",
}

# endReason: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11)
END_REASONS: dict[str, tuple[EndReason, EndedBy | None]] = {
    "unjoined": ("unjoined", None),  # nobody came, so nobody ended it
    "hangup": ("user_hangup", "user"),
    "agent_hangup": ("agent_hangup", "agent"),
    "timeout": ("max_duration", "system"),
    "connection_error": ("telephony_error", "system"),  # the client's connection, whichever medium carried it
    "system_error": ("provider_error", "system"),
}
ERRORS = frozenset({"connection_error", "system_error"})
FAILURES = ERRORS | {"unjoined"}

# sipDetails.terminationReason: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11). Why a SIP call was
# never joined; NORMAL and UNKNOWN say no more about that than `unjoined` does.
SIP_REASONS: dict[str, EndReason] = {
    "SIP_TERMINATION_BUSY": "busy",
    "SIP_TERMINATION_REJECTED": "declined",
    "SIP_TERMINATION_TIMEOUT": "no_answer",
    "SIP_TERMINATION_CANCELED": "cancelled",
    "SIP_TERMINATION_INVALID_NUMBER": "dial_failed",
    "SIP_TERMINATION_DESTINATION_UNAVAILABLE": "dial_failed",
}

# medium, of which at most one key is set: https://docs.ultravox.ai/api-reference/calls/calls-post (2026-11)
CHANNELS: dict[str, Channel] = {
    "twilio": "phone",
    "telnyx": "phone",
    "plivo": "phone",
    "exotel": "phone",
    "sip": "sip",
    "webRtc": "web",
    "serverWebSocket": "other",
}
DIRECTIONS: dict[str, Direction] = {"outgoing": "outbound", "incoming": "inbound"}

# role: https://docs.ultravox.ai/api-reference/calls/calls-messages-list (2026-11). Other words count as `system`.
TOOL_CALL, TOOL_RESULT = "MESSAGE_ROLE_TOOL_CALL", "MESSAGE_ROLE_TOOL_RESULT"
ROLES: dict[str, Role] = {"MESSAGE_ROLE_USER": "user", "MESSAGE_ROLE_AGENT": "agent"}

# retentionPolicy: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11): deleted once the call is billed.
AUTO_DELETE = "auto_delete"
STORAGE: dict[str, Storage] = {"retain": "full", AUTO_DELETE: "none"}

# billingStatus: ibid. Calls from before 2025-05-28 may show it for ever.
BILLING_PENDING = "BILLING_STATUS_PENDING"


class _Call(msgspec.Struct, rename="camel"):
    call_id: str = ""
    retention_policy: Any = None
    created: Any = None
    joined: Any = None


class _Envelope(msgspec.Struct):
    event: str
    call: _Call | None = None


_envelope = msgspec.json.Decoder(_Envelope)


class Ultravox(Provider):
    name = "ultravox"
    base_url = "https://api.ultravox.ai"
    id_field = "callId"

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        # While a secret is rotated the vendor signs once with each of its own: the header is a list.
        for header in (TIMESTAMP_HEADER, SIGNATURE_HEADER):
            if not request.headers.get(header.lower()):
                raise missing_header(header)
        timestamp = request.headers[TIMESTAMP_HEADER.lower()]
        entries = [entry.strip() for entry in request.headers[SIGNATURE_HEADER.lower()].split(",")]
        signatures = [bytes.fromhex(entry) for entry in entries if re.fullmatch("[0-9a-fA-F]{64}", entry)]
        if not signatures:
            raise _malformed(SIGNATURE_HEADER, "holds no SHA-256 digest in hex")
        # Which ISO 8601 variant is sent is not documented: any offset and fraction will do, and none means UTC.
        signed_at = shapes.parse_time(timestamp)
        if signed_at is None:
            raise _malformed(TIMESTAMP_HEADER, "is not an ISO 8601 time")
        stamp = timestamp.encode("latin-1", "replace")
        if not matches_any(signatures, [hmac_sha256(secret, request.body, stamp) for secret in secrets if secret]):
            raise mismatch(f"{SIGNATURE_HEADER} header", "webhook_secrets must hold one of the webhook's `secrets`")
        check_age(signed_at.timestamp(), now, TOLERANCE_S)

    def decode(self, body: bytes) -> list[Webhook]:
        envelope = shapes.decode_routing(_envelope, body)
        event, call = envelope.event, envelope.call
        kind = EVENTS.get(event, "call.unknown")
        if call is None or not call.call_id:
            if kind == "call.unknown":
                return []
            raise UndecodableWebhook("the body has no call.callId")
        # No event id is sent. A call's own `callbacks` may post the same event here a second time: still one fact.
        dedupe_key = f"{event}:{call.call_id}"
        record: Literal["wait", "once"] = "wait"
        if kind == "call.unknown":
            dedupe_key += f":{hashlib.sha256(body).hexdigest()[:32]}"
            record = "once"
        elif kind == "call.billed" and call.retention_policy == AUTO_DELETE:
            record = "once"  # the vendor deletes after billing: what is gone now stays gone
        # A call counts as started when it is joined; these two events are about creating and joining it.
        happened_at = {"call.started": call.created, "call.connected": call.joined}.get(kind)
        return [
            Webhook(
                event=event,
                type=kind,
                call_id=call.call_id,
                dedupe_key=dedupe_key,
                body=body,
                record=record,
                happened_at=shapes.timestamp(happened_at),
            )
        ]

    async def fetch(self, call_id: str) -> Record:
        """`{"call": {…}, "messages": […]}`: the call object holds no transcript, that is a list of its own."""
        url = f"{self.root}/api/calls/{quote(call_id, safe='')}"
        try:
            async with asyncio.TaskGroup() as group:  # and not gather, which lets the other one run on after a failure
                call = group.create_task(self._get(url))
                messages = group.create_task(self._messages(f"{url}/messages"))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return {"call": call.result(), "messages": messages.result()}

    async def _messages(self, url: str) -> list[Any]:
        # The default mode, last_stage, leaves out all earlier stages of a call:
        # https://docs.ultravox.ai/api-reference/calls/calls-messages-list (2026-11)
        params = {"mode": "in_call"}
        messages: list[Any] = []
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            page = await self._get(url, params)
            if not isinstance(page.get("results"), list):
                raise RecordNotReady("the provider's API answered with messages that are not a list")
            messages += page["results"]
            cursor = _cursor(page.get("next"))
            if cursor is None or cursor in seen:
                break
            seen.add(cursor)
            params = {"mode": "in_call", "cursor": cursor}
        return messages

    async def _get(self, url: str, params: dict[str, str] | None = None) -> dict[str, Any]:
        answer = await get_json(self.http, url, headers={"X-API-Key": self.account.api_key}, params=params)
        if not isinstance(answer, dict):
            raise RecordNotReady("the provider's API answered with something other than an object")
        return answer

    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        if webhook.type not in ("call.ended", "call.billed"):
            return True
        call = shapes.mapping(record.get("call"))
        if not (call.get("ended") or call.get("endReason")):
            return False
        if webhook.type == "call.ended" or call.get("billingStatus") != BILLING_PENDING:
            return True
        return _carried(webhook).get("billingStatus") not in (None, BILLING_PENDING)  # then the webhook brings the bill

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        call = shapes.mapping(shapes.merge(_carried(webhook), shapes.mapping((record or {}).get("call"))))
        over = bool(call.get("ended") or call.get("endReason")) or webhook.type in ("call.ended", "call.billed")
        reason = shapes.text(call.get("endReason"))
        agent = shapes.mapping(call.get("agent"))
        summary = shapes.text(call.get("summary")) or shapes.text(call.get("shortSummary"))
        channel, direction, from_, to = _medium(call.get("medium"))
        return Call(
            id=webhook.call_id,
            provider=self.name,
            account=self.account.name,
            status=_status(call, over),
            agent=Agent(
                id=shapes.text(agent.get("agentId")) or shapes.text(call.get("agentId")),
                name=shapes.text(agent.get("name")),
            ),
            channel=channel,
            direction=direction,
            from_=from_,
            to=to,
            end=_end(call) if over else None,
            started_at=shapes.timestamp(call.get("joined")) or shapes.timestamp(call.get("created")),
            ended_at=shapes.timestamp(call.get("ended")),
            duration_ms=_duration_ms(call),
            transcript=_transcript(record),
            analysis=Analysis(summary=summary) if summary else None,
            # No cost: the vendor tells how long it billed for (billedDuration), not how much. No recording: its link
            # takes a request with the API key, https://docs.ultravox.ai/api-reference/calls/calls-recording-get.
            error=reason if reason in ERRORS else None,
            privacy=Privacy(storage=STORAGE.get(shapes.text(call.get("retentionPolicy")) or "", "full")),
            metadata=shapes.mapping(call.get("metadata")),
        )


def _malformed(header: str, problem: str) -> SignatureError:
    return SignatureError("malformed", f"the {header} header {problem}: not sent by Ultravox, or changed on the way")


def _cursor(link: Any) -> str | None:
    """The cursor of `next`, which is a full URL on the vendor's own host. Only this much of it is used.

    The request goes to our own root again: a proxy stays in the path, and no answer chooses where the API key is sent.
    """
    query = link.partition("?")[2] if isinstance(link, str) else ""
    return next(iter(parse_qs(query).get("cursor", [])), None)


def _carried(webhook: Webhook) -> dict[str, Any]:
    """The call object in the webhook's body."""
    try:
        return shapes.mapping(shapes.mapping(shapes.decode_json(webhook.body)).get("call"))
    except (ValueError, RecursionError):
        return {}


def _status(call: dict[str, Any], over: bool) -> Status:
    if over:
        return "failed" if shapes.text(call.get("endReason")) in FAILURES else "ended"
    return "ongoing" if call.get("joined") else "created"


def _end(call: dict[str, Any]) -> End:
    word = shapes.text(call.get("endReason"))
    sip_word = shapes.text(shapes.mapping(call.get("sipDetails")).get("terminationReason"))
    if word == "unjoined" and sip_word in SIP_REASONS:
        return End(reason=SIP_REASONS[sip_word], provider_reason=sip_word)
    reason, by = END_REASONS.get(word or "", ("unknown", None))
    return End(reason=reason, by=by, provider_reason=word)


def _duration_ms(call: dict[str, Any]) -> int | None:
    """From joined to ended; 0 if nobody joined; None while it goes on."""
    if not call.get("ended"):
        return None
    return shapes.elapsed_ms(call["joined"], call["ended"]) if call.get("joined") else 0


def _medium(medium: Any) -> tuple[Channel, Direction | None, str | None, str | None]:
    """Channel, direction, from, to. A carrier's call that was not dialled by Ultravox does not say who called whom."""
    kind = next((kind for kind, details in shapes.mapping(medium).items() if details is not None), "")
    channel = CHANNELS.get(kind, "other")
    legs = shapes.mapping(shapes.mapping(medium).get(kind))
    for key, direction in DIRECTIONS.items():
        leg = legs.get(key)
        if isinstance(leg, dict):  # empty for an incoming SIP call: its numbers are not told
            return channel, direction, shapes.address(leg.get("from")), shapes.address(leg.get("to"))
    return channel, None, None, None


def _transcript(record: Record | None) -> list[Turn] | None:
    """A turn for each message, and one for each tool invocation: its call and its result, joined by invocationId."""
    if record is None or not isinstance(record.get("messages"), list):
        return None
    messages = shapes.items(record["messages"])
    calls = {_invocation(message) for message in messages if message.get("role") == TOOL_CALL}
    results = {_invocation(message): message for message in messages if message.get("role") == TOOL_RESULT}
    turns = []
    for message in messages:
        role, invocation = shapes.text(message.get("role")), _invocation(message)
        if role == TOOL_CALL:
            turns.append(_tool_turn(message, results.get(invocation) if invocation else None))
        elif role != TOOL_RESULT:
            start_ms, end_ms = _span_ms(message)
            text = shapes.text(message.get("text"))
            turns.append(Turn(role=ROLES.get(role or "", "system"), text=text, start_ms=start_ms, end_ms=end_ms))
        elif not invocation or invocation not in calls:
            turns.append(_tool_turn({}, message))
    return turns


def _invocation(message: dict[str, Any]) -> str | None:
    return shapes.text(message.get("invocationId"))


def _tool_turn(call: dict[str, Any], result: dict[str, Any] | None) -> Turn:
    either = {**(result or {}), **call}
    tool = Tool(
        id=_invocation(either),
        name=shapes.text(either.get("toolName")),
        arguments=shapes.json_object(call.get("text")),
        result=shapes.text((result or {}).get("text")),
        ok=None if result is None else not result.get("errorDetails"),
    )
    start_ms, end_ms = _span_ms(either)
    return Turn(role="tool", tool=tool, start_ms=start_ms, end_ms=_span_ms(result or {})[1] or end_ms)


def _span_ms(message: dict[str, Any]) -> tuple[int | None, int | None]:
    """Start and end. Best by the wall clock, counted from `joined` as the call's times are; else by the input audio.

    Protobuf's JSON leaves out a start of zero.
    """
    span = shapes.mapping(message.get("wallClockTimespan")) or shapes.mapping(message.get("timespan"))
    start_ms, end_ms = shapes.duration_ms(span.get("start")), shapes.duration_ms(span.get("end"))
    return 0 if start_ms is None and end_ms is not None else start_ms, end_ms
