"""Signed webhook: the event as CloudEvents JSON, signed by Standard Webhooks 1.0.0.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md (2026-11). `webhook-id` is
the event's id, the same at every attempt; the timestamp is the attempt's. Any 2xx counts as delivered, a redirect not.
"""

import time
from typing import Annotated

import httpx
from msgspec import Meta

from aftercall.signing import standard_webhooks_key, standard_webhooks_signature
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.http import post


class Webhook(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="where events are posted, http:// or https://")]
        secret: Annotated[Secret, Meta(description="whsec_ and 24 to 64 random bytes in base64")]

        def __post_init__(self) -> None:
            if url_scheme(self.url) not in ("http", "https"):
                raise ValueError("url: expected http:// or https:// and a host")
            try:
                standard_webhooks_key(self.secret)
            except ValueError as error:
                raise ValueError(f"secret: {error}") from None

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self.url, self._secret = config.url, config.secret

    async def deliver(self, delivery: Delivery) -> str:
        timestamp = int(time.time())
        headers = {
            "content-type": delivery.content_type,
            "webhook-id": delivery.event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": standard_webhooks_signature(self._secret, delivery.event.id, timestamp, delivery.body),
        }
        return str(await post(self.http, self.url, delivery.body, headers))
