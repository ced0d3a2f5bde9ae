"""`aftercall replay`: deliver events again, one by one or in bulk."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import get_args

import rich_click as click

from aftercall import options
from aftercall.cli.output import FAILED, PARTLY, json_option, moment, progress_bar, show, with_ledger
from aftercall.event import EventType, decode
from aftercall.ledger import Ledger
from aftercall.settings import Settings
from aftercall.sink_settings import SinkSettings
from aftercall.states import KeptEvent

COLUMNS = ("event", "sink", "type", "account", "call", "was", "now")
BATCH = 200
WORDS = {
    "erased": "not possible: the call was erased",
    "due": "due again",
    "brought_forward": "brought forward",
    "under_way": "left alone: an attempt is under way",
    "content_gone": "not possible: the content is no longer stored",
    "unprocessed": "not possible: not processed yet",
    "unknown": "not possible: no such event",
}
LEFT_OUT = {"erased", "content_gone"}  # in bulk: nobody can do anything about them, and nobody named them
TYPES = get_args(EventType)
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
    Ctrl-C stops it, and what was replayed by then stays so. With --since, events whose call was erased or whose content
    must not be kept are told of and left out. Exits 4 if others could not be replayed, 1 if none was.
    """
    if bool(event_ids) == bool(since):
        raise click.UsageError("name event ids, or --since")
    now = datetime.now(UTC)
    span = (round(moment(since or "0s", now).timestamp() * 1000), round(moment(until or "0s", now).timestamp() * 1000))
    if since and span[0] >= span[1]:
        raise click.UsageError("--until is before --since: `--since 2h --until 1h` is the hour before the last one")

    async def run(ledger: Ledger, settings: Settings) -> tuple[list[dict[str, str]], Counter[str]]:
        targets = _targets(settings, sinks)
        for word in types:
            if word not in TYPES:
                raise click.UsageError(options.unknown(f"--type {word}", "type", word, TYPES))
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
                        for row in _rows(id_, one, targets, types, accounts)
                        if event_ids or row["now"] not in ("unknown", "unprocessed")
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
    done = any(counts[word] for word in (*DONE, "dry"))
    if counts and (not done or set(counts) - {*DONE, "dry"} - (LEFT_OUT if since else set())):
        sys.exit(PARTLY if done else FAILED)
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
    id_: str, kept: KeptEvent | None, targets: list[SinkSettings], types: tuple[str, ...], accounts: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    """One row for each sink that wants the event; `now` says why it cannot be had, if so."""
    if kept is None:
        yield {"event": id_, "sink": "", "type": "", "account": "", "call": "", "was": "", "now": "unknown"}
        return
    if (types and kept.type not in types) or (accounts and kept.account not in accounts):
        return
    event = decode(kept.body) if kept.body is not None else None
    about = {"type": event.type if event else kept.type, "account": kept.account, "call": kept.call_id}
    wanted = [
        sink.name
        for sink in targets
        if (sink.wants(event, told=kept.deliveries) if event else sink.name in kept.deliveries)
    ]
    why = "" if event else "erased" if kept.erased else "content_gone" if kept.deliveries else "unprocessed"
    if why and not kept.deliveries:
        yield {"event": id_, "sink": "", **about, "was": "", "now": why}
    for name in wanted:
        was = kept.deliveries[name].state if name in kept.deliveries else "never sent"
        yield {"event": id_, "sink": name, **about, "was": was, "now": why}
