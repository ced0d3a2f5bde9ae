"""What a provider is. One file a provider; the four verbs are `verify`, `decode`, `fetch`, `normalize`.

A provider object belongs to one account and lives as long as the process. `verify` and `decode` run in the service, on
the request path: no I/O, no more than routing needs. `fetch` and `normalize` run in a worker. The rest is optional, for
what a provider's API has: lists of calls and of deleted calls, deletion, registration of webhooks.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

import httpx
import msgspec

from aftercall.call import Call, Storage
from aftercall.errors import NotOffered
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


class CallPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list of calls, as the provider writes them. `next` asks for the next page; None: there is none."""

    calls: list[Record]
    next: str | None = None


class DeletedPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list of deleted calls: their ids, and where the provider says it, what is left of each."""

    call_ids: list[str]
    calls: list[Record] = []  # in the same order, or none; with what `facts` makes something of
    next: str | None = None


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's headers say was signed, for the diagnosis of signatures that do not hold."""

    digests: list[bytes]  # HMAC-SHA256; any may match
    timestamp: str  # as it was sent


class Provider(ABC):
    """Base of all providers. A subclass sets the class attributes and writes the four verbs."""

    name: ClassVar[str]  # what events say in `source`, however the configuration names the class
    base_url: ClassVar[str]  # the vendor's API; an account's own `base_url` replaces it
    needs: ClassVar[tuple[str, ...]] = ("api_key", "webhook_secrets")  # the account's keys that must be set
    believes_body: ClassVar[bool] = (
        True  # False: no signature covers the body, an event counts once `fetch` confirms it
    )
    id_field: ClassVar[str] = "id"  # where a listed record has its call's id
    not_found: ClassVar[tuple[int, ...]] = (404,)  # the statuses that say there is no such call (any more)
    unlisted_is_deleted: ClassVar[bool] = False  # a call that is in no list and not to be fetched was deleted
    deletes_by_itself: ClassVar[frozenset[Storage]] = frozenset()  # under these settings the provider deletes each call

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

    def awaits(self, webhook: Webhook, record: Record | None) -> Collection[EventType]:
        """Event types that the provider will still send about this call, which is over: its analysis, its bill.

        `call.settled` waits for them, up to `retention.settle_after`. Pure.
        """
        return ()

    # What a provider's API may have beside the record. Raise `NotOffered` for what it has not, `ProviderError` for what
    # failed.

    async def list_calls(self, since: datetime, cursor: str | None = None) -> CallPage:
        """A page of the account's calls that began at `since` (UTC) or later; the page after it with its `next`."""
        raise NotOffered(f"{self.name} has no list of calls")

    def facts(self, record: Record) -> list[bytes]:
        """The webhooks that a call should have been told by, as bodies: its end, its analysis, its bill.

        `record` is as the list shows it, or as `fetch` gives it. Each body decodes to one `Webhook` with
        the dedupe key of the provider's own. Empty for a call that is not over.
        """
        return []

    def is_deleted(self, record: Record) -> bool:
        """Whether a listed call's sensitive data was deleted at the provider."""
        return False

    async def list_deleted(self, since: datetime, cursor: str | None = None) -> DeletedPage:
        """A page of the calls that began at `since` or later and were deleted."""
        raise NotOffered(f"{self.name} has no list of deleted calls")

    async def delete(self, call_id: str) -> Record | None:
        """Delete a call at the provider; what it keeps of it, if it says. One that is not there any more is deleted."""
        raise NotOffered(f"{self.name} offers no deletion of calls")

    async def register(self, url: str, *, agents: Sequence[str] = (), dry_run: bool = False) -> list[str]:
        """Have the provider send its webhooks to `url`, for these agents (none: all); what was done, one line each.

        May be repeated: what is registered already is brought up to date. With `dry_run` it only says what it would do.
        """
        raise NotOffered(f"{self.name} has no registration of webhooks by API")

    def signature(self, request: Request) -> Signature | None:
        """The parts of a request's signature, where it is an HMAC-SHA256 over body and timestamp; else None."""
        return None
