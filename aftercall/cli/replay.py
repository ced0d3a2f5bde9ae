"""`aftercall replay`: deliver events again, one by one or in bulk."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import rich_click as click

from aftercall.cli.output import FAILED, PARTLY, json_option, moment, progress_bar, show, with_ledger
from aftercall.event import CallEvent, decode
from aftercall.ledger import Ledger
from aftercall.settings import Settings
from aftercall.sink_settings import SinkSettings

COLUMNS = ("event", "sink", "type", "account", "call", "was", "now")
BATCH = 200
WORDS = {
    "due": "due again",
    "brought_forward": "brought forward",
    "under_way": "left alone: an attempt is under way",
    "content_gone": "not possible: the content is no longer stored",
    "unprocessed": "not possible: not processed yet",
    "unknown": "not possible: no such event",
}
DONE = ("due", "brought_forward", "under_way")


@click.command("replay")
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@click.option("--since", help="Events accepted since then: 2h, 7d, or a time like 2026-11-20T12:00:00Z.")
@click.option("--until", help="And until then. Default: now.")
@click.option("--sink", "sinks", multiple=True, help="To this sink only; may be repeated. Default: all that want it.")
@click.option("--type", "types", multiple=True, help="Only events of this type; may be repeated.")
@click.option("--account", "accounts", multiple=True, help="Only events of this account; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Show what would be delivered again; change nothing.")
@json_option
def command(
    event_ids: tuple[str, ...],
    since: str | None,
    until: str | None,
    sinks: tuple[str, ...],
    types: tuple[str, ...],
    accounts: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Deliver events again, delivered or not, to the sinks that want them by their present settings.

    Each keeps its event id. A delivery that waits for its next attempt is brought forward; one under way is left alone.
    Ctrl-C stops it, and what was replayed by then stays so. Exits 4 if some could not be replayed, 1 if none was found.
    """
    if bool(event_ids) == bool(since):
        raise click.UsageError("name event ids, or --since")
    now = datetime.now(UTC)
    span = (round(moment(since or "0s", now).timestamp() * 1000), round(moment(until or "0s", now).timestamp() * 1000))

    async def run(ledger: Ledger, settings: Settings) -> tuple[list[dict[str, str]], Counter[str]]:
        targets = _targets(settings, sinks)
        shown: list[dict[str, str]] = []
        counts: Counter[str] = Counter()
        with progress_bar() as progress:
            task = progress.add_task("replaying", total=len(event_ids) or await ledger.count_events(*span))
            batches = _named(event_ids) if event_ids else ledger.events_between(*span, batch=BATCH)
            try:
                async for ids in batches:
                    found = await asyncio.gather(*(ledger.event(id_) for id_ in ids))
                    chosen = [
                        row
                        for id_, one in zip(ids, found, strict=True)
                        for row in _rows(id_, one, targets, types, accounts, named=bool(event_ids))
                    ]
                    if not dry_run:
                        await asyncio.gather(*(_replay(ledger, row) for row in chosen if not row["now"]))
                    counts.update(row["now"] or "dry" for row in chosen)
                    shown += [row for row in chosen if as_json or dry_run or row["now"] not in DONE]
                    progress.advance(task, len(ids))
            except asyncio.CancelledError:
                counts["cancelled"] += 1
        return shown, counts

    rows, counts = with_ledger(run)
    show(rows, as_json=as_json, columns=COLUMNS)
    for word, count in counts.items():
        click.echo(f"{count} {WORDS.get(word, 'would be delivered again')}" if word != "cancelled" else "", err=True)
    if counts["cancelled"]:
        click.echo("stopped; what was replayed so far stays replayed", err=True)
    if set(counts) - {*DONE, "dry"}:
        sys.exit(PARTLY if any(counts[word] for word in DONE) else FAILED)
    if not counts:
        click.echo("no event found that a sink wants", err=True)
        sys.exit(FAILED)


async def _replay(ledger: Ledger, row: dict[str, str]) -> None:
    row["now"] = await ledger.replay(row["event"], row["sink"], only_dead=False)


def _targets(settings: Settings, names: Iterable[str]) -> list[SinkSettings]:
    unknown = [name for name in names if name not in settings.sinks]
    if unknown:
        raise click.UsageError(f"no such sink: {unknown[0]}; there are {', '.join(settings.sinks) or 'none'}")
    return [sink for name, sink in settings.sinks.items() if not names or name in names]


async def _named(event_ids: tuple[str, ...]) -> AsyncIterator[list[str]]:
    for start in range(0, len(event_ids), BATCH):
        yield list(event_ids[start : start + BATCH])


def _rows(
    id_: str, found: Any, targets: list[SinkSettings], types: tuple[str, ...], accounts: tuple[str, ...], *, named: bool
) -> Iterator[dict[str, str]]:
    """One row for each sink that wants the event; `now` says why it cannot be had, if so."""
    blank = {"event": id_, "sink": "", "type": "", "account": "", "call": "", "was": ""}
    if found is None or found[0] is None:
        if named:
            known = found is not None and found[1]
            yield blank | {"now": "unknown" if found is None else "content_gone" if known else "unprocessed"}
        return
    event: CallEvent = decode(found[0])
    account = event.data.call.account
    if (types and event.type not in types) or (accounts and account not in accounts):
        return
    for sink in targets:
        if sink.wants(event, told=found[1]):
            was = found[1][sink.name].state if sink.name in found[1] else "never sent"
            yield {
                "event": id_,
                "sink": sink.name,
                "type": event.type,
                "account": account,
                "call": event.subject,
                "was": was,
                "now": "",
            }
