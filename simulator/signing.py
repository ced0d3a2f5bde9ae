"""How each provider signs a webhook: the headers it sends beside the body."""

from collections.abc import Callable
from datetime import UTC, datetime

from aftercall.signing import hmac_sha256

FOREIGN_KEY = "a key that the receiver was never given"


def retell_headers(body: bytes, key: str, now: float, *, two_signatures: bool = False) -> dict[str, str]:
    """https://docs.retellai.com/features/secure-webhook (2026-11): one signature, over body + Unix milliseconds."""
    milliseconds = str(int(now * 1000))
    return {"x-retell-signature": f"v={milliseconds},d={hmac_sha256(key, body, milliseconds.encode()).hex()}"}


def cartesia_headers(body: bytes, key: str, now: float, *, two_signatures: bool = False) -> dict[str, str]:
    """https://docs.cartesia.ai/agents/webhooks (2026-11): the shared secret itself; nothing covers the body."""
    return {"x-webhook-secret": key}


def ultravox_headers(body: bytes, key: str, now: float, *, two_signatures: bool = False) -> dict[str, str]:
    """https://docs.ultravox.ai/webhooks/securing-webhooks (2026-11): over body + timestamp, one signature a secret.

    With `two_signatures` the list also names one of a secret being rotated, which the receiver may not know.
    """
    timestamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    keys = [FOREIGN_KEY, key] if two_signatures else [key]
    return {
        "x-ultravox-webhook-timestamp": timestamp,
        "x-ultravox-webhook-signature": ",".join(hmac_sha256(k, body, timestamp.encode()).hex() for k in keys),
    }


HEADERS: dict[str, Callable[..., dict[str, str]]] = {
    "retell": retell_headers,
    "cartesia": cartesia_headers,
    "ultravox": ultravox_headers,
}
