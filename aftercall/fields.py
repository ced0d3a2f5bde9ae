"""Paths into an event, as users write them in `redact`, `where` and templates: is there such a field?"""

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import msgspec

from aftercall.event import CallEvent, EventData

VARIABLES = {
    "event": CallEvent,
    "call": {field.name: field.type for field in msgspec.structs.fields(EventData)}["call"],
    "tags": dict[str, str],
}


def check_path(path: Sequence[str]) -> Any:
    """The type of the field that a path such as `("call", "analysis", "summary")` leads to.

    Any for what is inside of free-form data (metadata, variables, tags, custom). A list is passed through to its items.
    Raises ValueError with the likely meaning.
    """
    if path[0] not in VARIABLES:
        raise ValueError(f"there is no {path[0]} to ask about, only {', '.join(VARIABLES)}")
    here: Any = VARIABLES[path[0]]
    for depth, name in enumerate(path[1:], 1):
        here = inner(here)
        if here is Any:
            return Any
        if get_origin(here) is dict:
            here = get_args(here)[1]
            continue
        fields = _fields(here)
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(fields) or 'none'}"
            raise ValueError(f"{'.'.join(path[:depth])} has no {name}; {hint}")
        here = fields[name]
    return here


def _fields(kind: Any) -> dict[str, Any]:
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)} if is_struct else {}


def inner(kind: Any) -> Any:
    """Without null, annotations and the list around it."""
    while True:
        arguments = [argument for argument in get_args(kind) if argument is not type(None)]
        is_optional = get_origin(kind) is not dict and type(None) in get_args(kind) and len(arguments) == 1
        if not (is_optional or get_origin(kind) is list or hasattr(kind, "__metadata__")):
            return kind
        kind = arguments[0]
