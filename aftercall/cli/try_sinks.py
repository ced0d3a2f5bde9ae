"""`aftercall sinks test`, `render` and `migrate`: what concerns a sink alone, without Redis and without a worker."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, get_args

import msgspec
import rich_click as click

from aftercall import settings
from aftercall.attempt import Outcome, prepare, sink_error, try_once
from aftercall.call import Call
from aftercall.cli.output import FAILED, PARTLY
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent, EventType
from aftercall.example import example_event
from aftercall.routing import asks_for
from aftercall.settings import Settings
from aftercall.sink_settings import MAX_TIMEOUT_S, SinkSettings
from aftercall.sinks.base import Sink
from aftercall.sinks.console_lines import printable

CLOSE_S = 5.0
RAW_BODY = b'{"event":"call_ended","call":{"call_id":"test_call","metadata":{"test":true}}}'
FOLLOWS = {
    "delivered": "",
    "passing": "passing: the worker would try again, by the sink's `retry`",
    "permanent": "permanent: the worker would not try this event again, and make it a dead letter",
    "gone": "gone: the worker would disable the sink, until `aftercall sinks resume` ends that",
}

_event = click.option(
    "--event", "file", type=click.File("rb"), help="Send this instead: what `events show` or `calls fetch` printed."
)
_type = click.option(
    "--type", "type_", type=click.Choice(get_args(EventType)), help="The test event's type. Default: as the sink's."
)


def choose_sink(name: str, loaded: Settings) -> SinkSettings:
    """The sink of that name; raises `UsageError` with those there are."""
    if name not in loaded.sinks:
        raise click.UsageError(f"no such sink: {name}; there are {', '.join(loaded.sinks) or 'none'}")
    return loaded.sinks[name]


@click.command("test")
@click.argument("name")
@_event
@_type
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def test(name: str, file: BinaryIO | None, type_: EventType | None, as_json: bool) -> None:
    """Send a test event through a sink, as the worker would, and tell what its destination answered.

    The event has the tag `test`, and an invented call. Exits 0 if it was delivered, 1 if not. Needs no Redis: there is
    one attempt, and the ledger does not hear of it.
    """
    sink, event = _chosen(name, file, type_)
    started = time.perf_counter()
    outcome = asyncio.run(_attempt(sink, event))
    duration_ms = round((time.perf_counter() - started) * 1000)
    error = outcome.error
    kind = _kind(error)
    if as_json:
        found: dict[str, Any] = {"sink": name, "type": sink.sink_type, "event": event.id, "event_type": event.type}
        found |= {"outcome": kind, "receipt": outcome.receipt, "error": None if error is None else str(error)}
        found |= {"retry_after_s": error.retry_after if error else None, "duration_ms": duration_ms}
        click.echo(msgspec.json.encode(found))
    else:
        answer = outcome.receipt if error is None else str(error)
        what = "took" if error is None else "did not take"
        words = f"{name} ({sink.sink_type}) {what} the {event.type}, in {duration_ms / 1000:.2f} s"
        click.echo(printable(f"{words}: {answer}" if answer else words))
        if error is not None:
            patience = f"; it asked for {error.retry_after:g} s of patience" if error.retry_after else ""
            click.echo(FOLLOWS[kind] + patience)
    if error is not None:
        sys.exit(FAILED)


@click.command("render")
@click.argument("name")
@_event
@_type
def render(name: str, file: BinaryIO | None, type_: EventType | None) -> None:
    """Print what a sink would send, with its redactions; send nothing.

    JSON is indented, other text is printed as it is, and what is no text in base64. Needs no Redis.
    """
    sink, event = _chosen(name, file, type_)
    try:
        made = asyncio.run(_rendered(sink, event))
    except Exception as error:
        click.echo(f"{name}: {sink_error(sink, error)}", err=True)
        sys.exit(FAILED)
    text = _text(made)
    if sys.stdout.isatty():  # what a caller said must not steer the terminal
        text = "\n".join(map(printable, text.split("\n")))
    click.echo(text)


@click.command("migrate")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def migrate(names: tuple[str, ...], as_json: bool) -> None:
    """Prepare the destinations of these sinks, or of all, for this version: their tables, say.

    May be repeated, also while older versions deliver. Exits 4 if some could not be prepared, 1 if none could. Needs no
    Redis.
    """
    loaded = settings.load(need_redis=False)
    chosen = [choose_sink(name, loaded) for name in names] or list(loaded.sinks.values())
    preparing = [sink for sink in chosen if sink.sink.migrate is not Sink.migrate]
    for sink in chosen if names else ():
        if sink not in preparing:
            click.echo(f"{sink.name} ({sink.sink_type}) has nothing to prepare", err=True)
    if not (preparing or names):
        click.echo("no configured sink has anything to prepare", err=True)
    failed = 0
    for sink in preparing:
        done: list[str] = []
        error = None
        try:
            done = asyncio.run(_migrated(sink))
        except Exception as raised:
            error = str(sink_error(sink, raised))
            failed += 1
        if as_json:
            click.echo(msgspec.json.encode({"sink": sink.name, "done": done, "error": error}))
        for line in () if as_json else done or ([] if error else ["nothing was to be done"]):
            click.echo(printable(f"{sink.name}: {line}"))
        if error is not None:
            click.echo(printable(f"{sink.name}: {error}"), err=True)
    if failed:
        sys.exit(FAILED if failed == len(preparing) else PARTLY)


def read_event(content: bytes, type_: EventType | None, sink: SinkSettings) -> CallEvent:
    """The event in the output of `events show`, or a test event of the call in that of `calls fetch`."""
    try:
        found = msgspec.json.decode(content)
        if isinstance(found, dict) and "deliveries" in found:
            found = found.get("event")
            if found is None:
                raise click.UsageError("--event: the content of that event is no longer stored")
        if isinstance(found, dict) and "provider" in found and "specversion" not in found:
            call = msgspec.convert(found, Call)
            made = example_event(
                type_ or _usual_type(sink), call_id=call.id, provider=call.provider, account=call.account
            )
            return msgspec.structs.replace(made, data=msgspec.structs.replace(made.data, call=call))
        event: CallEvent = msgspec.convert(found, CallEvent)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"--event: not an event and not a call: {error}") from None
    if type_ is not None:
        raise click.UsageError("--type is for the test event; the one in the file has a type")
    return event


def _chosen(name: str, file: BinaryIO | None, type_: EventType | None) -> tuple[SinkSettings, CallEvent]:
    loaded = settings.load(need_redis=False)
    sink = choose_sink(name, loaded)
    if file is not None:
        event = read_event(file.read(), type_, sink)
    else:
        event = example_event(type_ or _usual_type(sink))
        if sink.accounts:
            account = loaded.accounts[sink.accounts[0]]
            event = example_event(event.type, provider=account.provider, account=account.name)
    if not sink.wants(event):
        asks = asks_for(sink.events, event)
        why = "its table leaves it out" if asks else f"it asks for {', '.join(sink.events) or 'nothing'}"
        click.echo(f"a worker would not give this {event.type} to {name}: {why}", err=True)
    return sink, event


def _usual_type(sink: SinkSettings) -> EventType:
    kinds = [kind for kind in get_args(EventType) if kind in sink.events]
    if sink.format == "raw":
        return "call.ended"
    return kinds[0] if kinds and not {"*", "call.settled"} & {*sink.events} else "call.settled"


def _body(sink: SinkSettings) -> bytes | None:
    """What stands for a provider's own body where the sink wants that."""
    return RAW_BODY if sink.format == "raw" else None


def _kind(error: SinkError | None) -> str:
    if error is None:
        return "delivered"
    return "gone" if error.gone else "permanent" if error.permanent else "passing"


@asynccontextmanager
async def _made(sink: SinkSettings) -> AsyncIterator[Sink]:
    """The sink, not opened, with the client that a worker would give it."""
    async with make_client(guarded=not sink.allow_private_network, timeout_s=MAX_TIMEOUT_S) as http:
        yield sink.sink(sink.name, sink.config, http)


async def _close(sink: SinkSettings, opened: Sink) -> None:
    """As a worker does: what goes wrong is told, and changes nothing."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await opened.close()
    except Exception as error:
        click.echo(f"{sink.name}: closing it failed: {type(error).__name__}", err=True)


async def _attempt(sink: SinkSettings, event: CallEvent) -> Outcome:
    async with _made(sink) as made:
        ready = False

        async def opened() -> Sink:
            nonlocal ready
            await made.open()
            ready = True
            return made

        outcome = await try_once(sink, opened, event, _body(sink))
        if ready:
            await _close(sink, made)
        return outcome


async def _rendered(sink: SinkSettings, event: CallEvent) -> Any:
    async with _made(sink) as made:
        return made.render(prepare(sink, event, _body(sink)))


async def _migrated(sink: SinkSettings) -> list[str]:
    async with _made(sink) as made:
        async with asyncio.timeout(sink.timeout_s):
            await made.open()
        try:
            return await made.migrate()
        finally:
            await _close(sink, made)


def _text(made: Any) -> str:
    """What a sink's `render` gave, for people."""
    if not isinstance(made, bytes):
        return msgspec.json.format(msgspec.json.encode(made, enc_hook=str), indent=2).decode()
    try:
        msgspec.json.decode(made)
    except msgspec.DecodeError:
        pass
    else:
        return msgspec.json.format(made, indent=2).decode()
    try:
        return made.decode()
    except UnicodeDecodeError:
        return msgspec.json.encode(made).decode().strip('"')
