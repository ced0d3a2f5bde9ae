"""HubSpot's API, and what its answers mean.

https://developers.hubspot.com/docs/api-reference/error-handling and …/developer-tooling/platform/usage-guidelines
(2026-11).
"""

from typing import TypeVar

import httpx
import msgspec

from aftercall.errors import SinkError
from aftercall.sinks.http import Answer, request

# A 429 has no Retry-After, and names what was used up. The day is over at the portal's midnight, wherever that is; what
# names neither is the search, which allows five requests a second.
PATIENCE = {b'"DAILY"': 3600.0, b'"TEN_SECONDLY_ROLLING"': 10.0}
A_SECOND = 1.0
ANSWER = 1024 * 1024  # of an answer, which repeats what was written
LATER = frozenset({"CONFLICT", "RATE_LIMITS"})  # categories of what another attempt may mend


T = TypeVar("T")


class Object(msgspec.Struct):
    id: str
    properties: dict[str, str | None] = {}


class Problem(msgspec.Struct):
    category: str | None = None


class Reply(msgspec.Struct):
    results: list[Object] = []
    errors: list[Problem] = []


class Api:
    """The API with one token. `unique` are the properties that objects are known by."""

    def __init__(self, http: httpx.AsyncClient, base_url: str, token: str, unique: tuple[str, ...]) -> None:
        self._http, self._url, self._unique = http, f"{base_url.rstrip('/')}/crm/v3/", unique
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    async def ask(self, method: str, path: str, body: object = None, *, accept: frozenset[int] = frozenset()) -> Answer:
        """A request's answer. Raises `SinkError` as `request` does, with the remedy where a property is missing."""
        content = b"" if body is None else msgspec.json.encode(body)
        answer = await request(
            self._http,
            method,
            self._url + path,
            content,
            self._headers,
            accept={400, *accept},
            limit=ANSWER,
            patience=_patience,
        )
        if answer.status == 400:
            named = any(name.encode() in answer.body for name in self._unique)
            remedy = ": the unique property is not there, run `aftercall sinks migrate`" if named else ""
            raise SinkError(f"HTTP 400{remedy}", permanent=True)
        return answer

    async def post(self, path: str, body: object) -> Reply:
        """What a batch or a search found."""
        return read((await self.ask("POST", path, body)).body, Reply)

    async def upsert(self, kind: str, body: object) -> str:
        """Create or update one object; its id. 207 instead of 200 says that it was refused."""
        reply = await self.post(f"objects/{kind}/batch/upsert", body)
        if not reply.results:
            mends = not reply.errors or any(error.category in LATER for error in reply.errors)
            raise SinkError(f"HubSpot did not take one of the {kind}", permanent=not mends)
        return reply.results[0].id


def upserting(unique: str, value: str, properties: dict[str, str]) -> dict[str, object]:
    """The body of an upsert of one object, the one whose unique property has that value."""
    return {"inputs": [{"idProperty": unique, "id": value, "properties": {unique: value, **properties}}]}


def read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SinkError("the answer is not HubSpot's; check base_url") from None


def _patience(body: bytes) -> float:
    return next((seconds for policy, seconds in PATIENCE.items() if policy in body), A_SECOND)
