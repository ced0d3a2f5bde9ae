"""Which sinks an event goes to, and what of it never leaves through them. Pure functions."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import cel
import msgspec

from aftercall.event import CallEvent

VARIABLES = ("call", "tags", "event")
_MACRO = re.compile(r"\.(?:all|exists|exists_one|filter|map)\(\s*(\w+)\s*,")


class Condition:
    """A sink's `where`: an expression in CEL (https://cel.dev) over `call`, `tags` and the whole `event`.

    Raises ValueError for what cannot be an expression over these. Where an event lacks what the expression asks about
    (a null where a number is compared, a key of metadata that is not there), it does not hold.
    """

    def __init__(self, source: str) -> None:
        try:
            self._program = cel.compile(source)
        except ValueError as error:
            raise ValueError(f"not a CEL expression: {str(error).splitlines()[0]}") from None
        bound = _MACRO.findall(source)  # `call.transcript.exists(turn, …)` makes the name `turn` itself
        if unknown := set(self._program.variables()) - {*VARIABLES, *bound}:
            raise ValueError(f"there is no {', '.join(sorted(unknown))} to ask about, only {', '.join(VARIABLES)}")
        self._source = source

    def __repr__(self) -> str:
        return f"Condition({self._source!r})"

    def holds(self, event: CallEvent) -> bool:
        if "transcript" not in self._source:  # by far the largest part, and each value costs to hand over
            call = msgspec.structs.replace(event.data.call, transcript=None)
            event = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, call=call))
        plain = msgspec.to_builtins(event)
        try:
            return (
                self._program.execute({"event": plain, **{name: plain["data"][name] for name in ("call", "tags")}})
                is True
            )
        except (TypeError, KeyError, ValueError, RuntimeError):
            return False


def matches(
    event: CallEvent, *, events: Sequence[str], accounts: Sequence[str] | None, where: Condition | None = None
) -> bool:
    """Whether a sink with these `events`, `accounts` (None: all) and `where` (None: always) wants the event.

    `call.unknown` goes only to who asks for `"*"`.
    """
    wanted = "*" in events or (event.type in events and event.type != "call.unknown")
    ours = accounts is None or event.data.call.account in accounts
    return wanted and ours and (where is None or where.holds(event))


def _identifies(number: str | None) -> bool:
    return number is not None and ("@" in number or sum(map(str.isdigit, number)) >= 7)


def _without_numbers(call: dict[str, Any]) -> dict[str, Any]:
    """Takes out `from` and `to`, and the same numbers wherever else in the call they stand."""
    # Longest first: one may begin like the other. What has few digits ("unknown", an extension) is also a word of ours
    # or a part of a time.
    numbers = sorted(filter(_identifies, (call["from"], call["to"])), key=len, reverse=True)

    def scrub(value: Any) -> Any:
        if isinstance(value, str):
            for number in numbers:
                value = value.replace(number, "[redacted]")
            return value
        if isinstance(value, list):
            return [scrub(item) for item in value]
        return {scrub(key): scrub(item) for key, item in value.items()} if isinstance(value, dict) else value

    return {**{key: scrub(value) for key, value in call.items()}, "id": call["id"], "from": None, "to": None}


_REDACT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "transcript": lambda call: {**call, "transcript": None},
    "summary": lambda call: {**call, "analysis": call["analysis"] and {**call["analysis"], "summary": None}},
    "recording": lambda call: {**call, "recording": None, "log_url": None},
    "metadata": lambda call: {**call, "metadata": {}, "variables": {}},
    "numbers": _without_numbers,
}
REDACTIONS = tuple(_REDACT)


def redact(event: CallEvent, words: Sequence[str]) -> CallEvent:
    """The event without what the words name (`REDACTIONS`); its metrics, which are only counts, stay."""
    plain = msgspec.to_builtins(event)
    for word in words:
        plain["data"]["call"] = _REDACT[word](plain["data"]["call"])
    return msgspec.convert(plain, CallEvent)
