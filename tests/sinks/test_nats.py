import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.nats import Nats
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import Proxy, a_certificate, until, until_alone
from tests.servers.nats import PASSWORD, TOKEN, NatsServer

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(autouse=True)
def _given_to_the_contract(server: NatsServer) -> None:
    TestContract.server = server


def url_of(server: NatsServer, *, port: int | None = None) -> str:
    return f"nats://desk:{quote(PASSWORD, safe='')}@127.0.0.1:{port or server.port}"


@contextlib.asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(f"nats://127.0.0.1:{server.port}", user="desk", password=PASSWORD, allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def messages(server: NatsServer, stream: str) -> list[Msg]:
    """All that the stream has, read by a consumer."""
    async with connected(server) as client:
        stored = (await client.jetstream().stream_info(stream)).state.messages
        consumer = await client.jetstream().pull_subscribe("", stream=stream)
        return await consumer.fetch(stored, timeout=5) if stored else []


async def a_stream(server: NatsServer, **settings: Any) -> str:
    """A new stream, which listens to what begins with its name."""
    name = f"calls{next(_numbers)}"
    async with connected(server) as client:
        await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], **settings))
    return name


@contextlib.asynccontextmanager
async def a_sink(url: str, **options: object) -> AsyncIterator[Nats]:
    async with make_client(guarded=False) as http:
        sink = Nats("log", msgspec.convert({"url": url, **options}, Nats.Config), http)
        try:
            yield sink
        finally:
            await sink.close()


async def refused(sink: Nats, delivery: Delivery | None = None) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(delivery or a_delivery())
    return caught.value


class TestContract(SinkContract):
    sink = Nats
    server: ClassVar[NatsServer]

    async def options(self) -> dict[str, Any]:
        self.stream = await a_stream(self.server, max_msg_size=4_000_000)
        return {"url": url_of(self.server), "subject": self.stream, "stream": self.stream, "token": TOKEN}

    async def received(self) -> list[bytes]:
        return [message.data for message in await messages(self.server, self.stream)]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        async with connected(self.server) as client:
            settings = (await client.jetstream().stream_info(self.stream)).config
            await client.jetstream().update_stream(settings, max_msg_size=10)
        yield


# The message


async def test_an_event_is_a_message_under_its_type_with_its_id_and_content_type(server: NatsServer) -> None:
    stream = await a_stream(server)
    delivery = a_delivery(an_event(type="call.settled", call=a_call(error="Grüezi \0 你好")))

    async with a_sink(url_of(server), subject=stream) as sink:
        receipt = await sink.deliver(delivery)

    [message] = await messages(server, stream)
    assert receipt == f"{stream}:1"
    assert message.subject == f"{stream}.call.settled"
    assert message.headers == {"Nats-Msg-Id": "evt_lantern", "Content-Type": "application/cloudevents+json"}
    assert message.data == sink.render(delivery)
    assert decode(message.data) == delivery.event


async def test_an_event_that_comes_again_has_the_receipt_of_the_first_attempt(server: NatsServer) -> None:
    stream = await a_stream(server)

    async with a_sink(url_of(server), subject=stream) as sink, a_sink(url_of(server), subject=stream) as another:
        receipts = [await worker.deliver(a_delivery()) for worker in (sink, another, sink)]

    assert receipts == [f"{stream}:1"] * 3
    assert len(await messages(server, stream)) == 1


async def test_a_stream_knows_an_event_again_for_two_minutes_by_default(server: NatsServer) -> None:
    stream = await a_stream(server)

    async with connected(server) as client:
        assert (await client.jetstream().stream_info(stream)).config.duplicate_window == 120


# Refusals


async def test_without_a_stream_it_passes_and_is_told_what_to_create(server: NatsServer) -> None:
    name = f"calls{next(_numbers)}"
    async with a_sink(url_of(server), subject=name) as sink:
        error = await refused(sink)

        assert (error.permanent, str(error)) == (
            False,
            f"no stream listens to {name}.call.ended: create one for {name}.>",
        )
        async with connected(server) as client:
            await client.jetstream().add_stream(name=name, subjects=[f"{name}.>"])
        assert await sink.deliver(a_delivery()) == f"{name}:1"


async def test_another_stream_than_the_expected_one_passes_and_keeps_nothing(server: NatsServer) -> None:
    stream = await a_stream(server)
    async with a_sink(url_of(server), subject=stream, stream="ledger") as sink:
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "refused: expected stream does not match")
    assert await messages(server, stream) == []


async def test_a_stream_that_is_full_passes(server: NatsServer) -> None:
    stream = await a_stream(server, max_msgs=1, discard="new")
    async with a_sink(url_of(server), subject=stream) as sink:
        await sink.deliver(a_delivery())
        error = await refused(sink, a_delivery(an_event(id="evt_second")))

    assert (error.permanent, str(error)) == (False, "refused: maximum messages exceeded")


async def test_what_the_server_would_hang_up_at_is_refused_and_disturbs_nobody(server: NatsServer) -> None:
    stream = await a_stream(server)
    event = an_event()
    async with a_sink(url_of(server), subject=stream, stream=stream) as sink:
        await sink.deliver(a_delivery(an_event(id="evt_first")))
        client = await sink._connection.client()
        headers = {"Nats-Msg-Id": event.id, "Content-Type": "application/json", "Nats-Expected-Stream": stream}
        fits = client.max_payload - len("NATS/1.0\r\n\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()))

        await sink.deliver(Delivery(event=event, body=b"x" * fits, format="raw"))
        error = await refused(sink, Delivery(event=event, body=b"x" * (fits + 1), format="raw"))

        assert (error.permanent, str(error)) == (True, "larger than the server's max_payload, 1048576 bytes")
        assert await sink._connection.client() is client

    assert [len(message.data) for message in await messages(server, stream)][1:] == [fits]


async def test_an_answer_that_is_no_acknowledgement_passes(server: NatsServer) -> None:
    name = f"calls{next(_numbers)}"

    async def greet(message: Msg) -> None:
        await message.respond(b"welcome")

    async with connected(server) as client, a_sink(url_of(server), subject=name) as sink:
        await client.subscribe(f"{name}.>", cb=greet)
        await client.flush()
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "no acknowledgement: JSONDecodeError")


# Logging in


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_a_refused_login_passes_and_is_told_as_that(server: NatsServer, password: str) -> None:
    async with a_sink(f"nats://desk:{password}@127.0.0.1:{server.port}") as sink:
        error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "the server refused the login")


@pytest.mark.parametrize("option", [True, False])
async def test_a_token_logs_in_from_its_option_or_the_url(
    tmp_path_factory: pytest.TempPathFactory, option: bool
) -> None:
    server = NatsServer(tmp_path_factory.mktemp("nats-token"))
    server.settings = f'authorization {{ token: "{TOKEN}" }}'
    with server:
        place = f"127.0.0.1:{server.port}"
        options = {"token": TOKEN} if option else {}
        async with a_sink(f"nats://{place}" if option else f"nats://{TOKEN}@{place}", **options) as sink:
            error = await refused(sink)

    assert str(error).startswith("no stream listens to calls.call.ended")


async def test_a_login_that_is_mended_needs_no_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = NatsServer(tmp_path_factory.mktemp("nats-login"))
    with server:
        stream, settings = await a_stream(server), server.settings
        async with a_sink(url_of(server), subject=stream) as sink:
            await sink.deliver(a_delivery(an_event(id="evt_first")))
            server.kill()
            server.settings = 'authorization { user: desk, password: "another" }'
            server.start()
            assert str(await refused(sink)) == "the connection was lost"
            error = await refused(sink)
            assert (error.permanent, str(error)) == (False, "the server refused the login")
            server.kill()
            server.settings = settings
            server.start()

            assert await sink.deliver(a_delivery()) == f"{stream}:2"


async def test_a_delivery_cancelled_while_it_connects_leaves_nothing_behind(server: NatsServer) -> None:
    stream = await a_stream(server)
    async with a_sink(url_of(server), subject=stream) as sink:
        for wait_s in (0.0, 0.0005, 0.001, 0.002, 0.004):
            attempt = asyncio.create_task(sink.deliver(a_delivery()))
            await asyncio.sleep(wait_s)
            attempt.cancel()
            await asyncio.wait([attempt])
        assert await sink.deliver(a_delivery()) == f"{stream}:1"
        await sink.close()
        await until_alone()


async def test_a_second_server_is_tried_where_the_first_is_not_there(server: NatsServer) -> None:
    stream = await a_stream(server)
    async with a_sink(f"{url_of(server, port=1)},nats://127.0.0.1:{server.port}", subject=stream) as sink:
        assert await sink.deliver(a_delivery()) == f"{stream}:1"


# TLS


@contextlib.asynccontextmanager
async def a_listener(*, answers: bytes) -> AsyncIterator[tuple[int, bytearray]]:
    """What takes connections as a NATS server without TLS does; its port, and what it was sent."""
    sent = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id": "x", "headers": true, "auth_required": true, "max_payload": 1048576}\r\n')
        while data := await reader.read(65536):
            sent.extend(data)
            writer.write(answers)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], sent


@pytest.mark.parametrize("answers", [b"-ERR 'Parser Error'\r\n", b""])
async def test_where_tls_was_asked_for_nothing_is_sent_without_it(
    answers: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.sinks.nats_connection.CLOSE_S", 0.1)
    async with a_listener(answers=answers) as (port, sent), a_sink(f"tls://desk:sesame@127.0.0.1:{port}") as sink:
        async with asyncio.timeout(8):
            error = await refused(sink)

    assert (error.permanent, str(error)) == (False, "cannot connect")
    assert sent[:1] == b"\x16"  # a TLS handshake
    assert b"sesame" not in sent


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("also_without", ["", "allow_non_tls: true"])
async def test_tls_is_spoken_where_the_url_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool, also_without: str
) -> None:
    server = NatsServer(tmp_path)
    key, certificate = a_certificate(tmp_path, address="127.0.0.1")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
    server.settings += f'\ntls {{ key_file: "{key}", cert_file: "{certificate}" }}\n{also_without}'
    with server:
        async with a_sink(url_of(server).replace("nats://", "tls://")) as sink:
            async with asyncio.timeout(8):
                error = await refused(sink)

    assert str(error)[:27] == ("no stream listens to calls." if trusted else "cannot connect")


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://127.0.0.1"},
        {"url": "nats://"},
        {"url": "nats://127.0.0.1:port"},
        {"url": "nats://127.0.0.1,"},
        {"url": "nats://127.0.0.1", "subject": "calls.>"},
        {"url": "nats://127.0.0.1", "subject": "calls."},
        {"url": "nats://127.0.0.1", "subject": "all calls"},
    ],
)
def test_options_that_lead_nowhere_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, Nats.Config)


# Outages


async def test_while_the_connection_is_gone_nothing_is_kept_to_be_sent_later(server: NatsServer) -> None:
    stream = await a_stream(server)
    async with a_sink(url_of(server), subject=stream) as sink:
        await sink.deliver(a_delivery(an_event(id="evt_first")))
        server.kill()
        told = [str(await refused(sink, a_delivery(an_event(id=f"evt_{number}")))) for number in range(20)]
        server.start()
        await sink.deliver(a_delivery(an_event(id="evt_last")))

    ids = [message.headers["Nats-Msg-Id"] for message in await messages(server, stream) if message.headers]
    assert ids == ["evt_first", "evt_last"]
    assert told == ["the connection was lost"] + 19 * ["cannot connect"]


async def test_attempts_under_way_learn_at_once_that_the_connection_is_lost(server: NatsServer) -> None:
    name = f"calls{next(_numbers)}"
    async with connected(server) as client, a_sink(url_of(server), subject=name) as sink:
        taken = await client.subscribe(f"{name}.>")  # takes them, and never answers
        await client.flush()
        attempts = [asyncio.create_task(refused(sink)) for _ in range(32)]
        for _ in attempts:
            await taken.next_msg()
        server.kill()
        async with asyncio.timeout(60):  # or else their error is another
            errors = await asyncio.gather(*attempts)
        server.start()

    assert {(error.permanent, str(error)) for error in errors} == {(False, "the connection was lost")}


async def test_a_connection_that_is_lost_while_something_is_written_leaves_nothing_behind(server: NatsServer) -> None:
    stream = await a_stream(server)
    async with a_sink(url_of(server), subject=stream) as sink:
        await sink.deliver(a_delivery(an_event(id="evt_first")))
        client = await sink._connection.client()
        attempts = [asyncio.create_task(refused(sink)) for _ in range(32)]
        client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
        async with asyncio.timeout(2):
            errors = await asyncio.gather(*attempts)
        await asyncio.sleep(0.01)
        running = asyncio.all_tasks()

    assert {str(error) for error in errors} == {"the connection was lost"}
    assert len(running) == 1


async def test_a_server_that_falls_silent_passes_in_time_and_is_connected_to_anew(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.sinks.nats_connection.PING_S", 0.1)
    stream, proxy = await a_stream(server), Proxy(server.port)
    await proxy.start()
    try:
        async with a_sink(url_of(server, port=proxy.port), subject=stream) as sink:
            await sink.deliver(a_delivery(an_event(id="evt_first")))
            proxy.fall_silent()
            with monkeypatch.context() as hurried:
                hurried.setattr("aftercall.sinks.nats.ACK_S", 0.2)
                error = await refused(sink)
            proxy.speak_again()  # to new connections only
            await until(lambda: not sink._connection._client.is_connected)

            assert (error.permanent, str(error)[:26]) == (False, "no acknowledgement in time")
            assert await sink.deliver(a_delivery()) == f"{stream}:2"
    finally:
        await proxy.stop()


async def test_of_errors_nothing_is_logged(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with a_sink(f"nats://desk:wrong@127.0.0.1:{server.port}") as sink:
        await refused(sink)
    stream = await a_stream(server)
    async with a_sink(url_of(server), subject=stream) as sink:
        await sink.deliver(a_delivery())
        server.kill()
        await until(lambda: not sink._connection._client.is_connected)
        server.start()
        await sink.deliver(a_delivery())

    assert caplog.records == []
