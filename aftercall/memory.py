"""The notes of one sink, in Redis: what `Sink.memory` is in a worker."""

from aftercall.keys import memory_key
from aftercall.redis_client import SharedPipeline


class SharedMemory:
    """See `aftercall.sinks.base.Memory`. Raises `LedgerUnavailable` when Redis cannot do it now."""

    def __init__(self, pipeline: SharedPipeline, sink: str) -> None:
        self._pipeline = pipeline
        self._sink = sink

    async def get(self, key: str) -> str | None:
        value: bytes | None = await self._pipeline.command("GET", memory_key(self._sink, key))
        return None if value is None else value.decode()

    async def set(self, key: str, value: str, *, for_s: float = 7 * 86400) -> None:
        await self._pipeline.command("SET", memory_key(self._sink, key), value, "PX", max(1, int(for_s * 1000)))

    async def add(self, key: str, value: str, *, for_s: float = 7 * 86400) -> bool:
        name = memory_key(self._sink, key)
        return await self._pipeline.command("SET", name, value, "PX", max(1, int(for_s * 1000)), "NX") is not None

    async def delete(self, key: str) -> None:
        await self._pipeline.command("DEL", memory_key(self._sink, key))
