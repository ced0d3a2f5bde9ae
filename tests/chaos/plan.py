"""What will be posted, and what will go wrong, when: from a seed alone, and the same for the same seed.

Nothing here looks at a clock, a file or a process. The people, words and numbers come from the simulator.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from simulator.calls import event_type, make_calls
from simulator.parts import Call, Webhook, compact

ACCOUNTS = {"retell": "clinic", "cartesia": "parcel", "ultravox": "ferry"}
SINKS = ("first", "second", "slow", "flaky", "refusing")
HEALTHY = ("first", "second")
DELIVERING = ("first", "second", "slow", "flaky")  # everything reaches them in the end

EPOCH = 1_795_000_000.0  # what the calls take for now
LEAD_S = 1.0  # nothing happens earlier
MAX_SPAN_S = 12.0  # from the first to the last webhook of a call, duplicates aside
LONG_CALLS = 0.2  # of the calls with a transcript of 200 KB so many are kept
OPEN_CALLS = 0.05  # so many are never told to be over
MIN_FAULTS = 10  # with fewer not every kind of fault is there

# A call is over when one of these is told; it goes on, as far as anybody knows, while only those are.
ENDS = frozenset({"call.ended", "call.analyzed", "call.billed"})
ONGOING = frozenset({"call.started", "call.connected", "call.turn", "call.transfer"})

# What is said ends with the run's own word, so that it can be looked for where it must not be.
SAID = frozenset({"content", "text", "call_summary", "summary", "shortSummary", "transcript"})


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run depends on; the plan on everything but `server`."""

    seed: int = 1
    server: Literal["redis", "valkey"] = "redis"
    webhooks: int = 5000  # distinct facts; copies come on top
    seconds: float = 120.0  # over which they and the faults are spread
    fast: bool = False  # do not wait for a posting's time: as fast as it goes
    faults: int = 30
    outage_s: float = 0.0  # one failure of Redis that lasts so long
    stall_s: float = 0.0  # one worker frozen for so long, longer than its leases perhaps
    flaky: Literal["phases", "requests", "either"] = "either"
    workers: int = 2
    services: int = 1
    lease_s: float | None = None  # None: as in production
    doubles: float = 0.005  # so many of the deliveries may be repeated because of a fault
    drain_s: float = 240.0  # so long the rest may take afterwards
    soak: bool = False
    retention_s: int = 3600
    settle_after_s: float = 3.0  # short enough that some calls settle before all of them was told
    sinks: tuple[str, ...] = SINKS

    @property
    def recover_s(self) -> float:
        """So long a killed process's work may take to come back."""
        return 60.0 if self.lease_s is None else self.lease_s + 15.0


class Posting(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook and how it is sent."""

    number: int
    provider: str
    account: str
    call_id: str
    event: str
    body: bytes
    at_s: float
    copies: int  # at the same instant
    again_at_s: float | None  # once more then, although it was answered 2xx
    broken: Literal["", "body", "answer"]  # the first attempt is broken off, in the body or before the answer
    expect: Literal["event", "nothing", "refused"]

    @property
    def tells_an_end(self) -> bool:
        return self.expect == "event" and event_type(self.provider, self.event) in ENDS


class Script(msgspec.Struct, frozen=True):
    """A call, ready to be sent."""

    call_id: str
    provider: str
    webhooks: list[tuple[Webhook, bytes]]  # without their payload, and its JSON
    records: dict[str, bytes]


class Break(msgspec.Struct, frozen=True, kw_only=True):
    """A fault to come. `lasts_s`: until a frozen process goes on, or a killed server is started again."""

    number: int
    kind: str
    target: str
    at_s: float
    lasts_s: float = 0.0


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """How the flaky sink behaves until then."""

    until_s: float
    mode: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    options: Options
    marker: str
    postings: list[Posting]
    records: dict[str, bytes]  # by path of the record APIs
    record_faults: dict[str, tuple[str, ...]]  # what the first requests for a call meet
    breaks: list[Break]
    phases: list[Phase]  # empty: the flaky sink decides at each request

    @property
    def digest(self) -> str:
        """The same for two plans if they are the same, whatever the server."""
        parts = (self.postings, self.records, self.record_faults, self.breaks, self.phases)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def make_plan(options: Options) -> Plan:
    options = msgspec.convert(msgspec.to_builtins(options), Options)  # 8 and 8.0 seconds are the same plan
    seed = options.seed
    marker = f"zwyr{random.Random(f'{seed} marker').getrandbits(40):010x}"
    chosen = list(_scripts(options, marker))
    rng = random.Random(f"{seed} flaky")
    mode = rng.choice(("phases", "requests")) if options.flaky == "either" else options.flaky
    return Plan(
        options=options,
        marker=marker,
        postings=_postings(options, chosen),
        records={path: record for call in chosen for path, record in call.records.items()},
        record_faults=_record_faults(options, chosen),
        breaks=_breaks(options),
        phases=_phases(options, rng) if mode == "phases" else [],
    )


def _scripts(options: Options, marker: str) -> Iterator[Script]:
    """Calls until there are enough facts; the last one's webhooks are cut to fit."""
    rng, open_rng = (random.Random(f"{options.seed} {what}") for what in ("calls", "open"))
    left = options.webhooks
    for number in range(options.webhooks):
        for call in make_calls(options.seed * 1_000_003 + number, EPOCH):
            if "200 KB" in call.story and rng.random() > (0.02 if options.soak else LONG_CALLS):
                continue
            webhooks = list(call.webhooks)
            analyzed = next((webhook for webhook in webhooks if webhook.event == "call_analyzed"), None)
            if analyzed is not None and rng.random() < 0.15:  # analyzed once more, with another result: news
                webhooks.append(_analyzed_again(analyzed))
            facts = [webhook for webhook in webhooks if webhook.is_fact]
            going_on = [webhook for webhook in facts if _type(call, webhook) in ONGOING]
            if open_rng.random() < OPEN_CALLS and going_on and not _is_restricted(call):
                facts = going_on
            facts = facts[:left]
            if not any(_type(call, webhook) in ENDS for webhook in facts):
                if _is_restricted(call):
                    continue  # the ledger waits hours for its end, and then lets go of what it may not keep
                call = _going_on(call, facts)
            left -= len(facts)
            webhooks = [webhook for webhook in webhooks if not webhook.is_fact or webhook in facts]
            bodies = [compact(_mark(webhook.payload, marker)).encode() for webhook in webhooks]
            bare = [msgspec.structs.replace(webhook, payload={}, record=None) for webhook in webhooks]
            yield Script(call.id, call.provider, list(zip(bare, bodies, strict=True)), dict(_records(call, marker)))
            if left == 0:
                return


def _type(call: Call, webhook: Webhook) -> str:
    return event_type(call.provider, webhook.event)


def _is_restricted(call: Call) -> bool:
    """Whether its provider must not keep its content; Retell's alone are here."""
    return bool(call.record.get("data_storage_setting", "everything") != "everything")


def _going_on(call: Call, facts: list[Webhook]) -> Call:
    """The call as its record is when these are all that was ever told."""
    record = next(webhook.record for webhook in reversed(facts) if webhook.record is not None)
    return msgspec.structs.replace(call, record=record, messages=[])


def _mark(value: Any, marker: str, key: str = "") -> Any:
    """The same JSON, with the marker behind everything that is said in it."""
    if isinstance(value, dict):
        return {name: _mark(entry, marker, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_mark(entry, marker) for entry in value]
    if isinstance(value, str) and key in SAID and value and not value.startswith("{"):
        return f"{value} {marker}"
    return value


def _analyzed_again(webhook: Webhook) -> Webhook:
    payload = json.loads(compact(webhook.payload))
    payload["call"]["call_analysis"]["call_summary"] += " Looked at again."
    return msgspec.structs.replace(webhook, payload=payload, at_s=webhook.at_s + 1.5, copies=1, again_at_s=None)


def _postings(options: Options, calls: list[Script]) -> list[Posting]:
    rng = random.Random(f"{options.seed} postings")
    postings: list[Posting] = []
    end_s = max(options.seconds, LEAD_S + 1)
    span_s = min(MAX_SPAN_S, (end_s - LEAD_S) / 3)
    for place, call in enumerate(calls):
        times = [webhook.at_s for webhook, _ in call.webhooks]
        first_s, stretch = min(times), span_s / max(MAX_SPAN_S, max(times) - min(times))
        room_s = end_s - LEAD_S - span_s
        begin_s = LEAD_S + (room_s * place / len(calls) if options.soak else rng.uniform(0, room_s))
        if rng.random() < 0.2:  # out of order
            rng.shuffle(times)
        for (webhook, body), time_s in zip(call.webhooks, times, strict=True):
            at_s = begin_s + (time_s - first_s) * stretch
            postings.append(_posting(rng, options, call.provider, webhook, body, at_s))
    postings.sort(key=lambda posting: posting.at_s)
    return [msgspec.structs.replace(posting, number=number) for number, posting in enumerate(postings)]


def _posting(
    rng: random.Random, options: Options, provider: str, webhook: Webhook, body: bytes, at_s: float
) -> Posting:
    luck = rng.random()
    copies = rng.randint(20, 50) if luck < 0.006 else rng.randint(2, 6) if luck < 0.06 else webhook.copies
    again_s = rng.uniform(1, 30) if webhook.again_at_s is not None or rng.random() < 0.03 else None
    expect: Literal["event", "nothing", "refused"] = (
        "refused" if webhook.forged else "nothing" if webhook.call_id is None else "event"
    )
    broken: Literal["", "body", "answer"] = rng.choice(("body", "answer")) if rng.random() < 0.02 else ""
    return Posting(
        number=0,
        provider=provider,
        account=ACCOUNTS[provider],
        call_id=webhook.call_id or "",
        event=webhook.event,
        body=body,
        at_s=round(at_s, 3),
        copies=1 if webhook.forged else copies,
        again_at_s=None if again_s is None or webhook.forged else round(min(at_s + again_s, options.seconds), 3),
        broken="" if webhook.forged else broken,
        expect=expect,
    )


def _records(call: Call, marker: str) -> Iterator[tuple[str, bytes]]:
    path = {"retell": "/v2/get-call/", "cartesia": "/agents/calls/", "ultravox": "/api/calls/"}[call.provider] + call.id
    yield path, compact(_mark(call.record, marker)).encode()
    if call.provider == "ultravox":
        yield f"{path}/messages", compact({"next": None, "results": _mark(call.messages, marker)}).encode()


def _record_faults(options: Options, calls: list[Script]) -> dict[str, tuple[str, ...]]:
    rng = random.Random(f"{options.seed} records")
    kinds = ["404", "404", "429", "500", "500", "slow"] + (["hang"] if options.seconds >= 60 else [])
    return {  # a slow one is a record, and what was there is not found missing later
        call.call_id: tuple(sorted(rng.choices(kinds, k=rng.choice((1, 1, 1, 2, 3))), key="slow".__eq__))
        for call in calls
        if rng.random() < (0.02 if options.soak else 0.12)
    }


def _breaks(options: Options) -> list[Break]:
    """Each kind once, in any order, then more of them; each in its own part of the time, so that few coincide."""
    rng = random.Random(f"{options.seed} faults")
    workers = [f"worker-{number}" for number in range(1, options.workers + 1)]
    services = [f"service-{number}" for number in range(1, options.services + 1)]

    breaks: list[Break] = []

    def make(kind: str) -> tuple[str, str, float]:
        what, _, whom = kind.partition(" ")
        target = rng.choice({"worker": workers, "service": services}.get(whom, ["redis"]))
        lasts_s = 0.0
        if kind == "kill redis":
            lasts_s = rng.uniform(0.2, 3.0)
        elif kind == "freeze redis":  # the first one for longer than an answer may take
            lasts_s = rng.uniform(
                0.5 if ("freeze", "redis") in ((fault.kind, fault.target) for fault in breaks) else 3.3, 4.0
            )
        elif kind == "freeze worker":
            lasts_s = rng.uniform(0.5, 6.0)
        elif kind in ("fill redis", "demote redis"):
            lasts_s = rng.uniform(0.5, 3.0)
        return what, target, round(lasts_s, 2)

    once = ["kill worker", "kill service", "kill redis", "freeze redis", "freeze worker", "term worker"]
    once += ["flush redis", "reset redis", "fill redis", "demote redis"]
    kinds: list[str] = rng.sample(once, len(once))
    more = [*once, "kill worker", "kill worker", "kill service", "kill redis", "term worker", "reset redis"]
    while len(kinds) < options.faults:
        kinds += rng.sample(more, len(more))
    slot_s = (options.seconds - 2 * LEAD_S) / max(1, options.faults)
    for number, kind in enumerate(kinds[: options.faults]):
        what, target, lasts_s = make(kind)
        at_s = 2 * LEAD_S + slot_s * (number + rng.uniform(0, 0.9))
        breaks.append(Break(number=number + 1, kind=what, target=target, at_s=round(at_s, 2), lasts_s=lasts_s))
    for kind, target, part, lasts_s in (
        ("kill", "redis", 0.4, options.outage_s),
        ("freeze", "worker-1", 0.3, options.stall_s),
    ):
        if lasts_s:
            at_s = round(options.seconds * part, 2)
            breaks.append(Break(number=len(breaks) + 1, kind=kind, target=target, at_s=at_s, lasts_s=lasts_s))
    return breaks


def _phases(options: Options, rng: random.Random) -> list[Phase]:
    """The flaky sink's turns until the load ends; from then on it is well."""
    phases: list[Phase] = []
    clock_s = 0.0
    while clock_s < options.seconds:
        modes = ["error", "hang", "busy", "refuse", "reset"]
        for mode in rng.sample(modes, len(modes)):
            for turn, lasts_s in (("well", rng.uniform(2, 5)), (mode, rng.uniform(1.5, 4))):
                clock_s = min(clock_s + lasts_s, options.seconds)
                phases.append(Phase(until_s=round(clock_s, 2), mode=turn))
    return phases


def describe(plan: Plan) -> str:
    """The plan for people: enough to recognize it, and all its faults."""
    options = plan.options
    facts = sum(posting.expect == "event" for posting in plan.postings)
    copies = sum(posting.copies + (posting.again_at_s is not None) for posting in plan.postings)
    most = max((posting.copies for posting in plan.postings), default=0)
    providers = Counter(posting.provider for posting in plan.postings if posting.expect == "event")
    spread = ", ".join(f"{name} {count}" for name, count in sorted(providers.items()))
    flaky = f"by phases ({len(plan.phases)})" if plan.phases else "at each request"
    lines = [
        f"plan {plan.digest}, seed {options.seed}, {options.server}",
        f"  {facts} facts of {len({posting.call_id for posting in plan.postings})} calls ({spread}), sent {copies} "
        f"times, up to {most} at once; {'as fast as it goes' if options.fast else f'over {options.seconds:g} s'}",
        f"  {len(plan.record_faults)} calls whose record API fails at first; the flaky sink fails {flaky}",
    ]
    for fault in plan.breaks:
        lasts = f" for {fault.lasts_s:g} s" if fault.lasts_s else ""
        lines.append(f"  {fault.at_s:7.2f} s  {fault.kind} {fault.target}{lasts}")
    return "\n".join(lines)
