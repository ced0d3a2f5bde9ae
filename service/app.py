"""The service as a Litestar application: the webhooks' route, health, and the OpenAPI description of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from litestar import Litestar
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import OpenAPIResponse, Operation, Parameter, PathItem, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from aftercall.errors import LedgerUnavailable
from aftercall.ledger import Ledger
from aftercall.plugins import provider_class
from aftercall.redis_client import connect
from aftercall.settings import Settings
from service.health import health_routes
from service.metrics import WebhookFigures
from service.problems import answer_http_exception
from service.webhooks import webhook_route

PROBE_INTERVAL_S = 10.0

log = structlog.get_logger("service")


def create_app(settings: Settings, figures: WebhookFigures) -> Litestar:
    """The application for these settings. It connects to Redis when it starts, and runs on while Redis is away."""
    ledger = Ledger(connect(settings.redis_url), retention_s=settings.retention_s)
    providers = {name: provider_class(account.provider)(account) for name, account in settings.accounts.items()}

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        probing = asyncio.create_task(keep_probing(ledger))
        try:
            yield
        finally:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
            await ledger.close()

    app = Litestar(
        route_handlers=[webhook_route(providers, ledger, figures), *health_routes(ledger, figures, settings.sinks)],
        lifespan=[lifespan],
        exception_handlers={HTTPException: answer_http_exception},
        openapi_config=OpenAPIConfig(title="aftercall", version="1", use_handler_docstrings=True),
        logging_config=None,
    )
    if app.openapi_schema.paths is not None:
        app.openapi_schema.paths["/webhooks/{account}"] = _webhook_path()
    return app


async def keep_probing(ledger: Ledger) -> None:
    """Learn what the server promises, at the start and again when it may have been replaced by another."""
    known = None
    while True:
        try:
            found = await ledger.probe()
        except LedgerUnavailable as error:
            found = None
            log.error("ledger_unavailable", detail=str(error))
        if found is not None and found != known:
            known = found
            log.info("ledger_ready", durability=found.promise)
            for problem in found.problems:
                log.error("ledger_unfit", detail=problem)
        await asyncio.sleep(PROBE_INTERVAL_S)


def _webhook_path() -> PathItem:
    """The OpenAPI description of the webhooks' route, which Litestar does not make for a plain ASGI handler."""
    answers = {
        "204": "Stored; also for a duplicate, and for an event type that is not for us.",
        "400": "Not decodable, or compressed on the way.",
        "401": "The signature is missing, wrong or stale, or the webhook is replayed.",
        "404": "No such account.",
        "413": "Over the body limit of 8 MiB.",
        "503": "The ledger cannot store it now; see Retry-After.",
    }
    return PathItem(
        post=Operation(
            tags=["webhooks"],
            summary="Where a provider posts its webhooks",
            operation_id="ReceiveWebhook",
            parameters=[
                Parameter(
                    name="account",
                    param_in="path",
                    required=True,
                    schema=Schema(type=OpenAPIType.STRING),
                    description="The name of a configured account.",
                )
            ],
            request_body=RequestBody(content={}, description="The provider's JSON, as it sends it."),
            responses={status: OpenAPIResponse(description=text) for status, text in answers.items()},
        )
    )
