"""One attempt to bring one event to one sink, and what follows from its outcome."""

import random
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from aftercall.attempt import try_once
from aftercall.errors import SinkError
from aftercall.event import CallEvent, decode, encode, rfc3339
from aftercall.ledger import Ledger
from aftercall.sink_settings import SinkSettings
from aftercall.states import Attempt, Claim, DeliveryState, HealthChange, Outcome, Verdict
from workers.hub import Hub, OpenSink
from workers.lanes import Lanes, persist

MAX_RETRY_AFTER_S = 86400.0  # a destination may ask for patience, but not for years of it
MAX_ERROR_CHARACTERS = 300
MAX_RECEIPT_CHARACTERS = 200
KEPT_ATTEMPTS = 20  # of a delivery's history
RECORDING_WAIT_S = 600  # how long a delivery waits for the recording's archive, and how often it looks
RECORDING_LOOK_S = 2.0

log = structlog.get_logger("workers.deliver")


async def deliver(ctx: dict[str, Any], event_id: str, sink_name: str) -> None:
    """Attempt a claimed delivery: a retry, or a first attempt that found no free place before."""
    hub: Hub = ctx["hub"]
    claim: Claim = ctx["claim"]
    lanes: Lanes = ctx["lanes"]
    body, state = await hub.ledger.load_delivery(event_id, sink_name) or (b"", DeliveryState())
    try:
        event = decode(body)
    except msgspec.DecodeError:  # gone, or written by a version that knew more words
        if not body and await is_erased(hub.ledger, event_id):
            return
        why = "its content cannot be read" if body else "its content is no longer stored"
        await give_up(hub.ledger, claim, sink_name, state, why)
        return
    with lanes.holding(len(body)):
        await attempt(hub, claim, hub.sinks[sink_name], event, body, state)


async def is_erased(ledger: Ledger, event_id: str) -> bool:
    """Whether the event's call was erased, and all its open work with it."""
    kept = await ledger.event(event_id)
    return kept is not None and kept.erased


async def give_up(ledger: Ledger, claim: Claim, sink_name: str, state: DeliveryState, why: str) -> None:
    """Make a dead letter of claimed work without attempting it."""
    log.error("given_up", event_id=claim.event_id, sink=sink_name, reason=why)
    last = Attempt(at=utc_now(), duration_ms=0, outcome="dead", error=why)
    dead = msgspec.structs.replace(state, state="dead", attempts=[*state.attempts, last][-KEPT_ATTEMPTS:])
    await persist(lambda: ledger.finish(claim, sink_name, dead))


async def attempt(hub: Hub, claim: Claim, sink: OpenSink, event: CallEvent, body: bytes, state: DeliveryState) -> None:
    """Make the next attempt and write its outcome down. Being cancelled is no outcome: the lease brings it back."""
    settings = sink.settings
    shown = await persist(lambda: _with_recording(hub, claim, settings, event))
    if shown is None:
        await persist(lambda: hub.ledger.defer(claim, RECORDING_LOOK_S))
        return
    sent = body if shown is event else encode(shown)
    content = await persist(lambda: _body(hub, settings, shown, sent))
    if content is None:
        await give_up(hub.ledger, claim, settings.name, state, "the provider's own body is no longer stored")
        return
    number = state.made + 1
    at, started = utc_now(), time.perf_counter()
    receipt, error = await try_once(settings, sink.opened, shown, content, number=number)
    duration_ms = round((time.perf_counter() - started) * 1000)
    since_ms = state.since_ms or claim.now_ms
    next_ = what_next(
        settings.retry_s, error, spent=state.spent, age_s=(claim.now_ms - since_ms) / 1000, probe=claim.probe
    )
    text = None if error is None else str(error)[:MAX_ERROR_CHARACTERS]
    got = receipt and receipt[:MAX_RECEIPT_CHARACTERS]
    last = Attempt(at=at, duration_ms=duration_ms, outcome=next_.outcome, error=text, receipt=got)
    if error is not None:
        level = log.error if next_.outcome == "dead" else log.warning
        level(
            "delivery_failed",
            event_id=event.id,
            sink=settings.name,
            attempt=number,
            outcome=next_.outcome,
            error=text,
        )
    after = DeliveryState(
        state="open" if next_.outcome == "retry" else next_.outcome,
        attempts=[*state.attempts, last][-KEPT_ATTEMPTS:],
        made=number,
        spent=next_.spent,
        since_ms=since_ms,
        replayed=state.replayed,
    )
    verdict = judge(error, replayed=state.replayed)
    changed = await persist(
        lambda: hub.ledger.finish(
            claim, settings.name, after, delay_s=next_.delay_s, verdict=verdict, reason=text or ""
        )
    )
    if changed is not None:
        _log_health(settings.name, changed, text)


def judge(error: SinkError | None, *, replayed: bool) -> Verdict:
    """What an attempt tells of its sink's health. A refusal is an answer too: the sink is there."""
    if error is not None and error.gone:
        return "gone"
    if replayed:
        return "unchanged"
    return "ok" if error is None or error.permanent else "failed"


def _log_health(sink: str, changed: HealthChange, error: str | None) -> None:
    if changed == "closed":
        log.info("circuit_closed", sink=sink, detail="it answers again: what waited goes out, faster each second")
    elif changed == "opened":
        log.error("circuit_opened", sink=sink, error=error, detail="its deliveries wait and spend no attempts")
    elif changed == "disabled":
        detail = f"its deliveries wait; mend its table and run `aftercall sinks resume {sink}`"
        log.error("sink_disabled", sink=sink, error=error, detail=detail)


async def _with_recording(hub: Hub, claim: Claim, settings: SinkSettings, event: CallEvent) -> CallEvent | None:
    """The event with its recording where the archive has it; None: it may still come there, so wait."""
    archive, call = settings.recording_from, event.data.call
    if archive is None or call.recording is None or event.type == "call.erased":
        return event
    kept = await hub.sinks[archive].archived_recording(call)
    if kept is not None:
        replaced = msgspec.structs.replace(call, recording=kept)
        return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, call=replaced))
    notes, note = hub.ledger.memory(settings.name), f"recording-awaited:{event.id}"
    if not await notes.add(note, str(claim.now_ms), for_s=86400):
        since_ms = int(await notes.get(note) or 0)
        if claim.now_ms - since_ms > RECORDING_WAIT_S * 1000:
            log.warning("recording_not_archived", event_id=event.id, sink=settings.name, archive=archive)
            return event
    return None


async def _body(hub: Hub, settings: SinkSettings, event: CallEvent, body: bytes) -> bytes | None:
    """What is sent of the event: its JSON, or the provider's own body; None if that is no longer stored."""
    if settings.format == "event":
        return body
    stored = await hub.ledger.load_webhook(event.id)
    return stored.body if stored else None


class Next(msgspec.Struct, frozen=True):
    """What follows an attempt."""

    outcome: Outcome
    delay_s: float = 0.0
    spent: int = 0


def what_next(
    schedule_s: tuple[float, ...], error: SinkError | None, *, spent: int, age_s: float, probe: bool = False
) -> Next:
    """What follows an attempt, `spent` of which counted before it, the first `age_s` ago.

    Not counted are the probe of an open circuit and, while the delivery is younger than its whole schedule, an attempt
    that the destination answered with a Retry-After: it is there, and only asks for patience.
    """
    if error is None:
        return Next("delivered", spent=spent)
    if error.gone:
        return Next("retry", spent=spent)  # waits, due, for as long as the sink is disabled
    patience = error.retry_after is not None and age_s < sum(schedule_s)
    if not (probe or patience):
        spent += 1
    if error.permanent or not schedule_s or spent > len(schedule_s):
        return Next("dead", spent=spent)
    jitter = random.uniform(0.9, 1.1)  # noqa: S311
    retry_after_s = min(error.retry_after or 0.0, MAX_RETRY_AFTER_S)
    return Next("retry", max(schedule_s[max(spent, 1) - 1] * jitter, retry_after_s * max(1.0, jitter)), spent)


def utc_now() -> str:
    return rfc3339(datetime.now(UTC))
