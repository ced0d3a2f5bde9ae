"""The HTTP client: which addresses it reaches, what it follows, reads and waits for."""

import asyncio
import contextlib
import gzip
import math
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from aftercall.client import PublicResolver, is_public, make_client, read_body, retry_after_s
from aftercall.errors import AddressRefused


def packed_zeros(megabytes: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


BOMB = packed_zeros(128)


class Server:
    """A plain HTTP server on loopback that remembers the requests it got."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            path = head.split()[1].strip("/").rpartition("/")[2]
            writer.write(await getattr(self, path or "plain")(writer))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has seen enough
        finally:
            writer.close()

    async def plain(self, _: asyncio.StreamWriter) -> bytes:
        return answer(b"hello")

    async def away(self, _: asyncio.StreamWriter) -> bytes:
        return answer(b"", "302 Found", f"location: {self.url}/plain")

    async def cookie(self, _: asyncio.StreamWriter) -> bytes:
        return answer(b"", "200 OK", "set-cookie: session=of-another-tenant; path=/")

    async def gzipped(self, _: asyncio.StreamWriter) -> bytes:
        return answer(gzip.compress(b"a" * 5000), "200 OK", "content-encoding: gzip")

    async def bomb(self, _: asyncio.StreamWriter) -> bytes:
        return answer(BOMB, "200 OK", "content-encoding: zstd")

    async def endless(self, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 4096)
            await writer.drain()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    listening = await asyncio.start_server(running.handle, "127.0.0.1", 0)
    running.port = listening.sockets[0].getsockname()[1]
    yield running
    listening.close()


@pytest.fixture
async def guarded() -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(guarded=True, timeout_s=2) as client:
        yield client


@pytest.fixture
async def unguarded() -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(guarded=False, timeout_s=2) as client:
        yield client


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",  # shared by carriers, and by some clouds' metadata
        "100.127.255.254",
        "169.254.169.254",
        "192.0.0.1",
        "192.0.0.8",
        "192.0.2.7",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "192.88.99.1",  # the relays of 6to4
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_address_that_is_not_of_the_public_internet_is_told_apart(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.1",
        "93.184.215.14",
        "100.63.255.255",
        "100.128.0.1",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.1",
        "192.167.255.255",
        "192.169.0.1",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "2001:4860:4860::8888",
        "2606:4700:4700::1111",
        "2a00:1450:4001:80b::200e",
    ],
)
def test_a_public_address_is_public_up_to_the_edges_of_the_private_ranges(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("name", ["example.com", "localhost", "", "127.1", "0x7f000001", "2130706433"])
def test_a_name_is_no_address(name: str) -> None:
    with pytest.raises(ValueError):
        is_public(name)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "user@127.0.0.1",
        "user:password@127.0.0.1",
        "example.com@127.0.0.1",
        "127。0。0。1",
        "localhost",
        "LOCALHOST",
        "0x7f.1",
        "0x7f000001",
        # All digits: the library underneath may take these for addresses and ask no resolver.
        "2130706433",
        "017700000001",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "0",
    ],
)
async def test_no_spelling_of_a_private_address_gets_past_the_guard(
    guarded: httpx.AsyncClient, server: Server, host: str
) -> None:
    with pytest.raises(AddressRefused):
        await guarded.get(f"http://{host}:{server.port}/")
    assert server.requests == []


async def test_a_refusal_names_the_host_and_no_credentials(guarded: httpx.AsyncClient, server: Server) -> None:
    with pytest.raises(AddressRefused) as caught:
        await guarded.get(f"http://joe:hunter2@127.0.0.1:{server.port}/?token=hunter2")
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_without_the_guard_loopback_is_reached(unguarded: httpx.AsyncClient, server: Server) -> None:
    for host in ("127.0.0.1", "localhost"):
        answered = await unguarded.get(f"http://{host}:{server.port}/plain")
        assert (answered.status_code, answered.text) == (200, "hello")
    assert len(server.requests) == 2


Answers = Callable[..., None]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Decides what every name resolves to: a test cannot publish a rogue record."""

    def resolve_to(*addresses: str) -> None:
        def getaddrinfo(_host: Any, port: int, *_: Any, **__: Any) -> list[Any]:
            return [
                (
                    socket.AF_INET6 if ":" in address else socket.AF_INET,
                    socket.SOCK_STREAM,
                    socket.IPPROTO_TCP,
                    "",
                    (address, port, 0, 0) if ":" in address else (address, port),
                )
                for address in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve_to


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("93.184.215.14", "127.0.0.1"),
        ("127.0.0.1", "93.184.215.14"),
        ("2606:4700:4700::1111", "::1"),
        ("93.184.215.14", "::ffff:127.0.0.1"),
        ("93.184.215.14", "169.254.169.254"),
    ],
)
async def test_one_private_record_spoils_a_name(
    guarded: httpx.AsyncClient, server: Server, dns: Answers, addresses: tuple[str, ...]
) -> None:
    dns(*addresses)
    with pytest.raises(AddressRefused, match=r"hooks\.example\.com leads to a private address"):
        await guarded.get(f"http://hooks.example.com:{server.port}/")
    assert server.requests == []


async def test_a_name_with_public_records_only_keeps_them_all(dns: Answers) -> None:
    dns("93.184.215.14", "2606:4700:4700::1111")
    resolver = PublicResolver()
    found = await resolver.resolve("hooks.example.com", 443, socket.AF_UNSPEC)
    await resolver.close()
    assert [entry["host"] for entry in found] == ["93.184.215.14", "2606:4700:4700::1111"]


async def test_a_proxy_of_the_environment_does_not_lead_around_the_guard(
    server: Server, dns: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns("10.0.0.1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, server.url)
    async with make_client(guarded=True, timeout_s=2) as client:
        with pytest.raises(AddressRefused):
            await client.get("http://hooks.example.com/")
    assert server.requests == []


# What is sent and followed


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_redirect_is_an_answer_and_not_followed(
    unguarded: httpx.AsyncClient, server: Server, method: str
) -> None:
    answered = await unguarded.request(method, f"{server.url}/away")
    assert answered.status_code == 302
    assert len(server.requests) == 1


async def test_no_cookie_is_carried_from_one_request_to_the_next(unguarded: httpx.AsyncClient, server: Server) -> None:
    await unguarded.get(f"{server.url}/cookie")
    await unguarded.get(f"{server.url}/plain")
    assert len(server.requests) == 2
    assert "cookie:" not in server.requests[1].lower()


async def test_credentials_in_a_url_become_basic_authentication(unguarded: httpx.AsyncClient, server: Server) -> None:
    answered = await unguarded.get(f"http://joe:swordfish@127.0.0.1:{server.port}/plain")
    assert answered.status_code == 200
    assert server.requests[0].count("Basic am9lOnN3b3JkZmlzaA==\r\n") == 1
    assert "joe" not in server.requests[0]


async def test_requests_say_who_asks_and_carry_the_headers_given(server: Server) -> None:
    async with make_client(guarded=False, headers={"x-extra": "1"}) as client:
        await client.get(f"{server.url}/plain")
    assert "user-agent: aftercall\r\n" in server.requests[0].lower()
    assert "x-extra: 1\r\n" in server.requests[0].lower()


async def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with make_client(guarded=False, timeout_s=0.1) as client:
        with pytest.raises(httpx.TimeoutException):
            await asyncio.wait_for(client.get(f"http://127.0.0.1:{port}/"), 20)
    listening.close()


# Bodies


async def read(client: httpx.AsyncClient, url: str, limit: int) -> bytes:
    async with client.stream("GET", url) as response:
        return await asyncio.wait_for(read_body(response, limit=limit), 5)


@pytest.mark.parametrize(("limit", "length"), [(0, 0), (3, 3), (5, 5), (6, 5)])
async def test_a_body_is_read_up_to_the_limit(
    unguarded: httpx.AsyncClient, server: Server, limit: int, length: int
) -> None:
    assert await read(unguarded, f"{server.url}/plain", limit) == b"hello"[:length]


async def test_a_body_without_end_is_cut_at_the_limit(unguarded: httpx.AsyncClient, server: Server) -> None:
    assert await read(unguarded, f"{server.url}/endless", 10_000) == b"x" * 10_000


async def test_the_limit_counts_what_was_unpacked(unguarded: httpx.AsyncClient, server: Server) -> None:
    assert await read(unguarded, f"{server.url}/gzipped", 10_000) == b"a" * 5000
    assert await read(unguarded, f"{server.url}/gzipped", 100) == b"a" * 100


async def test_a_small_answer_cannot_be_unpacked_into_much_memory(unguarded: httpx.AsyncClient, server: Server) -> None:
    assert len(BOMB) < 16_384
    tracemalloc.start()
    try:
        with contextlib.suppress(httpx.DecodingError):  # to refuse it is fine too
            assert len(await read(unguarded, f"{server.url}/bomb", 1000)) <= 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * 2**20


# Retry-After

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("2.5", 2.5),
        ("-5", 0.0),
        ("Fri, 20 Nov 2026 12:01:30 GMT", 90.0),
        ("Fri, 20 Nov 2026 14:01:30 +0200", 90.0),
        ("Fri, 20 Nov 2026 12:00:05", 5.0),
        ("Friday, 20-Nov-26 12:00:10 GMT", 10.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
    ],
)
def test_a_wait_is_read_from_seconds_or_a_date(value: str, seconds: float) -> None:
    assert retry_after_s(value, now=NOON) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "soon",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "12, 13",
        "Fri, 20 Nov 99999 12:00:00 GMT",
        "Fri, 99 Nov 2026 12:00:00 GMT",
        "Fri, 20 Nov 2026 99:00:00 GMT",
        "Fri, 20 Nov 2026 12:00:00 +9999",
        "Fri, 99999999999999999999 Nov 2026 12:00:00 GMT",
        "Fri, 20 Nov 2026 12:00:00 -99999999999999999999",
        "0" * 5000 + "s",
    ],
)
def test_garbage_is_no_wait(value: str | None) -> None:
    assert retry_after_s(value, now=NOON) is None


def test_a_date_counts_from_now_when_no_moment_is_given() -> None:
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    wait_s = retry_after_s(in_an_hour.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert wait_s == pytest.approx(3600, abs=5)


def test_an_absurd_number_is_left_for_the_caller_to_cap() -> None:
    assert retry_after_s("99999999999999999999") == 1e20


@given(st.text() | st.from_regex(r"\w{3}, \d{1,3} Nov \d{1,6} \d{1,3}:\d\d:\d\d [+-]\d{1,6}", fullmatch=True))
@example("9" * 400)
def test_whatever_the_header_says_it_is_a_finite_wait_or_none(value: str) -> None:
    seconds = retry_after_s(value)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
