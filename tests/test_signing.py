"""Signatures: the verdicts, the tolerance, and Standard Webhooks against its reference library."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from aftercall.errors import SignatureError
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
