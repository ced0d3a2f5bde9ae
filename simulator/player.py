"""Posts the webhooks of the calls: signed, in their time, and with the vendors' bad habits."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import httpx

from simulator.calls import event_type, facts_of
from simulator.faults import Faults
from simulator.parts import Call, Json, Webhook, compact
from simulator.signing import FOREIGN_KEY, HEADERS

TIMEOUT_S = 10.0
MOST_AT_ONCE = 64  # requests in flight

# Waits before each further attempt at a webhook that was not answered 2xx. The vendors' own, shortened: Retell tries
# three times more (https://docs.retellai.com/features/webhook-overview), Ultravox ten times, doubling from 30 s
# (https://docs.ultravox.ai/webhooks/errors-and-retries); Cartesia does not say (2026-11).
RETRY_S: dict[str, tuple[float, ...]] = {
    "retell": (0.5, 1.0, 2.0),
    "cartesia": (0.5, 1.0, 2.0),
    "ultravox": (0.5, 1.0, 2.0, 4.0, 8.0),
}

Show = Callable[[Call, Webhook], None]
Report = Callable[[Json], None]
Sending: TypeAlias = tuple[float, Call, Webhook, int]  # when (seconds from the start), what, and which copy


async def play(
    target: str,
    secrets: Mapping[str, str],
    calls: Iterable[Call],
    *,
    accounts: Mapping[str, str] | None = None,
    speed: float = 1.0,
    show: Show | None = None,
    report: Report | None = None,
    faults: Faults | None = None,
) -> Json:
    """Post every webhook to `{target}/webhooks/{account}` and wait for the last answer.

    `secrets` and `accounts` are by provider; an account not given has its provider's name. `show` is called when the
    record API should begin to show what a webhook tells. `report` is called with each answer: account, event, call_id,
    status, `at` (Unix seconds at which the first copy was first posted) and `copy` (from 1; further attempts at the
    same copy keep its number). `faults` are what rules do to webhooks; what the record API shows, and when, stays.

    Returns how many calls and POSTs answered 2xx there were (`calls`, `webhooks`), how many forged ones were answered
    401 (`refused`), `facts`: what was sent and must come out of aftercall, each exactly once, and `dropped`: the facts
    that a rule kept from being sent, in the same shape, `at` being when they were due.
    """
    calls = list(calls)
    sendings = plan(calls, faults or Faults())
    # Not through the environment's proxies: the target is on loopback.
    limits = httpx.Limits(max_connections=MOST_AT_ONCE, max_keepalive_connections=MOST_AT_ONCE)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as http:
        player = _Player(http, target.rstrip("/"), secrets, accounts or {}, speed, report)
        due: list[tuple[float, Callable[[], Any]]] = []
        if show is not None:
            due += [
                (told.at_s + told.record_lag_s, partial(show, call, told)) for call in calls for told in call.webhooks
            ]
        async with asyncio.TaskGroup() as group:
            due += [(at_s, partial(player.start, group, call, told, copy)) for at_s, call, told, copy in sendings]
            for at_s, act in sorted(due, key=lambda one: one[0]):  # the record before the webhook, at the same instant
                await player.until(at_s)
                act()
    sent = {fact_key(call, webhook) for _, call, webhook, _ in sendings}
    facts: list[Json] = []
    dropped: list[Json] = []
    for call, webhook in facts_of(calls):
        (facts if fact_key(call, webhook) in sent else dropped).append(player.fact(call, webhook))
    return {
        "calls": len(calls),
        "webhooks": player.answered,
        "refused": player.refused,
        "facts": sorted(facts, key=lambda fact: float(fact["at"])),
        "dropped": sorted(dropped, key=lambda fact: float(fact["at"])),
    }


def plan(calls: list[Call], faults: Faults) -> list[Sending]:
    """When each copy of each webhook is sent, once the rules had their way. A forger's are not the vendor's to lose."""
    in_time = sorted(
        ((call, webhook) for call in calls for webhook in call.webhooks), key=lambda told: told[1].at_s
    )  # `first` counts as they are due
    hits = {
        (id(call), id(webhook)): {rule.action: rule for rule in faults.of_webhook(call, webhook)}
        for call, webhook in in_time
        if not webhook.forged
    }
    sendings: list[Sending] = []
    for call in calls:
        webhooks = sorted(call.webhooks, key=lambda webhook: webhook.at_s)
        times = [webhook.at_s for webhook in webhooks]
        for place, webhook in enumerate(webhooks[:-1]):
            if "reorder" in hits.get((id(call), id(webhook)), {}):
                times[place], times[place + 1] = times[place + 1], times[place]
        for webhook, at_s in zip(webhooks, times, strict=True):
            rules = hits.get((id(call), id(webhook)), {})
            if "drop" in rules:
                continue
            late_s = rules["delay"].seconds if "delay" in rules else 0.0
            copies_at = [at_s] * (webhook.copies + ("double" in rules))
            if webhook.again_at_s is not None:
                copies_at.append(webhook.again_at_s)
            sendings.extend((at + late_s, call, webhook, copy) for copy, at in enumerate(copies_at, start=1))
    return sendings


class _Player:
    """One play: its clock, and what it counts."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        target: str,
        secrets: Mapping[str, str],
        accounts: Mapping[str, str],
        speed: float,
        report: Report | None,
    ) -> None:
        self.http = http
        self.target = target
        self.secrets = secrets
        self.accounts = accounts
        self.speed = speed
        self.report = report
        self.begin = time.monotonic()
        self.began_at = time.time()
        self.room = asyncio.Semaphore(MOST_AT_ONCE)
        self.answered = 0
        self.refused = 0
        self.first_at: dict[tuple[str, str | None, str], float] = {}

    def start(self, group: asyncio.TaskGroup, call: Call, webhook: Webhook, copy: int) -> None:
        group.create_task(self.send(call, webhook, copy))

    async def send(self, call: Call, webhook: Webhook, copy: int) -> None:
        """Post one copy until it is answered 2xx or the vendor would give up. A forger tries once."""
        body = compact(webhook.payload).encode()
        if webhook.forged:
            status = await self.post(call, webhook, copy, body)
            self.refused += status == 401
            if status != 401:
                say(f"a forged {webhook.event} of {call.provider} was answered {status}, not 401")
            return
        for wait_s in (0.0, *RETRY_S[call.provider]):
            await asyncio.sleep(wait_s)
            status = await self.post(call, webhook, copy, body)
            if status is not None and 200 <= status < 300:
                self.answered += 1
                return
        say(f"gave up on {webhook.event} of {call.provider}, last answered {status}")

    async def post(self, call: Call, webhook: Webhook, copy: int, body: bytes) -> int | None:
        """One attempt, signed when there is room for it; the status, or None if no answer came."""
        async with self.room:
            return await self._post(call, webhook, copy, body)

    async def _post(self, call: Call, webhook: Webhook, copy: int, body: bytes) -> int | None:
        key = FOREIGN_KEY if webhook.forged else self.secrets[call.provider]
        now = time.time()
        at = self.first_at.setdefault(fact_key(call, webhook), now)
        signature = HEADERS[call.provider](body, key, now, two_signatures=webhook.two_signatures)
        try:
            response = await self.http.post(
                f"{self.target}/webhooks/{self.account(call)}",
                content=body,
                headers={"content-type": "application/json", **signature},
            )
        except httpx.TransportError as error:
            say(f"{webhook.event} of {call.provider}: {type(error).__name__}")
            return None
        if self.report is not None:
            self.report(
                {
                    "account": self.account(call),
                    "event": webhook.event,
                    "call_id": webhook.call_id,
                    "status": response.status_code,
                    "at": at,
                    "copy": copy,
                }
            )
        return response.status_code

    def fact(self, call: Call, webhook: Webhook) -> Json:
        return {
            "account": self.account(call),
            "call_id": webhook.call_id,
            "event": webhook.event,
            "type": event_type(call.provider, webhook.event),
            "at": self.first_at.get(fact_key(call, webhook), self.began_at + webhook.at_s / self.speed),
        }

    def account(self, call: Call) -> str:
        return self.accounts.get(call.provider, call.provider)

    async def until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self.begin + at_s / self.speed - time.monotonic()))


def fact_key(call: Call, webhook: Webhook) -> tuple[str, str | None, str]:
    return (call.provider, webhook.call_id, webhook.event)


def say(message: str) -> None:
    """For people, on stderr. Names events and statuses, never what was said."""
    print(f"simulator: {message}", file=sys.stderr, flush=True)
