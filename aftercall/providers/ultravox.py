"""Ultravox: https://docs.ultravox.ai (2026-11). Calls over WebRTC, WebSocket, SIP and telephony carriers.

A call object holds secrets of its owner (callbacks, SIP passwords, join URL, system prompt, voice headers). `normalize`
therefore picks single fields and never passes an object of the vendor's on, `metadata` excepted.
"""

import asyncio
import hashlib
import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, quote

import msgspec

from aftercall.call import Agent, Analysis, Call, Channel, Direction, End, Privacy, Status, Storage, Tool, Turn
from aftercall.errors import ProviderError, RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers import shapes
from aftercall.providers import ultravox_tables as tables
from aftercall.providers.base import CallPage, DeletedPage, Provider, Record, Request, Signature, Webhook
from aftercall.providers.http import get_json, request_json
from aftercall.signing import check_age, hmac_sha256, matches_any, mismatch, missing_header

# https://docs.ultravox.ai/webhooks/securing-webhooks (2026-11): refuse what is over a minute old.
TOLERANCE_S = 60
TIMESTAMP_HEADER = "X-Ultravox-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Ultravox-Webhook-Signature"

MAX_PAGES = 500
PAGE_SIZE = "100"

# https://docs.ultravox.ai/api-reference/webhooks/webhooks-post (2026-11)
MAX_URL, MAX_SECRET = 200, 120


class _Call(msgspec.Struct, rename="camel"):
    call_id: str = ""
    retention_policy: Any = None
    created: Any = None
    joined: Any = None
    deletion_time: Any = None  # in what is left of a deleted call
    ended: Any = None
    end_reason: Any = None
    billing_status: Any = None


class _Envelope(msgspec.Struct):
    event: str | None = None
    call: _Call | None = None


_envelope = msgspec.json.Decoder(_Envelope)


class Ultravox(Provider):
    name = "ultravox"
    base_url = "https://api.ultravox.ai"
    id_field = "callId"
    deletes_by_itself: ClassVar[frozenset[Storage]] = frozenset({"none"})  # retentionPolicy auto_delete

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        # While a secret is rotated the vendor signs once with each of its own: the header is a list.
        for header in (TIMESTAMP_HEADER, SIGNATURE_HEADER):
            if not request.headers.get(header.lower()):
                raise missing_header(header)
        timestamp = request.headers[TIMESTAMP_HEADER.lower()]
        signatures = _digests(request)
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

    def signature(self, request: Request) -> Signature | None:
        digests, timestamp = _digests(request), request.headers.get(TIMESTAMP_HEADER.lower(), "")
        if not digests or shapes.parse_time(timestamp) is None:
            return None
        return Signature(digests=digests, timestamp=timestamp)

    def decode(self, body: bytes) -> list[Webhook]:
        envelope = shapes.decode_routing(_envelope, body)
        event, call = envelope.event, envelope.call
        kind: EventType = tables.EVENTS.get(event or "", "call.unknown")
        if call is None or not call.call_id:
            if event is not None and kind == "call.unknown":
                return []
            raise UndecodableWebhook("the body has no call.callId" if event else "the body has no event and no callId")
        if event is not None:
            return [self._webhook(event, kind, call, body)]
        # The oldest webhooks had no `event`, and what a call's own `callbacks` post is not documented (2026-11). What
        # the call shows of itself is true whichever event was sent, and has the key of the same fact told by its name.
        shown = _shown(call)
        if not shown:
            raise UndecodableWebhook("the body has no event, and its call shows none")
        return [self._webhook(event, tables.EVENTS[event], call, body) for event in shown]

    def _webhook(self, event: str, kind: EventType, call: _Call, body: bytes) -> Webhook:
        # No event id is sent. A call's own `callbacks` may post the same event here a second time: still one fact.
        dedupe_key = f"{event}:{call.call_id}"
        record: Literal["wait", "once"] = "wait"
        if kind == "call.unknown":
            dedupe_key += f":{hashlib.sha256(body).hexdigest()[:32]}"
            record = "once"
        elif (kind == "call.billed" and call.retention_policy == tables.AUTO_DELETE) or call.deletion_time:
            record = "once"  # the vendor deletes after billing: what is gone now stays gone
        # A call counts as started when it is joined; these two events are about creating and joining it.
        happened_at = {"call.started": call.created, "call.connected": call.joined}.get(kind)
        return Webhook(
            event=event,
            type=kind,
            call_id=call.call_id,
            dedupe_key=dedupe_key,
            body=body,
            record=record,
            happened_at=shapes.timestamp(happened_at),
        )

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
        # Page after page within one fetch's time: of a long call they must not be small ones.
        params = {"mode": "in_call", "pageSize": PAGE_SIZE}
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
            params["cursor"] = cursor
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
        if not _is_over(call):
            return False
        if webhook.type == "call.ended" or call.get("billingStatus") != tables.BILLING_PENDING:
            return True
        # Then the webhook brings the bill.
        return _carried(webhook).get("billingStatus") not in (None, tables.BILLING_PENDING)

    def awaits(self, webhook: Webhook, record: Record | None) -> Collection[EventType]:
        """The bill, which every call gets, also one that costs nothing. Where nobody came it may be there already."""
        carried, recorded = _carried(webhook), shapes.mapping((record or {}).get("call"))
        joined = carried.get("joined") or recorded.get("joined")
        billed = _is_billed(carried.get("billingStatus")) or _is_billed(recorded.get("billingStatus"))
        return [] if webhook.type == "call.billed" or (billed and not joined) else ["call.billed"]

    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        """GET /api/calls, newest first, https://docs.ultravox.ai/api-reference/calls/calls-list (2026-11)."""
        rows, following = await self._page("/api/calls", {**_from(since), "sort": "-created"}, cursor)
        calls = [row for row in rows if _began(row, since)]
        # Once a whole page is too old, so is the rest: the pages before `since` need not all be asked for.
        return CallPage(calls=calls, next=following if calls or not rows else None)

    async def list_deleted(self, since: datetime, cursor: str | None = None) -> DeletedPage:
        """GET /api/deleted_calls, https://docs.ultravox.ai/api-reference/calls/calls-deleted-calls-list (2026-11).

        Its order is not documented, so all of its pages count.
        """
        rows, following = await self._page("/api/deleted_calls", _from(since), cursor)
        rows = [row for row in rows if _began(row, since)]
        return DeletedPage(call_ids=[row["callId"] for row in rows], calls=rows, next=following)

    def facts(self, record: Record) -> list[bytes]:
        record = shapes.mapping(record.get("call")) or record  # as `fetch` gives it, or as it is listed
        # The body is stored: only what `normalize` reads goes into it, for the rest may hold secrets.
        if not shapes.text(record.get("callId")) or not _is_over(record):
            return []
        events = ("call.ended", "call.billed") if _is_billed(record.get("billingStatus")) else ("call.ended",)
        kept = {key: record[key] for key in tables.KEPT if key in record} | {"medium": _addresses(record.get("medium"))}
        return [msgspec.json.encode({"event": event, "call": kept}) for event in events]

    async def delete(self, call_id: str) -> None:
        """DELETE /api/calls/{id}, https://docs.ultravox.ai/api-reference/calls/calls-delete (2026-11).

        Messages, recordings and stages go with it. What is kept, that there was such a call, is not told.
        """
        try:
            await self._ask("DELETE", f"/api/calls/{quote(call_id, safe='')}", success=(204,))
        except ProviderError as error:
            if error.status not in self.not_found:
                raise

    async def register(self, url: str, *, agents: Sequence[str] = (), dry_run: bool = False) -> list[str]:
        """One webhook for the whole account, or one for each of the agents: all events, signed with all our secrets."""
        secrets = [secret for secret in self.account.webhook_secrets if secret]
        if len(url) > MAX_URL:
            raise ProviderError(f"the URL has {len(url)} characters and Ultravox takes {MAX_URL}: use a shorter one")
        if not secrets or max(map(len, secrets)) > MAX_SECRET:
            raise ProviderError(f"webhook_secrets must hold secrets of at most {MAX_SECRET} characters to register")
        wanted = {"events": list(tables.EVENTS), "secrets": secrets}
        ours = [webhook for webhook in await self._webhooks() if webhook.get("url") == url]
        lines = []
        for agent in dict.fromkeys(agents) if agents else (None,):
            there = [webhook for webhook in ours if (webhook.get("agentId") or None) == agent]
            if not there:
                body = {"url": url, **wanted, **({} if agent is None else {"agentId": agent})}
                await self._write("POST", "/api/webhooks", body, f"the webhook for {_scope(agent)}", dry_run)
                lines.append(f"{'would create' if dry_run else 'created'} the webhook for {_scope(agent)}")
            for webhook in there:
                what = f"the webhook {webhook['webhookId']} for {_scope(agent)}"
                changes = {key: value for key, value in wanted.items() if _words(webhook.get(key)) != set(value)}
                if changes:
                    path = f"/api/webhooks/{quote(webhook['webhookId'], safe='')}"
                    await self._write("PATCH", path, changes, what, dry_run)
                    lines.append(f"{'would set' if dry_run else 'set'} {' and '.join(changes)} of {what}")
                else:
                    lines.append(f"{what} is up to date")
        return lines + [_complaint(webhook) for webhook in ours if webhook.get("status") == "unhealthy"]

    async def _webhooks(self) -> list[Record]:
        webhooks: list[Record] = []
        cursor = None
        for _ in range(MAX_PAGES):
            page, cursor = await self._page("/api/webhooks", {}, cursor, id_key="webhookId")
            webhooks += page
            if cursor is None:
                return webhooks
        raise ProviderError(f"the provider's API answered with over {MAX_PAGES} pages of webhooks")

    async def _write(self, method: str, path: str, body: Any, what: str, dry_run: bool) -> None:
        try:
            if not dry_run:
                await self._ask(method, path, body=body, success=(200, 201))
        except ProviderError as error:
            raise ProviderError(f"{what}: {error}", status=error.status, retry_after=error.retry_after) from None

    async def _page(
        self, path: str, params: dict[str, str], cursor: str | None, *, id_key: str = "callId"
    ) -> tuple[list[Record], str | None]:
        """The rows of one page of a list, all of them with their id, and the cursor of the page after it."""
        asked = {"pageSize": PAGE_SIZE, **params, **({"cursor": cursor} if cursor else {})}
        answer = shapes.mapping(await self._ask("GET", path, params=asked))
        rows, link = answer.get("results"), answer.get("next")
        if not isinstance(rows, list) or not all(shapes.text(shapes.mapping(row).get(id_key)) for row in rows):
            raise ProviderError(f"the provider's API answered {path} with something other than a list with {id_key}")
        following = _cursor(link)
        if link and following in (None, cursor):
            raise ProviderError(f"the provider's API answered {path} with a next page that cannot be asked for")
        return rows, following

    async def _ask(self, method: str, path: str, **request: Any) -> Any:
        return await request_json(
            self.http, method, f"{self.root}{path}", headers={"X-API-Key": self.account.api_key}, **request
        )

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        call = shapes.mapping(shapes.merge(_carried(webhook), shapes.mapping((record or {}).get("call"))))
        over = _is_over(call) or webhook.type in ("call.ended", "call.billed")
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
            error=reason if reason in tables.ERRORS else None,
            privacy=Privacy(storage=tables.STORAGE.get(shapes.text(call.get("retentionPolicy")) or "", "full")),
            metadata=shapes.mapping(call.get("metadata")),
        )


def _digests(request: Request) -> list[bytes]:
    entries = [entry.strip() for entry in request.headers.get(SIGNATURE_HEADER.lower(), "").split(",")]
    return [bytes.fromhex(entry) for entry in entries if re.fullmatch("[0-9a-fA-F]{64}", entry)]


def _malformed(header: str, problem: str) -> SignatureError:
    return SignatureError("malformed", f"the {header} header {problem}: not sent by Ultravox, or changed on the way")


def _shown(call: _Call) -> list[str]:
    """The vendor's words for what a call object shows of itself; empty if it shows nothing."""
    if call.ended or call.end_reason:
        return ["call.ended", "call.billed"] if _is_billed(call.billing_status) else ["call.ended"]
    return ["call.joined"] if call.joined else ["call.started"] if call.created else []


def _is_over(call: dict[str, Any]) -> bool:
    return bool(call.get("ended") or call.get("endReason"))


def _is_billed(billing_status: Any) -> bool:
    return shapes.text(billing_status) is not None and billing_status not in tables.UNBILLED


def _from(since: datetime) -> dict[str, str]:
    """The day before, which loses nothing; `_began` cuts off what is too much.

    `fromDate`, inclusive, compares with `created`. It was a date once and is a date-time that may be one (its midnight)
    now; the time zone is not told: https://docs.ultravox.ai/api-reference/calls/calls-deleted-calls-list (2026-11).
    """
    return {"fromDate": (since - timedelta(days=1)).date().isoformat()}


def _began(row: Record, since: datetime) -> bool:
    created = shapes.parse_time(row.get("created"))
    return created is None or created >= since


def _scope(agent: Any) -> str:
    return f"agent {agent}" if agent else "the whole account"


def _words(value: Any) -> set[str]:
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()


def _complaint(webhook: Record) -> str:
    failures = webhook.get("recentFailures")
    return (
        f"Ultravox calls the webhook {webhook['webhookId']} for {_scope(webhook.get('agentId'))} unhealthy: "
        f"{len(failures) if isinstance(failures, list) else 'no'} recent failures; check that its URL can be reached"
    )


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
        return "failed" if shapes.text(call.get("endReason")) in tables.FAILURES else "ended"
    return "ongoing" if call.get("joined") else "created"


def _end(call: dict[str, Any]) -> End:
    word = shapes.text(call.get("endReason"))
    sip_word = shapes.text(shapes.mapping(call.get("sipDetails")).get("terminationReason"))
    if word == "unjoined" and sip_word in tables.SIP_REASONS:
        return End(reason=tables.SIP_REASONS[sip_word], provider_reason=sip_word)
    reason, by = tables.END_REASONS.get(word or "", ("unknown", None))
    return End(reason=reason, by=by, provider_reason=word)


def _duration_ms(call: dict[str, Any]) -> int | None:
    """From joined to ended; 0 if nobody joined; None while it goes on."""
    if not call.get("ended"):
        return None
    return shapes.elapsed_ms(call["joined"], call["ended"]) if call.get("joined") else 0


def _medium(medium: Any) -> tuple[Channel, Direction | None, str | None, str | None]:
    """Channel, direction, from, to. A carrier's call that was not dialled by Ultravox does not say who called whom."""
    kind = next((kind for kind, details in shapes.mapping(medium).items() if details is not None), "")
    channel = tables.CHANNELS.get(kind, "other")
    legs = shapes.mapping(shapes.mapping(medium).get(kind))
    for key, direction in tables.DIRECTIONS.items():
        leg = legs.get(key)
        if isinstance(leg, dict):  # empty for an incoming SIP call: its numbers are not told
            return channel, direction, shapes.address(leg.get("from")), shapes.address(leg.get("to"))
    return channel, None, None, None


def _addresses(medium: Any) -> dict[str, Any]:
    """A medium with its numbers and without its passwords, for `_medium` to read."""
    return {
        kind: {
            key: {end: shapes.address(leg.get(end)) for end in ("from", "to")}
            for key, leg in shapes.mapping(details).items()
            if key in tables.DIRECTIONS and isinstance(leg, dict)
        }
        for kind, details in shapes.mapping(medium).items()
        if details is not None
    }


def _transcript(record: Record | None) -> list[Turn] | None:
    """A turn for each message, and one for each tool invocation: its call and its result, joined by invocationId."""
    if record is None or not isinstance(record.get("messages"), list):
        return None
    messages = shapes.items(record["messages"])
    calls = {_invocation(message) for message in messages if message.get("role") == tables.TOOL_CALL}
    results = {_invocation(message): message for message in messages if message.get("role") == tables.TOOL_RESULT}
    turns = []
    for message in messages:
        role, invocation = shapes.text(message.get("role")), _invocation(message)
        if role == tables.TOOL_CALL:
            turns.append(_tool_turn(message, results.get(invocation) if invocation else None))
        elif role != tables.TOOL_RESULT:
            start_ms, end_ms = _span_ms(message)
            text = shapes.text(message.get("text"))
            turns.append(Turn(role=tables.ROLES.get(role or "", "system"), text=text, start_ms=start_ms, end_ms=end_ms))
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
