"""What a worker has open for its whole life: the ledger, the providers, the sinks and their HTTP clients."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import structlog

from aftercall.call import Call, Recording
from aftercall.client import make_client
from aftercall.ledger import Ledger
from aftercall.plugins import provider_class
from aftercall.providers.base import Provider
from aftercall.redis_client import connect
from aftercall.settings import Settings
from aftercall.sink_settings import SinkSettings
from aftercall.sinks.base import Memory, Sink

ARCHIVE_S = 5.0  # for the answer whether a recording is there

log = structlog.get_logger("workers")


class OpenSink:
    """A configured sink. Opened at its first delivery, so that a dead destination delays no other's start."""

    def __init__(self, settings: SinkSettings, http: httpx.AsyncClient, memory: Memory) -> None:
        self.settings = settings
        self._sink = settings.sink(settings.name, settings.config, http)
        self._sink.memory = memory
        self._opened = False
        self._opening = asyncio.Lock()

    async def opened(self) -> Sink:
        """The sink, ready to deliver; raises what its `open` raises."""
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    await self._sink.open()
                    self._opened = True
        return self._sink

    async def archived_recording(self, call: Call) -> Recording | None:
        """The call's recording where this sink keeps it; None if it has none, or does not answer now."""
        try:
            async with asyncio.timeout(ARCHIVE_S):
                sink = await self.opened()
                keeps: Callable[[Call], Awaitable[Recording | None]] = sink.archived_recording  # type: ignore[attr-defined]
                return await keeps(call)
        except Exception as error:
            log.warning("archive_not_asked", sink=self.settings.name, error=type(error).__name__)
            return None

    async def close(self) -> None:
        if self._opened:
            await self._sink.close()


class Hub:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(
            connect(settings.redis_url), retention_s=settings.retention_s, settle_after_s=settings.settle_after_s
        )
        self._to_providers = make_client(guarded=False)
        self._to_public = make_client(guarded=True, timeout_s=30.0)
        self._to_anywhere = make_client(guarded=False, timeout_s=30.0)  # sinks that may reach a private network
        self.providers: dict[str, Provider] = {
            name: provider_class(account.provider)(account, self._to_providers)
            for name, account in settings.accounts.items()
        }
        self.sinks = {
            name: OpenSink(
                sink,
                self._to_anywhere if sink.allow_private_network else self._to_public,
                self.ledger.memory(name),
            )
            for name, sink in settings.sinks.items()
        }

    async def close(self) -> None:
        for name, sink in self.sinks.items():
            try:
                await sink.close()
            except Exception as error:
                log.warning("sink_close_failed", sink=name, error=type(error).__name__)
        for client in (self._to_providers, self._to_public, self._to_anywhere):
            await client.aclose()
