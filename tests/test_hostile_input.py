"""What comes from outside is hostile: no body, header, record or address breaks a promise, whoever the provider is.

Every provider of the registry is tried, on its own fixtures bent out of shape. The checks are those of `tests/fuzz`,
where coverage looks for inputs (`make fuzz`); here Hypothesis does, for a few seconds.
"""

import asyncio
import ipaddress
import json
import math
import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aftercall.client import PublicResolver, is_public
from aftercall.errors import AddressRefused
from aftercall.jobs import ARQ_QUEUE
from aftercall.plugins import PROVIDERS
from aftercall.providers.shapes import MAX_ADDRESS, MAX_DEPTH, address, decode_json
from aftercall.settings import load
from simulator.signing import HEADERS
from tests.fuzz import targets
from tests.fuzz.mutation import MARKER, NUMBERS, TEXTS, WHOLES, mutated_json, mutated_text, planted
from tests.fuzz.targets import NOW, SECRET, TARGETS, depth, is_signed_over, provider_named, signed_headers, verdict
from workers.hub import Hub
from workers.main import LedgerWorker

every_provider = pytest.mark.parametrize("name", PROVIDERS)
DAY_S = 86400.0
KEPT = ("event", "type", "role", "call_id", "callId", "request_id")  # without these it is not about a call

randoms = st.randoms(use_true_random=False)
header_values = st.text(max_size=20) | st.builds(
    "{}{},{}={}".format,
    st.sampled_from(["v=", "t=", ""]),
    st.integers(),
    st.sampled_from("dv"),
    st.binary().map(bytes.hex),
)
moments = st.floats() | st.floats(NOW - 100, NOW + 100)


def quick(examples: int) -> Callable[[Any], Any]:
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fixture_bodies(name: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from(targets.webhook_bodies(name))


# The tests' own eyes


@every_provider
def test_a_provider_brings_what_these_tests_need(name: str) -> None:
    assert name in HEADERS, f"simulator/signing.py does not say how {name} signs"
    assert targets.webhook_bodies(name), f"tests/fixtures/{name} has no webhook"
    assert targets.record_bodies(name), f"tests/fixtures/{name} has no rest.get_call.json"
    assert any(targets.check_decode(name, body) for body in targets.webhook_bodies(name))


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found_in_what_the_search_starts_from(target: str) -> None:
    seeds = TARGETS[target].seeds()
    assert len(seeds) > 2
    for seed in seeds:
        TARGETS[target].check(seed)


# verify


@every_provider
def test_what_the_provider_signed_is_accepted_with_each_of_the_secrets(name: str) -> None:
    for body in targets.webhook_bodies(name):
        for secrets in ([SECRET], ["another", SECRET], [SECRET, "another"]):
            assert verdict(provider_named(name), signed_headers(name, body), body, secrets) == "accepted"


@every_provider
@quick(60)
@given(data=st.data())
def test_nothing_is_accepted_that_the_provider_did_not_sign(name: str, data: st.DataObject) -> None:
    known = st.sampled_from(sorted(signed_headers(name, b"{}")))
    headers = data.draw(st.dictionaries(known | st.text(max_size=9), header_values, max_size=4))
    body = data.draw(fixture_bodies(name) | st.binary(max_size=40))
    assert verdict(provider_named(name), headers, body, [SECRET, "other-" + SECRET], data.draw(moments)) != "accepted"


@every_provider
@quick(40)
@given(data=st.data())
def test_whatever_is_asked_verify_gives_a_verdict(name: str, data: st.DataObject) -> None:
    secrets = data.draw(st.lists(st.text(max_size=8), max_size=3))
    headers = {header: data.draw(header_values) for header in signed_headers(name, b"{}")}
    verdict(provider_named(name), headers, data.draw(st.binary(max_size=40)), secrets, data.draw(moments))


@every_provider
def test_one_other_letter_anywhere_in_a_header_and_a_signed_request_is_refused(name: str) -> None:
    body = min(targets.webhook_bodies(name), key=len)
    headers = signed_headers(name, body)
    for header, value in headers.items():
        for at, letter in enumerate(value):
            for other in (letter.swapcase(), chr(ord(letter) ^ 1), "0", " ", "é", ""):
                changed = value[:at] + other + value[at + 1 :]
                if targets.tokens(changed) != targets.tokens(value):
                    assert verdict(provider_named(name), {**headers, header: changed}, body) != "accepted", changed
        for changed in (value + "x", "x" + value, value + "\0", value[1:] + value[:1], value * 2):
            assert verdict(provider_named(name), {**headers, header: changed}, body) != "accepted", changed


@every_provider
def test_one_other_byte_anywhere_in_the_body_and_a_signed_request_is_refused(name: str) -> None:
    body = min(targets.webhook_bodies(name), key=len)
    headers = signed_headers(name, body)
    for at in range(len(body)):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        found = verdict(provider_named(name), headers, changed)
        assert found == ("mismatch" if is_signed_over(name, body=True) else "accepted")


@every_provider
def test_a_body_that_was_cut_or_went_on_is_refused(name: str) -> None:
    for body in targets.webhook_bodies(name):
        headers = signed_headers(name, body)
        for changed in (body + b" ", b"\n" + body, body + b"\0", body[:-1], b"", body * 2):
            accepted = verdict(provider_named(name), headers, changed) == "accepted"
            assert accepted is not is_signed_over(name, body=True)


@every_provider
def test_a_provider_whose_signature_does_not_cover_the_body_does_not_believe_it(name: str) -> None:
    assert is_signed_over(name, body=True) or not provider_named(name).believes_body


@every_provider
@quick(100)
@given(data=st.data())
def test_a_signed_request_with_bent_headers_is_refused_or_the_same_in_another_spelling(
    name: str, data: st.DataObject
) -> None:
    TARGETS[f"verify:{name}"].check(
        targets.mutate_verify(data.draw(st.sampled_from(targets.verify_seeds(name))), data.draw(randoms))
    )
    body = data.draw(fixture_bodies(name))
    headers = signed_headers(name, body)
    header = data.draw(st.sampled_from(sorted(headers)))
    bent = {**headers, header: mutated_text(headers[header], data.draw(randoms))}
    if verdict(provider_named(name), bent, body) == "accepted":
        assert targets.tokens(headers[header]) <= targets.tokens(bent[header])


@every_provider
@quick(40)
@given(apart_s=st.floats(DAY_S, 1e12) | st.floats(-1e12, -DAY_S) | st.sampled_from([math.nan, math.inf, -math.inf]))
@example(apart_s=DAY_S)
def test_a_day_later_or_earlier_the_same_request_is_stale(name: str, apart_s: float) -> None:
    found = verdict(provider_named(name), signed_headers(name, b"{}"), b"{}", now=NOW + apart_s)
    assert found == ("stale" if is_signed_over(name, time=True) else "accepted")


@every_provider
def test_a_signature_made_for_another_secret_body_or_time_is_refused(name: str) -> None:
    one, *_, other = targets.webhook_bodies(name)
    signed, later = signed_headers(name, one), signed_headers(name, one, at=NOW + 9)
    assert verdict(provider_named(name), signed_headers(name, one, secret="guessed-" + SECRET), one) == "mismatch"
    if is_signed_over(name, body=True):
        assert verdict(provider_named(name), signed_headers(name, other), one) == "mismatch"
    for header in signed:
        mixed = {**signed, header: later[header]}
        assert (verdict(provider_named(name), mixed, one) == "accepted") is (mixed in (signed, later))
    assert verdict(provider_named(name), signed, one, secrets=()) != "accepted"


# decode


@every_provider
@quick(100)
@given(
    body=st.binary(max_size=80)
    | st.recursive(st.none() | st.text(max_size=9), st.lists).map(json.dumps).map(str.encode)
)
@example(body=b'{"call":' * 50_000)
@example(body=b"\xef\xbb\xbf{}")
@example(body=b"\x00" * 50)
def test_whatever_bytes_come_they_are_decoded_or_refused(name: str, body: bytes) -> None:
    targets.check_decode(name, body)


@every_provider
@quick(150)
@given(data=st.data())
def test_a_webhook_bent_out_of_shape_is_decoded_or_refused(name: str, data: st.DataObject) -> None:
    body = mutated_json(data.draw(fixture_bodies(name)), data.draw(randoms))
    targets.check_decode(name, body)
    half = data.draw(st.integers(0, len(body)))
    targets.check_decode(name, body[:half])
    targets.check_decode(name, body[:half] + data.draw(st.binary(max_size=3)) + body[half:])


@every_provider
def test_a_refusal_of_a_body_holds_nothing_of_it(name: str) -> None:
    """A name or a number in any place of the envelope, where it does not belong."""
    for body in targets.webhook_bodies(name):
        envelope = decode_json(body)
        for holder in (envelope, *(value for value in envelope.values() if isinstance(value, dict))):
            for key in list(holder):
                for instead in (MARKER, [MARKER], {MARKER: MARKER}, {"id": {MARKER: 1}}):
                    targets.check_decode(name, json.dumps(replaced(envelope, holder, key, instead)).encode())


def replaced(envelope: dict[str, Any], holder: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    if holder is envelope:
        return {**envelope, key: value}
    return {outer: {**inner, key: value} if inner is holder else inner for outer, inner in envelope.items()}


# normalize and enrich


@every_provider
@quick(150)
@given(data=st.data())
def test_whatever_webhook_and_record_say_there_is_a_call_and_no_secret_in_it(name: str, data: st.DataObject) -> None:
    """`check_webhook` says what holds: a valid event, pure, nothing changed, enriched, and no planted secret."""
    known = st.sampled_from(targets.normalize_seeds(name))
    targets.check_normalize(name, targets.mutate_normalize(data.draw(known), data.draw(randoms)))


@every_provider
def test_no_secret_leaves_through_a_call_that_is_in_order(name: str) -> None:
    chance = Random(5)
    for body in targets.webhook_bodies(name):
        webhook_document, count = planted(decode_json(body), chance, everywhere=True)
        assert count
        for record in (None, *targets.record_bodies(name)):
            full = None if record is None else planted(decode_json(record), chance, everywhere=True)[0]
            targets.check_call(name, json.dumps(webhook_document).encode(), full)


@every_provider
def test_no_password_of_a_sip_address_leaves(name: str) -> None:
    """Wherever a number stands in webhook and record, there stands a SIP URI with a password."""
    uri = f"sip:ada;pin=7:{MARKER}@trunk.example.com"
    for body in targets.webhook_bodies(name):
        for record in (None, *targets.record_bodies(name)):
            bent = [None if text is None else text.replace(b"+15550100", f"{uri}#".encode()) for text in (body, record)]
            assert bent[0] is not None
            targets.check_call(name, bent[0], None if bent[1] is None else decode_json(bent[1]))


@every_provider
@pytest.mark.parametrize("piece", ["sip:", "a-", "\n", "9", "[", '{"a":', "\\", "न", "Agent: \n", "1e", "<sip:a:b@"])
def test_no_text_of_any_length_holds_a_worker_up(name: str, piece: str) -> None:
    """Every text of the call is 40 KB of something that a careless pattern reads again and again."""

    def lengthened(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {inner: lengthened(item, inner) for inner, item in value.items()}
        if isinstance(value, list):
            return [lengthened(item) for item in value[:3]]
        return piece * (40_000 // len(piece)) if isinstance(value, str) and key not in KEPT else value

    body = max(targets.webhook_bodies(name), key=len)
    record = lengthened(decode_json(max(targets.record_bodies(name), key=len)))
    long = json.dumps(lengthened(decode_json(body))).encode()
    started = time.process_time()
    targets.check_call(name, long, record)
    assert time.process_time() - started < 2


@every_provider
def test_a_text_of_very_many_lines_is_read_in_one_go(name: str) -> None:
    """Where there is nothing but the plain text: every list is empty."""

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {inner: plain(item, inner) for inner, item in value.items()}
        if isinstance(value, list):
            return []
        return "Agent: one\n" + "two\n" * 300_000 if key in ("transcript", "summary", "text") else value

    body = msgspec.json.encode(plain(decode_json(max(targets.webhook_bodies(name), key=len))))
    started = time.process_time()
    targets.check_call(name, body, None)
    assert time.process_time() - started < 2


@every_provider
@pytest.mark.parametrize(
    "of", [(int, float), (str, bool, type(None)), (list, dict)], ids=["numbers", "words", "wholes"]
)
def test_one_odd_value_in_every_place_still_makes_a_call(name: str, of: tuple[type, ...]) -> None:
    def odd(value: Any, instead: Any, key: str = "") -> Any:
        if key and isinstance(value, of) and key not in KEPT and (key != "call" or dict not in of):
            return instead
        if isinstance(value, dict):
            return {inner: odd(item, instead, inner) for inner, item in value.items()}
        return [odd(item, instead) for item in value] if isinstance(value, list) else value

    body = decode_json(max(targets.webhook_bodies(name), key=len))
    record = decode_json(max(targets.record_bodies(name), key=len))
    for value in map(msgspec.Raw, (*NUMBERS, *TEXTS, *WHOLES)):
        bent_body = msgspec.json.encode(odd(body, value))
        bent_record = msgspec.json.encode(odd(record, value))
        targets.check_normalize(name, bent_body)
        targets.check_normalize(name, b"\0".join((bent_body, bent_record)))


@every_provider
@pytest.mark.parametrize("levels", [45, 50, 60, 900])
def test_what_is_nested_without_end_is_passed_on_so_that_anyone_can_read_it(name: str, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    for body in (*targets.webhook_bodies(name), *targets.record_bodies(name)):
        for free in (deep, json.dumps(deep)):
            everywhere = mutated_places(body, free)
            targets.check_call(name, everywhere, decode_json(everywhere))


def mutated_places(body: bytes, free: str) -> bytes:
    """The document with that JSON wherever free data, or the text of a tool, may stand."""

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: msgspec.Raw(free.encode())
                if key in ("metadata", "arguments", "result", "text", "content")
                else put(item)
                for key, item in value.items()
            }
        return [put(item) for item in value] if isinstance(value, list) else value

    return msgspec.json.encode(put(decode_json(body)))


# what all providers lean on


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[0,{"b":1,"a":', "}]")])
@pytest.mark.parametrize("inner", ["7", "[]", '{"a":[1]}', '"\\ud83d"'])
def test_what_is_nested_too_deep_is_kept_as_its_text(opening: str, closing: str, inner: str) -> None:
    for levels in range(1, 130):
        body = opening * levels + inner + closing * levels
        found = decode_json(body)
        assert depth(found) <= MAX_DEPTH
        assert found == (json.loads(body.replace("\\ud83d", "\ufffd")) if depth(found) < MAX_DEPTH else found)
        assert in_full(found) == in_full(json.loads(body.replace("\\ud83d", "\ufffd")))


def in_full(value: Any) -> str:
    """JSON text in which that of text in it is its own."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    while (plain := re.sub(r'"([\[{].*[\]}])"', lambda found: json.loads(found[0]), text)) != text:
        text = plain
    return text


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sip:ada:lock@example.com", "sip:ada@example.com"),
        ("SIPS:ada:lock@example.com;transport=tls", "SIPS:ada@example.com;transport=tls"),
        ('"Ada" <sip:ada:lock@example.com>', '"Ada" <sip:ada@example.com>'),
        ("sip:ada;day=tuesday:lock@example.com", "sip:ada;day=tuesday@example.com"),
        ("sip:ada?x:lock@example.com", "sip:ada?x@example.com"),
        ("sip:ada:l@ck@example.com", "sip:ada@example.com"),
        ("sip:ada:l:o:ck@example.com", "sip:ada@example.com"),
        ("sip::lock@example.com", "sip:@example.com"),
        ("<sip:ada:lock@a.example>, <sip:bob:pick@b.example>", "<sip:ada@a.example>, <sip:bob@b.example>"),
        ("sip:ada@example.com:5060", "sip:ada@example.com:5060"),
        ("sip:example.com:5060;lr", "sip:example.com:5060;lr"),
        ("+15550100123", "+15550100123"),
        ("tel:+15550100123", "tel:+15550100123"),
        ("anonymous", "anonymous"),
        ("", None),
        (None, None),
        (15550100123, None),
        ("9" * MAX_ADDRESS, "9" * MAX_ADDRESS),
        ("9" * (MAX_ADDRESS + 1), None),
    ],
)
def test_an_address_is_shown_without_its_password(uri: Any, shown: str | None) -> None:
    assert address(uri) == shown


@quick(300)
@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b'{"data":' * 100_000)
@example(b'{"id": "\xff"}')
@example(b'{"id": "\\ud800"}')
def test_whatever_bytes_stand_for_an_event_they_are_read_or_refused(body: bytes) -> None:
    targets.check_event(body)


@quick(150)
@given(data=st.data())
def test_an_event_bent_out_of_shape_is_read_or_refused(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(targets.event_seeds()))
    targets.check_event(mutated_json(body, data.draw(randoms)))


@quick(200)
@given(st.sampled_from(targets.WAITS), randoms)
def test_a_retry_after_bent_out_of_shape_is_a_finite_wait_or_none(value: bytes, chance: Random) -> None:
    targets.check_retry_after(targets.mutate_text(value, chance))


# addresses

PRIVATE_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
        "240.0.0.0/4",
    )
]  # fmt: skip
PRIVATE_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "::/127", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32", "3fff::/20", "fc00::/7", "fe80::/10",
        "fec0::/10", "ff00::/8",
    )
]  # fmt: skip
private_v4 = st.sampled_from(PRIVATE_V4).flatmap(lambda network: st.ip_addresses(v=4, network=network))
private_v6 = st.sampled_from(PRIVATE_V6).flatmap(lambda network: st.ip_addresses(v=6, network=network))
V4_IN_V6 = ("::ffff:{0}", "::FFFF:{0}", "0:0:0:0:0:ffff:{0}", "::{0}", "::ffff:0:{0}", "64:ff9b::{0}", "64:ff9b:1::{0}")


def v4_in_v6(v4: ipaddress.IPv4Address, form: str) -> str:
    high, low = divmod(int(v4), 0x10000)
    if form == "6to4":
        return f"2002:{high:x}:{low:x}::1"
    if form == "teredo":
        return f"2001:0:4136:e378:8000:63bf:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}"
    return form.format(v4)


@quick(300)
@given(private_v4, st.sampled_from([*V4_IN_V6, "6to4", "teredo", "{0}"]), st.sampled_from(["", "%eth0", "%1"]))
def test_no_spelling_of_a_private_ipv4_address_is_public(v4: ipaddress.IPv4Address, form: str, zone: str) -> None:
    spelled = v4_in_v6(v4, form)
    versions = [spelled]
    if ":" in spelled:
        v6 = ipaddress.IPv6Address(spelled)
        versions += [v6.exploded, v6.compressed.upper(), str(v6) + zone]
    assert not any(is_public(version) for version in versions)


@quick(200)
@given(private_v6)
def test_no_spelling_of_a_private_ipv6_address_is_public(v6: ipaddress.IPv6Address) -> None:
    assert not any(is_public(version) for version in (str(v6), v6.exploded, v6.exploded.upper(), f"{v6}%lo"))


@quick(150)
@given(st.text(max_size=30) | st.from_regex(r"[0-9a-fx:.%]{1,30}", fullmatch=True))
def test_whatever_is_asked_it_is_public_or_not_or_no_address(text: str) -> None:
    targets.check_is_public(text.encode())


def c_spellings(v4: ipaddress.IPv4Address) -> list[str]:
    """What the C library takes for this address beside the usual form: hex, octal, fewer parts, one number."""
    number = int(v4)
    a, b, c, d = v4.packed
    return [
        f"{number}", f"{number:#x}", f"0{number:o}", f"{a:#x}.{b}.{c}.{d}", f"0{a:o}.{b:#x}.{c}.{d}",
        f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{number & 0xFFFF}", f"{a:#x}.{number & 0xFFFFFF:#x}",
    ]  # fmt: skip


@quick(30)
@given(private_v4)
def test_no_number_that_the_c_library_takes_for_a_private_address_is_resolved(v4: ipaddress.IPv4Address) -> None:
    async def resolve_all() -> None:
        resolver = PublicResolver()
        for spelling in c_spellings(v4):
            with pytest.raises((AddressRefused, OSError)):  # OSError: this C library does not know the spelling
                await resolver.resolve(spelling, 80)
        await resolver.close()

    asyncio.run(resolve_all())


# what stands in Redis


class Planted:
    """Makes a directory when it is unpickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


async def test_a_pickle_in_arqs_queue_is_taken_and_not_run(valkey_url: str, tmp_path: Path) -> None:
    hub = Hub(load({"REDIS_URL": valkey_url, "RETELL_API_KEY": "key_1"}, tmp_path))
    redis = hub.ledger.redis
    job = await redis.enqueue_job("sweep")
    assert job is not None
    assert json.loads(await redis.get(f"arq:job:{job.job_id}"))["f"] == "sweep"
    pickled = pickle.dumps({"t": 1, "f": "sweep", "a": (Planted(tmp_path / "ran"),), "k": {}, "et": 0})
    await redis.set(f"arq:job:{job.job_id}", pickled)

    worker = LedgerWorker(hub)
    await worker._serve_arq()
    await asyncio.gather(*worker.tasks.values())
    assert await redis.zcard(ARQ_QUEUE) == 0
    assert worker.jobs_failed == 1
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)  # noqa: S301 - it would have run
    assert (tmp_path / "ran").exists()
    await worker.close()
    await hub.close()
