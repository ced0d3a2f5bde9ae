"""`aftercall sinks`: which sinks are configured and how they fare, which types and options there are; pause, resume."""

import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import rich_click as click

from aftercall import settings
from aftercall.cli import try_sinks
from aftercall.cli.output import FAILED, json_option, show, with_ledger
from aftercall.cli.try_sinks import choose_sink
from aftercall.describe import (
    Option,
    SinkType,
    common_options,
    options,
    options_page,
    shown,
    sink_type,
    sink_types,
    summary,
)
from aftercall.errors import LedgerUnavailable
from aftercall.ledger import Ledger
from aftercall.plugins import SINKS, installed_plugins
from aftercall.sinks.base import Sink
from aftercall.states import deliver_lane

COLUMNS = ("name", "type", "state", "since", "waiting", "events", "options")


@click.group("sinks")
def command() -> None:
    """Look at sinks, try them, pause and resume them."""


command.add_command(try_sinks.test)
command.add_command(try_sinks.render)
command.add_command(try_sinks.migrate)


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The configured sinks: health, how many deliveries wait, options masked where they are secret.

    States: ok; failing; open (its circuit is: deliveries wait, one probe at a time goes out); paused; disabled (it said
    that it is gone); unknown (Redis does not answer).
    """
    configured = settings.load().sinks

    async def read(ledger: Ledger, _: Any) -> dict[str, dict[str, Any]]:
        health = await ledger.sink_health(configured)
        work = await ledger.open_work([deliver_lane(name) for name in configured])
        return {
            name: {
                "state": health[name].state,
                "since": _time(health[name].since_ms),
                "reason": health[name].reason,
                "waiting": work[deliver_lane(name)][0],
            }
            for name in configured
        }

    try:
        fares = with_ledger(read)
    except LedgerUnavailable as error:
        click.echo(f"{error}: the sinks' health is not known", err=True)
        fares = {name: {"state": "unknown"} for name in configured}
    rows = [
        {
            "name": name,
            "type": sink.sink_type,
            **fares[name],
            "events": ",".join(sink.events),
            "options": repr(sink.config),
        }
        for name, sink in configured.items()
    ]
    show(rows, as_json=as_json, columns=COLUMNS)


def _time(unix_ms: int | None) -> str:
    return "" if unix_ms is None else datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="seconds")


@command.command("pause")
@click.argument("name")
def pause(name: str) -> None:
    """Attempt nothing at this sink until it is resumed; its deliveries wait and spend no attempts."""

    async def run(ledger: Ledger, loaded: settings.Settings) -> None:
        choose_sink(name, loaded)
        await ledger.pause(name)

    with_ledger(run)
    click.echo(f"{name} is paused; `aftercall sinks resume {name}` lets what waits go out", err=True)


@command.command("resume")
@click.argument("name")
def resume(name: str) -> None:
    """End a pause, a disablement or an open circuit. What waited goes out, faster from second to second."""

    async def run(ledger: Ledger, loaded: settings.Settings) -> int:
        choose_sink(name, loaded)
        await ledger.resume(name)
        return (await ledger.open_work([deliver_lane(name)]))[deliver_lane(name)][0]

    waiting = with_ledger(run)
    click.echo(f"{name} is resumed; {waiting} deliveries wait for it", err=True)


@command.command("types")
@json_option
def types(as_json: bool) -> None:
    """The sink types that can be configured: built-in, or installed as a plug-in."""
    rows = [{"type": name, "from": "aftercall"} for name in SINKS]
    rows += [{"type": name, "from": origin} for name, origin in installed_plugins("sink").items()]
    show(rows, as_json=as_json, columns=("type", "from"))


@command.command("show")
@click.argument("type_name", required=False, metavar="[TYPE]")
@json_option
@click.option("--markdown", is_flag=True, help="Every built-in type, as a page.")
def show_types(type_name: str | None, as_json: bool, markdown: bool) -> None:
    """What a sink type is, and every option of it: its own, and those that every sink has. Without TYPE: all in short.

    TYPE is a built-in, an installed plug-in's name, or module:Class.
    """
    if markdown:
        click.echo(options_page(), nl=False)
        return
    known = {one.name: one for one in sink_types()}
    if type_name is None:
        for one in known.values():
            click.echo(msgspec.json.encode(_json(one)) if as_json else _short(one, max(map(len, known))))
        return
    one = known.get(type_name) or sink_type(type_name, type_name)
    if one.sink is None:
        if type_name not in known and ":" not in type_name:
            raise click.UsageError(str(one.problem))
        click.echo(one.problem, err=True)
        sys.exit(FAILED)
    own, common = options(one.sink.Config), common_options(one.sink)
    if as_json:
        click.echo(msgspec.json.encode(_json(one) | {"options": own, "common": common}))
        return
    click.echo(f"{type_name}: {summary(one.sink)}")
    click.echo(f"Without `events` it gets {_events(one.sink)}.\n\nIts options:")
    click.echo("\n".join(map(_line, own)) or "  none")
    click.echo("\nAs every sink:")
    click.echo("\n".join(map(_line, common)))


def _json(one: SinkType) -> dict[str, Any]:
    """A type in short, for programs."""
    sink = one.sink
    return {
        "type": one.name,
        "from": one.origin,
        "what": summary(sink) if sink else None,
        "events": sink.events if sink else [],
        "options": [option.name for option in options(sink.Config)] if sink else [],
        "problem": one.problem,
    }


def _short(one: SinkType, width: int) -> str:
    if one.sink is None:
        return f"{one.name:<{width}}  not available here: {one.problem}"
    names = ", ".join(option.name for option in options(one.sink.Config))
    return f"{one.name:<{width}}  {summary(one.sink)}\n{'':<{width}}  options: {names or 'none'}"


def _events(sink: type[Sink]) -> str:
    return "all events" if "*" in sink.events else ", ".join(sink.events) or "none"


def _line(option: Option) -> str:
    """An option in one line, which a terminal wraps and a pipe does not cut."""
    default = f"default {shown(option.default)}" if option.default not in (None, "", (), [], {}) else ""
    facts = (option.type, "a secret" * option.secret, "required" * option.required, default)
    return f"  {option.name} ({'; '.join(filter(None, facts))}): {option.description}"
