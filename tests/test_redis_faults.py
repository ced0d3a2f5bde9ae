"""What happens to Redis, and what becomes of webhooks meanwhile: real processes, real servers.

One service and one worker live through all the faults, one after another; a second pair through two failovers.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import redis

from aftercall.redis_client import connect
from aftercall.settings import load
from aftercall.startup import require_fit_redis
from tests.servers import FOLLOWED_AT_ONCE, Proxy, RedisServer, SentinelServer, a_certificate, free_port, need
from tests.stack import Stack, a_retell_call, fixture

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="module")]

LEASE_S = 2.0
LASTING_S = 0.5  # longer than the vendor takes, so that a fault spoils what was accepted just before
PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always", "--enable-protected-configs", "yes", *FOLLOWED_AT_ONCE)


class Site:
    """A service and a worker, and what they were asked and answered."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.accepted: list[str] = []
        self._count = 0

    async def start(self) -> None:
        await self.stack.http.close()  # each request on a connection of its own: none is closed as it is being used
        self.stack.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        self.stack.start_worker(lease_s=LEASE_S)
        await self.stack.start_service()

    async def post(self) -> int:
        """A webhook of one more call; its answer, which is 204 or 503 within 3 s, whatever happens to Redis."""
        self._count += 1
        call_id = f"call_{self._count}"
        record = fixture("retell", "rest.get_call")
        self.stack.vendor.records[f"/v2/get-call/{call_id}"] = {**record, "call_id": call_id}
        started = time.monotonic()
        status, _, headers = await self.stack.post("clinic", a_retell_call(call_id))
        assert time.monotonic() - started < 3
        assert status == 204 or (status == 503 and int(headers["retry-after"]) > 0), status
        if status == 204:
            self.accepted.append(call_id)
        return status

    async def recovers(self, within_s: float = 5.0) -> None:
        """The service stores webhooks again, and all that was accepted, now and before, arrives, and once."""
        async with asyncio.timeout(within_s):
            while await self.post() != 204:
                await asyncio.sleep(0.05)
        deadline = time.monotonic() + 60
        events = self.stack.receiver.events
        while missing := set(self.accepted) - {event["subject"] for event in events}:
            assert time.monotonic() < deadline, f"{sorted(missing)} did not arrive"
            await asyncio.sleep(0.02)
        assert set(Counter(event["id"] for event in events).values()) == {1}
        assert [process.poll() for process in self.stack.processes] == [None, None]

    @asynccontextmanager
    async def load(self) -> AsyncIterator[list[int]]:
        """Ten providers post all the time; their answers."""
        answers: list[int] = []
        stopping = False

        async def keep_posting() -> None:
            while not stopping:
                answers.append(await self.post())
                await asyncio.sleep(0.01)

        posting = [asyncio.create_task(keep_posting()) for _ in range(10)]
        await asyncio.sleep(0.1)
        try:
            yield answers
        finally:
            stopping = True
            await asyncio.gather(*posting)


class Single(Site):
    """With one Redis, behind a proxy."""

    server: RedisServer
    proxy: Proxy
    admin: "redis.Redis[bytes]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Single]:
    need("redis-server", "redis-server")
    directory = tmp_path_factory.mktemp("faults")
    with RedisServer(directory / "redis", *PERSISTENT) as server, redis.Redis(port=server.port) as admin:
        proxy = Proxy(server.port)
        await proxy.start()
        async with Stack(directory, f"redis://127.0.0.1:{proxy.port}/0") as stack:
            made = Single(stack)
            made.server, made.proxy, made.admin = server, proxy, admin
            await made.start()
            await made.recovers()
            yield made
        await proxy.stop()


# While it lasts

Fault = Callable[[Single], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def down(site: Single) -> AsyncIterator[None]:
    site.server.kill()
    try:
        yield
        await asyncio.sleep(9)
        assert await site.post() == 503
        await asyncio.sleep(0.5)
    finally:
        await asyncio.to_thread(site.server.start)


def look_before_a_start(server: RedisServer) -> float:
    """How long a process that starts now looks at its Redis before it goes on."""
    settings = load({"REDIS_URL": server.url, "RETELL_API_KEY": "key_1"}, server.directory)
    started = time.monotonic()
    require_fit_redis(settings)
    return time.monotonic() - started


@asynccontextmanager
async def frozen(site: Single) -> AsyncIterator[None]:
    site.server.freeze()
    thawing = asyncio.get_running_loop().call_later(4, site.server.thaw)
    starting = asyncio.create_task(asyncio.to_thread(look_before_a_start, site.server))
    yield
    assert await starting < 3
    await asyncio.sleep(max(0.0, thawing.when() - asyncio.get_running_loop().time()))


@asynccontextmanager
async def half_open(site: Single) -> AsyncIterator[None]:
    site.proxy.fall_silent()
    try:
        yield
    finally:
        site.proxy.speak_again()


@asynccontextmanager
async def read_only(site: Single) -> AsyncIterator[None]:
    site.admin.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        yield
    finally:
        site.admin.execute_command("REPLICAOF", "NO", "ONE")


def configured(setting: str, bad: str, good: str) -> Fault:
    @asynccontextmanager
    async def fault(site: Single) -> AsyncIterator[None]:
        site.admin.config_set(setting, bad)
        try:
            yield
        finally:
            site.admin.config_set(setting, good)

    return fault


@asynccontextmanager
async def unable_to_save(site: Single) -> AsyncIterator[None]:
    site.admin.config_set("save", "3600 1")
    site.admin.config_set("dir", "/proc")
    site.admin.bgsave()
    while site.admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
        await asyncio.sleep(0.02)
    try:
        yield
    finally:
        site.admin.config_set("dir", str(site.server.directory))
        site.admin.config_set("save", "")


@asynccontextmanager
async def full_of_connections(site: Single) -> AsyncIterator[None]:
    site.admin.config_set("maxclients", 1)
    site.admin.client_kill_filter(_type="normal", skipme=True)
    try:
        yield
    finally:
        site.admin.config_set("maxclients", 10000)


FAULTS: dict[str, Fault] = {
    "down for 10 s": down,
    "frozen for 4 s": frozen,
    "half-open": half_open,
    "read-only": read_only,
    "out of memory": configured("maxmemory", "1", "0"),
    "without the replicas it must have": configured("min-replicas-to-write", "1", "0"),
    "unable to save": unable_to_save,
    "full of connections": full_of_connections,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_while_redis_cannot_store_webhooks_are_answered_503_and_then_all_goes_on(
    site: Single, fault: Fault
) -> None:
    site.stack.vendor.delay_s = LASTING_S / 2
    assert await site.post() == 204
    async with fault(site):
        started = time.monotonic()
        assert set(await asyncio.gather(*(site.post() for _ in range(5)))) == {503}
        await asyncio.sleep(max(0.0, LASTING_S - (time.monotonic() - started)))
    site.stack.vendor.delay_s = 0.0

    await site.recovers()


async def test_readiness_names_a_replica(site: Single) -> None:
    async with read_only(site), site.stack.http.get(f"{site.stack.url}/readyz") as response:
        assert response.status == 503
        assert "read-only replica" in (await response.json(content_type=None))["detail"]
    await site.recovers()


# In a moment


async def restart(site: Single) -> None:
    site.server.kill()
    await asyncio.to_thread(site.server.start)


async def flush_scripts(site: Single) -> None:
    site.admin.script_flush()


async def kill_connections(site: Single) -> None:
    site.admin.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.parametrize(
    ("moment", "answers"), [(restart, {204, 503}), (flush_scripts, {204}), (kill_connections, {204, 503})]
)
async def test_what_lasts_a_moment_costs_under_load_a_503_at_most(
    site: Single, moment: Callable[[Single], Any], answers: set[int]
) -> None:
    async with site.load() as given:
        for _ in range(3):
            await moment(site)
            await asyncio.sleep(0.1)

    assert 204 in given
    assert set(given) <= answers
    await site.recovers()


async def test_a_flushed_redis_takes_new_webhooks(site: Single) -> None:
    site.admin.flushall()

    await site.recovers()


async def test_connections_to_a_demoted_primary_are_given_up_for_the_new_one(site: Single, tmp_path: Path) -> None:
    """As behind a DNS name or a proxy that leads elsewhere after a failover: the old connections are still open."""
    heir = RedisServer(tmp_path, "--replicaof", f"127.0.0.1 {site.server.port}")
    with heir:
        assert site.admin.wait(1, 2000) == 1
        with redis.Redis(port=heir.port) as promoted:
            promoted.execute_command("REPLICAOF", "NO", "ONE")
        site.admin.execute_command("REPLICAOF", "127.0.0.1", str(heir.port))
        site.proxy.target = heir.port

        await site.recovers()
        site.admin.execute_command("REPLICAOF", "NO", "ONE")
        site.proxy.target = site.server.port


async def test_one_connection_that_is_silent_is_enough_to_give_up_all_that_are_idle(site: Single) -> None:
    client = connect(f"redis://127.0.0.1:{site.proxy.port}", timeout_s=0.2)
    await asyncio.gather(*(client.ping() for _ in range(8)))
    site.proxy.fall_silent()
    with pytest.raises(redis.TimeoutError):
        await client.ping()
    site.proxy.speak_again()

    assert await asyncio.gather(*(client.ping() for _ in range(8))) == [True] * 8
    await client.aclose(close_connection_pool=True)


# Behind Sentinels


class Watched(Site):
    """With three servers, one of them the primary, and three Sentinels."""

    servers: list[RedisServer]
    sentinels: list[SentinelServer]

    async def ready(self) -> RedisServer:
        """The primary, when both others follow it, and the Sentinels know that and each other."""
        async with asyncio.timeout(60):
            while (primary := self._followed()) is None:
                await asyncio.sleep(0.02)
        async with self.stack.http.get(f"{self.stack.url}/readyz") as response:
            assert "on 1 replica too" in (await response.json(content_type=None))["durability"]
        return primary

    def _followed(self) -> RedisServer | None:
        known = []
        for sentinel in self.sentinels:
            with redis.Redis(port=sentinel.port) as asked:
                known.append(asked.sentinel_masters()["calls"])
        (primary,) = [server for server in self.servers if server.port == known[0]["port"]]
        if {(one["port"], one["num-slaves"], one["num-other-sentinels"]) for one in known} != {(primary.port, 2, 2)}:
            return None
        with redis.Redis(port=primary.port) as asked:
            info = asked.info("replication")
        return primary if (info["role"], info.get("min_slaves_good_slaves")) == ("master", 2) else None

    def tell_sentinels(self, *command: object) -> None:
        for sentinel in self.sentinels:
            with redis.Redis(port=sentinel.port) as asked:
                asked.execute_command("SENTINEL", *command)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    need("redis-sentinel", "redis-sentinel")
    directory = tmp_path_factory.mktemp("sentinel")
    options = (*FOLLOWED_AT_ONCE, "--min-replicas-to-write", "1")
    with ExitStack() as running:
        servers = [running.enter_context(RedisServer(directory / "server_0", *options))]
        options += ("--replicaof", f"127.0.0.1 {servers[0].port}")
        servers += [running.enter_context(RedisServer(directory / f"server_{n}", *options)) for n in (1, 2)]
        with redis.Redis(port=servers[0].port) as admin:
            while admin.info("replication")["connected_slaves"] < 2:
                await asyncio.sleep(0.02)
        sentinels = [SentinelServer(directory / f"sentinel_{n}", servers[0].port, quorum=2) for n in range(3)]
        for sentinel in sentinels:
            running.enter_context(sentinel).hasten()
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        async with Stack(directory, f"redis+sentinel://{hosts}/calls/3") as stack:
            made = Watched(stack)
            made.servers, made.sentinels = servers, sentinels
            await made.start()
            await made.ready()
            await made.recovers()
            yield made


async def test_a_failover_on_demand_loses_nothing_where_writes_are_paused_for_it(watched: Watched) -> None:
    """The old primary goes on for ten seconds as if nothing had happened, and then forgets what it took."""
    primary = await watched.ready()
    reader = connect(watched.stack.redis_url)  # no pause and no refusal tells it to look for another primary
    assert (await reader.info("server"))["tcp_port"] == primary.port
    watched.stack.vendor.delay_s = 1.0
    watched.tell_sentinels("DEBUG", "PUBLISH-PERIOD", "2000")  # its default, by which the ten seconds are measured
    with redis.Redis(port=primary.port) as old, redis.Redis(port=watched.sentinels[0].port) as sentinel:
        async with watched.load() as answers:
            old.client_pause(2500, all=False)
            sentinel.execute_command("SENTINEL", "FAILOVER", "calls")
            await asyncio.sleep(3)
            assert 503 in answers
            assert set(answers[-20:]) == {204}
        assert old.info("replication")["role"] == "master"
        assert (await reader.info("server"))["tcp_port"] != primary.port
    await reader.aclose(close_connection_pool=True)
    watched.stack.vendor.delay_s = 0.0

    await watched.recovers()
    watched.tell_sentinels("DEBUG", "PUBLISH-PERIOD", "200")


async def test_a_killed_primary_is_replaced_with_all_it_had_although_a_sentinel_is_silent(watched: Watched) -> None:
    primary = await watched.ready()
    watched.stack.vendor.delay_s = LASTING_S
    assert set(await asyncio.gather(*(watched.post() for _ in range(5)))) == {204}
    primary.kill()
    watched.sentinels[0].freeze()
    assert await watched.post() == 503
    watched.stack.vendor.delay_s = 0.0

    await watched.recovers(within_s=10)


# At the start


async def test_processes_that_start_before_redis_wait_for_it(tmp_path: Path) -> None:
    """It is one with TLS, a certificate of its own, and a password that must be percent-encoded."""
    need("redis-server", "redis-server")
    key, certificate = a_certificate(tmp_path)
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "redis", *tls, "--requirepass", "p@ss:w/rd?#%")
    async with Stack(tmp_path, f"rediss://:p%40ss%3Aw%2Frd%3F%23%25@127.0.0.1:{port}/0") as stack:
        waiting = Site(stack)
        await waiting.start()
        assert await waiting.post() == 503
        with server:
            await waiting.recovers()


async def test_a_redis_that_would_lose_webhooks_stops_the_start_with_every_remedy(tmp_path: Path) -> None:
    need("redis-server", "redis-server")
    options = ("--maxmemory-policy", "allkeys-lru", "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with RedisServer(tmp_path / "redis", *options) as server:
        async with Stack(tmp_path, server.url) as stack:
            processes = {name: stack.spawn("-m", name, log=f"{name}.log") for name in ("service", "workers")}
            for name, process in processes.items():
                assert await asyncio.to_thread(process.wait, 60) == 3
                said = stack.log(f"{name}.log").splitlines()
                assert said[0] == "aftercall cannot start:"
                for problem, remedy in (
                    ("REDIS_URL: Redis evicts keys", "CONFIG SET maxmemory-policy noeviction"),
                    ("REDIS_URL: Redis runs in cluster mode", "cluster-enabled no"),
                ):
                    assert [line for line in said if line.startswith(problem) and remedy in line]
                assert len(said) == 3
