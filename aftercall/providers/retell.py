"""Retell AI. Webhooks: https://docs.retellai.com/features/webhook-overview (2026-11)."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Raw

from aftercall.call import (
    Agent,
    Analysis,
    Call,
    Cost,
    CostItem,
    End,
    Percentiles,
    Privacy,
    Recording,
    Role,
    Status,
    Storage,
    Tool,
    Turn,
)
from aftercall.errors import RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers import retell_api
from aftercall.providers.base import CallPage, Provider, Record, Request, Signature, Webhook
from aftercall.providers.http import get_json
from aftercall.providers.retell_tables import (
    AWAITED,
    CHANNELS,
    DIRECTIONS,
    EVENTS,
    HEADER,
    LIVE,
    NOT_CALLS,
    OVER,
    REASONS,
    REPEATED,
    ROLES,
    SCRUBBED,
    SENTIMENTS,
    SIGNATURE,
    SPEAKERS,
    STATUSES,
    STORAGE,
    TOLERANCE_S,
    TRANSCRIPTS,
    UNKNOWN_REASON,
)
from aftercall.providers.shapes import (
    address,
    decode_json,
    decode_routing,
    elapsed_ms,
    flag,
    items,
    json_object,
    mapping,
    merge,
    milliseconds,
    money,
    number,
    text,
    timestamp,
    undecodable,
)
from aftercall.signing import check_age, hmac_sha256, matches_any, mismatch, missing_header


class _Head(msgspec.Struct):
    """What routing needs of the call object."""

    call_id: str = ""
    call_analysis: Raw = Raw(b"null")


class _Envelope(msgspec.Struct):
    event: str
    call: _Head | None = None
    data: Raw = Raw(b"null")  # what `call` was named until 2024


_decoder = msgspec.json.Decoder(_Envelope)
_head_decoder = msgspec.json.Decoder(_Head)


class Retell(Provider):
    name = "retell"
    base_url = "https://api.retellai.com"
    id_field = "call_id"
    needs = ("api_key",)  # webhooks are signed with an API key: there is no other secret
    # get-call documents 422 and not 404, delete-call neither clearly (2026-11): both count.
    not_found = (404, 422)
    unlisted_is_deleted = True

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        """`x-retell-signature: v=<Unix ms>,d=<hex>`: HMAC-SHA256 over the raw body and the milliseconds in decimal."""
        header = request.headers.get(HEADER)
        if not header:
            raise missing_header(HEADER)
        match = SIGNATURE.fullmatch(header)
        if match is None:
            raise SignatureError(
                "malformed",
                f"the {HEADER} header is not v=<Unix milliseconds>,d=<64 hex digits>: "
                "not sent by Retell, or rewritten by a proxy on the way",
            )
        signed_at_ms = int(match[1])
        # Retell's own SDKs sign the number, not its spelling (6.2.13, 2026-11): leading zeros do not count.
        expected = [hmac_sha256(secret, request.body, b"%d" % signed_at_ms) for secret in secrets if secret]
        if not matches_any([bytes.fromhex(match[2])], expected):
            raise mismatch(HEADER, "Retell signs with the one API key that has the webhook badge in its dashboard")
        check_age(signed_at_ms / 1000, now, TOLERANCE_S)

    def decode(self, body: bytes) -> list[Webhook]:
        """One fact, or none: chats and `call_inbound`, which Retell asks to be answered, are not for us."""
        try:
            envelope = decode_routing(_decoder, body)
            if envelope.event in NOT_CALLS:
                return []
            head = envelope.call or _old_head(envelope.data)
            if head is None or not head.call_id:
                if envelope.event in EVENTS:
                    raise UndecodableWebhook(f"{envelope.event} without a call.call_id")
                return []
            return [_webhook(envelope.event, head, body)]
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise undecodable(error) from None

    async def fetch(self, call_id: str) -> Record:
        """GET /v2/get-call/{call_id}, https://docs.retellai.com/api-references/get-call (2026-11)."""
        url = f"{self.root}/v2/get-call/{quote(call_id, safe='')}"
        record = await get_json(self.http, url, headers={"authorization": f"Bearer {self.account.api_key}"})
        if not isinstance(record, dict):
            raise RecordNotReady("the provider's API answered with something other than a call")
        return record

    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        """An ended call's record must show the end. It need not hold the analysis: under `basic_attributes_only` it
        may never do, and the webhook carries it."""
        return webhook.type not in OVER or _is_over(record)

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        # https://docs.retellai.com/accounts/privacy-disable (2026-11): under `basic_attributes_only` the webhook is the
        # only copy of transcript, numbers, metadata and variables. So: merge.
        carried = _carried(webhook.body)
        call = mapping(merge(carried, record))
        if webhook.type in OVER and _storage(call) == "no_pii":
            call |= _unscrubbed(carried, call)
        if webhook.type == "call.analyzed":  # the fact itself: after /rerun-call-analysis a record may be behind
            call |= {"call_analysis": merge(call.get("call_analysis"), carried.get("call_analysis"), levels=1)}
        over = webhook.type in OVER or _is_over(call)
        reason = text(call.get("disconnection_reason"))
        start, end = call.get("start_timestamp"), call.get("end_timestamp")
        duration_ms = milliseconds(call.get("duration_ms"))
        recording_url = text(call.get("recording_url")) or text(call.get("scrubbed_recording_url"))
        return Call(
            id=webhook.call_id,
            provider=self.name,
            account=self.account.name,
            agent=Agent(
                id=text(call.get("agent_id")),
                name=text(call.get("agent_name")),
                version=_word(call.get("agent_version")),
            ),
            channel=CHANNELS.get(text(call.get("call_type")) or "", "other"),
            direction=DIRECTIONS.get(text(call.get("direction")) or ""),
            from_=address(call.get("from_number")),
            to=address(call.get("to_number")),
            status=_status(webhook, call, over),
            end=_end(reason) if over else None,
            started_at=timestamp(start),
            ended_at=timestamp(end),
            duration_ms=elapsed_ms(start, end) if duration_ms is None else duration_ms,
            transcript=_transcript(call),
            analysis=_analysis(mapping(call.get("call_analysis"))),
            cost=_cost(mapping(call.get("call_cost"))),
            latency=_latency(mapping(call.get("latency"))),
            recording=Recording(url=recording_url) if recording_url else None,
            log_url=_unsigned(call.get("public_log_url")),
            error=reason if reason and reason.startswith("error_") else None,
            privacy=Privacy(storage=_storage(call)),
            metadata=_object(call.get("metadata")),
            variables={
                **mapping(call.get("retell_llm_dynamic_variables")),
                **mapping(call.get("collected_dynamic_variables")),
            },
        )

    def awaits(self, webhook: Webhook, record: Record | None) -> Collection[EventType]:
        """Every call is analyzed, also one that never connected."""
        return AWAITED - {webhook.type}

    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        return await retell_api.list_calls(self, since, cursor)

    def facts(self, record: Record) -> list[bytes]:
        """`call_ended`, and `call_analyzed` if it has an analysis; which stays as it is, for the key is made of it."""
        if not text(record.get("call_id")) or not _is_over(record):
            return []
        call = {key: value for key, value in record.items() if key != "access_token"}
        events = ["call_ended", "call_analyzed"] if mapping(record.get("call_analysis")) else ["call_ended"]
        return [msgspec.json.encode({"event": event, "call": call}) for event in events]

    async def delete(self, call_id: str) -> None:
        await retell_api.delete_call(self, call_id)

    async def register(self, url: str, *, agents: Sequence[str] = (), dry_run: bool = False) -> list[str]:
        return await retell_api.register(self, url, agents, dry_run)

    def signature(self, request: Request) -> Signature | None:
        match = SIGNATURE.fullmatch(request.headers.get(HEADER, ""))
        return Signature(digests=[bytes.fromhex(match[2])], timestamp=match[1]) if match else None


def _old_head(data: Raw) -> _Head | None:
    try:
        return _head_decoder.decode(data)
    except msgspec.ValidationError:
        return None


def _webhook(event: str, head: _Head, body: bytes) -> Webhook:
    """The envelope has no id of its own, and the same event may come twice within a second: the content must do."""
    event_type = EVENTS.get(event, "call.unknown")
    dedupe_key = f"{event}:{head.call_id}"
    if event_type in REPEATED:
        dedupe_key += ":" + _digest(body)
    elif event_type == "call.analyzed":
        # PUT /rerun-call-analysis makes another one: the same analysis is a copy, a different one is news.
        analysis = msgspec.json.encode(decode_json(bytes(head.call_analysis)), order="sorted")
        dedupe_key += ":" + _digest(analysis)
    return Webhook(
        event=event,
        type=event_type,
        call_id=head.call_id,
        dedupe_key=dedupe_key,
        body=body,
        record=REPEATED.get(event_type, "wait"),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _carried(body: bytes) -> dict[str, Any]:
    """The call object of a webhook; empty for a fact that came without one."""
    try:
        envelope = mapping(decode_json(body))
    except (ValueError, RecursionError):
        return {}
    call = mapping(envelope.get("call")) or mapping(envelope.get("data"))
    # Whether the opt-in events have it in the call or beside it is not documented (2026-11).
    beside = {"transcript_with_tool_calls": envelope.get("transcript_with_tool_calls")}
    return mapping(merge(beside, call, levels=1))


def _unscrubbed(carried: Record, call: Record) -> Record:
    """Where the record is kept without personal data, what the webhook of a call's end had: it was there before."""
    kept = {key: merge(call.get(key), carried[key]) for key in SCRUBBED if key in carried}
    if any(carried.get(key) for key in TRANSCRIPTS):
        kept |= {key: carried.get(key) for key in TRANSCRIPTS}
    return kept


def _is_over(call: Record) -> bool:
    return (
        STATUSES.get(text(call.get("call_status")) or "") in ("ended", "failed")
        or number(call.get("end_timestamp")) is not None
        or text(call.get("disconnection_reason")) is not None
    )


def _status(webhook: Webhook, call: Record, over: bool) -> Status:
    """The documentation's own sample of call_ended says "registered" (2026-11), so the event has the last word."""
    said = STATUSES.get(text(call.get("call_status")) or "")
    if over:
        _, _, due = REASONS.get(text(call.get("disconnection_reason")) or "", UNKNOWN_REASON)
        return "failed" if "failed" in (said, due) else "ended"
    return "ongoing" if webhook.type in LIVE else said or "created"


def _end(provider_reason: str | None) -> End:
    reason, by, _ = REASONS.get(provider_reason or "", UNKNOWN_REASON)
    return End(reason=reason, by=by, provider_reason=provider_reason)


def _transcript(call: Record) -> list[Turn] | None:
    """The fullest that is there; the one without personal data where there is no other."""
    entries = items(call.get("transcript_with_tool_calls")) or items(call.get("transcript_object"))
    plain = text(call.get("transcript"))
    if not entries and plain and (turns := _plain_turns(plain)):
        return turns
    entries = entries or items(call.get("scrubbed_transcript_with_tool_calls"))
    return [_turn(entry) for entry in _join_tools(entries)] or None


def _join_tools(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """An invocation and its result as one entry, at the invocation's place."""
    joined: list[dict[str, Any]] = []
    waiting: dict[str, dict[str, Any]] = {}
    for entry in entries:
        role, tool_id = entry.get("role"), text(entry.get("tool_call_id"))
        invocation = waiting.pop(tool_id, None) if tool_id and role == "tool_call_result" else None
        if invocation is not None:
            invocation.update(content=entry.get("content"), successful=entry.get("successful"))
            continue
        joined.append(dict(entry))
        if tool_id and role == "tool_call_invocation":
            waiting[tool_id] = joined[-1]
    return joined


def _turn(entry: dict[str, Any]) -> Turn:
    word = text(entry.get("role")) or ""
    role = ROLES.get(word, "system")
    content = text(entry.get("content"))
    words = items(entry.get("words"))
    tool = Tool(
        id=text(entry.get("tool_call_id")),
        name=text(entry.get("name")),
        arguments=json_object(entry.get("arguments")),  # JSON in a string
        result=content,
        ok=flag(entry.get("successful")),
    )
    said = {"tool": None, "system": _remark(word, entry)}
    return Turn(
        role=role,
        text=said.get(role, content),
        start_ms=milliseconds(words[0].get("start") if words else entry.get("time_sec"), per_unit=1000),
        end_ms=milliseconds(words[-1].get("end"), per_unit=1000) if words else None,
        tool=tool if role == "tool" else None,
    )


def _remark(word: str, entry: dict[str, Any]) -> str | None:
    """What happened, for a reader: "dtmf: 4", "node_transition: Greeting → Booking"."""
    nodes = [text(entry.get("former_node_name")), text(entry.get("new_node_name"))]
    what = text(entry.get("content")) or _word(entry.get("digit")) or " → ".join(filter(None, nodes))
    return ": ".join(filter(None, (word, what))) or None


def _plain_turns(transcript: str) -> list[Turn]:
    """The plain text, "Agent: …\\nUser: …\\n": a line without a speaker goes on with the turn before."""
    turns: list[tuple[Role, list[str]]] = []
    for line in transcript.rstrip("\n").split("\n"):
        speaker, colon, said = line.partition(":")
        role = SPEAKERS.get(speaker) if colon else None
        if role is not None:
            turns.append((role, [said.strip()]))
        elif turns:
            turns[-1][1].append(line)
        elif line:
            turns.append(("system", [line]))
    return [Turn(role=role, text=text("\n".join(lines))) for role, lines in turns]


def _analysis(analysis: dict[str, Any]) -> Analysis | None:
    if not analysis:
        return None
    sentiment = text(analysis.get("user_sentiment"))
    return Analysis(
        summary=text(analysis.get("call_summary")),
        sentiment=SENTIMENTS.get(sentiment, "unknown") if sentiment else None,
        successful=flag(analysis.get("call_successful")),
        voicemail=flag(analysis.get("in_voicemail")),
        custom=_object(analysis.get("custom_analysis_data")),
    )


def _cost(cost: dict[str, Any]) -> Cost | None:
    """All of Retell's prices are in cents."""
    total = money(cost.get("combined_cost"), per_unit=100)
    amounts = [
        (text(product.get("product")) or "unknown", money(product.get("cost"), per_unit=100))
        for product in items(cost.get("product_costs"))
    ]
    parts = [CostItem(name=name, amount=amount) for name, amount in amounts if amount is not None]
    return Cost(total=total, items=parts) if total is not None or parts else None


def _latency(latency: dict[str, Any]) -> dict[str, Percentiles] | None:
    measured = {
        part: Percentiles(
            **{key: milliseconds(values.get(key)) for key in ("p50", "p90", "p95", "p99", "min", "max")},
            count=milliseconds(values.get("num")),
        )
        for part, values in latency.items()
        if isinstance(values, dict)
    }
    return measured or None


def _unsigned(value: Any) -> str | None:
    """A link without a query: with one it is signed, and opens the log to whoever sees the event."""
    url = text(value)
    return url if url and "?" not in url else None


def _storage(call: Record) -> Storage:
    """The opt-out is the setting's deprecated form. A setting that we do not know is taken for a strict one."""
    setting = text(call.get("data_storage_setting"))
    if setting is None:
        return "basic" if call.get("opt_out_sensitive_data_storage") is True else "full"
    return STORAGE.get(setting, "basic")


def _object(value: Any) -> dict[str, Any]:
    """Free data, which may be any JSON, as an object."""
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"value": value}


def _word(value: Any) -> str | None:
    """A text, also where it came as a number."""
    return text(value) or (str(value) if number(value) is not None else None)
