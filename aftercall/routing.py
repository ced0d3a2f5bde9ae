"""Which sinks an event goes to, and what of it never leaves through them. Pure functions."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, get_origin

import msgspec

from aftercall.event import CallEvent
from aftercall.example import example_event
from aftercall.fields import VARIABLES, check_path, inner

_MACRO = re.compile(r"\.(?:all|exists|exists_one|filter|map)\(\s*(\w+)\s*,")
_LITERAL = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_PATH = re.compile(r"(?<![\w.])(?:call|event)(?:\.[A-Za-z_]\w*(?!\w*\s*\())+")
_FREE_FORM = re.compile(r"\b(?:tags|metadata|variables|custom|arguments|latency)\b")


class Condition:
    """A sink's `where`: an expression in CEL (https://cel.dev) over `call`, `tags` and the whole `event`.

    Raises ValueError for what cannot be an expression over these: a field that no event has, types that cannot be
    compared, a result that is neither true nor false. Where an event lacks what the expression asks about (a null where
    a number is compared, a key of metadata that is not there), it does not hold.
    """

    def __init__(self, source: str) -> None:
        import cel  # here, since it brings a terminal's toolkit along, and most sinks have no condition

        try:
            self._program = cel.compile(source)
        except ValueError as error:
            raise ValueError(f"not a CEL expression: {_first_mistake(str(error))}") from None
        bound = _MACRO.findall(source)  # `call.transcript.exists(turn, …)` makes the name `turn` itself
        if unknown := set(self._program.variables()) - {*VARIABLES, *bound}:
            raise ValueError(f"there is no {', '.join(sorted(unknown))} to ask about, only {', '.join(VARIABLES)}")
        self._source = source
        self._try_out()

    def __repr__(self) -> str:
        return f"Condition({self._source!r})"

    def holds(self, event: CallEvent) -> bool:
        if "transcript" not in self._source:  # by far the largest part, and each value costs to hand over
            call = msgspec.structs.replace(event.data.call, transcript=None)
            event = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, call=call))
        try:
            return self._applied(msgspec.to_builtins(event)) is True
        except Exception:  # also an index beyond the end, a division by zero, a number too large
            return False

    def _applied(self, plain: dict[str, Any]) -> Any:
        return self._program.execute({"event": plain, **{name: plain["data"][name] for name in ("call", "tags")}})

    def _try_out(self) -> None:
        """Apply it to an event that lacks nothing, but for what is of the user's own making."""
        code = _LITERAL.sub('""', self._source)
        for path in _PATH.findall(code):
            check_path(path.split("."))
        try:
            result = self._applied(everything())
        except KeyError as error:
            if _FREE_FORM.search(code):
                return
            raise ValueError(f"there is no {error} to ask about") from None
        except (IndexError, ArithmeticError):  # a third turn, a division by what is zero in this event alone
            return
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(str(error).partition(". ")[0]) from None
        if not isinstance(result, bool):
            raise ValueError(f"it gives {result!r}, and must give true or false")


def _first_mistake(said: str) -> str:
    """Of what the compiler says, the place and the mistake; not the expression, which may have many lines."""
    found = re.search(r"ERROR: <input>:(\d+):(\d+): (.*)", said)
    return f"line {found[1]}, column {found[2]}: {found[3]}" if found else said.splitlines()[0]


@cache
def everything() -> dict[str, Any]:
    """An event in which every field is known, and all free-form data are empty."""
    event = example_event()
    turns = [msgspec.structs.replace(turn, text="", interrupted=False) for turn in event.data.call.transcript or []]
    turns = [turn for turn in turns if turn.tool]
    call = msgspec.structs.replace(event.data.call, transcript=turns, metadata={}, variables={})
    plain: dict[str, Any] = msgspec.to_builtins(
        msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, call=call, tags={}))
    )
    plain["data"]["call"]["analysis"]["custom"] = {}
    return plain


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One of those whose calls come in here: a `[clients.<name>]` table. What it leaves out, it does not ask about."""

    name: str
    accounts: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    numbers: tuple[str, ...] | None = None
    where: Condition | None = None

    def has(self, event: CallEvent) -> bool:
        """Whether the event's call is one of this client's."""
        return is_of(event, self) and (self.where is None or self.where.holds(event))


class Origin(Protocol):
    """Which calls, by where they come from. None: all."""

    @property
    def accounts(self) -> tuple[str, ...] | None: ...
    @property
    def agents(self) -> tuple[str, ...] | None: ...
    @property
    def numbers(self) -> tuple[str, ...] | None: ...


def is_of(event: CallEvent, origin: Origin) -> bool:
    """Whether the call is of one of the accounts, of one of the agents (by id or name), and to or from a number."""
    call = event.data.call
    return (
        (origin.accounts is None or call.account in origin.accounts)
        and (origin.agents is None or not {call.agent.id, call.agent.name}.isdisjoint(origin.agents))
        and (origin.numbers is None or not {call.from_, call.to}.isdisjoint(origin.numbers))
    )


def asks_for(events: Sequence[str], event: CallEvent) -> bool:
    """Whether the event's type is among those that a sink names. `call.unknown` goes only to who asks for `"*"`."""
    return "*" in events or (event.type in events and event.type != "call.unknown")


def _identifies(number: str | None) -> bool:
    return number is not None and ("@" in number or sum(map(str.isdigit, number)) >= 7)


def _spellings(number: str) -> str:
    """A pattern of the number as people and systems write it: +15550100123, 15550100123, (555) 010-0123.

    Up to three digits of a country's code may be missing, and between digits there may be what parts them.
    """
    digits = re.sub(r"\D", "", number.partition("@")[0])
    if len(digits) < 7 or re.search(r"[^\W\d]", number.partition("@")[0].lower().removeprefix("sip:")):
        return re.escape(number)  # a name, with or without a host
    code = min(3, len(digits) - 7)
    between = r"[\s()./-]{0,3}"
    start = ""
    for digit in digits[:code]:
        start = f"(?:{start}{digit}{between})?"
    return rf"{re.escape(number)}|(?=[+(\d])[+(]{{0,2}}{start}[(]?{between.join(digits[code:])}"


_TIMES = ("started_at", "ended_at", "expires_at")  # eight digits of a date may be a number too
_FREE = ("metadata", "variables", "custom", "arguments")


def _without_numbers(call: dict[str, Any]) -> dict[str, Any]:
    """Takes out `from` and `to`, and the same numbers wherever else in the call they stand."""
    # Longest first: one may begin like the other. What has few digits ("unknown", an extension) is also a word of ours
    # or a part of a time.
    numbers = sorted(filter(_identifies, (call["from"], call["to"])), key=len, reverse=True)
    pattern = re.compile("|".join(map(_spellings, numbers)) or r"(?!)")

    def scrub(value: Any, *, free: bool = False) -> Any:
        if isinstance(value, str):
            return pattern.sub("[redacted]", value)
        if isinstance(value, list):
            return [scrub(item, free=free) for item in value]
        if isinstance(value, dict):
            return {
                scrub(key): item if key in _TIMES and not free else scrub(item, free=free or key in _FREE)
                for key, item in value.items()
            }
        if free and isinstance(value, int | float) and pattern.fullmatch(f"{value:.0f}"):
            return "[redacted]"
        return value

    return {**scrub(call), "id": call["id"], "from": None, "to": None}


_REDACT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "transcript": lambda call: {**call, "transcript": None},
    "summary": lambda call: {**call, "analysis": call["analysis"] and {**call["analysis"], "summary": None}},
    "recording": lambda call: {**call, "recording": None, "log_url": None},
    "metadata": lambda call: {**call, "metadata": {}, "variables": {}},
    "numbers": _without_numbers,
}
REDACTIONS = tuple(_REDACT)


def redact(event: CallEvent, words: Sequence[str]) -> CallEvent:
    """The event without what the words name: `REDACTIONS`, or paths such as `call.metadata.card`.

    Its metrics, which are only counts, stay.
    """
    plain = msgspec.to_builtins(event)
    data = plain["data"]
    for word in words:
        if word in _REDACT:
            data["call"] = _REDACT[word](data["call"])
        else:
            root, *rest = word.split(".")
            _blank(data[root], rest, _what_is_left(word))
    return msgspec.convert(plain, CallEvent)


def check_redaction(word: str) -> None:
    """Raises ValueError if `redact` does not know the word: it is no path either, or leads to what every event has."""
    root, *rest = word.split(".")
    if root not in ("call", "tags") or not rest or not all(rest):
        raise ValueError("not a path; write it as in call.metadata.card")
    _what_is_left(word)


_GONE = object()  # keys of free-form data go, fields of ours become what they are when nothing is known


@cache
def _what_is_left(path: str) -> Any:
    """What stands in place of what was redacted."""
    before, _, last = path.rpartition(".")
    parent = inner(check_path(before.split(".")))
    if parent is Any or get_origin(parent) is dict:
        return _GONE
    check_path(path.split("."))
    [field] = [field for field in msgspec.structs.fields(parent) if field.encode_name == last]
    if field.required:
        raise ValueError(f"{path} is in every event, and cannot be left out")
    return msgspec.to_builtins(field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())


def _blank(value: Any, path: Sequence[str], left: Any) -> None:
    """Put `left` in place of what the path leads to, in every item of a list; `*` is all that free-form data hold."""
    if isinstance(value, list):
        if [*path] == ["*"]:
            value[:] = [item for item in value if isinstance(item, dict | list)]
        for item in value:
            _blank(item, path, left)
    elif isinstance(value, dict):
        for key in list(value) if path[0] == "*" else [path[0]] if path[0] in value else []:
            if len(path) > 1:
                _blank(value[key], path[1:], left)
            elif left is _GONE:
                del value[key]
            else:
                value[key] = left
