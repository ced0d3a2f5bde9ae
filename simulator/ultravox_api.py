"""Ultravox's API: a call, its messages, the lists of calls and of deleted calls, deletion, and webhooks.

https://docs.ultravox.ai/api-reference/calls/calls-list, /calls/calls-deleted-calls-list, /webhooks/webhooks-list
(2026-11). Lists come in pages with full URLs to their neighbours.
"""

import base64
import binascii
import re
import secrets
import time
import uuid
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from litestar import Response, delete, get, patch, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from simulator.answers import Answer, Api, HttpRequest, parameters, read_object, refuse, whole_number
from simulator.faults import Faults
from simulator.parts import Json, iso
from simulator.records import Records

ROOT = "https://api.ultravox.ai"  # `next` names this host, whichever way the request came
PAGE_SIZE = 4  # of messages; small here, so that every longer call has several pages
LIST_PAGE_SIZE, MOST = 10, 100  # of calls and of webhooks, by default and at most; neither is documented
EVENTS = ("call.started", "call.joined", "call.ended", "call.billed")
URL_LENGTH, SECRET_LENGTH = 200, 120

PAGED = {"cursor", "pageSize"}
FILTERS = {"fromDate", "toDate", "agentIds"}


def ultravox_handlers(records: Records, key: str, faults: Faults) -> list[HTTPRouteHandler]:
    """The API over these records, for this key."""

    def admit(request: HttpRequest) -> Answer | None:
        return None if request.headers.get("x-api-key") == key else refuse("ultravox", 401)

    api = Api("ultravox", admit, faults)
    webhooks: dict[str, Json] = {}

    @get("/api/calls/{call_id:str}")
    async def get_call(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            status, record = records.find("ultravox", call_id)
            return Answer(body=record) if status == 200 else refuse("ultravox", status)

        return await api.answer(request, make, "get")

    @get("/api/calls/{call_id:str}/messages")
    async def get_messages(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            messages = records.messages(call_id)
            if messages is None:
                return refuse("ultravox", 404)
            # Without mode=in_call, earlier stages are missing (2026-11):
            # https://docs.ultravox.ai/api-reference/calls/calls-messages-list
            if parameters(request).get("mode", "last_stage") != "in_call":
                messages = [message for message in messages if message["callStageId"] == messages[-1]["callStageId"]]
            return _messages_page(request, messages)

        return await api.answer(request, make, "get")

    @get("/api/calls")
    async def list_calls(request: HttpRequest) -> Response[Any]:
        return await api.answer(
            request, lambda: _calls(request, records.listed("ultravox"), PAGED | FILTERS | {"sort"}), "list"
        )

    @delete("/api/calls/{call_id:str}", status_code=200)
    async def delete_call(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            gone = records.delete("ultravox", call_id)
            return refuse("ultravox", 404) if gone is None else Answer(status=204)

        return await api.answer(request, make, "delete")

    @get("/api/deleted_calls")
    async def list_deleted(request: HttpRequest) -> Response[Any]:
        return await api.answer(request, lambda: _calls(request, records.tombstones(), PAGED | FILTERS), "list")

    @get("/api/deleted_calls/{call_id:str}")
    async def get_deleted(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            found = [tombstone for tombstone in records.tombstones() if tombstone["callId"] == call_id]
            return Answer(body=found[0]) if found else refuse("ultravox", 404)

        return await api.answer(request, make, "get")

    @get("/api/webhooks")
    async def list_webhooks(request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            agent = parameters(request).get("agentId")
            found = [webhook for webhook in webhooks.values() if agent is None or webhook["agentId"] == agent]
            return _list_page(request, sorted(found, key=_place), PAGED | {"agentId"}, descending=False)

        return await api.answer(request, make)

    @post("/api/webhooks")
    async def create_webhook(request: HttpRequest) -> Response[Any]:
        asked = await read_object(request)

        def make() -> Answer:
            wrong = _wrong_fields(asked, required=("url", "events"))
            if asked is None or wrong:
                return Answer(status=400, body=wrong)
            made = {
                "webhookId": str(uuid.uuid4()),
                "created": iso(time.time(), digits=6),
                "status": "normal",
                "lastStatusChange": None,
                "recentFailures": [],
                **_settings(asked),
            }
            webhooks[made["webhookId"]] = made
            return Answer(status=201, body=made)

        return await api.answer(request, make)

    @get("/api/webhooks/{webhook_id:str}")
    async def get_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        return await api.answer(
            request, lambda: Answer(body=webhooks[webhook_id]) if webhook_id in webhooks else refuse("ultravox", 404)
        )

    async def change(webhook_id: str, request: HttpRequest, *, whole: bool) -> Response[Any]:
        asked = await read_object(request)

        def make() -> Answer:
            if webhook_id not in webhooks:
                return refuse("ultravox", 404)
            wrong = _wrong_fields(asked, required=("url", "events") if whole else ())
            if asked is None or wrong:
                return Answer(status=400, body=wrong)
            webhooks[webhook_id] |= _settings(asked if whole else {**webhooks[webhook_id], **asked})
            return Answer(body=webhooks[webhook_id])

        return await api.answer(request, make)

    @patch("/api/webhooks/{webhook_id:str}")
    async def update_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        return await change(webhook_id, request, whole=False)

    @put("/api/webhooks/{webhook_id:str}")
    async def replace_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        return await change(webhook_id, request, whole=True)

    @delete("/api/webhooks/{webhook_id:str}", status_code=200)
    async def delete_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            gone = webhooks.pop(webhook_id, None)
            return refuse("ultravox", 404) if gone is None else Answer(status=204)

        return await api.answer(request, make)

    of_calls: list[HTTPRouteHandler] = [get_call, get_messages, list_calls, delete_call, list_deleted, get_deleted]
    of_webhooks: list[HTTPRouteHandler] = [list_webhooks, create_webhook, get_webhook, delete_webhook]
    return [*of_calls, *of_webhooks, update_webhook, replace_webhook]


def _calls(request: HttpRequest, rows: list[Json], known: set[str]) -> Answer:
    """A page of calls or of tombstones; the newest first unless `sort` says otherwise."""
    asked = parameters(request)
    edges = {"fromDate": _edge(asked.get("fromDate", "0001-01-01")), "toDate": _edge(asked.get("toDate", "9999-12-31"))}
    wrong: Json = {name: ["Enter a valid date/time."] for name, edge in edges.items() if edge is None}
    if asked.get("sort", "created") not in ("created", "-created"):
        wrong["sort"] = ["Only created and -created are simulated."]
    if wrong:
        return Answer(status=400, body=wrong)
    agents = request.query_params.getall("agentIds", [])
    first, last = edges["fromDate"] or ("", ""), edges["toDate"] or ("", "")
    found = [
        row for row in rows if first[0] <= row["created"] <= last[1] and (not agents or row.get("agentId") in agents)
    ]
    descending = asked.get("sort", "-created") == "-created"
    return _list_page(request, sorted(found, key=_place, reverse=descending), known, descending=descending)


def _edge(text: str) -> tuple[str, str] | None:
    """The first and the last moment, in UTC, that a date or a date and time means, or None if it is neither.

    The earlier documentation has dates here, both inclusive, the later one date and time; taken is either.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return text, f"{text}T23:59:59.999999Z"
    if moment.tzinfo is None:
        return None
    instant = iso(moment.timestamp(), digits=6)
    return instant, instant


def _place(row: Json) -> str:
    """Where a row stands in its list; a cursor names a place, so that no page shifts when rows come or go."""
    return f"{row['created']} {row.get('callId') or row['webhookId']}"


def _list_page(request: HttpRequest, rows: list[Json], known: set[str], *, descending: bool) -> Answer:
    asked = parameters(request)
    if unknown := sorted(set(asked) - known):
        return refuse("ultravox", 400, f"not simulated: {', '.join(unknown)}")
    size = min(whole_number(asked.get("pageSize", ""), LIST_PAGE_SIZE), MOST)
    after = _decode_cursor(asked.get("cursor", ""))
    if size < 1 or after is None:
        return refuse("ultravox", 404, "Invalid cursor")
    first = 0
    if after:
        first = sum(_place(row) >= after if descending else _place(row) <= after for row in rows)

    def url(position: int) -> str:
        return _url(request, _place(rows[position - 1]) if position > 0 else "")

    return _page(rows, first, size, url)


def _messages_page(request: HttpRequest, messages: list[Json]) -> Answer:
    asked = parameters(request)
    place = _decode_cursor(asked.get("cursor", ""))
    size = min(whole_number(asked.get("pageSize", ""), PAGE_SIZE), PAGE_SIZE)
    first = -1 if place is None else whole_number(place, 0)
    if size < 1 or first < 0:
        return refuse("ultravox", 404, "Invalid cursor")
    return _page(messages, first, size, lambda position: _url(request, str(position)))


def _page(rows: list[Json], first: int, size: int, url: Any) -> Answer:
    return Answer(
        body={
            "next": url(first + size) if first + size < len(rows) else None,
            "previous": url(max(0, first - size)) if first else None,
            "total": len(rows),
            "results": rows[first : first + size],
        }
    )


def _url(request: HttpRequest, place: str) -> str:
    """The request's own URL, parameters and all, with the cursor of this place; without one for the beginning."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    if place:
        query.insert(0, ("cursor", base64.urlsafe_b64encode(f"p={place}".encode()).decode()))
    return f"{ROOT}{request.url.path}?{urlencode(query)}"


def _decode_cursor(cursor: str) -> str | None:
    """The place that a cursor names, "" for none; None if it is garbled."""
    try:
        return base64.urlsafe_b64decode(cursor).decode().removeprefix("p=")
    except (ValueError, binascii.Error):
        return None


def _settings(asked: Json) -> Json:
    """What a webhook can be told. A secret is made where none is given."""
    return {
        "url": asked["url"],
        "events": asked["events"],
        "secrets": asked.get("secrets") or [secrets.token_urlsafe(24)],
        "agentId": asked.get("agentId"),
    }


def _wrong_fields(asked: Json | None, *, required: tuple[str, ...]) -> Json:
    """What is wrong with a webhook, by field, in the manner of Ultravox's framework; empty if nothing is."""
    if asked is None:
        return {"detail": "JSON parse error"}
    wrong: Json = {name: ["This field is required."] for name in required if name not in asked}
    url = asked.get("url", "https://x.example")
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        wrong["url"] = ["Enter a valid URL."]
    elif len(url) > URL_LENGTH:
        wrong["url"] = [f"Ensure this field has no more than {URL_LENGTH} characters."]
    events = asked.get("events", [EVENTS[0]])
    if not isinstance(events, list) or not events or any(event not in EVENTS for event in events):
        wrong["events"] = ["Not a list of valid choices."]
    hidden = asked.get("secrets", [])
    if not isinstance(hidden, list) or any(not isinstance(one, str) or len(one) > SECRET_LENGTH for one in hidden):
        wrong["secrets"] = [f"Not a list of strings of no more than {SECRET_LENGTH} characters."]
    return wrong
