"""Options in words: what `aftercall sinks show`, the READMEs and the schema say of a sink's Config."""

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from aftercall.describe import common_options, markdown_table, options, options_page, sink_types, summary, type_words
from aftercall.plugins import SINKS, sink_class
from aftercall.sink_settings import CommonOptions
from aftercall.sinks.base import Secret, Sink, SinkConfig

ROOT = Path(__file__).parents[1]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Header(msgspec.Struct):
    name: str
    value: str


class Foreign:
    """A class that msgspec knows nothing of."""


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "text"),
        (Secret, "text"),
        (Annotated[int, Meta(gt=0)], "whole number"),
        (float, "number"),
        (int | float, "whole number or number"),
        (bool, "true or false"),
        (str | None, "text"),
        (list[str] | None, "list of text"),
        (tuple[str, ...], "list of text"),
        (frozenset[int], "list of whole number"),
        (tuple[str, int], "list of text, whole number"),
        (dict[str, str], "table of text"),
        (dict[str, list[int]], "table of list of whole number"),
        (dict[str, Any], "table of anything"),
        (Header, "table of name, value"),
        (list[Header], "list of table of name, value"),
        (Literal["low"], "one of low"),
        (Colour, "one of red, blue"),
        (bytes, "text in base64"),
        (Any, "anything"),
        (Foreign, "anything"),
    ],
)
def test_a_type_is_told_in_words(annotation: Any, words: str) -> None:
    assert type_words(annotation) == words


class Pager(Sink):
    """Pages somebody.

    At night too."""

    class Config(SinkConfig, frozen=True):
        token: Annotated[Secret, Meta(description="the token")]
        rooms: Annotated[list[str], Meta(description="where | to")] = []
        urgency: Annotated[Literal["low", "high"], Meta(description="how loud")] = "low"
        note: Annotated[str | None, Meta(description="more words")] = None
        timeout: Annotated[int, Meta(description="its own")] = 3
        bare: int = 1

    async def deliver(self, delivery: Any) -> None: ...


def test_an_option_is_its_field() -> None:
    token, rooms, urgency, note, *_, bare = options(Pager.Config)
    assert (token.name, token.type, token.required, token.secret) == ("token", "text", True, True)
    assert (token.default, token.description) == (None, "the token")
    assert (rooms.default, rooms.required, rooms.secret) == ([], False, False)
    assert (urgency.default, note.default, bare.default) == ("low", None, 1)
    assert bare.description == ""


def test_an_option_of_its_own_goes_before_a_common_one_of_that_name() -> None:
    names = [option.name for option in common_options(Pager)]
    assert names == [name for name in CommonOptions.__struct_fields__ if name not in ("type", "timeout")]


def test_every_common_option_is_described() -> None:
    assert all(option.description for option in options(CommonOptions))


def test_a_type_s_summary_is_its_first_line() -> None:
    assert summary(Pager) == "Pages somebody."
    assert summary(sink_class("redis_stream")).startswith("Redis Streams: ")


def test_the_types_are_the_built_in_ones_first() -> None:
    types = list(sink_types(installed=False))
    assert [one.name for one in types] == sorted(SINKS)
    assert all(one.sink is not None and one.origin == "aftercall" for one in types)


def test_the_table_has_a_row_for_each_option() -> None:
    assert markdown_table(options(Pager.Config)).splitlines() == [
        "| option | default | what it is |",
        "|---|---|---|",
        "| `token` | required | the token |",
        r"| `rooms` |  | where \| to |",
        '| `urgency` | `"low"` | how loud |',
        "| `note` |  | more words |",
        "| `timeout` | `3` | its own |",
        "| `bare` | `1` |  |",
    ]


def test_the_page_of_options_is_the_code_s() -> None:
    page = options_page()
    assert page == (ROOT / "aftercall" / "sinks" / "OPTIONS.md").read_text("utf-8"), (
        "make it anew: aftercall sinks show --markdown > aftercall/sinks/OPTIONS.md"
    )
    assert [name for name in sorted(SINKS) if f"## `{name}`\n" not in page] == []


def test_a_secret_in_the_source_is_not_shown_as_the_default() -> None:
    class Config(SinkConfig, frozen=True):
        key: Annotated[Secret, Meta(description="the key")] = "sesame-7291"
        other: Annotated[Secret | None, Meta(description="another")] = None

    key, other = options(Config)
    assert (key.default, other.default) == ("***", None)
    assert "sesame" not in markdown_table([key, other])
