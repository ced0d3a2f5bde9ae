"""Slack, as a bot: one message a call, which later events of the call change, or are replies to in its thread.

Delivered means that Slack answered `"ok": true`; the receipt is the message's `ts`. Where a call's messages stand is
noted: by that an event that comes again is known, unless the answer was lost, and the messages of an erased call are
deleted. Of two events of a call at once one waits, so that there is one first message. The app needs the scope
`chat:write` and must be in the channel; a channel takes about a message a second:
https://docs.slack.dev/apis/web-api/rate-limits (2026-11).
"""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, url_scheme
from aftercall.sinks.http import request
from aftercall.sinks.notes import CLAIM_S, call_key, note, notes_of, written
from aftercall.sinks.slack_blocks import escape, message
from aftercall.sinks.slack_bot_errors import UNCHANGEABLE, refusal
from aftercall.sinks.text import MessageConfig, message_of

POSTED = re.compile(r"[A-Z0-9]+ \d+\.\d+")  # a channel's id, which alone chat.update takes, and a message's ts
ANSWER = 1024 * 1024  # of an answer, which repeats the message, with six characters for each that is not ASCII
NOT_SLACK = "the answer is not Slack's; check that base_url leads to its Web API"


class SlackBot(Sink):
    events = ("call.ended", "call.settled")  # at once that there was a call, and then all that is known of it

    class Config(MessageConfig, frozen=True):
        token: Annotated[Secret, Meta(description="the bot token, xoxb-…")]
        channel: Annotated[str, Meta(min_length=1, description="the channel's id (C0123456789) or name")]
        later_events: Annotated[
            Literal["update", "thread"],
            Meta(description="what a call's later events do: update its message, or reply in its thread"),
        ] = "thread"
        base_url: Annotated[str, Meta(description="Slack's Web API, for a proxy")] = "https://slack.com/api"

        def __post_init__(self) -> None:
            if url_scheme(self.base_url) not in ("http", "https"):
                raise ValueError("base_url: expected http:// or https:// and a host")
            if not (self.token.isascii() and self.token.isprintable()):
                raise ValueError("token: expected xoxb- and letters, digits and dashes")
            super().__post_init__()

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._channel, self._updates = config.channel, config.later_events == "update"
        self._base_url, self._template = config.base_url.rstrip("/"), message_of(config, escape)
        self._headers = {
            "authorization": f"Bearer {config.token}",
            "content-type": "application/json; charset=utf-8",
        }

    async def deliver(self, delivery: Delivery) -> str:
        if before := await written(self.memory, delivery.event):
            return before.partition(" ")[2]
        key = call_key(delivery.event.data.call)
        if not self._updates and await self.memory.get(f"{key}:first"):
            return await self._write(delivery, key)
        claim = f"{key}:claim"
        if not await self.memory.add(claim, delivery.event.id, for_s=CLAIM_S):
            # An attempt with this very event that was cut off does not stand in its own way.
            if await self.memory.get(claim) != delivery.event.id:
                raise SinkError("another event of the call is on its way to Slack", retry_after=1)
            await self.memory.set(claim, delivery.event.id, for_s=CLAIM_S)
        try:
            ts = await self._write(delivery, key)
        except SinkError:
            await self.memory.delete(claim)
            raise
        await self.memory.delete(claim)
        return ts

    def render(self, delivery: Delivery) -> dict[str, Any]:
        return {"channel": self._channel, **message(delivery.event, self._template)}

    async def erase(self, call: Call) -> None:
        async for where in notes_of(self.memory, call):
            channel, ts = where.split(" ")
            await self._ask("chat.delete", {"channel": channel, "ts": ts}, fine={"message_not_found"})
        await self.memory.delete(f"{call_key(call)}:first")

    async def _write(self, delivery: Delivery, key: str) -> str:
        """Post the call's first message, reply to it or update it; the `ts` of what was written."""
        event, message = delivery.event, self.render(delivery)
        channel, ts, told = (await self.memory.get(f"{key}:first") or "  0").split(" ")
        if ts and not self._updates:
            where = await self._post({**message, "channel": channel, "thread_ts": ts})
        elif event.data.sequence < int(told):
            where = f"{channel} {ts}"  # it tells of a later event already
        else:
            where = (ts and await self._update(message, channel, ts)) or await self._post(message)
            await self.memory.set(f"{key}:first", f"{where} {event.data.sequence}")
        await note(self.memory, event, where)
        return where.partition(" ")[2]

    async def _post(self, message: dict[str, Any]) -> str:
        answer = await self._ask("chat.postMessage", message)
        where = f"{answer.get('channel')} {answer.get('ts')}"
        if not POSTED.fullmatch(where):
            raise SinkError(NOT_SLACK, permanent=True)
        return where

    async def _update(self, message: dict[str, Any], channel: str, ts: str) -> str:
        """Where it was updated, or nothing if Slack does not let that message be changed any more."""
        changed = {"channel": channel, "ts": ts, "text": message["text"], "blocks": message["blocks"]}
        answer = await self._ask("chat.update", changed, fine=UNCHANGEABLE)
        return f"{channel} {ts}" if answer["ok"] else ""

    async def _ask(self, method: str, arguments: dict[str, Any], *, fine: Collection[str] = ()) -> dict[str, Any]:
        """Slack's answer, if it did that, or refused with one of the `fine` words."""
        url, body = f"{self._base_url}/{method}", msgspec.json.encode(arguments)
        answer = await request(self.http, "POST", url, body, self._headers, limit=ANSWER)
        try:
            decoded = msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            decoded = None
        if not isinstance(decoded, dict) or not isinstance(decoded.get("ok"), bool):
            raise SinkError(NOT_SLACK, permanent=True)
        if not decoded["ok"] and decoded.get("error") not in fine:
            raise refusal(decoded.get("error"))
        return decoded
