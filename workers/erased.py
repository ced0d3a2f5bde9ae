"""The event that tells the sinks of a call's erasure, from what the erasure left of the call."""

import msgspec

from aftercall.erasure import Erasure
from aftercall.event import encode
from aftercall.states import Claim, StoredWebhook
from workers.hub import Hub
from workers.make import Made, UnprocessableError, make_event, progress_of


async def make_erased(hub: Hub, claim: Claim, stored: StoredWebhook) -> Made:
    """The `call.erased` event. Needs no provider: the account may be gone, and its calls still to be forgotten."""
    try:
        erasure = msgspec.json.decode(stored.body, type=Erasure)
    except msgspec.DecodeError:
        raise UnprocessableError("what the erasure left cannot be read") from None
    event = make_event(hub, stored, "call.erased", erasure.call)
    told = frozenset(erasure.sinks)
    return Made(event=event, body=encode(event), progress=progress_of(stored, event), told=told)
