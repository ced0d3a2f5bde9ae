"""One connection to RabbitMQ, made anew by the delivery that finds it lost."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aiormq.exceptions import AuthenticationError, InvalidFrameError, ProbableAuthenticationError
from msgspec import Meta

from aftercall.errors import SinkError

CONNECT_S, CLOSE_S = 5.0, 3.0
HEARTBEAT_S = 10

# aiormq sends no others: Basic.Publish and DOMAIN_REGEX in pamqp 4.0 (2026-11).
Exchange = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:@#,/+ -]*$", max_length=127)]

# It logs the whole of a message that comes back to a delivery that was cancelled.
logging.getLogger("aiormq.channel").setLevel(logging.CRITICAL)


class Connection:
    """A connection, a channel on it, and the exchange that all is published to."""

    def __init__(self, url: str, exchange: str) -> None:
        self._url, self._name = url, exchange
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._doubtful = False  # the connection is there, and its broker perhaps not
        self._making: asyncio.Task[AbstractExchange] | None = None

    async def close(self) -> None:
        if self._making is not None:
            await asyncio.wait([self._making])
        await self._disconnect()

    async def exchange(self) -> AbstractExchange:
        """Connect anew where it is not connected: deliveries fail at once meanwhile, and do not wait for it.

        In a task of its own: aiormq leaves tasks behind if it is cancelled while it connects.
        """
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(lambda made: made.cancelled() or made.exception())  # somebody has seen it
        return await asyncio.shield(self._making)

    async def _make(self) -> AbstractExchange:
        try:
            if self._connection is None or self._doubtful or not self._connection.connected.is_set():
                await self._disconnect()
                self._connection = await aio_pika.connect(self._url, timeout=CONNECT_S, heartbeat=HEARTBEAT_S)
                self._doubtful = False
            if self._channel is None or self._channel.is_closed:
                channel = self._connection.channel(on_return_raises=True)
                await channel.initialize(timeout=CONNECT_S)
                self._channel = channel
            return await self._channel.get_exchange(self._name, ensure=False)
        except (AuthenticationError, ProbableAuthenticationError, InvalidFrameError):  # the last: no such vhost
            raise SinkError("the broker refused the login or the virtual host") from None
        except Exception:
            self._doubtful = True
            raise SinkError("cannot connect") from None

    async def _disconnect(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # it was lost: there is nothing more to close
                await asyncio.wait_for(connection.close(), CLOSE_S)

    @asynccontextmanager
    async def losses(self) -> AsyncIterator[None]:
        try:
            yield
        except SinkError:
            raise
        except TimeoutError:
            self._doubtful = True
            raise SinkError("no confirmation in time") from None
        except asyncio.CancelledError:  # also what waits on a connection that aiormq gives up, though nobody asked
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise SinkError("the connection was lost") from None
        except Exception:
            raise SinkError("the connection was lost") from None
