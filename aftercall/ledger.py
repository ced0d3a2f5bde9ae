"""What is kept in Redis, and every key's name. The only module that knows them.

    aftercall:event:<id>            hash: the webhook as it arrived, the event, the state of each delivery
    aftercall:call:<account>:<id>   hash: the call's last sequence
    aftercall:events                sorted set: event ids by when they were accepted
    aftercall:work:process          sorted set: event ids to process, by when they are due
    aftercall:work:deliver:<sink>   sorted set: event ids to deliver to that sink, by when they are due
    aftercall:rate:<lane>           hash: the token bucket of a sink that is limited
    aftercall:health:<lane>         hash: the health of a lane's sink, where it is not simply well
    aftercall:sinks                 set: every sink that ever was configured
    aftercall:deaths                hash: <lane>|<event id> → leases that ended without an outcome
    aftercall:dead                  sorted set: <event id>|<sink>, by when it died
    aftercall:counters              hash: <what>|<account or sink> → how often
    aftercall:wake                  list: one entry while there may be new work

The `work` sets are the open work and its schedule at once. A worker claims due work under a lease (the score moves to
the lease's end), so a killed worker's work comes back by itself, and there is no second list that could disagree. All
times in them are the server's, so the clocks of the processes do not matter. Each change is one Lua call (`lua/`).

A sink's health is shared by all workers: a circuit that opens after failures in a row, a pause, a disablement. Its
deliveries then wait in their lane, due and unclaimed, and spend no attempt.

Bodies are compressed with zstd. Every method raises `LedgerUnavailable` when Redis cannot do it now.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
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
_SINKS = _PREFIX + "sinks"
_DEATHS = _PREFIX + "deaths"

PROCESS_LANE = "process"
PROCESS_STEP = (
    "@process"  # stands in for a sink's name when an event died before it had deliveries; no sink can be named so
)

_WAIT_AOF_MS = 1500
_MAX_CONTENT = 64 * 1024 * 1024
_BATCH = 500  # commands at once for a listing, so that it does not crowd the pipeline


def deliver_lane(sink: str) -> str:
    return f"deliver:{sink}"


def sink_of(lane: str) -> str:
    """The sink that a lane delivers to, or `@process`."""
    return lane.removeprefix("deliver:") if lane != PROCESS_LANE else PROCESS_STEP


def _health_key(lane: str) -> str:
    return f"{_PREFIX}health:{lane}"


def _event_key(event: str) -> str:
    return f"{_PREFIX}event:{event}"


def _work_key(lane: str) -> str:
    return f"{_PREFIX}work:{lane}"


def _script(name: str) -> Script:
    return Script((Path(__file__).parent / "lua" / f"{name}.lua").read_text())


_ACCEPT, _CLAIM, _DEFER, _COMMIT, _FINISH = map(_script, ("accept", "claim", "defer", "commit", "finish"))
_REPLAY, _DROP = map(_script, ("replay", "drop"))
_REPLAYED: dict[int, "Replayed"] = {1: "due", 2: "brought_forward", 3: "under_way", 0: "not_dead", -1: "content_gone"}

# One each is enough: they are used from one thread, and not across an await.
_compressor = zstandard.ZstdCompressor(level=1)
_decompressor = zstandard.ZstdDecompressor()


Outcome = Literal["delivered", "retry", "dead"]
Verdict = Literal["ok", "failed", "gone", "unchanged"]  # what an attempt tells of its sink's health
HealthChange = Literal["unchanged", "opened", "closed", "disabled"]
Replayed = Literal["due", "brought_forward", "under_way", "not_dead", "content_gone"]


class Accepted(msgspec.Struct, frozen=True):
    event_id: str
    sequence: int  # 0: a duplicate, which was counted and is otherwise without effect


class Claim(msgspec.Struct, frozen=True):
    """Work that is ours until the lease ends. `token`, its score in the lane, finishes it."""

    lane: str
    event_id: str
    token: float
    now_ms: int  # the server's clock at the claim
    probe: bool = False  # the one attempt that an open circuit lets through
    deaths: int = 0  # how often a lease on it ended without an outcome: its worker was killed, perhaps by it


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
    """What became of one event at one sink so far: the latest attempts, oldest first, and how many there were."""

    state: Literal["open", "delivered", "dead"] = "open"
    attempts: list[Attempt] = []
    made: int = 0  # all attempts ever
    spent: int = 0  # those that count against the schedule
    since_ms: int = 0  # the server's clock at the first attempt by this schedule
    replayed: bool = False  # by an operator: it does not count for or against the sink's health


class SinkHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What all workers know of a sink. Where it is not `ok` or `failing`, its deliveries wait and spend no attempt."""

    state: Literal["ok", "failing", "open", "paused", "disabled"] = "ok"  # open: its circuit is
    since_ms: int | None = None
    reason: str = ""


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
        leases = [key for lane in lanes for key in (_work_key(lane), f"{_PREFIX}rate:{lane}", _health_key(lane))]
        wishes = [wish for lane in lanes for wish in (lane, wanted[lane], (rates or {}).get(lane, 0.0))]
        arguments = (int(lease_s * 1000), *wishes)
        lease_ms, now_ms, *taken = await self._pipeline.script(_CLAIM, (_DEATHS, *leases), arguments)
        return [
            Claim(lane, id_.decode(), lease_ms + 0.5, now_ms, probe == 1, deaths)
            for lane, (probe, *works) in zip(lanes, taken, strict=True)
            for id_, deaths in zip(works[::2], works[1::2], strict=True)
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

    async def defer(self, claim: Claim, delay_s: float, *, unbegun: bool = False, **fields: str | int) -> bool:
        """Give claimed work back, due again after the delay. False: the lease had run out, somebody else has it."""
        flat = [part for pair in fields.items() for part in pair]
        keys = (_event_key(claim.event_id), _work_key(claim.lane), _DEATHS)
        arguments = (claim.event_id, repr(claim.token), claim.lane, int(delay_s * 1000), int(unbegun), *flat)
        return bool(await self._pipeline.script(_DEFER, keys, arguments))

    async def commit(
        self, claim: Claim, body: bytes, sinks: Mapping[str, bool], *, lease_s: float, ephemeral: bool
    ) -> list[Claim] | None:
        """Keep the normalized event and open its deliveries; sinks maps name → whether the caller delivers at once.

        Returns the claims on those deliveries, or None if the lease had run out. A sink whose deliveries wait (its
        circuit is open, say) is not claimed. `ephemeral` content is kept only until the deliveries are done. May be
        repeated when its answer was lost.
        """
        lanes = [deliver_lane(sink) for sink in sinks]
        places = [key for lane in lanes for key in (_work_key(lane), _health_key(lane))]
        keys = (_event_key(claim.event_id), _work_key(PROCESS_LANE), _COUNTERS, _WAKE, _DEATHS, *places)
        flat = [part for sink, at_once in sinks.items() for part in (sink, int(at_once))]
        lease_ms, *leased = await self._pipeline.script(
            _COMMIT,
            keys,
            (
                claim.event_id,
                repr(claim.token),
                int(lease_s * 1000),
                self._retention_s,
                int(ephemeral),
                _compressor.compress(body),
                *flat,
            ),
        )
        if not lease_ms:
            return None
        return [
            Claim(lane, claim.event_id, lease_ms + 0.5, claim.now_ms)
            for lane, ours in zip(lanes, leased, strict=True)
            if ours
        ]

    async def finish(
        self,
        claim: Claim,
        sink: str,
        state: DeliveryState,
        *,
        delay_s: float = 0.0,
        verdict: Verdict = "unchanged",
        reason: str = "",
    ) -> HealthChange | None:
        """Write down the last attempt of `state` and what follows from it, for the delivery and for the sink's health.

        Returns what that changed in the sink's health, or None: somebody else already finished it, or holds it now. May
        be repeated when its answer was lost.
        """
        last = state.attempts[-1]
        keys = (
            _event_key(claim.event_id),
            _work_key(claim.lane),
            _DEAD,
            _COUNTERS,
            _DEATHS,
            _health_key(claim.lane),
        )
        arguments = (
            claim.event_id,
            repr(claim.token),
            sink,
            claim.lane,
            last.outcome,
            int(delay_s * 1000),
            msgspec.json.encode(state),
            self._retention_s,
            verdict,
            last.duration_ms,
            reason,
        )
        recorded, changed = await self._pipeline.script(_FINISH, keys, arguments)
        return (changed.decode() or "unchanged") if recorded else None

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

    async def parked_too_long(self, configured: Collection[str], *, limit: int = 1000) -> list[Claim]:
        """Deliveries that have waited for longer than the retention because nobody may attempt them.

        Those of sinks that are paused, disabled, behind an open circuit, or not configured any more; each as a claim
        with which they can be finished. `configured`: the sinks' names now, which are remembered.
        """
        if configured:
            await self._pipeline.command("SADD", _SINKS, *configured)
        names = [name.decode() for name in await self._pipeline.command("SMEMBERS", _SINKS)]
        health = await self.sink_health(names)
        waiting = [name for name in names if name not in configured or health[name].state not in ("ok", "failing")]
        now_ms = await self._now_ms()
        horizon = now_ms - self._retention_s * 1000
        command = ("ZRANGEBYSCORE", "-inf", horizon, "WITHSCORES", "LIMIT", 0, limit)
        lanes = [deliver_lane(name) for name in waiting]
        found = await asyncio.gather(
            *(self._pipeline.command(command[0], _work_key(lane), *command[1:]) for lane in lanes)
        )
        return [
            Claim(lane, id_.decode(), float(score), now_ms)
            for lane, works in zip(lanes, found, strict=True)
            for id_, score in zip(works[::2], works[1::2], strict=True)
        ]

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._pipeline.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    # operators: sinks

    async def sink_health(self, sinks: Iterable[str]) -> dict[str, SinkHealth]:
        """The health of each of these sinks."""
        names = list(sinks)
        fields = ("disabled", "reason", "paused", "opened", "since")
        answers = await asyncio.gather(
            *(self._pipeline.command("HMGET", _health_key(deliver_lane(name)), *fields) for name in names)
        )
        return {name: _sink_health(*answer) for name, answer in zip(names, answers, strict=True)}

    async def pause(self, sink: str) -> None:
        """Attempt nothing at this sink until `resume`; its deliveries wait and spend no attempt."""
        await self._pipeline.command("HSET", _health_key(deliver_lane(sink)), "paused", await self._now_ms())

    async def resume(self, sink: str) -> None:
        """End a pause, a disablement or an open circuit. What waited goes out gently, faster from second to second."""
        key, now_ms = _health_key(deliver_lane(sink)), await self._now_ms()
        await self._pipeline.command("DEL", key)
        await self._pipeline.command("HSET", key, "ramp_at", now_ms)
        await self._pipeline.command("LPUSH", _WAKE, 1)

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

    async def delivery_states(self, deliveries: Sequence[tuple[str, str]]) -> list[DeliveryState]:
        """What became of each of these (event id, sink) so far, without the events' content."""
        found = await asyncio.gather(
            *(self._pipeline.command("HGET", _event_key(event), f"delivery:{sink}") for event, sink in deliveries)
        )
        return [msgspec.json.decode(state, type=DeliveryState) if state else DeliveryState() for state in found]

    async def replay(self, event: str, sink: str, *, only_dead: bool = True) -> Replayed:
        """Make a delivery due again, with the same event id and its schedule anew.

        With `only_dead` that is for dead letters, and of two replays at once one finds `not_dead`. Otherwise a delivery
        that was made, or never opened, is due (again), one that waits for its next attempt is brought forward, and one
        under way is left alone.
        """
        processing = sink == PROCESS_STEP
        lane = PROCESS_LANE if processing else deliver_lane(sink)
        keys = (_event_key(event), _work_key(lane), _DEAD, _WAKE)
        options = ("body" if processing else "event", int(processing), int(only_dead))
        answer = -2
        while answer == -2:  # changed between our reading and our writing
            known = await self._pipeline.command("HGET", _event_key(event), f"delivery:{sink}") or b""
            before = msgspec.json.decode(known, type=DeliveryState) if known else DeliveryState()
            state = DeliveryState(attempts=before.attempts, made=before.made, replayed=True)
            arguments = (event, sink, known, msgspec.json.encode(state), *options)
            answer = await self._pipeline.script(_REPLAY, keys, arguments)
        return _REPLAYED[answer]

    async def drop(self, event: str, sink: str) -> bool:
        """Give a dead letter up for good. False: it is none (any more)."""
        return bool(await self._pipeline.script(_DROP, (_event_key(event), _DEAD, _COUNTERS), (event, sink)))

    async def dead_count(self) -> int:
        return int(await self._pipeline.command("ZCARD", _DEAD))

    async def events(self, *, limit: int = 100) -> list[dict[str, str]]:
        """The latest events, newest first: their fields without any content."""
        names = ("type", "provider", "account", "call_id", "sequence", "state", "received_at", "copies")
        rows = []
        for start in range(0, limit, _BATCH):
            last = min(start + _BATCH, limit) - 1
            ids = [id_.decode() for id_ in await self._pipeline.command("ZREVRANGE", _EVENTS, start, last)]
            if not ids:
                break
            found = await asyncio.gather(*(self._pipeline.command("HMGET", _event_key(id_), *names) for id_ in ids))
            rows += [
                {"id": id_}
                | {name: value.decode() for name, value in zip(names, values, strict=True) if value is not None}
                for id_, values in zip(ids, found, strict=True)
                if any(values)
            ]
        return rows

    async def count_events(self, since_ms: int, until_ms: int) -> int:
        """How many events were accepted in that time (Unix ms, the server's clock)."""
        return int(await self._pipeline.command("ZCOUNT", _EVENTS, since_ms, until_ms))

    async def events_between(self, since_ms: int, until_ms: int, *, batch: int) -> AsyncIterator[list[str]]:
        """The ids of the events accepted in that time, oldest first; what is accepted meanwhile is not missed."""
        seen: set[bytes] = set()  # of the last millisecond
        while True:
            command = ("ZRANGEBYSCORE", _EVENTS, since_ms, until_ms, "WITHSCORES", "LIMIT", 0, batch + len(seen))
            found = await self._pipeline.command(*command)
            ids = [id_ for id_ in found[::2] if id_ not in seen]
            if not ids:
                return
            yield [id_.decode() for id_ in ids]
            last = found[-1]
            seen = {id_ for id_, score in zip(found[::2], found[1::2], strict=True) if score == last}
            since_ms = int(last)

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


def _sink_health(
    disabled: bytes | None, reason: bytes | None, paused: bytes | None, opened: bytes | None, since: bytes | None
) -> SinkHealth:
    if disabled:
        return SinkHealth(state="disabled", since_ms=int(disabled), reason=(reason or b"").decode())
    if paused:
        return SinkHealth(state="paused", since_ms=int(paused))
    if opened:
        return SinkHealth(state="open", since_ms=int(opened))
    if since:
        return SinkHealth(state="failing", since_ms=int(float(since)))
    return SinkHealth()


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
