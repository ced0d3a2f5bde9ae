"""Access tokens of a Google service account: a signed statement is exchanged for one, which holds for an hour.

https://developers.google.com/identity/protocols/oauth2/service-account#httprest (2026-11).
"""

import asyncio
import time
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
from google.auth import crypt, jwt

from aftercall.errors import SinkError
from aftercall.sinks.base import url_scheme
from aftercall.sinks.http import request

SCOPE = "https://www.googleapis.com/auth/spreadsheets"
LIFETIME_S, MARGIN_S = 3600, 300  # Google's longest; how long before its end a token is not used any more


class Key(msgspec.Struct, frozen=True):
    """The file that Google gives out for a service account, as far as it is needed."""

    client_email: str
    private_key: str
    private_key_id: str | None = None
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address


class Granted(msgspec.Struct):
    access_token: str
    expires_in: float = 0.0


class ServiceAccount:
    """A service account by the JSON of its key. Raises ValueError for what is none, in words that do not show it."""

    def __init__(self, text: str | bytes) -> None:
        try:
            self._key = msgspec.json.decode(text, type=Key)
            self._signer: Any = crypt.RSASigner.from_string(self._key.private_key, self._key.private_key_id)  # type: ignore[no-untyped-call]
        except Exception:  # whatever a parser makes of it; its own words may quote the key
            raise ValueError("expected the JSON of a service account's key, as Google gives it out") from None
        if url_scheme(self._key.token_uri) not in ("http", "https"):
            raise ValueError("expected a token_uri that is a web address")
        self._token, self._until, self._asking = "", 0.0, asyncio.Lock()

    async def token(self, http: httpx.AsyncClient) -> str:
        """A token that is good for some minutes; of many that want one, one asks for it."""
        async with self._asking:
            if time.monotonic() >= self._until:
                granted = await self._ask(http)
                self._token, self._until = granted.access_token, time.monotonic() + granted.expires_in - MARGIN_S
            return self._token

    def forget(self, token: str) -> None:
        """That token is not good any more, whatever was said when it was given."""
        if token == self._token:
            self._until = 0.0

    async def _ask(self, http: httpx.AsyncClient) -> Granted:
        now = int(time.time())
        claims = {"iss": self._key.client_email, "scope": SCOPE, "aud": self._key.token_uri}
        assertion = jwt.encode(self._signer, {**claims, "iat": now, "exp": now + LIFETIME_S})  # type: ignore[no-untyped-call]
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = await request(http, "POST", self._key.token_uri, urlencode(form).encode(), headers, accept={400, 401})
        if answer.status in (400, 401):  # invalid_grant …
            raise SinkError(
                f"{answer}: Google gives no token; is the key still there, and the clock right?", permanent=True
            )
        try:
            return msgspec.json.decode(answer.body, type=Granted)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SinkError("the answer is not that of a token server; check token_uri in the key") from None
