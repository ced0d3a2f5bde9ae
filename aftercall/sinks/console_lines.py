"""A few lines about an event, for people at a terminal."""

import os

from aftercall.call import Turn
from aftercall.event import CallEvent

_COLOURS = {
    "call.started": "36",
    "call.connected": "36",
    "call.ended": "33",
    "call.analyzed": "35",
    "call.billed": "32",
    "call.settled": "32",
}
_SHOWN_TURNS = 3


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
