"""Why a signature does not hold: each cause is found, named with its remedy, and told without a value."""

import base64
import gzip
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from aftercall import Account, Call, Provider, Request, SignatureError, Webhook
from aftercall.diagnosis import Diagnosis, diagnose
from aftercall.providers.base import Record, Signature
from aftercall.providers.cartesia import Cartesia
from aftercall.providers.retell import Retell
from aftercall.providers.ultravox import Ultravox
from aftercall.signing import check_age, hmac_sha256, matches_any, mismatch, missing_header

NOW_MS = 1_795_400_000_123
NOW = NOW_MS / 1000
SECRET, API_KEY, OTHER = "plinth-heron-27", "lk_api_93b1", "willow-gannet-58"
HEADER = "x-lantern-signature"
BODY = json.dumps(
    {"event": "call_ended", "call": {"id": "c-81", "who": "Zoë Åkesson", "cost": [1.5, 20], "b": {}, "a": []}}
).encode()
PLAIN = json.dumps(json.loads(BODY), ensure_ascii=False, separators=(",", ":")).encode()


class Lantern(Provider):
    """A provider as a plug-in has it: `t=<Unix ms>,s=<hex>` over body and timestamp."""

    name = "lantern"
    base_url = "https://api.lantern.example"

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        found = self.signature(request)
        if HEADER not in request.headers:
            raise missing_header(HEADER)
        if found is None:
            raise SignatureError("malformed", f"the {HEADER} header is not t=,s=")
        expected = [hmac_sha256(secret, *self.parts(request.body, found.timestamp.encode())) for secret in secrets]
        if not matches_any(found.digests, expected):
            raise mismatch(HEADER, "the secret of the webhook")
        check_age(int(found.timestamp) / 1000, now, 300)

    def parts(self, body: bytes, timestamp: bytes) -> tuple[bytes, ...]:
        return body, timestamp

    def signature(self, request: Request) -> Signature | None:
        match = re.fullmatch("t=([0-9]+),s=([0-9a-f]{64})", request.headers.get(HEADER, ""))
        return Signature(digests=[bytes.fromhex(match[2])], timestamp=match[1]) if match else None

    def decode(self, body: bytes) -> list[Webhook]:
        return []

    async def fetch(self, call_id: str) -> Record:
        return {}

    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        raise NotImplementedError


class Beacon(Lantern):
    """One that signs `timestamp.body`."""

    name = "beacon"

    def parts(self, body: bytes, timestamp: bytes) -> tuple[bytes, ...]:
        return timestamp, b".", body


class Opaque(Lantern):
    """One that does not tell the parts of its signature."""

    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        Lantern(self.account).verify(request, secrets, now)

    def signature(self, request: Request) -> Signature | None:
        return None


def account(name: str = "quay", provider: str = "lantern", api_key: str = API_KEY, *secrets: str) -> Account:
    return Account(name=name, provider=provider, api_key=api_key, webhook_secrets=secrets or (SECRET,))


def digest(*parts: bytes, key: str | bytes = SECRET) -> str:
    return hmac.digest(key if isinstance(key, bytes) else key.encode(), b"".join(parts), "sha256").hex()


def signed(body: bytes, key: str = SECRET, at_ms: int = NOW_MS) -> str:
    return f"t={at_ms},s={digest(body, b'%d' % at_ms, key=key)}"


def ask(
    header: str | None,
    body: bytes = BODY,
    *,
    provider: Provider | None = None,
    others: Sequence[Provider] = (),
    headers: Mapping[str, str] | None = None,
    earlier: Mapping[str, str] | None = None,
    now: float = NOW,
) -> Diagnosis:
    """The diagnosis, and none of it holds what nobody shall see."""
    sent = {**({HEADER: header} if header is not None else {}), "user-agent": "Lantern/2", **(headers or {})}
    used = provider or Lantern(account())
    found = diagnose(used, Request(headers=sent, body=body), now, others=others, earlier=earlier)
    told = "\n".join([found.message, *found.hints])
    private = [
        SECRET,
        API_KEY,
        OTHER,
        "heron",
        "gannet",
        "Zoë",
        "c-81",
        "Lantern/2",
        *re.findall("[0-9a-f]{64}", str(sent)),
    ]
    private += [value for one in (used, *others) for value in (one.account.api_key, *one.account.webhook_secrets)]
    assert [value for value in private if value.strip() and value.strip() in told] == []
    return found


def the_hint(found: Diagnosis) -> str:
    assert not found.valid
    (hint,) = found.hints
    return hint


OTHERS = [
    Lantern(account("mill", "lantern", "lk_api_mill", OTHER)),
    Lantern(account("weir", "lantern", "lk_api_weir", "thistle-egret-64")),
]


# What holds


def test_a_signature_that_holds_has_no_cause() -> None:
    assert ask(signed(BODY)) == Diagnosis(valid=True, message="the signature holds")


def test_of_several_secrets_the_one_that_made_it_is_named() -> None:
    found = ask(signed(BODY), provider=Lantern(account("quay", "lantern", API_KEY, "old-secret-11", SECRET)))
    assert (found.valid, found.hints) == (True, ["it was made with accounts.quay.webhook_secrets[1]"])


def test_a_compressed_body_is_told_even_if_its_signature_holds() -> None:
    found = ask(signed(BODY), headers={"content-encoding": "gzip"})
    assert found.valid
    assert "answers that with 400" in found.hints[0]


# Time


@pytest.mark.parametrize("provider", [Lantern(account()), Opaque(account())])
@pytest.mark.parametrize(
    ("age_s", "words"),
    [
        (3 * 86400, ("3 days before", "old capture", "--at")),
        (600, ("10 min before", "clock is wrong", "retry")),
        (-7200, ("2 h after", "clock of this machine")),
    ],
)
def test_a_stale_signature_says_by_how_much_and_why(provider: Provider, age_s: int, words: tuple[str, ...]) -> None:
    found = ask(signed(BODY, at_ms=NOW_MS - age_s * 1000), provider=provider)
    assert found.cause == "stale"
    assert [word for word in words if word not in the_hint(found)] == []


def test_with_the_time_of_receipt_an_old_capture_holds() -> None:
    old = NOW_MS - 5 * 86_400_000
    assert ask(signed(BODY, at_ms=old), now=old / 1000 + 2).valid


def test_a_timestamp_in_another_unit_is_told() -> None:
    assert "another unit" in the_hint(ask(signed(BODY, at_ms=NOW_MS // 1000)))


# Keys


def test_the_secret_of_another_account_is_named_and_not_shown() -> None:
    hint = the_hint(ask(signed(BODY, OTHER), others=OTHERS))
    assert "accounts.mill.webhook_secrets[0]" in hint
    assert "/webhooks/mill" in hint
    assert "weir" not in hint


def test_a_secret_that_two_accounts_share_names_both() -> None:
    shared = [Lantern(account(name, "lantern", f"key-{name}", OTHER)) for name in ("mill", "weir")]
    hint = the_hint(ask(signed(BODY, OTHER), others=shared))
    assert "accounts.mill.webhook_secrets[0], accounts.weir.webhook_secrets[0]" in hint


def test_the_api_key_where_the_secret_was_meant_is_told() -> None:
    hint = the_hint(ask(signed(BODY, API_KEY)))
    assert "accounts.quay.api_key, which is not among accounts.quay.webhook_secrets" in hint
    assert "each other's place" in hint


def test_the_api_key_in_the_secret_s_place_is_told_where_the_secret_is_nowhere() -> None:
    found = ask(signed(BODY, "unknown-to-us"), provider=Lantern(account("quay", "lantern", API_KEY, API_KEY)))
    assert "none of what was tried" in found.hints[0]
    assert "holds the account's api_key" in found.hints[1]


@pytest.mark.parametrize("stray", [f" {SECRET}", f"{SECRET}\n", f'"{SECRET}"', f"'{SECRET}' ", f"{SECRET}\r\n"])
def test_what_stands_around_a_secret_by_mistake_is_found(stray: str) -> None:
    hint = the_hint(ask(signed(BODY), provider=Lantern(account("quay", "lantern", API_KEY, stray))))
    assert "accounts.quay.webhook_secrets[0] without the spaces, line ends or quotes" in hint


def test_a_sender_that_signs_with_the_line_end_of_its_secret_is_found() -> None:
    assert "line end after it" in the_hint(ask(signed(BODY, f"{SECRET}\n")))


def test_a_webhook_of_another_provider_is_told() -> None:
    retell = Retell(account("tower", "retell", OTHER, OTHER))
    headers = {"x-retell-signature": f"v={NOW_MS},d={digest(BODY, b'%d' % NOW_MS, key=OTHER)}"}
    found = ask(None, headers=headers, others=[retell])
    assert found.cause == "missing"
    assert found.hints[0].startswith("it is a webhook of retell for the account tower: pass --account tower")


# Bodies


def _dumps(**options: Any) -> bytes:
    return json.dumps(json.loads(BODY), **options).encode()


@pytest.mark.parametrize(
    ("original", "words"),
    [
        (PLAIN, "compact, other letters than ASCII as they are"),
        (_dumps(separators=(",", ":")), "compact"),
        (_dumps(ensure_ascii=False), "a space after each comma and colon"),
        (_dumps(indent=2), "indented by 2"),
        (_dumps(indent=4, ensure_ascii=False), "indented by 4, other letters than ASCII as they are"),
        (_dumps(sort_keys=True), "its keys sorted, other letters than ASCII as \\uXXXX"),
        (_dumps(sort_keys=True, indent=2, ensure_ascii=False), "indented by 2, its keys sorted"),
        (BODY + b"\n", "the newline at the end of the body was removed"),
        (BODY + b"\r\n", "the newline (CRLF) at the end of the body was removed"),
        (b"\xef\xbb\xbf" + BODY, "byte order mark before the body was removed"),
    ],
)
def test_json_that_was_written_anew_is_found(original: bytes, words: str) -> None:
    hint = the_hint(ask(signed(original)))
    assert words in hint
    assert "Pass on the bytes of the request as they came" in hint


def test_spaced_json_with_escapes_is_found_from_what_a_javascript_proxy_makes_of_it() -> None:
    assert "a space after each comma and colon, other letters than ASCII as \\uXXXX" in the_hint(
        ask(signed(BODY), PLAIN)
    )


def test_the_spelling_of_numbers_is_kept_where_only_spaces_changed() -> None:
    original = b'{"cost":1.50,"n":1E+2,"big":12345678901234567890123}'
    assert "compact" in the_hint(ask(signed(original), b'{"cost": 1.50, "n": 1E+2, "big": 12345678901234567890123}'))


def test_an_escaped_backslash_before_u_is_no_escape() -> None:
    original = '{"path":"C:\\\\u00e9","half":"\\ud83d","who":"é"}'.encode()
    assert "written anew" in the_hint(ask(signed(original), b'{"path":"C:\\\\u00e9","half":"\\ud83d","who":"\\u00e9"}'))


@pytest.mark.parametrize(
    ("original", "came", "words"),
    [
        (BODY, BODY + b"\n", "a newline was added"),
        (BODY, b"\n " + BODY + b" \n", "white space was added around"),
        (BODY, b"\xef\xbb\xbf" + BODY, "a byte order mark was put before"),
        (_dumps(indent=2), _dumps(indent=2).replace(b"\n", b"\r\n"), "line ends in the body were made CRLF"),
        (_dumps(indent=2).replace(b"\n", b"\r\n"), _dumps(indent=2), "line ends in the body were made LF"),
        (PLAIN, PLAIN.decode().encode("latin-1"), "was made Latin-1 on the way"),
        (PLAIN, PLAIN.decode("latin-1").encode(), "taken for Latin-1"),
        (BODY, gzip.compress(BODY), "still compressed"),
        (BODY, base64.b64encode(BODY), "wrapped in Base64"),
        (BODY, json.dumps(BODY.decode()).encode(), "wrapped in Base64 or in a JSON string"),
    ],
)
def test_a_body_that_was_changed_on_the_way_is_found(original: bytes, came: bytes, words: str) -> None:
    assert words in the_hint(ask(signed(original), came))


# Headers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: f' "{value}" ', "spaces or quotes around it"),
        (lambda value: value.replace("=", "%3D").replace(",", "%2C"), "URL-encoded"),
        (lambda value: f"{value}, t=1,s=00", "merged from several, and the first"),
        (lambda value: f"t=1,s=00,{value}", "merged from several, and the last"),
    ],
)
def test_a_header_that_was_changed_on_the_way_is_found(change: Callable[[str], str], words: str) -> None:
    hint = the_hint(ask(change(signed(BODY))))
    assert words in hint
    assert HEADER in hint


def test_a_header_that_came_twice_holds_by_its_first_value() -> None:
    hint = the_hint(ask(signed(BODY, "proxy"), earlier={HEADER: signed(BODY)}))
    assert "came more than once: the first one holds" in hint


def test_a_url_decoded_header_is_found() -> None:
    cartesia = Cartesia(account("kiln", "cartesia", API_KEY, "plum%20kite+9"))
    for came, words in (("plum kite+9", None), ("plum%20kite 9", "a + made a space")):
        found = ask(None, provider=cartesia, headers={"x-webhook-secret": came})
        assert words is None or words in the_hint(found)
    spaced = Cartesia(account("kiln", "cartesia", API_KEY, "plum%20kite"))
    assert "URL-decoded" in the_hint(ask(None, provider=spaced, headers={"x-webhook-secret": "plum kite"}))


def test_a_missing_header_is_named_with_the_names_of_those_that_came() -> None:
    found = ask(None, headers={"content-type": "application/json", "x-other": "value-not-shown"})
    assert found.cause == "missing"
    assert HEADER in found.message
    assert the_hint(found) == "the headers that came are: content-type, user-agent, x-other"
    assert "value-not-shown" not in str(found)


def test_a_header_under_the_name_that_cgi_gives_it_is_found() -> None:
    found = ask(None, headers={"http_x_lantern_signature": signed(BODY)})
    assert f"the header {HEADER} (it came as http_x_lantern_signature) was renamed" in found.hints[0]


# Other compositions


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda ts: digest(ts, BODY), "over timestamp + body, and lantern signs body + timestamp"),
        (lambda ts: digest(ts, b".", BODY), "over timestamp + a full stop + body, and lantern signs body + timestamp"),
        (lambda ts: digest(BODY, b".", ts), "over body + a full stop + timestamp"),
        (lambda ts: digest(BODY), "over the body alone, and lantern signs body + timestamp"),
        (lambda ts: digest(BODY, ts[:-3]), "seconds instead of milliseconds"),
        (lambda ts: digest(ts[:-3], b".", BODY), "seconds instead of milliseconds"),
    ],
)
def test_a_signature_over_other_parts_is_found(made: Callable[[bytes], str], words: str) -> None:
    hint = the_hint(ask(f"t={NOW_MS},s={made(b'%d' % NOW_MS)}"))
    assert words in hint
    assert "the sender is not the vendor but a script or a proxy" in hint


def test_a_timestamp_made_milliseconds_for_signing_is_found() -> None:
    seconds = NOW_MS // 1000
    made = digest(BODY, b"%d000" % seconds)
    assert "milliseconds instead of seconds" in the_hint(ask(f"t={seconds},s={made}"))


@pytest.mark.parametrize(
    ("secret", "key", "words"),
    [
        ("6b657374726f6c2d686172626f7572", b"kestrol-harbour", "the secret decoded from hex"),
        ("a2VzdHJvbC1oYXJib3VyLTM=", b"kestrol-harbour-3", "the secret decoded from Base64,"),
        (
            "_-7zdHJvbC1oYXJib3VyLTM",
            base64.urlsafe_b64decode("_-7zdHJvbC1oYXJib3VyLTM="),
            "the secret decoded from Base64,",
        ),
        ("whsec_a2VzdHJvbC1oYXJib3VyLTM=", b"kestrol-harbour-3", "the secret decoded from Base64 after whsec_"),
        ("whsec_a2VzdHJvbC1oYXJib3VyLTM=", b"a2VzdHJvbC1oYXJib3VyLTM=", "the secret without whsec_"),
    ],
)
def test_a_key_that_was_decoded_before_signing_is_found(secret: str, key: bytes, words: str) -> None:
    header = f"t={NOW_MS},s={digest(BODY, b'%d' % NOW_MS, key=key)}"
    hint = the_hint(ask(header, provider=Lantern(account("quay", "lantern", API_KEY, secret))))
    assert f"it was signed with {words}" in hint


def test_the_provider_s_own_order_is_found_out_and_not_assumed() -> None:
    beacon = Beacon(account())
    assert ask(f"t={NOW_MS},s={digest(b'%d.' % NOW_MS, BODY)}", provider=beacon).valid
    hint = the_hint(ask(signed(BODY), provider=beacon))
    assert "over body + timestamp, and beacon signs timestamp + a full stop + body" in hint


def test_other_compositions_are_not_tried_where_a_provider_tells_no_parts() -> None:
    found = ask(f"t={NOW_MS},s={digest(BODY)}", provider=Opaque(account()))
    assert "none of what was tried explains it" in found.hints[0]


# Two at once


def test_another_account_s_key_and_an_old_capture_are_both_told() -> None:
    found = ask(signed(BODY, OTHER, NOW_MS - 86_400_000 * 4), others=OTHERS)
    assert found.cause == "mismatch"
    assert "accounts.mill" in found.hints[0]
    assert "4 days before" in found.hints[1]


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        (signed(PLAIN, OTHER), BODY, ("compact", "accounts.mill")),
        (signed(PLAIN, API_KEY), BODY, ("compact", "accounts.quay.api_key")),
        (f'"{signed(BODY, OTHER)}"', BODY, ("accounts.mill", "spaces or quotes")),
        (f'"{signed(PLAIN)}"', BODY, ("compact", "spaces or quotes")),
        (signed(PLAIN), gzip.compress(BODY), ("still compressed", "compact")),
        (signed(PLAIN + b"\n"), BODY, ("compact", "newline at the end")),
        (f"t={NOW_MS},s={digest(PLAIN)}", BODY, ("compact", "the body alone")),
        (f"t={NOW_MS},s={digest(BODY, key=OTHER)}", BODY, ("accounts.mill", "the body alone")),
        (signed(BODY).replace("=", "%3D") + " ", BODY, ("URL-encoded",)),
    ],
)
def test_two_changes_at_once_are_found(header: str, body: bytes, words: tuple[str, ...]) -> None:
    found = ask(header, body, others=OTHERS)
    told = " / ".join(found.hints)
    assert [word for word in words if word not in told] == []


# What cannot be found


def test_a_forged_webhook_is_explained_by_nothing() -> None:
    found = ask(signed(BODY, "somebody-else"), others=OTHERS)
    assert (found.valid, found.cause) == (False, "mismatch")
    assert the_hint(found).startswith("none of what was tried explains it")
    assert "accounts.quay.webhook_secrets" in the_hint(found)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (BODY[:-9], "cut off"),
        (BODY.replace(b"Zo\\u00eb", "Zo\ufffd".encode()), "U+FFFD"),
        (b'{"agent": 1, "call": {"x": 2}, "event": 3, "id": 4}', "alphabetical order"),
    ],
)
def test_traces_of_what_cannot_be_undone_are_told(body: bytes, words: str) -> None:
    found = ask(signed(b"something else"), body)
    assert words in found.hints[1]


def test_a_plug_in_that_breaks_is_named_and_its_words_are_not_repeated() -> None:
    class Broken(Lantern):
        name = "broken"

        def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
            raise ValueError(f"cannot read {secrets[0]} for {request.body!r}")

    found = ask(signed(BODY), provider=Broken(account()))
    assert (found.cause, found.message) == ("failed", "verify of broken failed with ValueError: mend the plug-in")


def test_nothing_in_the_bodies_breaks_the_diagnosis() -> None:
    for body in (
        b"[" * 100_000,
        b'"',
        b"\xff\xfe",
        b"{\x00}",
        b"\x1f\x8b\x08",
        b'{"a":"\\ud800"}',
        b"1" * 5000,
        b"{}" * 3,
    ):
        assert not ask(signed(b"other"), body).valid


def test_a_megabyte_is_diagnosed_in_about_a_second() -> None:
    turns = [{"role": "agent", "text": f"Grüezi {number}", "words": [1.25, 2]} for number in range(18_000)]
    body = json.dumps({"call": {"id": "c", "turns": turns}}).encode()
    assert len(body) > 1_000_000
    others = [Lantern(account(f"one-{number}", "lantern", f"api-{number}", f"secret-{number}")) for number in range(30)]
    started = time.process_time()
    found = ask(signed(b"no"), body, others=others)
    assert time.process_time() - started < 2.5, "on a slow machine; one second elsewhere"
    assert "not everything was tried" in found.hints[-1]


# The providers that come with aftercall


def test_retell_and_ultravox_are_diagnosed() -> None:
    retell = Retell(account("tower", "retell", OTHER, OTHER))
    header = f"v={NOW_MS},d={digest(PLAIN, b'%d' % NOW_MS, key=OTHER)}"
    assert "compact" in the_hint(ask(None, provider=retell, headers={"x-retell-signature": header}))
    ultravox = Ultravox(account("pier", "ultravox"))
    stamp = "2026-11-23T02:13:20+00:00"
    headers = {
        "x-ultravox-webhook-timestamp": stamp.replace("+", " "),
        "x-ultravox-webhook-signature": digest(BODY, stamp.encode()),
    }
    found = ask(None, provider=ultravox, headers=headers, now=1_795_400_000)
    assert "x-ultravox-webhook-timestamp was URL-decoded on the way, a + made a space" in " ".join(found.hints)


@pytest.mark.parametrize("kind", [Retell, Ultravox])
def test_the_order_of_a_built_in_is_known(kind: type[Provider]) -> None:
    ts = "2026-11-23T02:13:20Z" if kind is Ultravox else "1795400000000"
    made = digest(ts.encode(), BODY)
    headers = (
        {"x-ultravox-webhook-timestamp": ts, "x-ultravox-webhook-signature": made}
        if kind is Ultravox
        else {"x-retell-signature": f"v={ts},d={made}"}
    )
    found = ask(None, provider=kind(account("tower", kind.name)), headers=headers, now=1_795_400_000)
    assert f"over timestamp + body, and {kind.name} signs body + timestamp" in the_hint(found)


def test_cartesia_s_body_is_not_suspected() -> None:
    found = ask(None, b"", provider=Cartesia(account("kiln", "cartesia")), headers={"x-webhook-secret": "wrong"})
    assert "none of what was tried" in the_hint(found)
