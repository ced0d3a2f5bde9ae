"""Kafka: one record an event, keyed by the call's id, so that a call's events keep to one partition and their order.

Delivered means that every in-sync replica has it (`acks=all`, https://kafka.apache.org/documentation/#producerconfigs_acks,
2026-11). An event that comes again is a record again: consumers know it by the header `ce_id`.

aiokafka's idempotent producer is of no use here: it spans no attempts of ours, never lets go of a record while the
brokers are away, and after one refused record it is refused all others of that partition until it is made anew
(https://github.com/aio-libs/aiokafka/issues/1017, and `_can_retry` in aiokafka 0.14's producer/sender.py, 2026-11).
"""

import asyncio
import ssl
from typing import Annotated, Literal

import httpx
from aiokafka import errors as kafka  # type: ignore[import-untyped]
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig
from aftercall.sinks.kafka_producers import Producers

WITHIN_S = 8.0
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
        self._topic = config.topic
        self._producers = Producers(
            bootstrap_servers=config.bootstrap_servers,
            max_request_size=config.max_request_size,
            security_protocol=config.security_protocol,
            ssl_context=ssl.create_default_context() if config.security_protocol.endswith("SSL") else None,
            sasl_mechanism=config.sasl_mechanism,
            sasl_plain_username=config.username,
            sasl_plain_password=config.password,
        )

    async def open(self) -> None:
        await self._producers.current()

    async def close(self) -> None:
        await self._producers.close()

    async def deliver(self, delivery: Delivery) -> str:
        event, topic = delivery.event, self._topic
        headers = {"content-type": delivery.content_type, "ce_id": event.id, "ce_type": event.type}
        encoded = [(name, value.encode()) for name, value in headers.items()]
        producer = await self._producers.current()
        try:
            async with asyncio.timeout(WITHIN_S):
                sent = await producer.send_and_wait(
                    topic, self.render(delivery), event.subject.encode(), headers=encoded
                )
        except TOO_LARGE:
            raise SinkError("larger than max_request_size, or than the topic allows", permanent=True) from None
        except Exception as error:
            self._producers.leave(producer)
            raise SinkError(_why(error, topic)) from None
        return f"{sent.topic}[{sent.partition}]@{sent.offset}"


def _why(error: Exception, topic: str) -> str:
    if isinstance(error, FORBIDDEN):
        return f'this user may not write to topic "{topic}"'
    if isinstance(error, kafka.UnknownTopicOrPartitionError):
        return f'there is no topic "{topic}", or no broker to tell of it'
    return f"not acknowledged: {type(error).__name__}"
