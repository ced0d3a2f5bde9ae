"""What the ledger hands out and takes back: claims, stored webhooks, the state of a delivery, the health of a sink."""

from typing import Literal, NamedTuple

import msgspec

from aftercall.call import Storage
from aftercall.event import EventType, Via

PROCESS_LANE = "process"
SETTLE_LANE = "settle"
PROCESS_STEP = "@process"  # in place of a sink when an event died before it had deliveries; no sink can be named so

Outcome = Literal["delivered", "retry", "dead"]
Verdict = Literal["ok", "failed", "gone", "unchanged"]  # what an attempt tells of its sink's health
HealthChange = Literal["unchanged", "opened", "closed", "disabled"]
Replayed = Literal["due", "brought_forward", "under_way", "not_dead", "content_gone"]


def deliver_lane(sink: str) -> str:
    return f"deliver:{sink}"


def sink_of(lane: str) -> str:
    """The sink that a lane delivers to, or `@process`."""
    return lane.removeprefix("deliver:") if lane.startswith("deliver:") else PROCESS_STEP


ERASED = -1  # in place of a sequence: the call was erased


class Accepted(msgspec.Struct, frozen=True):
    event_id: str
    sequence: int  # 0: a duplicate, which was counted and is otherwise without effect; ERASED: nothing was stored


class Claim(msgspec.Struct, frozen=True):
    """Work that is ours until the lease ends. `token`, its score in the lane, finishes it."""

    lane: str
    event_id: str
    token: float
    now_ms: int  # the server's clock at the claim
    probe: bool = False  # the one attempt that an open circuit lets through
    deaths: int = 0  # how often a lease on it ended without an outcome: its worker was killed, perhaps by it


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a committed event tells of its call."""

    provider: str
    account: str
    call_id: str
    type: EventType
    storage: Storage = "full"
    fetched: bool = False  # the event has the record
    over: bool = False
    awaits: tuple[EventType, ...] = ()  # what else the provider will send, now that it is over


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call that is due to settle."""

    sequence: int  # of its settled event; 0: it is not over
    over: bool
    missing: tuple[str, ...]  # types that were awaited and did not come
    pending: bool  # one of them was accepted, and is being processed
    fetched: bool  # the call's record was had once
    events: dict[str, str]  # event id → type


class KnownCall(msgspec.Struct, frozen=True, kw_only=True):
    """What was accepted of a call that a provider's list shows."""

    known: bool  # the ledger heard of it
    erased: bool
    storage: str | None  # None: not restricted, or not known
    fetched: bool  # its record was had once
    accepted: frozenset[str]  # of call.ended, call.analyzed, call.billed


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
    receipt: str | None = None  # what the destination gave for it: its id for the message, or its status


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


class KeptEvent(NamedTuple):
    """What is kept of an event."""

    body: bytes | None  # its JSON; None: not processed yet, or its content is gone
    deliveries: dict[str, DeliveryState]
    type: str
    account: str
    call_id: str
    erased: bool  # its call was
    waits: bool  # it is not processed yet
