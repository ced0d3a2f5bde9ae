"""PostgreSQL ≥ 12: the calls, their turns and their events as rows of tables, in a database of the user's own.

Delivered means that the server answered COMMIT. The event's id is the primary key of `events`: one that comes again
changes nothing. Events may come in any order: a row of `calls` ends as the one that knows most of each field told it.
`aftercall sinks migrate` makes the tables. No message of the server is passed on: it may quote what was said.

SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html (2026-11). Statements are not cached, for
PgBouncer in transaction mode: https://magicstack.github.io/asyncpg/current/faq.html (2026-11).
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import asyncpg
import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.sinks import postgres_tables as tables
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig, url_scheme
from aftercall.sinks.postgres_merge import merge, without_nul

# Data that it cannot hold, a constraint, a view's check, a limit of the program's, somebody's trigger.
_FOR_GOOD = ("22", "23", "44", "54", "P0")
_NOT_MIGRATED = "its tables are not there or of an older version: run `aftercall sinks migrate`"
_WORDS = {
    "08": "the connection broke",
    "22": "it cannot hold the event's data",
    "23": "a constraint refuses the event",
    "25006": "it is read-only",
    "28": "it does not let this user in",
    "3D": "there is no such database",
    "3F": _NOT_MIGRATED,
    "40": "another transaction came in between",
    "42501": "this user lacks a right to the schema or its tables",
    "42703": _NOT_MIGRATED,
    "42P01": _NOT_MIGRATED,
    "42P07": "the schema has tables of these names that are not ours: set `schema` to another",
    "53": "it lacks disk, memory or connections",
    "54": "the event is beyond one of its limits",
    "55P03": "somebody else locks its tables",
    "57": "it was stopped, or is starting",
    "57014": "a statement took too long",
    "P0": "a trigger refuses the event",
}


class Postgres(Sink):
    class Config(SinkConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the database: postgres:// or postgresql://")]
        schema: Annotated[
            str, Meta(pattern=r"\A[a-z_][a-z0-9_]{0,62}\Z", description="the schema that holds the tables")
        ] = "aftercall"
        turns: Annotated[bool, Meta(description="whether each turn of a transcript also gets a row")] = True
        connections: Annotated[int, Meta(ge=1, le=32, description="how many a worker keeps at most")] = 4

        def __post_init__(self) -> None:
            one_port = re.sub(r":\d+,", ",", self.url)  # several hosts may be named, each with its port
            if url_scheme(one_port) not in ("postgres", "postgresql"):
                raise ValueError(
                    "url: expected postgres:// or postgresql://, and a number as the port; "
                    "percent-encode what is special in a password (/ is %2F)"
                )

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._url, self._schema, self._turns, self._size = config.url, config.schema, config.turns, config.connections
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        if self._pool is None:  # connects with the first delivery, and again after an outage
            self._pool = await asyncpg.create_pool(
                self._url, min_size=0, max_size=self._size, statement_cache_size=0, reset=_as_it_is
            )

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()  # a server that is stuck would not answer to a farewell
            self._pool = None

    def render(self, delivery: Delivery) -> dict[str, Any]:
        return cast(dict[str, Any], without_nul(msgspec.to_builtins(delivery.event)))

    async def deliver(self, delivery: Delivery) -> str:
        event = self.render(delivery)
        key = tuple(event["data"]["call"][part] for part in ("provider", "account", "id"))
        async with self._transaction() as connection:
            row = await connection.fetchrow(self._sql(tables.LOCK_CALL), *key)
            assert row is not None  # noqa: S101 - it was inserted or updated
            if not await connection.fetchval(self._sql(tables.ADD_EVENT), *key, json.dumps(event)):
                return "already there"
            call, told = json.loads(row["call"]), json.loads(row["told"])
            changed = merge(call, told, event)
            known = (json.dumps(call), json.dumps(told), event["data"]["sequence"], event["type"] == "call.settled")
            await connection.execute(self._sql(tables.WRITE_CALL), *key, *known)
            if self._turns and "transcript" in changed:
                await connection.execute(self._sql(tables.DROP_TURNS), *key)
                await connection.execute(self._sql(tables.ADD_TURNS), *key, json.dumps(call["transcript"]))
        return "stored"

    async def erase(self, call: Call) -> None:
        async with self._transaction() as connection:
            key = (without_nul(part) for part in (call.provider, call.account, call.id))
            await connection.execute(self._sql(tables.ERASE), *key)

    async def migrate(self) -> list[str]:
        done = []
        async with self._transaction() as connection:
            await connection.execute(tables.ONE_AT_A_TIME, self._schema)
            if (encoding := await connection.fetchval("show server_encoding")) != "UTF8":
                raise SinkError(f"the database's encoding is {encoding}: make one with UTF8", permanent=True)
            # Asked before, since `if not exists` wants the right to make one also where it is there.
            if await connection.fetchval("select to_regnamespace($1) is null", self._schema):
                await connection.execute(self._sql("create schema {s}"))
                done.append(f"made the schema {self._schema}")
            if await connection.fetchval("select to_regclass($1) is null", self._sql("{s}.aftercall_schema")):
                await connection.execute(self._sql(tables.VERSIONS))
            version = await connection.fetchval(self._sql("select coalesce(max(version), 0) from {s}.aftercall_schema"))
            for number, migration in enumerate(tables.MIGRATIONS[version:], version + 1):
                await connection.execute(self._sql(migration))
                await connection.execute(self._sql("insert into {s}.aftercall_schema values ($1)"), number)
                done.append(f"brought {self._schema} to version {number}")
        return done

    def _sql(self, statement: str) -> str:
        return statement.format(s=f'"{self._schema}"')

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"]:
        assert self._pool is not None, "not opened"  # noqa: S101
        try:
            async with self._pool.acquire() as connection:
                try:
                    await connection.execute(tables.BEGIN)
                    yield connection
                    await connection.execute("commit")
                except BaseException:
                    # Also when cancelled: a server that is stuck would not answer to a rollback. It does one by itself.
                    connection.terminate()
                    raise
        except asyncpg.PostgresError as error:
            raise _refusal(error.sqlstate or "none") from None
        except (OSError, UnicodeError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise SinkError(f"Postgres does not answer ({type(error).__name__})") from None


def _refusal(sqlstate: str) -> SinkError:
    words = _WORDS.get(sqlstate) or _WORDS.get(sqlstate[:2]) or "it refused"
    return SinkError(f"Postgres: {words} (SQLSTATE {sqlstate})", permanent=sqlstate[:2] in _FOR_GOOD)


async def _as_it_is(_: Any) -> None:
    """Nothing is to be reset: what a transaction sets ends with it."""
