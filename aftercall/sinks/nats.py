"""NATS JetStream: one message an event, on the subject `<subject>.<event type>`: `calls.call.settled`.

Delivered means that JetStream acknowledged: the message is in a stream. The stream is the operator's; while none
listens to the subject, the event is tried again. `Nats-Msg-Id` is the event's id: the stream drops what comes again
within its duplicate window, which is 2 minutes unless the stream says otherwise; replays and late attempts want more
(https://docs.nats.io/using-nats/developer/develop_jetstream/model_deep_dive, 2026-11).
"""

import asyncio
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from msgspec import Meta
from nats.js.errors import APIError, NoStreamResponseError

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.nats_connection import Connection

ACK_S = 5.0
SUBJECT = r"^[^\s.*>]+(\.[^\s.*>]+)*$"
TOO_LARGE = 10054  # "message size exceeds maximum allowed" in nats-server's server/errors.json (2026-11)


class Nats(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="a server, or several with commas between: nats://user:password@host")]
        subject: Annotated[str, Meta(pattern=SUBJECT, description="what comes before the event type")] = "calls"
        stream: Annotated[str | None, Meta(description="the stream that must take it; default: any")] = None
        token: Annotated[Secret | None, Meta(description="logs in, instead of user and password")] = None

        def __post_init__(self) -> None:
            for url in self.url.split(","):
                if url_scheme(url) not in ("nats", "tls") or not urlsplit(url).hostname:
                    raise ValueError("url: expected nats:// or tls:// and a host; percent-encode what is special in it")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._subject = config.subject
        self._expected = {"Nats-Expected-Stream": config.stream} if config.stream else {}
        self._connection = Connection(config.url, config.token)

    async def open(self) -> None:
        await self._connection.client()

    async def close(self) -> None:
        await self._connection.close()

    async def deliver(self, delivery: Delivery) -> str:
        body, subject = self.render(delivery), f"{self._subject}.{delivery.event.type}"
        headers = {"Nats-Msg-Id": delivery.event.id, "Content-Type": delivery.content_type} | self._expected
        client, waiting = await self._connection.client(), self._connection.waiting
        # It counts the headers too, and hangs up on everybody here when it is sent more.
        if len(body) + 12 + sum(len(name) + len(value) + 4 for name, value in headers.items()) > client.max_payload:
            raise SinkError(f"larger than the server's max_payload, {client.max_payload} bytes", permanent=True)
        try:
            async with asyncio.timeout(ACK_S) as patience:
                waiting.add(patience)
                ack = await client.jetstream().publish(subject, body, 2 * ACK_S, headers=headers)
        except NoStreamResponseError:
            raise SinkError(f"no stream listens to {subject}: create one for {self._subject}.>") from None
        except APIError as error:
            raise SinkError(f"refused: {error.description}", permanent=error.err_code == TOO_LARGE) from None
        except TimeoutError:
            silent = "no acknowledgement in time; may this user publish there?"
            raise SinkError(silent if client.is_connected else "the connection was lost") from None
        except Exception as error:  # as another's answer on that subject, which is not an acknowledgement
            raise SinkError(f"no acknowledgement: {type(error).__name__}") from None
        finally:
            waiting.discard(patience)
        return f"{ack.stream}:{ack.seq}"
