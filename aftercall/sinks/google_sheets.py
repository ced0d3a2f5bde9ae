"""Google Sheets: a row for each call, or for each event, in one tab of a spreadsheet.

Delivered means that Sheets answered with the range it wrote. A row is found again by the ids in its columns, which are
read before each write: with `row = "call"` it is then updated in place (an older event does not overwrite a later one
within a week), with `row = "event"` left as it is. What remains, since Sheets can do both only one after the other: an
append that arrives although its answer was lost, while the next attempt already looks, shows twice; and someone who
sorts or deletes rows in the moment between has the update go to another row. Columns are known by their place: keep
their order; those to the right of them are free.

https://developers.google.com/workspace/sheets/api/reference/rest/v4/spreadsheets.values and …/api/limits (2026-11).
"""

from pathlib import Path
from typing import Annotated, Literal

import httpx
from msgspec import Meta

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.google_sheets_api import Api
from aftercall.sinks.google_sheets_cells import COLUMNS, Cell, check_columns, letter, row
from aftercall.sinks.google_sheets_token import ServiceAccount
from aftercall.sinks.notes import alone

OF_CALL, OF_EVENT = ("event.source", "call.id"), ("event.id",)


class GoogleSheets(Sink):
    events = ("call.settled",)  # a row a call, when all is known

    class Config(SinkConfig, frozen=True, kw_only=True):
        spreadsheet: Annotated[
            str, Meta(pattern=r"^[\w-]+$", description="the spreadsheet's id, between /d/ and /edit in its address")
        ]
        sheet: Annotated[str, Meta(min_length=1, description="the tab's name")] = "Sheet1"
        credentials: Annotated[Secret | None, Meta(description="the JSON of a service account's key")] = None
        credentials_file: Annotated[Secret | None, Meta(description="a file that holds that JSON instead")] = None
        columns: Annotated[
            tuple[str, ...], Meta(min_length=1, description="what is written, as paths into the event")
        ] = COLUMNS
        row: Annotated[Literal["call", "event"], Meta(description="what a row is of: a call, or each event")] = "call"
        base_url: Annotated[str, Meta(description="where the API is, for a proxy")] = "https://sheets.googleapis.com"

        def __post_init__(self) -> None:
            if (self.credentials is None) == (self.credentials_file is None):
                raise ValueError("credentials: give either the key itself or credentials_file")
            for option, check in (("credentials", self._check_credentials), ("columns", self._check_columns)):
                try:
                    check()
                except ValueError as error:
                    raise ValueError(f"{option}: {error}") from None
            if url_scheme(self.base_url) not in ("http", "https"):
                raise ValueError("base_url: expected http:// or https:// and a host")

        def _check_credentials(self) -> None:
            if self.credentials is not None:
                ServiceAccount(self.credentials)

        def _check_columns(self) -> None:
            check_columns(self.columns, OF_CALL if self.row == "call" else OF_CALL + OF_EVENT)

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._options, self._per_call = config, config.row == "call"
        self._tab = "'" + config.sheet.replace("'", "''") + "'!"
        self._width = letter(len(config.columns) - 1)
        self._url = f"{config.base_url.rstrip('/')}/v4/spreadsheets/{config.spreadsheet}"

    async def open(self) -> None:
        """Read the key, and write the titles of the columns where the tab has none."""
        self._api = Api(self.http, self._url, self._read_key())
        if not await self._api.values(f"{self._tab}1:1"):
            await self._api.put(self._range(1), list(self._options.columns))

    def render(self, delivery: Delivery) -> list[Cell]:
        return row(delivery.event, self._options.columns)

    async def deliver(self, delivery: Delivery) -> str:
        event = delivery.event
        known_by = self._known_by(event, OF_CALL if self._per_call else OF_EVENT)
        note = " ".join(map(str, known_by.values()))
        async with alone(self.memory, note, event):
            if self._per_call and int(await self.memory.get(note) or 0) > event.data.sequence:
                return "a later event of the call is there"
            written = await self._write(self.render(delivery), await self._rows(known_by))
            if self._per_call:
                await self.memory.set(note, str(event.data.sequence))
            return written

    async def erase(self, call: Call) -> None:
        """Empty the call's rows. They are not deleted: rows that move meanwhile would be mistaken for others."""
        found = await self._rows({"event.source": f"/{call.provider}/{call.account}", "call.id": call.id})
        if found:
            await self._api.clear([self._range(number) for number in found])
        await self.memory.delete(f"/{call.provider}/{call.account} {call.id}")

    async def _write(self, cells: list[Cell], found: list[int]) -> str:
        if found and not self._per_call:
            return self._range(found[0])
        if found:
            return await self._api.put(self._range(found[0]), cells)
        return await self._api.append(f"{self._tab}A:{self._width}", cells)

    async def _rows(self, known_by: dict[str, Cell]) -> list[int]:
        """The numbers of the rows that have these values."""
        letters = [letter(self._options.columns.index(column)) for column in known_by]
        columns = await self._api.columns([f"{self._tab}{name}:{name}" for name in letters])
        return [number for number, ids in enumerate(zip(*columns, strict=False), 1) if ids == (*known_by.values(),)]

    def _known_by(self, event: CallEvent, columns: tuple[str, ...]) -> dict[str, Cell]:
        return dict(zip(columns, row(event, columns), strict=True))

    def _range(self, number: int) -> str:
        return f"{self._tab}A{number}:{self._width}{number}"

    def _read_key(self) -> ServiceAccount:
        try:
            return ServiceAccount(self._options.credentials or Path(self._options.credentials_file or "").read_bytes())
        except OSError as error:
            raise SinkError(f"credentials_file cannot be read: {type(error).__name__}") from None
        except ValueError as error:
            raise SinkError(f"credentials_file: {error}", permanent=True) from None
