"""How commands reach the ledger and print what they find."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from aftercall import settings
from aftercall.ledger import Ledger
from aftercall.redis_client import connect

FAILED, PARTLY = 1, 4

_Result = TypeVar("_Result")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def with_ledger(use: Callable[[Ledger, settings.Settings], Awaitable[_Result]]) -> _Result:
    """Run `use` with the configured ledger and close it."""
    loaded = settings.load()

    async def run() -> _Result:
        ledger = Ledger(connect(loaded.redis_url), retention_s=loaded.retention_s)
        try:
            return await use(ledger, loaded)
        finally:
            await ledger.close()

    return asyncio.run(run())


def show(rows: Iterable[Mapping[str, Any]], *, as_json: bool, columns: Iterable[str]) -> None:
    """Rows as a table for people, or as JSON lines."""
    if as_json:
        for row in rows:
            click.echo(msgspec.json.encode(row))
        return
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console(soft_wrap=True).print(table)
