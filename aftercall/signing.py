"""Signatures, as pure functions: constant-time comparison, tolerance, rotation, Standard Webhooks."""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence

from aftercall.errors import SignatureError


def hmac_sha256(secret: str, *parts: bytes) -> bytes:
    """HMAC-SHA256 over the parts joined, keyed with the secret's UTF-8 bytes; 32 bytes."""
    mac = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    for part in parts:
        mac.update(part)
    return mac.digest()


def matches_any(candidates: Iterable[bytes], expected: Sequence[bytes]) -> bool:
    """Whether one candidate equals one expected value. All are compared, each in constant time, also after a match."""
    verdicts = [hmac.compare_digest(candidate, value) for candidate in candidates for value in expected]
    return any(verdicts)


def check_age(signed_at: float, now: float, tolerance_s: float) -> None:
    """Refuse a timestamp (Unix seconds) further from `now` than the tolerance, in the past or the future.

    Only for what a signature covers and after that was found right: `stale` says that the request is genuine.
    """
    age = now - signed_at
    if not abs(age) <= tolerance_s:  # so that a NaN is refused too
        direction = "old" if age > 0 else "in the future"
        raise SignatureError(
            "stale",
            f"the signature is genuine, but its timestamp is {abs(age):.0f} s {direction}, over the "
            f"{tolerance_s:.0f} s allowed: a delayed retry (a provider may keep the first attempt's timestamp), or a "
            "clock that is wrong",
        )


def missing_header(header: str) -> SignatureError:
    return SignatureError(
        "missing", f"the {header} header is missing: not sent by the provider, or removed by a proxy on the way"
    )


def mismatch(what: str, secret_hint: str) -> SignatureError:
    return SignatureError(
        "mismatch",
        f"the {what} does not match: the body was changed on the way (a proxy or middleware that re-serialises JSON), "
        f"or the key is another one ({secret_hint})",
    )


# Standard Webhooks 1.0.0, https://github.com/standard-webhooks/standard-webhooks (2026-11)


def standard_webhooks_key(secret: str) -> bytes:
    """The key's bytes from `whsec_<base64>`; raises ValueError with the remedy."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:  # also for what is not ASCII
        key = b""
    if not key:
        raise ValueError("not a Standard Webhooks secret: write whsec_ and 24 to 64 random bytes in base64")
    return key


def standard_webhooks_signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,<base64>` over `id.timestamp.body`, the value of one signature in the `webhook-signature` header."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digest = hmac.digest(standard_webhooks_key(secret), signed, "sha256")
    return "v1," + base64.b64encode(digest).decode("ascii")
