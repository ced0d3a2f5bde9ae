"""How a provider's API is asked for records: one GET, one vocabulary of failure."""

from collections.abc import Mapping
from typing import Any

import httpx

from aftercall.client import MAX_RECORD_BYTES, read_body, retry_after_s
from aftercall.errors import RecordNotReady
from aftercall.providers.shapes import decode_json


async def get_json(
    http: httpx.AsyncClient, url: str, *, headers: Mapping[str, str], params: Mapping[str, str] | None = None
) -> Any:
    """The JSON of a 200 answer. Raises `RecordNotReady` for everything else: all of it may pass within minutes.

    That holds for 401 and 403 too: a key that an operator is about to correct.
    """
    try:
        async with http.stream("GET", url, headers=dict(headers), params=dict(params or {})) as response:
            body = await read_body(response, limit=MAX_RECORD_BYTES + 1)
    except (httpx.ConnectError, httpx.ConnectTimeout):  # httpx-aiohttp reports a refused connection as the latter
        raise RecordNotReady("the provider's API cannot be reached") from None
    except httpx.TimeoutException:
        raise RecordNotReady("the provider's API did not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RecordNotReady(f"the provider's API could not be asked ({type(error).__name__})") from None
    if response.status_code != 200:
        raise RecordNotReady(
            f"the provider's API answered HTTP {response.status_code}",
            retry_after=retry_after_s(response.headers.get("retry-after")),
        )
    if len(body) > MAX_RECORD_BYTES:
        raise RecordNotReady(f"the record is over {MAX_RECORD_BYTES} bytes")
    try:
        return decode_json(body)
    except (ValueError, RecursionError):
        raise RecordNotReady("the provider's API answered with something other than JSON") from None
