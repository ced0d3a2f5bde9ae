import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from aftercall.call import Analysis, End, Tool, Turn
from aftercall.errors import SinkError
from aftercall.event import encode
from aftercall.sinks.base import Delivery
from aftercall.sinks.console import Console
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event

ROOT = Path(__file__).parents[2]

TEXT = """\
12:05:00 call.ended     /retell/acme call_7f3 #2
         inbound phone · +15550100123 → +15550100177 · ended · user_hangup (caller_left) · 185 s · 0.2140 USD · positive
         Mirela Okafor moved her fitting to Tuesday.
          agent: Okafor Tailors, good morning.
           user: Grüezi, could I come Tuesday instead?
           tool: {"slot": "tue"}
         … 1 more turns
"""

COLOUR = re.compile(r"\033\[[0-9;]*m")
# Escape sequences and what else steers a terminal: its 7-bit and 8-bit forms, bells, back- and carriage returns, text
# direction, line separators, and a half of a surrogate pair, which cannot even be written.
STEERING = [
    "\033[2J\033[H",
    "\033]0;owned\007",
    "\033]8;;https://evil.example\033\\",
    "\x9b31m",
    "\x08\x08\x08",
    "\r",
    "\x7f",
    "\0",
    "\u202e",
    "\u2028",
    "\x85",
    "\udc9b",
]


Print = Callable[..., Any]


@pytest.fixture
def printed(http: httpx.AsyncClient, capsysbinary: pytest.CaptureFixture[bytes]) -> Print:
    """Delivers an event to a console sink made with these options; gives the bytes on standard output."""

    async def deliver(delivery: Delivery, **options: Any) -> bytes:
        await Console("out", Console.Config(**options), http).deliver(delivery)
        return capsysbinary.readouterr().out

    return deliver


# Standard output is not a terminal


@pytest.mark.parametrize("options", [{}, {"format": "auto"}, {"format": "json"}])
async def test_elsewhere_than_on_a_terminal_it_is_the_deliverys_body_and_a_newline(
    printed: Print, options: dict[str, str]
) -> None:
    delivery = a_delivery()

    assert await printed(delivery, **options) == delivery.body + b"\n"


async def test_every_event_is_one_line_of_json(printed: Print) -> None:
    first, second = a_delivery(), a_delivery(an_event(id="evt_quartz", type="call.analyzed"))

    out = await printed(first) + await printed(second)

    assert [msgspec.json.decode(line)["id"] for line in out.splitlines()] == ["evt_lantern", "evt_quartz"]


# Text


async def test_text_tells_what_is_known_of_the_call(printed: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert (await printed(a_delivery(), format="text")).decode() == TEXT


async def test_text_has_colour_unless_no_color_says_otherwise(printed: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = (await printed(a_delivery(), format="text")).decode()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = (await printed(a_delivery(), format="text")).decode()

    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)
    assert COLOUR.sub("", coloured) == plain


async def test_an_empty_no_color_means_nothing(printed: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")  # https://no-color.org (2026-11): "when present and not an empty string"

    assert COLOUR.search((await printed(a_delivery(), format="text")).decode())


async def test_a_call_of_which_nothing_is_known_is_two_short_lines(
    printed: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    unknown = a_call(
        direction=None, from_=None, to=None, end=None, duration_ms=None, cost=None, analysis=None, transcript=None
    )

    out = await printed(a_delivery(an_event(call=unknown)), format="text")

    assert out.decode() == "12:05:00 call.ended     /retell/acme call_7f3 #2\n         phone · ended\n"


async def test_an_end_without_the_providers_word_is_told_without_it(printed: Print) -> None:
    out = await printed(a_delivery(an_event(call=a_call(end=End(reason="no_answer")))), format="text")

    assert b"no_answer" in out
    assert b"None" not in out


async def test_an_incomplete_event_says_so_and_a_complete_one_does_not(printed: Print) -> None:
    assert b"INCOMPLETE" in await printed(a_delivery(an_event(complete=False)), format="text")
    assert b"INCOMPLETE" not in await printed(a_delivery(), format="text")


async def test_the_transcript_is_shown_at_the_end_of_a_call_alone(printed: Print) -> None:
    assert b"good morning" in await printed(a_delivery(an_event(type="call.ended")), format="text")
    assert b"good morning" not in await printed(a_delivery(an_event(type="call.analyzed")), format="text")


async def test_a_tool_is_shown_by_its_name(printed: Print) -> None:
    call = a_call(transcript=[Turn(role="tool", tool=Tool(name="free_slots", arguments={"day": "tue"}))])

    assert b"tool: free_slots()\n" in await printed(a_delivery(an_event(call=call)), format="text")


async def test_a_long_text_is_cut_and_says_so(printed: Print) -> None:
    call = a_call(analysis=Analysis(summary="fitting " * 500), transcript=None)

    lines = (await printed(a_delivery(an_event(call=call)), format="text")).decode().splitlines()

    assert max(len(line) for line in lines) < 140
    assert lines[-1].endswith("…")


@pytest.mark.parametrize("steering", STEERING, ids=ascii)
async def test_nothing_in_a_call_steers_the_terminal(
    printed: Print, monkeypatch: pytest.MonkeyPatch, steering: str
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    said = f"Mirela{steering}Okafor"
    call = a_call(
        from_=said,
        to=said,
        end=End(reason="unknown", provider_reason=said),
        analysis=Analysis(summary=said),
        transcript=[Turn(role="user", text=said), Turn(role="tool", tool=Tool(name=said))],
    )
    # The sink is given no body here: in text it is not used, and a half surrogate has no bytes.
    delivery = Delivery(event=an_event(call=call, subject=said), body=b"")

    out = (await printed(delivery, format="text")).decode()

    assert len(out.splitlines()) == out.count("\n") == 5
    assert [character for character in out if not character.isprintable() and character != "\n"] == []
    assert out.count("Mirela") == out.count("Okafor") == 7


async def test_other_scripts_are_shown_as_they_are(printed: Print) -> None:
    for said in ("Grüezi, Zoë", "שלום עולם", "你好，米雷拉", "مرحبا", "☎️ 👋🏽"):
        call = a_call(analysis=Analysis(summary=said))

        assert said.encode() in await printed(a_delivery(an_event(call=call)), format="text")


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    assert msgspec.convert({"format": "text"}, Console.Config).format == "text"
    with pytest.raises(msgspec.ValidationError, match=r"format"):
        msgspec.convert({"format": "xml"}, Console.Config)


# Standard output is a terminal

PRINTER = """
import asyncio, sys
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.console import Console

body = sys.stdin.buffer.read()
sink = Console("out", Console.Config(format=sys.argv[1]), None)
asyncio.run(sink.deliver(Delivery(event=decode(body), body=body)))
"""


def in_a_process(body: bytes, stdout: int, format_: str, **environ: str) -> None:
    known = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-c", PRINTER, format_]
    subprocess.run(command, input=body, stdout=stdout, cwd=ROOT, env=known | environ, check=True, timeout=30)


def on_a_terminal(body: bytes, format_: str = "auto", **environ: str) -> str:
    """What a terminal is sent; it makes `\\r\\n` of every newline."""
    terminal, stdout = pty.openpty()
    try:
        in_a_process(body, stdout, format_, **environ)
        os.close(stdout)
        out = b""
        while chunk := read_terminal(terminal):
            out += chunk
    finally:
        os.close(terminal)
    return out.decode().replace("\r\n", "\n")


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux says EIO where the other side is closed
        return b""


def test_a_terminal_gets_text_in_colour() -> None:
    out = on_a_terminal(encode(an_event()))

    assert COLOUR.sub("", out) == TEXT
    assert COLOUR.search(out)


def test_a_terminal_gets_text_without_colour_under_no_color() -> None:
    assert on_a_terminal(encode(an_event()), NO_COLOR="1") == TEXT


def test_a_terminal_gets_json_where_that_is_asked_for() -> None:
    body = encode(an_event())

    assert on_a_terminal(body, "json") == body.decode() + "\n"


def test_a_pipe_gets_json_from_the_same_program(tmp_path: Path) -> None:
    body = encode(an_event())
    with (tmp_path / "out").open("wb") as file:
        in_a_process(body, file.fileno(), "auto")

    assert (tmp_path / "out").read_bytes() == body + b"\n"


# Standard output takes nothing


@contextlib.contextmanager
def a_broken_pipe() -> Iterator[io.TextIOBase]:
    """Standard output of `aftercall dev | head -1`, when head has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w")
    try:
        yield broken
    finally:
        with contextlib.suppress(BrokenPipeError):
            broken.close()


async def refused(http: httpx.AsyncClient, format_: str = "json") -> SinkError:
    with pytest.raises(SinkError) as caught:
        await Console("out", Console.Config(format=format_), http).deliver(a_delivery())  # type: ignore[arg-type]
    assert not caught.value.permanent
    return caught.value


async def test_a_broken_pipe_passes_and_is_told_as_that(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_broken_pipe() as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert str(await refused(http)) == "standard output does not take it: EPIPE"


async def test_a_full_disk_passes_and_is_told_as_that(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(sys, "stdout", full)
    assert str(await refused(http)) == "standard output does not take it: ENOSPC"
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize("format_", ["auto", "json"])
async def test_without_a_standard_output_it_says_so(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    for stdout in (closed, None):  # Python has None where it was closed before the program began
        monkeypatch.setattr(sys, "stdout", stdout)
        assert str(await refused(http, format_)) == "standard output is closed"


class TestContract(SinkContract):
    sink = Console
    idempotent = False  # what was printed cannot be looked through
    refusal = "a pipe or a terminal takes whatever it is sent, or nothing at all"

    async def start(self) -> None:
        self.printed = io.BytesIO()
        self.before, sys.stdout = sys.stdout, io.TextIOWrapper(self.printed)

    async def stop(self) -> None:
        sys.stdout = self.before

    async def options(self) -> dict[str, Any]:
        return {}

    async def received(self) -> Iterable[str | bytes]:
        return self.printed.getvalue().splitlines()

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        with a_broken_pipe() as broken:
            whole, sys.stdout = sys.stdout, broken
            try:
                yield
            finally:
                sys.stdout = whole


class TestContractOfText(TestContract):
    async def options(self) -> dict[str, Any]:
        return {"format": "text"}

    async def received(self) -> Iterable[str | bytes]:
        return [line for line in self.printed.getvalue().splitlines() if not line.startswith(b" ")]
