"""Signatures: the verdicts, the tolerance, and Standard Webhooks against its reference library."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from aftercall.errors import SignatureError
from aftercall.plugins import PROVIDERS, provider_class
from aftercall.providers.base import Account, Request
from aftercall.signing import (
    check_age,
    hmac_sha256,
    matches_any,
    mismatch,
    missing_header,
    standard_webhooks_key,
    standard_webhooks_signature,
)

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


def headers(message_id: str, timestamp: int, signature: str) -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def test_the_reference_library_takes_our_signature() -> None:
    body, timestamp = '{"type":"call.ended","said":"née Ünal"}', now()
    signature = standard_webhooks_signature(SECRET, "evt_1", timestamp, body.encode())
    assert Webhook(SECRET).verify(body, headers("evt_1", timestamp, signature)) == {
        "type": "call.ended",
        "said": "née Ünal",
    }


@pytest.mark.parametrize(
    ("message_id", "shift_s", "body", "secret"),
    [
        ("evt_2", 0, "{}", SECRET),
        ("evt_1", 1, "{}", SECRET),
        ("evt_1", 0, "{ }", SECRET),
        ("evt_1", 0, "{}", OTHER),
    ],
    ids=["another id", "another time", "another body", "another secret"],
)
def test_the_reference_library_refuses_our_signature_over_anything_else(
    message_id: str, shift_s: int, body: str, secret: str
) -> None:
    timestamp = now()
    signature = standard_webhooks_signature(SECRET, "evt_1", timestamp, b"{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers(message_id, timestamp + shift_s, signature))


@given(
    message_id=st.text(min_size=1),
    timestamp=st.integers(0, 4_102_444_800),
    body=st.text(),
    key=st.binary(min_size=24, max_size=64),
)
def test_we_sign_what_the_reference_library_signs(message_id: str, timestamp: int, body: str, key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    theirs = Webhook(secret).sign(message_id, datetime.fromtimestamp(timestamp, UTC), body)
    assert standard_webhooks_signature(secret, message_id, timestamp, body.encode()) == theirs


def test_a_secret_is_read_with_and_without_its_prefix() -> None:
    assert standard_webhooks_key(SECRET) == standard_webhooks_key(SECRET.removeprefix("whsec_")) == bytes(range(32))


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_not base64!", "whsec_QUJD\n", "whsec_QUI", "whsec_-_-_", "whsec_QUJDé", "né"]
)
def test_a_secret_that_is_not_base64_is_refused_with_the_form_expected(secret: str) -> None:
    with pytest.raises(ValueError, match="write whsec_ and 24 to 64 random bytes in base64") as caught:
        standard_webhooks_key(secret)
    assert "QU" not in str(caught.value)


@given(secret=st.text(), parts=st.lists(st.binary(), max_size=4))
def test_an_hmac_over_parts_is_the_hmac_over_them_joined(secret: str, parts: list[bytes]) -> None:
    expected = hmac.new(secret.encode(), b"".join(parts), hashlib.sha256).digest()
    assert hmac_sha256(secret, *parts) == expected


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([b"a"], [b"a"]),
        ([b"x", b"a"], [b"y", b"a"]),
        ([b"a", b"x"], [b"a", b"y"]),
        ([b"a"], [b"y", b"z", b"a"]),
    ],
)
def test_one_match_is_enough_wherever_it_stands(candidates: list[bytes], expected: list[bytes]) -> None:
    assert matches_any(candidates, expected)
    assert matches_any(iter(candidates), expected)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], []),
        ([], [b"a"]),
        ([b"a"], []),
        ([b""], [b"a"]),
        ([b"ab"], [b"a", b"abc"]),
        ([b"a", b"b"], [b"A", b"B"]),
    ],
)
def test_without_a_match_the_verdict_is_no_whatever_the_lengths(candidates: list[bytes], expected: list[bytes]) -> None:
    assert not matches_any(candidates, expected)


@given(st.lists(st.binary()), st.lists(st.binary()))
def test_the_verdict_is_that_of_plain_comparison(candidates: list[bytes], expected: list[bytes]) -> None:
    assert matches_any(candidates, expected) is bool(set(candidates) & set(expected))


@pytest.mark.parametrize("signed_at", [1000, 1300, 700, 700.0, 999.5])
def test_a_timestamp_within_the_tolerance_passes_up_to_its_edges(signed_at: float) -> None:
    check_age(signed_at, 1000, 300)


@pytest.mark.parametrize(
    ("signed_at", "direction"), [(699.999, "old"), (1300.001, "in the future"), (0, "old"), (1e12, "in the future")]
)
def test_a_timestamp_beyond_the_tolerance_is_stale_in_both_directions(signed_at: float, direction: str) -> None:
    with pytest.raises(SignatureError, match=direction) as caught:
        check_age(signed_at, 1000, 300)
    assert caught.value.cause == "stale"
    assert "a clock that is wrong" in str(caught.value)


@pytest.mark.parametrize("signed_at", [float("nan"), float("inf"), float("-inf")])
def test_a_timestamp_that_is_no_number_is_not_fresh(signed_at: float) -> None:
    with pytest.raises(SignatureError):
        check_age(signed_at, 1000, 300)


def test_the_errors_say_what_to_check() -> None:
    assert missing_header("x-signature").cause == "missing"
    assert "x-signature" in str(missing_header("x-signature"))
    assert "proxy" in str(missing_header("x-signature"))
    assert mismatch("x-signature", "use the badge's key").cause == "mismatch"
    assert "use the badge's key" in str(mismatch("x-signature", "use the badge's key"))


# Each provider: constant time, rotation, and the order of the checks

BODY, NOW = b'{"said":"saffron"}', 1_790_000_000.0


def sign_as_retell(secret: str, at: float) -> dict[str, str]:
    stamp = str(int(at * 1000))
    return {
        "x-retell-signature": f"v={stamp},d={hmac.new(secret.encode(), BODY + stamp.encode(), 'sha256').hexdigest()}"
    }


def sign_as_cartesia(secret: str, at: float) -> dict[str, str]:
    return {"x-webhook-secret": secret}


def sign_as_ultravox(secret: str, at: float) -> dict[str, str]:
    stamp = datetime.fromtimestamp(at, UTC).isoformat()
    digest = hmac.new(secret.encode(), BODY + stamp.encode(), "sha256").hexdigest()
    return {"x-ultravox-webhook-timestamp": stamp, "x-ultravox-webhook-signature": digest}


SIGN: dict[str, Callable[[str, float], dict[str, str]]] = {
    "retell": sign_as_retell,
    "cartesia": sign_as_cartesia,
    "ultravox": sign_as_ultravox,
}
TOLERANCE_S = {"retell": 300, "cartesia": None, "ultravox": 60}  # None: nothing that is signed has a time


class Secret(str):
    """Refuses to be compared but by its bytes."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError("a secret was compared with ==")


def verdict(provider: str, signed_with: str, secrets: list[str], *, age_s: float = 0) -> str:
    made = provider_class(provider)(Account(name="clinic", provider=provider))
    try:
        made.verify(Request(headers=SIGN[provider](signed_with, NOW - age_s), body=BODY), secrets, NOW)
    except SignatureError as error:
        return error.cause
    return "valid"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_while_a_secret_is_rotated_the_old_and_the_new_one_are_taken(provider: str) -> None:
    assert verdict(provider, "the-old-one", ["the-old-one", "the-new-one"]) == "valid"
    assert verdict(provider, "the-new-one", ["the-old-one", "the-new-one"]) == "valid"
    assert verdict(provider, "the-third", ["the-old-one", "the-new-one"]) == "mismatch"
    assert verdict(provider, "the-old-one", ["the-new-one"]) == "mismatch"
    assert verdict(provider, "the-old-one", []) == "mismatch"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("signed_with", ["one", "two", "three", "four"])
def test_every_secret_is_compared_in_constant_time_also_after_a_match(
    provider: str, signed_with: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[object] = []
    in_constant_time = hmac.compare_digest

    def compare_digest(a: bytes, b: bytes) -> bool:
        compared.append(in_constant_time(a, b))
        return bool(compared[-1])

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    found = verdict(provider, signed_with, [Secret("one"), Secret("two"), Secret("three")])

    assert compared == [signed_with == secret for secret in ("one", "two", "three")]
    assert found == ("mismatch" if signed_with == "four" else "valid")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_only_what_is_genuine_is_called_stale(provider: str) -> None:
    tolerance_s = TOLERANCE_S[provider]
    for age_s in (-3600, 3600) if tolerance_s is None else (-tolerance_s - 1, tolerance_s + 1, NOW):
        assert verdict(provider, "one", ["one"], age_s=age_s) == ("valid" if tolerance_s is None else "stale")
        assert verdict(provider, "two", ["one"], age_s=age_s) == "mismatch"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_empty_secret_signs_nothing(provider: str) -> None:
    made = provider_class(provider)(Account(name="a", provider=provider))
    with pytest.raises(SignatureError):
        made.verify(Request(headers=SIGN[provider]("", NOW), body=BODY), ("",), NOW)
