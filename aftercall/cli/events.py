"""`aftercall events`: the schema, the latest events, one event and its deliveries."""

import sys
from typing import Any

import msgspec
import rich_click as click

from aftercall.cli.output import json_option, show, with_ledger
from aftercall.event import CallEvent
from aftercall.ledger import Ledger
from aftercall.states import KeptEvent

COLUMNS = ("id", "type", "account", "call_id", "sequence", "state", "copies", "received_at")


@click.group("events")
def command() -> None:
    """Look at events."""


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of the event, made from the code."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(CallEvent)}
    click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2))


@command.command("list")
@click.option("--limit", default=50, type=click.IntRange(min=1), show_default=True, help="How many, newest first.")
@json_option
def list_(limit: int, as_json: bool) -> None:
    """The latest events: what and when, without their content."""

    async def read(ledger: Ledger, _: Any) -> list[dict[str, str]]:
        return await ledger.events(limit=limit)

    show(with_ledger(read), as_json=as_json, columns=COLUMNS)


@command.command("show")
@click.argument("event_id")
def show_one(event_id: str) -> None:
    """One event, whole, and every attempt to deliver it, as JSON."""

    async def read(ledger: Ledger, _: Any) -> KeptEvent | None:
        return await ledger.event(event_id)

    found = with_ledger(read)
    if found is None:
        click.echo(f"There is no event {event_id}, or its retention is over.", err=True)
        sys.exit(1)
    whole = {"event": msgspec.Raw(found.body) if found.body else None, "deliveries": found.deliveries}
    click.echo(msgspec.json.format(msgspec.json.encode(whole), indent=2))
    if not found.body:
        why = "is not processed yet" if found.waits else "has no content any more"
        click.echo(f"{found.type or 'the event'} {why}{': its call was erased' if found.erased else ''}", err=True)
