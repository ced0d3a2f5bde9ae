"""Housekeeping, once a minute: what is past its retention leaves the ledger's lists."""

from typing import Any

import structlog

from workers.hub import Hub

log = structlog.get_logger("workers.sweep")


async def sweep(ctx: dict[str, Any]) -> None:
    hub: Hub = ctx["hub"]
    _, dead_letters = await hub.ledger.sweep()
    if dead_letters:
        log.warning(
            "dead_letters_expired", count=dead_letters, detail="they were kept for `retention.events` and are gone"
        )
