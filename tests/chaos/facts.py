"""What a run writes down, one JSON object a line, and how it is read back. Times are seconds since the run began."""

import time
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a provider and its answer."""

    posting: int
    copy: int
    attempt: int
    sent_s: float
    took_s: float
    status: int | None = None  # None: no answer
    error: str | None = None


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request at a sink's receiver."""

    sink: str
    id: str
    at_s: float  # its body was read
    until_s: float  # it was answered, or broken off
    answer: int  # HTTP status; 0: broken off, by the client or by the receiver
    signed: bool
    digest: str
    source: str
    subject: str
    type: str
    event: str | None  # the provider's word; None: aftercall made it
    sequence: int
    complete: bool


class Fetch(msgspec.Struct, frozen=True, kw_only=True):
    """One request at a record API."""

    call_id: str
    at_s: float
    until_s: float
    answer: int  # HTTP status; 0: broken off


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a process. From `gone_s` to `back_s` it certainly did nothing."""

    number: int
    kind: str
    target: str
    at_s: float
    gone_s: float
    back_s: float
    until_s: float  # it (or its successor) runs, and Redis answers


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """A process began or ended."""

    process: str
    pid: int
    at_s: float
    what: Literal["began", "ended"]
    status: int | None = None  # as in Popen: negative for a signal
    asked: str | None = None  # who ended it: kill | term | end; None: nobody did


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a process (its resident set), or of Redis (used_memory, and how many keys)."""

    process: str
    pid: int
    at_s: float
    bytes: int
    keys: int | None = None


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """How late this machine was: a timer of the load generator, or an answer of /livez, which needs no Redis."""

    of: str
    at_s: float
    late_s: float


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """The argv of a process, as everyone on the machine may read it."""

    process: str
    words: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command of the operator's; its stdout is the file `<name>.out`."""

    name: str
    status: int
    took_s: float


Fact = TypeVar("Fact", bound=msgspec.Struct)

FILES: dict[type[msgspec.Struct], str] = {
    Post: "posts",
    Arrival: "arrivals",
    Fetch: "fetches",
    Fault: "faults",
    Life: "lives",
    Sample: "samples",
    Pulse: "pulses",
    CommandLine: "cmdlines",
    Command: "commands",
}


class Writer:
    """Appends facts to the files of a run. Every line is in the kernel when `write` returns: no kill loses one."""

    def __init__(self, directory: Path, *kinds: type[msgspec.Struct]) -> None:
        self._files = {kind: (directory / f"{FILES[kind]}.ndjson").open("ab", buffering=0) for kind in kinds}

    def write(self, fact: msgspec.Struct) -> None:
        self._files[type(fact)].write(msgspec.json.encode(fact) + b"\n")

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def read(directory: Path, kind: type[Fact]) -> list[Fact]:
    """All facts of a kind, in the order in which they were written."""
    path = directory / f"{FILES[kind]}.ndjson"
    return msgspec.json.Decoder(kind).decode_lines(path.read_bytes()) if path.exists() else []


class Clock:
    """Seconds since the run began, the same in all its processes."""

    def __init__(self, began: float) -> None:
        self.began = began

    def restart(self) -> None:
        self.began = time.monotonic()

    def __call__(self) -> float:
        return round(time.monotonic() - self.began, 4)


def write_json(path: Path, value: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value)))
