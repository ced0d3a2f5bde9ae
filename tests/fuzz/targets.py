"""What must hold whatever comes in: one check a target, over bytes.

The bytes are made up by Hypothesis (`make test`), found by coverage (`make fuzz`), or read from the file of a finding.
Each provider of the registry is a target of each verb.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, get_args
from zlib import crc32

import msgspec

from aftercall import event
from aftercall.call import Call
from aftercall.client import is_public, retry_after_s
from aftercall.enrich import enrich
from aftercall.errors import SignatureError, UndecodableWebhook
from aftercall.event import CallEvent, EventData, EventType
from aftercall.plugins import PROVIDERS, provider_class
from aftercall.providers.base import Account, Provider, Record, Request, Webhook
from aftercall.providers.shapes import decode_json
from simulator.signing import HEADERS
from tests.fuzz.mutation import MARKER, mutated_json, mutated_text, planted

FIXTURES = Path(__file__).parents[1] / "fixtures"
SECRET = "hook-3f9c1e7a52b84d06a1c7"
NOW = 1_795_176_060.0
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MAX_DEPTH = 64  # what the strictest common JSON readers take (.NET's default); a consumer must be able to read an event


class Target(NamedTuple):
    """`check` raises for a finding; `mutate` makes another input of one that is known."""

    check: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]


@cache
def provider_named(name: str) -> Provider:
    keys = {"api_key": f"key-{MARKER}", "webhook_secrets": (SECRET,)}
    return provider_class(name)(msgspec.convert({"name": "harbour", "provider": name, **keys}, Account))


def webhook_bodies(name: str) -> list[bytes]:
    """The provider's webhooks among the fixtures."""
    paths = sorted((FIXTURES / name).glob("*.json"))
    return [path.read_bytes() for path in paths if path.stem != "vectors" and not path.stem.startswith("rest.")]


def record_bodies(name: str) -> list[bytes]:
    """What the provider's `fetch` may give, as JSON; where it makes one of several answers, that one too."""
    answers = {path.stem: path.read_bytes() for path in sorted((FIXTURES / name).glob("rest.*.json"))}
    records = [body for stem, body in answers.items() if stem.startswith("rest.get_call")]
    pages = [msgspec.json.decode(body)["results"] for stem, body in answers.items() if stem.startswith("rest.messages")]
    if pages:
        messages = [message for page in pages for message in page]
        records = [msgspec.json.encode({"call": msgspec.Raw(record), "messages": messages}) for record in records]
    return records


# verify


def signed_headers(name: str, body: bytes, *, secret: str = SECRET, at: float = NOW) -> dict[str, str]:
    return HEADERS[name](body, secret, at)


def is_signed_over(name: str, *, body: bool = False, time: bool = False) -> bool:
    """Whether a provider's signature depends on the body, or on the time."""
    once = signed_headers(name, b"{}")
    return (body and once != signed_headers(name, b"[]")) or (time and once != signed_headers(name, b"{}", at=NOW + 9))


def tokens(value: str) -> set[str]:
    """The parts of a header's value. Digests count without case, and numbers without leading zeros."""
    parts = re.split(r"[\s,;=]+", value)
    return {part.lower() if re.fullmatch("[0-9a-fA-F]{32,}", part) else part.lstrip("0") for part in parts if part}


def is_genuine(name: str, request: Request, now: float) -> bool:
    """Whether an accepted request is one that the provider has signed, or the same in another spelling."""
    if is_signed_over(name, time=True) and not abs(now - NOW) <= 3600:
        return False
    bodies = [request.body] if not is_signed_over(name, body=True) else webhook_bodies(name)
    return request.body in bodies and all(
        tokens(value) <= tokens(request.headers.get(header, ""))
        for header, value in signed_headers(name, request.body).items()
    )


def verdict(
    provider: Provider, headers: Mapping[str, str], body: bytes, secrets: Sequence[str] = (SECRET,), now: float = NOW
) -> str:
    """ "accepted", or the cause of the refusal; anything but a `SignatureError` gets through as a finding."""
    try:
        provider.verify(Request(headers=headers, body=body, url="/webhooks/harbour"), secrets, now)
    except SignatureError as error:
        refusal = error
    else:
        return "accepted"
    assert refusal.cause in ("missing", "malformed", "stale", "mismatch")
    assert not any(secret in str(refusal) for secret in secrets if len(secret) > 8)
    return refusal.cause


def check_verify(name: str, data: bytes) -> None:
    """`now`, then a header a line, an empty line, the body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    now = float(first) if re.fullmatch(r"-?\d{1,20}(\.\d{1,9})?|nan|-?inf", first, re.ASCII) else NOW
    headers = {
        header: value.removeprefix(" ") for header, colon, value in (line.partition(":") for line in lines) if colon
    }
    provider = provider_named(name)
    if verdict(provider, headers, body, ("another-secret", SECRET), now) == "accepted":
        assert is_genuine(name, Request(headers=headers, body=body), now), "accepted what was not signed"


def verify_seeds(name: str) -> list[bytes]:
    def seed(body: bytes) -> bytes:
        lines = [f"{NOW}", *(f"{header}: {value}" for header, value in signed_headers(name, body).items())]
        return "\n".join(lines).encode() + b"\n\n" + body

    return [seed(body) for body in webhook_bodies(name)]


def mutate_verify(data: bytes, random: Random) -> bytes:
    head, _, body = data.partition(b"\n\n")
    lines = head.decode("latin-1").split("\n")
    at = random.randrange(len(lines))
    if random.randrange(8) == 0:
        body = mutated_json(body, random)
    lines[at] = mutated_text(lines[at], random)
    return "\n".join(lines).encode("latin-1", "replace") + b"\n\n" + body


# decode


def check_decode(name: str, body: bytes) -> list[Webhook]:
    """The webhooks, none if the body is refused."""
    provider = provider_named(name)
    webhooks: list[Webhook] = []
    refusal = ""
    try:
        webhooks = provider.decode(body)
    except UndecodableWebhook as error:
        refusal = str(error)
    assert MARKER not in refusal, "the refusal quotes the body"
    assert refusal or provider.decode(body) == webhooks
    for webhook in webhooks:
        assert webhook.type in get_args(EventType)
        assert webhook.call_id
        (webhook.call_id + webhook.event + webhook.dedupe_key).encode()
        assert webhook.happened_at is None or STAMP.fullmatch(webhook.happened_at)
    assert len({webhook.dedupe_key for webhook in webhooks}) == len(webhooks)
    return webhooks


# normalize


def check_normalize(name: str, data: bytes) -> None:
    """A webhook's body, and after a zero byte the record. Secrets are planted in every other one."""
    body, zero, answer = data.replace(MARKER.encode(), b"").partition(b"\0")
    chance = Random(crc32(data))
    if chance.randrange(2):
        body, answer = with_secrets(body, chance), with_secrets(answer, chance)
    record: Any = None
    if zero:
        try:
            record = decode_json(answer)
        except (ValueError, RecursionError):  # `fetch` says that it is not ready
            record = None
    check_call(name, body, record if isinstance(record, dict) else None)


def check_call(name: str, body: bytes, record: Record | None) -> list[Call]:
    """The calls of a webhook's body, also of one that `decode` would not have let through."""
    webhooks = check_decode(name, body) or [msgspec.structs.replace(a_webhook(name), body=body)]
    return [check_webhook(name, webhook, record) for webhook in webhooks]


@cache
def a_webhook(name: str) -> Webhook:
    return next(webhook for body in webhook_bodies(name) for webhook in provider_named(name).decode(body))


def check_webhook(name: str, webhook: Webhook, record: Record | None) -> Call:
    provider = provider_named(name)
    before = msgspec.json.encode(record)
    call = provider.normalize(webhook, record)
    assert msgspec.json.encode(record) == before, "normalize changed the record"
    assert isinstance(provider.is_ready(webhook, record or {}), bool)
    written = msgspec.json.encode(call)
    assert msgspec.json.encode(provider.normalize(webhook, record)) == written, "normalize is not pure"
    enriched = enrich(call)
    assert enrich(enriched) == enriched
    assert msgspec.structs.replace(enriched, metrics=None) == call
    made = CallEvent(
        id="evt_lantern",
        source=f"/{name}/harbour",
        type=webhook.type,
        subject=webhook.call_id,
        time=webhook.happened_at or "2026-11-20T12:05:00.000Z",
        data=EventData(received_at="2026-11-20T12:05:00.000Z", sequence=1, call=enriched),
    )
    leaves = event.encode(made)
    assert event.decode(leaves) == made
    assert depth(msgspec.json.decode(leaves)) <= MAX_DEPTH
    assert MARKER.encode() not in leaves, "a secret is in the event"
    for stamp in (call.started_at, call.ended_at, call.privacy.redacted_at):
        assert stamp is None or STAMP.fullmatch(stamp)
    for duration in (call.duration_ms, *(ms for turn in call.transcript or () for ms in (turn.start_ms, turn.end_ms))):
        assert duration is None or abs(duration) < 2**63
    return enriched


def depth(value: Any) -> int:
    """How deep arrays and objects are nested in each other."""
    levels, inside = 0, [value]
    while inside := [
        item
        for outer in inside
        if isinstance(outer, (dict, list))
        for item in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        levels += 1
    return levels


def normalize_seeds(name: str) -> list[bytes]:
    records = record_bodies(name)
    return [b"\0".join((body, record)) for body in webhook_bodies(name) for record in records] + webhook_bodies(name)


def mutate_normalize(data: bytes, random: Random) -> bytes:
    body, zero, record = data.partition(b"\0")
    if random.randrange(3):
        body = mutated_json(body, random)
    if zero and random.randrange(3):
        record = mutated_json(record, random)
    return body + zero + record


def with_secrets(body: bytes, random: Random) -> bytes:
    """The same JSON with secrets planted; what is none as it is."""
    try:
        return msgspec.json.encode(planted(msgspec.json.decode(body), random)[0])
    except (ValueError, RecursionError):
        return body


# the rest


def check_event(data: bytes) -> None:
    try:
        found = event.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    assert event.decode(event.encode(found)) == found


def check_retry_after(data: bytes) -> None:
    for value in (data.decode("latin-1"), data.decode("utf-8", "replace")):
        for now in (None, datetime(2026, 11, 20, tzinfo=UTC)):
            seconds = retry_after_s(value, now=now)
            assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


def check_is_public(data: bytes) -> None:
    try:
        public = is_public(data.decode("utf-8", "replace"))
    except ValueError:
        return
    assert isinstance(public, bool)


def event_seeds() -> list[bytes]:
    seeds = []
    for name in PROVIDERS:
        for body in webhook_bodies(name)[:3]:
            call = provider_named(name).normalize(msgspec.structs.replace(a_webhook(name), body=body), None)
            data = EventData(received_at="2026-11-20T12:05:00.000Z", sequence=1, call=enrich(call))
            stamp = "2026-11-20T12:05:00.000Z"
            made = CallEvent(id="e", source="/a/b", type="call.ended", subject=call.id, time=stamp, data=data)
            seeds.append(event.encode(made))
    return seeds


def mutate_text(data: bytes, random: Random) -> bytes:
    return mutated_text(data.decode("latin-1"), random).encode("latin-1", "replace")


WAITS = (b"120", b"2.5", b"Fri, 20 Nov 2026 12:01:30 GMT", b"Friday, 20-Nov-26 12:00:10 GMT", b"1e999")
ADDRESSES = (b"127.0.0.1", b"8.8.8.8", b"::ffff:7f00:1", b"64:ff9b::a9fe:a9fe", b"fe80::1%eth0", b"2002:7f00:1::")

TARGETS: dict[str, Target] = {
    **{
        f"{verb}:{name}": Target(partial(check, name), partial(seeds, name), mutate)
        for name in PROVIDERS
        for verb, check, seeds, mutate in (
            ("verify", check_verify, verify_seeds, mutate_verify),
            ("decode", check_decode, webhook_bodies, mutated_json),
            ("normalize", check_normalize, normalize_seeds, mutate_normalize),
        )
    },
    "event": Target(check_event, event_seeds, mutated_json),
    "retry-after": Target(check_retry_after, lambda: list(WAITS), mutate_text),
    "is-public": Target(check_is_public, lambda: list(ADDRESSES), mutate_text),
}
