"""Housekeeping, once a minute: what is past its retention leaves the ledger's lists."""

from typing import Any

from workers.hub import Hub


async def sweep(ctx: dict[str, Any]) -> None:
    hub: Hub = ctx["hub"]
    await hub.ledger.sweep()
