"""Posts the webhooks of the calls: signed, in their time, and with the vendors' bad habits."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import httpx

from simulator.calls import event_type, facts_of
from simulator.parts import Call, Json, Webhook, compact
from simulator.signing import FOREIGN_KEY, HEADERS

TIMEOUT_S = 10.0

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


async def play(
    target: str,
    secrets: Mapping[str, str],
    calls: Iterable[Call],
    *,
    accounts: Mapping[str, str] | None = None,
    speed: float = 1.0,
    show: Show | None = None,
    report: Report | None = None,
) -> Json:
    """Post every webhook to `{target}/webhooks/{account}` and wait for the last answer.

    `secrets` and `accounts` are by provider; an account not given has its provider's name. `show` is called when the
    record API should begin to show what a webhook tells. `report` is called with each answer: account, event, call_id,
    status, `at` (Unix seconds at which the first copy was first posted) and `copy` (from 1; further attempts at the
    same copy keep its number).

    Returns how many calls and POSTs answered 2xx there were (`calls`, `webhooks`), how many forged ones were answered
    401 (`refused`), and `facts`: what must come out of aftercall, each exactly once.
    """
    calls = list(calls)
    # Not through the environment's proxies: the target is on loopback.
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        player = _Player(http, target.rstrip("/"), secrets, accounts or {}, speed, report)
        async with asyncio.TaskGroup() as group:
            for call in calls:
                for webhook in call.webhooks:
                    if show is not None:
                        group.create_task(player.show(show, call, webhook))
                    copies_at = [webhook.at_s] * webhook.copies
                    if webhook.again_at_s is not None:
                        copies_at.append(webhook.again_at_s)
                    for copy, at_s in enumerate(copies_at, start=1):
                        group.create_task(player.send(call, webhook, copy, at_s))
    facts = [player.fact(call, webhook) for call, webhook in facts_of(calls)]
    return {
        "calls": len(calls),
        "webhooks": player.answered,
        "refused": player.refused,
        "facts": sorted(facts, key=lambda fact: float(fact["at"])),
    }


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
        self.answered = 0
        self.refused = 0
        self.first_at: dict[tuple[str, str | None, str], float] = {}

    async def show(self, show: Show, call: Call, webhook: Webhook) -> None:
        await self.until(webhook.at_s + webhook.record_lag_s)
        show(call, webhook)

    async def send(self, call: Call, webhook: Webhook, copy: int, at_s: float) -> None:
        """Post one copy until it is answered 2xx or the vendor would give up. A forger tries once."""
        await self.until(at_s)
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
        """One attempt, signed now; the status, or None if no answer came."""
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
            "at": self.first_at[fact_key(call, webhook)],
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
