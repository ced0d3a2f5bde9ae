"""How HTTP answers become outcomes, the same for every sink that speaks HTTP."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import httpx

from aftercall.client import read_body, retry_after_s
from aftercall.errors import AddressRefused, SinkError

# Worth another attempt although 4xx: too early, timeout, locked, rate limited. Every other 4xx is a refusal for good.
PASSING = frozenset({408, 409, 423, 425, 429})
TOO_MANY = 429
GONE = 410  # Standard Webhooks: the endpoint wants nothing more, disable it


class Answer(NamedTuple):
    """What a destination answered; `body` is its first 64 KiB, or as much as was asked for."""

    status: int
    body: bytes

    def __str__(self) -> str:
        return f"HTTP {self.status}"


async def post(
    http: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str], *, quotable: Collection[bytes] = ()
) -> Answer:
    """POST; the 2xx answer. Raises `SinkError` for everything else.

    A refusal's body is quoted in the error only if it is one of the `quotable` words: it may hold what was sent.
    """
    return await request(http, "POST", url, body, headers, quotable=quotable)


async def request(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    accept: Collection[int] = (),
    quotable: Collection[bytes] = (),
    limit: int = 65_536,
    patience: Callable[[bytes], float] = lambda _: 0.0,
) -> Answer:
    """Any request; its answer, if that is 2xx or one of the statuses to `accept`. Raises `SinkError` as `post` does.

    `limit` is how much of the answer is read. `patience` says from the body of a 429 without Retry-After how long to
    wait, where the vendor tells or documents it.
    """
    headers = {"accept-encoding": "identity", **(headers or {})}
    try:
        async with http.stream(method, url, content=body, headers=headers) as response:
            answer = await read_body(response, limit=limit, unpack=False)
    except AddressRefused as error:
        raise SinkError(
            f"{error}; set allow_private_network = true on this sink if that is meant", permanent=True
        ) from None
    except (httpx.ConnectError, httpx.ConnectTimeout):  # httpx-aiohttp reports a refused connection as the latter
        raise SinkError("cannot connect") from None
    except httpx.TimeoutException:
        raise SinkError("no answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SinkError(f"cannot send: {type(error).__name__}") from None
    if response.is_success or response.status_code in accept:
        return Answer(response.status_code, answer)
    known = f" {answer.decode()}" if answer in quotable else ""
    retry_after = retry_after_s(response.headers.get("retry-after"))
    if response.status_code == TOO_MANY and retry_after is None:
        retry_after = patience(answer)
    raise SinkError(
        f"HTTP {response.status_code}{known}",
        permanent=400 <= response.status_code < 500 and response.status_code not in PASSING,
        gone=response.status_code == GONE,
        retry_after=retry_after,
    )
