import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any, ClassVar

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka

from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.kafka import Kafka
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import Proxy, until, until_alone
from tests.servers.kafka import KafkaServer

_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    with KafkaServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _in_a_hurry(server: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    TestContract.server = server
    monkeypatch.setattr("aftercall.sinks.kafka_producers.REQUEST_S", 1.5)


def a_topic() -> str:
    return f"calls-{next(_numbers)}"


async def records(server: KafkaServer, topic: str) -> list[Any]:
    """All that the broker has of the topic, read by a consumer."""
    consumer = AIOKafkaConsumer(bootstrap_servers=server.address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(4)]  # as many as a mock topic has
        consumer.assign(partitions)
        missing = sum((await consumer.end_offsets(partitions)).values())
        found: list[Any] = []
        async with asyncio.timeout(30):
            while len(found) < missing:
                found += [one for some in (await consumer.getmany(timeout_ms=100)).values() for one in some]
        return found
    finally:
        await consumer.stop()


@contextlib.asynccontextmanager
async def a_sink(server: KafkaServer, topic: str, **options: object) -> AsyncIterator[Kafka]:
    known = {"bootstrap_servers": [server.address], "topic": topic}
    async with make_client(guarded=False) as http:
        sink = Kafka("log", msgspec.convert({**known, **options}, Kafka.Config), http)
        try:
            yield sink
        finally:
            await sink.close()


async def refused(sink: Kafka, delivery: Delivery | None = None) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(delivery or a_delivery())
    return caught.value


class TestContract(SinkContract):
    """The broker's port changes when it is started again; what leads to the brokers, as a DNS name does, stays."""

    sink = Kafka
    idempotent = False  # a topic takes a record as often as it comes
    server: ClassVar[KafkaServer]

    async def start(self) -> None:
        self.proxy = Proxy(self.server.port)
        await self.proxy.start()

    async def stop(self) -> None:
        await self.proxy.stop()

    async def options(self) -> dict[str, Any]:
        self.topic = a_topic()
        return {
            "bootstrap_servers": [f"127.0.0.1:{self.proxy.port}"],
            "topic": self.topic,
            "max_request_size": 9_000_000,
        }

    async def received(self) -> list[bytes]:
        return [record.value for record in await records(self.server, self.topic)]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)
        self.proxy.target = self.server.port

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        """Every record is larger than one may be."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Kafka, "render", lambda _, delivery: delivery.body + b" " * 9_000_000)
            yield


# The record


async def test_an_event_is_a_record_under_its_call_with_its_id_type_and_content_type(server: KafkaServer) -> None:
    topic = a_topic()
    delivery = a_delivery(an_event(type="call.settled", call=a_call(error="Grüezi \0 你好")))

    async with a_sink(server, topic) as sink:
        receipt = await sink.deliver(delivery)

    [record] = await records(server, topic)
    assert receipt == f"{topic}[{record.partition}]@{record.offset}"
    assert record.key == b"call_7f3"
    assert dict(record.headers) == {
        "content-type": b"application/cloudevents+json",
        "ce_id": b"evt_lantern",
        "ce_type": b"call.settled",
    }
    assert record.value == sink.render(delivery)
    assert decode(record.value) == delivery.event


async def test_the_events_of_a_call_keep_to_one_partition_and_their_order(server: KafkaServer) -> None:
    topic = a_topic()
    async with a_sink(server, topic) as sink:
        for number in range(6):
            await sink.deliver(a_delivery(an_event(id=f"evt_{number}")))
            await sink.deliver(a_delivery(an_event(id="evt_other", call=a_call(id=f"call_{number}"))))

    ours = [record for record in await records(server, topic) if record.key == b"call_7f3"]
    assert [dict(record.headers)["ce_id"] for record in ours] == [b"evt_%d" % number for number in range(6)]
    assert len({record.partition for record in ours}) == 1


async def test_a_record_waits_for_all_replicas_and_travels_by_itself(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "aftercall.sinks.kafka_producers.AIOKafkaProducer",
        lambda **options: made.append(options) or AIOKafkaProducer(**options),
    )
    topic = a_topic()
    async with a_sink(server, topic) as sink:
        receipts = await asyncio.gather(*(sink.deliver(a_delivery()) for _ in range(32)))

    assert (made[0]["acks"], made[0]["max_batch_size"], len(made)) == ("all", 1, 1)
    assert len(set(receipts)) == 32


# Refusals


async def test_a_record_that_is_too_large_is_refused_for_good_and_the_producer_stays(server: KafkaServer) -> None:
    async with a_sink(server, a_topic(), max_request_size=2_000) as sink:
        await sink.deliver(Delivery(event=an_event(), body=b"{}"))
        producer = sink._producers._producer
        error = await refused(sink, Delivery(event=an_event(), body=b" " * 2_000))

        assert (error.permanent, str(error)) == (True, "larger than max_request_size, or than the topic allows")
        assert sink._producers._producer is producer


@pytest.mark.parametrize(
    ("refusal", "permanent", "told"),
    [
        (kafka.MessageSizeTooLargeError(), True, "larger than max_request_size, or than the topic allows"),
        (kafka.RecordListTooLargeError(), True, "larger than max_request_size, or than the topic allows"),
        (kafka.TopicAuthorizationFailedError("x"), False, 'this user may not write to topic "calls"'),
        (kafka.UnknownTopicOrPartitionError(), False, 'there is no topic "calls", or no broker to tell of it'),
        (kafka.NotEnoughReplicasError(), False, "not acknowledged: NotEnoughReplicasError"),
        (kafka.ProducerClosed(), False, "not acknowledged: ProducerClosed"),
    ],
)
async def test_what_a_broker_refuses_is_told_apart(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch, refusal: Exception, permanent: bool, told: str
) -> None:
    """The mock broker refuses nothing by itself."""

    async def refuse(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr(AIOKafkaProducer, "send_and_wait", refuse)
    async with a_sink(server, "calls") as sink:
        error = await refused(sink)

    assert (error.permanent, str(error)) == (permanent, told)


# Outages


async def test_records_that_could_not_be_sent_in_time_are_let_go(server: KafkaServer) -> None:
    topic = a_topic()
    async with a_sink(server, topic) as sink:
        await sink.deliver(a_delivery(an_event(id="evt_first")))
        server.freeze()
        try:
            async with asyncio.timeout(7):  # not WITHIN_S
                errors = await asyncio.gather(*(refused(sink) for _ in range(32)))
                await sink.close()
        finally:
            server.thaw()
        await sink.deliver(a_delivery(an_event(id="evt_last")))

    assert not any(error.permanent for error in errors)
    ids = [dict(record.headers)["ce_id"] for record in await records(server, topic)]
    assert {b"evt_first", b"evt_last"} <= set(ids)
    assert len(ids) < 12  # at most one under way to each partition, and its repetition


async def test_a_cancelled_delivery_stands_in_nobodys_way(server: KafkaServer) -> None:
    topic = a_topic()
    async with a_sink(server, topic) as sink:
        await sink.deliver(a_delivery())
        server.freeze()
        attempts = [asyncio.create_task(sink.deliver(a_delivery())) for _ in range(32)]
        await asyncio.sleep(0.1)
        for attempt in attempts:
            attempt.cancel()
        server.thaw()

        async with asyncio.timeout(7):
            assert await asyncio.gather(*attempts, return_exceptions=True)
            await sink.deliver(a_delivery(an_event(id="evt_last")))
    assert all(attempt.cancelled() for attempt in attempts)


async def test_a_delivery_cancelled_while_it_connects_leaves_nothing_behind(server: KafkaServer) -> None:
    async with a_sink(server, a_topic()) as sink:
        for wait_s in (0.0, 0.001, 0.003, 0.006, 0.01):
            attempt = asyncio.create_task(sink.deliver(a_delivery()))
            await asyncio.sleep(wait_s)
            attempt.cancel()
            await asyncio.wait([attempt])
            assert sink._producers._starting is None or not sink._producers._starting.cancelled()
        await sink.deliver(a_delivery())
        await sink.close()
        await until_alone()


async def test_a_producer_that_failed_is_stopped_and_another_one_made(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_sink(server, a_topic()) as sink:
        await sink.deliver(a_delivery())
        before = sink._producers._producer
        with monkeypatch.context() as patch:
            patch.setattr("aftercall.sinks.kafka.WITHIN_S", 0.0)
            assert str(await refused(sink)) == "not acknowledged: TimeoutError"
        await sink.deliver(a_delivery())

        assert sink._producers._producer is not before
        await until(lambda: before._closed and not sink._producers._stopping)


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"bootstrap_servers": []},
        {"topic": "all calls"},
        {"topic": ""},
        {"security_protocol": "TLS"},
        {"security_protocol": "SASL_SSL"},
        {"security_protocol": "SASL_PLAINTEXT", "username": "desk"},
        {"sasl_mechanism": "GSSAPI"},
        {"max_request_size": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    known = {"bootstrap_servers": ["127.0.0.1:9092"], "topic": "calls"}
    msgspec.convert(known, Kafka.Config)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**known, **options}, Kafka.Config)


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL", "SASL_PLAINTEXT"])
async def test_a_broker_that_speaks_otherwise_passes_and_no_password_is_told(
    server: KafkaServer, protocol: str
) -> None:
    login = {"security_protocol": protocol, "username": "desk", "password": "sesame-7291"}
    async with a_sink(server, "calls", **login) as sink:
        errors = [await refused(sink), await refused(sink)]

    assert [(error.permanent, str(error)) for error in errors] == 2 * [(False, "cannot connect, or log in")]
    assert "sesame-7291" not in repr(sink.config)
