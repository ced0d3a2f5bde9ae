"""Signed webhook: the event as CloudEvents JSON, signed by Standard Webhooks 1.0.0.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md (2026-11). `webhook-id` is
the event's id, the same at every attempt; the timestamp is the attempt's. Any 2xx counts as delivered, a redirect not.

With `headers` it also posts to who checks no signature but a key, and with `template` to who wants another JSON:
evaluation tools take a provider's own body, some of them inside of an object of theirs.
"""

import time
from collections.abc import Collection
from typing import Annotated

import httpx
from msgspec import Meta

from aftercall.signing import standard_webhooks_key, standard_webhooks_signature
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.http import post
from aftercall.sinks.webhook_body import body_of, compiled
from aftercall.sinks.webhook_headers import check_header


class Webhook(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="where events are posted, http:// or https://")]
        secret: Annotated[
            Secret | None, Meta(description="whsec_ and 24 to 64 random bytes in base64; required without `headers`")
        ] = None
        headers: Annotated[
            dict[str, Secret], Meta(description='more headers, as { Authorization = "Bearer ${KEY}" }')
        ] = {}
        template: Annotated[
            str | None, Meta(description="another body, a Jinja template over `raw` (ours), `event`, `call` and `tags`")
        ] = None

        @classmethod
        def needed(cls, given: Collection[str]) -> Collection[str]:
            return () if "headers" in given else ("secret",)

        def __post_init__(self) -> None:
            if url_scheme(self.url) not in ("http", "https"):
                raise ValueError("url: expected http:// or https:// and a host")
            if self.secret is None and not self.headers:
                raise ValueError("secret: missing; without it name in `headers` what the receiver knows us by")
            try:
                standard_webhooks_key(self.secret) if self.secret is not None else None
            except ValueError as error:
                raise ValueError(f"secret: {error}") from None
            for name, value in self.headers.items():
                check_header(name, value)
            compiled(self.template)

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self.url, self._secret, self._template = config.url, config.secret, compiled(config.template)
        self._headers = {name.lower(): value for name, value in config.headers.items()}

    async def deliver(self, delivery: Delivery) -> str:
        body, id_, timestamp = self.render(delivery), delivery.event.id, int(time.time())
        headers = {
            **self._headers,
            "content-type": "application/json" if self._template else delivery.content_type,
            "webhook-id": id_,
            "webhook-timestamp": str(timestamp),
        }
        if self._secret is not None:
            headers["webhook-signature"] = standard_webhooks_signature(self._secret, id_, timestamp, body)
        return str(await post(self.http, self.url, body, headers))

    def render(self, delivery: Delivery) -> bytes:
        """The body; it is what the signature covers."""
        return body_of(delivery, self._template)
