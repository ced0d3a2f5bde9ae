"""`aftercall erase`: a call's content goes from the ledger and the sinks, and where asked from the provider."""

import sys
from typing import Any

import rich_click as click

from aftercall.cli.output import FAILED, PARTLY, UNREACHABLE, json_option, show, with_provider
from aftercall.erasure import erase_call
from aftercall.errors import NotOffered, ProviderError
from aftercall.ledger import Ledger
from aftercall.patience import may_pass
from aftercall.providers.base import Provider
from aftercall.settings import Settings

COLUMNS = ("call", "erased")


@click.command("erase")
@click.argument("account")
@click.argument("call_ids", nargs=-1, required=True, metavar="CALL_ID...")
@click.option(
    "--at-provider", is_flag=True, help="Delete it at the provider too; what cannot be deleted is not erased."
)
@json_option
def command(account: str, call_ids: tuple[str, ...], at_provider: bool, as_json: bool) -> None:
    """Erase calls for good.

    Their content leaves the ledger at once, what was still to be delivered included; `call.erased` tells the sinks, and
    a sink that can deletes its copy. A tombstone stays: no replay, late webhook or reconciling brings the call back.
    Without --at-provider the provider keeps what it has. Exits 4 if some could not be erased; if none could, 5 where
    the provider cannot be reached or is in trouble, else 1.
    """
    if not all(map(str.strip, call_ids)):
        raise click.UsageError("a CALL_ID is empty: is a variable of your shell not set?")

    async def run(provider: Provider, ledger: Ledger, settings: Settings) -> tuple[list[dict[str, Any]], list[bool]]:
        rows: list[dict[str, Any]] = []
        failed: list[bool] = []  # whether it may pass
        for call_id in dict.fromkeys(call_ids):
            heard_of = await ledger.call_events(account, call_id)
            try:
                new = await erase_call(ledger, provider, call_id, sinks=settings.sinks, at_provider=at_provider)
                rows.append({"call": call_id, "erased": "now" if new else "before"})
                if new and not heard_of:  # it may be a mistyped id
                    click.echo(f"nothing was known of {call_id}; it is kept away from now on", err=True)
            except (ProviderError, NotOffered) as error:
                failed.append(isinstance(error, ProviderError) and may_pass(error))
                rows.append({"call": call_id, "erased": f"not: {error}"})
        return rows, failed

    rows, failed = with_provider(account, run)
    show(rows, as_json=as_json, columns=COLUMNS)
    if failed:
        click.echo(
            f"{len(failed)} could not be deleted at the provider and are not erased; give the command again", err=True
        )
        sys.exit(PARTLY if len(failed) < len(rows) else UNREACHABLE if all(failed) else FAILED)
