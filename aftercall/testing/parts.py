"""What the contract suites stand on: a vendor's API on loopback, and JSON bent out of shape."""

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import httpx

from aftercall.client import make_client

MARKER = "planted-7f3a"
BENT = 40  # bent documents of each fixture
TIMEOUT_S = 0.3

T = TypeVar("T")
Answer = tuple[int, bytes, dict[str, str]]  # status, body, headers
SILENCE: Answer = (0, b"", {})  # takes the request and never answers

# What stands where nobody expects it. "\ud83d" is half a character, as JSON.stringify writes a text cut in its middle.
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 0.5, 1e300, 10**18, "", "x", "\x00", "\ud83d", "null", "-1.5s", "2026-13-45T99:00:00Z",
    [], {}, [None], [[]], [{}, 1, "a"], {"": None}, MARKER,
)  # fmt: skip


class Asked(NamedTuple):
    method: str
    target: str  # path and query, as they were sent
    headers: dict[str, str]  # names in lower case
    body: bytes


class Api:
    """A vendor's API on loopback. `pages(method, path)` are the answers there: each new request gets the next one, one
    that was made before the same as then. None is a 404. With a `fault` that is the answer to everything.
    """

    def __init__(self, pages: Callable[[str, str], Sequence[bytes] | None], fault: Answer | None = None) -> None:
        self.pages = pages
        self.fault = fault
        self.asked: list[Asked] = []
        self._answered: dict[tuple[str, str], list[Asked]] = {}  # by method and path: the requests that differ

    def run(self, use: Callable[[str, httpx.AsyncClient], Awaitable[T]]) -> T:
        """What `use(url, client)` gives while the API is there. In an event loop of its own."""
        return asyncio.run(self._run(use))

    async def _run(self, use: Callable[[str, httpx.AsyncClient], Awaitable[T]]) -> T:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with make_client(guarded=False, timeout_s=TIMEOUT_S if self.fault == SILENCE else 5.0) as client:
                return await use(f"http://127.0.0.1:{port}", client)
        finally:
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0)  # a transport closes its socket in a turn of its own

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            method, target, _ = first.split(" ", 2)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(method, target, headers, body)
            self.asked.append(asked)
            status, content, more = self.fault or self._answer(asked)
            if status == 0:
                async with asyncio.timeout(3 * TIMEOUT_S):  # for a provider that has set a longer one itself
                    await reader.read()  # until the client gives up
                return
            fields = {"content-length": str(len(content)), "connection": "close", **more}
            lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + content)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client is gone
        finally:
            writer.close()

    def _answer(self, asked: Asked) -> Answer:
        path = asked.target.partition("?")[0]
        pages = self.pages(asked.method, path)
        if pages is None:
            return 404, b"{}", {}
        requests = self._answered.setdefault((asked.method, path), [])
        same = [one for one in requests if (one.target, one.body) == (asked.target, asked.body)]
        if not same:
            requests.append(asked)
        page = pages[min(requests.index((same or [asked])[0]), len(pages) - 1)] if pages else b""
        return (200 if page else 204), page, {"content-type": "application/json"}

    def unread(self) -> list[str]:
        """The paths of which not every page was asked for."""
        return [
            path
            for (method, path), requests in self._answered.items()
            if len(requests) < len(self.pages(method, path) or ())
        ]


def tampered(body: bytes) -> Iterator[tuple[str, bytes]]:
    """The body changed: a bit here and there, something more, something less."""
    for at in sorted({len(body) * part // 16 for part in range(16)} | {len(body) - 1} if body else ()):
        yield f"byte {at} changed", body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    yield "a space at its end", body + b" "
    yield "a line break before it", b"\n" + body
    if body:
        yield "its last byte cut off", body[:-1]


def bent_bodies(body: bytes, seed: str) -> Iterator[bytes]:
    """The JSON bent in its structure, and the bytes in theirs; the same ones each time."""
    random = Random(crc32(seed.encode()))
    for number in range(BENT):
        if number % 4:
            yield json.dumps(bent(json.loads(body), random)).encode()
        else:
            at = random.randrange(len(body))
            yield random.choice((body[:at], body[:at] + bytes([random.randrange(256)]) + body[at + 1 :], body[at:]))


def bent(document: Any, random: Random) -> Any:
    """A copy with one to four of its parts gone, or replaced by what nobody expects there."""
    document = copy.deepcopy(document)
    for _ in range(random.randint(1, 4)):
        holder = document
        while isinstance(holder, (dict, list)) and holder:
            key = random.choice(list(_keys(holder)))
            if isinstance(holder[key], (dict, list)) and holder[key] and random.random() < 0.7:
                holder = holder[key]
            elif random.random() < 0.3:
                del holder[key]
                break
            else:
                holder[key] = copy.deepcopy(random.choice(ODD))
                break
    return document


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


def _keys(holder: Any) -> Collection[Any]:
    return holder.keys() if isinstance(holder, dict) else range(len(holder))


def texts(value: Any) -> set[str]:
    """Every text in a JSON value."""
    return {held[key] for held in _holders([value]) for key in _keys(held) if isinstance(held[key], str)}


def hollow(value: Any) -> Any:
    """A JSON value with its objects as they are and nothing in them."""
    return {key: hollow(item) for key, item in value.items()} if isinstance(value, dict) else None


def planted(value: Any, keys: Collection[str], within: bool = False) -> Any:
    """A copy with the marker for every text, and every null, under one of the keys, however deep."""
    if isinstance(value, dict):
        return {key: planted(item, keys, within or key in keys) for key, item in value.items()}
    if isinstance(value, list):
        return [planted(item, keys, within) for item in value]
    return MARKER if within and (value is None or isinstance(value, str)) else value


def said(value: Any, silent: Any, path: str = "") -> set[str]:
    """The paths in a JSON value of what is said: neither empty nor what `silent` has there."""
    if isinstance(value, dict) and value:
        silent = silent if isinstance(silent, dict) else {}
        inner = [said(item, silent.get(key), f"{path}.{key}".lstrip(".")) for key, item in value.items()]
        return set().union(*inner)
    return set() if value in (None, "", [], {}) or value == silent else {path}
