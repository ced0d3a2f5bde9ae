"""What the server in use can promise, by what it says of itself. Asks, and never writes."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from aftercall.redis_client import FAILURES, MAX_CONNECTIONS, unavailable

MIN_REDIS = (7, 0)  # the scripts' flags; every Valkey has them
LAG_S = 2  # replicas report every second
NEARLY_FULL = 0.8


class Durability(msgspec.Struct, frozen=True, kw_only=True):
    """What a 2xx means on this server (`promise`), and what is wrong with it.

    `problems` stop readiness; those in `refuse` are among them and stop the start, since only a change of the server
    helps. `warnings` are for whoever operates it.
    """

    promise: str
    problems: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    wait_aof: bool = False  # whether a webhook must wait for the disk before it is answered
    wait_replicas: int = 0  # and for so many replicas


async def inspect(redis: Redis) -> Durability:
    """Ask the server; also one that refuses writes can say why. Raises `LedgerUnavailable`."""
    try:
        info = await redis.info()
    except FAILURES as error:
        raise unavailable(error) from None
    try:
        settings = await redis.config_get("appendfsync", "min-replicas-to-write")  # type: ignore[arg-type]
    except FAILURES:  # managed services forbid CONFIG
        settings = None
    return durability(info, settings)


def durability(info: Mapping[str, Any], settings: Mapping[str, str] | None) -> Durability:
    """What INFO and the settings (None: CONFIG is forbidden) say about a server."""
    fsync = (settings or {}).get("appendfsync")
    refuse = tuple(_unfit(info, may_configure=settings is not None))
    problems = refuse
    if info.get("role") not in (None, "master"):
        problems += ("Redis is a read-only replica: point REDIS_URL at the primary, or at the Sentinels",)
    aof = bool(info.get("aof_enabled"))
    can_wait = aof and (_is_valkey(info) or _version(info) >= (7, 2))
    if fsync == "always" and aof:
        promise = "fsynced: every write is on disk before it is answered (appendfsync always)"
    elif can_wait:
        promise = "fsynced: each webhook waits for WAITAOF before it is answered"
    elif aof:
        promise = "written, fsynced within a second (appendfsync everysec): a power failure may lose that second"
    else:
        promise = "in memory only (append-only file off): a restart of Redis may lose accepted webhooks"
    replicas = _replicas_needed(info, settings or {})
    if replicas:
        promise += f"; on {replicas} replica{'s' * (replicas > 1)} too before it is answered (min-replicas-to-write)"
    elif info.get("connected_slaves"):
        promise += "; written on the primary: a failover may lose the last second"
    return Durability(
        promise=promise,
        problems=problems,
        refuse=refuse,
        warnings=tuple(_warnings(info, fsynced=can_wait or fsync == "always")),
        wait_aof=can_wait and fsync != "always",
        wait_replicas=replicas,
    )


def _replicas_needed(info: Mapping[str, Any], settings: Mapping[str, str]) -> int:
    """How many replicas must have a write: as many as without which the server takes none.

    It counts those that were there lately; only waiting for them tells that they have it.
    """
    if "min_slaves_good_slaves" not in info:
        return 0
    return int(settings.get("min-replicas-to-write", 1))


def _unfit(info: Mapping[str, Any], *, may_configure: bool) -> Iterator[str]:
    """What makes a server unfit for use, each with what mends it."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        remedy = (
            "run `redis-cli CONFIG SET maxmemory-policy noeviction`, and `redis-cli CONFIG REWRITE` so that it stays"
            if may_configure
            else "choose the policy noeviction at your provider (CONFIG is forbidden there)"
        )
        yield (
            f"Redis evicts keys when memory is full (maxmemory-policy {policy}), and so would lose accepted webhooks: "
            f"{remedy}"
        )
    if info.get("cluster_enabled"):
        yield (
            "Redis runs in cluster mode, which is not supported: use a single server (`cluster-enabled no` in its "
            "configuration), with replicas and Sentinels if you like"
        )
    if not _is_valkey(info) and "redis_version" in info and _version(info) < MIN_REDIS:
        yield f"Redis {info['redis_version']} is too old: upgrade it to Redis 7.0 or newer, or to Valkey"


def _warnings(info: Mapping[str, Any], *, fsynced: bool) -> Iterator[str]:
    """What an operator should know. No figures that change from one look to the next: who looks often compares."""
    if not info.get("aof_enabled"):
        yield "the append-only file is off: run `CONFIG SET appendonly yes` and `CONFIG SET appendfsync always`"
    elif not fsynced:
        yield "Redis fsyncs once a second: run `CONFIG SET appendfsync always`, or use Valkey or Redis ≥ 7.2"
    if info.get("aof_last_write_status", "ok") != "ok":
        yield "Redis could not write its append-only file (aof_last_write_status): look at its disk and its log"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield "Redis could not save its snapshot (rdb_last_bgsave_status): look at its disk, its memory and its log"
    if info.get("maxmemory", 0) and info.get("used_memory", 0) > NEARLY_FULL * info["maxmemory"]:
        yield "Redis is over 80 % full: when it is full, webhooks are answered 503; raise maxmemory"
    if info.get("maxclients", 2 * MAX_CONNECTIONS) < 2 * MAX_CONNECTIONS:
        yield (
            f"Redis takes at most {info['maxclients']} connections, and each process of aftercall may open "
            f"{MAX_CONNECTIONS}: raise maxclients, or take a larger plan before you run more processes"
        )
    replicas = [info[f"slave{index}"] for index in range(info.get("connected_slaves", 0)) if f"slave{index}" in info]
    if any(replica.get("state") != "online" or replica.get("lag", 0) > LAG_S for replica in replicas):
        yield "a replica lags behind: a failover to it loses what it does not have yet"
    if replicas and "min_slaves_good_slaves" not in info:
        yield (
            "a failover may lose what no replica has yet: with three servers or more, run `CONFIG SET "
            "min-replicas-to-write 1` on each, and a webhook is answered when a replica has it too"
        )


def _is_valkey(info: Mapping[str, Any]) -> bool:
    return "valkey_version" in info


def _version(info: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2] if part.isdigit())
