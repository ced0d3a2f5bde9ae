"""How each vendor answers: its errors, its way to be asked for a key, and the faults that a rule adds."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
from litestar import Request, Response

from simulator.faults import Faults, Kind
from simulator.parts import Json

HttpRequest: TypeAlias = Request[Any, Any, Any]

MEANING = {
    400: "Bad request",
    401: "Authentication failed",
    404: "Not found",
    429: "Too many requests",
    500: "Internal error",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    status: int = 200
    body: Any = None  # JSON; None: no body at all
    headers: dict[str, str] = {}


def retell_error(status: int, message: str) -> Json:
    return {"status": "error", "message": message}


def cartesia_error(status: int, message: str) -> Json:
    """https://docs.cartesia.ai/use-the-api/api-errors (2026-11), from version 2026-03-01 on; plain text before."""
    return {
        "error_code": "concurrency_limited" if status == 429 else None,
        "title": MEANING.get(status, "Error"),
        "message": message,
        "request_id": "6f1c5a52-0f0e-4bb6-9a53-6a1b8f0d2c11",
    }


def ultravox_error(status: int, message: str) -> Json:
    return {"detail": message}


ERRORS = {"retell": retell_error, "cartesia": cartesia_error, "ultravox": ultravox_error}


def refuse(provider: str, status: int, message: str | None = None) -> Answer:
    """An error in the provider's own shape; 429 says to come back in a second."""
    headers = {"Retry-After": "1"} if status == 429 else {}
    body = ERRORS[provider](status, message or MEANING.get(status, "Error"))
    return Answer(status=status, body=body, headers=headers)


class Api:
    """One provider's API: refuses whom it does not know, and meets what the rules say."""

    def __init__(self, provider: str, admit: Callable[[HttpRequest], Answer | None], faults: Faults) -> None:
        self.provider = provider
        self.admit = admit
        self.faults = faults

    async def answer(self, request: HttpRequest, make: Callable[[], Answer], kind: Kind | None = None) -> Response[Any]:
        """What `make` answers, if the request is admitted and no fault of this kind comes first (None: none can)."""
        refused = self.admit(request)
        if refused is not None:
            return respond(refused)
        cut = False
        for fault in self.faults.of_request(kind, self.provider) if kind else ():
            if fault.action == "slow":
                await asyncio.sleep(fault.seconds)
            elif fault.action == "truncated":
                cut = True
            else:
                return respond(refuse(self.provider, fault.status))
        return respond(make(), cut=cut)


def respond(answer: Answer, *, cut: bool = False) -> Response[Any]:
    """The answer as HTTP. `cut`: only the first half of its JSON, with a length that agrees."""
    body = b"" if answer.body is None else msgspec.json.encode(answer.body)
    return Response(
        body[: len(body) // 2] if cut else body,
        status_code=answer.status,
        headers=answer.headers,
        media_type="application/json",
    )


async def read_object(request: HttpRequest) -> Json | None:
    """The JSON object in the request's body; empty without a body, None if it is something else."""
    body = await request.body()
    try:
        found = msgspec.json.decode(body or b"{}")
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) else None


def whole_number(text: str, default: int) -> int:
    """The number that a parameter names, -1 if it names none."""
    if not text:
        return default
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else -1


def has_bearer(request: HttpRequest, key: str) -> bool:
    return request.headers.get("authorization") == f"Bearer {key}"


def parameters(request: HttpRequest) -> Mapping[str, str]:
    """The query's parameters; of those given more than once, the last."""
    return dict(request.query_params.items())
