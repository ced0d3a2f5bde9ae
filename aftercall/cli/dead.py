"""`aftercall dead`: deliveries that were given up, and events that could not be processed."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import rich_click as click

from aftercall.cli.output import FAILED, PARTLY, json_option, show, with_ledger
from aftercall.ledger import Ledger

COLUMNS = ("event", "sink", "attempts", "at", "error")
BATCH = 500
Letter = tuple[str, str]


@click.group("dead")
def command() -> None:
    """Look at dead letters, replay or drop them."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Every dead letter with its last error, oldest first. The sink @process: the event never got as far as a sink."""

    async def read(ledger: Ledger, _: Any) -> list[dict[str, Any]]:
        rows = []
        for letters in _batches(await ledger.dead_letters()):
            for (event, sink), state in zip(letters, await ledger.delivery_states(letters), strict=True):
                last = state.attempts[-1] if state.attempts else None
                rows.append(
                    {
                        "event": event,
                        "sink": sink,
                        "attempts": state.made,
                        "at": last.at if last else None,
                        "error": last.error if last else None,
                    }
                )
        return rows

    show(with_ledger(read), as_json=as_json, columns=COLUMNS)


_events = click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
_sink = click.option("--sink", help="Only those of this sink; @process: events that could not be processed.")
_all = click.option("--all", "everything", is_flag=True, help="Every dead letter (of that sink).")


@command.command("replay")
@_events
@_sink
@_all
def replay(event_ids: tuple[str, ...], sink: str | None, everything: bool) -> None:
    """Deliver dead letters again: same event id, the sink's present settings, its schedule from the beginning."""

    async def again(ledger: Ledger, letter: Letter) -> bool:
        answer = await ledger.replay(*letter)
        if answer == "content_gone":
            raise ValueError(f"the content of {letter[0]} is no longer stored")
        return answer == "due"

    _each(event_ids, sink, everything, again, "replayed")


@command.command("drop")
@_events
@_sink
@_all
def drop(event_ids: tuple[str, ...], sink: str | None, everything: bool) -> None:
    """Give dead letters up for good."""
    _each(event_ids, sink, everything, lambda ledger, letter: ledger.drop(*letter), "dropped")


def _each(
    event_ids: tuple[str, ...],
    sink: str | None,
    everything: bool,
    act: Callable[[Ledger, Letter], Awaitable[bool]],
    done: str,
) -> None:
    """Act on the dead letters chosen. Exits 1 if none was, 4 if some could not be."""
    if bool(event_ids) == everything:
        raise click.UsageError("name event ids, or --all")

    async def run(ledger: Ledger, _: Any) -> tuple[int, list[str]]:
        chosen = [
            letter
            for letter in await ledger.dead_letters()
            if (everything or letter[0] in event_ids) and sink in (None, letter[1])
        ]
        results: list[bool | BaseException] = []
        for batch in _batches(chosen):
            results += await asyncio.gather(*(act(ledger, letter) for letter in batch), return_exceptions=True)
        problems = [str(result) for result in results if isinstance(result, ValueError)]
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ValueError):
                raise result
        return sum(result is True for result in results), problems

    count, problems = with_ledger(run)
    for problem in problems:
        click.echo(problem, err=True)
    click.echo(f"{count} {done}", err=True)
    if problems and count:
        sys.exit(PARTLY)
    if not count:
        sys.exit(FAILED)


def _batches(letters: list[Letter]) -> Iterator[list[Letter]]:
    """A few hundred at once: more would crowd the pipeline to Redis."""
    for start in range(0, len(letters), BATCH):
        yield letters[start : start + BATCH]
