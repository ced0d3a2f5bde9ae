"""The values of a spreadsheet, through Google's API, and what its answers mean.

https://developers.google.com/workspace/sheets/api/reference/rest/v4/spreadsheets.values and …/api/limits (2026-11).
"""

from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec

from aftercall.errors import SinkError
from aftercall.sinks.google_sheets_cells import Cell
from aftercall.sinks.google_sheets_token import ServiceAccount
from aftercall.sinks.http import request

# The text as it is, so that no formula is made of what a caller said: …/rest/v4/ValueInputOption (2026-11).
RAW = "valueInputOption=RAW"
ANSWER = 32 * 1024 * 1024  # of an answer: the ids of some 400,000 rows
A_MINUTE = 60.0  # quotas are refilled every minute, and their 429 does not say so
REMEDIES = {
    400: "is there a tab of that name, and room for a row?",
    403: "share the spreadsheet with the service account, as an editor, and enable the Sheets API in its project",
    404: "is that the spreadsheet's id?",
}


class Range(msgspec.Struct, frozen=True, rename="camel"):
    values: list[list[Any]] = []
    updated_range: str = ""


class Reply(Range, frozen=True, rename="camel"):
    value_ranges: list[Range] = []
    updates: Range = Range()


class Api:
    """One spreadsheet. Ranges are in A1 notation."""

    def __init__(self, http: httpx.AsyncClient, url: str, account: ServiceAccount) -> None:
        self._http, self._url, self._account = http, url, account

    async def values(self, range_: str) -> list[list[Any]]:
        """What is there, row by row, without what is empty at the end."""
        return (await self._ask("GET", f"/values/{_in_path(range_)}")).values

    async def columns(self, ranges: list[str]) -> list[list[Any]]:
        """What each of the columns holds, from the top."""
        wanted = {"majorDimension": "COLUMNS", "valueRenderOption": "UNFORMATTED_VALUE", "prettyPrint": "false"}
        query = urlencode([*wanted.items(), *(("ranges", range_) for range_ in ranges)])
        reply = await self._ask("GET", f"/values:batchGet?{query}")
        if len(reply.value_ranges) != len(ranges):
            raise SinkError("Sheets does not say what is there")
        return [found.values[0] if found.values else [] for found in reply.value_ranges]

    async def append(self, range_: str, row: list[Cell]) -> str:
        """Add a row below the last table of the range, and move what else is below; where it is now."""
        path = f"/values/{_in_path(range_)}:append?{RAW}&insertDataOption=INSERT_ROWS"
        return _where((await self._ask("POST", path, {"values": [row]})).updates)

    async def put(self, range_: str, row: list[Cell]) -> str:
        """Write over a row; where it is."""
        return _where(await self._ask("PUT", f"/values/{_in_path(range_)}?{RAW}", {"values": [row]}))

    async def clear(self, ranges: list[str]) -> None:
        await self._ask("POST", "/values:batchClear", {"ranges": ranges})

    async def _ask(self, method: str, path: str, body: object = None) -> Reply:
        token = await self._account.token(self._http)
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        content = b"" if body is None else msgspec.json.encode(body)
        answer = await request(
            self._http,
            method,
            self._url + path,
            content,
            headers,
            accept={401, *REMEDIES},
            limit=ANSWER,
            patience=lambda _: A_MINUTE,
        )
        if answer.status == 401:
            self._account.forget(token)
            raise SinkError("HTTP 401: the token is not good any more")
        if answer.status in REMEDIES:
            raise SinkError(f"{answer}: {REMEDIES[answer.status]}", permanent=True)
        try:
            return msgspec.json.decode(answer.body, type=Reply)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SinkError("the answer is not that of Sheets, or the tab is too long: start a new one") from None


def _where(written: Range) -> str:
    if not written.updated_range:
        raise SinkError("Sheets does not say what it wrote")
    return written.updated_range


def _in_path(range_: str) -> str:
    return quote(range_, safe="")
