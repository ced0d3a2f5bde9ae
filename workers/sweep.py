"""Housekeeping, once a minute: what is past its retention leaves the ledger's lists."""

from typing import Any

import structlog

from aftercall.states import DeliveryState, sink_of
from workers.deliver import give_up
from workers.hub import Hub

log = structlog.get_logger("workers.sweep")


async def sweep(ctx: dict[str, Any]) -> None:
    """Trim the lists; give up what waited for longer than the retention at a sink that nobody may attempt."""
    hub: Hub = ctx["hub"]
    for claim in await hub.ledger.parked_too_long(hub.sinks):
        sink = sink_of(claim.lane)
        _, state = await hub.ledger.load_delivery(claim.event_id, sink) or (b"", DeliveryState())
        why = "it waited for longer than `retention.events`: the sink was paused, disabled, unreachable or removed"
        await give_up(hub.ledger, claim, sink, state, why)
    _, dead_letters = await hub.ledger.sweep(hub.settings.accounts)
    if dead_letters:
        log.warning(
            "dead_letters_expired", count=dead_letters, detail="they were kept for `retention.events` and are gone"
        )
