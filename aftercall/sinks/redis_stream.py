"""Redis Streams: one entry an event, in a stream of any Redis or Valkey ≥ 5.

Delivered means that the server answered XADD; the receipt is the entry's id. An event that comes again within a day is
not added again: a marker key beside the stream is set in the same Lua call.
"""

from typing import Annotated, Any

import httpx
from msgspec import Meta

from aftercall.call import Call
from aftercall.redis_client import connect
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.redis_stream_server import ADD_ONCE, ERASE, after, refusals

_BATCH = 200


class RedisStream(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the server: redis://, rediss:// or unix://")]
        stream: Annotated[str, Meta(min_length=1, description="the stream's key")] = "calls"
        max_length: Annotated[int, Meta(gt=0, description="about how many entries the stream keeps")] = 100_000

        def __post_init__(self) -> None:
            if url_scheme(self.url) not in ("redis", "rediss", "unix"):
                # Without showing it: what looks like a bad port may be a piece of a password with / or # in it.
                raise ValueError(
                    "url: expected redis://, rediss:// or unix://, and a number as the port; "
                    "percent-encode what is special in a password (/ is %2F)"
                )

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._stream, self._max_length = config.stream, config.max_length
        self._redis = connect(config.url)

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    async def deliver(self, delivery: Delivery) -> str | None:
        fields = (part for field in _entry(delivery).items() for part in field)
        keys = (self._stream, f"{self._stream}:seen:{delivery.event.id}")
        async with refusals():
            added = await self._redis.execute_command("EVAL", ADD_ONCE, len(keys), *keys, self._max_length, *fields)
        return added.decode() if added else None

    def render(self, delivery: Delivery) -> dict[str, str]:
        return {**_entry(delivery), "event": delivery.body.decode("utf-8", "replace")}

    async def erase(self, call: Call) -> None:
        """Take the call's entries out of the stream, which is read through for them."""
        start = "-"
        of = (call.id, f"/{call.provider}/{call.account}")
        async with refusals():
            while last := await self._redis.execute_command("EVAL", ERASE, 1, self._stream, start, _BATCH, *of):
                start = after(last)


def _entry(delivery: Delivery) -> dict[str, Any]:
    event = delivery.event
    named = {"id": event.id, "type": event.type, "source": event.source, "subject": event.subject}
    return named | {"event": delivery.body}
