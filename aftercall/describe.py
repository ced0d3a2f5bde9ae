"""What a sink type's options are, read from its `Config`: for `aftercall sinks show`, the READMEs and the schema."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Meta, inspect

from aftercall.errors import PluginError
from aftercall.plugins import SINKS, installed_plugins, sink_class
from aftercall.sink_settings import CommonOptions
from aftercall.sinks.base import Sink, is_secret

_WORDS: dict[type[inspect.Type], str] = {
    inspect.StrType: "text",
    inspect.IntType: "whole number",
    inspect.FloatType: "number",
    inspect.BoolType: "true or false",
    inspect.BytesType: "text in base64",
    inspect.DateTimeType: "date and time",
    inspect.DateType: "date",
    inspect.TimeType: "time",
    inspect.AnyType: "anything",
}
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option, as it stands in a table of `aftercall.toml`."""

    name: str
    type: str  # in words
    required: bool
    default: Any  # None: none
    description: str
    secret: bool


class SinkType(msgspec.Struct, frozen=True, kw_only=True):
    """A sink type that may be configured. `problem` says what is to be done if it cannot be loaded: then no `sink`."""

    name: str
    origin: str  # "aftercall", or what an installed package names
    sink: type[Sink] | None = None
    problem: str | None = None


def sink_types(*, installed: bool = True) -> Iterator[SinkType]:
    """The built-in types and, unless told otherwise, those of installed packages."""
    origins = dict.fromkeys(SINKS, "aftercall")
    if installed:
        origins = installed_plugins("sink") | origins
    for name in sorted(origins, key=lambda name: (name not in SINKS, name)):
        yield sink_type(name, origins[name])


def sink_type(name: str, origin: str) -> SinkType:
    try:
        return SinkType(name=name, origin=origin, sink=sink_class(name))
    except PluginError as error:
        return SinkType(name=name, origin=origin, problem=str(error))


def options(config: type[msgspec.Struct]) -> list[Option]:
    """The options of a Config, in the order in which they are declared."""
    return [_option(field) for field in msgspec.structs.fields(config)]


def common_options(sink: type[Sink]) -> list[Option]:
    """Those that every sink has beside its own; one of its own goes before a common one of the same name."""
    own = sink.Config.__struct_encode_fields__
    return [option for option in options(CommonOptions) if option.name not in ("type", *own)]


def summary(sink: type[Sink]) -> str:
    """The first sentence or line that the class says of itself, or else its module."""
    module = __import__(sink.__module__, fromlist=["_"])
    text = sink.__doc__ if "__doc__" in sink.__dict__ and sink.__doc__ else module.__doc__
    return (text or "").strip().partition("\n")[0].strip()


def options_page() -> str:
    """aftercall/sinks/OPTIONS.md: every built-in type with its options."""
    parts = [
        "# The options of each sink\n\nWhat `aftercall sinks show` says; made by `aftercall sinks show --markdown`.\n"
    ]
    for one in sink_types(installed=False):
        if one.sink is not None:
            events = "all events" if "*" in one.sink.events else " and ".join(f"`{word}`" for word in one.sink.events)
            raw = ' It can pass the provider\'s own body on (`format = "raw"`).' if one.sink.raw else ""
            parts.append(f"## `{one.name}`\n\n{summary(one.sink)}\n\nWithout `events` it gets {events}.{raw}\n")
            parts.append(markdown_table(options(one.sink.Config)))
    parts.append("## Every sink also has\n")
    parts.append(markdown_table([option for option in options(CommonOptions) if option.name != "type"]))
    return "\n".join(parts)


def markdown_table(rows: Iterable[Option]) -> str:
    """A table of these options."""
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for option in rows:
        known = option.default not in (None, "", (), [], {})
        default = "required" if option.required else f"`{shown(option.default)}`" if known else ""
        cells = (f"`{option.name}`", default, option.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def shown(default: Any) -> str:
    """A default as it would be written in TOML, or nothing if there is none."""
    return "" if default is None else msgspec.json.encode(default, enc_hook=str).decode()


def description(annotation: Any) -> str:
    """What the outermost `Meta(description=…)` of a type says."""
    marks = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Meta)]
    return next((mark.description for mark in reversed(marks) if mark.description), "")


def _option(field: msgspec.structs.FieldInfo) -> Option:
    default = field.default
    if default is msgspec.NODEFAULT:
        default = None if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return Option(
        name=field.encode_name,
        type=type_words(field.type),
        required=field.required,
        default="***" if default and is_secret(field.type) else default,
        description=description(field.type),
        secret=is_secret(field.type),
    )


def type_words(annotation: Any) -> str:
    """A type, for people: "text", "list of text", "one of a, b"."""
    try:
        return _words(inspect.type_info(annotation))
    except (TypeError, NotImplementedError):  # a type that msgspec does not know either
        return "anything"


def _words(info: inspect.Type) -> str:
    if isinstance(info, inspect.Metadata):
        return _words(info.type)
    if isinstance(info, inspect.UnionType):
        return " or ".join(_words(one) for one in info.types if not isinstance(one, inspect.NoneType))
    if isinstance(info, inspect.LiteralType):
        return f"one of {', '.join(map(str, info.values))}"
    if isinstance(info, inspect.EnumType):
        return f"one of {', '.join(str(member.value) for member in info.cls)}"
    if isinstance(info, _LISTS):
        return f"list of {_words(info.item_type)}"
    if isinstance(info, inspect.TupleType):
        return f"list of {', '.join(map(_words, info.item_types))}"
    if isinstance(info, inspect.DictType):
        return f"table of {_words(info.value_type)}"
    if isinstance(info, inspect.StructType):
        return f"table of {', '.join(field.encode_name for field in info.fields)}"
    return _WORDS.get(type(info), "anything")
