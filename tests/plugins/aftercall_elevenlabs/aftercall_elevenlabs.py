"""ElevenLabs' agents: https://elevenlabs.io/docs/eleven-agents/workflows/post-call-webhooks (2026-11)."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec

from aftercall.call import Agent, Analysis, Call, Direction, End, EndedBy, EndReason, Privacy, Role, Status, Tool, Turn
from aftercall.errors import ProviderError, RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers import shapes
from aftercall.providers.base import CallPage, Provider, Record, Request, Signature, Webhook
from aftercall.providers.http import get_json, request_json
from aftercall.signing import check_age, hmac_sha256, matches_any, mismatch, missing_header

HEADER = "elevenlabs-signature"
TOLERANCE_S = 1800
PAGE = "100"  # the most that a list gives

# One webhook tells that a call is over and analysed. `post_call_audio` holds the sound and nothing else: not for us.
EVENTS: dict[str, EventType] = {"post_call_transcription": "call.analyzed", "call_initiation_failure": "call.ended"}

# https://elevenlabs.io/docs/api-reference/conversations/get (2026-11), for this and the next two tables
STATUSES: dict[str, Status] = {
    "initiated": "created",
    "in-progress": "ongoing",
    "processing": "ended",
    "done": "ended",
    "failed": "failed",
}
ROLES: dict[str, Role] = {"agent": "agent", "user": "user"}
SUCCESS = {"success": True, "failure": False}
DIRECTIONS: dict[str, Direction] = {"inbound": "inbound", "outbound": "outbound"}

# `failure_reason` is documented; `termination_reason` is prose, of which users report these two sentences (2026-11).
REASONS: dict[str, tuple[EndReason, EndedBy | None]] = {
    "busy": ("busy", None),
    "no-answer": ("no_answer", None),
    "end_call tool was called.": ("agent_hangup", "agent"),
    "Call ended by remote party": ("user_hangup", "user"),
}


class _Data(msgspec.Struct):
    conversation_id: str | None = None


class _Envelope(msgspec.Struct):
    type: str
    event_timestamp: Any = None
    data: _Data | None = None


_envelopes = msgspec.json.Decoder(_Envelope)


class ElevenLabs(Provider):
    name = "elevenlabs"
    base_url = "https://api.elevenlabs.io"
    unlisted_is_deleted = True

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        """`t=<Unix seconds>,v0=<hex>`: HMAC-SHA256 over the seconds, a dot and the raw body."""
        if not request.headers.get(HEADER):
            raise missing_header("ElevenLabs-Signature")
        signed = self.signature(request)
        if signed is None:
            told = "the ElevenLabs-Signature header is not t=<Unix seconds>,v0=<64 hex digits>: changed on the way"
            raise SignatureError("malformed", told)
        stamp = signed.timestamp.encode()
        expected = [hmac_sha256(secret, stamp, b".", request.body) for secret in secrets if secret]
        if not matches_any(signed.digests, expected):
            raise mismatch("ElevenLabs-Signature", "webhook_secrets must hold the webhook's wsec_… secret")
        check_age(int(signed.timestamp), now, TOLERANCE_S)

    def signature(self, request: Request) -> Signature | None:
        parts = [part.strip() for part in request.headers.get(HEADER, "").split(",")]
        stamps = [part[2:] for part in parts if re.fullmatch("t=[0-9]{1,12}", part)]
        digests = [bytes.fromhex(part[3:]) for part in parts if re.fullmatch("v0=[0-9a-fA-F]{64}", part)]
        return Signature(digests=digests, timestamp=stamps[0]) if len(stamps) == 1 and digests else None

    def decode(self, body: bytes) -> list[Webhook]:
        envelope = shapes.decode_routing(_envelopes, body)
        call_id = envelope.data and envelope.data.conversation_id
        if not call_id and envelope.type in EVENTS:
            raise UndecodableWebhook(f"a {envelope.type} webhook without data.conversation_id")
        if not call_id or envelope.type == "post_call_audio":
            return []
        known = envelope.type in EVENTS
        sent_at = shapes.milliseconds(envelope.event_timestamp, per_unit=1000)
        return [
            Webhook(
                event=envelope.type,
                type=EVENTS.get(envelope.type, "call.unknown"),
                call_id=call_id,
                dedupe_key=f"{envelope.type}:{call_id}" + ("" if known else f":{sent_at}"),
                body=body,
                record="wait" if envelope.type == "post_call_transcription" else "once",  # a failure may leave none
                happened_at=shapes.timestamp(sent_at),
            )
        ]

    async def fetch(self, call_id: str) -> Record:
        record = await get_json(self.http, self._url(call_id), headers=self._headers)
        if not isinstance(record, dict):
            raise RecordNotReady("the provider's API answered with something other than a conversation")
        return record

    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        return record.get("status") in ("done", "failed")

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        call = shapes.mapping(shapes.merge(_carried(webhook.body), record))
        details, phone = shapes.mapping(call.get("metadata")), _phone(call)
        said = shapes.text(call.get("status")) or ""
        status = STATUSES.get(said, "ended")
        if webhook.event in EVENTS and status != "failed":  # a record that is behind does not take the end away
            status = "failed" if webhook.event == "call_initiation_failure" else "ended"
        started = shapes.milliseconds(details.get("start_time_unix_secs"), per_unit=1000)
        duration = shapes.milliseconds(details.get("call_duration_secs"), per_unit=1000)
        ended = None if started is None or duration is None else started + duration
        word = shapes.text(call.get("failure_reason")) or shapes.text(details.get("termination_reason"))
        reason, by = REASONS.get(word or "", ("unknown", None))
        deleted = shapes.mapping(details.get("deletion_settings")).get("deleted_transcript_at_time_unix_secs")
        given = shapes.mapping(call.get("conversation_initiation_client_data")).get("dynamic_variables")
        return Call(
            id=webhook.call_id,
            provider=self.name,
            account=self.account.name,
            agent=Agent(id=shapes.text(call.get("agent_id")), name=shapes.text(call.get("agent_name"))),
            channel="sip" if phone.get("type") in ("sip", "sip_trunking") else "phone" if phone else "web",
            direction=DIRECTIONS.get(shapes.text(phone.get("direction")) or ""),
            from_=shapes.address(phone.get("from")),
            to=shapes.address(phone.get("to")),
            status=status,
            end=End(reason=reason, by=by, provider_reason=word) if status in ("ended", "failed") else None,
            started_at=shapes.timestamp(started),
            ended_at=shapes.timestamp(ended),
            duration_ms=duration,
            transcript=_transcript(call.get("transcript")),
            analysis=_analysis(shapes.mapping(call.get("analysis"))),
            # No cost: `metadata.cost` counts credits, whose price depends on the customer's plan.
            error=shapes.text(shapes.mapping(details.get("error")).get("reason")),
            privacy=Privacy(redacted_at=shapes.timestamp(shapes.milliseconds(deleted, per_unit=1000))),
            # A variable named secret__… goes into request headers of tools and nowhere else:
            # https://elevenlabs.io/docs/eleven-agents/customization/personalization/dynamic-variables (2026-11)
            variables={k: v for k, v in shapes.mapping(given).items() if not k.startswith("secret__")},
        )

    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        """https://elevenlabs.io/docs/api-reference/conversations/list (2026-11): summaries, without transcript."""
        params = {"page_size": PAGE, "call_start_after_unix": str(int(since.timestamp()) - 1)}
        params |= {"cursor": cursor} if cursor else {}
        url = f"{self.root}/v1/convai/conversations"
        page = await request_json(self.http, "GET", url, headers=self._headers, params=params)
        if not isinstance(page, dict) or not isinstance(page.get("conversations"), list):
            raise ProviderError("the provider's API answered with something other than a list of conversations")
        more = shapes.text(page.get("next_cursor")) if page.get("has_more") else None
        return CallPage(calls=shapes.items(page["conversations"]), next=more)

    def facts(self, record: Record) -> list[bytes]:
        """A call that nobody took has no messages, and was told of as a failure to begin."""
        if record.get("status") not in ("done", "failed") or not shapes.text(record.get("conversation_id")):
            return []
        spoken = record["status"] == "done" or record.get("message_count") or record.get("transcript")
        event = "post_call_transcription" if spoken else "call_initiation_failure"
        return [msgspec.json.encode({"type": event, "data": record})]

    def is_deleted(self, record: Record) -> bool:
        settings = shapes.mapping(shapes.mapping(record.get("metadata")).get("deletion_settings"))
        return shapes.number(settings.get("deleted_transcript_at_time_unix_secs")) is not None

    async def delete(self, call_id: str) -> Record | None:
        try:
            await request_json(self.http, "DELETE", self._url(call_id), headers=self._headers)
        except ProviderError as error:
            if error.status not in self.not_found:
                raise
        return None

    def _url(self, call_id: str) -> str:
        return f"{self.root}/v1/convai/conversations/{quote(call_id, safe='')}"

    @property
    def _headers(self) -> dict[str, str]:
        return {"xi-api-key": self.account.api_key}


def _carried(body: bytes) -> dict[str, Any]:
    """The conversation in a webhook's body."""
    try:
        return shapes.mapping(shapes.mapping(shapes.decode_json(body)).get("data"))
    except (ValueError, RecursionError):
        return {}


def _phone(call: dict[str, Any]) -> dict[str, Any]:
    """How the call went over the telephone, with `from` and `to`; empty if it did not."""
    details = shapes.mapping(call.get("metadata"))
    phone, carrier = shapes.mapping(details.get("phone_call")), shapes.mapping(details.get("body"))
    if carrier:  # of a call that never began: what Twilio posted, or the SIP answer
        return {
            "type": details.get("type"),
            "direction": "outbound",
            "from": carrier.get("From"),
            "to": carrier.get("To"),
        }
    if not phone:
        return {}
    ends = (
        ("external_number", "agent_number")
        if phone.get("direction") == "inbound"
        else ("agent_number", "external_number")
    )
    return {**phone, "from": phone.get(ends[0]), "to": phone.get(ends[1])}


def _analysis(analysis: dict[str, Any]) -> Analysis | None:
    if not analysis:
        return None
    collected = shapes.mapping(analysis.get("data_collection_results"))
    return Analysis(
        summary=shapes.text(analysis.get("transcript_summary")),
        successful=SUCCESS.get(shapes.text(analysis.get("call_successful")) or ""),
        custom={name: shapes.mapping(found).get("value") for name, found in collected.items()},
    )


def _transcript(entries: Any) -> list[Turn] | None:
    """What was said, and each tool called, with its result wherever that stands."""
    if not isinstance(entries, list):
        return None
    found = shapes.items(entries)
    results = {result.get("request_id"): result for entry in found for result in shapes.items(entry.get("tool_results"))
               if isinstance(result.get("request_id"), str)}  # fmt: skip
    turns = []
    for entry in found:
        at = shapes.milliseconds(entry.get("time_in_call_secs"), per_unit=1000)
        message = shapes.text(entry.get("message"))
        if message:
            role = ROLES.get(shapes.text(entry.get("role")) or "", "system")
            turns.append(Turn(role=role, text=message, start_ms=at, interrupted=shapes.flag(entry.get("interrupted"))))
        for call in shapes.items(entry.get("tool_calls")):
            request_id = shapes.text(call.get("request_id"))
            result = results.get(request_id, {})
            failed = shapes.flag(result.get("is_error"))
            tool = Tool(
                id=request_id,
                name=shapes.text(call.get("tool_name")),
                arguments=shapes.json_object(call.get("params_as_json")),
                result=shapes.text(result.get("result_value")),
                ok=None if failed is None else not failed,
            )
            turns.append(Turn(role="tool", tool=tool, start_ms=at))
    return turns
