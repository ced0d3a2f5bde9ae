"""Redis behind Sentinels: the URL that names them, and who of the servers is the primary.

How a client asks: https://redis.io/docs/latest/develop/reference/sentinel-clients/ (2026-11).
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

DEFAULT_PORT = 26379
ASK_S = 0.5  # what one Sentinel has for its answer, connecting included; then the next is asked
# A primary that is replaced while it lives goes on taking writes until its Sentinels demote it, some ten seconds later,
# and loses them then. So a Sentinel is asked again before a connection is used, unless one has said it just before.
FRESH_S = 0.25
JUST_NOW_S = 0.1  # connections that are made at the same time ask together
PATIENCE_S = 5.0  # and not so soon again while they are silent: the connection at hand may well be right

Address = tuple[str, int]


class SentinelUrl(msgspec.Struct, frozen=True):
    """`redis+sentinel://[user:password@]host[:port],…/<service name>[/db][?options]`, or `rediss+sentinel://` for TLS.

    User, password, db and options are the servers'; `sentinel_username` and `sentinel_password` are the Sentinels' own.
    """

    sentinels: tuple[Address, ...]
    service: str
    login: dict[str, str]  # at the Sentinels
    server_url: str  # redis:// or rediss:// with all that holds for the servers; its host stands for the primary


def is_sentinel_url(url: str) -> bool:
    return url.partition("://")[0].lower() in ("redis+sentinel", "rediss+sentinel")


def parse_sentinel_url(url: str) -> SentinelUrl:
    """What the URL says; raises ValueError with the form expected, quoting nothing of it."""
    scheme, _, rest = url.partition("://")
    netloc, _, tail = rest.partition("/")
    path, _, query = tail.partition("?")
    credentials, at, hosts = netloc.rpartition("@")
    service, _, db = path.rstrip("/").partition("/")
    options = [option for option in query.split("&") if option]
    own = dict(option.partition("=")[::2] for option in options if option.startswith("sentinel_"))
    kept = "&".join(option for option in options if not option.startswith("sentinel_"))
    server_url = f"{scheme.lower().partition('+')[0]}://{credentials}{at}primary/{db}?{kept}"
    try:
        urlsplit(server_url)
        parts = [urlsplit(f"//{host}") for host in hosts.split(",")]  # it takes one host
        sentinels = tuple((part.hostname or "", part.port or DEFAULT_PORT) for part in parts)
    except ValueError:
        sentinels = ()
    known = own.keys() <= {"sentinel_username", "sentinel_password"}
    if not (sentinels and all(host for host, _ in sentinels) and service and (db.isdecimal() or not db) and known):
        raise ValueError(
            "expected redis+sentinel://host:26379,host:26379/<service name> (or rediss+sentinel:// for TLS), with "
            "user:password@, /<db> and ?sentinel_password=… where needed, all percent-encoded"
        )
    login = {name.removeprefix("sentinel_"): unquote(value) for name, value in own.items()}
    return SentinelUrl(sentinels, unquote(service), login, server_url)


class NoPrimaryError(RedisConnectionError):
    """No Sentinel answers, or none knows a service of that name; the message says which service."""


class Sentinels:
    """Knows the primary, by asking. One per pool; safe for concurrent callers of one event loop."""

    def __init__(
        self, url: SentinelUrl, connection_class: type[AbstractConnection], options: Mapping[str, Any]
    ) -> None:
        """`options` are those of the servers' connections; only the ones for TLS hold here too."""
        own: dict[str, Any] = {name: value for name, value in options.items() if name.startswith("ssl_")}
        own |= {**url.login, "lib_name": None, "lib_version": None}
        self.service = url.service
        pools = (ConnectionPool(connection_class, host=host, port=port, **own) for host, port in url.sentinels)
        self._clients: deque[Any] = deque(Redis(connection_pool=pool) for pool in pools)
        self._asking = asyncio.Lock()
        self._primary: Address | None = None
        self._answered_at = self._silent_at = -PATIENCE_S  # when one said it, and when none did
        self._look_at = 0.0

    async def primary(self) -> Address:
        """Where the primary is now; raises `NoPrimaryError`."""
        async with self._asking:
            just_now = asyncio.get_running_loop().time() - JUST_NOW_S
            if max(self._answered_at, self._silent_at) < just_now and not await self._ask(len(self._clients)):
                self._silent_at = asyncio.get_running_loop().time()
            if self._silent_at > self._answered_at or self._primary is None:
                raise NoPrimaryError(f"no Sentinel names the primary of the service {self.service}")
            return self._primary

    async def still_primary(self, address: Address) -> bool:
        """Whether a server is the primary as far as is known; asks one Sentinel, but not too often."""
        if asyncio.get_running_loop().time() >= self._look_at:
            async with self._asking:
                if asyncio.get_running_loop().time() >= self._look_at and not await self._ask(1):
                    self._look_at = asyncio.get_running_loop().time() + PATIENCE_S
        return self._primary is None or self._primary == address

    async def _ask(self, count: int) -> bool:
        """Ask one after the other, at most so many; who does not know goes to the end of the row."""
        for _ in range(count):
            try:
                async with asyncio.timeout(ASK_S):
                    found = await self._clients[0].execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.service)
            except (RedisError, OSError):  # a TimeoutError too
                found = None
            if found is not None:
                self._primary = (found[0].decode(), int(found[1]))
                self._answered_at = asyncio.get_running_loop().time()
                self._look_at = self._answered_at + FRESH_S
                return True
            self._clients.rotate(-1)
        return False

    async def close(self) -> None:
        for client in self._clients:
            await client.connection_pool.disconnect()


class FollowsPrimary:
    """Mixed into a TCP connection: leads to the primary, also when that has become another server."""

    sentinels: Sentinels
    host: str
    port: int
    is_connected: bool

    async def connect(self) -> None:
        if self.is_connected:
            if await self.sentinels.still_primary((self.host, self.port)):
                return
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
        self.host, self.port = await self.sentinels.primary()
        await super().connect()  # type: ignore[misc]
