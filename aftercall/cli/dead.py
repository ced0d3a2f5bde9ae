"""`aftercall dead`: deliveries that were given up, and events that could not be processed."""

import asyncio
from typing import Any

import rich_click as click

from aftercall.cli.output import json_option, show, with_ledger
from aftercall.ledger import PROCESS_STEP, Ledger

COLUMNS = ("event", "sink", "attempts", "at", "error")


@click.group("dead")
def command() -> None:
    """Look at dead letters."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Every dead letter with its last error, oldest first. The sink @process: the event never got as far as a sink."""

    async def read(ledger: Ledger, _: Any) -> list[dict[str, Any]]:
        rows = []
        letters = await ledger.dead_letters()
        events = await asyncio.gather(*(ledger.event(event) for event, _ in letters))
        for (event, sink), found in zip(letters, events, strict=True):
            attempts = found[1][sink].attempts if found and sink in found[1] else []
            last = attempts[-1] if attempts else None
            rows.append(
                {
                    "event": event,
                    "sink": sink,
                    "attempts": len(attempts) if sink != PROCESS_STEP else 0,
                    "at": last.at if last else None,
                    "error": last.error if last else None,
                }
            )
        return rows

    show(with_ledger(read), as_json=as_json, columns=COLUMNS)
