"""What operators look at in the ledger: counters, open work, sinks, dead letters, events. Changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec
import zstandard

from aftercall.keys import COUNTERS, DEAD, EVENTS, event_key, health_key, work_key
from aftercall.redis_client import SharedPipeline
from aftercall.states import DeliveryState, KeptEvent, SinkHealth, deliver_lane

_MAX_CONTENT = 64 * 1024 * 1024
_BATCH = 500  # commands at once for a listing, so that it does not crowd the pipeline

_decompressor = zstandard.ZstdDecompressor()  # one is enough: used from one thread, and not across an await


class Listings:
    """The reading half of the ledger."""

    _pipeline: SharedPipeline

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._pipeline.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def sink_health(self, sinks: Iterable[str]) -> dict[str, SinkHealth]:
        """The health of each of these sinks."""
        names = list(sinks)
        fields = ("disabled", "reason", "paused", "opened", "since")
        answers = await asyncio.gather(
            *(self._pipeline.command("HMGET", health_key(deliver_lane(name)), *fields) for name in names)
        )
        return {name: _sink_health(*answer) for name, answer in zip(names, answers, strict=True)}

    async def counters(self) -> dict[tuple[str, str], int]:
        """How often what happened since the ledger was made: (what, account or sink) → count."""
        fields: dict[bytes, bytes] = await self._pipeline.command("HGETALL", COUNTERS)
        counted: dict[tuple[str, str], int] = {}
        for key, value in fields.items():
            what, _, label = key.decode().partition("|")
            counted[what, label] = int(value)
        return counted

    async def open_work(self, lanes: Sequence[str]) -> dict[str, tuple[int, float | None]]:
        """For each lane how much is open, and how many seconds its earliest is overdue (negative: not due yet)."""
        now_ms = await self._now_ms()
        commands: list[tuple[Any, ...]] = [("ZCARD", work_key(lane)) for lane in lanes]
        commands += [("ZRANGE", work_key(lane), 0, 0, "WITHSCORES") for lane in lanes]
        answers = await asyncio.gather(*(self._pipeline.command(*command) for command in commands))
        counts, firsts = answers[: len(lanes)], answers[len(lanes) :]
        return {
            lane: (int(count), (now_ms - float(first[1])) / 1000 if first else None)
            for lane, count, first in zip(lanes, counts, firsts, strict=True)
        }

    async def dead_letters(self) -> list[tuple[str, str]]:
        """(event id, sink) of every dead letter, oldest first."""
        members = await self._pipeline.command("ZRANGE", DEAD, 0, -1)
        return [(event, sink) for event, _, sink in (member.decode().partition("|") for member in members)]

    async def delivery_states(self, deliveries: Sequence[tuple[str, str]]) -> list[DeliveryState]:
        """What became of each of these (event id, sink) so far, without the events' content."""
        found = await asyncio.gather(
            *(self._pipeline.command("HGET", event_key(event), f"delivery:{sink}") for event, sink in deliveries)
        )
        return [msgspec.json.decode(state, type=DeliveryState) if state else DeliveryState() for state in found]

    async def dead_count(self) -> int:
        return int(await self._pipeline.command("ZCARD", DEAD))

    async def events(self, *, limit: int = 100) -> list[dict[str, str]]:
        """The latest events, newest first: their fields without any content."""
        names = ("type", "provider", "account", "call_id", "sequence", "state", "received_at", "copies")
        rows = []
        for start in range(0, limit, _BATCH):
            last = min(start + _BATCH, limit) - 1
            ids = [id_.decode() for id_ in await self._pipeline.command("ZREVRANGE", EVENTS, start, last)]
            if not ids:
                break
            found = await asyncio.gather(*(self._pipeline.command("HMGET", event_key(id_), *names) for id_ in ids))
            rows += [
                {"id": id_}
                | {name: value.decode() for name, value in zip(names, values, strict=True) if value is not None}
                for id_, values in zip(ids, found, strict=True)
                if any(values)
            ]
        return rows

    async def count_events(self, since_ms: int, until_ms: int) -> int:
        """How many events were accepted in that time (Unix ms, the server's clock)."""
        return int(await self._pipeline.command("ZCOUNT", EVENTS, since_ms, until_ms))

    async def events_between(self, since_ms: int, until_ms: int, *, batch: int) -> AsyncIterator[list[str]]:
        """The ids of the events accepted in that time, oldest first; what is accepted meanwhile is not missed."""
        seen: set[bytes] = set()  # of the last millisecond
        while True:
            command = ("ZRANGEBYSCORE", EVENTS, since_ms, until_ms, "WITHSCORES", "LIMIT", 0, batch + len(seen))
            found = await self._pipeline.command(*command)
            ids = [id_ for id_ in found[::2] if id_ not in seen]
            if not ids:
                return
            yield [id_.decode() for id_ in ids]
            last = found[-1]
            seen = {id_ for id_, score in zip(found[::2], found[1::2], strict=True) if score == last}
            since_ms = int(last)

    async def event(self, event: str) -> KeptEvent | None:
        """What is kept of an event; None: there is no such event."""
        fields: dict[bytes, bytes] = await self._pipeline.command("HGETALL", event_key(event))
        if not fields:
            return None
        deliveries = {
            name.decode().removeprefix("delivery:"): msgspec.json.decode(value, type=DeliveryState)
            for name, value in fields.items()
            if name.startswith(b"delivery:")
        }
        body, state = fields.get(b"event"), fields.get(b"state")
        return KeptEvent(
            body=decompress(body) if body is not None else None,
            deliveries=deliveries,
            type=fields.get(b"type", b"").decode(),
            account=fields.get(b"account", b"").decode(),
            call_id=fields.get(b"call_id", b"").decode(),
            erased=state == b"erased",
            waits=state in (b"accepted", b"waiting"),
        )


def decompress(content: bytes) -> bytes:
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
