"""Apprise: a message by any of the services that Apprise knows an address of, from ntfy to Matrix.

https://appriseit.com/services/ lists them, https://github.com/caronc/apprise is the library (2.2.0, 2026-11). Delivered
means that Apprise says so for every address. It does not say why one failed: every failure is taken to pass, a refusal
for good too, and then the message comes again, to all of them and not known again. One address a sink keeps those apart
that have it already. Apprise connects by itself, in threads, also to private addresses.
"""

import logging
from typing import Annotated

import apprise
import httpx
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink
from aftercall.sinks.text import MessageConfig, clip, message_of, plain, title

TITLE = 250  # our own
logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it quotes addresses, messages and answers


class Apprise(Sink):
    events = ("call.settled",)  # one message a call

    class Config(MessageConfig, frozen=True, kw_only=True):
        urls: Annotated[list[Secret], Meta(min_length=1, description="Apprise URLs: ntfys://…, tgram://…, mailtos://…")]

        def __post_init__(self) -> None:
            MessageConfig.__post_init__(self)
            for number, url in enumerate(self.urls, 1):
                if _service(url) is None:
                    raise ValueError(f"urls: number {number} is no URL that Apprise can use")

    config: Config

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._template = message_of(config)
        self._apprise = apprise.Apprise()
        for url in config.urls:
            if service := _service(url):
                self._apprise.add(service)

    def render(self, delivery: Delivery) -> dict[str, str]:
        event = delivery.event
        body = self._template.render(event) if self._template else plain(event)
        return {"title": clip(title(event), TITLE), "body": body}

    async def deliver(self, delivery: Delivery) -> None:
        try:
            message = self.render(delivery)
        except ValueError as error:
            raise SinkError(str(error), permanent=True) from None
        try:
            # As text: then Apprise escapes it for a service that takes HTML.
            result = await self._apprise.async_notify(**message, body_format=apprise.NotifyFormat.TEXT)
        except Exception as error:  # a service's module may raise anything
            raise SinkError(f"Apprise failed: {type(error).__name__}") from None
        if not result:
            raise SinkError(f"Apprise: {result.failed_count} of {len(self._apprise)} did not take the message")


def _service(url: str) -> apprise.NotifyBase | None:
    asset = apprise.AppriseAsset(app_id="aftercall", storage_mode="memory", http_redirects=False)
    service = apprise.Apprise.instantiate(url, asset=asset)
    if service is not None:
        service.request_rate_per_sec = 0  # else a thread sleeps 5.5 s after a message; `rate` in the sink's table paces
        if "overflow_mode" not in vars(
            service
        ):  # the URL does not say: cut what is too long, and not be refused for it
            service.overflow_mode = apprise.OverflowMode.TRUNCATE
    return service
