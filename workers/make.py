"""What becomes of a claim in the lanes `process` and `settle`: an event, and what it tells of its call."""

import msgspec

from aftercall.call import Call
from aftercall.event import CallEvent, EventData, EventType
from aftercall.providers.base import Provider
from aftercall.states import Progress, StoredWebhook
from workers.hub import Hub


class UnprocessableError(Exception):
    """The event cannot become a call and waiting will not help; the message says why, without its content."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """An event to commit. `body` is its JSON; `told` names the sinks that heard of the call before (call.erased)."""

    event: CallEvent
    body: bytes
    progress: Progress
    told: frozenset[str] = frozenset()


def provider_of(hub: Hub, stored: StoredWebhook) -> Provider:
    provider = hub.providers.get(stored.account)
    if provider is None:
        raise UnprocessableError(f"the account {stored.account} is not configured any more; put it back and replay")
    return provider


def make_event(
    hub: Hub,
    stored: StoredWebhook,
    type_: EventType,
    call: Call,
    *,
    provider_event: str | None = None,
    time: str | None = None,
    complete: bool = True,
) -> CallEvent:
    """The event of a stored webhook; `time` is when it happened (None: when it was received)."""
    event = CallEvent(
        id=stored.event_id,
        source=f"/{stored.provider}/{stored.account}",
        type=type_,
        subject=stored.call_id,
        time=time or stored.received_at,
        data=EventData(
            provider_event=provider_event,
            via=stored.via,
            received_at=stored.received_at,
            sequence=stored.sequence,
            complete=complete,
            call=msgspec.structs.replace(call, id=stored.call_id, provider=stored.provider, account=stored.account),
        ),
    )
    data = msgspec.structs.replace(event.data, tags=hub.settings.tags(event))
    return msgspec.structs.replace(event, data=data)


def progress_of(
    stored: StoredWebhook, event: CallEvent, *, fetched: bool = False, awaits: tuple[EventType, ...] = ()
) -> Progress:
    """What the event tells of its call."""
    call = event.data.call
    return Progress(
        provider=stored.provider,
        account=stored.account,
        call_id=stored.call_id,
        type=event.type,
        storage=call.privacy.storage,
        fetched=fetched,
        over=call.status in ("ended", "failed"),
        awaits=awaits,
    )
