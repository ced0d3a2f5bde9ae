"""How a provider's API is asked: one request, one vocabulary of failure."""

from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from aftercall.client import MAX_RECORD_BYTES, read_body, retry_after_s
from aftercall.errors import ProviderError, RecordNotReady
from aftercall.providers.shapes import decode_json


async def get_json(
    http: httpx.AsyncClient, url: str, *, headers: Mapping[str, str], params: Mapping[str, str] | None = None
) -> Any:
    """The JSON of a 200 answer. Raises `RecordNotReady` for everything else: all of it may pass within minutes.

    That holds for 401 and 403 too: a key that an operator is about to correct.
    """
    try:
        return await request_json(http, "GET", url, headers=headers, params=params, success=(200,))
    except ProviderError as error:
        raise RecordNotReady(str(error), status=error.status, retry_after=error.retry_after) from None


async def request_json(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    params: Mapping[str, str] | None = None,
    body: Any = None,
    success: tuple[int, ...] = (200, 201, 202, 204),
    timeout_s: float | None = None,
) -> Any:
    """The JSON of an answer with one of the statuses, None for an empty one; else raises `ProviderError`.

    `body` is sent as JSON. `timeout_s` replaces the client's own, for what is known to be slow.
    """
    sent: dict[str, Any] = {"headers": dict(headers), "params": dict(params or {})}
    if body is not None:
        sent |= {"content": msgspec.json.encode(body), "headers": {"content-type": "application/json", **headers}}
    if timeout_s is not None:
        sent |= {"timeout": timeout_s}
    try:
        async with http.stream(method, url, **sent) as response:
            content = await read_body(response, limit=MAX_RECORD_BYTES + 1)
    except (httpx.ConnectError, httpx.ConnectTimeout):  # httpx-aiohttp reports a refused connection as the latter
        raise ProviderError("the provider's API cannot be reached") from None
    except httpx.TimeoutException:
        raise ProviderError("the provider's API did not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ProviderError(f"the provider's API could not be asked ({type(error).__name__})") from None
    if response.status_code not in success:
        raise ProviderError(
            f"the provider's API answered HTTP {response.status_code}",
            status=response.status_code,
            retry_after=retry_after_s(response.headers.get("retry-after")),
        )
    if len(content) > MAX_RECORD_BYTES:
        raise ProviderError(f"the answer is over {MAX_RECORD_BYTES} bytes")
    if not content.strip() and response.status_code != 200:
        return None
    try:
        return decode_json(content)
    except (ValueError, RecursionError):
        raise ProviderError("the provider's API answered with something other than JSON") from None
