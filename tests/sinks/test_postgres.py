import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, ClassVar

import asyncpg
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Call, Cost, CostItem, End, Privacy, Recording, Tool, Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks import postgres_tables as tables
from aftercall.sinks.postgres import Postgres
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import until
from tests.servers.postgres import PostgresServer

SAID = "sesame-vermilion"
_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    server.wants_password("locked")
    with server:
        TestContract.server = server
        yield server


class Sinks:
    """Makes sinks that are open, in a schema that no other test has, and closes them at the end of the test."""

    def __init__(self, server: PostgresServer, http: httpx.AsyncClient) -> None:
        self.server, self._http = server, http
        self.schema = f"s{next(_numbers)}"
        self.made: list[Postgres] = []

    async def make(self, *, migrated: bool = True, url: str | None = None, **options: Any) -> Postgres:
        made = {"url": url or self.server.url(), "schema": self.schema, **options}
        self.made.append(Postgres("own", msgspec.convert(made, Postgres.Config), self._http))
        await self.made[-1].open()
        if migrated:
            await self.made[-1].migrate()
        return self.made[-1]


@pytest.fixture
async def sinks(server: PostgresServer) -> AsyncIterator[Sinks]:
    async with make_client(guarded=False) as http:
        sinks = Sinks(server, http)
        yield sinks
        for sink in sinks.made:
            await sink.close()


@pytest.fixture
async def database(sinks: Sinks) -> AsyncIterator[asyncpg.Connection]:
    """A connection of our own to the tables of these sinks, as the owner."""
    connection = await asyncpg.connect(sinks.server.url(), server_settings={"search_path": sinks.schema})
    yield connection
    await connection.close()


async def the_call(database: asyncpg.Connection) -> dict[str, Any]:
    """The only row of `calls`."""
    [row] = await database.fetch("select * from calls")
    return {name: json.loads(row[name]) if name in JSON else row[name] for name in row.keys()}  # noqa: SIM118


JSON = ("call", "told", "tags", "metadata", "variables")


async def refused(sink: Postgres, event: CallEvent | None = None) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery(event or an_event()))
    return caught.value


def all_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


# The rows


async def test_a_call_is_a_row(sinks: Sinks, database: asyncpg.Connection) -> None:
    call = a_call(
        agent=Agent(id="agent_1", name="Front desk", version="3"),
        started_at="2026-11-20T12:01:55.000Z",
        ended_at="2026-11-20T12:05:00.400Z",
        recording=Recording(url="https://media.example.com/7f3.wav", expires_at="2026-11-21T12:05:00.000Z"),
        log_url="https://media.example.com/7f3.log",
        error="none",
        privacy=Privacy(storage="basic"),
        metadata={"order": 12},
        variables={"name": "Mirela"},
    )
    event = an_event(type="call.settled", call=call, tags={"client": "acme"})

    assert await (await sinks.make()).deliver(a_delivery(event)) == "stored"

    row = await the_call(database)
    assert msgspec.convert(row["call"], Call) == call
    assert msgspec.to_builtins(call) == row["call"]
    assert {name: str(value) for name, value in row.items() if name not in (*JSON, "updated_at")} == {
        "provider": "retell",
        "account": "acme",
        "call_id": "call_7f3",
        "agent_id": "agent_1",
        "agent_name": "Front desk",
        "agent_version": "3",
        "channel": "phone",
        "direction": "inbound",
        "from_number": "+15550100123",
        "to_number": "+15550100177",
        "status": "ended",
        "end_reason": "user_hangup",
        "ended_by": "user",
        "provider_reason": "caller_left",
        "error": "none",
        "started_at": "2026-11-20 12:01:55+00:00",
        "ended_at": "2026-11-20 12:05:00.400000+00:00",
        "duration_ms": "185400",
        "cost": "0.2140",
        "currency": "USD",
        "summary": "Mirela Okafor moved her fitting to Tuesday.",
        "sentiment": "positive",
        "successful": "True",
        "voicemail": "None",
        "recording_url": "https://media.example.com/7f3.wav",
        "recording_expires_at": "2026-11-21 12:05:00+00:00",
        "log_url": "https://media.example.com/7f3.log",
        "storage": "basic",
        "revision": "2",
        "settled": "True",
    }
    assert (row["tags"], row["metadata"], row["variables"]) == ({"client": "acme"}, {"order": 12}, {"name": "Mirela"})


async def test_each_turn_is_a_row(sinks: Sinks, database: asyncpg.Connection) -> None:
    turns = [
        Turn(role="agent", text="Good morning.", start_ms=0, end_ms=900, interrupted=True, latency={"e2e_ms": 700}),
        Turn(role="tool", tool=Tool(id="t1", name="move", arguments={"day": "tue"}, ok=True)),
    ]
    await (await sinks.make()).deliver(a_delivery(an_event(call=a_call(transcript=turns))))

    columns = "position, role, text, start_ms, end_ms, interrupted, tool ->> 'name', latency ->> 'e2e_ms', tool is null"
    rows = await database.fetch(f"select {columns} from turns where call_id = 'call_7f3' order by position")  # noqa: S608

    assert [tuple(row) for row in rows] == [
        (1, "agent", "Good morning.", 0, 900, True, None, "700", True),
        (2, "tool", None, None, None, None, "move", None, False),
    ]


async def test_turns_have_no_rows_if_they_are_not_wanted(sinks: Sinks, database: asyncpg.Connection) -> None:
    await (await sinks.make(turns=False)).deliver(a_delivery())

    assert await database.fetchval("select count(*) from turns") == 0
    assert len((await the_call(database))["call"]["transcript"]) == 4


async def test_each_event_is_a_row(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink, event = await sinks.make(), an_event(complete=False)
    await sink.deliver(a_delivery(event))

    [row] = await database.fetch("select * from events")

    assert [row[name] for name in ("id", "provider", "account", "call_id", "type", "sequence", "complete")] == [
        *("evt_lantern", "retell", "acme", "call_7f3", "call.ended", 2, False),
    ]
    assert f"{row['time']} {row['received_at']}" == "2026-11-20 12:05:00+00:00 2026-11-20 12:05:01.120000+00:00"
    assert msgspec.convert(json.loads(row["event"]), CallEvent) == event
    assert json.loads(row["event"]) == sink.render(a_delivery(event))


async def test_an_event_that_comes_again_changes_nothing(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink, another = await sinks.make(), await sinks.make()
    await sink.deliver(a_delivery())
    before = await the_call(database)

    again = [worker.deliver(a_delivery(attempt=2)) for worker in (sink, another) * 8]
    assert set(await asyncio.gather(*again)) == {"already there"}

    assert await the_call(database) == before
    assert await database.fetchval("select count(*) from events") == 1


async def test_what_was_said_arrives_whole_but_for_the_character_postgres_lacks(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    said = 'a\0b \\u0000 \\ " \u2028 你好 👋🏽 \x1b[0m \ufffe'
    call = a_call(transcript=[Turn(role="user", text=said)], metadata={"k\0": [said, 1e300, 0.1, 2**63 - 1]})
    sink = await sinks.make()
    await sink.deliver(a_delivery(an_event(call=call)))
    await sink.deliver(a_delivery(an_event(id="evt_2", type="call.analyzed", call=call, sequence=3)))

    assert await database.fetchval("select text from turns") == said.replace("\0", "")
    assert (await the_call(database))["metadata"] == {"k": [said.replace("\0", ""), 10**300, 0.1, 2**63 - 1]}


async def test_accounts_that_share_a_call_id_have_a_row_each(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink = await sinks.make()
    for number, where in enumerate(({}, {"account": "quay"}, {"provider": "ultravox"})):
        await sink.deliver(a_delivery(an_event(id=f"evt_{number}", call=a_call(**where))))

    assert await database.fetchval("select count(*) from calls") == 3
    assert await database.fetchval("select count(*) from turns") == 12


# Events of one call


def told(number: int, type_: str, *, complete: bool = True, **call: Any) -> CallEvent:
    """An event that knows no more of the call than what is given here."""
    known = Call(**{"id": "call_7f3", "provider": "retell", "account": "acme", "status": "ongoing", **call})
    return an_event(id=f"evt_{number}", type=type_, sequence=number, complete=complete, call=known)


async def made_of(sinks: Sinks, database: asyncpg.Connection, *events: CallEvent) -> dict[str, Any]:
    """The row that these events make, in the order they come."""
    sink = await sinks.make()
    for event in events:
        await sink.deliver(a_delivery(event))
    return await the_call(database)


HANGUP = End(reason="user_hangup", by="user", provider_reason="caller_left")


@pytest.mark.parametrize("type_", ["call.analyzed", "call.settled"])
async def test_a_call_that_was_over_is_not_so_no_more(sinks: Sinks, database: asyncpg.Connection, type_: str) -> None:
    row = await made_of(sinks, database, told(1, "call.ended", status="failed"), told(2, type_, status="ongoing"))

    assert row["status"] == "failed"


async def test_a_start_that_comes_late_reopens_nothing(sinks: Sinks, database: asyncpg.Connection) -> None:
    ended = told(1, "call.ended", status="ended", end=HANGUP, direction="inbound")
    row = await made_of(sinks, database, ended, told(2, "call.started", direction="outbound", from_="+15550100123"))

    assert (row["status"], row["end_reason"], row["direction"]) == ("ended", "user_hangup", "inbound")
    assert row["from_number"] == "+15550100123"  # which nobody else told
    assert row["revision"] == 2


@pytest.mark.parametrize("complete", [True, False])
async def test_what_a_later_event_does_not_know_stays(
    sinks: Sinks, database: asyncpg.Connection, complete: bool
) -> None:
    full = an_event(type="call.analyzed", call=a_call(metadata={"order": 12}), tags={"client": "acme"}, sequence=1)
    row = await made_of(
        sinks, database, full, told(2, "call.settled", complete=complete, status="ended", cost=Cost(total=None))
    )

    assert row["call"] == msgspec.to_builtins(full.data.call)
    assert (row["tags"], str(row["cost"]), row["channel"], row["settled"]) == (
        {"client": "acme"},
        "0.2140",
        "phone",
        True,
    )
    assert await database.fetchval("select count(*) from turns") == 4


async def test_the_last_knowledge_counts_and_each_part_by_itself(sinks: Sinks, database: asyncpg.Connection) -> None:
    row = await made_of(
        sinks,
        database,
        told(
            1,
            "call.ended",
            status="ended",
            analysis=Analysis(summary="old", voicemail=False),
            metadata={"a": 1, "b": 1},
        ),
        told(4, "call.analyzed", status="ended", analysis=Analysis(summary="new", custom={"x": 1}), metadata={"b": 2}),
        told(3, "call.settled", status="ended", analysis=Analysis(summary="mid", successful=False)),
    )

    assert (row["summary"], row["successful"], row["voicemail"]) == ("new", False, False)
    assert (row["call"]["analysis"]["custom"], row["metadata"]) == ({"x": 1}, {"a": 1, "b": 2})


async def test_what_belongs_together_is_told_by_one_event(sinks: Sinks, database: asyncpg.Connection) -> None:
    bill = Cost(total="0.5", items=[CostItem(name="llm", amount="0.5")])
    old = Recording(url="https://media.example.com/a", expires_at="2026-11-21T12:05:00.000Z")
    row = await made_of(
        sinks,
        database,
        told(1, "call.ended", cost=bill, recording=old, end=HANGUP),
        told(
            2,
            "call.analyzed",
            cost=Cost(total="0.7"),
            recording=Recording(url="https://media.example.com/b"),
            end=End(reason="voicemail"),
        ),
        told(3, "call.settled", end=End(reason="unknown", provider_reason="?")),
    )

    assert row["call"]["cost"] == {"currency": "USD", "total": "0.7", "items": []}
    assert (row["recording_url"], row["recording_expires_at"]) == ("https://media.example.com/b", None)
    assert (row["end_reason"], row["ended_by"], row["provider_reason"]) == ("voicemail", None, None)


async def test_a_record_scrubbed_later_does_not_replace_what_was_told_whole(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    keeps_no_names = Privacy(storage="no_pii")
    whole = [Turn(role="user", text="I am Mirela Okafor.")]
    scrubbed = [Turn(role="user", text="I am [name].")]
    row = await made_of(
        sinks,
        database,
        told(1, "call.ended", privacy=keeps_no_names, transcript=whole, from_="+15550100123"),
        told(
            2,
            "call.analyzed",
            privacy=keeps_no_names,
            transcript=scrubbed,
            from_="[number]",
            analysis=Analysis(summary="x"),
        ),
    )

    assert row["call"]["transcript"] == [msgspec.to_builtins(whole[0])]
    assert (row["from_number"], row["summary"], row["storage"]) == ("+15550100123", "x", "no_pii")


async def test_a_single_turn_is_not_taken_for_the_transcript(sinks: Sinks, database: asyncpg.Connection) -> None:
    one = told(1, "call.turn", transcript=[Turn(role="user", text="Hello?")], direction="inbound")
    row = await made_of(sinks, database, one)

    assert (row["call"]["transcript"], row["direction"]) == (None, "inbound")
    assert await database.fetchval("select count(*) from turns") == 0


async def test_a_shorter_transcript_that_knows_better_leaves_no_turn_of_the_longer(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    lines = [Turn(role="user", text=text) for text in ("One.", "Two.", "Three.")]
    await made_of(
        sinks, database, told(1, "call.ended", transcript=lines), told(2, "call.settled", transcript=lines[1:])
    )

    rows = await database.fetch("select position, text from turns order by position")
    assert [tuple(row) for row in rows] == [(1, "Two."), (2, "Three.")]


async def test_events_of_a_call_at_once_do_not_stand_in_each_others_way(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    workers = [await sinks.make(), await sinks.make()]
    deliveries = [a_delivery(an_event(id=f"evt_{number}", sequence=number)) for number in range(1, 33)]

    await asyncio.gather(*(worker.deliver(one) for one in deliveries for worker in workers))

    assert (await the_call(database))["revision"] == 32
    assert await database.fetchval("select count(*) from events") == 32


TYPES = ("call.unknown", "call.started", "call.turn", "call.ended", "call.billed", "call.analyzed", "call.settled")
words = st.sampled_from([None, "", "a", "b", "c"])
turns = st.lists(st.builds(Turn, role=st.just("user"), text=words), max_size=3)
known_calls = st.builds(
    Call,
    id=st.just("?"),
    provider=st.just("retell"),
    account=st.just("acme"),
    agent=st.builds(Agent, id=words, name=words),
    channel=st.sampled_from(["phone", "web", "other"]),
    from_=words,
    status=st.sampled_from(["created", "ongoing", "ended", "failed"]),
    end=st.none() | st.builds(End, reason=st.sampled_from(["unknown", "busy", "voicemail"]), provider_reason=words),
    transcript=st.none() | turns,
    analysis=st.none() | st.builds(Analysis, summary=words, successful=st.sampled_from([None, True, False])),
    cost=st.none() | st.builds(Cost, total=st.sampled_from([None, "0", "1.50"])),
    privacy=st.builds(Privacy, storage=st.sampled_from(["full", "no_pii", "basic"])),
    metadata=st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2) | st.lists(words, max_size=1), max_size=3),
)
histories = st.lists(st.tuples(st.sampled_from(TYPES), known_calls, st.booleans()), min_size=1, max_size=6)


def test_any_order_and_repetition_ends_in_the_same_rows(server: PostgresServer) -> None:
    async def rows_after(
        sink: Postgres, database: asyncpg.Connection, events: list[CallEvent], order: list[int]
    ) -> Any:
        for index in order:
            await sink.deliver(a_delivery(events[index]))
        call_id = events[0].subject
        [row] = await database.fetch("select * from shuffled.calls where call_id = $1", call_id)
        told = await database.fetch("select * from shuffled.turns where call_id = $1 order by position", call_id)
        ids = await database.fetch("select id from shuffled.events where call_id = $1 order by id", call_id)
        await sink.erase(events[0].data.call)
        return {**row, "updated_at": None}, told, ids

    async def with_a_sink() -> tuple[Postgres, asyncpg.Connection]:
        database = await asyncpg.connect(server.url())
        sink = Postgres("own", Postgres.Config(url=server.url(), schema="shuffled"), make_client(guarded=False))
        await sink.open()
        await sink.migrate()
        return sink, database

    with asyncio.Runner() as runner:
        sink, database = runner.run(with_a_sink())

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        @given(history=histories, data=st.data())
        def check(history: list[tuple[str, Call, bool]], data: st.DataObject) -> None:
            call_id = f"call_{next(_numbers)}"
            events = [
                an_event(
                    id=f"{call_id}:{n}",
                    type=type_,
                    sequence=n,
                    complete=whole,
                    call=msgspec.structs.replace(call, id=call_id),
                )
                for n, (type_, call, whole) in enumerate(history, 1)
            ]
            in_order = list(range(len(events)))
            again = data.draw(st.lists(st.sampled_from(in_order), max_size=3))
            shuffled = data.draw(st.permutations(in_order + again))
            expected = runner.run(rows_after(sink, database, events, in_order))
            assert runner.run(rows_after(sink, database, events, shuffled)) == expected

        try:
            check()
        finally:
            runner.run(sink.close())
            runner.run(sink.http.aclose())
            runner.run(database.close())


# Migrations


async def test_migrating_makes_what_is_missing_and_says_so(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink = await sinks.make(migrated=False)

    assert await sink.migrate() == [f"made the schema {sinks.schema}", f"brought {sinks.schema} to version 1"]
    assert await sink.migrate() == []


async def test_several_may_migrate_at_once(sinks: Sinks, database: asyncpg.Connection) -> None:
    workers = [await sinks.make(migrated=False) for _ in range(4)]

    done = await asyncio.gather(*(worker.migrate() for worker in workers * 3))

    assert sorted(map(len, done)) == [0] * 11 + [2]


async def test_a_later_migration_is_added_to_what_is_there_and_older_versions_go_on(
    sinks: Sinks, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = await sinks.make()
    await sink.deliver(a_delivery())
    older = tables.MIGRATIONS
    monkeypatch.setattr(tables, "MIGRATIONS", (*older, "alter table {s}.calls add column mood text default 'calm'"))

    assert await sink.migrate() == [f"brought {sinks.schema} to version 2"]
    assert (await the_call(database))["mood"] == "calm"

    monkeypatch.setattr(tables, "MIGRATIONS", older)
    assert await sink.migrate() == []
    assert await sink.deliver(a_delivery(an_event(id="evt_2"))) == "stored"


async def test_a_migration_that_fails_leaves_nothing_behind(
    sinks: Sinks, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*tables.MIGRATIONS, "create table {s}.more (n int); select 1 / 0")
    monkeypatch.setattr(tables, "MIGRATIONS", broken)
    with pytest.raises(SinkError, match="SQLSTATE 22012"):
        await (await sinks.make(migrated=False)).migrate()
    monkeypatch.undo()

    assert await database.fetchval("select to_regnamespace($1) is null", sinks.schema)
    assert len(await (await sinks.make(migrated=False)).migrate()) == 2


async def test_tables_of_the_same_name_that_are_not_ours_are_left_alone(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    await database.execute(f"create schema {sinks.schema}; create table {sinks.schema}.events (n int)")

    with pytest.raises(SinkError, match="set `schema` to another"):
        await (await sinks.make(migrated=False)).migrate()

    names = await database.fetch(
        "select table_name from information_schema.tables where table_schema = $1", sinks.schema
    )
    assert [row["table_name"] for row in names] == ["events"]


async def test_a_schema_made_by_somebody_else_will_do(sinks: Sinks, database: asyncpg.Connection) -> None:
    user = f"user_{sinks.schema}"
    await database.execute(f"create role {user} login; create schema {sinks.schema} authorization {user}")
    sink = await sinks.make(url=sinks.server.url(user))  # who may not make one

    assert await sink.deliver(a_delivery()) == "stored"


async def test_who_may_make_no_tables_may_migrate_where_nothing_is_to_be_made(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    await sinks.make()
    user = f"user_{sinks.schema}"
    await database.execute(
        f"create role {user} login; grant usage on schema {sinks.schema} to {user};"
        f"grant select, insert, update, delete on all tables in schema {sinks.schema} to {user}"
    )
    sink = await sinks.make(migrated=False, url=sinks.server.url(user))

    assert await sink.migrate() == []


async def test_a_database_in_another_encoding_is_refused_for_good(sinks: Sinks, database: asyncpg.Connection) -> None:
    await database.execute("create database latin encoding 'LATIN1' template template0 lc_collate 'C' lc_ctype 'C'")

    with pytest.raises(SinkError, match="make one with UTF8") as caught:
        await sinks.make(url=sinks.server.url(database="latin"))
    assert caught.value.permanent


async def test_without_the_tables_the_remedy_is_said_and_the_event_waits_for_it(sinks: Sinks) -> None:
    sink = await sinks.make(migrated=False)

    error = await refused(sink)
    assert not error.permanent
    assert "run `aftercall sinks migrate`" in str(error)
    await sink.migrate()

    assert await sink.deliver(a_delivery()) == "stored"


async def test_every_column_of_a_call_has_its_place_in_the_call(sinks: Sinks, database: asyncpg.Connection) -> None:
    await sinks.make()
    types = await database.fetch(
        "select column_name, udt_name from information_schema.columns where table_schema = $1 and table_name = 'calls'",
        sinks.schema,
    )
    ours = {"provider", "account", "call_id", "call", "told", "revision", "settled", "updated_at"}
    short = {"boolean": "bool", "bigint": "int8"}

    assert {name: type_ for name, type_ in types if name not in ours} == {
        name: short.get(type_, type_) for name, (type_, _) in tables.COLUMNS.items()
    }


# Refusals


async def test_a_role_that_lacks_a_right_passes_once_it_has_it(sinks: Sinks, database: asyncpg.Connection) -> None:
    await sinks.make()
    user = f"user_{sinks.schema}"
    await database.execute(f"create role {user} login; grant usage on schema {sinks.schema} to {user}")
    sink = await sinks.make(migrated=False, url=sinks.server.url(user))
    error = await refused(sink)
    assert (error.permanent, str(error)) == (
        False,
        "Postgres: this user lacks a right to the schema or its tables (SQLSTATE 42501)",
    )
    await database.execute(f"grant select, insert, update, delete on all tables in schema {sinks.schema} to {user}")

    assert await sink.deliver(a_delivery()) == "stored"
    await sink.erase(a_call())
    assert await database.fetchval("select count(*) from calls") == 0


ALTERATIONS = {
    "is read-only": "alter role {user} set default_transaction_read_only = on",
    "lacks disk, memory or connections": "alter role {user} connection limit 0",
    "does not let this user in": "alter role {user} nologin",
    "a statement took too long": "alter role {user} set statement_timeout = 1",
}


@pytest.mark.parametrize("words", ALTERATIONS)
async def test_what_an_operator_mends_or_time_passes(sinks: Sinks, database: asyncpg.Connection, words: str) -> None:
    user = f"user_{sinks.schema}"
    await database.execute(f"create role {user} login; create schema {sinks.schema} authorization {user}")
    await sinks.make(url=sinks.server.url(user))
    await sinks.made[0].close()
    await database.execute(ALTERATIONS[words].format(user=user))
    if "too long" in words:
        await database.execute(
            f"create function {sinks.schema}.slowly() returns trigger language plpgsql as "
            "$$ begin perform pg_sleep(1); return new; end $$; create trigger slowly before insert on "
            f"{sinks.schema}.events execute function {sinks.schema}.slowly()"
        )

    error = await refused(await sinks.make(migrated=False, url=sinks.server.url(user)))

    assert (error.permanent, words in str(error)) == (False, True), str(error)


async def test_a_wrong_password_passes_and_is_not_told(sinks: Sinks, database: asyncpg.Connection) -> None:
    await database.execute("create role locked login password 'right'")
    url = sinks.server.url("locked:wrong-sesame")

    error = await refused(await sinks.make(migrated=False, url=url))

    assert (error.permanent, str(error)) == (False, "Postgres: it does not let this user in (SQLSTATE 28P01)")
    assert "sesame" not in all_text(error)


@pytest.mark.parametrize(
    "url", ["postgres://127.0.0.1:1/x", "postgres://no-such-host.invalid/x", "postgres://x@h/y?sslmode=?"]
)
async def test_a_server_that_is_not_there_passes(sinks: Sinks, url: str) -> None:
    error = await refused(await sinks.make(migrated=False, url=url))

    assert not error.permanent
    assert "Postgres does not answer" in str(error)


async def test_a_database_that_is_not_there_passes(sinks: Sinks) -> None:
    error = await refused(await sinks.make(migrated=False, url=sinks.server.url(database="nothing")))

    assert (error.permanent, str(error)) == (False, "Postgres: there is no such database (SQLSTATE 3D000)")


async def test_a_constraint_or_trigger_refuses_for_good_and_nothing_of_the_event_is_kept_or_told(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    sink = await sinks.make()
    event = an_event(call=a_call(metadata={"note": SAID}, agent=Agent(id=SAID)))
    await database.execute("alter table calls add constraint short check (agent_id is null)")
    error = await refused(sink, event)
    assert (error.permanent, str(error)) == (True, "Postgres: a constraint refuses the event (SQLSTATE 23514)")
    assert SAID not in all_text(error)
    assert await database.fetchval("select count(*) from events") == 0

    await database.execute("alter table calls drop constraint short")
    assert await sink.deliver(a_delivery(event)) == "stored"


async def test_data_that_no_column_can_hold_is_refused_for_good_and_not_told(sinks: Sinks) -> None:
    error = await refused(await sinks.make(), an_event(call=a_call(started_at=SAID)))

    assert (error.permanent, str(error)) == (True, "Postgres: it cannot hold the event's data (SQLSTATE 22007)")
    assert SAID not in all_text(error)


async def test_an_event_waits_no_longer_than_it_should_for_somebody_elses_lock(
    sinks: Sinks, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = await sinks.make()
    monkeypatch.setattr(tables, "BEGIN", tables.BEGIN.replace("lock_timeout = '5s'", "lock_timeout = '50ms'"))
    async with database.transaction():
        await database.execute("lock table calls")
        error = await refused(sink)
    assert (error.permanent, "somebody else locks its tables" in str(error)) == (False, True)

    assert await sink.deliver(a_delivery()) == "stored"


# Connections


async def connections(database: asyncpg.Connection, name: str) -> int:
    return int(await database.fetchval("select count(*) from pg_stat_activity where application_name = $1", name))


async def test_many_deliveries_at_once_share_a_few_connections(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink = await sinks.make(url=f"{sinks.server.url()}?application_name=crowd", connections=3)

    await asyncio.gather(
        *(sink.deliver(a_delivery(an_event(id=f"evt_{n}", call=a_call(id=f"c{n}")))) for n in range(64))
    )

    assert 1 <= await connections(database, "crowd") <= 3
    await sink.close()

    async def are_gone() -> bool:
        return not await connections(database, "crowd")

    await until(are_gone)


async def test_a_connection_that_the_server_ended_is_made_anew(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink = await sinks.make(url=f"{sinks.server.url()}?application_name=ended")
    await database.fetch("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'ended'")
    assert sink._pool is not None
    await until(lambda: sink._pool.get_size() == 0)  # the client has seen it

    assert await sink.deliver(a_delivery()) == "stored"


async def test_what_was_given_up_midway_is_not_there_and_comes_again(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    sink = await sinks.make(url=f"{sinks.server.url()}?application_name=given_up")
    async with database.transaction():
        await database.execute("lock table events")  # the call's row is written by then
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sink.deliver(a_delivery())

    async def is_gone() -> bool:
        return not await connections(database, "given_up")

    await until(is_gone)
    assert await database.fetchval("select count(*) from calls") == 0
    assert await sink.deliver(a_delivery()) == "stored"


async def test_a_server_that_is_stuck_holds_up_neither_a_timeout_nor_closing(sinks: Sinks) -> None:
    sink = await sinks.make()
    sinks.server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.gather(*(sink.deliver(a_delivery()) for _ in range(6)))
        await sink.close()
        assert time.monotonic() - began < 10  # to wait for its answer would be for ever
    finally:
        sinks.server.thaw()


async def test_tls_is_spoken_where_the_url_asks_for_it(sinks: Sinks, database: asyncpg.Connection) -> None:
    certificate = sinks.server.make_certificate()
    for change in ("alter system set ssl = on", "select pg_reload_conf()"):
        await database.execute(change)
    strict = await sinks.make(migrated=False, url=f"{sinks.server.url()}?sslmode=verify-full&sslrootcert={certificate}")
    asked = "select ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'veiled'"
    try:
        await until(lambda: database.fetchval("select current_setting('ssl')::boolean"))
        sink = await sinks.make(url=f"{sinks.server.url()}?sslmode=require&application_name=veiled")
        assert await sink.deliver(a_delivery()) == "stored"
        assert [row["ssl"] for row in await database.fetch(asked)] == [True]
        assert "Postgres does not answer (SSL" in str(await refused(strict))  # the certificate is for another name
    finally:
        for change in ("alter system reset ssl", "select pg_reload_conf()"):
            await database.execute(change)


# Erasing


async def test_exactly_the_erased_call_goes_with_its_turns_and_events(
    sinks: Sinks, database: asyncpg.Connection
) -> None:
    sink = await sinks.make()
    for number, other in enumerate(({}, {"account": "quay"}, {"provider": "ultravox"}, {"id": "call_7f33"})):
        for type_ in ("call.ended", "call.settled"):
            await sink.deliver(a_delivery(an_event(id=f"{type_}{number}", type=type_, call=a_call(**other))))

    await sink.erase(a_call())
    await sink.erase(a_call())

    for rows, asked in ((3, "table calls"), (12, "table turns"), (6, "table events")):
        left = await database.fetch(asked)
        assert len(left) == rows
        assert ("retell", "acme", "call_7f3") not in {(row["provider"], row["account"], row["call_id"]) for row in left}


async def test_the_event_that_tells_of_the_erasure_can_be_kept(sinks: Sinks, database: asyncpg.Connection) -> None:
    sink = await sinks.make()
    await sink.deliver(a_delivery())
    await sink.erase(a_call())
    left = Call(
        id="call_7f3",
        provider="retell",
        account="acme",
        status="ended",
        privacy=Privacy(redacted_at="2026-11-22T08:00:00.000Z"),
    )

    await sink.deliver(a_delivery(an_event(id="evt_erased", type="call.erased", sequence=3, call=left)))

    row = await the_call(database)
    assert (row["status"], row["summary"], row["call"]["transcript"]) == ("ended", None, None)


# The options


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db.example.com/calls",
        "postgres://desk:s%40me@10.0.0.7:5432/calls?sslmode=verify-full",
        "postgresql://a.example.com:5432,b.example.com:5433/calls?target_session_attrs=read-write",
        "postgresql:///calls?host=/run/postgresql",
    ],
)
def test_the_url_is_enough(url: str) -> None:
    config = msgspec.convert({"url": url}, Postgres.Config)

    assert (config.schema, config.turns, config.connections) == ("aftercall", True, 4)
    assert "url=***" in repr(config)


@pytest.mark.parametrize(
    "url", ["mysql://db/sesame", "sesame", "postgres://desk:ses/ame@db/calls", "postgres://db:sesame/calls"]
)
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="expected postgres:// or postgresql://") as caught:
        msgspec.convert({"url": url}, Postgres.Config)

    assert "ses" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"schema": 'x"; drop table calls; --'},
        {"schema": "Calls"},
        {"schema": ""},
        {"schema": "a\n"},
        {"connections": 0},
        {"url": ""},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": "postgres://db", **options}, Postgres.Config)


@pytest.mark.usefixtures("server")
class TestContract(SinkContract):
    sink = Postgres
    server: ClassVar[PostgresServer]

    async def options(self) -> dict[str, Any]:
        self.schema = f"s{next(_numbers)}"
        options = {"url": self.server.url(), "schema": self.schema}
        async with make_client(guarded=False) as http:
            sink = Postgres("contract", msgspec.convert(options, Postgres.Config), http)
            await sink.open()
            await sink.migrate()
            await sink.close()
        return options

    async def received(self) -> list[str]:
        return [row["event"] for row in await self.asked("select event from events")]

    async def asked(self, statement: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.server.url(), server_settings={"search_path": self.schema})
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)

    @asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        await self.asked("alter table calls add constraint short check (summary is null)")
        yield
