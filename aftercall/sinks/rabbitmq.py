"""RabbitMQ: one persistent message an event, to an exchange that is there, with the event's type as the routing key.

Delivered means that the broker confirmed: the message is in every queue it was routed to. `mandatory` makes the broker
return what no queue takes, before it confirms (https://www.rabbitmq.com/docs/confirms, 2026-11). Exchange, queues and
bindings are the operator's: while they are missing, the event is tried again. RabbitMQ does not know an event again;
`message_id` is the event's id, by which consumers can.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import aio_pika
import httpx
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme

CONNECT_S, CONFIRM_S, CLOSE_S = 5.0, 5.0, 3.0
HEARTBEAT_S = 10
RoutingKey = Annotated[str, Meta(max_length=255)]

# It logs the whole of a message that comes back to a delivery that was cancelled.
logging.getLogger("aiormq.channel").setLevel(logging.CRITICAL)


class RabbitMQ(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the broker: amqp://user:password@host/vhost or amqps://")]
        exchange: Annotated[
            str, Meta(description='an exchange that is there; "" leads to the queue of the routing key')
        ]
        routing_key: Annotated[RoutingKey | None, Meta(description="one for all events; default: the event's type")] = (
            None
        )

        def __post_init__(self) -> None:
            if url_scheme(self.url) not in ("amqp", "amqps"):
                raise ValueError("url: expected amqp:// or amqps:// and a host; percent-encode what is special in it")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._url, self._name, self._key = config.url, config.exchange, config.routing_key
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._doubtful = False  # the connection is there, and its broker perhaps not
        self._making: asyncio.Task[AbstractExchange] | None = None

    async def open(self) -> None:
        async with self._losses():
            await self._exchange()

    async def close(self) -> None:
        if self._making is not None:
            await asyncio.wait([self._making])
        await self._disconnect()

    async def deliver(self, delivery: Delivery) -> None:
        body = self.render(delivery)
        message = aio_pika.Message(
            body,
            content_type=delivery.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=delivery.event.id,
            type=delivery.event.type,
        )
        key = delivery.event.type if self._key is None else self._key
        async with self._losses():
            exchange = await self._exchange()
            try:
                await exchange.publish(message, key, mandatory=True, timeout=CONFIRM_S)
            except PublishError:
                raise SinkError(
                    f'no queue takes the routing key "{key}": bind one to exchange "{self._name}"'
                ) from None
            except DeliveryError:
                raise SinkError("the broker did not confirm: a queue is full, or failed") from None
            except ChannelNotFoundEntity:
                raise SinkError(f'there is no exchange "{self._name}": create it') from None
            except ChannelAccessRefused:
                raise SinkError(f'this user may not write to exchange "{self._name}"') from None
            except ChannelPreconditionFailed as error:
                # It ends the channel for everybody on it. Meant is only the one whose size is named.
                if f"message size {len(body)} " in str(error):
                    raise SinkError("larger than the broker's max_message_size", permanent=True) from None
                raise

    async def _exchange(self) -> AbstractExchange:
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
    async def _losses(self) -> AsyncIterator[None]:
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
