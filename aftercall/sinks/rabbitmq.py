"""RabbitMQ: one persistent message an event, to an exchange that is there, with the event's type as the routing key.

Delivered means that the broker confirmed: the message is in every queue it was routed to. `mandatory` makes the broker
return what no queue takes, before it confirms (https://www.rabbitmq.com/docs/confirms, 2026-11). Exchange, queues and
bindings are the operator's: while they are missing, the event is tried again. RabbitMQ does not know an event again;
`message_id` is the event's id, by which consumers can.
"""

from typing import Annotated

import aio_pika
import httpx
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.rabbitmq_connection import Connection, Exchange

CONFIRM_S = 5.0


class RabbitMQ(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the broker: amqp://user:password@host/vhost or amqps://")]
        exchange: Annotated[Exchange, Meta(description='one that is there; "" leads to the queue of the routing key')]
        routing_key: Annotated[str, Meta(max_length=255, description="one for all events; default: its type")] = ""

        def __post_init__(self) -> None:
            if url_scheme(self.url) not in ("amqp", "amqps"):
                raise ValueError("url: expected amqp:// or amqps:// and a host; percent-encode what is special in it")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._name, self._key = config.exchange, config.routing_key
        self._connection = Connection(config.url, config.exchange)

    async def open(self) -> None:
        async with self._connection.losses():
            await self._connection.exchange()

    async def close(self) -> None:
        await self._connection.close()

    async def deliver(self, delivery: Delivery) -> None:
        body = self.render(delivery)
        message = aio_pika.Message(
            body,
            content_type=delivery.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=delivery.event.id,
            type=delivery.event.type,
        )
        key = self._key or delivery.event.type
        async with self._connection.losses():
            exchange = await self._connection.exchange()
            try:
                await exchange.publish(message, key, mandatory=True, timeout=CONFIRM_S)
            except PublishError:
                raise SinkError(f'no queue takes the key "{key}": bind one to exchange "{self._name}"') from None
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
