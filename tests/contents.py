"""What Redis holds, key by key, as an intruder would read it."""

from collections.abc import AsyncIterator
from typing import Any

import zstandard
from redis.asyncio import Redis

READ: dict[str, tuple[Any, ...]] = {
    "hash": ("HVALS",),
    "zset": ("ZRANGE", 0, -1),
    "set": ("SMEMBERS",),
    "list": ("LRANGE", 0, -1),
    "string": ("GET",),
    "stream": ("XRANGE", "-", "+"),
}
ZSTD = b"\x28\xb5\x2f\xfd"


async def contents(redis: Redis) -> AsyncIterator[tuple[str, bytes]]:
    """Each value with its key, decompressed where it was compressed."""
    async for key in redis.scan_iter("*", count=1000):
        kind = (await redis.type(key)).decode()
        if kind not in READ:
            continue  # gone meanwhile
        command, *rest = READ[kind]
        held = await redis.execute_command(command, key, *rest)
        for part in held if isinstance(held, (list, set)) else [held]:
            raw = part if isinstance(part, bytes) else repr(part).encode()
            yield key.decode(), zstandard.ZstdDecompressor().decompress(raw) if raw.startswith(ZSTD) else raw


async def words_in(redis: Redis, word: str) -> list[str]:
    """The keys that hold the word somewhere, compressed or not."""
    return [key async for key, raw in contents(redis) if word.encode() in raw]
