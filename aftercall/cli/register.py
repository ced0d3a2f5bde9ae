"""`aftercall register`: have a provider send its webhooks here."""

import asyncio
import ipaddress
import sys
from urllib.parse import SplitResult, urlsplit

import rich_click as click

from aftercall import settings
from aftercall.cli.output import FAILED, choose_account, opened_provider, refusal
from aftercall.errors import NotOffered, ProviderError
from aftercall.patience import A_FEW_S, may_pass, patiently
from aftercall.providers.base import Account


@click.command("register")
@click.argument("account")
@click.option("--url", required=True, help="Where aftercall is reached: https://hub.example.com, or the whole URL.")
@click.option("--agent", "agents", multiple=True, help="Only for this agent's id; may be repeated. Default: all.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing at the provider.")
def command(account: str, url: str, agents: tuple[str, ...], dry_run: bool) -> None:
    """Have the account's provider send its webhooks to aftercall, and print what was done.

    May be repeated. Exits 1 if the provider's API has no such thing or refuses, 5 if it cannot be reached. Needs no
    Redis.
    """
    chosen = choose_account(account, settings.load(need_redis=False))
    target = webhook_url(url, account)
    try:
        lines = asyncio.run(_register(chosen, target, agents, dry_run=dry_run))
    except NotOffered as error:
        click.echo(f"{account}: {error}: register {_shown(target)} by hand, in the provider's console", err=True)
        sys.exit(FAILED)
    except ProviderError as error:
        for line in getattr(error, "__notes__", ()):
            click.echo(line)
        click.echo("not all was done; when the reason is mended, run it again: it may be repeated", err=True)
        told = refusal(chosen, error)
        if may_pass(error):
            raise told from None
        click.echo(str(told), err=True)
        sys.exit(FAILED)
    for line in lines:
        click.echo(line)
    if dry_run:
        click.echo("nothing was changed (--dry-run)", err=True)


def webhook_url(url: str, account: str) -> str:
    """The account's webhook URL from this one or from the service's root; raises `UsageError` for what is neither."""
    path = f"/webhooks/{account}"
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        parts, host = SplitResult("", "", "", "", ""), ""
    if parts.scheme not in ("http", "https") or not host:
        raise click.UsageError("--url: expected a whole URL, as in https://hub.example.com")
    if parts.scheme == "http" and not _is_loopback(host):
        raise click.UsageError(
            "--url: http:// would send what was said on the phone through the network in the clear, and most providers "
            "refuse it; use https://"
        )
    if parts.fragment:
        raise click.UsageError("--url: a part after # is never sent; leave it out")
    if parts.path in ("", "/"):
        click.echo(f"{path} is appended: there aftercall takes the webhooks of {account}", err=True)
        return parts._replace(path=path).geturl()
    if not parts.path.endswith(path):
        click.echo(f"warning: aftercall takes the webhooks of {account} at {path}; the URL is kept as it is", err=True)
    return parts.geturl()


def _shown(url: str) -> str:
    """Without a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


async def _register(account: Account, url: str, agents: tuple[str, ...], *, dry_run: bool) -> list[str]:
    async with opened_provider(account) as provider:
        return await patiently(lambda: provider.register(url, agents=agents, dry_run=dry_run), A_FEW_S)
