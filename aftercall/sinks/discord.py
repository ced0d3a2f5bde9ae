"""Discord: a message in one channel for every event, through a webhook.

Delivered means that Discord answered with the message's id, which is the receipt; `wait=true` asks for it. By a note of
that id an event that comes again is known, unless the answer was lost, and the messages of an erased call are deleted.
https://discord.com/developers/docs/resources/webhook#execute-webhook (2026-11). Some thirty messages a minute.
"""

import re
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Analysis, Call
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Secret, Sink
from aftercall.sinks.http import Answer, request
from aftercall.sinks.notes import note, notes_of, written
from aftercall.sinks.text import (
    LINES,
    VALUE,
    MessageConfig,
    clip,
    excerpt,
    facts,
    is_web,
    message_of,
    moment,
    source,
    title,
    width,
    worded,
)

# https://discord.com/developers/docs/resources/message#embed-object-embed-limits (2026-11).
# Altogether an embed may have 6,000 characters; beside the description there are never more than 1,900 here.
CONTENT, TITLE, DESCRIPTION = 2000, 256, 4096
SUMMARY, LINK = 1500, 600  # our own
# Every punctuation may be escaped; these make text bold, a list, a heading, a link or a mention:
# https://support.discord.com/hc/en-us/articles/210298617 (2026-11).
ESCAPES = {character: f"\\{character}" for character in "\\`*_~|<>[]()#-"}
_ESCAPED = str.maketrans(ESCAPES)
_LINK_ESCAPES = str.maketrans({character: f"%{ord(character):02X}" for character in "<>()[]\\|*_~`"})

WEBHOOK = re.compile(r"(https?://[^\s/?#]+(?:/[^\s?#]*)?/api)(?:/v\d+)?(/webhooks/\d+/[\w-]+)/?(?:\?([^\s#]*))?", re.I)
# Without a version the path leads to v6, whose `Retry-After` is in milliseconds:
# https://discord.com/developers/docs/reference#api-versioning (2026-11).
VERSION = "/v10"
HEADERS = {
    "content-type": "application/json",
    # https://discord.com/developers/docs/reference#user-agent (2026-11): others may be blocked
    "user-agent": "DiscordBot (https://github.com/aftercall/aftercall, 1)",
}
# The webhook was deleted, or has another token: "you should not attempt to use it again",
# https://discord.com/developers/docs/topics/rate-limits#invalid-request-limit-aka-cloudflare-bans (2026-11).
GONE = frozenset({401, 404})
UNKNOWN_MESSAGE = 10008  # https://discord.com/developers/docs/topics/opcodes-and-status-codes#json (2026-11)


class Discord(Sink):
    events = ("call.settled",)

    class Config(MessageConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the webhook's URL, which belongs to one channel")]

        def __post_init__(self) -> None:
            if not WEBHOOK.fullmatch(self.url):
                raise ValueError(
                    "url must be the whole address that Discord copies: https://discord.com/api/webhooks/…"
                )
            super().__post_init__()

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._template = message_of(config, escape)
        found = WEBHOOK.fullmatch(config.url)
        api, webhook, query = found.groups() if found else ("", "", "")
        self._webhook = f"{api}{VERSION}{webhook}"
        self._query = query or ""  # `thread_id`, for a thread of the channel

    async def deliver(self, delivery: Delivery) -> str:
        if before := await written(self.memory, delivery.event):
            return before
        body = msgspec.json.encode(self.render(delivery))
        answer = await self._request("POST", "", body, "wait=true")
        id_ = _decoded(answer).get("id")
        if not (isinstance(id_, str) and id_.isdecimal()):
            raise SinkError("the answer is not Discord's; check that url is a webhook's", permanent=True)
        await note(self.memory, delivery.event, id_)
        return id_

    def render(self, delivery: Delivery) -> dict[str, Any]:
        quiet: dict[str, Any] = {"allowed_mentions": {"parse": []}}  # whatever is said, nobody is called
        if self._template is None:
            return {"embeds": [_embed(delivery.event)], **quiet}
        return {"content": clip(worded(self._template, delivery.event, escape), CONTENT), **quiet}

    async def erase(self, call: Call) -> None:
        async for id_ in notes_of(self.memory, call):
            await self._request("DELETE", f"/messages/{id_}")

    async def _request(self, method: str, path: str, body: bytes = b"", query: str = "") -> Answer:
        url = f"{self._webhook}{path}?{'&'.join(filter(None, (self._query, query)))}"
        answer = await request(self.http, method, url, body, HEADERS, accept=GONE)
        no_message = method == "DELETE" and _decoded(answer).get("code") == UNKNOWN_MESSAGE
        if answer.status in GONE and not no_message:
            raise SinkError(f"{answer}: there is no such webhook any more", permanent=True, gone=True)
        return answer


def escape(text: str) -> str:
    return text.translate(_ESCAPED)


def _embed(event: CallEvent) -> dict[str, Any]:
    """What is known, and of what was said as much as there is room for."""
    call, at = event.data.call, moment(event)
    known = {label: clip(fact, VALUE, ESCAPES) for label, fact in facts(call).items()}
    embed: dict[str, Any] = {
        "title": clip(title(event), TITLE, ESCAPES),
        "fields": [{"name": label, "value": fact, "inline": True} for label, fact in known.items() if fact],
        "footer": {"text": " · ".join(clip(text, VALUE) for text in source(event))},  # is not read as markup
    }
    if at is not None:
        embed["timestamp"] = at.isoformat()
    summary = clip((call.analysis or Analysis()).summary, SUMMARY, ESCAPES)
    links = (_link(call.recording.url if call.recording else None, "Recording"), _link(call.log_url, "Log"))
    text = "\n\n".join(filter(None, (summary, " · ".join(filter(None, links)))))
    for lines in range(LINES, 0, -1):  # the last words are the ones to keep
        said = clip(excerpt(call.transcript, lines=lines), DESCRIPTION, ESCAPES)
        if width(text) + 2 + width(said) <= DESCRIPTION:
            text = "\n\n".join(filter(None, (text, said)))
            break
    return {**embed, "description": text} if text else embed


def _link(url: str | None, label: str) -> str:
    """A link, or nothing: a URL of another scheme, or too long to be shown whole, is no use."""
    link = f"[{label}]({url.translate(_LINK_ESCAPES)})" if url and is_web(url) else ""
    return link if width(link) <= LINK else ""


def _decoded(answer: Answer) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return body if isinstance(body, dict) else {}
