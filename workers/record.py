"""Fetching the full record of a call, and when to come back for one that is not there yet."""

import asyncio
import random

import structlog

from aftercall.errors import ProviderError, RecordNotReady
from aftercall.ledger import Ledger
from aftercall.providers.base import Provider, Record, Webhook
from aftercall.states import Claim, StoredWebhook
from workers.lanes import persist

FETCH_TIMEOUT_S = 20.0
GIVE_UP_S = 600.0  # after that the event goes out with what is known without the record
FETCH_WAITS_S = (0.5, 1, 2, 4, 8, 15, 30, 60)  # and 60 from then on; a provider's Retry-After comes before it

log = structlog.get_logger("workers.record")


async def fetch_record(
    provider: Provider, webhook: Webhook, *, fetches: int, age_s: float, was_there: bool = False
) -> tuple[Record | None, float | None, str | None]:
    """The record; or in how many seconds to come back for it; or neither: it is given up.

    The third value says why there is no complete record; a record that is not ready in the end is still given.
    `fetches` went before this one, and `age_s` is how long it has been tried. `was_there`: it was had before, and if it
    is not found now, it was deleted.
    """
    record, status = None, None
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            record = await provider.fetch(webhook.call_id)
        if provider.is_ready(webhook, record):
            return record, None, None
        raise RecordNotReady("the record does not show it yet")
    except (ProviderError, TimeoutError) as error:
        why = str(error) or f"no complete record within {FETCH_TIMEOUT_S:.0f} s"
        retry_after = error.retry_after if isinstance(error, ProviderError) else None
        status = error.status if isinstance(error, ProviderError) else None
    except Exception as error:
        why, retry_after = f"{type(error).__name__} in {provider.name}'s fetch", None
    for_good = webhook.record == "once" or (was_there and status in provider.not_found)
    if for_good or age_s >= GIVE_UP_S:
        return record, None, why
    return None, next_wait_s(fetches, GIVE_UP_S - age_s, retry_after), why


def next_wait_s(fetches: int, left_s: float, retry_after_s: float | None) -> float:
    """How long to wait before fetch number `fetches` + 2; the last one comes when the time is up."""
    wait_s = FETCH_WAITS_S[min(fetches, len(FETCH_WAITS_S) - 1)] * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
    return min(max(wait_s, retry_after_s or 0.0), left_s)


async def come_back(ledger: Ledger, claim: Claim, stored: StoredWebhook, wait_s: float, why: str | None) -> None:
    """Give the claim back until the record may be there."""
    log.info("record_deferred", event_id=claim.event_id, account=stored.account, wait_s=wait_s, reason=why)
    fetches = stored.fetches + 1
    await persist(lambda: ledger.defer(claim, wait_s, fetches=fetches))
