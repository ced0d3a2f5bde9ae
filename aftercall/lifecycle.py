"""What the ledger knows of a call as a whole: its events, its settling, its erasure, how far reconciling is.

A call's hash, remembered longer than its events' content so that a list that reaches far back finds nothing twice:

    sequence            of its last event
    event:<event id>    that event's type
    accepted:<type>     such an event was accepted (and did not die before it was one)
    has:<type>          such an event was committed
    needs               the types that it settles with, once it is over
    settle              due: its settled event waits; done: it was made
    ephemeral, storage  the provider must not keep its content
    fetched             its record was had once
    erased              when; then nothing else is there but its last sequence and the event that told of it
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import zstandard

from aftercall.event import event_id
from aftercall.keys import (
    DEAD,
    DEATHS,
    EVENTS,
    SINKS,
    WAKE,
    call_key,
    calls_key,
    event_key,
    reconcile_key,
    work_key,
)
from aftercall.listings import decompress
from aftercall.redis_client import Script, SharedPipeline
from aftercall.states import (
    PROCESS_LANE,
    SETTLE_LANE,
    Claim,
    KnownCall,
    Story,
    deliver_lane,
    sink_of,
)

CALL_MEMORY_S = 35 * 86400  # at least: a month's list can be told from what was delivered

_TOLD = ("call.ended", "call.analyzed", "call.billed")


def script(name: str) -> Script:
    return Script((Path(__file__).parent / "lua" / f"{name}.lua").read_text())


_SETTLE, _ABANDON, _ERASE = map(script, ("settle", "abandon", "erase"))


def settled_key(call_id: str) -> str:
    """The dedupe key of a call's settled event; no provider's begins with @."""
    return f"@settled:{call_id}"


def erased_key(call_id: str) -> str:
    """The dedupe key of the event that tells of a call's erasure."""
    return f"@erased:{call_id}"


class Lifecycle:
    """The ledger's part that is about calls."""

    _pipeline: SharedPipeline
    _retention_s: int
    _settle_after_ms: int
    _compressor: zstandard.ZstdCompressor

    @property
    def call_memory_s(self) -> int:
        """How long a call is remembered after its last event; over two retentions, open and dead deliveries take."""
        return max(CALL_MEMORY_S, 3 * self._retention_s)

    # workers: settle

    async def begin_settling(self, event: str, account: str, call_id: str) -> Story:
        """What is known of a call that is due to settle; its settled event's sequence is taken now, if it is over."""
        keys = (call_key(account, call_id), event_key(event))
        sequence, flat = await self._pipeline.script(_SETTLE, keys, ())
        fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
        needs = fields.get("needs")
        missing = tuple(word for word in (needs or "").split() if f"has:{word}" not in fields)
        return Story(
            sequence=int(sequence),
            over=needs is not None,
            missing=missing,
            pending=any(f"accepted:{word}" in fields for word in missing),
            fetched="fetched" in fields,
            events={
                name.removeprefix("event:"): value
                for name, value in fields.items()
                if name.startswith("event:") and name != f"event:{event}"
            },
        )

    async def load_events(self, events: Sequence[str]) -> list[bytes]:
        """The JSON of those of the events whose content is stored, in the order given."""
        found = await self._pipeline.commands([("HGET", event_key(event), "event") for event in events])
        return [decompress(body) for body in found if body is not None]

    async def abandon_settling(self, claim: Claim, account: str, call_id: str) -> bool:
        """The call's end never came; what its provider must not keep goes. False: somebody else has the claim.

        If it did come, a moment ago, the call settles as any other.
        """
        keys = (call_key(account, call_id), event_key(claim.event_id), work_key(claim.lane), DEATHS)
        arguments = (claim.event_id, repr(claim.token), claim.lane, self._settle_after_ms)
        return bool(await self._pipeline.script(_ABANDON, keys, arguments))

    # erase

    async def call_events(self, account: str, call_id: str) -> dict[str, str]:
        """The ids of a call's events, each with its type."""
        fields: dict[bytes, bytes] = await self._pipeline.command("HGETALL", call_key(account, call_id))
        return {
            name.decode().removeprefix("event:"): value.decode()
            for name, value in fields.items()
            if name.startswith(b"event:")
        }

    async def sinks_told(self, events: Iterable[str]) -> set[str]:
        """The sinks that any of these events was to be delivered to."""
        found = await self._pipeline.commands([("HKEYS", event_key(event)) for event in events])
        return {
            name.decode().removeprefix("delivery:")
            for names in found
            for name in names
            if name.startswith(b"delivery:")
        }

    async def erase(
        self,
        account: str,
        call_id: str,
        *,
        provider: str,
        body: bytes,
        received_at: str,
        sinks: Collection[str],
        for_good: bool,
    ) -> bool:
        """Purge a call, leave a tombstone, and open the event that tells of it, with this body. False: it was erased.

        `sinks`: the configured sinks' names. `for_good`: the tombstone stays; else it goes with the memory of calls.
        """
        dedupe_key = erased_key(call_id)
        erased = event_id(provider, account, dedupe_key)
        fields = {
            "provider": provider,
            "account": account,
            "type": "call.erased",
            "call_id": call_id,
            "dedupe_key": dedupe_key,
            "received_at": received_at,
            "via": "erase",
            "body": self._compressor.compress(body),
        }
        flat = [part for pair in fields.items() for part in pair]
        names = {*sinks, *(name.decode() for name in await self._pipeline.command("SMEMBERS", SINKS))}
        lanes = [PROCESS_LANE, SETTLE_LANE, *map(deliver_lane, sorted(names))]
        options = (int(for_good), self.call_memory_s, self._retention_s, erased, call_id, len(flat), *flat)
        answer = -2
        while answer == -2:  # an event came between our reading and our writing
            events = list(await self.call_events(account, call_id))
            keys = (
                call_key(account, call_id),
                calls_key(account),
                EVENTS,
                DEAD,
                DEATHS,
                WAKE,
                event_key(erased),
                work_key(PROCESS_LANE),
                *map(event_key, events),
                *map(work_key, lanes),
            )
            of_lanes = [part for lane in lanes for part in (lane, sink_of(lane))]
            answer = await self._pipeline.script(_ERASE, keys, (len(events), *options, *events, *of_lanes))
        return bool(answer == 1)

    # reconcile

    async def known_calls(self, account: str, call_ids: Sequence[str]) -> list[KnownCall]:
        """What was accepted of each of these calls."""
        names = ("sequence", "erased", "storage", "fetched", *(f"accepted:{word}" for word in _TOLD))
        found = await self._pipeline.commands([("HMGET", call_key(account, id_), *names) for id_ in call_ids])
        return [
            KnownCall(
                known=sequence is not None,
                erased=erased is not None,
                storage=storage.decode() if storage else None,
                fetched=fetched is not None,
                accepted=frozenset(word for word, was in zip(_TOLD, accepted, strict=True) if was),
            )
            for sequence, erased, storage, fetched, *accepted in found
        ]

    async def calls_between(self, account: str, since_ms: int, until_ms: int) -> list[str]:
        """Calls whose first event was accepted in that time (Unix ms, the server's clock), oldest first."""
        command = ("ZRANGEBYSCORE", calls_key(account), since_ms, until_ms)
        return [call_id.decode() for call_id in await self._pipeline.command(*command)]

    async def forget_calls(self, accounts: Iterable[str], before_ms: int) -> None:
        """Take the calls that are no longer remembered out of the accounts' lists."""
        await self._pipeline.commands(
            [("ZREMRANGEBYSCORE", calls_key(account), "-inf", before_ms) for account in accounts]
        )

    async def reconcile_progress(self, account: str) -> dict[str, str]:
        """How far reconciling came: whatever was noted with `note_progress`."""
        fields: dict[bytes, bytes] = await self._pipeline.command("HGETALL", reconcile_key(account))
        return {name.decode(): value.decode() for name, value in fields.items()}

    async def note_progress(self, account: str, noted: Mapping[str, str | int], *, forget: Sequence[str] = ()) -> None:
        """Note how far it came; `forget` names what is no longer so."""
        flat = [part for pair in noted.items() for part in pair]
        if forget:
            await self._pipeline.command("HDEL", reconcile_key(account), *forget)
        if flat:
            await self._pipeline.command("HSET", reconcile_key(account), *flat)
