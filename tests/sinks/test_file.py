import asyncio
import fcntl
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import pytest

from aftercall.call import Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.file import File
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import until


class Sinks:
    """Makes sinks, and closes them at the end of the test."""

    def __init__(self, directory: Path, http: httpx.AsyncClient) -> None:
        self.path, self._http = directory / "calls.ndjson", http
        self.made: list[File] = []

    def make(self, path: Path | None = None, **options: Any) -> File:
        self.made.append(File("log", File.Config(path=str(path or self.path), **options), self._http))
        return self.made[-1]

    def ids(self, path: Path | None = None) -> list[str]:
        return [decode(line).id for line in (path or self.path).read_bytes().splitlines()]


@pytest.fixture
async def sinks(tmp_path: Path) -> AsyncIterator[Sinks]:
    async with make_client(guarded=False) as http:
        sinks = Sinks(tmp_path, http)
        yield sinks
        for sink in sinks.made:
            await sink.close()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@contextmanager
def without_rights(directory: Path) -> Iterator[None]:
    user = os.geteuid()
    directory.chmod(0)
    if user == 0:
        os.seteuid(65534)  # nobody: root may write everywhere
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(0o700)


async def refused(sink: File) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery())
    return caught.value


@contextmanager
def held(path: Path) -> Iterator[threading.Event]:
    """Somebody else has the file's lock. The event is set when a sink asks for it, and waits."""
    asked, real = threading.Event(), fcntl.flock

    def flock(file: int, operation: int) -> None:
        asked.set()
        real(file, operation)

    with path.open("a") as file, pytest.MonkeyPatch.context() as patch:
        real(file, fcntl.LOCK_EX)
        patch.setattr(fcntl, "flock", flock)
        yield asked


# The lines


async def test_an_event_is_a_line_in_the_order_of_delivery(sinks: Sinks) -> None:
    sink = sinks.make()
    deliveries = [
        a_delivery(an_event(id=name, call=a_call(error="Grüezi\n\u2028 你好"))) for name in ("evt_b", "evt_a")
    ]
    for delivery in deliveries:
        assert await sink.deliver(delivery) == "calls.ndjson"

    assert sinks.path.read_bytes() == b"".join(delivery.body + b"\n" for delivery in deliveries)
    assert sinks.path.stat().st_mode & 0o777 == 0o600


async def test_the_providers_webhook_is_one_line_whatever_white_space_it_has(sinks: Sinks) -> None:
    body = b'{\r\n  "call": "a\\nb \\u00e9 \\ud83d",\n\n "n": 1.50 \r}\n'

    await sinks.make().deliver(Delivery(event=an_event(), body=body, format="raw"))

    assert sinks.path.read_bytes() == b'{   "call": "a\\nb \\u00e9 \\ud83d",   "n": 1.50  }\n'


async def test_the_file_is_named_by_the_events_time_in_utc(sinks: Sinks, tmp_path: Path) -> None:
    sink = sinks.make(tmp_path / "[100%%] %Y-%m-%dT%H")
    for time in ("2026-11-20T23:59:59.999Z", "2026-11-21T00:00:00.000Z", "0099-01-02T01:30:00.000+02:00"):
        await sink.deliver(a_delivery(an_event(time=time)))

    names = ["[100%] 0099-01-01T23", "[100%] 2026-11-20T23", "[100%] 2026-11-21T00"]
    assert sorted(files(tmp_path)) == names


async def test_a_file_that_was_moved_away_is_begun_anew(sinks: Sinks, tmp_path: Path) -> None:
    sink = sinks.make()
    await sink.deliver(a_delivery(an_event(id="evt_1")))
    sinks.path.rename(tmp_path / "calls.ndjson.1")

    await sink.deliver(a_delivery(an_event(id="evt_2")))

    assert (sinks.ids(tmp_path / "calls.ndjson.1"), sinks.ids()) == (["evt_1"], ["evt_2"])


async def test_what_is_moved_away_while_a_delivery_waits_does_not_take_its_line_along(
    sinks: Sinks, tmp_path: Path
) -> None:
    with held(sinks.path) as asked:
        delivery = asyncio.create_task(sinks.make().deliver(a_delivery()))
        await until(asked.is_set)
        sinks.path.rename(tmp_path / "calls.ndjson.1")
    await delivery

    assert ((tmp_path / "calls.ndjson.1").read_bytes(), sinks.ids()) == (b"", ["evt_lantern"])


async def test_a_torn_line_does_not_spoil_the_next(sinks: Sinks) -> None:
    torn = a_delivery().body[:50]
    sinks.path.write_bytes(torn)

    await sinks.make().deliver(a_delivery())

    assert sinks.path.read_bytes() == torn + b"\n" + a_delivery().body + b"\n"


WORKER = """
import asyncio, sys
from aftercall.client import make_client
from aftercall.sinks.file import File
from tests.samples import a_call, a_delivery, an_event

async def main(path, worker):
    async with make_client(guarded=False) as http:
        sink = File("log", File.Config(path=path, fsync=False), http)
        for number in range(150):
            event = an_event(id=f"evt_{worker}_{number}", call=a_call(id=f"c{number % 3}", error="x" * 30_000))
            await sink.deliver(a_delivery(event))
        await sink.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_workers_write_whole_lines_side_by_side_also_while_a_call_is_erased(sinks: Sinks) -> None:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", WORKER, str(sinks.path)]
    workers = [await asyncio.create_subprocess_exec(*command, str(n), cwd=root, env=environment) for n in range(3)]
    eraser, over = sinks.make(), asyncio.gather(*(worker.wait() for worker in workers))
    while not over.done():
        await eraser.erase(a_call(id="c0"))
        await asyncio.sleep(0.005)
    assert over.result() == [0, 0, 0]
    await eraser.erase(a_call(id="c0"))

    expected = {f"evt_{worker}_{number}" for worker in range(3) for number in range(150) if number % 3}
    ids = sinks.ids()
    assert len(ids) == 300
    assert set(ids) == expected
    assert list(files(sinks.path.parent)) == ["calls.ndjson"]


async def test_what_is_given_up_while_it_waits_is_not_written(sinks: Sinks) -> None:
    sink = sinks.make()
    with held(sinks.path) as asked:
        first, second, third = (
            asyncio.create_task(sink.deliver(a_delivery(an_event(id=f"evt_{number}")))) for number in range(3)
        )
        await until(asked.is_set)
        second.cancel()
        await asyncio.wait([second], timeout=20)
        assert second.cancelled()
    await asyncio.gather(first, third)

    assert sinks.ids() == ["evt_0", "evt_2"]


async def begun(sink: File, asked: threading.Event) -> None:
    """An attempt that timed out while its line waits for the file's lock."""
    attempt = asyncio.create_task(sink.deliver(a_delivery()))
    await until(asked.is_set)
    attempt.cancel()
    await asyncio.wait([attempt], timeout=20)
    assert attempt.cancelled()


async def test_nothing_is_written_once_it_is_closed(sinks: Sinks) -> None:
    sink = sinks.make()
    with held(sinks.path) as asked:
        await begun(sink, asked)
        closing = asyncio.create_task(sink.close())
        await asyncio.wait([closing], timeout=0.1)
        assert not closing.done()
    await closing

    assert sinks.ids() == ["evt_lantern"]
    sinks.made.clear()


async def test_a_line_that_an_attempt_left_behind_is_erased_too(sinks: Sinks) -> None:
    sink, call = sinks.make(), a_call()
    with held(sinks.path) as asked:
        await begun(sink, asked)
        erasing = asyncio.create_task(sink.erase(call))
        await asyncio.wait([erasing], timeout=0.1)
    await erasing
    await sink.close()

    assert sinks.ids() == []
    sinks.made.clear()


@pytest.mark.parametrize("fsync", [True, False])
async def test_delivered_means_fsynced_unless_that_is_not_wanted(
    sinks: Sinks, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    synced: list[str] = []
    real = os.fsync

    def watched(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        real(file)

    monkeypatch.setattr(os, "fsync", watched)
    sink = sinks.make(fsync=fsync)
    for _ in range(2):
        await sink.deliver(a_delivery())

    path = str(sinks.path)
    assert synced == ([path, str(sinks.path.parent), path] if fsync else [])


# Refusals and faults


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """A file can grow no further than that, as on a disk that is full: the system takes what fits, then nothing."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_of_a_line_that_did_not_fit_nothing_stays_and_it_is_written_when_there_is_room(sinks: Sinks) -> None:
    sink = sinks.make()
    await sink.deliver(a_delivery(an_event(id="evt_1")))
    size = sinks.path.stat().st_size
    with full_at(size + 100):
        error = await refused(sink)
    assert (error.permanent, "File too large" in str(error)) == (False, True)
    assert sinks.path.stat().st_size == size

    await sink.deliver(a_delivery(an_event(id="evt_2")))
    assert sinks.ids() == ["evt_1", "evt_2"]


async def test_without_its_directory_it_passes_and_no_other_is_made(sinks: Sinks, tmp_path: Path) -> None:
    sink = sinks.make(tmp_path / "archive/calls.ndjson")

    error = await refused(sink)
    assert (error.permanent, str(error)) == (False, "the file's directory is not there: make it, or mount it")
    assert files(tmp_path) == {}
    with pytest.raises(SinkError, match="make it, or mount it"):
        await sink.erase(a_call())

    (tmp_path / "archive").mkdir()
    await sink.deliver(a_delivery())
    assert sinks.ids(tmp_path / "archive/calls.ndjson") == ["evt_lantern"]


async def test_without_the_right_to_write_it_passes_once_that_is_given(sinks: Sinks, tmp_path: Path) -> None:
    sink = sinks.make()
    with without_rights(tmp_path):
        error = await refused(sink)
    assert (error.permanent, str(error)) == (False, "the file cannot be written: Permission denied")

    await sink.deliver(a_delivery())
    assert sinks.ids() == ["evt_lantern"]


@pytest.mark.parametrize("kind", ["directory", "below a file", "pipe", "long name", "link to itself"])
async def test_a_path_that_can_be_no_file_is_refused_for_good(sinks: Sinks, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("n" * 300 if kind == "long name" else "it")
    if kind == "directory":
        path.mkdir()
    elif kind == "below a file":
        path.write_text("")
        path /= "calls.ndjson"
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)

    error = await refused(sinks.make(path))

    assert error.permanent
    assert "set another" in str(error)


# Erasing


async def test_exactly_the_lines_of_the_erased_call_go(sinks: Sinks) -> None:
    sink, call = sinks.make(), a_call()
    others = {
        "another_call": a_call(id="call_7f4"),
        "a_longer_id": a_call(id="call_7f33"),
        "another_account": a_call(account="acme2"),
        "another_provider": a_call(provider="ultravox"),
        "speaks_of_it": a_call(id="call_9", metadata={"before": "call_7f3", "source": "/retell/acme"}),
    }
    for number, (name, other) in enumerate(others.items()):
        await sink.deliver(a_delivery(an_event(id=f"evt_{number}", call=call)))
        await sink.deliver(a_delivery(an_event(id=name, call=other)))
    await sink.deliver(a_delivery(an_event(id="evt_erased", type="call.erased", call=call)))
    sinks.path.chmod(0o640)

    for _again in range(2):
        await sink.erase(call)

    assert sinks.ids() == [*others, "evt_erased"]
    assert sinks.path.stat().st_mode & 0o777 == 0o640


async def test_lines_that_are_no_events_go_if_they_name_the_call_and_stay_as_they_are_if_not(sinks: Sinks) -> None:
    torn = a_delivery().body[:200] + b"\n"
    kept = b'{"call_id": "call_8"}\n\n\xff\x00 not json\n{"call_id":"call_7f33"}\n'
    sinks.path.write_bytes(b'{"call_id": "call_7f3"}\n' + torn + kept + b"no newline")

    await sinks.make().erase(a_call())

    assert sinks.path.read_bytes() == kept + b"no newline"


async def test_all_files_that_the_path_may_mean_are_looked_at_and_no_others(sinks: Sinks, tmp_path: Path) -> None:
    sink, line = sinks.make(tmp_path / "[a]%Y%m%d.ndjson"), a_delivery().body + b"\n"
    ours, others = (
        ("[a]20261120.ndjson", "[a]20251120.ndjson"),
        ("a20261120.ndjson", "[a]2026112.ndjson", "[a]20261120.ndjson.1"),
    )
    for name in (*ours, *others):
        (tmp_path / name).write_bytes(line)

    await sink.erase(a_call())

    assert files(tmp_path) == {
        **dict.fromkeys(ours, b""),
        **dict.fromkeys(others, line),
    }


async def test_a_link_stays_one_and_the_file_behind_it_is_written_anew(sinks: Sinks, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    sinks.path.symlink_to(tmp_path / "volume/calls")
    await sinks.make().deliver(a_delivery())

    await sinks.make().erase(a_call())

    assert sinks.path.is_symlink()
    assert files(tmp_path / "volume") == {"calls": b""}


async def test_an_erasure_for_which_there_is_no_room_passes_and_leaves_all_as_it_was(
    sinks: Sinks, tmp_path: Path
) -> None:
    sink = sinks.make()
    turns = [Turn(role="user", text="x" * 200_000)]
    await sink.deliver(a_delivery(an_event(id="evt_other", call=a_call(id="call_8", transcript=turns))))
    await sink.deliver(a_delivery())
    with full_at(100_000), pytest.raises(SinkError, match="File too large") as caught:
        await sink.erase(a_call())
    assert not caught.value.permanent
    assert sinks.ids() == ["evt_other", "evt_lantern"]
    assert list(files(tmp_path)) == ["calls.ndjson"]

    await sink.erase(a_call())
    assert sinks.ids() == ["evt_other"]


async def test_a_file_without_the_call_is_not_touched_and_nobody_waited_for(sinks: Sinks) -> None:
    sink = sinks.make()
    await sink.deliver(a_delivery())
    before = sinks.path.stat().st_ino

    with held(sinks.path):
        await asyncio.wait_for(sink.erase(a_call(id="call_8")), 20)

    assert sinks.path.stat().st_ino == before


# The options


def test_the_path_is_enough() -> None:
    assert msgspec.convert({"path": "calls.ndjson"}, File.Config) == File.Config(path="calls.ndjson", fsync=True)


@pytest.mark.parametrize("path", ["", "logs/", "a\0b", "%Y/calls", "calls-%y", "calls-%", "calls-%-d"])
def test_a_path_that_makes_no_sense_is_refused(path: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="path"):
        msgspec.convert({"path": path}, File.Config)


class TestContract(SinkContract):
    sink = File
    idempotent = False  # readers dedupe on the event's id

    async def start(self) -> None:
        self.temporary = TemporaryDirectory()
        self.directory = Path(self.temporary.name, "archive")
        self.directory.mkdir()

    async def stop(self) -> None:
        self.temporary.cleanup()

    async def options(self) -> dict[str, Any]:
        return {"path": str(self.directory / "calls-%Y-%m-%d.ndjson")}

    async def received(self) -> list[bytes]:
        return [line for path in self.directory.iterdir() for line in path.read_bytes().splitlines()]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        away = self.directory.rename(self.directory.with_name("away"))
        yield
        away.rename(self.directory)

    @asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        self.directory.rmdir()
        self.directory.write_text("a file where the directory was")
        yield
