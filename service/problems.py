"""Error answers as RFC 9457 problem JSON: the likely cause, never a secret or a part of the body."""

from http import HTTPStatus

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 2  # soon enough that a provider's own retries, minutes long, are not used up by a restart of Redis


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    title: str
    status: int
    detail: str
    cause: str = ""  # one word for programs: missing, malformed, stale, mismatch …


def problem(status: int, detail: str, *, cause: str = "") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an answer, ready for ASGI."""
    body = msgspec.json.encode(Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, cause=cause))
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"POST"))
    return status, headers, body


def answer_http_exception(_: Request, error: HTTPException) -> Response:  # type: ignore[type-arg]
    """The same form for what Litestar itself refuses: unknown paths, other methods."""
    phrase = HTTPStatus(error.status_code).phrase
    return Response(
        Problem(title=phrase, status=error.status_code, detail=error.detail if error.status_code < 500 else phrase),
        status_code=error.status_code,
        media_type=CONTENT_TYPE,
        headers=error.headers,
    )
