"""One connection to NATS, made anew by the delivery that finds it lost."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from nats.aio.client import Client
from nats.errors import Error as NatsError

from aftercall.errors import SinkError

PING_S = 5  # a server that went without a word is noticed in three times that
CLOSE_S = 1.0  # nats-py would wait without end where no TLS came about


class _Client(Client):
    """By itself nats-py speaks TLS only if the server asks for it, whatever the URL does, and else in the clear.

    https://github.com/nats-io/nats.py/blob/v2.16.0/nats/src/nats/aio/client.py, `_process_connect_init` (2026-11).
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        if self._current_server is not None and self._current_server.uri.scheme == "tls":
            info["tls_required"] = True

    async def _close(self, *args: Any) -> None:
        """Without a last word: nats-py would stumble over it where the connection is lost, and leave its tasks behind.

        All that was acknowledged was sent; the rest is tried again.
        """
        self._pending, self._pending_data_size = [], 0
        await super()._close(*args)


class Connection:
    """`waiting` are the timeouts of those who wait for an acknowledgement of the present client."""

    def __init__(self, url: str, token: str | None) -> None:
        self._servers = url.split(",")
        first = urlsplit(self._servers[0])
        # nats-py does not unquote them.
        self._user, self._password = (part and unquote(part) for part in (first.username, first.password))
        self._token = token or self._user
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self.waiting: set[asyncio.Timeout] = set()

    async def close(self) -> None:
        if self._client is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._client.close(), CLOSE_S)

    async def client(self) -> Client:
        """Connect anew where it is not connected: by itself nats-py gives up for good at a refused login."""
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self.close()
                self._client, self.waiting = _Client(), set()
                try:
                    await self._connect(self._client)
                except (OSError, NatsError, TimeoutError) as error:
                    refused = "Authorization Violation" in str(error)
                    raise SinkError("the server refused the login" if refused else "cannot connect") from None
                finally:
                    if not self._client.is_connected:
                        await self.close()
            return self._client

    async def _connect(self, client: Client) -> None:
        await client.connect(
            self._servers,
            user=self._user,
            password=self._password,
            token=self._token,
            error_cb=_keep_silent,
            closed_cb=partial(_give_up, self.waiting),
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
