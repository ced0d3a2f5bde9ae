"""NATS JetStream: one message an event, on the subject `<subject>.<event type>`: `calls.call.settled`.

Delivered means that JetStream acknowledged: the message is in a stream. The stream is the operator's; while none
listens to the subject, the event is tried again. `Nats-Msg-Id` is the event's id: the stream drops what comes again
within its duplicate window, which is 2 minutes unless the stream says otherwise; replays and late attempts want more
(https://docs.nats.io/using-nats/developer/develop_jetstream/model_deep_dive, 2026-11).
"""

import asyncio
from functools import partial
from typing import Annotated
from urllib.parse import unquote, urlsplit

import httpx
from msgspec import Meta
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NoStreamResponseError

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme

ACK_S = 5.0
PING_S = 5  # a server that went without a word is noticed in three times that
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
        self._servers = config.url.split(",")
        first = urlsplit(self._servers[0])
        # nats-py does not unquote them.
        self._user, self._password = (part and unquote(part) for part in (first.username, first.password))
        self._token = config.token or self._user
        self._subject = config.subject
        self._expected = {"Nats-Expected-Stream": config.stream} if config.stream else {}
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._waiting: set[asyncio.Timeout] = set()

    async def open(self) -> None:
        await self._connected()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def deliver(self, delivery: Delivery) -> str:
        body, subject = self.render(delivery), f"{self._subject}.{delivery.event.type}"
        headers = {"Nats-Msg-Id": delivery.event.id, "Content-Type": delivery.content_type} | self._expected
        client, waiting = await self._connected(), self._waiting
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

    async def _connected(self) -> Client:
        """Connect anew where it is not connected: by itself nats-py gives up for good at a refused login."""
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self.close()
                self._client, self._waiting = Client(), set()
                try:
                    await self._connect(self._client)
                except (OSError, NatsError, TimeoutError) as error:
                    refused = "Authorization Violation" in str(error)
                    raise SinkError("the server refused the login" if refused else "cannot connect") from None
                finally:
                    if not self._client.is_connected:
                        await self._client.close()
            return self._client

    async def _connect(self, client: Client) -> None:
        await client.connect(
            self._servers,
            user=self._user,
            password=self._password,
            token=self._token,
            error_cb=_keep_silent,
            closed_cb=partial(_give_up, self._waiting),
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            ping_interval=PING_S,
            pending_size=0,  # what cannot be sent at once is refused, and not kept
        )


async def _give_up(waiting: set[asyncio.Timeout]) -> None:
    """Wait no longer for the acknowledgements of a connection that was lost: nats-py would, to the end."""
    for patience in waiting:
        if not patience.expired():
            patience.reschedule(0)


async def _keep_silent(_: Exception) -> None:
    """Instead of nats-py's own, which logs the errors with their tracebacks. Deliveries tell of them."""
