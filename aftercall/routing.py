"""Which sinks an event goes to, and what of it never leaves through them. Pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from aftercall.event import CallEvent


def matches(event: CallEvent, *, events: Sequence[str], accounts: Sequence[str] | None) -> bool:
    """Whether a sink with these `events` and `accounts` (None: all) wants the event.

    `call.unknown` goes only to who asks for `"*"`.
    """
    wanted = "*" in events or (event.type in events and event.type != "call.unknown")
    return wanted and (accounts is None or event.data.call.account in accounts)


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
