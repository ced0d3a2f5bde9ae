"""`aftercall reconcile`: find what no webhook told, in the provider's list of calls."""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import rich_click as click

from aftercall.cli.output import (
    FAILED,
    PARTLY,
    UNREACHABLE,
    json_option,
    moment,
    progress_bar,
    refusal,
    show,
    with_provider,
)
from aftercall.errors import NotOffered, ProviderError
from aftercall.ledger import Ledger
from aftercall.options import parse_rate
from aftercall.providers.base import Provider
from aftercall.reconcile import Found, Reconciler
from aftercall.settings import Settings

COLUMNS = ("call", "type", "event", "done")
RESUME_WITHIN_S = 3600.0  # what broke off longer ago begins anew
NOTED = ("walk_since", "walk_cursor", "walk_at")


@click.command("reconcile")
@click.argument("account")
@click.option("--since", default="7d", show_default=True, help="Calls that began since then: 2h, 30d, or a time.")
@click.option(
    "--rate", default="50/s", show_default=True, help="Requests to the provider, the workers' for it included."
)
@click.option("--restart", is_flag=True, help="Begin anew, also where a walk broke off within the hour.")
@click.option("--dry-run", is_flag=True, help="Show what would be accepted or erased; change nothing.")
@json_option
def command(account: str, since: str, rate: str, restart: bool, dry_run: bool, as_json: bool) -> None:
    """Compare the ledger with the provider's list of calls, and make good what is missing.

    The end, the analysis or the bill of a call that no webhook told is accepted now, under the event id that the
    webhook would have; one that comes later is a duplicate. Calls deleted at the provider are erased here and in the
    sinks. What breaks off goes on where it was when the command is given again. Exits 4 if records could not be had.
    """
    try:
        per_s = parse_rate(rate)
    except ValueError as error:
        raise click.UsageError(f"--rate: {error}") from None
    begin = moment(since, datetime.now(UTC))
    if begin > datetime.now(UTC):
        raise click.UsageError("--since: that is in the future")

    async def run(provider: Provider, ledger: Ledger, settings: Settings) -> int:
        walk = Reconciler(ledger, provider, begin, sinks=settings.sinks, per_s=per_s, dry_run=dry_run)
        cursor = None
        if not (dry_run or restart):
            cursor = await _broken_off(ledger, account, walk)
        counts: Counter[str] = Counter()
        shown: list[Found] = []
        try:
            await _follow(walk, cursor, counts, shown, as_json=as_json)
        except asyncio.CancelledError:
            _show(walk.found[len(shown) :], counts, as_json=as_json)
            click.echo("stopped; what was found so far stays, and the command given again goes on from there", err=True)
            _tell(counts, dry_run)
            return PARTLY
        except NotOffered as error:
            click.echo(str(error), err=True)
            return FAILED
        except ProviderError as error:
            click.echo(str(refusal(provider.account, error)), err=True)
            click.echo("what was found so far stays; the command given again goes on from there", err=True)
            _tell(counts, dry_run)
            return FAILED if error.status in (400, 401, 403, 422) else UNREACHABLE
        _tell(counts, dry_run)
        if walk.unanswered:
            many = f"{len(walk.unanswered)} records could not be had, the first of {walk.unanswered[0]}"
            click.echo(f"{many}; what they tell is missing: give the command again", err=True)
            return PARTLY
        return 0

    sys.exit(with_provider(account, run))


async def _broken_off(ledger: Ledger, account: str, walk: Reconciler) -> str | None:
    """The cursor at which a walk that reached as far back broke off within the hour."""
    noted = await ledger.reconcile_progress(account)
    since, cursor, at = (noted.get(name) for name in NOTED)
    if not (since and cursor and at) or datetime.fromisoformat(since) > walk.since:
        return None
    if (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() > RESUME_WITHIN_S:
        return None
    walk.since = datetime.fromisoformat(since)
    click.echo(f"going on with the walk that broke off at {at} (--restart begins anew)", err=True)
    return cursor


async def _follow(
    walk: Reconciler, cursor: str | None, counts: Counter[str], shown: list[Found], *, as_json: bool
) -> None:
    """Walk to the end, showing what is found page by page, and noting how far it came."""
    with progress_bar() as progress:
        task = progress.add_task("reconciling", total=None)
        async for step in walk.walk(cursor):
            counts["calls"] += step.calls
            _show(step.found, counts, as_json=as_json)
            shown += step.found
            progress.update(
                task, description=f"reconciling: {counts['calls']} calls, {counts['accepted']} events found"
            )
            if not walk.dry_run:
                now = datetime.now(UTC).isoformat()
                noted = dict(zip(NOTED, (walk.since.isoformat(), step.cursor, now), strict=True)) if step.cursor else {}
                await walk.ledger.note_progress(walk.account, noted, forget=() if noted else NOTED)


def _show(found: Sequence[Found], counts: Counter[str], *, as_json: bool) -> None:
    counts.update(one.done for one in found)
    if found:
        show(msgspec.to_builtins(found), as_json=as_json, columns=COLUMNS)


def _tell(counts: Counter[str], dry_run: bool) -> None:
    done = "would be accepted or erased" if dry_run else "accepted"
    click.echo(
        f"{counts['calls']} calls listed, {counts['nothing' if dry_run else 'accepted']} events {done}", err=True
    )
    for word, what in (("replayed", "dead letters processed again"), ("erased", "calls erased")):
        if counts[word]:
            click.echo(f"{counts[word]} {what}", err=True)
