"""Reconciling by itself: every quarter of an hour with the latest calls, once a day with those of a week."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from aftercall.errors import LedgerUnavailable, NotOffered, ProviderError
from aftercall.providers.base import Provider
from aftercall.reconcile import Reconciler
from workers.hub import Hub

LONGEST_CALL = timedelta(hours=3)  # a list is by when calls began, and what is looked for is how they ended
GRACE = timedelta(minutes=5)  # the webhooks of what ended just now are on their way
WIDE = timedelta(days=7)
WIDE_EVERY_S = 86400.0
PER_S = 10.0
TIMEOUT_S = 3600.0

log = structlog.get_logger("workers.reconcile")


async def note_beginning(hub: Hub) -> None:
    """Calls that begin from now on are reconciled, if no worker said so of their account before."""
    for account in hub.providers:
        if "first" not in await hub.ledger.reconcile_progress(account):
            await hub.ledger.note_progress(account, {"first": str(time.time())})


async def reconcile(ctx: dict[str, Any]) -> None:
    """Walk through each account's latest calls. Nothing that began before the first worker started is looked at."""
    hub: Hub = ctx["hub"]
    await note_beginning(hub)  # again: Redis may have been away when the worker started
    for account, provider in hub.providers.items():
        try:
            await _account(hub, provider)
        except NotOffered:
            continue
        except (ProviderError, LedgerUnavailable) as error:
            log.warning("reconcile_failed", account=account, detail=str(error))
        except Exception as error:  # a plug-in's own, whose words may quote a call
            log.error("reconcile_failed", account=account, detail=f"{type(error).__name__} in {provider.name}'s list")


async def _account(hub: Hub, provider: Provider) -> None:
    account = provider.account.name
    noted = await hub.ledger.reconcile_progress(account)
    now = time.time()
    first, wide_at = float(noted["first"]), float(noted.get("wide", 0))
    until = float(noted.get("until", first))
    wide = now - wide_at > WIDE_EVERY_S
    reach = max(LONGEST_CALL + timedelta(seconds=now - until), WIDE if wide else LONGEST_CALL)
    since = datetime.fromtimestamp(max(first, now - reach.total_seconds()), UTC)
    walk = Reconciler(hub.ledger, provider, since, sinks=hub.sinks, per_s=PER_S, grace=GRACE, thorough=wide)
    calls = accepted = erased = 0
    async for step in walk.walk():
        calls += step.calls
        accepted += sum(found.done in ("accepted", "replayed") for found in step.found)
        erased += sum(found.done == "erased" for found in step.found)
    await hub.ledger.note_progress(account, {"until": str(now)} | ({"wide": str(now)} if wide else {}))
    if walk.unanswered:
        log.warning(
            "records_not_had", account=account, calls=len(walk.unanswered), detail="they are asked for again later"
        )
    if accepted or erased:
        log.warning(
            "reconciled",
            account=account,
            calls=calls,
            accepted=accepted,
            erased=erased,
            detail="accepted: events that no webhook told; erased: calls deleted at the provider",
        )
