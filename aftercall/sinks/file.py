"""File: every event as a line of JSON (NDJSON) at the end of a file, for log shippers and archives.

Delivered means written and fsynced (with `fsync = false`: written). Lines are whole, from any number of workers on one
machine: each takes the file's lock (https://man7.org/linux/man-pages/man2/flock.2.html, 2026-11), and takes back what a
full disk cut short. With `format = "raw"` a line is the provider's webhook, with spaces for its line ends.

An event that comes again is there again: readers dedupe on its id. The lines of an erased call are left out of a copy,
which then takes the file's place; what was rotated away to another name is not looked at.
"""

import asyncio
import errno
import fcntl
import glob
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery, Sink, SinkConfig

_DIRECTIVE = re.compile("%.?", re.DOTALL)
_ANY_TIME = {"%Y": "[0-9]" * 4, "%m": "[0-9]" * 2, "%d": "[0-9]" * 2, "%H": "[0-9]" * 2, "%%": "%"}  # as glob has it
# There can be no file of this path. All else an operator mends, or time: a full disk, a right, a missing directory.
_FOR_GOOD = {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR}


class File(Sink):
    raw = True

    class Config(SinkConfig, frozen=True):
        path: Annotated[
            str,
            Meta(min_length=1, description="the file; %Y, %m, %d and %H in its name are the event's time, in UTC"),
        ]
        fsync: Annotated[bool, Meta(description="whether delivered means that the disk has it")] = True

        def __post_init__(self) -> None:
            directory, name = os.path.split(self.path)
            if not name or "\0" in self.path:
                raise ValueError("path: expected the path of a file")
            if "%" in directory or set(_DIRECTIVE.findall(name)) - set(_ANY_TIME):
                raise ValueError(
                    "path: expected no more than %Y, %m, %d, %H and %%, and these in the file's name alone"
                )

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._directory, self._name = os.path.split(os.path.abspath(config.path))
        self._fsync = config.fsync
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="file-sink")  # starts with the first delivery

    async def close(self) -> None:
        with suppress(TimeoutError):  # a disk that hangs does not hold up the end
            await asyncio.wait_for(self._caught_up(), 3)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def render(self, delivery: Delivery) -> bytes:
        return b" ".join(delivery.body.splitlines()) + b"\n"  # in JSON line ends stand between values only

    async def deliver(self, delivery: Delivery) -> str:
        name = self._name_at(delivery.event.time)
        path, line = os.path.join(self._directory, name), self.render(delivery)
        try:
            # In a thread of its own: a disk that hangs takes no other sink's threads, and what is cancelled in the
            # queue is not written.
            await asyncio.get_running_loop().run_in_executor(self._thread, _append, path, line, self._fsync)
        except OSError as error:
            raise _refusal(error) from None
        return name

    async def erase(self, call: Call) -> None:
        names = _DIRECTIVE.sub(lambda found: _ANY_TIME[found[0]], glob.escape(self._name))
        await self._caught_up()  # or a line of the call would come after
        try:
            await asyncio.to_thread(_erase, self._directory, names, call)
        except OSError as error:
            raise _refusal(error) from None

    async def _caught_up(self) -> None:
        """When nothing is being written any more, also of attempts that were cancelled meanwhile."""
        await asyncio.get_running_loop().run_in_executor(self._thread, bool)

    def _name_at(self, time: str) -> str:
        at = datetime.fromisoformat(time).astimezone(UTC)
        parts = {"%Y": f"{at.year:04}", "%m": f"{at.month:02}", "%d": f"{at.day:02}", "%H": f"{at.hour:02}", "%%": "%"}
        return _DIRECTIVE.sub(lambda found: parts[found[0]], self._name)


def _append(path: str, line: bytes, fsync: bool) -> None:
    with _locked(path, os.O_CREAT) as file:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # somebody's torn line, after a loss of power say
            line = b"\n" + line
        try:
            written = 0
            while written < len(line):
                written += os.write(file, line[written:])
        except OSError:
            os.ftruncate(file, size)
            raise
        fcntl.flock(file, fcntl.LOCK_UN)  # the others need not wait for the disk
        if fsync:
            os.fsync(file)
            if not size:
                _fsync_directory(path)


@contextmanager
def _locked(path: str, flags: int = 0) -> Iterator[int]:
    """The file, open for us alone. What was rotated away or replaced while we waited is let go."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EISDIR, "not a regular file")
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_there(path, file):
                yield file
                return
        finally:
            os.close(file)


def _is_there(path: str, file: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _erase(directory: str, names: str, call: Call) -> None:
    os.stat(directory)  # where a volume is not mounted, nothing is erased
    for found in glob.iglob(os.path.join(glob.escape(directory), names)):
        path = os.path.realpath(found)
        with suppress(FileNotFoundError):
            with open(path, "rb") as file:
                is_concerned = any(_is_of(call, line) for line in file)
            if is_concerned:  # until here nobody had to wait
                _write_anew(path, call)


def _write_anew(path: str, call: Call) -> None:
    directory, name = os.path.split(path)
    copy = os.path.join(directory, f".{name}.erasing")
    with _locked(path) as file:
        try:
            with open(file, "rb", closefd=False) as old, open(copy, "wb", opener=_ours_alone) as new:
                new.writelines(line for line in old if not _is_of(call, line))
                new.flush()
                was = os.fstat(file)
                with suppress(PermissionError):
                    os.fchown(new.fileno(), was.st_uid, was.st_gid)
                os.fchmod(new.fileno(), stat.S_IMODE(was.st_mode))
                os.fsync(new.fileno())
            os.replace(copy, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(copy)
            raise
        _fsync_directory(path)


def _is_of(call: Call, line: bytes) -> bool:
    """Whether the line is the call's; one that is no event of ours, the provider's own say, is if it names its id."""
    if msgspec.json.encode(call.id) not in line:
        return False
    try:
        event = decode(line)
    except msgspec.DecodeError:
        return True
    source = f"/{call.provider}/{call.account}"
    return (event.source, event.subject) == (source, call.id) and event.type != "call.erased"


def _ours_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _fsync_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _refusal(error: OSError) -> SinkError:
    if error.errno in _FOR_GOOD:
        return SinkError("the path cannot be a file: set another, and replay what is dead", permanent=True)
    if error.errno == errno.ENOENT:
        return SinkError("the file's directory is not there: make it, or mount it")
    return SinkError(f"the file cannot be written: {os.strerror(error.errno or errno.EIO)}")
