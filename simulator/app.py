"""The record APIs of the three providers, on one port: their paths differ enough."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import urlencode

from litestar import Litestar, Request, Response, get
from litestar.params import FromPath

from simulator.parts import Call, Json, Webhook

HttpRequest: TypeAlias = Request[Any, Any, Any]
Answer: TypeAlias = Response[Json]

# Ultravox's pages; small here, so that every longer call has several.
PAGE_SIZE = 4
ULTRAVOX_ROOT = "https://api.ultravox.ai"  # `next` names this host, whichever way the request came


class Records:
    """What the record APIs know. A call shows its final record until a play sets it back to its beginning."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._calls = {(call.provider, call.id): call for call in calls}
        self._records = {key: call.record for key, call in self._calls.items()}
        self._faults = {key: list(call.faults) for key, call in self._calls.items()}
        self._reached: dict[tuple[str, str], int] = {}

    def show(self, call: Call, webhook: Webhook) -> None:
        """From now on the record is as this webhook tells it; what is told late does not set it back."""
        key, position = (call.provider, call.id), call.webhooks.index(webhook)
        if webhook.record is not None and position >= self._reached.get(key, 0):
            self._reached[key] = position
            self._records[key] = webhook.record

    def find(self, provider: str, call_id: str) -> tuple[int, Json]:
        """The status to answer with, and the record if that is 200."""
        key = (provider, call_id)
        if key not in self._calls:
            return 404, {}
        if self._faults[key]:
            return self._faults[key].pop(0), {}
        return 200, self._records[key]

    def messages(self, call_id: str) -> list[Json] | None:
        """The messages of an Ultravox call, none before its end; None if there is no such call."""
        key = ("ultravox", call_id)
        if key not in self._calls:
            return None
        return self._calls[key].messages if self._records[key]["ended"] else []


MEANING = {
    400: "Bad request",
    401: "Authentication failed",
    404: "Not found",
    429: "Too many requests",
    500: "Internal error",
}


def retell_error(status: int, message: str) -> Json:
    return {"status": "error", "message": message}


def cartesia_error(status: int, message: str) -> Json:
    """https://docs.cartesia.ai/use-the-api/api-errors (2026-11), from version 2026-03-01 on; plain text before."""
    return {
        "error_code": "concurrency_limited" if status == 429 else None,
        "title": MEANING[status],
        "message": message,
        "request_id": "6f1c5a52-0f0e-4bb6-9a53-6a1b8f0d2c11",
    }


def ultravox_error(status: int, message: str) -> Json:
    return {"detail": message}


ERRORS = {"retell": retell_error, "cartesia": cartesia_error, "ultravox": ultravox_error}


def refuse(provider: str, status: int, message: str | None = None) -> Answer:
    """An error in the provider's own shape; 429 says to come back in a second."""
    headers = {"Retry-After": "1"} if status == 429 else {}
    return Response(ERRORS[provider](status, message or MEANING[status]), status_code=status, headers=headers)


def make_app(records: Records, api_keys: Mapping[str, str]) -> Litestar:
    """The three APIs over these records; `api_keys` is the key that each provider accepts."""

    def answer(provider: str, call_id: str) -> Answer:
        status, record = records.find(provider, call_id)
        return Response(record) if status == 200 else refuse(provider, status)

    @get("/v2/get-call/{call_id:str}")
    async def get_retell_call(call_id: FromPath[str], request: HttpRequest) -> Answer:
        if not has_bearer(request, api_keys["retell"]):
            return refuse("retell", 401)
        return answer("retell", call_id)

    @get("/agents/calls/{call_id:str}")
    async def get_cartesia_call(call_id: FromPath[str], request: HttpRequest) -> Answer:
        key = api_keys["cartesia"]
        if not has_bearer(request, key) and request.headers.get("x-api-key") != key:  # either is documented
            return refuse("cartesia", 401)
        if not request.headers.get("cartesia-version"):
            return refuse("cartesia", 400, "The Cartesia-Version header is required")
        return answer("cartesia", call_id)

    @get("/api/calls/{call_id:str}")
    async def get_ultravox_call(call_id: FromPath[str], request: HttpRequest) -> Answer:
        if request.headers.get("x-api-key") != api_keys["ultravox"]:
            return refuse("ultravox", 401)
        return answer("ultravox", call_id)

    @get("/api/calls/{call_id:str}/messages")
    async def get_ultravox_messages(call_id: FromPath[str], request: HttpRequest) -> Answer:
        if request.headers.get("x-api-key") != api_keys["ultravox"]:
            return refuse("ultravox", 401)
        messages = records.messages(call_id)
        if messages is None:
            return refuse("ultravox", 404)
        # Without mode=in_call, earlier stages are missing (2026-11):
        # https://docs.ultravox.ai/api-reference/calls/calls-messages-list
        if request.query_params.get("mode", "last_stage") != "in_call":
            messages = [message for message in messages if message["callStageId"] == messages[-1]["callStageId"]]
        return ultravox_page(request, messages)

    handlers = [get_retell_call, get_cartesia_call, get_ultravox_call, get_ultravox_messages]
    return Litestar(route_handlers=handlers, openapi_config=None, logging_config=None)


def has_bearer(request: HttpRequest, key: str) -> bool:
    return request.headers.get("authorization") == f"Bearer {key}"


def ultravox_page(request: HttpRequest, results: list[Json]) -> Answer:
    """One page, with full URLs to its neighbours that repeat the request's own parameters."""
    try:
        cursor = request.query_params.get("cursor", "")
        first = int(base64.urlsafe_b64decode(cursor).removeprefix(b"p=")) if cursor else 0
        size = min(int(request.query_params.get("pageSize", PAGE_SIZE)), PAGE_SIZE)
    except (ValueError, binascii.Error):
        return refuse("ultravox", 404, "Invalid cursor")
    if size < 1 or first < 0:
        return refuse("ultravox", 404, "Invalid cursor")

    def url(position: int) -> str:
        other = {name: value for name, value in request.query_params.items() if name != "cursor"}
        query = urlencode({"cursor": base64.urlsafe_b64encode(b"p=%d" % position).decode(), **other})
        return f"{ULTRAVOX_ROOT}{request.url.path}?{query}"

    return Response(
        {
            "next": url(first + size) if first + size < len(results) else None,
            "previous": url(max(0, first - size)) if first else None,
            "total": len(results),
            "results": results[first : first + size],
        }
    )
