"""Microsoft Teams: a card in a channel or chat for every event, through a webhook of the Workflows app.

Delivered means that the flow accepted the card (HTTP 202): Teams shows it later, and does not say if it cannot. There
is no id, so a card can neither be changed nor recognised: an attempt repeated after a lost answer shows twice.
https://support.microsoft.com/office/8ae491c7-0394-4861-ba59-055e33f75498 (2026-11). About four requests a second.
"""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Analysis
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Secret, Sink, url_scheme
from aftercall.sinks.http import request
from aftercall.sinks.text import (
    LINES,
    VALUE,
    MessageConfig,
    clip,
    excerpt,
    facts,
    is_web,
    message_of,
    source,
    title,
    worded,
)

# The message may have 28,672 bytes, and the card stands in it as a JSON string, so that every quote is escaped again:
# a body of 24,453 bytes counted as 28,897, https://github.com/MicrosoftDocs/msteams-docs/issues/11274 (2026-11). The
# flow answers 202 first and fails then, so there is much room left for what it adds.
SIZE = 24_000
SUMMARY, URL, TEMPLATE = 4000, 2000, 20_000  # our own
NO_FLOW = 404  # it was deleted
RETIRED = ".webhook.office.com"  # Office 365 connectors, which Microsoft switched off in May 2026

# A TextBlock reads bold, italic, lists and links; a RichTextBlock no Markdown, so what was said stands in those:
# https://learn.microsoft.com/adaptive-cards/authoring-cards/text-features (2026-11).
MARKUP = re.compile(r"(?m:^)[ \t]*(?:[-+]|\d+[.)])(?=\s)|[\\*_\[\]`~]")


class Teams(Sink):
    events = ("call.settled",)

    class Config(MessageConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the URL of a flow that begins with a Teams webhook request")]

        def __post_init__(self) -> None:
            if url_scheme(self.url) not in ("http", "https"):
                raise ValueError("url must be the whole https:// address that the Workflows app shows")
            if (urlsplit(self.url).hostname or "").endswith(RETIRED):
                raise ValueError("url is an Office 365 connector's, which Microsoft retired; make a flow in Workflows")
            super().__post_init__()

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._url, self._template = config.url, message_of(config, escape)

    async def deliver(self, delivery: Delivery) -> str:
        body, headers = msgspec.json.encode(self.render(delivery)), {"content-type": "application/json"}
        answer = await request(self.http, "POST", self._url, body, headers, accept={NO_FLOW})
        if answer.status == NO_FLOW:
            raise SinkError(f"{answer}: there is no such flow any more", permanent=True, gone=True)
        return str(answer)

    def render(self, delivery: Delivery) -> dict[str, Any]:
        if self._template is None:
            return _card(delivery.event)
        return _worded(worded(self._template, delivery.event, escape))


def escape(text: str) -> str:
    return MARKUP.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", text)


def _card(event: CallEvent) -> dict[str, Any]:
    """What is known, and of what was said as much as there is room for."""
    call = event.data.call
    known = {label: clip(fact, VALUE) for label, fact in facts(call).items()}
    told = [_line({"text": f"{label}: ", "weight": "Bolder"}, {"text": fact}) for label, fact in known.items() if fact]
    heading = _line({"text": clip(title(event), VALUE), "weight": "Bolder", "size": "Medium"})
    small = _line({"text": " · ".join(clip(text, VALUE) for text in [*source(event), event.time]), "isSubtle": True})
    summary = " ".join(((call.analysis or Analysis()).summary or "").split())
    links = [*_link(call.recording.url if call.recording else None, "Recording"), *_link(call.log_url, "Log")]
    room: tuple[tuple[int, int, list[dict[str, Any]]], ...] = (
        (LINES, SUMMARY, links),
        (LINES // 2, SUMMARY, links),
        (0, SUMMARY, links),
        (0, SUMMARY // 4, []),
    )
    for lines, characters, actions in room:
        said = [clip(summary, characters), *excerpt(call.transcript, lines=lines).splitlines()]
        message = _message([heading, *told, *(_line({"text": text}) for text in said if text), small], actions)
        if _fits(message):
            break
    return message


def _worded(text: str) -> dict[str, Any]:
    """The user's wording. A line is a block: clients do not agree on line breaks within one."""
    characters = TEMPLATE
    while True:
        lines = [line for line in clip(text, characters).splitlines() if line.strip()]
        message = _message([{"type": "TextBlock", "text": line, "wrap": True} for line in lines], [])
        if _fits(message):
            return message
        characters = characters * 3 // 4


def _message(body: list[dict[str, Any]], actions: list[dict[str, Any]]) -> dict[str, Any]:
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
        **({"actions": actions} if actions else {}),
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _line(*runs: dict[str, Any]) -> dict[str, Any]:
    return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", **run} for run in runs]}


def _link(url: str | None, label: str) -> list[dict[str, Any]]:
    """A button, or nothing: a URL of another scheme, or a very long one, is no use."""
    return [{"type": "Action.OpenUrl", "title": label, "url": url}] if url and is_web(url) and len(url) <= URL else []


def _fits(message: dict[str, Any]) -> bool:
    return len(msgspec.json.encode(msgspec.json.encode(message).decode())) <= SIZE
