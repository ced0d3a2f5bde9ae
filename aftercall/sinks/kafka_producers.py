"""One producer for Kafka, made anew by the delivery that finds it failed."""

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from aftercall.errors import SinkError

REQUEST_S = 4.0  # also how long aiokafka keeps a record that it cannot send


class Producers:
    """By itself aiokafka asks only the brokers that it has met. `options` are those of AIOKafkaProducer."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._producer: Any = None
        self._starting: asyncio.Task[Any] | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def current(self) -> Any:
        """The producer, started in a task of its own: aiokafka leaves tasks behind if it is cancelled meanwhile."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(lambda made: made.cancelled() or made.exception())  # somebody has seen it
        return await asyncio.shield(self._starting)

    def leave(self, producer: Any) -> None:
        """Stop it in a task of its own: what others have in it may still arrive, or fails when its time is over."""
        if producer is not None and producer is self._producer:
            self._producer = None
            stopping = asyncio.create_task(producer.stop())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        self.leave(self._producer)
        await asyncio.gather(*self._stopping, return_exceptions=True)

    async def _start(self) -> Any:
        if self._producer is None:
            producer = self._producer = AIOKafkaProducer(
                acks="all",
                max_batch_size=1,  # a record by itself: a refusal says something of this event and of no other
                request_timeout_ms=round(REQUEST_S * 1000),
                **self._options,
            )
            try:
                await producer.start()
            except Exception:
                self.leave(producer)
                raise SinkError("cannot connect, or log in") from None
        return self._producer
