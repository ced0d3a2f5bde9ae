"""What is said of a server, by what it says of itself."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aftercall.durability import Durability, durability
from aftercall.errors import ConfigurationError, LedgerUnavailable
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from aftercall.settings import load
from aftercall.startup import require_fit_redis
from tests.servers import FOLLOWED_AT_ONCE, RedisServer, free_port, need
from tests.stack import Stack
from tests.test_cli import aftercall
from tests.test_ledger import a_webhook, accept

# What a Redis 7.4 with an append-only file says, as redis-py reads it.
INFO: dict[str, Any] = {
    "redis_version": "7.4.1",
    "role": "master",
    "connected_slaves": 0,
    "cluster_enabled": 0,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "used_memory": 5_000_000,
    "maxclients": 10000,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
}
REPLICA = {"ip": "10.0.0.2", "port": 6379, "state": "online", "offset": 100, "lag": 0}
FOLLOWED = {"connected_slaves": 1, "slave0": REPLICA, "min_slaves_good_slaves": 1}


def of(fsync: str | None = "always", **said: Any) -> Durability:
    """With this `appendfsync` (None: CONFIG is forbidden), and this in place of what INFO says."""
    return durability({**INFO, **said}, None if fsync is None else {"appendfsync": fsync})


@pytest.mark.parametrize(
    ("found", "promise", "wait_aof"),
    [
        (of(), "fsynced: every write", False),
        (of("everysec"), "fsynced: each webhook waits", True),
        (of("no"), "fsynced: each webhook waits", True),
        (of(None), "fsynced: each webhook waits", True),
        (of("everysec", redis_version="7.0.15"), "written, fsynced within a second", False),
        (of(None, redis_version="7.0.15"), "written, fsynced within a second", False),
        (of("everysec", redis_version="7.2.4", valkey_version="8.1.0"), "fsynced: each webhook waits", True),
        (of("everysec", redis_version="10.0.0"), "fsynced: each webhook waits", True),
        (of(aof_enabled=0), "in memory only", False),
        (of("everysec", aof_enabled=0), "in memory only", False),
    ],
)
def test_the_promise_is_what_the_server_can_keep(found: Durability, promise: str, wait_aof: bool) -> None:
    assert found.promise.startswith(promise)
    assert found.wait_aof is wait_aof
    assert found.problems == found.refuse == ()


def test_with_replicas_the_promise_is_the_primary_s_alone_unless_it_demands_them() -> None:
    alone, followed = of(), of(connected_slaves=1, slave0=REPLICA)
    assert "failover" not in alone.promise
    assert "a failover may lose the last second" in followed.promise
    assert alone.wait_replicas == followed.wait_replicas == 0
    demanding = durability({**INFO, **FOLLOWED}, {"appendfsync": "always", "min-replicas-to-write": "2"})
    assert demanding.wait_replicas == 2
    assert "on 2 replicas too" in demanding.promise
    assert of(None, **FOLLOWED).wait_replicas == 1, "CONFIG is forbidden: at least one is demanded"


@pytest.mark.parametrize(
    ("found", "what", "remedy"),
    [
        (of(maxmemory_policy="allkeys-lru"), "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        (of(maxmemory_policy="allkeys-lru"), "allkeys-lru", "CONFIG REWRITE"),
        (of(maxmemory_policy="volatile-ttl", maxmemory=100_000_000), "volatile-ttl", "noeviction"),
        (of(None, maxmemory_policy="allkeys-lru"), "allkeys-lru", "at your provider"),
        (of(cluster_enabled=1), "cluster mode", "`cluster-enabled no`"),
        (of(redis_version="6.2.14"), "6.2.14 is too old", "Redis 7.0"),
        (of(redis_version="6.2"), "6.2 is too old", "Valkey"),
    ],
)
def test_a_server_that_would_lose_webhooks_refuses_the_start_and_says_what_mends_it(
    found: Durability, what: str, remedy: str
) -> None:
    (problem,) = found.refuse
    assert found.problems == found.refuse
    assert what in problem
    assert remedy in problem


def test_a_command_that_the_provider_forbids_is_not_recommended() -> None:
    assert "CONFIG SET" not in of(None, maxmemory_policy="allkeys-lru").refuse[0]


def test_everything_wrong_is_named_at_once() -> None:
    assert len(of(maxmemory_policy="allkeys-lru", cluster_enabled=1, redis_version="5.0.9").refuse) == 3


@pytest.mark.parametrize("said", [{"redis_version": "7.0.0"}, {"redis_version": "7.2.4", "valkey_version": "7.2.5"}])
def test_the_oldest_servers_that_will_do(said: dict[str, str]) -> None:
    assert of(**said).problems == ()


def test_a_valkey_that_does_not_claim_to_be_a_redis_is_taken_for_what_it_is() -> None:
    found = durability({"valkey_version": "11.0.0", "aof_enabled": 1}, {"appendfsync": "everysec"})
    assert found.problems == ()
    assert found.wait_aof


def test_a_server_that_tells_nothing_is_not_refused() -> None:
    assert durability({}, None).problems == ()


def test_a_replica_is_not_ready_and_does_not_stop_the_start() -> None:
    found = of(role="slave")
    assert found.refuse == ()
    assert "read-only replica" in found.problems[0]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (of(aof_enabled=0), "CONFIG SET appendonly yes"),
        (of("everysec", redis_version="7.0.15"), "CONFIG SET appendfsync always"),
        (of(aof_last_write_status="err"), "append-only file (aof_last_write_status)"),
        (of(rdb_last_bgsave_status="err"), "snapshot (rdb_last_bgsave_status)"),
        (of(maxmemory=6_000_000), "over 80 % full"),
        (of(maxclients=20), "at most 20 connections"),
        (of(**{**FOLLOWED, "slave0": {**REPLICA, "lag": 9}}), "lags behind"),
        (of(**{**FOLLOWED, "slave0": {**REPLICA, "state": "wait_bgsave"}}), "lags behind"),
        (of(connected_slaves=1, slave0=REPLICA), "min-replicas-to-write 1"),
    ],
)
def test_what_an_operator_should_know_is_a_warning_and_no_problem(found: Durability, words: str) -> None:
    (warning,) = found.warnings
    assert words in warning
    assert found.problems == ()


@pytest.mark.parametrize(
    "found",
    [
        of(),
        of("everysec"),
        of(**FOLLOWED),
        of(maxmemory=7_000_000),
        of(maxclients=24),
        of(**{**FOLLOWED, "slave0": {**REPLICA, "lag": 1}}),
    ],
)
def test_where_all_is_well_there_is_no_warning(found: Durability) -> None:
    assert found.warnings == ()


async def test_where_a_server_demands_replicas_a_webhook_waits_until_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("redis-server", "redis-server")
    monkeypatch.setattr("aftercall.redis_client.WAIT_REPLICAS_MS", 1000)
    demanding = RedisServer(tmp_path / "primary", *FOLLOWED_AT_ONCE, "--min-replicas-to-write", "1")
    replica = RedisServer(tmp_path / "replica", "--replicaof", f"127.0.0.1 {demanding.port}")
    with demanding, replica:
        ledger = Ledger(connect(demanding.url), retention_s=60)
        while (await ledger.redis.info("replication"))["min_slaves_good_slaves"] == 0:
            await asyncio.sleep(0.02)
        await ledger.probe()
        assert (await accept(ledger, a_webhook("call_1"))).sequence == 1
        replica.freeze()  # the server still takes it for a good one, for ten seconds

        with pytest.raises(LedgerUnavailable, match="not on its replicas"):
            await accept(ledger, a_webhook("call_2"))
        replica.thaw()
        assert (await accept(ledger, a_webhook("call_3"))).sequence == 1
        await ledger.close()


async def test_check_names_all_that_is_wrong_with_a_real_server(tmp_path: Path, redis_server: RedisServer) -> None:
    redis_server.kill()
    redis_server.options = (
        *("--maxmemory", "1500000", "--maxmemory-policy", "volatile-lru", "--maxclients", "15"),
        *("--replicaof", f"127.0.0.1 {free_port()}"),
    )
    redis_server.start()
    async with Stack(tmp_path, redis_server.url) as stack:
        checked = await asyncio.to_thread(aftercall, "check", stack=stack)

    assert checked.returncode == 1
    lines = checked.stdout.splitlines()
    for kind, words in (
        ("redis", "in memory only"),
        ("warning", "appendonly yes"),
        ("warning", "at most 15 connections"),
        ("problem", "volatile-lru"),
        ("problem", "read-only replica"),
    ):
        assert any(line.startswith(kind) and words in line for line in lines), (kind, words)


def test_a_replica_or_nobody_at_all_stops_no_start_and_a_bad_policy_does(redis_server: RedisServer) -> None:
    settings = load({"REDIS_URL": redis_server.url, "RETELL_API_KEY": "key_1"}, redis_server.directory)
    redis_server.kill()
    require_fit_redis(settings)
    redis_server.options = ("--replicaof", f"127.0.0.1 {free_port()}")
    redis_server.start()
    require_fit_redis(settings)
    redis_server.kill()
    redis_server.options = ("--maxmemory-policy", "volatile-lru")
    redis_server.start()

    with pytest.raises(ConfigurationError, match=r"REDIS_URL: .*volatile-lru"):
        require_fit_redis(settings)
