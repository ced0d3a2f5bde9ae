"""`aftercall sinks`: which sinks are configured, and which types there are."""

from importlib.metadata import entry_points

import rich_click as click

from aftercall import settings
from aftercall.cli.output import json_option, show
from aftercall.plugins import GROUPS, SINKS


@click.group("sinks")
def command() -> None:
    """Look at sinks."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The configured sinks, their options masked where they are secret."""
    rows = [
        {"name": name, "type": sink.sink_type, "events": ",".join(sink.events), "options": repr(sink.config)}
        for name, sink in settings.load().sinks.items()
    ]
    show(rows, as_json=as_json, columns=("name", "type", "events", "options"))


@command.command("types")
@json_option
def types(as_json: bool) -> None:
    """The sink types that can be configured: built-in, or installed as a plug-in."""
    rows = [{"type": name, "from": "aftercall"} for name in SINKS]
    rows += [{"type": entry.name, "from": entry.value} for entry in entry_points(group=GROUPS["sink"])]
    show(rows, as_json=as_json, columns=("type", "from"))
