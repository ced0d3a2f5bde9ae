"""What is kept in Redis, and every key's name. The only module that knows them.

    aftercall:event:<id>            hash: the webhook as it arrived, the event, the state of each delivery
    aftercall:call:<account>:<id>   hash: the call's last sequence
    aftercall:events                sorted set: event ids by when they were accepted
    aftercall:work:process          sorted set: event ids to process, by when they are due
    aftercall:work:deliver:<sink>   sorted set: event ids to deliver to that sink, by when they are due
    aftercall:rate:<lane>           hash: the token bucket of a sink that is limited
    aftercall:dead                  sorted set: <event id>|<sink>, by when it died
    aftercall:counters              hash: <what>|<account or sink> → how often
    aftercall:wake                  list: one entry while there may be new work

The `work` sets are the open work and its schedule at once. A worker claims due work under a lease (the score moves to
the lease's end), so a killed worker's work comes back by itself, and there is no second list that could disagree. All
times in them are the server's, so the clocks of the processes do not matter. Each change is one Lua call (`lua/`).

Bodies are compressed with zstd. Every method raises `LedgerUnavailable` when Redis cannot do it now.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import zstandard
from arq.connections import ArqRedis
from redis.exceptions import ResponseError

from aftercall.errors import LedgerUnavailable
from aftercall.event import Via, event_id
from aftercall.providers.base import Webhook
from aftercall.redis_client import FAILURES, Script, SharedPipeline

_PREFIX = "aftercall:"
_EVENTS = _PREFIX + "events"
_DEAD = _PREFIX + "dead"
_COUNTERS = _PREFIX + "counters"
_WAKE = _PREFIX + "wake"
_PROBE = _PREFIX + "probe"

PROCESS_LANE = "process"
PROCESS_STEP = (
    "@process"  # stands in for a sink's name when an event died before it had deliveries; no sink can be named so
)

_WAIT_AOF_MS = 1500
_MAX_CONTENT = 64 * 1024 * 1024


def deliver_lane(sink: str) -> str:
    return f"deliver:{sink}"


def _event_key(event: str) -> str:
    return f"{_PREFIX}event:{event}"


def _work_key(lane: str) -> str:
    return f"{_PREFIX}work:{lane}"


def _script(name: str) -> Script:
    return Script((Path(__file__).parent / "lua" / f"{name}.lua").read_text())


_ACCEPT, _CLAIM, _DEFER, _COMMIT, _FINISH = map(_script, ("accept", "claim", "defer", "commit", "finish"))
_REPLAY, _DROP = map(_script, ("replay", "drop"))

# One each is enough: they are used from one thread, and not across an await.
_compressor = zstandard.ZstdCompressor(level=1)
_decompressor = zstandard.ZstdDecompressor()


Outcome = Literal["delivered", "retry", "dead"]


class Accepted(msgspec.Struct, frozen=True):
    event_id: str
    sequence: int  # 0: a duplicate, which was counted and is otherwise without effect


class Claim(msgspec.Struct, frozen=True):
    """Work that is ours until the lease ends. `token` finishes it."""

    lane: str
    event_id: str
    token: int
    now_ms: int  # the server's clock at the claim


class StoredWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as it was accepted. `accepted_ms` is the server's clock, `received_at` the accepting process's."""

    event_id: str
    provider: str
    account: str
    call_id: str
    dedupe_key: str
    received_at: str
    via: Via
    sequence: int
    accepted_ms: int
    fetches: int
    body: bytes


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    at: str  # RFC 3339
    duration_ms: int
    outcome: Outcome
    error: str | None = None


class DeliveryState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one event at one sink so far, oldest attempt first."""

    state: Literal["open", "delivered", "dead"] = "open"
    attempts: list[Attempt] = []
    replayed_after: int = 0  # so many attempts do not count against the schedule any more: a replay began it anew


class Durability(msgspec.Struct, frozen=True, kw_only=True):
    """What the server in use can promise. `problems` stop readiness; `promise` is what a 2xx means here."""

    promise: str
    problems: tuple[str, ...] = ()
    wait_aof: bool = False


class Ledger:
    """All of aftercall's state. One per process; safe for concurrent callers of one event loop."""

    def __init__(self, redis: ArqRedis, *, retention_s: float) -> None:
        self.redis = redis
        self._retention_s = int(retention_s)
        self._pipeline = SharedPipeline(redis)

    async def close(self) -> None:
        await self.redis.aclose(close_connection_pool=True)

    # service: accept

    async def accept(
        self, webhook: Webhook, body: bytes, *, provider: str, account: str, received_at: str, via: Via = "webhook"
    ) -> Accepted:
        """Store a webhook, once. When this returns, the event will be processed, whoever is killed."""
        event = event_id(provider, account, webhook.dedupe_key)
        fields = {
            "provider": provider,
            "account": account,
            "type": webhook.type,
            "call_id": webhook.call_id,
            "dedupe_key": webhook.dedupe_key,
            "received_at": received_at,
            "via": via,
            "body": _compressor.compress(body),
        }
        keys = (
            _event_key(event),
            f"{_PREFIX}call:{account}:{webhook.call_id}",
            _EVENTS,
            _work_key(PROCESS_LANE),
            _COUNTERS,
            _WAKE,
        )
        flat = [part for pair in fields.items() for part in pair]
        sequence = await self._pipeline.script(_ACCEPT, keys, (event, self._retention_s, account, *flat))
        return Accepted(event, sequence)

    # workers: claim, load, defer, commit, finish

    async def claim(
        self, wanted: Mapping[str, int], *, lease_s: float, rates: Mapping[str, float] | None = None
    ) -> list[Claim]:
        """Take due work from the lanes, at most so many from each, for so long.

        `rates` limits lanes to so many a second, over all workers together.
        """
        lanes = [lane for lane, count in wanted.items() if count > 0]
        if not lanes:
            return []
        keys = [key for lane in lanes for key in (_work_key(lane), f"{_PREFIX}rate:{lane}")]
        limits = [limit for lane in lanes for limit in (wanted[lane], (rates or {}).get(lane, 0.0))]
        answer = await self._pipeline.script(_CLAIM, keys, (int(lease_s * 1000), *limits))
        token, now_ms, *claimed = answer
        return [
            Claim(lane, id_.decode(), token, now_ms) for lane, ids in zip(lanes, claimed, strict=True) for id_ in ids
        ]

    async def load_webhook(self, event: str) -> StoredWebhook | None:
        """The webhook behind an event; None if it is past its retention."""
        names = (
            "provider",
            "account",
            "call_id",
            "dedupe_key",
            "received_at",
            "via",
            "sequence",
            "accepted",
            "fetches",
        )
        *values, body = await self._pipeline.command("HMGET", _event_key(event), *names, "body")
        if body is None:
            return None
        provider, account, call_id, dedupe_key, received_at, via, sequence, accepted, fetches = (
            (value or b"0").decode() for value in values
        )
        return StoredWebhook(
            event_id=event,
            provider=provider,
            account=account,
            call_id=call_id,
            dedupe_key=dedupe_key,
            received_at=received_at,
            via=msgspec.convert(via, Via),
            sequence=int(sequence),
            accepted_ms=int(accepted),
            fetches=int(fetches),
            body=_decompress(body),
        )

    async def load_delivery(self, event: str, sink: str) -> tuple[bytes, DeliveryState] | None:
        """The event's JSON and what became of it at this sink so far; None if its content is gone."""
        body, state = await self._pipeline.command("HMGET", _event_key(event), "event", f"delivery:{sink}")
        if body is None:
            return None
        return _decompress(body), msgspec.json.decode(state, type=DeliveryState) if state else DeliveryState()

    async def defer(self, claim: Claim, delay_s: float, **fields: str | int) -> bool:
        """Give claimed work back, due again after the delay. False: the lease had run out, somebody else has it."""
        flat = [part for pair in fields.items() for part in pair]
        keys = (_event_key(claim.event_id), _work_key(claim.lane))
        return bool(
            await self._pipeline.script(_DEFER, keys, (claim.event_id, claim.token, int(delay_s * 1000), *flat))
        )

    async def commit(
        self, claim: Claim, body: bytes, sinks: Mapping[str, bool], *, lease_s: float, ephemeral: bool
    ) -> list[Claim] | None:
        """Keep the normalized event and open its deliveries; sinks maps name → whether the caller delivers at once.

        Returns the claims on those deliveries, or None if the lease had run out. `ephemeral` content is kept only until
        the deliveries are done.
        """
        lanes = (_work_key(deliver_lane(sink)) for sink in sinks)
        keys = (_event_key(claim.event_id), _work_key(PROCESS_LANE), _COUNTERS, _WAKE, *lanes)
        flat = [part for sink, at_once in sinks.items() for part in (sink, int(at_once))]
        token = await self._pipeline.script(
            _COMMIT,
            keys,
            (
                claim.event_id,
                claim.token,
                int(lease_s * 1000),
                self._retention_s,
                int(ephemeral),
                _compressor.compress(body),
                *flat,
            ),
        )
        if not token:
            return None
        return [
            Claim(deliver_lane(sink), claim.event_id, token, claim.now_ms) for sink, at_once in sinks.items() if at_once
        ]

    async def finish(self, claim: Claim, sink: str, state: DeliveryState, *, delay_s: float = 0.0) -> bool:
        """Write down the last attempt of `state` and what follows from it. False: somebody else already did."""
        outcome = state.attempts[-1].outcome
        keys = (_event_key(claim.event_id), _work_key(claim.lane), _DEAD, _COUNTERS)
        arguments = (
            claim.event_id,
            claim.token,
            sink,
            outcome,
            int(delay_s * 1000),
            msgspec.json.encode(state),
            self._retention_s,
        )
        return bool(await self._pipeline.script(_FINISH, keys, arguments))

    async def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until a webhook is accepted somewhere, or for so long."""
        try:
            return await self.redis.execute_command("BLPOP", _WAKE, timeout_s) is not None
        except FAILURES as error:
            raise LedgerUnavailable(f"Redis does not answer ({type(error).__name__})") from None

    async def sweep(self) -> tuple[int, int]:
        """Take what is past its retention out of the lists; returns how many events and how many dead letters."""
        horizon = int((time.time() - self._retention_s) * 1000)
        events, dead = await asyncio.gather(
            *(self._pipeline.command("ZREMRANGEBYSCORE", key, "-inf", horizon) for key in (_EVENTS, _DEAD))
        )
        return int(events), int(dead)

    # operators: health, figures, listings

    async def probe(self) -> Durability:
        """Ask the server whether it takes writes and what it promises; also sets how `accept` waits from now on."""
        try:
            # Not through the pipeline: its WAITAOF fails when the server has lost what the last probe found.
            await self.redis.set(_PROBE, "1", ex=60)
            info = await self.redis.info("everything")
        except ResponseError as error:
            raise LedgerUnavailable(f"Redis refused: {type(error).__name__}") from None
        except FAILURES as error:
            raise LedgerUnavailable(f"Redis does not answer ({type(error).__name__})") from None
        fsync = await self._config("appendfsync")
        durability = _durability(info, fsync)
        self._pipeline.wait_aof_ms = _WAIT_AOF_MS if durability.wait_aof else 0
        return durability

    async def _config(self, name: str) -> str | None:
        """One setting of the server, or None where managed services forbid CONFIG."""
        try:
            settings: dict[str, str] = await self.redis.config_get(name)
            return settings.get(name)
        except FAILURES:
            return None

    async def counters(self) -> dict[tuple[str, str], int]:
        """How often what happened since the ledger was made: (what, account or sink) → count."""
        fields: dict[bytes, bytes] = await self._pipeline.command("HGETALL", _COUNTERS)
        counted: dict[tuple[str, str], int] = {}
        for key, value in fields.items():
            what, _, label = key.decode().partition("|")
            counted[what, label] = int(value)
        return counted

    async def open_work(self, lanes: Sequence[str]) -> dict[str, tuple[int, float | None]]:
        """For each lane how much is open, and how many seconds its earliest is overdue (negative: not due yet)."""
        now_ms = time.time() * 1000
        commands: list[tuple[Any, ...]] = [("ZCARD", _work_key(lane)) for lane in lanes]
        commands += [("ZRANGE", _work_key(lane), 0, 0, "WITHSCORES") for lane in lanes]
        answers = await asyncio.gather(*(self._pipeline.command(*command) for command in commands))
        counts, firsts = answers[: len(lanes)], answers[len(lanes) :]
        return {
            lane: (int(count), (now_ms - float(first[1])) / 1000 if first else None)
            for lane, count, first in zip(lanes, counts, firsts, strict=True)
        }

    async def dead_letters(self) -> list[tuple[str, str]]:
        """(event id, sink) of every dead letter, oldest first."""
        members = await self._pipeline.command("ZRANGE", _DEAD, 0, -1)
        return [(event, sink) for event, _, sink in (member.decode().partition("|") for member in members)]

    async def replay(self, event: str, sink: str) -> bool:
        """Make a dead letter due again, with the same event id and its schedule anew.

        False: it is none (any more), so that two replays at once make one. Raises ValueError if its content is gone.
        """
        processing = sink == PROCESS_STEP
        raw = await self._pipeline.command("HGET", _event_key(event), f"delivery:{sink}")
        known = msgspec.json.decode(raw, type=DeliveryState) if raw else DeliveryState()
        state = DeliveryState(state="open", attempts=known.attempts, replayed_after=len(known.attempts))
        lane = PROCESS_LANE if processing else deliver_lane(sink)
        keys = (_event_key(event), _work_key(lane), _DEAD, _WAKE)
        arguments = (event, sink, msgspec.json.encode(state), "body" if processing else "event", int(processing))
        answer = await self._pipeline.script(_REPLAY, keys, arguments)
        if answer < 0:
            raise ValueError(f"the content of {event} is no longer stored")
        return bool(answer)

    async def drop(self, event: str, sink: str) -> bool:
        """Give a dead letter up for good. False: it is none (any more)."""
        return bool(await self._pipeline.script(_DROP, (_event_key(event), _DEAD, _COUNTERS), (event, sink)))

    async def dead_count(self) -> int:
        return int(await self._pipeline.command("ZCARD", _DEAD))

    async def events(self, *, limit: int = 100) -> list[dict[str, str]]:
        """The latest events, newest first: their fields without any content."""
        names = ("type", "provider", "account", "call_id", "sequence", "state", "received_at", "copies")
        ids = [id_.decode() for id_ in await self._pipeline.command("ZREVRANGE", _EVENTS, 0, limit - 1)]
        found = await asyncio.gather(*(self._pipeline.command("HMGET", _event_key(id_), *names) for id_ in ids))
        return [
            {"id": id_} | {name: value.decode() for name, value in zip(names, values, strict=True) if value is not None}
            for id_, values in zip(ids, found, strict=True)
            if any(values)
        ]

    async def event(self, event: str) -> tuple[bytes | None, dict[str, DeliveryState]] | None:
        """An event's JSON (None: not processed yet, or its content is gone) and its deliveries; None: no such event."""
        fields: dict[bytes, bytes] = await self._pipeline.command("HGETALL", _event_key(event))
        if not fields:
            return None
        deliveries = {
            name.decode().removeprefix("delivery:"): msgspec.json.decode(value, type=DeliveryState)
            for name, value in fields.items()
            if name.startswith(b"delivery:")
        }
        return _decompress(fields[b"event"]) if b"event" in fields else None, deliveries


def _decompress(content: bytes) -> bytes:
    return _decompressor.decompress(content, max_output_size=_MAX_CONTENT)


def _durability(info: Mapping[str, Any], fsync: str | None) -> Durability:
    """What INFO and `appendfsync` (None: not told) say about this server."""
    problems = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", 0):
        problems.append(
            f"Redis evicts keys when memory is full (maxmemory-policy {policy}), and so would lose accepted webhooks: "
            "run `CONFIG SET maxmemory-policy noeviction`, or choose that policy at your provider"
        )
    if info.get("role") not in (None, "master"):
        problems.append("Redis is a read-only replica: point REDIS_URL at the primary")
    if info.get("cluster_enabled"):
        problems.append("Redis Cluster is not supported: use a single server, with replicas if you like")
    aof = bool(info.get("aof_enabled"))
    server = "valkey" if "valkey_version" in info else "redis"
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2] if part.isdigit())
    can_wait = aof and (server == "valkey" or version >= (7, 2))
    if fsync == "always" and aof:
        promise = "fsynced: every write is on disk before it is answered (appendfsync always)"
    elif can_wait:
        promise = "fsynced: each webhook waits for WAITAOF before it is answered"
    elif aof:
        promise = "written, fsynced within a second (appendfsync everysec): a power failure may lose that second"
    else:
        promise = "in memory only (append-only file off): a restart of Redis may lose accepted webhooks"
    return Durability(promise=promise, problems=tuple(problems), wait_aof=can_wait and fsync != "always")
