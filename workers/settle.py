"""The one event that tells the whole call: made when it is over and what the provider adds later is in, or time is up.

What its events told is put together, the latest knowledge first, so that nothing is lost that only one webhook carried
or that the provider has deleted since. Only where something never came is the record fetched once more.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from aftercall.call import Call, Model, Turn
from aftercall.enrich import enrich
from aftercall.event import CallEvent, EventType, decode, encode, rfc3339
from aftercall.providers.base import Provider, Record, Webhook
from aftercall.states import Claim, StoredWebhook, Story
from workers.hub import Hub
from workers.lanes import persist
from workers.make import Made, UnprocessableError, make_event, progress_of, provider_of
from workers.record import FETCH_WAITS_S, come_back, fetch_record

# What a call's events know of it, the least first. Among equals the one accepted last knows more.
KNOWLEDGE: dict[EventType, int] = {
    "call.unknown": 0,
    "call.started": 1,
    "call.connected": 2,
    "call.transfer": 3,
    "call.ended": 4,
    "call.billed": 5,
    "call.analyzed": 6,
    "call.settled": 7,
}
# What a provider that keeps no personal data takes it out of, some time after the call: what was told first is whole.
SCRUBBED = ("from_", "to", "transcript", "recording", "log_url", "metadata", "variables")
OVER = ("call.ended", "call.billed", "call.analyzed")
PENDING_S = 30.0  # between looks at whether an event that is being processed has come to an end
MAX_TURNS = 2000  # events of single turns that are looked at, where there is no other transcript

log = structlog.get_logger("workers.settle")


async def make_settled(hub: Hub, claim: Claim, stored: StoredWebhook) -> Made | None:
    """The `call.settled` event; None if the claim was given back to wait for the record, or there is nothing to settle.

    Nothing: no webhook told the end of a call whose content must not be kept for ever.
    """
    provider = provider_of(hub, stored)
    story = await hub.ledger.begin_settling(claim.event_id, stored.account, stored.call_id)
    if not story.over:
        await persist(lambda: hub.ledger.abandon_settling(claim, stored.account, stored.call_id))
        log.info("never_ended", account=stored.account, detail="no webhook told the end of a call; reconciling may")
        return None
    if story.pending:  # its commit brings this forward
        await persist(lambda: hub.ledger.defer(claim, PENDING_S))
        return None
    try:
        call, complete = await gather(hub, story)
    except msgspec.DecodeError:
        raise UnprocessableError("one of its events cannot be read: another version of aftercall wrote it") from None
    if story.missing or not complete:
        webhook = Webhook(event="", type="call.settled", call_id=stored.call_id, dedupe_key="")
        tried_s = float(sum(FETCH_WAITS_S[: stored.fetches]) + 60 * max(0, stored.fetches - len(FETCH_WAITS_S)))
        record, wait_s, why = await fetch_record(
            provider, webhook, fetches=stored.fetches, age_s=tried_s, was_there=story.fetched
        )
        if wait_s is not None:
            await come_back(hub.ledger, claim, stored, wait_s, why)
            return None
        if record is not None:
            call, complete = _add_record(provider, webhook, record, call), True
    if call is None:
        raise UnprocessableError("neither its events nor the record are there any more")
    now = rfc3339(datetime.now(UTC))
    made_now = msgspec.structs.replace(stored, received_at=now, sequence=story.sequence)
    event = make_event(hub, made_now, "call.settled", enrich(call), complete=complete)
    return Made(event=event, body=encode(event), progress=progress_of(stored, event))


def _add_record(provider: Provider, webhook: Webhook, record: Record, call: Call | None) -> Call:
    try:
        fetched: Call = provider.normalize(webhook, record)
    except Exception as error:
        raise UnprocessableError(f"{type(error).__name__} in {provider.name}'s normalize") from error
    if call is None:
        return fetched
    whole = update(call, fetched)
    return _keep(whole, call, *SCRUBBED, "analysis") if whole.privacy.storage == "no_pii" else whole


async def gather(hub: Hub, story: Story) -> tuple[Call | None, bool]:
    """The call as its committed events tell it, and whether one that came after the end had the record."""
    wanted = [event for event, type_ in story.events.items() if type_ in KNOWLEDGE]
    events = [decode(body) for body in await hub.ledger.load_events(wanted)]
    call = combine(events)
    complete = any(event.type in OVER and event.data.complete for event in events)
    if call is None or not call.transcript:
        turns = [event for event, type_ in story.events.items() if type_ == "call.turn"][:MAX_TURNS]
        told = [decode(body) for body in await hub.ledger.load_events(turns)]
        call = call or combine(told)
        call = call and msgspec.structs.replace(call, transcript=join_turns(told) or call.transcript)
    return call, complete


def combine(events: Sequence[CallEvent]) -> Call | None:
    """One call of what all these events told, in whichever order they came; None of none."""
    known = sorted(events, key=lambda event: (KNOWLEDGE.get(event.type, 0), event.data.sequence))
    call: Call | None = None
    for event in known:
        call = event.data.call if call is None else update(call, event.data.call)
    if call is not None and call.privacy.storage == "no_pii":
        for event in reversed([event for event in known if event.type in OVER]):
            call = _keep(call, event.data.call, *SCRUBBED)
    return call


def update(call: Call, newer: Call) -> Call:
    """The call with what `newer` knows. What that leaves open stays, and a call that was over is not so no more."""
    merged: Call = _merge(call, newer)
    if call.end is not None and newer.end is None:
        merged = msgspec.structs.replace(merged, status=call.status, end=call.end)
    elif call.end is not None and newer.end is not None and newer.end.reason == "unknown":
        merged = msgspec.structs.replace(merged, end=call.end)
    if call.privacy.storage != "full" and newer.privacy.storage == "full":  # what says nothing of it counts as full
        privacy = msgspec.structs.replace(merged.privacy, storage=call.privacy.storage)
        merged = msgspec.structs.replace(merged, privacy=privacy)
    return merged


def _keep(call: Call, first: Call, *names: str) -> Call:
    """The call with what was told first in these fields, where it was told."""
    told = {name: _merge(getattr(call, name), getattr(first, name)) for name in names}
    return msgspec.structs.replace(call, **told)


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, Model) and type(old) is type(new) and not isinstance(old, Turn):
        merged = {name: _merge(getattr(old, name), getattr(new, name)) for name in old.__struct_fields__}
        return type(old)(**merged)
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **new}
    return old if new in (None, "", [], {}) and not isinstance(new, bool) else new


def join_turns(events: Sequence[CallEvent]) -> list[Turn]:
    """A transcript of events that told a turn, or all turns so far. A turn told twice counts as it was told longest.

    A turn without a time (a tool's, say) stays behind the one that it was told after.
    """
    turns: dict[Any, tuple[int, Turn]] = {}
    at_ms = 0
    for event in sorted(events, key=lambda event: event.data.sequence):
        for turn in event.data.call.transcript or ():
            at_ms = at_ms if turn.start_ms is None else turn.start_ms
            tool = turn.tool.id or turn.tool.name if turn.tool else None
            key = (turn.role, tool, turn.text if turn.start_ms is None else turn.start_ms)
            if key not in turns or _length(turn) > _length(turns[key][1]):
                turns[key] = (at_ms, turn)
    return [turn for _, turn in sorted(turns.values(), key=lambda placed: placed[0])]


def _length(turn: Turn) -> int:
    return len(turn.text or "") + len((turn.tool and turn.tool.result) or "")
