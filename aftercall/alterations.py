"""What happens to webhooks on their way, undone: the bodies and headers that may have been signed. Pure functions.

Each alteration is a sentence about what happened, and the bytes or headers as they would have been before.
"""

import base64
import binascii
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec

MAX_UNPACKED_BYTES = 8 * 1024 * 1024  # what the service takes

RAW = (
    "Pass on the bytes of the request as they came: no proxy, middleware, queue or capture may read and write them anew"
)
_STYLES = {
    "compact": -1,
    "with a space after each comma and colon": 0,
    "indented by 2": 2,
    "indented by 4": 4,
}
_ESCAPES = re.compile(r"\\\\|(?:\\u(?!00[0-7])[0-9a-fA-F]{4})+")
_LONE = re.compile("[\ud800-\udfff]")
_MARK = "\U0010fffe"  # a code point that no text has


class Body(NamedTuple):
    """A body as it may have been before. `packed`: it was inside the one that came."""

    hint: str
    body: bytes
    packed: bool = False


class Headers(NamedTuple):
    """Headers as they may have been before."""

    hint: str
    headers: Mapping[str, str]


# Bodies


def rewritten(body: bytes) -> Iterator[Body]:
    """The other ways to write this JSON; nothing if it is no JSON object or list."""
    try:
        text = body.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError:
        text = body.decode("latin-1")
    if text.lstrip()[:1] not in ("{", "["):
        return
    for order, ordered in (("", text), (", its keys sorted", _sorted(text))):
        for letters, spelt in (
            ("", ordered),
            (", other letters than ASCII as \\uXXXX", _escaped(ordered)),
            (", other letters than ASCII as they are", _unescaped(ordered)),
        ):
            for style, indent in _STYLES.items():
                try:
                    original = _formatted(spelt, indent).encode()
                except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                    return
                yield Body(
                    f"the body's JSON was written anew on the way: it was signed {style}{order}{letters}. {RAW}",
                    original,
                )


def _formatted(text: str, indent: int) -> str:
    """This JSON with other white space alone: the spelling of letters and numbers stays."""
    try:
        return msgspec.json.format(text, indent=indent)
    except msgspec.DecodeError:  # half a pair of surrogates, say, which JavaScript writes
        marked = _ESCAPES.sub(lambda match: _each_half(match[0], _MARK), text)
        return msgspec.json.format(marked, indent=indent).replace(_MARK, "\\u")


def _each_half(escapes: str, mark: str) -> str:
    """Escapes with `mark` for the \\u of each surrogate that has no other half."""
    if not escapes.startswith("\\u"):
        return escapes
    spelt, read = escapes.split("\\u")[1:], _read_escapes(escapes)
    units = [
        half for letter in read for half in ([True] if _LONE.match(letter) else [False] * (1 + (letter > "\uffff")))
    ]
    return "".join((mark if half else "\\u") + unit for unit, half in zip(spelt, units, strict=True))


def _read_escapes(escapes: str) -> str:
    return bytes.fromhex(escapes.replace("\\u", "")).decode("utf-16-be", "surrogatepass")


def _sorted(text: str) -> str:
    try:
        return _LONE.sub(_as_escape, json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False))
    except (ValueError, RecursionError):
        return text


def _escaped(text: str) -> str:
    return re.sub(r"[^\x00-\x7f]+", lambda match: json.dumps(match[0])[1:-1], text)


def _unescaped(text: str) -> str:
    def letters(match: re.Match[str]) -> str:
        escapes = match[0]
        return _LONE.sub(_as_escape, _read_escapes(escapes)) if escapes.startswith("\\u") else escapes

    return _ESCAPES.sub(letters, text)


def _as_escape(half: re.Match[str]) -> str:
    return f"\\u{ord(half[0]):04x}"


def framed(body: bytes) -> Iterator[Body]:
    """The body with other line ends, another encoding, unpacked."""
    yield Body(f"a newline was added at the end of the body. {RAW}", body.rstrip(b"\r\n"))
    yield Body(f"white space was added around the body. {RAW}", body.strip())
    yield Body(f"the newline at the end of the body was removed. {RAW}", body + b"\n")
    yield Body(f"the newline (CRLF) at the end of the body was removed. {RAW}", body + b"\r\n")
    yield Body(f"the line ends in the body were made CRLF. {RAW}", body.replace(b"\r\n", b"\n"))
    yield Body(f"the line ends in the body were made LF. {RAW}", body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    yield Body(f"a byte order mark was put before the body. {RAW}", body.removeprefix(BOM_UTF8))
    yield Body(f"the byte order mark before the body was removed. {RAW}", BOM_UTF8 + body)
    for charset, name in (("latin-1", "Latin-1"), ("cp1252", "Windows-1252")):
        if (before := _recoded(body, "utf-8", charset)) is not None:
            yield Body(f"the body was taken for {name} on the way, and made UTF-8 once more. {RAW}", before)
        elif (before := _recoded(body, charset, "utf-8")) is not None:
            yield Body(f"the body was made {name} on the way, and was signed as UTF-8. {RAW}", before)
    if inside := _unzipped(body):
        yield Body(
            "the body is still compressed (content-encoding), and what is inside was signed: have the proxy pass it on "
            "uncompressed; the service takes no compressed body",
            inside,
            packed=True,
        )
    if inside := _unwrapped(body):
        yield Body(
            "the body is wrapped in Base64 or in a JSON string, as gateways of serverless functions do, and what is "
            "inside was signed: unwrap it before it is passed on",
            inside,
            packed=True,
        )


def _recoded(body: bytes, from_: str, to: str) -> bytes | None:
    try:
        return body.decode(from_).encode(to)
    except UnicodeError:
        return None


def _unzipped(body: bytes) -> bytes | None:
    """The inside of gzip or zlib, as far as a webhook may be long."""
    try:
        return zlib.decompressobj(wbits=47).decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error:
        return None


def _unwrapped(body: bytes) -> bytes | None:
    if body.lstrip()[:1] == b'"':
        try:
            inside = json.loads(body)
            return inside.encode() if isinstance(inside, str) else None
        except (ValueError, RecursionError):
            return None
    try:
        return base64.b64decode(body.strip(), validate=True)
    except binascii.Error:
        return None


def symptoms(body: bytes) -> list[str]:
    """Traces of changes that cannot be undone."""
    if not body.strip():
        return ["the body is empty: it was read before (a stream can be read once), or was not captured"]
    found = []
    if "\ufffd".encode() in body:
        found.append(f"the body has replacement characters (U+FFFD): letters were lost on the way. {RAW}")
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return [*found, "the body is not JSON, or not whole: it may have been cut off on the way, or in the capture"]
    if _all_sorted(parsed):
        found.append(f"the keys of the body's JSON are in alphabetical order, as if it had been written anew. {RAW}")
    return found


def _all_sorted(value: object) -> bool:
    """Whether the objects' keys are in order, at least four in one of them."""
    lengths, level = [0], [value]
    while level:
        objects = [one for one in level if isinstance(one, dict)]
        if any(list(one) != sorted(one) for one in objects):
            return False
        lengths += map(len, objects)
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else _list(one))]
    return max(lengths) >= 4


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


# Headers


def _first(value: str) -> str:
    parts = value.split(",")
    return ",".join(parts[: (len(parts) + 1) // 2]).strip()


def _last(value: str) -> str:
    parts = value.split(",")
    return ",".join(parts[len(parts) // 2 :]).strip()


_VALUES: dict[str, Callable[[str], str]] = {
    "has spaces or quotes around it that were not sent: take them away": lambda value: value.strip(" \t\r\n\"'"),
    "was URL-encoded on the way: decode it, or pass it on as it came": unquote,
    "was URL-decoded on the way, a + made a space: pass it on as it came": lambda value: value.replace(" ", "+"),
    "was URL-decoded on the way: pass it on as it came": lambda value: quote(value, safe=""),
    "was merged from several, and the first of them holds: something on the way added one of its own": _first,
    "was merged from several, and the last of them holds: something on the way added one of its own": _last,
}


def reheaded(headers: Mapping[str, str], read: Iterable[str], earlier: Mapping[str, str]) -> Iterator[Headers]:
    """The headers with other values in those that are `read`, or other names.

    `earlier` has the first values of headers that came more than once.
    """
    names = [name for name in read if name in headers]
    for what, change in _VALUES.items():
        changed = {name: change(headers[name]) for name in names}
        different = [name for name in names if changed[name] != headers[name]]
        if different:
            yield Headers(f"the header {', '.join(different)} {what}", {**headers, **changed})
    if again := {name: value for name, value in earlier.items() if name in names}:
        yield Headers(
            f"the header {', '.join(again)} came more than once: the first one holds, and the last one is read; "
            "something on the way added one of its own",
            {**headers, **again},
        )
    renamed = {name.replace("_", "-").removeprefix("http-"): name for name in headers}
    if found := {name: renamed[name] for name in read if name not in headers and name in renamed}:
        told = ", ".join(f"{name} (it came as {was})" for name, was in found.items())
        yield Headers(
            f"the header {told} was renamed, as CGI and some frameworks do: pass it on by its own name",
            {**headers, **{name: headers[was] for name, was in found.items()}},
        )
