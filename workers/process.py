"""One webhook becomes one event: fetch the record, normalize, enrich, commit; then its deliveries start at once.

The events that aftercall makes itself (`call.settled`, `call.erased`) come the same way, without a webhook behind them.
"""

from typing import Any

from aftercall.enrich import enrich
from aftercall.errors import UndecodableWebhook
from aftercall.event import CallEvent, encode
from aftercall.providers.base import Provider, Record, Webhook
from aftercall.states import PROCESS_STEP, Claim, DeliveryState, StoredWebhook, deliver_lane
from workers.deliver import attempt, give_up, is_erased
from workers.erased import make_erased
from workers.hub import Hub
from workers.lanes import LEASE_S, Lanes, persist
from workers.make import Made, UnprocessableError, make_event, progress_of, provider_of
from workers.record import come_back, fetch_record
from workers.settle import make_settled


async def process(ctx: dict[str, Any], event_id: str) -> None:
    """Process a claimed event. Ends with it committed, deferred, or a dead letter."""
    hub: Hub = ctx["hub"]
    claim: Claim = ctx["claim"]
    stored = await hub.ledger.load_webhook(event_id)
    if stored is None:
        if await is_erased(hub.ledger, event_id):  # while it was claimed; its work is gone too
            return
        await give_up(hub.ledger, claim, PROCESS_STEP, DeliveryState(), "its webhook is no longer stored")
        return
    with ctx["lanes"].holding(len(stored.body)):
        try:
            make = {"settle": make_settled, "erase": make_erased}.get(stored.via, make_of_webhook)
            made = await make(hub, claim, stored)
        except UnprocessableError as error:
            await give_up(hub.ledger, claim, PROCESS_STEP, DeliveryState(), str(error))
            return
        if made is not None:
            await _commit_and_deliver(hub, ctx["lanes"], claim, made)


async def make_of_webhook(hub: Hub, claim: Claim, stored: StoredWebhook) -> Made | None:
    """The event of a webhook; None if the claim was given back to wait for the record."""
    provider, webhook = _understand(hub, stored)
    record, complete = None, True
    if webhook.record != "skip":
        age_s = (claim.now_ms - stored.accepted_ms) / 1000
        record, wait_s, why = await fetch_record(provider, webhook, fetches=stored.fetches, age_s=age_s)
        if wait_s is not None:
            await come_back(hub.ledger, claim, stored, wait_s, why)
            return None
        complete = why is None
        if record is None and not provider.believes_body:
            raise UnprocessableError(f"no signature covers its body and the record did not confirm it: {why}")
    return _normalize(hub, provider, webhook, record, stored, complete=complete)


def _understand(hub: Hub, stored: StoredWebhook) -> tuple[Provider, Webhook]:
    provider = provider_of(hub, stored)
    try:
        webhooks = provider.decode(stored.body)
    except UndecodableWebhook as error:
        raise UnprocessableError(str(error)) from None
    for webhook in webhooks:
        if webhook.dedupe_key == stored.dedupe_key:
            return provider, webhook
    raise UnprocessableError("the provider's decoder no longer finds this event in its webhook")


def _normalize(
    hub: Hub, provider: Provider, webhook: Webhook, record: Record | None, stored: StoredWebhook, *, complete: bool
) -> Made:
    try:
        call = enrich(provider.normalize(webhook, record))
        by_call = {"call.started": call.started_at, "call.connected": call.started_at, "call.ended": call.ended_at}
        event = make_event(
            hub,
            stored,
            webhook.type,
            call,
            provider_event=webhook.event,
            time=webhook.happened_at or by_call.get(webhook.type),
            complete=complete,
        )
        awaits = tuple(provider.awaits(webhook, record))
        progress = progress_of(stored, event, fetched=record is not None, awaits=awaits)
        return Made(event=event, body=encode(event), progress=progress)
    except Exception as error:
        raise UnprocessableError(f"{type(error).__name__} in {provider.name}'s normalize") from error


async def _commit_and_deliver(hub: Hub, lanes: Lanes, claim: Claim, made: Made) -> None:
    """Write the event down before anyone sees it, then make the first attempts side by side."""
    event: CallEvent = made.event
    wanted = [sink for sink in hub.sinks.values() if sink.settings.wants(event, told=made.told)]
    at_once = {sink.settings.name: lanes.take(deliver_lane(sink.settings.name)) for sink in wanted}
    deliveries: list[Claim] | None = None
    try:
        deliveries = await persist(lambda: hub.ledger.commit(claim, made.body, at_once, made.progress, lease_s=LEASE_S))
    finally:
        started = {delivery.lane for delivery in deliveries or ()}
        for name, taken in at_once.items():
            if taken and deliver_lane(name) not in started:
                lanes.give_back(deliver_lane(name))
    for delivery in deliveries or ():
        sink = hub.sinks[delivery.lane.removeprefix("deliver:")]
        job = attempt(hub, delivery, sink, event, made.body, DeliveryState())
        lanes.run(delivery, job, held_bytes=len(made.body))
