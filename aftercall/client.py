"""The HTTP client: one for the providers' APIs, one guarded one for the sinks. httpx's interface, aiohttp underneath.

httpx's own connection pool walks every connection for every request; with 100 requests in flight the aiohttp transport
costs a twentieth of it. Its resolver is also where the guard sees, and pins, the address that is connected to.
"""

import ipaddress
import math
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from httpx_aiohttp import AiohttpTransport

from aftercall.errors import AddressRefused

USER_AGENT = "aftercall"
MAX_RECORD_BYTES = 32 * 1024 * 1024
MAX_CONNECTIONS = 200

# Not public, and not in every Python's list (3.11.7): https://www.iana.org/assignments/iana-ipv6-special-registry and
# …/iana-ipv4-special-registry (2026-11).
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # RFC 6052: IPv4 in IPv6 clothes, which a NAT64 gateway would unwrap to a private address
        "64:ff9b:1::/48",  # RFC 8215, likewise
        "fec0::/10",  # site-local, before fc00::/7
        "3fff::/20",  # documentation
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
    )
)
_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_UNPACKED = ("identity", "gzip", "deflate")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet: not private, loopback, link-local, shared or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
    if any(ip in network for network in _SPECIAL):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class PublicResolver(AbstractResolver):
    """Resolves a host name and refuses it when any of its addresses is not public: one rogue record spoils the name."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise AddressRefused(f"{host} leads to a private address")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class Transport(AiohttpTransport):
    """httpx-aiohttp, with what it lets through made httpx's errors too."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.userinfo:  # httpx has made a header of it, and aiohttp refuses both together
            request.url = request.url.copy_with(userinfo=b"")
        try:
            return await super().handle_async_request(request)
        except aiohttp.ClientError as error:  # a malformed answer; its text would quote the URL
            raise httpx.RemoteProtocolError(type(error).__name__) from None
        except UnicodeError:  # a host name that IDNA cannot write
            raise httpx.UnsupportedProtocol("not a host name") from None


class GuardedTransport(Transport):
    """Refuses literal private addresses, which never reach a resolver."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        try:
            public = is_public(host)
        except ValueError:
            # A name: PublicResolver decides when it is looked up. Digits only (127.1, 2130706433) are no name, but an
            # address to the C library, and aiohttp before 3.14.1 asks no resolver for it.
            public = not host.replace(".", "").isdigit()
        if not public:
            raise AddressRefused(f"{host} is not a public address")
        return await super().handle_async_request(request)


def make_client(
    *, guarded: bool, timeout_s: float = 10.0, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    """A client that follows no redirect. With `guarded` it reaches public addresses only. Close it when done."""

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS,
            keepalive_timeout=30,
            resolver=PublicResolver() if guarded else None,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport_class = GuardedTransport if guarded else Transport
    return httpx.AsyncClient(
        # TLS is the session's. The transport's own context is not used, and to make it would read all certificates.
        transport=transport_class(client=session, verify=_TRUSTS_NOBODY),
        timeout=timeout_s,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # keeps none: tenants share the client
        headers={"user-agent": USER_AGENT, "accept-encoding": "gzip, deflate", **(headers or {})},
    )


async def read_body(response: httpx.Response, *, limit: int, unpack: bool = True) -> bytes:
    """The body of a streamed response, at most `limit` bytes of it; the rest is not read.

    With `unpack=False`, or when the encoding is not one that was asked for, a compressed body stays as it is: 12 KB of
    zstd can become 400 MB in one step.
    """
    chunks: list[bytes] = []
    size = 0
    asked_for = response.headers.get("content-encoding", "identity").lower() in _UNPACKED
    async for chunk in response.aiter_bytes() if unpack and asked_for else response.aiter_raw():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            break
    return b"".join(chunks)[:limit]


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds to wait from a `Retry-After` header: a number of seconds or an HTTP date; None for garbage."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
