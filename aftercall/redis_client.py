"""The connection to Redis or Valkey, and the pipeline that concurrent callers share. Knows no key."""

import asyncio
import hashlib
import ssl
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import NoScriptError, RedisError

from aftercall.errors import LedgerUnavailable
from aftercall.jobs import ARQ_QUEUE, deserialize, serialize

MAX_CONNECTIONS = 12  # small plans allow 20 to all processes together
PARALLEL_WAITS = 8

# Every failure of a connection that redis-py lets through, the built-in ones too.
FAILURES = (RedisError, OSError, asyncio.TimeoutError)


def connect(url: str, *, timeout_s: float = 2.0, max_connections: int = MAX_CONNECTIONS) -> ArqRedis:
    """A client for redis://, rediss:// or unix://, with percent-decoded credentials, timeouts and keepalive.

    `rediss://` is encrypted without checking who answers, as Heroku's Key-Value Store needs with its self-signed
    certificate; `?ssl_cert_reqs=required` (and `&ssl_ca_certs=FILE`) in the URL checks it.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": 15,
        # One more try on a fresh connection: the server or a proxy may have closed an idle one.
        "retry": Retry(ConstantBackoff(0.05), 1),
        "retry_on_error": [ConnectionError, OSError],
        "max_connections": max_connections,
        "timeout": timeout_s,
        # No CLIENT SETINFO: it comes before the first health check, and when that fails redis-py 5 connects again from
        # within itself, to the limit of recursion. A silent server then took minutes, a missing password 5 s of CPU.
        "lib_name": None,
        "lib_version": None,
    }
    parts = urlsplit(url)
    if parts.scheme != "unix":
        options["socket_keepalive"] = True
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parse_qs(parts.query):
        options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    pool: ConnectionPool = BlockingConnectionPool.from_url(url, **options)
    return ArqRedis(pool, job_serializer=serialize, job_deserializer=deserialize, default_queue_name=ARQ_QUEUE)


def verifies_certificate(url: str) -> bool:
    """Whether this URL's connection checks the server's certificate (or needs none, being local or unencrypted)."""
    parts = urlsplit(url)
    wanted = parse_qs(parts.query).get("ssl_cert_reqs", ["none"])[0]
    return parts.scheme != "rediss" or wanted not in ("none", str(ssl.CERT_NONE.value))


class Script:
    """A Lua script by its SHA-1, as EVALSHA wants it."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class SharedPipeline:
    """Commands of concurrent callers go out together: whoever comes while one pipeline is under way joins the next.

    Under load that makes one round trip (and one fsync) out of dozens; alone, a command goes out at once. `wait_aof_ms`
    appends a WAITAOF that the server answers when everything before it is on its disk.
    """

    def __init__(self, redis: ArqRedis, *, max_batch: int = 128, max_waiting: int = 4096) -> None:
        self._redis = redis
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: list[tuple[tuple[Any, ...], Script | None, asyncio.Future[Any]]] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self.wait_aof_ms = 0

    async def command(self, *args: Any) -> Any:
        """Run one command; its answer, or `LedgerUnavailable`."""
        return await self._submit(args, None)

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script; its answer, or `LedgerUnavailable`."""
        return await self._submit(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    async def _submit(self, args: tuple[Any, ...], script: Script | None) -> Any:
        if len(self._waiting) >= self._max_waiting:
            raise LedgerUnavailable("too many requests wait for Redis")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((args, script, answer))
        # Waiting for the disk takes up to a second: then several pipelines at once, each on its own connection.
        if len(self._flushes) < (PARALLEL_WAITS if self.wait_aof_ms else 1):
            self._flushes.add(asyncio.create_task(self._flush()))
        return await answer

    async def _flush(self) -> None:
        try:
            await self._flush_waiting()
        finally:
            # Not in a done callback: that runs later, and who comes in between would find nobody to join.
            self._flushes.discard(cast(asyncio.Task[None], asyncio.current_task()))

    async def _flush_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            batch = [entry for entry in batch if not entry[2].done()]  # the caller may have given up meanwhile
            if not batch:
                continue
            try:
                answers = await self._execute(batch)
            except FAILURES as error:
                answers = [LedgerUnavailable(f"Redis does not answer ({type(error).__name__})")] * len(batch)
            for (_, _, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    unavailable = isinstance(answer, LedgerUnavailable)
                    future.set_exception(
                        answer if unavailable else LedgerUnavailable(f"Redis refused: {_first_words(answer)}")
                    )
                else:
                    future.set_result(answer)

    async def _execute(self, batch: list[tuple[tuple[Any, ...], Script | None, asyncio.Future[Any]]]) -> list[Any]:
        answers = await self._pipeline([args for args, _, _ in batch])
        lost = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if lost:  # a restart or SCRIPT FLUSH emptied the server's cache
            for script in {batch[index][1] for index in lost}:
                assert script is not None  # noqa: S101 - only EVALSHA answers NOSCRIPT
                await self._redis.script_load(script.source)
            again = await self._pipeline([batch[index][0] for index in lost])
            for index, answer in zip(lost, again, strict=True):
                answers[index] = answer
        return answers

    async def _pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        if self.wait_aof_ms:
            pipe.execute_command("WAITAOF", 1, 0, self.wait_aof_ms)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        if self.wait_aof_ms:
            fsynced = answers.pop()
            if isinstance(fsynced, Exception) or fsynced[0] < 1:
                reason = _first_words(fsynced) if isinstance(fsynced, Exception) else "not on disk in time"
                return [LedgerUnavailable(f"Redis cannot promise durability: {reason}")] * len(commands)
        return answers


def _first_words(error: Exception) -> str:
    """The kind of a Redis error without its details, which may quote arguments: `OOM command not allowed …` → `OOM`."""
    return type(error).__name__ if type(error).__name__ != "ResponseError" else str(error).partition(" ")[0]
