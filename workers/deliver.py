"""One attempt to bring one event to one sink, and what follows from its outcome."""

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from aftercall.errors import SinkError
from aftercall.event import CallEvent, decode, encode
from aftercall.ledger import Attempt, Claim, DeliveryState, Outcome
from aftercall.routing import redact
from aftercall.sinks.base import Delivery
from workers.hub import Hub, OpenSink

MAX_RETRY_AFTER_S = 86400.0  # a destination may ask for patience, but not for years of it
MAX_ERROR_CHARACTERS = 300

log = structlog.get_logger("workers.deliver")


async def deliver(ctx: dict[str, Any], event_id: str, sink_name: str) -> None:
    """Attempt a claimed delivery: a retry, or a first attempt that found no free place before."""
    hub: Hub = ctx["hub"]
    claim: Claim = ctx["claim"]
    body, state = await hub.ledger.load_delivery(event_id, sink_name) or (b"", DeliveryState())
    try:
        event = decode(body)
    except msgspec.DecodeError:  # gone, or written by a version that knew more words
        why = "its content cannot be read" if body else "its content is no longer stored"
        last = Attempt(at=utc_now(), duration_ms=0, outcome="dead", error=why)
        await hub.ledger.finish(claim, sink_name, DeliveryState(state="dead", attempts=[*state.attempts, last]))
        return
    await attempt(hub, claim, hub.sinks[sink_name], event, body, state)


async def attempt(hub: Hub, claim: Claim, sink: OpenSink, event: CallEvent, body: bytes, state: DeliveryState) -> None:
    """Make the next attempt and write its outcome down. Being cancelled is no outcome: the lease brings it back."""
    settings = sink.settings
    number = len(state.attempts) + 1
    at, started = utc_now(), time.perf_counter()
    error = await _try(sink, event, body, number)
    duration_ms = round((time.perf_counter() - started) * 1000)
    delay_s = None if error is None else next_delay_s(settings.retry_s, number - state.replayed_after, error)
    outcome: Outcome = "delivered" if error is None else "dead" if delay_s is None else "retry"
    last = Attempt(
        at=at,
        duration_ms=duration_ms,
        outcome=outcome,
        error=None if error is None else str(error)[:MAX_ERROR_CHARACTERS],
    )
    state = DeliveryState(
        state="open" if outcome == "retry" else outcome,
        attempts=[*state.attempts, last],
        replayed_after=state.replayed_after,
    )
    if error is not None:
        level = log.error if outcome == "dead" else log.warning
        level(
            "delivery_failed", event_id=event.id, sink=settings.name, attempt=number, outcome=outcome, error=last.error
        )
    await hub.ledger.finish(claim, settings.name, state, delay_s=delay_s or 0.0)


async def _try(sink: OpenSink, event: CallEvent, body: bytes, number: int) -> SinkError | None:
    """Deliver within the sink's timeout; None or what went wrong."""
    settings = sink.settings
    try:
        if settings.redact:
            event = redact(event, settings.redact)
            body = encode(event)
        async with asyncio.timeout(settings.timeout_s):
            await (await sink.opened()).deliver(Delivery(event=event, body=body, attempt=number))
    except SinkError as error:
        return error
    except TimeoutError:
        return SinkError(f"no answer within {settings.timeout_s:g} s")
    except Exception as error:
        # Its message may hold anything, also what was said in the call; its type and place do not.
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where else "?"
        return SinkError(f"{type(error).__name__} in {settings.sink_type} at {place}")
    return None


def next_delay_s(schedule_s: tuple[float, ...], attempts: int, error: SinkError) -> float | None:
    """Seconds until the next attempt, or None: there is none."""
    if error.permanent or attempts > len(schedule_s):
        return None
    wait_s = schedule_s[attempts - 1] * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
    return max(wait_s, min(error.retry_after or 0.0, MAX_RETRY_AFTER_S))


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
