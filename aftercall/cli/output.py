"""How commands reach the ledger and the accounts, and print what they find."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from aftercall import settings
from aftercall.client import make_client
from aftercall.errors import ProviderError
from aftercall.ledger import Ledger
from aftercall.options import parse_duration
from aftercall.plugins import provider_class
from aftercall.providers.base import Account, Provider
from aftercall.redis_client import connect
from aftercall.sinks.console_lines import printable

FAILED, CONFIGURATION, PARTLY, UNREACHABLE = 1, 3, 4, 5

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


def moment(text: str, now: datetime) -> datetime:
    """`2h` before now, or an RFC 3339 time; without an offset that counts as UTC."""
    try:
        return now - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is neither a duration like 2h nor a time like 2026-11-20T12:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def progress_bar() -> Progress:
    """On stderr, and only on a terminal; gone when it is done."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def with_provider(account: str, use: Callable[[Provider, Ledger, settings.Settings], Awaitable[_Result]]) -> _Result:
    """Run `use` with the provider of a configured account, able to ask its API, and with the ledger."""
    chosen = choose_account(account, settings.load())

    async def use_both(ledger: Ledger, loaded: settings.Settings) -> _Result:
        async with opened_provider(chosen, timeout_s=30.0) as provider:
            return await use(provider, ledger, loaded)

    return with_ledger(use_both)


@asynccontextmanager
async def opened_provider(account: Account, *, timeout_s: float = 10.0) -> AsyncIterator[Provider]:
    """The account's provider, able to ask its API."""
    async with make_client(guarded=False, timeout_s=timeout_s) as http:
        yield provider_class(account.provider)(account, http)


def choose_account(name: str, loaded: settings.Settings) -> Account:
    """The account of that name; raises `UsageError` with those there are."""
    if name not in loaded.accounts:
        raise click.UsageError(f"no such account: {name}; there are {', '.join(loaded.accounts)}")
    return loaded.accounts[name]


def refusal(account: Account, error: ProviderError) -> ProviderError:
    """The error with the account's name before it, and with what to check behind it."""
    if error.status in (401, 403):
        remedy = f"is accounts.{account.name}.api_key right, and may it do this?"
    elif error.status == 429:
        wait = f" in {error.retry_after:.0f} s" if error.retry_after else " later"
        remedy = f"too much was asked; try again{wait}"
    elif error.status is None:
        remedy = f"is the network up, and accounts.{account.name}.base_url right, if it is set?"
    elif error.status >= 500:
        remedy = "the provider is in trouble; try again later"
    else:
        remedy = "are the call or the agents named those of this account?"
    return ProviderError(f"{account.name}: {error}: {remedy}", status=error.status, retry_after=error.retry_after)


def show(rows: Iterable[Mapping[str, Any]], *, as_json: bool, columns: Iterable[str]) -> None:
    """Rows as a table for people, or as JSON lines."""
    if as_json:
        for row in rows:
            click.echo(msgspec.json.encode(row))
        return
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000  # ids are to be copied: nothing is cut or wrapped for a file or a pipe
    table = Table(*(Column(column, overflow="fold") for column in columns), box=None, header_style="bold")
    for row in rows:
        # Text: a `[/b]` in an option or in a destination's answer is no markup of ours.
        table.add_row(*(Text(printable(str(row.get(column, "")))) for column in columns))
    console.print(table)
