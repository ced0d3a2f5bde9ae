"""What a provider is. One file a provider; the four verbs are `verify`, `decode`, `fetch`, `normalize`.

A provider object belongs to one account and lives as long as the process. `verify` and `decode` run in the service, on
the request path: no I/O, no more than routing needs. `fetch` and `normalize` run in a worker.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import httpx
import msgspec

from aftercall.call import Call
from aftercall.event import EventType

Record = dict[str, Any]


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One set of credentials at a provider; `name` is the last part of its webhook URL."""

    name: str
    provider: str
    api_key: str = ""
    webhook_secrets: tuple[str, ...] = ()
    base_url: str = ""
    tags: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Account({self.provider}/{self.name})"  # never its keys


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as it arrived. Header names are lower case; `body` is exactly the bytes received."""

    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    url: str = ""  # as the provider called it, for schemes that sign the URL


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One fact out of a webhook's body.

    `dedupe_key` is the same for every copy of the fact and different for every other fact of the account. `record`
    says what to do about the full record: `wait` for it (up to ten minutes), try `once` (it may be gone for good), or
    `skip`.
    """

    event: str  # the provider's word
    type: EventType
    call_id: str
    dedupe_key: str
    body: bytes = b""  # this fact's own JSON: `normalize` reads the details from here
    record: Literal["wait", "once", "skip"] = "wait"
    happened_at: str | None = None  # RFC 3339, where the webhook itself says when; else the call's own times tell


class Provider(ABC):
    """Base of all providers. A subclass sets the class attributes and writes the four verbs."""

    name: ClassVar[str]  # what events say in `source`, however the configuration names the class
    base_url: ClassVar[str]  # the vendor's API; an account's own `base_url` replaces it
    needs: ClassVar[tuple[str, ...]] = ("api_key", "webhook_secrets")  # the account's keys that must be set
    believes_body: ClassVar[bool] = (
        True  # False: no signature covers the body, an event counts once `fetch` confirms it
    )

    def __init__(self, account: Account, http: httpx.AsyncClient | None = None) -> None:
        self.account = account
        self.root = (account.base_url or self.base_url).rstrip("/")
        self._http = http

    @property
    def http(self) -> httpx.AsyncClient:
        if self._http is None:
            raise RuntimeError(f"{self!r} was made without an HTTP client and cannot fetch")
        return self._http

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.account.name}>"

    @abstractmethod
    def verify(self, request: Request, secrets: Sequence[str], now: float) -> None:
        """Return if any of the secrets made this request's signature; else raise `SignatureError`.

        `now` is Unix time in seconds. Compare in constant time, over the raw bytes. `stale` may be said only after the
        signature was found right.
        """

    @abstractmethod
    def decode(self, body: bytes) -> list[Webhook]:
        """The facts in a verified body: usually one, none if the event is not for us.

        Raises `UndecodableWebhook` when the body is not this provider's.
        """

    @abstractmethod
    async def fetch(self, call_id: str) -> Record:
        """The complete record of a call, all pages of it.

        Raises `RecordNotReady` for whatever may pass: not found yet, rate limited, the provider in trouble.
        """

    def is_ready(self, webhook: Webhook, record: Record) -> bool:
        """Whether the record already shows what the webhook told; False: fetch again later."""
        return True

    @abstractmethod
    def normalize(self, webhook: Webhook, record: Record | None) -> Call:
        """The call, merged from what the webhook carried and the record (None: it could not be fetched).

        Pure, so that it can be re-run on old data. Whatever only the webhook carried stays. Never raises because of an
        unknown word or a missing field.
        """
