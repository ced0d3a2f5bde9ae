import asyncio
import contextlib
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web

from aftercall.call import Call, Recording
from aftercall.client import GuardedTransport, make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent, decode
from aftercall.sinks import s3
from aftercall.sinks.base import Delivery, LocalMemory
from aftercall.sinks.s3 import S3
from aftercall.testing import Answer, Destination
from tests.samples import a_call, a_delivery, an_event
from tests.servers import until
from tests.servers.moto import AtMoto, MotoServer

MIB = 1024 * 1024
PART = 8 * MIB
TOKEN = "sesame-7291"  # stands in the recording's link
NOT_TAKEN = Answer(400, "<Error><Code>InvalidArgument</Code><Message>Mirela</Message></Error>")

moto = MotoServer()
names = count(1)


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    moto.start()
    yield
    moto.kill()


@pytest.fixture
def bucket() -> str:
    return a_bucket()


def a_bucket() -> str:
    name = f"archive-{next(names)}"
    moto.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return name


def objects(bucket: str) -> dict[str, bytes]:
    client = moto.client("s3")
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: read(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"]) for entry in listed}


def read(body: Any) -> bytes:
    with contextlib.closing(body):
        return bytes(body.read())


def uploads(bucket: str) -> list[Any]:
    return list(moto.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", []))


class Source:
    """Where a provider keeps recordings: it serves one, in the ways that they do, and in those that they should not."""

    def __init__(self) -> None:
        self.content = b"RIFF" + b"sound" * 1000
        self.etag: str | None = '"one"'
        self.ranges = True
        self.chunked = False
        self.type = "application/octet-stream"
        self.status = 200
        self.headers: dict[str, str] = {}
        self.redirects = 0
        self.location: str | None = None
        self.breaks_off_at: int | None = None  # of the whole recording
        self.stalls_at: int | None = None
        self.most: int | None = None  # bytes that it answers to a Range
        self.pause_s = 0.0  # before each piece
        self.asked: list[str] = []  # the Range of each request, or nothing
        self.sent_bytes = 0
        self.url = ""
        self.held = asyncio.Event()  # while it is not set nothing is answered
        self.held.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.redirects:
            self.redirects -= 1
            return web.Response(status=302, headers={"location": self.location or request.path_qs})
        self.asked.append(request.headers.get("range", ""))
        await self.held.wait()
        if self.status != 200:
            return web.Response(status=self.status, headers=self.headers, body=f"Mirela {TOKEN}")
        start = int(self.asked[-1][6:-1]) if self.ranges and self.asked[-1] else 0
        if start >= len(self.content) > 0:
            return web.Response(status=416)
        response = web.StreamResponse(status=206 if start else 200, headers={"content-type": self.type, **self.headers})
        if start:
            end = len(self.content) if self.most is None else start + self.most
            response.headers["content-range"] = f"bytes {start}-{end - 1}/{len(self.content)}"
            response.content_length = end - start
        if self.etag:
            response.headers["etag"] = self.etag
        if self.chunked:
            response.content_length = None
            response.enable_chunked_encoding()
        elif response.content_length is None:
            response.content_length = len(self.content) - start
        await response.prepare(request)
        await self._talk(request, response, start)
        return response

    async def _talk(self, request: web.Request, response: web.StreamResponse, start: int) -> None:
        with contextlib.suppress(ConnectionError):
            end = len(self.content) if self.most is None or not start else start + self.most
            for at in range(start, end, MIB):
                piece = self.content[at : min(at + MIB, self.breaks_off_at or end)]
                await asyncio.sleep(self.pause_s)
                if at == self.stalls_at:
                    await asyncio.Event().wait()
                await response.write(piece)
                self.sent_bytes += len(piece)
                if self.breaks_off_at is not None and at + MIB >= self.breaks_off_at:
                    assert request.transport is not None
                    request.transport.close()
                    return


@pytest.fixture
async def source() -> AsyncIterator[Source]:
    made = Source()
    app = web.Application()
    app.router.add_get("/{name:.*}", made.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/{TOKEN}/7f3.wav?sig={TOKEN}"
    yield made
    made.held.set()
    await runner.cleanup()


class Sinks:
    """Makes sinks that share their notes, as those of several workers do, and counts what they ask of S3."""

    def __init__(self, bucket: str, http: httpx.AsyncClient) -> None:
        self.bucket = bucket
        self.http = http
        self.memory = LocalMemory()
        self.asked: list[str] = []  # operations, with the number of the part
        self._made: list[S3] = []

    async def open(self, *, http: httpx.AsyncClient | None = None, **options: Any) -> S3:
        config = msgspec.convert({**moto.options, "bucket": self.bucket, **options}, S3.Config)
        sink = S3("archive", config, http or self.http)
        sink.memory = self.memory
        await sink.open()
        self._made.append(sink)
        ask = sink.ask

        async def counted(operation: str, **parameters: Any) -> Any:
            answer = await ask(operation, **parameters)
            self.asked.append(f"{operation} {parameters.get('PartNumber', '')}".strip())
            return answer

        sink.ask = counted  # type: ignore[method-assign]
        return sink

    def parts(self) -> list[str]:
        return [asked for asked in self.asked if asked.startswith("upload_part")]

    async def close(self) -> None:
        for sink in self._made:
            await sink.close()


@pytest.fixture
async def sinks(bucket: str) -> AsyncIterator[Sinks]:
    async with make_client(guarded=False) as http:
        made = Sinks(bucket, http)
        yield made
        await made.close()


def event_of(source: Source | str, event_id: str = "evt_lantern") -> CallEvent:
    url = source if isinstance(source, str) else source.url
    return an_event(id=event_id, call=a_call(recording=Recording(url=url)))


async def refused(sink: S3, event: CallEvent) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery(event))
    assert TOKEN not in str(caught.value)
    assert "Mirela" not in str(caught.value)
    return caught.value


def noise(mib: int) -> bytes:
    return random.Random(7).randbytes(mib * MIB)


JSON_KEY = "calls/acme/call_7f3/evt_lantern.json"
WAV_KEY = "calls/acme/call_7f3/recording.wav"


# Events


async def test_an_event_is_an_object_in_its_calls_folder(sinks: Sinks, bucket: str) -> None:
    delivery = a_delivery(an_event(call=a_call(recording=None)))

    receipt = await (await sinks.open()).deliver(delivery)

    assert objects(bucket) == {JSON_KEY: delivery.body}
    head = moto.client("s3").head_object(Bucket=bucket, Key=JSON_KEY)
    assert head["ContentType"] == "application/cloudevents+json"
    assert head["ETag"] == f'"{receipt}"'


async def test_an_event_that_comes_again_is_known_and_not_written_again(sinks: Sinks, bucket: str) -> None:
    sink = await sinks.open()
    event = an_event(call=a_call(recording=None))
    await sink.deliver(a_delivery(event))
    first = objects(bucket)

    assert await sink.deliver(Delivery(event=event, body=b"{}")) == "already archived"
    assert objects(bucket) == first


async def test_a_server_without_conditional_writes_is_written_to_all_the_same(sinks: Sinks) -> None:
    def answer(request: Any) -> Answer:
        if "if-none-match" in request.headers:
            return Answer(501, "<Error><Code>NotImplemented</Code><Message>If-None-Match</Message></Error>")
        return Answer(200, b"", {"ETag": '"abc"'})

    destination = Destination()
    destination.answers = answer
    await destination.start()
    sink = await sinks.open(endpoint_url=destination.url)
    assert await sink.deliver(a_delivery(an_event(call=a_call(recording=None)))) == "abc"
    [sent] = destination.sent
    assert (sent.method, sent.path) == ("PUT", f"/{sinks.bucket}/{JSON_KEY}")
    await destination.stop()


async def test_a_call_id_stays_in_its_folder(sinks: Sinks, bucket: str) -> None:
    sink = await sinks.open(prefix="archive/")
    awkward = a_call(id="../x/y z%2F?ü", account="a/b", recording=None)

    await sink.deliver(a_delivery(an_event(call=awkward)))

    assert list(objects(bucket)) == ["archive/a%2Fb/..%2Fx%2Fy%20z%252F%3F%C3%BC/evt_lantern.json"]
    await sink.erase(awkward)
    assert objects(bucket) == {}


async def test_a_webhook_as_it_arrived_is_archived_as_json(sinks: Sinks, bucket: str) -> None:
    body = b'{"event" : "call_ended"}'

    await (await sinks.open(recordings=False)).deliver(Delivery(event=an_event(), body=body, format="raw"))

    assert objects(bucket) == {JSON_KEY: body}
    assert moto.client("s3").head_object(Bucket=bucket, Key=JSON_KEY)["ContentType"] == "application/json"


async def test_a_bucket_that_is_not_there_may_be_made(sinks: Sinks) -> None:
    error = await refused(await sinks.open(bucket="nobody-made-it"), an_event())

    assert (str(error), error.permanent) == ("S3 refused: NoSuchBucket", False)


# Recordings


async def test_the_recording_stands_beside_the_event(sinks: Sinks, bucket: str, source: Source) -> None:
    event = event_of(source)

    await (await sinks.open()).deliver(a_delivery(event))

    assert objects(bucket) == {JSON_KEY: a_delivery(event).body, WAV_KEY: source.content}
    assert moto.client("s3").head_object(Bucket=bucket, Key=WAV_KEY)["ContentType"] == "audio/wav"
    assert sinks.asked == ["put_object", "list_objects_v2", "put_object", "generate_presigned_url"]


async def test_without_recordings_none_is_fetched(sinks: Sinks, bucket: str, source: Source) -> None:
    await (await sinks.open(recordings=False)).deliver(a_delivery(event_of(source)))

    assert (list(objects(bucket)), source.asked) == ([JSON_KEY], [])


@pytest.mark.parametrize(
    ("path", "type_", "key", "stored_as"),
    [
        ("7f3.mp3", "text/plain", "recording.mp3", "audio/mpeg"),
        ("7f3.MP3", "binary/octet-stream", "recording.mp3", "audio/mpeg"),
        ("7f3", "audio/x-wav; codecs=1", "recording.wav", "audio/wav"),
        ("7f3.php", "audio/ogg", "recording.ogg", "audio/ogg"),
        ("7f3.svg", "image/svg+xml", "recording.bin", "application/octet-stream"),
    ],
)
async def test_its_type_is_one_of_ours(
    sinks: Sinks, bucket: str, source: Source, path: str, type_: str, key: str, stored_as: str
) -> None:
    source.type = type_

    await (await sinks.open()).deliver(a_delivery(event_of(source.url.replace("7f3.wav", path))))

    key = f"calls/acme/call_7f3/{key}"
    assert objects(bucket)[key] == source.content
    assert moto.client("s3").head_object(Bucket=bucket, Key=key)["ContentType"] == stored_as


async def test_later_events_of_the_call_do_not_fetch_it_again(sinks: Sinks, bucket: str, source: Source) -> None:
    await (await sinks.open()).deliver(a_delivery(event_of(source)))
    sinks.memory = LocalMemory()  # the notes were lost; the bucket knows
    await (await sinks.open()).deliver(a_delivery(event_of(source, "evt_later")))

    assert len(source.asked) == 1
    assert len(objects(bucket)) == 3


async def test_while_one_event_brings_it_the_others_do_not_wait(sinks: Sinks, bucket: str, source: Source) -> None:
    source.held.clear()
    first = asyncio.create_task((await sinks.open()).deliver(a_delivery(event_of(source))))
    await until(lambda: source.asked)

    await (await sinks.open()).deliver(a_delivery(event_of(source, "evt_later")))
    assert WAV_KEY not in objects(bucket)
    source.held.set()
    await first

    assert len(source.asked) == 1
    assert len(objects(bucket)) == 3


async def test_what_one_events_link_no_longer_leads_to_another_may_bring(
    sinks: Sinks, bucket: str, source: Source
) -> None:
    sink = await sinks.open()
    source.status = 403
    assert (await refused(sink, event_of(source))).permanent
    source.status = 200

    await sink.deliver(a_delivery(event_of(source, "evt_later")))

    assert WAV_KEY in objects(bucket)


async def test_a_long_recording_takes_the_memory_of_a_part(sinks: Sinks, bucket: str, source: Source) -> None:
    source.content = noise(30)
    sink = await sinks.open()
    tracemalloc.start()
    try:
        await sink.deliver(a_delivery(event_of(source)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert objects(bucket)[WAV_KEY] == source.content
    assert sinks.parts() == [f"upload_part {number}" for number in (1, 2, 3, 4)]
    assert peak < 20 * MIB, "a part, what is made of it for the request, and not the 30 MiB of the recording"
    assert uploads(bucket) == []


@pytest.mark.parametrize("mib", [8, 16])
async def test_a_recording_of_whole_parts_is_whole(sinks: Sinks, bucket: str, source: Source, mib: int) -> None:
    source.content = noise(mib)

    await (await sinks.open()).deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content
    assert uploads(bucket) == []


@pytest.mark.parametrize(("ranges", "chunked"), [(True, False), (False, False), (True, True), (False, True)])
async def test_after_a_kill_no_part_is_uploaded_twice(
    sinks: Sinks, bucket: str, source: Source, ranges: bool, chunked: bool
) -> None:
    source.content, source.ranges, source.chunked, source.pause_s = noise(20), ranges, chunked, 0.02
    attempt = asyncio.create_task((await sinks.open()).deliver(a_delivery(event_of(source))))
    await until(lambda: sinks.parts())
    await until(lambda: source.sent_bytes > 9 * MIB)
    attempt.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attempt
    assert attempt.cancelled()
    assert WAV_KEY not in objects(bucket)

    source.pause_s = 0
    await (await sinks.open()).deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content
    assert sorted(sinks.parts()) == ["upload_part 1", "upload_part 2", "upload_part 3"]
    assert source.asked[0] == ""
    assert source.asked[1] in ("bytes=8388608-", "bytes=16777216-")
    assert uploads(bucket) == []


async def test_killed_before_the_last_step_it_is_completed_without_the_source(
    sinks: Sinks, bucket: str, source: Source
) -> None:
    source.content = noise(9)
    sink = await sinks.open()
    ask = sink.ask

    async def killed(operation: str, **parameters: Any) -> Any:
        if operation == "complete_multipart_upload":
            raise asyncio.CancelledError
        return await ask(operation, **parameters)

    sink.ask = killed  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await sink.deliver(a_delivery(event_of(source)))
    source.status = 410  # and its link is over

    await (await sinks.open()).deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content
    assert len(source.asked) == 1


async def test_an_upload_that_the_bucket_forgot_begins_anew(sinks: Sinks, bucket: str, source: Source) -> None:
    source.content, source.breaks_off_at = noise(9), 8 * MIB + 1
    sink = await sinks.open()
    await refused(sink, event_of(source))
    [upload] = uploads(bucket)
    moto.client("s3").abort_multipart_upload(Bucket=bucket, Key=WAV_KEY, UploadId=upload["UploadId"])
    source.breaks_off_at = None

    await sink.deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content


@pytest.mark.parametrize("change", ["validator", "length", "nothing left"])
async def test_another_recording_is_not_joined_to_the_first_one(
    sinks: Sinks, bucket: str, source: Source, change: str
) -> None:
    source.content, source.breaks_off_at = noise(10), 9 * MIB
    sink = await sinks.open()
    assert "8 of 10 MiB" in str(await refused(sink, event_of(source)))
    source.breaks_off_at = None
    if change == "validator":
        source.content, source.etag = source.content[::-1], '"two"'
    else:
        source.content = source.content[: (9 if change == "length" else 8) * MIB]

    error = await refused(sink, event_of(source))
    assert (error.permanent, error.retry_after) == (False, None)
    assert "changed at its source" in str(error)
    assert uploads(bucket) == []
    await sink.deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("mib", "break_at", "patience"), [(1, MIB // 2, None), (10, 9 * MIB, 0.0)])
async def test_a_source_that_breaks_off_is_not_taken_for_whole(
    sinks: Sinks, bucket: str, source: Source, chunked: bool, mib: int, break_at: int, patience: float | None
) -> None:
    source.content, source.chunked, source.breaks_off_at = noise(mib), chunked, break_at
    sink = await sinks.open()

    error = await refused(sink, event_of(source))

    assert "not whole yet" in str(error)
    assert (error.permanent, error.retry_after) == (False, patience)  # what got on spends no retry
    assert list(objects(bucket)) == [JSON_KEY]
    source.breaks_off_at = None
    await sink.deliver(a_delivery(event_of(source)))
    assert objects(bucket)[WAV_KEY] == source.content


async def test_a_source_that_gives_less_of_the_rest_than_asked_for_is_asked_again(
    sinks: Sinks, bucket: str, source: Source
) -> None:
    source.content, source.breaks_off_at = noise(18), 9 * MIB
    sink = await sinks.open()
    await refused(sink, event_of(source))
    source.breaks_off_at, source.most = None, 9 * MIB

    error = await refused(sink, event_of(source))
    assert "16 of 18 MiB" in str(error)
    assert list(objects(bucket)) == [JSON_KEY]
    source.most = None
    await sink.deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content


@pytest.mark.parametrize("end", ["", "content-encoding: gzip\r\ncontent-length: 5\r\n"])
async def test_what_nobody_can_tell_to_be_whole_is_refused_for_good(sinks: Sinks, bucket: str, end: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nconnection: close\r\n{end}\r\nsound".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(await sinks.open(), event_of(f"http://127.0.0.1:{port}/7f3.wav"))

    assert error.permanent
    assert list(objects(bucket)) == [JSON_KEY]


async def test_an_attempt_ends_in_time_and_the_next_goes_on(
    sinks: Sinks, bucket: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.content, source.stalls_at = noise(20), 9 * MIB
    sink = await sinks.open()
    monkeypatch.setattr(s3, "BUDGET_S", 2.0)
    error = await refused(sink, event_of(source))
    monkeypatch.undo()

    assert str(error) == "the recording is not whole yet: 8 of 20 MiB; more follows at the next attempt"
    assert error.retry_after == 0.0
    source.stalls_at = None
    await sink.deliver(a_delivery(event_of(source)))
    assert objects(bucket)[WAV_KEY] == source.content
    assert sinks.parts() == ["upload_part 1", "upload_part 2", "upload_part 3"]


async def test_what_never_gets_on_spends_the_retries(
    sinks: Sinks, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "BUDGET_S", 0.3)
    source.held.clear()

    error = await refused(await sinks.open(), event_of(source))

    assert (error.permanent, error.retry_after) == (False, None)


async def test_only_a_few_recordings_are_in_memory_at_once(
    sinks: Sinks, bucket: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.held.clear()
    sink = await sinks.open()
    calls = [a_call(id=f"call_{number}", recording=Recording(url=source.url)) for number in range(6)]
    first = [asyncio.create_task(sink.deliver(a_delivery(an_event(call=call)))) for call in calls[:5]]
    await until(lambda: len(objects(bucket)) == 5)
    await until(lambda: len(source.asked) == s3.AT_ONCE)

    monkeypatch.setattr(s3, "BUDGET_S", 0.3)
    error = await refused(sink, an_event(call=calls[5]))

    assert (str(error), error.retry_after) == ("other recordings are being archived first", 0.0)
    assert len(source.asked) == s3.AT_ONCE
    source.held.set()
    await asyncio.gather(*first)
    assert len(source.asked) == 5


# Links that lead to nothing


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_an_expired_link_leaves_the_event_archived(
    sinks: Sinks, bucket: str, source: Source, status: int
) -> None:
    source.status = status

    error = await refused(await sinks.open(), event_of(source))

    assert error.permanent
    assert not error.gone
    assert "the event is archived, the recording not" in str(error)
    assert list(objects(bucket)) == [JSON_KEY]


@pytest.mark.parametrize(("status", "retry_after"), [(500, None), (503, 7.0), (429, 7.0), (408, 7.0)])
async def test_a_source_in_trouble_is_asked_again(
    sinks: Sinks, source: Source, status: int, retry_after: float | None
) -> None:
    source.status = status
    source.headers = {"retry-after": "7"} if retry_after else {}

    error = await refused(await sinks.open(), event_of(source))

    assert (error.permanent, error.retry_after) == (False, retry_after)


@pytest.mark.parametrize("type_", ["text/html; charset=utf-8", "application/json"])
async def test_a_page_is_no_recording(sinks: Sinks, bucket: str, source: Source, type_: str) -> None:
    source.type = type_

    assert (await refused(await sinks.open(), event_of(source))).permanent
    assert list(objects(bucket)) == [JSON_KEY]


@pytest.mark.parametrize("chunked", [False, True])
async def test_nothing_is_no_recording_yet(sinks: Sinks, bucket: str, source: Source, chunked: bool) -> None:
    source.content, source.chunked = b"", chunked

    assert not (await refused(await sinks.open(), event_of(source))).permanent
    assert list(objects(bucket)) == [JSON_KEY]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_recording_above_the_limit_is_refused_for_good(
    sinks: Sinks, bucket: str, source: Source, chunked: bool
) -> None:
    source.content, source.chunked = noise(10), chunked
    sink = await sinks.open(max_recording_mb=9)

    error = await refused(sink, event_of(source))

    assert error.permanent
    assert "max_recording_mb = 9" in str(error)
    assert (list(objects(bucket)), uploads(bucket)) == ([JSON_KEY], [])


async def test_redirects_are_followed_three_times(sinks: Sinks, bucket: str, source: Source) -> None:
    sink = await sinks.open()
    source.redirects = 4
    assert (await refused(sink, event_of(source))).permanent
    source.redirects = 3

    await sink.deliver(a_delivery(event_of(source)))

    assert objects(bucket)[WAV_KEY] == source.content


@pytest.mark.parametrize(
    ("location", "permanent"), [("file:///etc/passwd", True), ("ftp://127.0.0.1/x", True), ("http://[::1", False)]
)
async def test_a_redirect_leads_to_the_web_or_nowhere(
    sinks: Sinks, source: Source, location: str, permanent: bool
) -> None:
    source.redirects, source.location = 1, location

    error = await refused(await sinks.open(), event_of(source))

    assert error.permanent == permanent
    assert source.asked == []


@pytest.mark.parametrize(
    "link", ["", "7f3.wav", "https://", "https:///7f3.wav", "http://[::1", "https://media..example/x"]
)
async def test_a_link_that_can_lead_nowhere_is_refused_for_good(sinks: Sinks, bucket: str, link: str) -> None:
    error = await refused(await sinks.open(), event_of(link))

    assert (str(error), error.permanent) == ("the recording's link is no web address", True)
    assert list(objects(bucket)) == [JSON_KEY]


async def test_a_private_address_is_not_reached_by_a_link_nor_by_a_redirect(sinks: Sinks, source: Source) -> None:
    class Outside(GuardedTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "media.example.com":
                return httpx.Response(302, headers={"location": source.url})
            return await super().handle_async_request(request)

    async with make_client(guarded=True) as guarded, httpx.AsyncClient(transport=Outside()) as outside:
        for http, link in ((guarded, source.url), (outside, "https://media.example.com/7f3.wav")):
            error = await refused(await sinks.open(http=http), event_of(link))
            assert error.permanent
            assert "allow_private_network = true" in str(error)

    assert source.asked == []


# Links of our own


async def test_the_link_downloads_the_recording_and_stays_the_same(
    sinks: Sinks, source: Source, http: httpx.AsyncClient
) -> None:
    sink = await sinks.open(link_days=2)
    assert await sink.archived_recording(a_call()) is None
    await sink.deliver(a_delivery(event_of(source)))

    link = await sink.archived_recording(a_call())

    assert link is not None
    answer = await http.get(link.url)
    assert (answer.status_code, answer.content) == (200, source.content)
    assert "X-Amz-Expires=172800" in link.url
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link.url
    assert link.expires_at is not None
    left = datetime.fromisoformat(link.expires_at) - datetime.now(UTC)
    assert 172_700 < left.total_seconds() <= 172_800
    await asyncio.sleep(1.1)  # signed now, it would be another
    assert await (await sinks.open(link_days=2)).archived_recording(a_call()) == link
    assert await sink.archived_recording(a_call(id="call_other")) is None


async def test_after_the_notes_were_lost_a_link_is_made_of_what_the_bucket_has(
    sinks: Sinks, source: Source, http: httpx.AsyncClient
) -> None:
    await (await sinks.open()).deliver(a_delivery(event_of(source)))
    sinks.memory = LocalMemory()

    link = await (await sinks.open()).archived_recording(a_call())

    assert link is not None
    assert (await http.get(link.url)).content == source.content


async def test_of_two_workers_that_make_the_link_at_once_both_have_the_same(sinks: Sinks, source: Source) -> None:
    one, other = await sinks.open(link_days=2), await sinks.open(link_days=3)
    await one.deliver(a_delivery(event_of(source)))
    one.memory = other.memory = LocalMemory()

    links = await asyncio.gather(one.archived_recording(a_call()), other.archived_recording(a_call()))

    assert links[0] is not None
    assert links[0] == links[1]


async def test_a_public_bucket_has_links_that_do_not_expire(
    sinks: Sinks, bucket: str, source: Source, http: httpx.AsyncClient
) -> None:
    sink = await sinks.open(public_url=f"{moto.url}/{bucket}/")
    moto.client("s3").put_bucket_acl(Bucket=bucket, ACL="public-read")
    call = a_call(id="a b/c", recording=Recording(url=source.url))
    await sink.deliver(a_delivery(an_event(call=call)))

    link = await sink.archived_recording(call)

    url = f"{moto.url}/{bucket}/calls/acme/a%2520b%252Fc/recording.wav"
    assert link == Recording(url=url, expires_at=None)


# Erasing


async def test_an_erased_calls_folder_is_emptied_and_no_upload_stays_open(
    sinks: Sinks, bucket: str, source: Source
) -> None:
    sink = await sinks.open()
    await sink.deliver(a_delivery(event_of(source)))
    neighbour = an_event(id="evt_neighbour", call=a_call(id="call_7f31", recording=None))
    await sink.deliver(a_delivery(neighbour))
    for number in range(3):
        await sink.deliver(a_delivery(event_of(source, f"evt_{number}")))
    erased = Call(id="call_7f3", provider="retell", account="acme", status="ended")
    ask = sink.ask

    async def in_pages(operation: str, **parameters: Any) -> Any:
        return await ask(operation, **parameters, **({"MaxKeys": 2} if operation == "list_objects_v2" else {}))

    sink.ask = in_pages  # type: ignore[method-assign]
    for _ in range(2):
        await sink.erase(erased)

    assert list(objects(bucket)) == ["calls/acme/call_7f31/evt_neighbour.json"]
    sink.ask = ask  # type: ignore[method-assign]
    assert await sink.archived_recording(erased) is None


@pytest.mark.parametrize("known_by", ["note and list", "list", "note"])
async def test_of_an_erased_call_no_upload_goes_on(sinks: Sinks, bucket: str, source: Source, known_by: str) -> None:
    source.content, source.breaks_off_at = noise(10), 9 * MIB
    sink = await sinks.open()
    await refused(sink, event_of(source))
    assert len(uploads(bucket)) == 1
    if known_by == "list":
        sink.memory = LocalMemory()
    ask = sink.ask

    async def as_minio(operation: str, **parameters: Any) -> Any:
        """MinIO lists the uploads of an exact key only: https://github.com/minio/minio/issues/20989."""
        return {} if operation == "list_multipart_uploads" else await ask(operation, **parameters)

    if known_by == "note":
        sink.ask = as_minio  # type: ignore[method-assign]

    await sink.erase(a_call())

    assert (uploads(bucket), objects(bucket)) == ([], {})


async def test_what_cannot_be_deleted_is_told(sinks: Sinks, source: Source) -> None:
    sink = await sinks.open()
    await sink.deliver(a_delivery(event_of(source)))
    ask = sink.ask

    async def locked(operation: str, **parameters: Any) -> Any:
        if operation == "delete_object":
            raise SinkError("S3 refused: AccessDenied")
        return await ask(operation, **parameters)

    sink.ask = locked  # type: ignore[method-assign]
    with pytest.raises(SinkError, match="AccessDenied"):
        await sink.erase(a_call())


# The options


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"bucket": ""}, "bucket"),
        ({"link_days": 8}, "link_days"),
        ({"max_recording_mb": 0}, "max_recording_mb"),
        ({"public_url": "media.example.com"}, "public_url: expected http"),
        ({"access_key_id": "AKIA"}, "write both or neither"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=remedy):
        msgspec.convert({"bucket": "archive", **options}, S3.Config)


class TestContract(AtMoto):
    sink = S3
    moto = moto
    refused = NOT_TAKEN

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """The contract's calls have recordings at a host that is not there: this client plays it."""

        def play(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"content-length": "5"}, stream=httpx.ByteStream(b"sound"))

        async with httpx.AsyncClient(transport=httpx.MockTransport(play)) as http:
            yield http

    async def options(self) -> dict[str, Any]:
        self.bucket = a_bucket()
        return {**moto.options, "endpoint_url": self.front, "bucket": self.bucket}

    async def received(self) -> Iterable[str | bytes]:
        found = await asyncio.to_thread(objects, self.bucket)
        events = [body for key, body in found.items() if key.endswith(".json")]
        assert all(key.endswith((".json", "/recording.wav")) for key in found)
        for body in events:
            with contextlib.suppress(msgspec.DecodeError):  # the provider's own body is no event of ours
                call = decode(body).data.call
                assert (f"calls/{call.account}/{call.id}/recording.wav" in found) == (call.recording is not None)
        return events
