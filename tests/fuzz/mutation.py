"""JSON made hostile: a real document, bent. All chance comes from the `Random` that is given, so it can be replayed.

What no JSON encoder would write (NaN, half a character pair, a key twice) stands in a document as `msgspec.Raw`.
"""

import re
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
from msgspec import Raw

MARKER = "planted-secret-5e1f"

# Keys under which vendors put what must never leave: credentials, prompts, join URLs, headers, callbacks.
SECRET_KEYS = re.compile(
    r"secret|token|passw|credential|auth(?!or)|api_?key|headers|prompt|join_?url|callback|private|parameters"
    r"|additional_?params|connection_?config|initial_?state|request_?context",
    re.IGNORECASE,
)
# Keys under which customers put what they like, and what was said: it is passed on whole.
FREE_KEYS = re.compile(r"metadata|variables|arguments|result|custom_analysis|^text$|^content$", re.IGNORECASE)
PLANTED_KEYS = (
    "access_token", "joinUrl", "systemPrompt", "callbacks", "custom_sip_headers", "sip_password", "authorization",
    "api_key", "headers", "webhook_secret",
)  # fmt: skip

NUMBERS = (
    b"0", b"-1", b"-0.0", b"1e-400", b"0.1", b"1e15", b"1e308", b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity",
    b"9223372036854775808", b"18446744073709551616", b"-9223372036854775809", b"1" + b"0" * 40, b"9" * 5000,
    b"1795176051595", b"1795176051", b"253402300800000", b"-62135596800001", b"1E+2", b"-99999999999999",
)  # fmt: skip
TEXTS = (
    b'""', b'" "', b'"\\u0000"', b'"\\ud83d"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xef\xbb\xbf"',
    b'"\\u202e\\u0661"', b'"null"', b'"NaN"', b'"1e999"', b'"-5"', b'"1e1000000"', b'"2026-11-20T12:05:00Z"',
    b'"9999-12-31T23:59:59-23:59"', b'"0001-01-01T00:00:00+23:59"', b'"2026-13-45"', b'"20261120"', b'"66s"',
    b'"-1.5s"', b'"' + b"9" * 400 + b's"', b'"sip:ada:lock@example.com"', b'"__class__"', b'"Agent: a\\nUser: b\\nc"',
    b'"{\\"a\\": [1, NaN]}"', b'"' + b"[" * 300 + b'"', b'"' + b"[" * 990 + b"]" * 990 + b'"',
)  # fmt: skip
WHOLES = (b"null", b"true", b"false", b"[]", b"{}", b"[null]", b"[[[]]]", b'{"":0}', b'[{}, 1, "a", null]', b'{"a":')
DEPTHS = (60, 500, 990, 12_000)
LENGTHS = (300, 20_000)


def hostile(random: Random) -> Raw:
    """JSON text of a value that nobody expects."""
    kind = random.randrange(8)
    if kind == 6:
        depth = random.choice(DEPTHS)
        opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return Raw(opening * depth + b"null" + closing * depth)
    if kind == 7:
        piece = random.choice(
            (b"a", b" ", b"a-", b"sip:", b"9", b"\\n", "é".encode(), b"\\u0928\\u093f", b"\\\\", b"[")
        )
        return Raw(b'"' + piece * random.choice(LENGTHS) + b'"')
    return Raw(random.choice((NUMBERS, TEXTS, WHOLES)[kind % 3]))


def mutated(document: Any, random: Random) -> Any:
    """The document (which is changed) with one to four mutations in it."""
    for _ in range(1 + random.randrange(4)):
        holder = [document]
        parent, key = _place(document, random)
        if parent is None:
            parent, key = holder, 0
        _bend(parent, key, document, random)
        document = holder[0] if holder else None
    return document


def mutated_json(body: bytes, random: Random) -> bytes:
    """The same for JSON text; what is none comes back as it is."""
    try:
        return msgspec.json.encode(mutated(msgspec.json.decode(body), random))
    except (ValueError, RecursionError):
        return body


def mutated_text(text: str, random: Random) -> str:
    """A header's value, bent: its numbers, its spaces, its letters."""
    for _ in range(1 + random.randrange(3)):
        at = random.randrange(len(text) + 1)
        match random.randrange(6):
            case 0:
                text = text[:at] + chr(random.randrange(256)) + text[at + 1 :]
            case 1:
                odd = random.choice((" ", "\t", "\xa0", "\n", ",", ", ", "=", "\0", "٣", "-", "+"))
                text = text[:at] + odd + text[at:]
            case 2:
                number = random.choice(("nan", "inf", "-1", "0", "1e3", "9" * 400, "٣", "１", "1795176051595", "0x10"))
                text = re.sub("[0-9]+", number, text, count=1)
            case 3:
                text = text + random.choice((",", ", ", " ")) + text
            case 4:
                text = random.choice((text[:at], text[at:], text.upper(), f" {text} ", f'"{text}"', text[::-1]))
            case _:
                text = text.replace(random.choice((",", "=", ":", "v", "d")), random.choice(("", ";", ",", "=")), 1)
    return text


def planted(document: Any, random: Random, *, everywhere: bool = False) -> tuple[Any, int]:
    """The document with `MARKER` under every key that is a secret's and a few such keys more; how many there are."""
    count = 0
    for holder in list(_vendor_objects(document)):
        for key in holder:
            if SECRET_KEYS.search(key):
                holder[key] = _secret(random)
                count += 1
        for key in PLANTED_KEYS if everywhere else random.sample(PLANTED_KEYS, random.randrange(2)):
            holder[key] = _secret(random)
            count += 1
    return document, count


def _secret(random: Random) -> Any:
    return random.choice(
        (MARKER, [MARKER], {"url": MARKER, "secrets": [MARKER]}, {MARKER: MARKER}, f'{{"a":"{MARKER}"}}')
    )


def _vendor_objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for key, item in list(value.items()):
            if not FREE_KEYS.search(key):
                yield from _vendor_objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _vendor_objects(item)


def _place(document: Any, random: Random) -> tuple[Any, Any]:
    """A place in the document, the top ones as likely as those of the longest transcript."""
    parent, key, node = None, None, document
    while isinstance(node, (dict, list)) and node and (parent is None or random.randrange(6)):
        parent = node
        key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        node = parent[key]
    return parent, key


def _bend(parent: Any, key: Any, document: Any, random: Random) -> None:
    node = parent[key]
    match random.randrange(10):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, list):
            del parent[key]
        case 2:
            parent[key] = random.choice(([node], {"value": node}, [node, node, None], str(node), [node] * 40))
        case 3:
            there, other = _place(document, random)
            parent[key] = node if there is None else Raw(msgspec.json.encode(there[other]))
        case 4 if isinstance(parent, dict):
            parent[random.choice((*parent, key.upper(), key + " ", "", "\0", "id", "type"))] = parent.pop(key)
        case 5 if isinstance(node, dict) and node:  # a key twice
            again = msgspec.json.encode({random.choice(list(node)): hostile(random)})
            parent[key] = Raw(msgspec.json.encode(node)[:-1] + b"," + again[1:])
        case 6 if isinstance(node, (int, float)) and abs(node) < 1e18:
            parent[key] = random.choice((str(node), -node, node * 1000, node * 10**9, node / 7, bool(node)))
        case 6 if isinstance(node, str):
            parent[key] = random.choice(
                (node * 2, node[: len(node) // 2], node.upper(), [node], {node: node}, len(node))
            )
        case _:
            parent[key] = hostile(random)
