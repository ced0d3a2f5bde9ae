"""A message about a call in Slack's Block Kit, for `slack` and `slack_bot`: within its limits, whatever is in it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from aftercall.call import Analysis
from aftercall.event import CallEvent
from aftercall.sinks.text import VALUE, clip, excerpt, facts, is_web, moment, source, title, width, worded
from aftercall.templates import Template

# https://docs.slack.dev/reference/block-kit/blocks/section-block and …/header-block (2026-11).
HEADER, SECTION, FIELD = 150, 3000, 2000
# All blocks together, as JSON. Documented nowhere; `msg_blocks_too_long` comes at about 13,200, sometimes sooner:
# https://github.com/slackapi/bolt-js/issues/2509 and /2867 (2026-11).
BLOCKS = 12_000

# The only three to escape: https://docs.slack.dev/messaging/formatting-message-text#escaping (2026-11).
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ESCAPED = str.maketrans(ESCAPES)
_LINK_ESCAPES = str.maketrans({"&": "&amp;", "<": "%3C", ">": "%3E", "|": "%7C"})  # `|` would end the address
_UNCUT = re.compile(r"<[^<>]{0,2000}>|&(?:amp|lt|gt);|.", re.DOTALL)  # a link or a mention of the template's is whole


def message(event: CallEvent, template: Template | None) -> dict[str, Any]:
    """The message for an event: the user's wording, or our own, from which what is not known is left out."""
    said = None if template is None else worded(template, event, escape)
    summary = (event.data.call.analysis or Analysis()).summary
    # `text` is what a notification shows.
    text = clip(f"{title(event)}\n{summary or ''}", SECTION, ESCAPES) if said is None else next(_cut(said))
    blocks = _blocks(event) if said is None else _sections(said)
    return {"text": text, "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def escape(text: str) -> str:
    return text.translate(_ESCAPED)


def _blocks(event: CallEvent) -> list[dict[str, Any]]:
    call = event.data.call
    known = {label: clip(fact, VALUE, ESCAPES) for label, fact in facts(call).items()}
    recording = _link(call.recording.url if call.recording else None, "Recording")
    small = [*(clip(text, VALUE, ESCAPES) for text in source(event)), _when(event)]

    header = {"type": "header", "text": _plain(clip(title(event), HEADER))}
    told = _fields(f"*{label}*\n{fact}" for label, fact in known.items() if fact)
    summary = _section(_mrkdwn(clip((call.analysis or Analysis()).summary, SECTION, ESCAPES)))
    links = _fields(link for link in (recording, _link(call.log_url, "Log")) if link)
    spoken = _section(_plain(excerpt(call.transcript)))
    context = {"type": "context", "elements": [_mrkdwn(text) for text in small if text]}
    blocks = [header, *told, *summary, *links, *spoken, context]
    for block in (*spoken, *links, *summary):  # the least missed first
        if _too_long(blocks):
            blocks.remove(block)
    return blocks


def _sections(text: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for piece in _cut(text):
        if _too_long([*blocks, *(more := _section(_mrkdwn(piece)))]):
            blocks += [{"type": "context", "elements": [_plain("… the message is longer than Slack takes")]}]
            break
        blocks += more
    return blocks


def _cut(text: str) -> Iterator[str]:
    """The text in pieces that a section may hold: whole lines where they fit, and never a part of an entity."""
    pieces: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for part in [line] if width(line) <= SECTION else _UNCUT.findall(line):
            if size + width(part) > SECTION:
                yield from filter(None, ["".join(pieces).strip()])
                pieces, size = [], 0
            pieces.append(part)
            size += width(part)
    yield from filter(None, ["".join(pieces).strip()])


def _when(event: CallEvent) -> str:
    """In the reader's own time zone; https://docs.slack.dev/messaging/formatting-message-text#date-formatting."""
    at, written = moment(event), clip(event.time, VALUE, ESCAPES)
    return f"<!date^{int(at.timestamp())}^{{date_short_pretty}} {{time}}|{written}>" if at else written


def _link(url: str | None, label: str) -> str:
    """A link, or nothing: a URL of another scheme, or too long to be shown whole, is no use."""
    link = f"<{url.translate(_LINK_ESCAPES)}|{label}>" if url and is_web(url) else ""
    return link if width(link) <= FIELD else ""


def _too_long(blocks: list[dict[str, Any]]) -> bool:
    return width(msgspec.json.encode(blocks).decode()) > BLOCKS


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}  # never parsed: `<!channel>` stays what it is


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}  # without `verbatim` Slack looks for mentions by itself


def _section(text: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "section", "text": text}] if text["text"] else []


def _fields(texts: Iterable[str]) -> list[dict[str, Any]]:
    fields = [_mrkdwn(text) for text in texts]
    return [{"type": "section", "fields": fields}] if fields else []
