"""What can be seen to be wrong with a sink's class before it is used, and would else show late or never."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from aftercall.event import EventType
from aftercall.sinks.base import Sink, SinkConfig, is_secret

_EVENTS = ("*", *get_args(EventType))
_AWAITED = ("open", "close", "deliver", "erase", "migrate")


def flaw(sink: type[Sink]) -> str | None:
    """The first thing that is wrong with the class, and what to write instead."""
    return next(_flaws(sink), None)


def _flaws(sink: type[Sink]) -> Iterator[str]:
    config: Any = sink.Config
    if not (isinstance(config, type) and issubclass(config, SinkConfig)):  # that one masks secrets
        yield "its Config is not a subclass of aftercall.SinkConfig"
        return
    if isinstance(sink.events, str):  # each letter would count as a type, and no event would reach it
        yield f'its events are one text; write events = ("{sink.events}",) with the comma'
    for word in sink.events:
        if word not in _EVENTS:
            yield f"its events name {word!r}; there are {', '.join(_EVENTS)}"
    for name in _AWAITED:
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(sink, name))):
            yield f"write `async def {name}`: it is awaited"
    if inspect.iscoroutinefunction(sink.render):
        yield "write `def render` without async: it connects to nothing and is not awaited"
    try:
        inspect.signature(sink).bind("name", None, None)
    except TypeError:
        yield "it is made as Sink(name, config, http): leave __init__ away and connect in `open`, or take these three"
    yield from _defaults(config)


def _defaults(config: type[SinkConfig]) -> Iterator[str]:
    """msgspec takes a default as it is, whatever the field's type says (0.20)."""
    for field in msgspec.structs.fields(config):
        if field.default is msgspec.NODEFAULT:
            continue
        try:
            msgspec.convert(msgspec.to_builtins(field.default), field.type)
        except msgspec.ValidationError as error:
            shown = "its default" if is_secret(field.type) else f"its default {field.default!r}"
            yield f"Config.{field.name}: {shown} does not fit its own type: {error}"
        except TypeError:
            yield f"Config.{field.name}: no file can hold an option of its type; take text, numbers, lists and tables"
