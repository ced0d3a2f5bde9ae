"""`/livez`, `/readyz` and `/metrics`."""

import asyncio
from collections.abc import Iterable

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from aftercall.errors import LedgerUnavailable
from aftercall.ledger import Ledger
from service.metrics import WebhookFigures, exposition
from service.problems import CONTENT_TYPE, Problem

PROBE_TIMEOUT_S = 2.5


class Alive(msgspec.Struct, frozen=True):
    status: str = "alive"


class Ready(msgspec.Struct, frozen=True):
    durability: str  # what a 2xx means on this server
    status: str = "ready"


def health_routes(ledger: Ledger, figures: WebhookFigures, sinks: Iterable[str]) -> list[HTTPRouteHandler]:
    @get("/livez", summary="The process is alive")
    async def livez() -> Alive:
        return Alive()

    @get("/readyz", summary="Redis is reachable, writable and does not evict")
    async def readyz() -> Response[Ready | Problem]:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                durability = await ledger.probe()
        except (LedgerUnavailable, TimeoutError) as error:
            return _not_ready(str(error) or "Redis does not answer in time")
        if durability.problems:
            return _not_ready("; ".join(durability.problems))
        return Response(Ready(durability=durability.promise))

    @get("/metrics", summary="Prometheus", media_type="text/plain; version=0.0.4; charset=utf-8")
    async def metrics() -> Response[bytes]:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return Response(await exposition(figures, ledger, sinks))
        except (LedgerUnavailable, TimeoutError):
            return Response(b"# the ledger does not answer\n", status_code=503)

    return [livez, readyz, metrics]


def _not_ready(detail: str) -> Response[Ready | Problem]:
    return Response(
        Problem(title="Service Unavailable", status=503, detail=detail),
        status_code=503,
        media_type=CONTENT_TYPE,
        headers={"retry-after": "2"},
    )
