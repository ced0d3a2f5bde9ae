"""What a destination may answer, down to bytes that no HTTP library would send."""

import asyncio
import gzip
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
import zstandard

from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.sinks.http import post, request

SENT = b'{"said": "sesame"}'

Serve = Callable[[bytes], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Makes a server that answers each request with the same bytes, and then hangs up; gives its URL."""
    servers: list[asyncio.Server] = []

    async def start(answer: bytes) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(answer)
            try:
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            except ConnectionError:
                pass  # the client had read enough

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks/quartz-62"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(guarded=False, timeout_s=2.0) as client:
        yield client


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def refused(http: httpx.AsyncClient, url: str, *, quotable: frozenset[bytes] = frozenset()) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await post(http, url, SENT, {}, quotable=quotable)
    return caught.value


# 2xx


async def test_the_body_of_a_2xx_answer_is_given_back(serve: Serve, http: httpx.AsyncClient) -> None:
    assert await post(http, await serve(answer(200, b"ok\n")), SENT, {}) == (200, b"ok\n")
    assert await post(http, await serve(answer(204)), SENT, {}) == (204, b"")


async def test_only_the_first_64_kib_of_an_answer_are_kept(serve: Serve, http: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * 400

    assert await post(http, await serve(answer(200, body)), SENT, {}) == (200, body[:65_536])


async def test_as_much_of_an_answer_is_kept_as_was_asked_for(serve: Serve, http: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * 400

    kept = await request(http, "POST", await serve(answer(200, body)), SENT, limit=100_000)

    assert kept == (200, body[:100_000])


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(bytes(100_000_000))),
        ("zstd", zstandard.compress(bytes(100_000_000))),
    ],
    ids=["gzip", "zstd"],
)
async def test_a_small_answer_that_unpacks_to_a_huge_one_does_not_fill_the_memory(
    serve: Serve, http: httpx.AsyncClient, encoding: str, body: bytes
) -> None:
    url = await serve(answer(200, body, content_encoding=encoding))

    tracemalloc.start()
    try:
        kept = await post(http, url, SENT, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(kept) <= 65_536
    assert peak < 64_000_000


# Refusals


async def test_a_refusal_is_quoted_only_if_its_whole_body_is_a_known_word(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    known = frozenset({b"no_service"})

    assert str(await refused(http, await serve(answer(404, b"no_service")), quotable=known)) == "HTTP 404 no_service"
    for unknown in (b"no_service: sesame", b"sesame", b"\xff\xfe"):
        assert str(await refused(http, await serve(answer(404, unknown)), quotable=known)) == "HTTP 404"
    assert str(await refused(http, await serve(answer(404, b"no_service")))) == "HTTP 404"


@pytest.mark.parametrize(
    ("status", "permanent"),
    [
        *((status, True) for status in (400, 404, 418, 451, 499)),
        *((status, False) for status in (300, 304, 408, 409, 423, 425, 429, 500, 501, 599)),
    ],
)
async def test_a_4xx_is_for_good_unless_it_says_later(
    serve: Serve, http: httpx.AsyncClient, status: int, permanent: bool
) -> None:
    assert (await refused(http, await serve(answer(status)))).permanent is permanent


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0.0), ("7.5", 7.5), ("-3", 0.0), ("soon", None), ("nan", None), ("", None)]
)
async def test_retry_after_is_a_number_of_seconds_or_nothing(
    serve: Serve, http: httpx.AsyncClient, value: str, seconds: float | None
) -> None:
    assert (await refused(http, await serve(answer(503, retry_after=value)))).retry_after == seconds


@pytest.mark.parametrize("value", ["soon", "nan", ""])
async def test_too_many_requests_asks_for_patience_also_without_a_time(
    serve: Serve, http: httpx.AsyncClient, value: str
) -> None:
    assert (await refused(http, await serve(answer(429, retry_after=value)))).retry_after == 0.0


@pytest.mark.parametrize(("headers", "seconds"), [({}, 12.0), ({"retry_after": "7"}, 7.0)])
async def test_without_retry_after_the_body_of_a_429_may_say_how_long_to_wait(
    serve: Serve, http: httpx.AsyncClient, headers: dict[str, str], seconds: float
) -> None:
    url = await serve(answer(429, b"a dozen", **headers))

    with pytest.raises(SinkError) as caught:
        await request(http, "POST", url, SENT, patience=lambda body: 12.0 if body == b"a dozen" else 1.0)

    assert (caught.value.permanent, caught.value.retry_after) == (False, seconds)


@pytest.mark.parametrize(("status", "gone"), [(410, True), (404, False), (500, False)])
async def test_only_410_says_that_the_destination_is_gone(
    serve: Serve, http: httpx.AsyncClient, status: int, gone: bool
) -> None:
    assert (await refused(http, await serve(answer(status)))).gone is gone


async def test_retry_after_may_be_a_date(serve: Serve, http: httpx.AsyncClient) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)

    wait_s = (await refused(http, await serve(answer(503, retry_after=moment)))).retry_after

    assert wait_s == pytest.approx(600, abs=5)


# Faults


@pytest.mark.parametrize(
    "sent_back",
    [
        b"",
        b"quartz-62 sesame\r\n\r\n",
        b"HTTP/1.1 quartz-62\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nquartz-62",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nquartz-62\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"quartz-62" * 9000 + b"\r\n\r\n",
    ],
    ids=["hangs up", "not HTTP", "no status", "cut short", "bad chunk", "huge header"],
)
async def test_a_broken_answer_passes_and_is_not_quoted(
    serve: Serve, http: httpx.AsyncClient, sent_back: bytes
) -> None:
    error = await refused(http, await serve(sent_back))

    assert not error.permanent
    text = "".join(traceback.format_exception(error)) + repr(error)
    assert "quartz" not in text
    assert "sesame" not in text


async def test_a_server_without_tls_cannot_be_connected_to_by_https(http: httpx.AsyncClient) -> None:
    async def talk_plainly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk_plainly, "127.0.0.1", 0) as server:
        error = await refused(http, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    assert (error.permanent, str(error)) == (False, "cannot connect")


async def test_a_host_that_nobody_knows_passes(http: httpx.AsyncClient) -> None:
    error = await refused(http, "http://quartz-62.invalid/")

    assert (error.permanent, str(error)) == (False, "cannot connect")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/quartz-62",
        "http://quartz..example.com/",
        f"http://{'quartz' * 12}.example.com/",
        "http://quartz\x00.example.com/",
    ],
    ids=["port", "empty label", "long label", "control character"],
)
async def test_a_url_that_leads_nowhere_is_a_sink_error_that_does_not_show_it(
    http: httpx.AsyncClient, url: str
) -> None:
    error = await refused(http, url)

    assert "quartz" not in "".join(traceback.format_exception(error)) + repr(error)


async def test_a_user_and_password_in_the_url_are_sent_as_basic_authentication(http: httpx.AsyncClient) -> None:
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(204))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await post(http, f"http://mirela:sesame@127.0.0.1:{port}/", b"", {})

    assert b"authorization: basic bwlyzwxhonnlc2ftzq==" in heads[0].lower()


# The guard


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0x7f.1",
        "0.0.0.0",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "100.64.0.1",
    ],
)
async def test_the_guarded_client_reaches_no_private_address(host: str) -> None:
    async with make_client(guarded=True, timeout_s=2.0) as http:
        error = await refused(http, f"http://{host}/hooks/quartz-62")

    assert error.permanent
    assert "set allow_private_network = true on this sink if that is meant" in str(error)
    assert "quartz" not in "".join(traceback.format_exception(error))
