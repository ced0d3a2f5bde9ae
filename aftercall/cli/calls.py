"""`aftercall calls`: a call as its provider has it now."""

import asyncio

import msgspec
import rich_click as click

from aftercall import settings
from aftercall.call import Call
from aftercall.cli.output import choose_account, opened_provider, refusal
from aftercall.enrich import enrich
from aftercall.errors import ProviderError
from aftercall.providers.base import Account, Webhook


@click.group("calls")
def command() -> None:
    """Look at calls."""


@command.command("fetch")
@click.argument("account")
@click.argument("call_id")
@click.option("--json", "as_json", is_flag=True, help="On one line.")
def fetch(account: str, call_id: str, as_json: bool) -> None:
    """Ask the provider for a call's record and print the call that aftercall makes of it, as JSON.

    Nothing is stored or delivered. What only a webhook carried is not in it. Exits 5 if the provider cannot be reached
    or refuses. Needs no Redis.
    """
    chosen = choose_account(account, settings.load(need_redis=False))
    if not call_id.strip():
        raise click.UsageError("CALL_ID is empty")
    content = msgspec.json.encode(asyncio.run(_fetch(chosen, call_id)))
    click.echo(content if as_json else msgspec.json.format(content, indent=2))


async def _fetch(account: Account, call_id: str) -> Call:
    async with opened_provider(account) as provider:
        try:
            record = await provider.fetch(call_id)
        except ProviderError as error:
            if error.status in provider.not_found:
                message = f"{account.name}: {error}: there is no such call in this account (any more)"
                raise ProviderError(message, status=error.status) from None
            raise refusal(account, error) from None
    webhook = Webhook(event="", type="call.settled", call_id=call_id, dedupe_key="", body=b"")
    return enrich(provider.normalize(webhook, record))
