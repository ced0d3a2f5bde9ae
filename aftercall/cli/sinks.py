"""`aftercall sinks`: which sinks are configured and how they fare, which types there are; pause and resume one."""

from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import Any

import rich_click as click

from aftercall import settings
from aftercall.cli.output import json_option, show, with_ledger
from aftercall.errors import LedgerUnavailable
from aftercall.ledger import Ledger
from aftercall.plugins import GROUPS, SINKS
from aftercall.states import deliver_lane

COLUMNS = ("name", "type", "state", "since", "waiting", "events", "options")


@click.group("sinks")
def command() -> None:
    """Look at sinks, pause and resume them."""


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
        _require(name, loaded)
        await ledger.pause(name)

    with_ledger(run)
    click.echo(f"{name} is paused; `aftercall sinks resume {name}` lets what waits go out", err=True)


@command.command("resume")
@click.argument("name")
def resume(name: str) -> None:
    """End a pause, a disablement or an open circuit. What waited goes out, faster from second to second."""

    async def run(ledger: Ledger, loaded: settings.Settings) -> int:
        _require(name, loaded)
        await ledger.resume(name)
        return (await ledger.open_work([deliver_lane(name)]))[deliver_lane(name)][0]

    waiting = with_ledger(run)
    click.echo(f"{name} is resumed; {waiting} deliveries wait for it", err=True)


def _require(name: str, loaded: settings.Settings) -> None:
    if name not in loaded.sinks:
        raise click.UsageError(f"no such sink: {name}; there are {', '.join(loaded.sinks) or 'none'}")


@command.command("types")
@json_option
def types(as_json: bool) -> None:
    """The sink types that can be configured: built-in, or installed as a plug-in."""
    rows = [{"type": name, "from": "aftercall"} for name in SINKS]
    rows += [{"type": entry.name, "from": entry.value} for entry in entry_points(group=GROUPS["sink"])]
    show(rows, as_json=as_json, columns=("type", "from"))
