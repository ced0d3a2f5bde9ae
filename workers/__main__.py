"""`python -m workers`: the worker process. Stops with every problem named if configuration or Redis is wrong."""

import asyncio
import sys

import uvloop

from aftercall import settings
from aftercall.errors import ConfigurationError
from aftercall.logs import configure_logs
from aftercall.redis_client import FAILURES
from aftercall.startup import require_fit_redis
from workers.hub import Hub
from workers.main import LedgerWorker, log


def main() -> int:
    try:
        loaded = settings.load()
        require_fit_redis(loaded)
    except ConfigurationError as error:
        print(f"aftercall cannot start:\n{error}", file=sys.stderr)  # noqa: T201 - for the person who starts it
        return 3
    configure_logs()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)  # where arq's Worker looks for it
    hub = Hub(loaded)
    worker = LedgerWorker(hub)
    try:
        worker.run()
    except (asyncio.CancelledError, *FAILURES) as error:
        # Only at the end: jobs that took longer than the shutdown may, or a goodbye to a Redis that is gone.
        log.warning("worker_stopped_early", reason=type(error).__name__)
    finally:
        loop.run_until_complete(hub.close())
        loop.close()
    log.info("worker_stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
