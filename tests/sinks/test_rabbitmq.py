import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any, ClassVar

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.rabbitmq import RabbitMQ
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import Proxy, until_alone
from tests.servers.rabbitmq import MAX_MESSAGE_BYTES, RabbitServer

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(autouse=True)
def _given_to_the_contract(server: RabbitServer) -> None:
    TestContract.server = server


@contextlib.asynccontextmanager
async def a_channel(server: RabbitServer) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(server.url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


async def an_exchange(server: RabbitServer, **arguments: Any) -> str:
    """A new topic exchange, with a queue of the same name that takes all that goes there."""
    name = f"calls{next(_numbers)}"
    async with a_channel(server) as channel:
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(exchange, "#")
    return name


async def messages(server: RabbitServer, name: str) -> list[AbstractIncomingMessage]:
    """All that the queue has. They stay there: nothing is acknowledged."""
    async with a_channel(server) as channel:
        queue = await channel.get_queue(name)
        found = []
        while message := await queue.get(fail=False):
            found.append(message)
        return found


@contextlib.asynccontextmanager
async def a_sink(url: str, **options: object) -> AsyncIterator[RabbitMQ]:
    async with make_client(guarded=False) as http:
        sink = RabbitMQ("log", msgspec.convert({"url": url, **options}, RabbitMQ.Config), http)
        try:
            yield sink
        finally:
            await sink.close()


async def refused(sink: RabbitMQ, delivery: Delivery | None = None) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(delivery or a_delivery())
    return caught.value


class TestContract(SinkContract):
    sink = RabbitMQ
    idempotent = False  # a queue takes a message as often as it comes
    server: ClassVar[RabbitServer]

    async def options(self) -> dict[str, Any]:
        self.exchange = await an_exchange(self.server)
        return {"url": self.server.url, "exchange": self.exchange}

    async def received(self) -> list[bytes]:
        return [message.body for message in await messages(self.server, self.exchange)]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        before = await self.received()
        self.server.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)  # takes longer than the loop may stand still, on a busy machine
        assert await self.received() == before, "what was confirmed is gone"

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        """Every message is larger than the broker takes."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RabbitMQ, "render", lambda _, delivery: delivery.body + b" " * MAX_MESSAGE_BYTES)
            yield


# The message


async def test_an_event_is_a_persistent_message_with_its_id_type_and_content_type(server: RabbitServer) -> None:
    name = await an_exchange(server)
    delivery = a_delivery(an_event(type="call.settled", call=a_call(error="Grüezi \0 你好")))

    async with a_sink(server.url, exchange=name) as sink:
        await sink.deliver(delivery)

    [message] = await messages(server, name)
    assert (message.message_id, message.type) == ("evt_lantern", "call.settled")
    assert (message.exchange, message.routing_key) == (name, "call.settled")
    assert message.content_type == "application/cloudevents+json"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.body == sink.render(delivery)
    assert decode(message.body) == delivery.event


async def test_without_an_exchange_a_message_goes_to_the_queue_of_the_routing_key(server: RabbitServer) -> None:
    name = await an_exchange(server)
    async with a_sink(server.url, exchange="", routing_key=name) as sink:
        await sink.deliver(a_delivery())

    assert [message.routing_key for message in await messages(server, name)] == [name]


# Refusals


async def test_what_no_queue_takes_passes_and_arrives_once_one_does(server: RabbitServer) -> None:
    name = await an_exchange(server)
    async with a_channel(server) as channel:
        exchange, queue = await channel.get_exchange(name), await channel.get_queue(name)
        await queue.unbind(exchange, "#")
        async with a_sink(server.url, exchange=name) as sink:
            error = await refused(sink)
            await queue.bind(exchange, "call.*")
            await sink.deliver(a_delivery())

    expected = f'no queue takes the key "call.ended": bind one to exchange "{name}"'
    assert (error.permanent, str(error)) == (False, expected)
    assert len(await messages(server, name)) == 1


async def test_an_exchange_that_is_not_there_passes_and_the_event_arrives_once_it_is(server: RabbitServer) -> None:
    async with a_sink(server.url, exchange="none") as sink:
        errors = [await refused(sink), *await asyncio.gather(*(refused(sink) for _ in range(8)))]
        async with a_channel(server) as channel:
            queue = await channel.declare_queue("none", durable=True)
            await queue.bind(await channel.declare_exchange("none", aio_pika.ExchangeType.FANOUT, durable=True))
        await sink.deliver(a_delivery())

    assert {(error.permanent, str(error)) for error in errors} <= {
        (False, 'there is no exchange "none": create it'),
        (False, "the connection was lost"),
    }
    assert str(errors[0]) == 'there is no exchange "none": create it'
    assert len(await messages(server, "none")) == 1


async def test_an_exchange_that_one_may_not_write_to_passes(server: RabbitServer) -> None:
    async with a_sink(server.url, exchange="amq.rabbitmq.trace") as sink:
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, 'this user may not write to exchange "amq.rabbitmq.trace"')


async def test_a_queue_that_is_full_passes(server: RabbitServer) -> None:
    name = await an_exchange(server, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    async with a_sink(server.url, exchange=name) as sink:
        await sink.deliver(a_delivery())
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "the broker did not confirm: a queue is full, or failed")


async def test_too_large_an_event_is_refused_for_good_and_those_beside_it_are_not(server: RabbitServer) -> None:
    name = await an_exchange(server)
    too_large = Delivery(event=an_event(), body=b"x" * (MAX_MESSAGE_BYTES + 1), format="raw")
    others = [a_delivery(an_event(id=f"evt_{number}")) for number in range(8)]

    async def attempt(sink: RabbitMQ, delivery: Delivery) -> str:
        """As the worker does: until it is there, or refused for good."""
        while True:
            try:
                await sink.deliver(delivery)
                return "delivered"
            except SinkError as error:
                if error.permanent:
                    return str(error)
                await asyncio.sleep(0.05)

    async with a_sink(server.url, exchange=name) as sink, asyncio.timeout(60):
        outcomes = await asyncio.gather(*(attempt(sink, one) for one in (*others[:4], too_large, *others[4:])))

    assert outcomes == 4 * ["delivered"] + ["larger than the broker's max_message_size"] + 4 * ["delivered"]
    assert {message.message_id for message in await messages(server, name)} == {f"evt_{n}" for n in range(8)}


# Connecting


@pytest.mark.parametrize(
    ("before", "after"), [("guest:guest", "guest:wrong"), ("guest:guest", "nobody:guest"), ("/%2F", "/none")]
)
async def test_a_refused_login_or_virtual_host_passes_and_is_told(
    server: RabbitServer, before: str, after: str
) -> None:
    async with a_sink(server.url.replace(before, after), exchange="") as sink:
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "the broker refused the login or the virtual host")


async def test_a_broker_that_falls_silent_passes_in_time(server: RabbitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    name, proxy = await an_exchange(server), Proxy(server.port)
    await proxy.start()
    try:
        async with a_sink(server.url.replace(str(server.port), str(proxy.port)), exchange=name) as sink:
            await sink.deliver(a_delivery())
            for limit in ("rabbitmq_connection.CONNECT_S", "rabbitmq.CONFIRM_S", "rabbitmq_connection.CLOSE_S"):
                monkeypatch.setattr(f"aftercall.sinks.{limit}", 0.2)
            proxy.fall_silent()
            errors = [await refused(sink) for _ in range(3)]
            monkeypatch.undo()
            proxy.speak_again()  # to new connections only
            await sink.deliver(a_delivery())
    finally:
        await proxy.stop()

    assert [str(error) for error in errors] == ["no confirmation in time", "cannot connect", "cannot connect"]
    assert not any(error.permanent for error in errors)
    assert len(await messages(server, name)) >= 2


async def test_a_cancellation_of_the_clients_own_is_a_lost_connection(
    server: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So aiormq ends what waits for a broker that it has given up."""

    async def give_up(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(aio_pika.Exchange, "publish", give_up)
    async with a_sink(server.url, exchange="") as sink:
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "the connection was lost")


async def test_attempts_under_way_learn_at_once_that_the_connection_is_lost(server: RabbitServer) -> None:
    name, proxy = await an_exchange(server), Proxy(server.port)
    await proxy.start()
    async with a_sink(server.url.replace(str(server.port), str(proxy.port)), exchange=name) as sink:
        await sink.deliver(a_delivery())
        proxy.fall_silent()
        attempts = [asyncio.create_task(refused(sink)) for _ in range(32)]
        await asyncio.sleep(0.1)
        await proxy.stop()
        async with asyncio.timeout(60):  # or else their error is another
            errors = await asyncio.gather(*attempts)
            assert str(await refused(sink)) == "cannot connect"

    assert not any(error.permanent for error in errors)
    assert {str(error) for error in errors} == {"the connection was lost"}


async def test_a_delivery_cancelled_while_it_connects_leaves_nothing_behind(server: RabbitServer) -> None:
    name = await an_exchange(server)
    async with a_sink(server.url, exchange=name) as sink:
        for wait_s in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02):
            attempt = asyncio.create_task(sink.deliver(a_delivery()))
            await asyncio.sleep(wait_s)
            attempt.cancel()
            await asyncio.wait([attempt])
            assert sink._connection._making is None or not sink._connection._making.cancelled()
            await sink.close()
        await sink.deliver(a_delivery(an_event(id="evt_last")))

    assert "evt_last" in {message.message_id for message in await messages(server, name)}
    await until_alone()


async def test_of_a_message_that_comes_back_to_a_cancelled_delivery_nothing_is_logged(
    server: RabbitServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.sinks.rabbitmq.CONFIRM_S", 0.5)
    caplog.set_level(logging.INFO)
    async with a_sink(server.url, exchange="amq.topic") as sink:
        await sink.open()
        for turns in range(30):  # one of them is cancelled between its publishing and its return
            attempt = asyncio.create_task(sink.deliver(a_delivery(an_event(id=f"evt_{turns}"))))
            for _ in range(turns):
                await asyncio.sleep(0)
            attempt.cancel()
            await asyncio.wait([attempt])
        told = [str(await refused(sink)) for _ in range(3)]

    assert "Mirela" not in caplog.text
    # Such a return can end aiormq's reading of the channel. That costs one delivery its time, and then it is left.
    assert told[-1].startswith("no queue takes the key")


@pytest.mark.parametrize("url", ["redis://127.0.0.1", "127.0.0.1:5672", "amqp://127.0.0.1:port"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="expected amqp://"):
        msgspec.convert({"url": url, "exchange": ""}, RabbitMQ.Config)


@pytest.mark.parametrize("exchange", ["calls*", "é", "x" * 128])
def test_an_exchange_whose_name_cannot_be_sent_is_refused(exchange: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="exchange"):
        msgspec.convert({"url": "amqp://127.0.0.1", "exchange": exchange}, RabbitMQ.Config)


async def test_an_exchange_may_have_any_name_that_can_be_sent(server: RabbitServer) -> None:
    async with a_sink(server.url, exchange="Desk: calls/all, #1+@x_y.z-") as sink:
        assert str(await refused(sink)).startswith("there is no exchange")
