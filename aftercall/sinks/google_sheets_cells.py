"""Rows of a spreadsheet: which column holds what of an event, and how a value is written in a cell."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, get_args

import msgspec

from aftercall.call import Money
from aftercall.event import CallEvent
from aftercall.fields import check_path
from aftercall.sinks.text import clip

CELL = 50_000  # characters: https://support.google.com/drive/answer/37603 (2026-11)
KEYS = ("event.id", "event.source", "call.id")  # what rows are known by; no event is without them
COLUMNS = (
    *("event.id", "event.time", "event.type", "event.source", "call.id", "call.agent.name", "call.direction"),
    *("call.from", "call.to", "call.started_at", "call.duration_ms", "call.end.reason", "call.analysis.successful"),
    *("call.analysis.sentiment", "call.analysis.summary", "call.cost.total", "call.recording.url"),
)

Cell = str | int | float | bool


def check_columns(columns: Sequence[str], needed: tuple[str, ...]) -> None:
    """Raises ValueError for a path that no event has, and where a row could not be found again."""
    for column in columns:
        check_path(column.split("."))
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"rows are found again by {' and '.join(missing)}; add that")
    if columns[0] not in KEYS:
        # Sheets begins a row where the last table begins, which is further right if its first column is empty.
        raise ValueError(f"the first one must never be empty: {', '.join(KEYS)}")
    if len(set(columns)) < len(columns):
        raise ValueError("one of them is there twice")


def row(event: CallEvent, columns: Sequence[str]) -> list[Cell]:
    """The event's row. What is not known is an empty text: null would leave alone what is in the cell."""
    plain = msgspec.to_builtins(event)
    whole = {"event": plain, "call": plain["data"]["call"], "tags": plain["data"]["tags"]}
    return [_cell(_value(whole, column.split(".")), _is_money(column)) for column in columns]


def letter(number: int) -> str:
    """The name of a column by its number from 0: A, B … Z, AA …"""
    before, last = divmod(number, 26)
    return (letter(before - 1) if before else "") + chr(ord("A") + last)


def _value(here: Any, path: list[str]) -> Any:
    for depth, name in enumerate(path):
        if isinstance(here, list):
            return [_value(item, path[depth:]) for item in here]
        here = here.get(name) if isinstance(here, dict) else None
    return here


def _cell(value: Any, is_money: bool) -> Cell:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list) and all(isinstance(item, str | None) for item in value):
        value = "\n".join(filter(None, value))
    if is_money and isinstance(value, str):
        return float(Decimal(value))  # a number, so that it can be added up
    return clip(value if isinstance(value, str) else msgspec.json.encode(value).decode(), CELL)


def _is_money(column: str) -> bool:
    kind = check_path(column.split("."))
    return kind == Money or Money in get_args(kind)
