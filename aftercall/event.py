"""The event: one fact about one call, as CloudEvents 1.0 (structured JSON). This is what a sink is given.

Every copy, attempt and replay of an event carries the same `id`; a consumer dedupes on it.
"""

import base64
import hashlib
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aftercall.call import Call, Model, Timestamp

CONTENT_TYPE = "application/cloudevents+json"

EventType = Literal[
    "call.started",
    "call.connected",
    "call.turn",
    "call.transfer",
    "call.ended",
    "call.analyzed",
    "call.billed",
    "call.settled",
    "call.erased",
    "call.unknown",
]
Via = Literal["webhook", "reconcile", "settle", "erase"]


class EventData(Model, frozen=True, kw_only=True):
    provider_event: str | None = None  # the provider's word; null when aftercall made the event
    via: Via = "webhook"
    received_at: Timestamp
    sequence: Annotated[int, Meta(ge=1, description="1, 2, 3 … per call, in the order of acceptance")]
    complete: bool = True  # false: the record could not be fetched; call holds what the webhook carried
    tags: dict[str, str] = {}
    call: Call


class CallEvent(Model, frozen=True, kw_only=True):
    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str  # /{provider}/{account}
    type: EventType
    subject: str  # the provider's call id
    time: Timestamp  # when it happened
    datacontenttype: Literal["application/json"] = "application/json"
    data: EventData


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CallEvent)


def encode(event: CallEvent) -> bytes:
    """The event as the UTF-8 JSON that leaves through the sinks."""
    return _encoder.encode(event)


def decode(body: bytes) -> CallEvent:
    """The event from its JSON; raises `msgspec.DecodeError`, with the path of what does not fit."""
    try:
        return _decoder.decode(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(type(error).__name__) from None


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as events write it: with milliseconds and a Z."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event_id(provider: str, account: str, dedupe_key: str) -> str:
    """The id that every copy of this fact gets, whichever process sees it first, by webhook or by reconciling."""
    digest = hashlib.sha256("\0".join((provider, account, dedupe_key)).encode("utf-8", "surrogatepass")).digest()
    return "evt_" + base64.b32encode(digest[:15]).decode("ascii").lower()
