"""Console: every event on standard output, for people on a terminal, as NDJSON everywhere else.

It prints what was said in a call. So it is never a default; `aftercall demo` and `aftercall dev` use it. Delivered
means that standard output took it. An event that comes again is printed again.
"""

import errno
import os
import sys
from typing import Annotated, Literal

import httpx
from msgspec import Meta

from aftercall.call import Turn
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Sink, SinkConfig

_COLOURS = {
    "call.started": "36",
    "call.connected": "36",
    "call.ended": "33",
    "call.analyzed": "35",
    "call.billed": "32",
    "call.settled": "32",
}
_SHOWN_TURNS = 3


class Console(Sink):
    class Config(SinkConfig, frozen=True):
        format: Annotated[
            Literal["auto", "text", "json"],
            Meta(description="auto: text on a terminal, one JSON object a line elsewhere"),
        ] = "auto"

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self.as_text = config.format == "text" or (config.format == "auto" and _on_terminal())

    async def deliver(self, delivery: Delivery) -> None:
        line = self.render(delivery) + b"\n"
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except OSError as error:
            why = errno.errorcode.get(error.errno or 0, type(error).__name__)
            raise SinkError(f"standard output does not take it: {why}") from None
        except (ValueError, AttributeError):  # it was closed, and is None where it was so from the start
            raise SinkError("standard output is closed") from None

    def render(self, delivery: Delivery) -> bytes:
        return render(delivery.event).encode() if self.as_text else delivery.body


def _on_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def render(event: CallEvent, *, colour: bool | None = None) -> str:
    """A few lines about an event, for people. Colour unless NO_COLOR is set; pass it to decide."""
    colour = not os.environ.get("NO_COLOR") if colour is None else colour
    call = event.data.call
    kind = f"\033[{_COLOURS.get(event.type, '37')};1m{event.type:<14}\033[0m" if colour else f"{event.type:<14}"
    facts = [
        f"{call.direction or ''} {call.channel}".strip(),
        f"{call.from_ or '?'} → {call.to or '?'}" if call.from_ or call.to else "",
        call.status,
        call.end.reason + (f" ({call.end.provider_reason})" if call.end.provider_reason else "") if call.end else "",
        f"{call.duration_ms / 1000:.0f} s" if call.duration_ms else "",
        f"{call.cost.total} {call.cost.currency}" if call.cost and call.cost.total else "",
        call.analysis.sentiment if call.analysis and call.analysis.sentiment else "",
        "" if event.data.complete else "INCOMPLETE: the record could not be fetched",
    ]
    lines = [f"{event.time[11:19]} {kind} {event.source} {printable(event.subject)} #{event.data.sequence}"]
    lines.append("         " + " · ".join(printable(fact) for fact in facts if fact))
    if call.analysis and call.analysis.summary:
        lines.append(f"         {_clip(call.analysis.summary)}")
    if event.type == "call.ended" and call.transcript:
        lines += [f"         {_line(turn)}" for turn in call.transcript[:_SHOWN_TURNS]]
        if len(call.transcript) > _SHOWN_TURNS:
            lines.append(f"         … {len(call.transcript) - _SHOWN_TURNS} more turns")
    return "\n".join(lines)


def _line(turn: Turn) -> str:
    said = f"{turn.tool.name}()" if turn.tool else turn.text or ""
    return f"{turn.role:>6}: {_clip(said)}"


def _clip(text: str, width: int = 96) -> str:
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def printable(text: str) -> str:
    """Without control characters: what a caller said must not steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
