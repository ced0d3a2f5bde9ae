"""One webhook becomes one event: fetch the record, normalize, enrich, commit; then its deliveries start at once."""

import asyncio
import random
from typing import Any

import msgspec
import structlog

from aftercall.call import Call
from aftercall.errors import RecordNotReady, UndecodableWebhook
from aftercall.event import CallEvent, EventData, encode
from aftercall.providers.base import Provider, Record, Webhook
from aftercall.routing import matches
from aftercall.states import PROCESS_STEP, Claim, DeliveryState, StoredWebhook, deliver_lane
from workers.deliver import attempt, give_up
from workers.enrich import enrich
from workers.hub import Hub
from workers.lanes import LEASE_S, Lanes, persist

FETCH_TIMEOUT_S = 20.0
GIVE_UP_S = 600.0  # after that the event goes out with what the webhook carried
FETCH_WAITS_S = (0.5, 1, 2, 4, 8, 15, 30, 60)  # and 60 from then on; a provider's Retry-After comes before it

log = structlog.get_logger("workers.process")


class UnprocessableError(Exception):
    """The event cannot become a call and waiting will not help; the message says why, without its content."""


async def process(ctx: dict[str, Any], event_id: str) -> None:
    """Process a claimed event. Ends with it committed, deferred, or a dead letter."""
    hub: Hub = ctx["hub"]
    claim: Claim = ctx["claim"]
    stored = await hub.ledger.load_webhook(event_id)
    if stored is None:
        await give_up(hub.ledger, claim, PROCESS_STEP, DeliveryState(), "its webhook is no longer stored")
        return
    with ctx["lanes"].holding(len(stored.body)):
        await _process(hub, ctx["lanes"], claim, stored)


async def _process(hub: Hub, lanes: Lanes, claim: Claim, stored: StoredWebhook) -> None:
    try:
        provider, webhook = _understand(hub, stored)
        record, complete = None, True
        if webhook.record != "skip":
            record, wait_s, why = await fetch_record(provider, webhook, stored, claim)
            if wait_s is not None:
                log.info("record_deferred", event_id=claim.event_id, account=stored.account, wait_s=wait_s, reason=why)
                delay_s, fetches = wait_s, stored.fetches + 1
                await persist(lambda: hub.ledger.defer(claim, delay_s, fetches=fetches))
                return
            complete = why is None
            if record is None and not provider.believes_body:
                raise UnprocessableError(f"no signature covers its body and the record did not confirm it: {why}")
        event, body = _normalize(provider, webhook, record, stored, complete=complete)
    except UnprocessableError as error:
        await give_up(hub.ledger, claim, PROCESS_STEP, DeliveryState(), str(error))
        return
    await _commit_and_deliver(hub, lanes, claim, event, body)


def _understand(hub: Hub, stored: StoredWebhook) -> tuple[Provider, Webhook]:
    provider = hub.providers.get(stored.account)
    if provider is None:
        raise UnprocessableError(f"the account {stored.account} is not configured any more; put it back and replay")
    try:
        webhooks = provider.decode(stored.body)
    except UndecodableWebhook as error:
        raise UnprocessableError(str(error)) from None
    for webhook in webhooks:
        if webhook.dedupe_key == stored.dedupe_key:
            return provider, webhook
    raise UnprocessableError("the provider's decoder no longer finds this event in its webhook")


def _normalize(
    provider: Provider, webhook: Webhook, record: Record | None, stored: StoredWebhook, *, complete: bool
) -> tuple[CallEvent, bytes]:
    """The event and its JSON."""
    try:
        call = enrich(provider.normalize(webhook, record))
        event = make_event(stored, webhook, call, complete=complete, tags=provider.account.tags)
        return event, encode(event)
    except Exception as error:
        raise UnprocessableError(f"{type(error).__name__} in {provider.name}'s normalize") from error


async def fetch_record(
    provider: Provider, webhook: Webhook, stored: StoredWebhook, claim: Claim
) -> tuple[Record | None, float | None, str | None]:
    """The record; or in how many seconds to come back for it; or neither: it is given up.

    The third value says why there is no complete record; a record that is not ready in the end is still given.
    """
    record = None
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            record = await provider.fetch(webhook.call_id)
        if provider.is_ready(webhook, record):
            return record, None, None
        raise RecordNotReady("the record does not show it yet")
    except (RecordNotReady, TimeoutError) as error:
        why = str(error) or f"no complete record within {FETCH_TIMEOUT_S:.0f} s"
        retry_after = error.retry_after if isinstance(error, RecordNotReady) else None
    except Exception as error:
        why, retry_after = f"{type(error).__name__} in {provider.name}'s fetch", None
    age_s = (claim.now_ms - stored.accepted_ms) / 1000
    if webhook.record == "once" or age_s >= GIVE_UP_S:
        return record, None, why
    return None, next_wait_s(stored.fetches, GIVE_UP_S - age_s, retry_after), why


def next_wait_s(fetches: int, left_s: float, retry_after_s: float | None) -> float:
    """How long to wait before fetch number `fetches` + 2; the last one comes when the time is up."""
    wait_s = FETCH_WAITS_S[min(fetches, len(FETCH_WAITS_S) - 1)] * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
    return min(max(wait_s, retry_after_s or 0.0), left_s)


def make_event(
    stored: StoredWebhook, webhook: Webhook, call: Call, *, complete: bool, tags: dict[str, str]
) -> CallEvent:
    """The event of a stored webhook."""
    by_call = {"call.started": call.started_at, "call.connected": call.started_at, "call.ended": call.ended_at}
    return CallEvent(
        id=stored.event_id,
        source=f"/{stored.provider}/{stored.account}",
        type=webhook.type,
        subject=webhook.call_id,
        time=webhook.happened_at or by_call.get(webhook.type) or stored.received_at,
        data=EventData(
            provider_event=webhook.event,
            via=stored.via,
            received_at=stored.received_at,
            sequence=stored.sequence,
            complete=complete,
            tags=tags,
            call=msgspec.structs.replace(call, id=webhook.call_id, provider=stored.provider, account=stored.account),
        ),
    )


async def _commit_and_deliver(hub: Hub, lanes: Lanes, claim: Claim, event: CallEvent, body: bytes) -> None:
    """Write the event down before anyone sees it, then make the first attempts side by side."""
    wanted = [
        sink
        for sink in hub.sinks.values()
        if matches(event, events=sink.settings.events, accounts=sink.settings.accounts, where=sink.settings.where)
    ]
    at_once = {sink.settings.name: lanes.take(deliver_lane(sink.settings.name)) for sink in wanted}
    deliveries: list[Claim] | None = None
    try:
        ephemeral = event.data.call.privacy.storage != "full"
        deliveries = await persist(
            lambda: hub.ledger.commit(claim, body, at_once, lease_s=LEASE_S, ephemeral=ephemeral)
        )
    finally:
        started = {delivery.lane for delivery in deliveries or ()}
        for name, taken in at_once.items():
            if taken and deliver_lane(name) not in started:
                lanes.give_back(deliver_lane(name))
    for delivery in deliveries or ():
        sink = hub.sinks[delivery.lane.removeprefix("deliver:")]
        lanes.run(delivery, attempt(hub, delivery, sink, event, body, DeliveryState()), held_bytes=len(body))
