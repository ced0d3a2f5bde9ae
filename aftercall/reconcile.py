"""Reconciling with a provider's list: what no webhook told is accepted as if one had, under the same event ids.

A webhook that comes later is then a duplicate. Calls that were deleted at the provider are erased here too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

import msgspec

from aftercall.erasure import erase_call
from aftercall.errors import NotOffered, ProviderError
from aftercall.event import event_id, rfc3339
from aftercall.ledger import Ledger
from aftercall.lifecycle import erased_key
from aftercall.patience import patiently
from aftercall.providers.base import CallPage, DeletedPage, Provider, Record, Webhook
from aftercall.states import PROCESS_STEP, KnownCall

RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # waits before a request that failed is made again
BARREN_AT_MOST = 2  # pages in a row with nothing new: one may be the last of an agent, and the next agent's follow
UNANSWERED_AT_MOST = 3  # records in a row that cannot be had: more, and it is not about these calls
UNLISTED_AT_MOST = 10  # more at once that are gone, and more than one in ten, look like another account's key

UNLISTED_AFTER = timedelta(minutes=5)  # a list may be a little behind

_Answer = TypeVar("_Answer")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the ledger had not heard of."""

    call: str  # the call's id
    event: str  # the event's id
    type: str
    done: str  # accepted | replayed | erased | nothing (a dry run)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the list, worked through. `cursor` goes on after it; None: it was the last."""

    calls: int
    found: list[Found]
    cursor: str | None


class Pace:
    """At most so many a second."""

    def __init__(self, per_s: float) -> None:
        self._interval_s = 1 / per_s
        self._next = 0.0

    async def step(self) -> None:
        now = time.monotonic()
        self._next = max(self._next + self._interval_s, now)
        await asyncio.sleep(self._next - now)


class Reconciler:
    """One walk through the calls of one account that began at `since` or later."""

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        since: datetime,
        *,
        sinks: Collection[str],
        per_s: float = 50.0,
        grace: timedelta = timedelta(),
        thorough: bool = True,
        dry_run: bool = False,
    ) -> None:
        """`sinks`: the configured sinks' names. `per_s` limits requests to the provider, also those that the worker
        will make for what is accepted. Calls that ended within `grace` are left alone: their webhooks are on their way.
        With `thorough` the record is asked where the list does not show what the provider should have told.
        """
        self.ledger = ledger
        self.provider = provider
        self.account = provider.account.name
        self.since = since
        self.sinks = sinks
        self.pace = Pace(per_s)
        self.grace = grace
        self.thorough = thorough
        self.dry_run = dry_run
        self.began = datetime.now(UTC)
        self.found: list[Found] = []  # all so far, also of a page that is not worked through yet
        self.unanswered: list[str] = []  # calls whose record cannot be had; another walk may have more luck
        self._in_a_row = 0
        self._listed: set[str] = set()

    async def walk(self, cursor: str | None = None) -> AsyncIterator[Step]:
        """Page by page, from `cursor` on; then what was deleted. Raises `NotOffered`, `ProviderError`."""
        whole = cursor is None
        seen: set[str] = set()
        barren = 0
        while True:
            page = await self._list(cursor)
            before = len(self._listed)
            found = await self._compare(page.calls)
            barren = barren + 1 if page.calls and len(self._listed) == before else 0
            # A list that leads back to where it was, or brings nothing new, has ended.
            cursor = None if page.next in seen or barren == BARREN_AT_MOST else page.next
            yield Step(calls=len(page.calls), found=found, cursor=cursor)
            if cursor is None:
                break
            seen.add(cursor)
        found = [one async for one in self._deleted()]
        if whole and self.provider.unlisted_is_deleted:
            found += await self._unlisted()
        yield Step(calls=0, found=found, cursor=None)

    async def _list(self, cursor: str | None) -> CallPage:
        return await self._patiently(lambda: self.provider.list_calls(self.since, cursor))

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        return await patiently(ask, RETRY_S, before=self.pace.step)

    async def _compare(self, calls: Sequence[Record]) -> list[Found]:
        """What of these listed calls the ledger has not heard of; accepted now."""
        listed = {id_: record for record in calls if isinstance(id_ := record.get(self.provider.id_field), str)}
        self._listed.update(listed)
        known = await self.ledger.known_calls(self.account, list(listed))
        found: list[Found] = []
        for (call_id, record), heard in zip(listed.items(), known, strict=True):
            if heard.erased:
                continue
            if self.provider.is_deleted(record):
                found += await self._erase(call_id, heard, left=record)
            else:
                found += await self._accept(record, heard, ask=self.thorough)
        return found

    async def _accept(self, record: Record, heard: KnownCall, *, ask: bool) -> list[Found]:
        told = self._facts(record)
        facts = [(webhook, body) for webhook, body in told if webhook.type not in heard.accepted]
        if not told or not (facts or ask) or self._is_fresh(told[0][0]):
            return []
        if not facts:
            facts = await self._ask(told, heard)
        found = [await self._accept_one(webhook, body) for webhook, body in facts]
        return [one for one in found if one is not None]

    async def _accept_one(self, webhook: Webhook, body: bytes) -> Found | None:
        """None: it came by itself in the meantime, or it is a dead letter that was dropped."""
        provider = self.provider
        id_, done = event_id(provider.name, self.account, webhook.dedupe_key), "nothing"
        if not self.dry_run:
            await self.pace.step()  # the worker will ask for the record
            at = rfc3339(datetime.now(UTC))
            accepted = await self.ledger.accept(
                webhook, body, provider=provider.name, account=self.account, received_at=at, via="reconcile"
            )
            if accepted.sequence > 0:
                done = "accepted"
            elif await self.ledger.replay(id_, PROCESS_STEP) == "due":  # it died before it was an event
                done = "replayed"
            else:
                return None
        return self._note(Found(call=webhook.call_id, event=id_, type=webhook.type, done=done))

    def _note(self, found: Found) -> Found:
        self.found.append(found)
        return found

    async def _ask(self, told: Sequence[tuple[Webhook, bytes]], heard: KnownCall) -> list[tuple[Webhook, bytes]]:
        """What the record tells that the list does not (`told`), of a call whose provider should have told more."""
        # Not with the row: what it leaves out is no sign that there is nothing to come.
        due = set(self.provider.awaits(told[0][0], None)) - heard.accepted - {webhook.type for webhook, _ in told}
        if not due:
            return []
        fetched = await self._fetch(told[0][0].call_id)
        if not isinstance(fetched, dict):
            return []
        return [(webhook, body) for webhook, body in self._facts(fetched) if webhook.type in due]

    def _facts(self, record: Record) -> list[tuple[Webhook, bytes]]:
        return [(webhook, body) for body in self.provider.facts(record) for webhook in self.provider.decode(body)]

    def _is_fresh(self, webhook: Webhook) -> bool:
        if not self.grace:
            return False
        ended_at = self.provider.normalize(webhook, None).ended_at
        return ended_at is not None and datetime.fromisoformat(ended_at) > self.began - self.grace

    async def _erase(self, call_id: str, heard: KnownCall, left: Record | None = None) -> list[Found]:
        """Erase a call that is deleted at the provider, if the ledger ever heard of it."""
        if not heard.known or heard.erased:
            return []
        if not self.dry_run:
            await erase_call(self.ledger, self.provider, call_id, sinks=self.sinks, for_good=False, left=left)
        id_ = event_id(self.provider.name, self.account, erased_key(call_id))
        done = "nothing" if self.dry_run else "erased"
        return [self._note(Found(call=call_id, event=id_, type="call.erased", done=done))]

    async def _deleted(self) -> AsyncIterator[Found]:
        """The calls that the provider lists as deleted, if it has such a list.

        Those that it deletes by itself are not erased here; what was not told of them, they may still show.
        """
        cursor: str | None = None
        seen: set[str | None] = set()
        while cursor not in seen:
            seen.add(cursor)
            try:
                page: DeletedPage = await self._patiently(lambda: self.provider.list_deleted(self.since, cursor))  # noqa: B023
            except NotOffered:
                return
            left = page.calls or [{} for _ in page.call_ids]
            known = await self.ledger.known_calls(self.account, page.call_ids)
            for call_id, record, heard in zip(page.call_ids, left, known, strict=True):
                if heard.storage not in self.provider.deletes_by_itself:
                    found = await self._erase(call_id, heard)
                else:
                    found = [] if heard.erased else await self._accept(record, heard, ask=False)
                for one in found:
                    yield one
            if page.next is None:
                return
            cursor = page.next

    async def _unlisted(self) -> list[Found]:
        """The calls that the ledger knows and no list shows: those whose record is gone were deleted.

        Others are in no list for another reason, a dial without an answer say, which has no start; they are over all
        the same.
        """
        until_ms = int((self.began - UNLISTED_AFTER).timestamp() * 1000)
        known = await self.ledger.calls_between(self.account, int(self.since.timestamp() * 1000), until_ms)
        missing = [call_id for call_id in known if call_id not in self._listed]
        gone, found = [], []
        for call_id, heard in zip(missing, await self.ledger.known_calls(self.account, missing), strict=True):
            if heard.fetched and not heard.erased:
                record = await self._fetch(call_id)
                if record == "gone":
                    gone.append((call_id, heard))
                elif isinstance(record, dict):
                    found += await self._accept(record, heard, ask=False)
        if len(gone) > max(UNLISTED_AT_MOST, len(known) // 10):
            raise ProviderError(
                f"{len(gone)} of the {len(known)} calls known are gone at the provider, as if the api_key were of"
                " another workspace; nothing was erased. If they were deleted, erase them with `aftercall erase`"
            )
        return found + [one for call_id, heard in gone for one in await self._erase(call_id, heard)]

    async def _fetch(self, call_id: str) -> Record | Literal["gone", "unanswered"]:
        """A call's record. One that cannot be had, because it breaks the provider, does not hide all other calls."""
        try:
            record = await self._patiently(lambda: self.provider.fetch(call_id))
        except ProviderError as error:
            if error.status in self.provider.not_found:
                return "gone"
            self._in_a_row += 1
            if (error.status is not None and error.status < 500) or self._in_a_row == UNANSWERED_AT_MOST:
                raise
            self.unanswered.append(call_id)
            return "unanswered"
        self._in_a_row = 0
        return record
