"""What a simulated call is made of: its webhooks, its lines, and how the vendors write times and numbers."""

import json
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

Json = dict[str, Any]
PLAY_S = 12.0  # no webhook is first due later than this


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook of a call. Times are seconds from the start of the play."""

    event: str
    call_id: str | None  # None: it is about no call and becomes no event
    payload: Json
    at_s: float
    copies: int = 1  # posted at the same instant, byte for byte the same
    again_at_s: float | None = None  # sent once more then, although it was answered 2xx
    record: Json | None = None  # what the record API shows from now on; None: as before
    record_lag_s: float = 0.0  # the record API is this late in showing it
    two_signatures: bool = False
    forged: bool = False  # signed with a wrong key: to be refused

    @property
    def is_fact(self) -> bool:
        return self.call_id is not None and not self.forged


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call: what its record API answers and which webhooks are sent, in the order in which things happened."""

    provider: str
    id: str
    story: str  # what this call is here for
    record: Json  # as it is in the end
    webhooks: list[Webhook]
    messages: list[Json] = []  # Ultravox alone keeps the transcript apart from the call
    faults: tuple[int, ...] = ()  # HTTP statuses that the first requests for the record get, in this order
    marker: str | None = None  # a made-up word that is in this call's transcript and nowhere else


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing said, or one tool called. Seconds from the start of the call."""

    role: str  # agent | user | tool
    text: str
    start_s: float
    end_s: float
    arguments: Json = {}
    result: Json = {}


def compact(value: Any) -> str:
    """JSON as the vendors write it: without spaces, other scripts as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def timed(rng: random.Random, *said: tuple[Any, ...], from_s: float = 0.0) -> list[Line]:
    """Lines (role, text) and tool calls (tool, name, arguments, result), one after the other with small pauses."""
    lines = []
    clock = from_s
    for role, text, *tool in said:
        start = clock + rng.uniform(0.3, 1.1)
        clock = start + (0.4 if role == "tool" else 0.6 + 0.06 * len(text))
        arguments, result = tool or ({}, {})
        lines.append(
            Line(
                role=role, text=text, start_s=round(start, 3), end_s=round(clock, 3), arguments=arguments, result=result
            )
        )
    return lines


def length_s(lines: Sequence[Line]) -> float:
    return lines[-1].end_s + 0.5 if lines else 0.0


def number(rng: random.Random) -> str:
    return f"+1555010{rng.randrange(100, 200):04d}"


def random_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def ms(moment: float) -> int:
    return int(moment * 1000)


def iso(moment: float, *, digits: int = 0) -> str:
    text = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text[: 20 + digits].rstrip(".") + "Z"
