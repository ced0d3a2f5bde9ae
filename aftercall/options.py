"""From a table of the configuration to checked options: every problem is noted with the path of its key.

Each function adds to `problems` and goes on with a value that will do, so that one reading finds all of them.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import msgspec

from aftercall.routing import Condition
from aftercall.sinks.base import SinkConfig

MAX_DURATION_S = 3650 * 86400.0
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def table(value: Any, path: str, allowed: Iterable[str], problems: list[str]) -> dict[str, Any]:
    """The value as a table; unknown keys are a problem each, with the likely meaning."""
    if not isinstance(value, dict):
        problems.append(f"{path}: expected a table")
        return {}
    known = tuple(allowed)
    problems += [unknown(f"{path}.{key}".lstrip("."), "key", key, known) for key in value if key not in known]
    return value


def unknown(path: str, what: str, word: str, known: Iterable[str]) -> str:
    known = tuple(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(known) or 'none'}"
    return f"{path}: unknown {what}; {hint}"


def parse_duration(text: str) -> float:
    """Seconds from `500ms`, `5s`, `10m`, `2h`, `7d`; raises ValueError with the form expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not match:
        raise ValueError('not a duration; write a number and ms, s, m, h or d, as in "30s"')
    return float(match[1]) * _UNITS[match[2]]


def convert(table: dict[str, Any], struct: type, path: str, problems: list[str]) -> Any:
    """The table as that Struct, or None after noting every field that does not fit, not only the first."""
    before = len(problems)
    needed = struct.needed(table) if issubclass(struct, SinkConfig) else ()
    for field in msgspec.structs.fields(struct):
        if field.encode_name in table:
            try:
                msgspec.convert(table[field.encode_name], field.type)
            except msgspec.ValidationError as error:
                what, _, where = str(error).partition(" - at `$")
                key, value, words = f"{path}.{field.encode_name}", table[field.encode_name], choices(field.type)
                if isinstance(value, str) and words:
                    problems.append(unknown(key, f'word "{value}"', value, words))
                else:
                    problems.append(f"{key}{where.rstrip('`')}: {what}")
        elif field.required or field.encode_name in needed:
            problems.append(f"{path}.{field.encode_name}: missing")
    if len(problems) > before:
        return None
    try:
        return msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        option = str(error).partition(": ")[0]
        problems.append(f"{path}.{error}" if option in table else f"{path}: {error}")
        return None
    except Exception as error:  # of a foreign Config; its text may hold a secret
        problems.append(f"{path}: its options cannot be read: {type(error).__name__} in {struct.__qualname__}")
        return None


def choices(option: Any) -> tuple[str, ...]:
    """The words of an option that is one of a few, also where it may be left out."""
    if hasattr(option, "__metadata__"):
        return choices(option.__origin__)
    if get_origin(option) is Literal:
        return get_args(option)
    is_optional = type(None) in get_args(option)
    return tuple(word for one in get_args(option) for word in choices(one)) if is_optional else ()


def duration(value: Any, path: str, problems: list[str]) -> float:
    try:
        seconds = parse_duration(str(value))
        if seconds > MAX_DURATION_S:
            raise ValueError("at most 3650d")
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return 1.0
    return seconds


def parse_rate(text: str) -> float:
    """How many a second, from `10/s`, `100/m` or `500/h`; raises ValueError with the form expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)/(s|m|h)", text)
    if not match or not float(match[1]):
        raise ValueError('not a rate; write a number and /s, /m or /h, as in "10/s"')
    return float(match[1]) / _UNITS[match[2]]


def rate(text: str, path: str, problems: list[str]) -> float:
    try:
        return parse_rate(text) if text else 0.0
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return 0.0


def condition(text: str, path: str, problems: list[str]) -> Condition | None:
    try:
        return Condition(text) if text else None
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None
