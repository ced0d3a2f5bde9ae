"""The words about a call that a person reads, shared by the sinks that write messages."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

from msgspec import Meta

from aftercall.call import Analysis, Call, Turn
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import SinkConfig
from aftercall.templates import Template

VALUE, LINE, LINES = 200, 300, 6  # our own: a fact, a line of the transcript, how many of its last lines
_WEB = re.compile(r"https?://[^\s/?#][^\s\x00-\x1f\x7f]*", re.IGNORECASE)
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), 127))


class MessageConfig(SinkConfig, frozen=True, kw_only=True):
    """Base of the options of a sink whose messages the user may word."""

    template: Annotated[
        str | None,
        Meta(description="the message's text, a Jinja template over `event`, `call` and `tags`; default: our own"),
    ] = None

    def __post_init__(self) -> None:
        try:
            message_of(self)
        except ValueError as error:
            raise ValueError(f"template: {error}") from None


def message_of(config: MessageConfig, escape: Callable[[str], str] | None = None) -> Template | None:
    """The user's own wording, or None. `escape` is put around each value, not around the template's own text."""
    return None if config.template is None else Template(config.template, escape)


def worded(template: Template, event: CallEvent, escape: Callable[[str], str] = str) -> str:
    """What the user's template says of the event; our title where it says nothing: no vendor takes an empty text."""
    try:
        text = template.render(event)
    except ValueError as error:
        raise SinkError(str(error), permanent=True) from None
    return text.translate(_CONTROLS).strip() or escape(clip(title(event), VALUE))


def title(event: CallEvent) -> str:
    """One line: what happened, how it ended, which agent."""
    call = event.data.call
    outcome = {True: ": successful", False: ": unsuccessful", None: ""}[(call.analysis or Analysis()).successful]
    agent = call.agent.name or call.agent.id
    what = event.type.replace(".", " ").capitalize()  # Call ended
    return what + (": failed" if call.status == "failed" else outcome) + (f" · {agent}" if agent else "")


def facts(call: Call) -> dict[str, str]:
    """What is known of the call, by label, as plain text of any length."""
    end, cost, analysis = call.end, call.cost, call.analysis
    known = {
        "From → to": f"{call.from_ or 'unknown'} → {call.to or 'unknown'}" if call.from_ or call.to else None,
        "Direction": call.direction,
        "Duration": None if call.duration_ms is None else duration(call.duration_ms),
        "End": (end.provider_reason if end.reason == "unknown" else end.reason.replace("_", " ")) if end else None,
        "Sentiment": analysis.sentiment if analysis else None,
        "Cost": f"{cost.total} {cost.currency}" if cost and cost.total else None,
        "Error": call.error,
    }
    return {label: fact for label, fact in known.items() if fact}


def duration(ms: int) -> str:
    """Minutes and seconds: `3:05`. A clock that was set back makes none shorter than nothing."""
    return "{}:{:02}".format(*divmod(max(0, ms) // 1000, 60))


def source(event: CallEvent) -> list[str]:
    """Where it comes from, for the small print."""
    call = event.data.call
    incomplete = "" if event.data.complete else "incomplete: the record could not be fetched"
    return [text for text in (f"{call.provider}/{call.account}", call.id, event.type, incomplete) if text]


def excerpt(transcript: list[Turn] | None, *, lines: int = LINES) -> str:
    """The last things said. A line is a turn: a turn with line breaks could put words into the other's mouth."""
    turns = reversed(transcript or [])
    spoken = (turn for turn in turns if turn.role in ("agent", "user") and (turn.text or "").strip())
    said = [f"{turn.role.title()}: {' '.join((turn.text or '').split())}" for turn in islice(spoken, lines)]
    return "\n".join(clip(line, LINE) for line in reversed(said))


def moment(event: CallEvent) -> datetime | None:
    """When it happened, if its time can be read."""
    try:
        at = datetime.fromisoformat(event.time)
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC)


def is_web(url: str | None) -> bool:
    """Whether it is an http:// or https:// address: only those become links."""
    return bool(url) and _WEB.fullmatch(url or "") is not None


def width(text: str) -> int:
    """How long a vendor may think it is: in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def plain(event: CallEvent) -> str:
    """The whole message as plain text, for destinations without a layout of their own."""
    call = event.data.call
    parts = [
        "\n".join(f"{label}: {clip(fact, VALUE)}" for label, fact in facts(call).items()),
        clip((call.analysis or Analysis()).summary, 4000),
        f"Recording: {call.recording.url}" if call.recording else "",
        excerpt(call.transcript),
        " · ".join(source(event)),
    ]
    return "\n\n".join(part for part in parts if part)


def clip(text: str | None, limit: int, escapes: Mapping[str, str] | None = None) -> str:
    """The text without control characters, escaped, in at most `limit` UTF-16 units.

    It is cut between characters, never inside an entity. No vendor says what a character is; UTF-16 units, counted
    after escaping, hold under every reading.
    """
    pieces: list[str] = []
    size = 0
    for character in (text or "").translate(_CONTROLS).strip():
        piece = (escapes or {}).get(character, character)
        size += len(piece) + (character > "\uffff")
        if size >= limit:
            return "".join(pieces) + "…"
        pieces.append(piece)
    return "".join(pieces)
