"""Erasing a call: at the provider where that is asked, in the ledger, and by `call.erased` in the sinks.

In this order, so that what is interrupted can be done again: a call that is gone at the provider counts as deleted
there, and one that has its tombstone as erased.
"""

from collections.abc import Collection
from datetime import UTC, datetime

import msgspec

from aftercall.call import Call
from aftercall.event import decode, rfc3339
from aftercall.ledger import Ledger
from aftercall.patience import A_FEW_S, patiently
from aftercall.providers.base import Provider, Record, Webhook

# What an event of each type tells of its call's end, the least first; others may tell nothing of it.
_TELLING = ("call.ended", "call.billed", "call.analyzed", "call.settled")


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an erased call until `call.erased` is made: no content, and who had some."""

    call: Call
    sinks: list[str] = []


async def erase_call(
    ledger: Ledger,
    provider: Provider,
    call_id: str,
    *,
    sinks: Collection[str],
    at_provider: bool = False,
    for_good: bool = True,
    left: Record | None = None,
) -> bool:
    """Erase a call; False if it was erased before. Also a call never heard of: its tombstone keeps it away.

    `sinks`: the configured sinks' names. `left`: what the provider kept of a call that it deleted itself. `for_good`:
    the tombstone never goes. Raises `ProviderError` or `NotOffered` if the provider did not delete it, and then nothing
    was erased here.
    """
    account = provider.account.name
    if at_provider:
        left = await patiently(lambda: provider.delete(call_id), A_FEW_S) or left
    events = await ledger.call_events(account, call_id)
    at = rfc3339(datetime.now(UTC))
    telling = sorted(events, key=lambda event: _TELLING.index(events[event]) if events[event] in _TELLING else -1)
    known = [call for body in await ledger.load_events(telling[-3:]) if (call := _call(body))]
    call = (
        remains(known[-1], at) if known else Call(id=call_id, provider=provider.name, account=account, status="ended")
    )
    if left is not None:
        webhook = Webhook(event="", type="call.erased", call_id=call_id, dedupe_key="")
        call = remains(provider.normalize(webhook, left), at, metadata=True)
    erasure = Erasure(call=call, sinks=sorted(await ledger.sinks_told(events)))
    return await ledger.erase(
        account,
        call_id,
        provider=provider.name,
        body=msgspec.json.encode(erasure),
        received_at=at,
        sinks=sinks,
        for_good=for_good,
    )


def _call(body: bytes) -> Call | None:
    try:
        return decode(body).data.call
    except msgspec.DecodeError:  # written by a version that knew more words: to be erased all the same
        return None


def remains(call: Call, at: str, *, metadata: bool = False) -> Call:
    """What is not sensitive about a call: which one it was, when, how long and how it ended."""
    return Call(
        id=call.id,
        provider=call.provider,
        account=call.account,
        agent=call.agent,
        channel=call.channel,
        direction=call.direction,
        status=call.status,
        end=call.end,
        started_at=call.started_at,
        ended_at=call.ended_at,
        duration_ms=call.duration_ms,
        cost=call.cost,
        privacy=msgspec.structs.replace(call.privacy, redacted_at=call.privacy.redacted_at or at),
        metadata=call.metadata if metadata else {},
    )
