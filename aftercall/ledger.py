"""What is kept in Redis, and every change to it. `keys.py` names the keys, `listings.py` reads them for operators.

The `work` sets are the open work and its schedule at once. A worker claims due work under a lease (the score moves to
the lease's end), so a killed worker's work comes back by itself, and there is no second list that could disagree. All
times in them are the server's, so the clocks of the processes do not matter. Each change is one Lua call (`lua/`).

A sink's health is shared by all workers: a circuit that opens after failures in a row, a pause, a disablement. Its
deliveries then wait in their lane, due and unclaimed, and spend no attempt.

Bodies are compressed with zstd. Every method raises `LedgerUnavailable` when Redis cannot do it now.
"""

import asyncio
import itertools
import secrets
from collections.abc import Collection, Iterable, Mapping

import msgspec
import zstandard
from arq.connections import ArqRedis

from aftercall.durability import Durability, inspect
from aftercall.event import Via, event_id
from aftercall.keys import (
    COUNTERS,
    DEAD,
    DEATHS,
    EVENTS,
    PROBE,
    SINKS,
    WAKE,
    call_key,
    calls_key,
    claim_key,
    event_key,
    health_key,
    rate_key,
    work_key,
)
from aftercall.lifecycle import Lifecycle, script, settled_key
from aftercall.listings import Listings, decompress
from aftercall.memory import SharedMemory
from aftercall.providers.base import Webhook
from aftercall.redis_client import FAILURES, SharedPipeline, unavailable
from aftercall.states import (
    PROCESS_LANE,
    PROCESS_STEP,
    SETTLE_LANE,
    Accepted,
    Claim,
    DeliveryState,
    HealthChange,
    Progress,
    Replayed,
    StoredWebhook,
    Verdict,
    deliver_lane,
)

_WAIT_AOF_MS = 1500
_LONGEST_CALL_MS = 6 * 3600 * 1000  # no provider's limit is beyond it; a restricted call's content waits no longer

_ACCEPT, _CLAIM, _DEFER, _COMMIT, _FINISH = map(script, ("accept", "claim", "defer", "commit", "finish"))
_REPLAY, _DROP = map(script, ("replay", "drop"))
_REPLAYED: dict[int, Replayed] = {1: "due", 2: "brought_forward", 3: "under_way", 0: "not_dead", -1: "content_gone"}

# One is enough: it is used from one thread, and not across an await.
_compressor = zstandard.ZstdCompressor(level=1)


class Ledger(Lifecycle, Listings):
    """All of aftercall's state. One per process; safe for concurrent callers of one event loop."""

    def __init__(self, redis: ArqRedis, *, retention_s: float, settle_after_s: float = 600.0) -> None:
        self.redis = redis
        self._retention_s = int(retention_s)
        self._settle_after_ms = int(settle_after_s * 1000)
        self._compressor = _compressor
        self._pipeline = SharedPipeline(redis)
        self._claimer = claim_key(secrets.token_hex(8))
        self._requests = itertools.count(1)
        self._unanswered: list[int] = []  # claims that Redis may have executed or not

    def memory(self, sink: str) -> SharedMemory:
        """The notes of a sink."""
        return SharedMemory(self._pipeline, sink)

    async def close(self) -> None:
        await self.redis.aclose(close_connection_pool=True)

    # service: accept

    async def accept(
        self, webhook: Webhook, body: bytes, *, provider: str, account: str, received_at: str, via: Via = "webhook"
    ) -> Accepted:
        """Store a webhook, once. When this returns, the event will be processed, whoever is killed.

        The event of a call that was erased is not stored (`sequence` is `ERASED`).
        """
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
            event_key(event),
            call_key(account, webhook.call_id),
            EVENTS,
            work_key(PROCESS_LANE),
            COUNTERS,
            WAKE,
            calls_key(account),
        )
        flat = [part for pair in fields.items() for part in pair]
        about = (event, self.call_memory_s, account, webhook.call_id, webhook.type)
        sequence = await self._pipeline.script(_ACCEPT, keys, (*about, *flat))
        return Accepted(event, sequence)

    async def known(self, event: str) -> bool:
        """Whether this event was accepted, by any process, and is within its retention."""
        return bool(await self._pipeline.command("HEXISTS", event_key(event), "state"))

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
        leases = [key for lane in lanes for key in (work_key(lane), rate_key(lane), health_key(lane))]
        wishes = [wish for lane in lanes for wish in (lane, wanted[lane], (rates or {}).get(lane, 0.0))]
        request = self._unanswered.pop() if self._unanswered else next(self._requests)
        keys, arguments = (DEATHS, self._claimer, *leases), (int(lease_s * 1000), request, *wishes)
        try:
            lease_ms, now_ms, *taken = await self._pipeline.script(_CLAIM, keys, arguments)
        except BaseException:
            self._unanswered.append(request)
            raise
        return [
            Claim(lane.decode(), id_.decode(), lease_ms + 0.5, now_ms, probe == 1, deaths)
            for lane, probe, *works in taken  # a lost answer's may be of other lanes than asked for now
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
        *values, body = await self._pipeline.command("HMGET", event_key(event), *names, "body")
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
            body=decompress(body) if body else b"",
        )

    async def load_delivery(self, event: str, sink: str) -> tuple[bytes, DeliveryState] | None:
        """The event's JSON and what became of it at this sink so far; None if its content is gone."""
        body, state = await self._pipeline.command("HMGET", event_key(event), "event", f"delivery:{sink}")
        if body is None:
            return None
        return decompress(body), msgspec.json.decode(state, type=DeliveryState) if state else DeliveryState()

    async def defer(self, claim: Claim, delay_s: float, *, unbegun: bool = False, **fields: str | int) -> bool:
        """Give claimed work back, due again after the delay. False: the lease had run out, somebody else has it."""
        flat = [part for pair in fields.items() for part in pair]
        keys = (event_key(claim.event_id), work_key(claim.lane), DEATHS)
        arguments = (claim.event_id, repr(claim.token), claim.lane, int(delay_s * 1000), int(unbegun), *flat)
        return bool(await self._pipeline.script(_DEFER, keys, arguments))

    async def commit(
        self, claim: Claim, body: bytes, sinks: Mapping[str, bool], progress: Progress, *, lease_s: float
    ) -> list[Claim] | None:
        """Keep the normalized event and open its deliveries; sinks maps name → whether the caller delivers at once.

        Returns the claims on those deliveries, or None if the lease had run out. A sink whose deliveries wait (its
        circuit is open, say) is not claimed. `progress` tells what this means for the call: when it settles, and
        whether content is kept only until it is settled and delivered. May be repeated when its answer was lost.
        """
        lanes = [deliver_lane(sink) for sink in sinks]
        places = [key for lane in lanes for key in (work_key(lane), health_key(lane))]
        dedupe_key = settled_key(progress.call_id)
        settled = event_id(progress.provider, progress.account, dedupe_key)
        keys = (
            event_key(claim.event_id),
            work_key(claim.lane),
            COUNTERS,
            WAKE,
            DEATHS,
            call_key(progress.account, progress.call_id),
            work_key(SETTLE_LANE),
            event_key(settled),
            EVENTS,
            *places,
        )
        flat = [part for sink, at_once in sinks.items() for part in (sink, int(at_once))]
        lease_ms, *leased = await self._pipeline.script(
            _COMMIT,
            keys,
            (
                claim.event_id,
                repr(claim.token),
                claim.lane,
                int(lease_s * 1000),
                self._retention_s,
                _compressor.compress(body),
                progress.type,
                int(progress.storage != "full"),
                progress.storage,
                int(progress.fetched),
                int(progress.over),
                " ".join(progress.awaits),
                self._settle_after_ms,
                _LONGEST_CALL_MS,
                settled,
                dedupe_key,
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
            event_key(claim.event_id),
            work_key(claim.lane),
            DEAD,
            COUNTERS,
            DEATHS,
            health_key(claim.lane),
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
            return await self.redis.execute_command("BLPOP", WAKE, timeout_s) is not None
        except FAILURES as error:
            raise unavailable(error) from None

    async def sweep(self, accounts: Iterable[str] = ()) -> tuple[int, int]:
        """Take what is past its retention out of the lists; returns how many events and how many dead letters.

        And what is past the memory of calls out of the lists of these accounts.
        """
        now_ms = await self._now_ms()
        horizon = now_ms - self._retention_s * 1000
        await self.forget_calls(accounts, now_ms - self.call_memory_s * 1000)
        events, dead = await asyncio.gather(
            *(self._pipeline.command("ZREMRANGEBYSCORE", key, "-inf", horizon) for key in (EVENTS, DEAD))
        )
        return int(events), int(dead)

    async def parked_too_long(self, configured: Collection[str], *, limit: int = 1000) -> list[Claim]:
        """Deliveries that have waited for longer than the retention because nobody may attempt them.

        Those of sinks that are paused, disabled, behind an open circuit, or not configured any more; each as a claim
        with which they can be finished. `configured`: the sinks' names now, which are remembered.
        """
        if configured:
            await self._pipeline.command("SADD", SINKS, *configured)
        names = [name.decode() for name in await self._pipeline.command("SMEMBERS", SINKS)]
        health = await self.sink_health(names)
        waiting = [name for name in names if name not in configured or health[name].state not in ("ok", "failing")]
        now_ms = await self._now_ms()
        horizon = now_ms - self._retention_s * 1000
        command = ("ZRANGEBYSCORE", "-inf", horizon, "WITHSCORES", "LIMIT", 0, limit)
        lanes = [deliver_lane(name) for name in waiting]
        found = await asyncio.gather(
            *(self._pipeline.command(command[0], work_key(lane), *command[1:]) for lane in lanes)
        )
        return [
            Claim(lane, id_.decode(), float(score), now_ms)
            for lane, works in zip(lanes, found, strict=True)
            for id_, score in zip(works[::2], works[1::2], strict=True)
        ]

    # operators: sinks

    async def pause(self, sink: str) -> None:
        """Attempt nothing at this sink until `resume`; its deliveries wait and spend no attempt."""
        await self._pipeline.command("HSET", health_key(deliver_lane(sink)), "paused", await self._now_ms())

    async def resume(self, sink: str) -> None:
        """End a pause, a disablement or an open circuit. What waited goes out gently, faster from second to second."""
        key, now_ms = health_key(deliver_lane(sink)), await self._now_ms()
        await self._pipeline.command("DEL", key)
        await self._pipeline.command("HSET", key, "ramp_at", now_ms)
        await self._pipeline.command("LPUSH", WAKE, 1)

    # operators: health, figures, listings

    async def probe(self) -> Durability:
        """Ask the server what it promises and whether it takes writes; also sets how `accept` waits from now on."""
        found = await inspect(self.redis)
        if not found.problems:
            try:
                # Not through the pipeline: its WAITAOF fails when the server has lost what the last probe found.
                await self.redis.set(PROBE, "1", ex=60)
            except FAILURES as error:
                raise unavailable(error) from None
        self._pipeline.wait_aof_ms = _WAIT_AOF_MS if found.wait_aof else 0
        self._pipeline.wait_replicas = found.wait_replicas
        return found

    async def replay(self, event: str, sink: str, *, only_dead: bool = True) -> Replayed:
        """Make a delivery due again, with the same event id and its schedule anew.

        With `only_dead` that is for dead letters, and of two replays at once one finds `not_dead`. Otherwise a delivery
        that was made, or never opened, is due (again), one that waits for its next attempt is brought forward, and one
        under way is left alone.
        """
        processing = sink == PROCESS_STEP
        lane = PROCESS_LANE if processing else deliver_lane(sink)
        keys = (event_key(event), work_key(lane), DEAD, WAKE)
        options = ("body" if processing else "event", int(processing), int(only_dead))
        answer = -2
        while answer == -2:  # changed between our reading and our writing
            known = await self._pipeline.command("HGET", event_key(event), f"delivery:{sink}") or b""
            before = msgspec.json.decode(known, type=DeliveryState) if known else DeliveryState()
            state = DeliveryState(attempts=before.attempts, made=before.made, replayed=True)
            arguments = (event, sink, known, msgspec.json.encode(state), *options)
            answer = await self._pipeline.script(_REPLAY, keys, arguments)
        return _REPLAYED[answer]

    async def drop(self, event: str, sink: str) -> bool:
        """Give a dead letter up for good. False: it is none (any more)."""
        return bool(await self._pipeline.script(_DROP, (event_key(event), DEAD, COUNTERS), (event, sink)))
