"""What both processes look at before they start."""

import asyncio

from aftercall.durability import inspect
from aftercall.errors import ConfigurationError, LedgerUnavailable
from aftercall.redis_client import connect
from aftercall.settings import Settings

LOOK_S = 2.5


def require_fit_redis(settings: Settings) -> None:
    """Raise `ConfigurationError` if this Redis would lose webhooks, whatever else is done.

    A server that cannot be reached stops no start, since it may come back: webhooks are answered 503 and workers wait.
    Neither does a replica, since a failover may be under way.
    """
    problems = asyncio.run(_unfit(settings.redis_url))
    if problems:
        raise ConfigurationError([f"REDIS_URL: {problem}" for problem in problems])


async def _unfit(url: str) -> tuple[str, ...]:
    redis = connect(url)
    try:
        async with asyncio.timeout(LOOK_S):
            return (await inspect(redis)).refuse
    except (LedgerUnavailable, TimeoutError):
        return ()
    finally:
        await redis.aclose(close_connection_pool=True)
