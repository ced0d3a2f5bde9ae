"""Cartesia's voice agents: https://docs.cartesia.ai/agents/webhooks (2026-11).

Nothing signs the body: the only proof is a fixed secret in a header, so an event counts once the record confirms it.
Timeouts, retries and order of webhooks are not documented; a webhook that got lost is found by reconciling.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from aftercall.call import Agent, Analysis, Call, Channel, End, Privacy, Role, Status, Tool, Turn
from aftercall.errors import ProviderError, RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.event import EventType
from aftercall.providers import cartesia_tables as tables
from aftercall.providers import shapes
from aftercall.providers.base import CallPage, Provider, Record, Request, Webhook
from aftercall.providers.http import get_json, request_json
from aftercall.signing import matches_any, missing_header

API_VERSION = "2026-03-01"  # errors are JSON and `status` has its present words from this version on


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


class _Place(msgspec.Struct):
    """Where a walk through the calls is: the agents to come, the present one first, and the last call seen of it."""

    agents: list[str]
    after: str | None = None


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
        """One fact a body. What reconciling makes of a record (`facts`) gets the same dedupe key."""
        try:
            envelope = shapes.decode_routing(_envelopes, body)
            kind = tables.EVENTS.get(envelope.type)
            event_type, record, apart = kind or tables.UNKNOWN
            digest = _told_apart(envelope, body, apart)
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
                # Completed or failed, a call ends once; of one that is found cancelled, nobody knows what was sent.
                dedupe_key=f"{'call_ended' if event_type == 'call.ended' else envelope.type}:{call_id}{digest}",
                body=body,
                record=record,
                # Start and end have their times in the call; the envelope's is when it was sent, a moment later.
                happened_at=None if apart == "call" else shapes.timestamp(envelope.timestamp),
            )
        ]

    async def fetch(self, call_id: str) -> Record:
        """One GET. https://docs.cartesia.ai/api-reference/agents/calls/get-call (2026-11)"""
        record = await get_json(self.http, f"{self.root}/{_call_path(call_id)}", headers=self._headers())
        # The record is what makes an event believed, so anything that is no call confirms nothing.
        if not isinstance(record, dict) or not shapes.text(record.get("id")):
            raise RecordNotReady("the provider's API answered with something other than a call")
        return record

    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        """Ended calls must look ended. An analysis never waits: the webhook itself carries the summary."""
        if webhook.event not in tables.ENDED:
            return True
        return _is_over(record)

    def awaits(self, webhook: Webhook, record: Record | None) -> Collection[EventType]:
        """The analysis, if there was something to analyse: no dial that was not answered gets one, as far as is known.

        Under zero retention the record never shows what was said, so the analysis may still come.
        """
        call = _known(webhook, record)
        done = webhook.type == "call.analyzed" or self.is_deleted(call) or _status(webhook.event, call) == "failed"
        silent = record is not None and not shapes.items(call.get("transcript")) and call.get("zdr_enabled") is not True
        awaited: tuple[EventType, ...] = ("call.analyzed",)
        return () if done or silent else awaited

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        call = _known(webhook, record)
        status = _status(webhook.event, call)
        start, end, redacted = call.get("start_time"), call.get("end_time"), shapes.timestamp(call.get("redacted_at"))
        # Only these few keys: its `headers` and `parameters` may hold SIP credentials.
        telephony = shapes.mapping(call.get("telephony_params"))
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
            direction=_word(tables.DIRECTIONS, telephony.get("direction"), None),
            # As given. The vendor's SDK calls `to` the caller's number and `from` the agent's, which looks swapped; no
            # inbound call was there to settle it (2026-11).
            from_=shapes.address(telephony.get("from")),
            to=shapes.address(telephony.get("to")),
            end=_end(call) if status in ("ended", "failed") else None,
            started_at=shapes.timestamp(start),
            ended_at=shapes.timestamp(end),
            duration_ms=shapes.elapsed_ms(start, end),
            transcript=_transcript(call.get("transcript")),
            analysis=_analysis(call),
            error=shapes.text(call.get("error_message")),
            privacy=Privacy(storage="none" if call.get("zdr_enabled") is True else "full", redacted_at=redacted),
            metadata=shapes.mapping(call.get("metadata")),
        )

    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        """A page of one agent's calls: the API lists no others, and sorts them by their start, newest first.

        It filters by no time, so an agent is walked through until a call began before `since`. The cursor holds what
        is left to walk through. https://docs.cartesia.ai/api-reference/agents/calls/list-calls (2026-11)
        """
        place = await self._beginning(since) if cursor is None else msgspec.json.decode(cursor, type=_Place)
        if not place.agents:
            return CallPage(calls=[])
        agent_id, *others = place.agents
        try:
            rows, after = await self._page("agents/calls", place.after, agent_id=agent_id, limit="100")
        except ProviderError as error:
            if error.status != 404:
                raise
            rows, after = [], None  # the agent was deleted meanwhile
        recent = [row for row in rows if not _is_before(row.get("start_time"), since)]
        ahead = _Place([agent_id, *others], after) if after and len(recent) == len(rows) else _Place(others)
        return CallPage(calls=recent, next=msgspec.json.encode(ahead).decode() if ahead.agents else None)

    def facts(self, record: Record) -> list[bytes]:
        """The end, and the analysis once there is a summary. A redacted call tells nothing any more."""
        call_id = shapes.text(record.get("id"))
        if not call_id or not _is_over(record) or self.is_deleted(record):
            return []
        end = "call_failed" if record.get("status") == "failed" else "call_completed"
        about = {"agent_id": record.get("agent_id"), "call_id": call_id}
        bodies = [{"type": end, **about, "call": record}]
        if summary := shapes.text(record.get("summary")):
            bodies.append({"type": "post_call_analysis", **about, "analysis": {"summary": summary}})
        return [msgspec.json.encode(body) for body in bodies]

    def is_deleted(self, record: Record) -> bool:
        """https://docs.cartesia.ai/api-reference/agents/calls/delete-call (2026-11): the rest of the record stays."""
        return bool(record.get("redacted_at"))

    async def delete(self, call_id: str) -> Record | None:
        """Have the call's sensitive data deleted; what Cartesia keeps of it is returned."""
        try:
            record = await self._ask("DELETE", _call_path(call_id))
        except ProviderError as error:
            if error.status in self.not_found:
                return None
            if error.status in (400, 409, 422):  # which one it is, the documentation does not say
                raise ProviderError(
                    f"{error}: Cartesia deletes only calls that are over", status=error.status
                ) from None
            raise
        if not isinstance(record, dict) or not self.is_deleted(record):
            raise ProviderError("the provider's API did not confirm that the call was deleted: ask for it again")
        return record

    async def register(self, url: str, *, agents: Sequence[str] = (), dry_run: bool = False) -> list[str]:
        """Make or update the webhook with this URL and attach it to the agents; an agent has one webhook at a time.

        Its secret becomes the first of the account's `webhook_secrets`. https://docs.cartesia.ai/agents/webhooks
        (2026-11)
        """
        if urlsplit(url).scheme != "https":
            raise ProviderError("Cartesia sends webhooks to https:// URLs only: give the service's public one")
        secret = next(filter(None, self.account.webhook_secrets), None)
        if secret is None:
            raise ProviderError(f"the account {self.account.name} has no webhook_secrets, and needs one to register")
        wanted = await self._wanted(agents)
        there = [hook for hook in await self._all("agents/webhooks", limit="100") if hook.get("url") == url]
        found = shapes.text(there[0].get("id")) if there else None
        webhook_id = found if dry_run else await self._put_webhook(found, {"url": url, "secret": secret})
        would = "would be " if dry_run else ""
        lines = [f"webhook {webhook_id or 'to this URL'}: {would}{'updated' if found else 'created'}"]
        for agent_id, former in wanted.items():
            if former and former == webhook_id:
                lines.append(f"agent {agent_id}: attached already")
                continue
            if not dry_run:
                await self._attach(agent_id, {"webhook_id": webhook_id})
            lines.append(f"agent {agent_id}: {would}attached{f', in place of {former}' if former else ''}")
        return lines

    async def _wanted(self, agents: Sequence[str]) -> dict[str, str | None]:
        """The agents to attach, and the webhook that each has."""
        there = {agent_id: agent for agent_id, agent in (await self._agents()).items() if not agent.get("deleted_at")}
        if unknown := [agent_id for agent_id in agents if agent_id not in there]:
            raise ProviderError(f"Cartesia lists no agent {', '.join(unknown)} to this account's key: check the ids")
        return {agent_id: shapes.text(there[agent_id].get("webhook_id")) for agent_id in agents or there}

    async def _put_webhook(self, webhook_id: str | None, content: Record) -> str:
        """Its secret cannot be read, so it is always set. The answer to an update is the bare id."""
        if webhook_id:
            await self._ask("PATCH", f"agents/webhooks/{quote(webhook_id, safe='')}", body=content)
            return webhook_id
        made = await self._ask("POST", "agents/webhooks", body={**content, "display_name": "aftercall"})
        made_id = shapes.text(shapes.mapping(made).get("id"))
        if made_id is None:
            raise ProviderError("the provider's API made a webhook without saying its id: register again")
        return made_id

    async def _attach(self, agent_id: str, content: Record) -> None:
        try:
            try:
                await self._ask("PATCH", f"agents/{quote(agent_id, safe='')}", body=content)
            except ProviderError as error:
                if error.status != 404:
                    raise
                await self._ask("PATCH", f"v1/agents/{quote(agent_id, safe='')}", body=content)
        except ProviderError as error:
            message = f"the webhook is there, but could not be attached to agent {agent_id}: {error}; register again"
            raise ProviderError(message, status=error.status, retry_after=error.retry_after) from None

    async def _beginning(self, since: datetime) -> _Place:
        """All agents that can have had a call since then, also those that were deleted in the meantime."""
        there = await self._agents()
        return _Place([each for each, agent in there.items() if not _is_before(agent.get("deleted_at"), since)])

    async def _agents(self) -> dict[str, Record]:
        """By their ids. There are two lists, and nothing says whether one has the agents of the other.

        https://docs.cartesia.ai/api-reference/agents/agents/list and the newer …/agents/list (2026-11).
        """
        found: dict[str, Record] = {}
        refused: list[ProviderError] = []
        for path, params in (("agents", {}), ("v1/agents", {"limit": "100"})):
            try:
                rows = await self._all(path, **params)
            except ProviderError as error:
                if error.status is None or error.status == 429 or error.status >= 500:
                    raise
                refused.append(error)  # not every account and version has both
            else:
                found |= {key: row for row in rows if (key := shapes.text(row.get("id"))) and key not in found}
        if len(refused) == 2:
            raise refused[0]
        return found

    async def _all(self, path: str, **params: str) -> list[Record]:
        rows, after = await self._page(path, None, **params)
        while after:
            more, after = await self._page(path, after, **params)
            rows += more
        return rows

    async def _page(self, path: str, after: str | None, **params: str) -> tuple[list[Record], str | None]:
        """A page of any list, and the id that the next one starts after, as the vendor's SDK takes it: the last."""
        answer = await self._ask("GET", path, params={**params, "starting_after": after} if after else params)
        fields = {"data": answer} if isinstance(answer, list) else shapes.mapping(answer)
        rows = next((fields[name] for name in tables.LISTS if isinstance(fields.get(name), list)), None)
        if rows is None:
            raise ProviderError("the provider's API answered with something other than a list")
        found, said = shapes.items(rows), shapes.flag(fields.get("has_more"))
        if not found or not (fields.get("next_page") if said is None else said):
            return found, None
        last = shapes.text(found[-1].get("id")) or shapes.text(fields.get("next_page"))
        return found, last if last != after else None

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        return await request_json(self.http, method, f"{self.root}/{path}", headers=self._headers(), **options)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.account.api_key}", "cartesia-version": API_VERSION}


def _call_path(call_id: str) -> str:
    return f"agents/calls/{quote(call_id, safe='')}"


def _is_before(value: Any, since: datetime) -> bool:
    moment = shapes.parse_time(value)
    return moment is not None and moment < since


def _told_apart(envelope: _Envelope, body: bytes, apart: tables.Apart) -> str:
    """What a dedupe key ends in: nothing where a call has one such fact, else a digest of what makes it another.

    Of an analysis that is the summary alone, since the record will not show more of it.
    """
    if apart == "call":
        return ""
    told = shapes.decode_json(body if apart == "body" else bytes(envelope.analysis))
    if apart == "analysis":
        told = shapes.text(shapes.mapping(told).get("summary")) or told
    # Equal for equal JSON, however it is spaced or ordered.
    return f":{hashlib.sha256(msgspec.json.encode(told, order='sorted')).hexdigest()[:32]}"


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
        "analysis": envelope.get("analysis"),
        "transcript": [envelope["turn"]] if "turn" in envelope else envelope.get("body"),  # `body` in 2025
    }
    call: dict[str, Any] = shapes.merge(beside, shapes.mapping(envelope.get("call")))
    return call


def _known(webhook: Webhook, record: Record | None) -> Record:
    """Webhook and record together. What was deleted at Cartesia does not come back by a webhook from before."""
    found = shapes.mapping(record)
    known: Record = found if found.get("redacted_at") else shapes.merge(_carried(webhook), found)
    return known


def _is_over(call: Mapping[str, Any]) -> bool:
    return call.get("status") in tables.OVER or bool(call.get("end_time") or call.get("end_reason"))


def _status(event: str, call: Mapping[str, Any]) -> Status:
    if event in tables.ENDED and call.get("status") not in tables.OVER:
        return tables.ENDED[event]
    least = "ended" if _is_over(call) else tables.AT_LEAST.get(event, "created")
    said = _word(tables.STATUSES, call.get("status"), "created")
    return max(said, least, key=lambda status: tables.PROGRESS[status])


def _analysis(call: Mapping[str, Any]) -> Analysis | None:
    """The documentation knows the summary alone (2026-11), and what it does not know of does not leave."""
    summary = shapes.text(call.get("summary"))
    return Analysis(summary=summary) if summary else None


def _end(call: Mapping[str, Any]) -> End:
    cancelled = "cancelled" if call.get("status") == "cancelled" else None
    word = shapes.text(call.get("end_reason")) or cancelled
    reason, by = _word(tables.ENDS, word, ("unknown", None))
    return End(reason=reason, by=by, provider_reason=word)


def _channel(call: Mapping[str, Any]) -> Channel:
    if "id" not in call:
        return "other"  # only an envelope: nothing says how the caller came
    if not shapes.mapping(call.get("telephony_params")):
        return "web"
    return _word(tables.CHANNELS, call.get("telephony_account_type"), "phone")


def _transcript(rows: Any) -> list[Turn] | None:
    return [turn for row in shapes.items(rows) for turn in _turns(row)] if isinstance(rows, list) else None


def _turns(row: Mapping[str, Any]) -> Iterator[Turn]:
    """The turn, if anything was said or logged, then each tool that the agent called in it."""
    role: Role = _word(tables.ROLES, row.get("role"), "system")
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
    measured = {ours: shapes.milliseconds(row.get(key), per_unit=per_unit) for key, ours, per_unit in tables.LATENCIES}
    return {name: ms for name, ms in measured.items() if ms is not None} or None


def _text(row: Mapping[str, Any]) -> str | None:
    """What was said; of a log row its name alone, since its value and metadata are the agent author's own data."""
    chunks = [shapes.text(chunk.get("text")) or "" for chunk in shapes.items(row.get("text_chunks"))]
    logged = shapes.mapping(row.get("log_event")).get("event") or shapes.mapping(row.get("log_metric")).get("name")
    return shapes.text(row.get("text")) or "".join(chunks) or shapes.text(logged)


def _interrupted(row: Mapping[str, Any]) -> bool | None:
    """`was_interrupted` is in webhooks of 2026, `end_reason` in records; either may tell."""
    said = (shapes.flag(row.get("was_interrupted")), _word(tables.INTERRUPTED, row.get("end_reason"), None))
    return True if True in said else False if False in said else None


def _result(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()
