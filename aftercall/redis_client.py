"""The connection to Redis or Valkey, and the pipeline that concurrent callers share. Knows no key."""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import hiredis
from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aftercall.errors import LedgerUnavailable
from aftercall.jobs import ARQ_QUEUE, deserialize, serialize
from aftercall.sentinel import FollowsPrimary, NoPrimaryError, Sentinels, is_sentinel_url, parse_sentinel_url

MAX_CONNECTIONS = 12  # small plans allow 20 to all processes together
PARALLEL_WRITES = 2
PARALLEL_WAITS = 8  # waiting for the disk takes up to a second
WAIT_REPLICAS_MS = 1500

# Every failure of a connection that redis-py lets through, the built-in ones too.
FAILURES = (RedisError, OSError, asyncio.TimeoutError)


Command = tuple[Any, ...]


class _Connection:
    """Mixed into redis-py's connection, which packs a pipeline in Python even where hiredis could (5.3)."""

    doubtful = False  # its server does not answer, or has become a replica

    def pack_commands(self, commands: Iterable[Command]) -> list[bytes]:
        return [hiredis.pack_command(tuple(command)) for command in commands]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except RedisTimeoutError:
            self.doubtful = True
            raise
        except ResponseError as error:
            if isinstance(error, ReadOnlyError) or str(error).startswith(("MASTERDOWN", "UNBLOCKED")):
                self.doubtful = True
            raise


class _Pool(BlockingConnectionPool):
    """Closes every connection that is not in use when one of them has become doubtful.

    The next ones ask the Sentinels, the DNS or the proxy anew, and find who is the primary now.
    """

    sentinels: Sentinels | None = None

    async def release(self, connection: Any) -> None:
        if connection.doubtful:
            connection.doubtful = False
            for idle in (connection, *self._available_connections):
                await idle.disconnect(nowait=True)  # without waiting: nobody can take one meanwhile
        await super().release(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if self.sentinels is not None:
            await self.sentinels.close()


def connect(url: str, *, timeout_s: float = 2.0, max_connections: int = MAX_CONNECTIONS) -> ArqRedis:
    """A client for redis://, rediss:// or unix://, with percent-decoded credentials, timeouts and keepalive.

    `redis+sentinel://` and `rediss+sentinel://` lead to the primary (`sentinel.SentinelUrl`). `rediss` is encrypted
    without checking who answers, as Heroku's Key-Value Store needs with its self-signed certificate;
    `?ssl_cert_reqs=required` (and `&ssl_ca_certs=FILE`) in the URL checks it.
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
    behind = parse_sentinel_url(url) if is_sentinel_url(url) else None
    url = behind.server_url if behind else url
    parts = urlsplit(url)
    if parts.scheme != "unix":
        options["socket_keepalive"] = True
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parse_qs(parts.query):
        options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    pool = _Pool.from_url(url, **options)
    made = pool.connection_class
    if behind:
        pool.sentinels = Sentinels(behind, made, pool.connection_kwargs)
        made = type("FollowingConnection", (FollowsPrimary, made), {"sentinels": pool.sentinels})
    pool.connection_class = type("Connection", (_Connection, made), {})
    return ArqRedis(pool, job_serializer=serialize, job_deserializer=deserialize, default_queue_name=ARQ_QUEUE)


def verifies_certificate(url: str) -> bool:
    """Whether this URL's connection checks the server's certificate (or needs none, being local or unencrypted)."""
    parts = urlsplit(parse_sentinel_url(url).server_url if is_sentinel_url(url) else url)
    wanted = parse_qs(parts.query).get("ssl_cert_reqs", ["none"])[0]
    return parts.scheme != "rediss" or wanted not in ("none", str(ssl.CERT_NONE.value))


_AT_ONCE = 500


class Script:
    """A Lua script by its SHA-1, as EVALSHA wants it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class _Waiting:
    """One command and whoever waits for its answer."""

    __slots__ = ("answer", "command", "deadline", "script")

    def __init__(self, command: Command, script: Script | None, answer: asyncio.Future[Any], deadline: float) -> None:
        self.command = command
        self.script = script
        self.answer = answer
        self.deadline = deadline


class SharedPipeline:
    """Commands of concurrent callers go out together: whoever comes while one pipeline is under way joins the next.

    Under load that makes one round trip (and one fsync) out of dozens; alone, a command goes out at once. Two pipelines
    may be under way, so that one is on the wire while the other is on the disk. Every command is answered within
    `timeout_s`, with `LedgerUnavailable` if need be. `wait_aof_ms` appends a WAITAOF that the server answers when
    everything before it is on its disk, `wait_replicas` a WAIT until so many replicas have it.
    """

    def __init__(
        self, redis: ArqRedis, *, timeout_s: float = 2.5, max_batch: int = 128, max_waiting: int = 4096
    ) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: list[_Waiting] = []  # not sent yet
        self._unanswered: deque[_Waiting] = deque()  # in the order of their deadlines; the answered leave later
        self._watch: asyncio.TimerHandle | None = None
        self._flushes: set[asyncio.Task[None]] = set()
        self.wait_aof_ms = 0
        self.wait_replicas = 0

    async def command(self, *args: Any) -> Any:
        """Run one command; its answer, or `LedgerUnavailable`."""
        return await self._submit(args, None)

    async def commands(self, many: Sequence[Command]) -> list[Any]:
        """Run any number of commands, so many at once that they do not crowd the pipeline; their answers in order."""
        answers: list[Any] = []
        for start in range(0, len(many), _AT_ONCE):
            answers += await asyncio.gather(
                *(self._submit(command, None) for command in many[start : start + _AT_ONCE])
            )
        return answers

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script; its answer, or `LedgerUnavailable`."""
        return await self._submit(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    def _submit(self, command: Command, script: Script | None) -> asyncio.Future[Any]:
        if len(self._waiting) >= self._max_waiting:
            raise LedgerUnavailable("too many requests wait for Redis")
        loop = asyncio.get_running_loop()
        entry = _Waiting(command, script, loop.create_future(), loop.time() + self._timeout_s)
        self._waiting.append(entry)
        self._unanswered.append(entry)
        if self._watch is None:
            self._watch = loop.call_at(entry.deadline, self._give_up)
        if len(self._flushes) < (PARALLEL_WAITS if self.wait_aof_ms or self.wait_replicas else PARALLEL_WRITES):
            self._flushes.add(loop.create_task(self._flush()))
        return entry.answer

    def _give_up(self) -> None:
        """Answer whoever has waited too long. One timer for all of them is cheaper than one for each."""
        loop = asyncio.get_running_loop()
        while self._unanswered and (self._unanswered[0].answer.done() or self._unanswered[0].deadline <= loop.time()):
            answer = self._unanswered.popleft().answer
            if not answer.done():
                answer.set_exception(LedgerUnavailable("Redis does not answer in time"))
        self._watch = loop.call_at(self._unanswered[0].deadline, self._give_up) if self._unanswered else None

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
                batch = [entry for entry in batch if not entry.answer.done()]  # given up or cancelled meanwhile
                if batch:
                    await self._exchange(batch)
        finally:
            # Not in a done callback: that runs later, and who comes in between would find nobody to join.
            self._flushes.discard(cast(asyncio.Task[None], asyncio.current_task()))

    async def _exchange(self, batch: Sequence[_Waiting]) -> None:
        """Send a batch and hand out its answers."""
        try:
            answers = await self._execute(batch)
        except FAILURES as error:
            answers = [unavailable(error)] * len(batch)
        for entry, answer in zip(batch, answers, strict=True):
            if entry.answer.done():
                continue
            if isinstance(answer, LedgerUnavailable):
                entry.answer.set_exception(answer)
            elif isinstance(answer, Exception):
                entry.answer.set_exception(unavailable(answer))
            else:
                entry.answer.set_result(answer)

    async def _execute(self, batch: Sequence[_Waiting]) -> list[Any]:
        answers = await self._pipeline([entry.command for entry in batch])
        lost = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if lost:  # a restart or SCRIPT FLUSH emptied the server's cache
            for source in {entry.script.source for entry in batch if entry.script is not None}:
                await self._redis.script_load(source)
            again = await self._pipeline([batch[index].command for index in lost])
            for index, answer in zip(lost, again, strict=True):
                answers[index] = answer
        return answers

    async def _pipeline(self, commands: list[Command]) -> list[Any]:
        waits: list[Command] = []
        if self.wait_aof_ms:
            waits.append(("WAITAOF", 1, 0, self.wait_aof_ms))
        if self.wait_replicas:
            waits.append(("WAIT", self.wait_replicas, WAIT_REPLICAS_MS))
        pipe = self._redis.pipeline(transaction=False)
        for command in (*commands, *waits):
            pipe.execute_command(*command)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        for wait in reversed(waits):
            answer = answers.pop()
            if isinstance(answer, Exception):
                reason = _first_words(answer)
            elif wait[0] == "WAITAOF":
                reason = "" if answer[0] >= 1 else "not on disk in time"
            else:
                reason = "" if answer >= self.wait_replicas else "not on its replicas in time"
            if reason:
                return [LedgerUnavailable(f"Redis cannot promise durability: {reason}")] * len(commands)
        return answers


def unavailable(error: BaseException) -> LedgerUnavailable:
    """What callers are told of a failure: its kind, and no detail that may quote an argument or a password."""
    if isinstance(error, NoPrimaryError):
        return LedgerUnavailable(str(error))
    if isinstance(error, ResponseError):
        return LedgerUnavailable(f"Redis refused: {_first_words(error)}")
    return LedgerUnavailable(f"Redis does not answer ({type(error).__name__})")


def _first_words(error: Exception) -> str:
    """The kind of a Redis error without its details: `OOM command not allowed …` → `OOM`."""
    return type(error).__name__ if type(error).__name__ != "ResponseError" else str(error).partition(" ")[0]
