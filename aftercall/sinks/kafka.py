"""Kafka: one record an event, keyed by the call's id, so that a call's events keep to one partition and their order.

Delivered means that every in-sync replica has it (`acks=all`, https://kafka.apache.org/documentation/#producerconfigs_acks,
2026-11). An event that comes again is a record again: consumers know it by the header `ce_id`.

aiokafka's idempotent producer is of no use here: it spans no attempts of ours, never lets go of a record while the
brokers are away, and after one refused record it is refused all others of that partition until it is made anew
(https://github.com/aio-libs/aiokafka/issues/1017, and `_can_retry` in aiokafka 0.14's producer/sender.py, 2026-11).
"""

import asyncio
import ssl
from typing import Annotated, Any, Literal

import httpx
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka import errors as kafka
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig

WITHIN_S = 8.0
REQUEST_S = 4.0  # also how long aiokafka keeps a record that it cannot send
TOPIC = r"^[a-zA-Z0-9._-]{1,249}$"
TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
FORBIDDEN = (kafka.TopicAuthorizationFailedError, kafka.ClusterAuthorizationFailedError)


class Kafka(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        bootstrap_servers: Annotated[list[str], Meta(min_length=1, description="brokers to ask first, each host:port")]
        topic: Annotated[str, Meta(pattern=TOPIC, description="the topic, which is there")]
        security_protocol: Annotated[
            Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
            Meta(description="whether with TLS (SSL), and whether with a login (SASL)"),
        ] = "PLAINTEXT"
        sasl_mechanism: Annotated[
            Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Meta(description="how to log in")
        ] = "PLAIN"
        username: Annotated[str | None, Meta(description="of the login")] = None
        password: Annotated[Secret | None, Meta(description="of the login")] = None
        max_request_size: Annotated[
            int, Meta(gt=0, description="bytes of a record, at most what the topic's max.message.bytes allows")
        ] = 1_048_576

        def __post_init__(self) -> None:
            if self.security_protocol.startswith("SASL") and not (self.username and self.password):
                raise ValueError(f"security_protocol: {self.security_protocol} needs username and password")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._config = config
        self._producer: Any = None
        self._starting: asyncio.Task[Any] | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._started()

    async def close(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        self._leave(self._producer)
        await asyncio.gather(*self._stopping, return_exceptions=True)

    async def deliver(self, delivery: Delivery) -> str:
        event, topic = delivery.event, self._config.topic
        headers = {"content-type": delivery.content_type, "ce_id": event.id, "ce_type": event.type}
        encoded = [(name, value.encode()) for name, value in headers.items()]
        producer = await self._started()
        try:
            async with asyncio.timeout(WITHIN_S):
                sent = await producer.send_and_wait(
                    topic, self.render(delivery), event.subject.encode(), headers=encoded
                )
        except TOO_LARGE:
            raise SinkError("larger than max_request_size, or than the topic allows", permanent=True) from None
        except Exception as error:
            self._leave(producer)
            raise SinkError(_why(error, topic)) from None
        return f"{sent.topic}[{sent.partition}]@{sent.offset}"

    async def _started(self) -> Any:
        """A producer, made anew after a failure: by itself aiokafka asks only the brokers that it has met.

        In a task of its own: aiokafka leaves tasks behind if it is cancelled while it connects.
        """
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(lambda made: made.cancelled() or made.exception())  # somebody has seen it
        return await asyncio.shield(self._starting)

    async def _start(self) -> Any:
        if self._producer is None:
            config = self._config
            producer = self._producer = AIOKafkaProducer(
                bootstrap_servers=config.bootstrap_servers,
                acks="all",
                max_batch_size=1,  # a record by itself: a refusal says something of this event and of no other
                max_request_size=config.max_request_size,
                request_timeout_ms=round(REQUEST_S * 1000),
                security_protocol=config.security_protocol,
                ssl_context=ssl.create_default_context() if config.security_protocol.endswith("SSL") else None,
                sasl_mechanism=config.sasl_mechanism,
                sasl_plain_username=config.username,
                sasl_plain_password=config.password,
            )
            try:
                await producer.start()
            except Exception:
                self._leave(producer)
                raise SinkError("cannot connect, or log in") from None
        return self._producer

    def _leave(self, producer: Any) -> None:
        """Stop it in a task of its own: what others have in it may still arrive, or fails when its time is over."""
        if producer is not None and producer is self._producer:
            self._producer = None
            stopping = asyncio.create_task(producer.stop())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)


def _why(error: Exception, topic: str) -> str:
    if isinstance(error, FORBIDDEN):
        return f'this user may not write to topic "{topic}"'
    if isinstance(error, kafka.UnknownTopicOrPartitionError):
        return f'there is no topic "{topic}", or no broker to tell of it'
    return f"not acknowledged: {type(error).__name__}"
