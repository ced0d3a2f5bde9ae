"""`python -m service`: the web process. Stops with every problem named if configuration or Redis is wrong."""

import asyncio
import gc
import logging
import sys
from functools import partial
from typing import cast

import uvicorn

from aftercall import settings
from aftercall.errors import ConfigurationError
from aftercall.logs import configure_logs
from aftercall.startup import require_fit_redis
from service.app import create_app, log
from service.metrics import WebhookFigures
from service.protocol import LimitedProtocol

SHUTDOWN_TIMEOUT_S = 20


def main() -> int:
    try:
        loaded = settings.load()
        require_fit_redis(loaded)
    except ConfigurationError as error:
        print(f"aftercall cannot start:\n{error}", file=sys.stderr)  # noqa: T201 - for the person who starts it
        return 3
    configure_logs()
    # The protocol logs it with its cause.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")
    # A request leaves no cycles behind. Collecting seldom, and never what the start made, halves p99 under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    log.info("service_starts", accounts=list(loaded.accounts), host=loaded.host, port=loaded.port)
    if not loaded.sinks:
        log.warning("no_sink", detail="no sink is configured: events stay in the ledger and go nowhere")
    figures = WebhookFigures()
    uvicorn.run(
        create_app(loaded, figures),
        host=loaded.host,
        port=loaded.port,
        http=cast(type[asyncio.Protocol], partial(LimitedProtocol, refused=figures.refused)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks where a request came from
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
