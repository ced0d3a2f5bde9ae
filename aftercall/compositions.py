"""Other ways to make an HMAC-SHA256 of a body and a timestamp, as scripts and other vendors do. Pure functions."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from typing import NamedTuple

from aftercall.signing import standard_webhooks_key

ALONE = "the body alone"
ORDERS: dict[str, Callable[[bytes, bytes], tuple[bytes, ...]]] = {
    "body + timestamp": lambda body, stamp: (body, stamp),
    "timestamp + body": lambda body, stamp: (stamp, body),
    "timestamp + a full stop + body": lambda body, stamp: (stamp, b".", body),
    "body + a full stop + timestamp": lambda body, stamp: (body, b".", stamp),
    ALONE: lambda body, stamp: (body,),
}


def _seconds_from_ms(stamp: str) -> str | None:
    return stamp[:-3] if re.fullmatch("[0-9]{12,14}", stamp) else None


def _ms_from_seconds(stamp: str) -> str | None:
    return f"{stamp}000" if re.fullmatch("[0-9]{9,11}", stamp) else None


def _unix_from_iso(stamp: str) -> str | None:
    return None if stamp.isdigit() else next((str(int(moment)) for moment in moments(stamp)), None)


def _unix_ms_from_iso(stamp: str) -> str | None:
    return None if stamp.isdigit() else next((str(round(moment * 1000)) for moment in moments(stamp)), None)


_TIMESTAMPS: dict[str, Callable[[str], str | None]] = {
    "": lambda stamp: stamp,
    "the timestamp in seconds instead of milliseconds": _seconds_from_ms,
    "the timestamp in milliseconds instead of seconds": _ms_from_seconds,
    "the timestamp as Unix seconds": _unix_from_iso,
    "the timestamp as Unix milliseconds": _unix_ms_from_iso,
}


def _from_hex(secret: str) -> bytes | None:
    return bytes.fromhex(secret) if re.fullmatch("(?:[0-9a-fA-F]{2}){8,}", secret) else None


def _from_base64(secret: str) -> bytes | None:
    text = secret.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def _from_whsec(secret: str) -> bytes | None:
    try:
        return standard_webhooks_key(secret) if secret.startswith("whsec_") else None
    except ValueError:
        return None


_KEYS: dict[str, Callable[[str], bytes | None]] = {
    "": str.encode,
    "the secret decoded from hex": _from_hex,
    "the secret decoded from Base64": _from_base64,
    "the secret decoded from Base64 after whsec_": _from_whsec,
    "the secret without whsec_": lambda secret: secret[6:].encode() if secret.startswith("whsec_") else None,
}


class Composition(NamedTuple):
    """How a digest is made: an order, a form of the timestamp, a form of the key."""

    order: str
    timestamp: str = ""
    key: str = ""

    def suits(self, secret: str, timestamp: str) -> bool:
        """Whether secret and timestamp have such a form at all."""
        return bool(_KEYS[self.key](secret)) and _TIMESTAMPS[self.timestamp](timestamp) is not None

    def digest(self, secret: str, body: bytes, timestamp: str) -> bytes | None:
        """The HMAC-SHA256; None where it does not suit."""
        key, stamp = _KEYS[self.key](secret), _TIMESTAMPS[self.timestamp](timestamp)
        if not key or stamp is None:
            return None
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for part in ORDERS[self.order](body, stamp.encode("latin-1", "replace")):
            mac.update(part)
        return mac.digest()


def alternatives(own: str | None, changes: int) -> Iterator[Composition]:
    """The compositions that differ in so many ways from the usual one, whose order is `own` (None: not known)."""
    for one in (Composition(*parts) for parts in product(ORDERS, _TIMESTAMPS, _KEYS)):
        pointless = one.timestamp and one.order == ALONE
        if not pointless and (one.order != own) + bool(one.timestamp) + bool(one.key) == changes:
            yield one


def moments(text: str) -> list[float]:
    """Unix seconds of a time in ISO 8601 (no offset means UTC), or of a number in milliseconds and in seconds."""
    if re.fullmatch("[0-9]{1,15}", text):
        readings = [float(text), float(text) / 1000]
        return readings if len(text) < 12 else readings[::-1]
    try:
        parsed = datetime.fromisoformat(text)
        return [(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()]
    except (ValueError, OverflowError):
        return []
