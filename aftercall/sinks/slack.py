"""Slack: a message in one channel for every event, through an incoming webhook.

Slack answers without a message id, so a message can neither be changed nor recognised: an attempt repeated after a lost
answer shows twice.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aftercall.call import Analysis, Call, Turn
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig
from aftercall.sinks.http import post

# https://docs.slack.dev/reference/block-kit/blocks/section-block and …/header-block (2026-11). Slack does not say what
# a character is; UTF-16 units, counted after escaping, hold under every reading.
HEADER, SECTION, FIELD = 150, 3000, 2000
# All blocks together, as JSON. Documented nowhere; `msg_blocks_too_long` comes at about 13,200, sometimes sooner:
# https://github.com/slackapi/bolt-js/issues/2509 and /2867 (2026-11).
BLOCKS = 12_000
VALUE, LINE, LINES = 200, 300, 6  # our own: a field's value, a line of the transcript, how many of its last lines

# The only three to escape: https://docs.slack.dev/messaging/formatting-message-text#escaping (2026-11).
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
LINK_ESCAPES = str.maketrans({"&": "&amp;", "<": "%3C", ">": "%3E", "|": "%7C"})  # `|` would end the address
CONTROLS = dict.fromkeys((*range(9), *range(11, 32), 127))
HTTP_URL = re.compile(r"https?://[^\s/?#][^\s\x00-\x1f\x7f]*", re.IGNORECASE)

# https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors (2026-11). Only these words
# are repeated in an error text, whoever answered.
ERRORS = frozenset(
    b"action_prohibited channel_is_archived channel_not_found invalid_blocks invalid_payload invalid_token"
    b" no_active_hooks no_service no_service_id no_team no_text posting_to_general_channel_denied team_disabled"
    b" too_many_attachments user_not_found".split()
)


class Slack(Sink):
    events = ("call.settled",)  # a team wants one message a call

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the incoming webhook's URL, which belongs to one channel")]

        def __post_init__(self) -> None:
            if not HTTP_URL.fullmatch(self.url):
                raise ValueError("url must be the whole https:// address Slack shows under Incoming Webhooks")

    config: Config

    async def deliver(self, delivery: Delivery) -> None:
        """Slack has the message when it answers `ok`. Another 2xx answer is final: a next try might post it twice."""
        body = msgspec.json.encode(render(delivery.event))
        answer = (await post(self.http, self.config.url, body, {"content-type": "application/json"})).body.strip()
        if answer in ERRORS:
            raise SinkError(f"Slack refused the message: {answer.decode()}", permanent=True)
        if answer != b"ok":
            raise SinkError("the answer is not Slack's; check that url is an incoming webhook", permanent=True)


def render(event: CallEvent) -> dict[str, Any]:
    """The message for an event, within Slack's limits whatever the call holds; what is not known is left out."""
    call = event.data.call
    analysis = call.analysis or Analysis()
    title = _title(event, analysis)
    recording = _link(call.recording.url if call.recording else None, "Recording")
    source = [_clip(text, VALUE) for text in (f"{call.provider}/{call.account}", call.id, event.type)]
    source += [_when(event.time), "" if event.data.complete else "incomplete: the record could not be fetched"]

    header = {"type": "header", "text": _plain(_clip(title, HEADER, {}))}
    summary = _section(_mrkdwn(_clip(analysis.summary, SECTION)))
    links = _fields([recording, _link(call.log_url, "Log")])
    excerpt = _section(_plain(_excerpt(call.transcript or [])))
    context = {"type": "context", "elements": [_mrkdwn(text) for text in source if text]}
    blocks = [header, *_fields(_facts(call, analysis)), *summary, *links, *excerpt, context]
    for block in (*excerpt, *links, *summary):  # the least missed first
        if _width(msgspec.json.encode(blocks).decode()) > BLOCKS:
            blocks.remove(block)
    text = _clip(f"{title}\n{analysis.summary or ''}", SECTION)  # what a notification shows
    return {"text": text, "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _title(event: CallEvent, analysis: Analysis) -> str:
    call = event.data.call
    outcome = {True: ": successful", False: ": unsuccessful", None: ""}[analysis.successful]
    agent = call.agent.name or call.agent.id
    title = event.type.replace(".", " ").capitalize()  # Call ended
    return title + (": failed" if call.status == "failed" else outcome) + (f" · {agent}" if agent else "")


def _facts(call: Call, analysis: Analysis) -> list[str]:
    end, cost = call.end, call.cost
    facts = {
        "From → to": f"{call.from_ or 'unknown'} → {call.to or 'unknown'}" if call.from_ or call.to else None,
        "Direction": call.direction,
        "Duration": None if call.duration_ms is None else "{}:{:02}".format(*divmod(call.duration_ms // 1000, 60)),
        "End": (end.provider_reason if end.reason == "unknown" else end.reason.replace("_", " ")) if end else None,
        "Sentiment": analysis.sentiment,
        "Cost": f"{cost.total} {cost.currency}" if cost and cost.total else None,
        "Error": call.error,
    }
    return [f"*{label}*\n{text}" for label, fact in facts.items() if (text := _clip(fact, VALUE))]


def _excerpt(transcript: list[Turn]) -> str:
    """The last things said. A line is a turn: a turn with line breaks could put words into the other's mouth."""
    spoken = (turn for turn in reversed(transcript) if turn.role in ("agent", "user") and (turn.text or "").strip())
    lines = [f"{turn.role.title()}: {' '.join((turn.text or '').split())}" for turn in islice(spoken, LINES)]
    return "\n".join(_clip(line, LINE, {}) for line in reversed(lines))


def _when(time: str) -> str:
    """In the reader's own time zone; https://docs.slack.dev/messaging/formatting-message-text#date-formatting."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return _clip(time, VALUE)
    unix = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    return f"<!date^{unix}^{{date_short_pretty}} {{time}}|{_clip(time, VALUE)}>"


def _link(url: str | None, label: str) -> str:
    """A link, or nothing: a URL of another scheme, or too long to be shown whole, is no use."""
    link = f"<{url.translate(LINK_ESCAPES)}|{label}>" if url and HTTP_URL.fullmatch(url) else ""
    return link if _width(link) <= FIELD else ""


def _clip(text: str | None, limit: int, escapes: Mapping[str, str] = ESCAPES) -> str:
    """The text, escaped, in at most `limit` UTF-16 units; cut between characters, never inside an entity."""
    pieces: list[str] = []
    size = 0
    for character in (text or "").translate(CONTROLS).strip():
        piece = escapes.get(character, character)
        size += len(piece) + (character > "\uffff")
        if size >= limit:
            return "".join(pieces) + "…"
        pieces.append(piece)
    return "".join(pieces)


def _width(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}  # never parsed: `<!channel>` stays what it is


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}  # without `verbatim` Slack looks for mentions by itself


def _section(text: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "section", "text": text}] if text["text"] else []


def _fields(texts: list[str]) -> list[dict[str, Any]]:
    fields = [_mrkdwn(text) for text in texts if text]
    return [{"type": "section", "fields": fields}] if fields else []
