"""aftercall within the test's own process: a real ledger and the workers' own code, the simulator as the vendors.

Quicker than processes by far, so that a property can be tried on many orders of events. Time passes when a test says
so.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.plugins import provider_class
from aftercall.settings import load
from aftercall.sinks.base import Delivery, Sink
from aftercall.states import PROCESS_STEP, Accepted, sink_of
from simulator.app import Records, make_app
from simulator.faults import Faults
from simulator.parts import Call as SimulatedCall
from simulator.parts import Webhook as SimulatedWebhook
from workers.deliver import deliver
from workers.hub import Hub
from workers.lanes import Lanes
from workers.process import process

API_KEYS = {"retell": "key_r", "cartesia": "sk_car_c", "ultravox": "u.x"}
SECRETS = {"retell": "key_r", "cartesia": "hush-c", "ultravox": "hush-u"}
AT = "2026-11-20T12:00:00.000Z"
LEASE_S = 30.0
TOML = "".join(
    f'[accounts.{name}]\nprovider = "{name}"\napi_key = "{API_KEYS[name]}"\nwebhook_secrets = ["{SECRETS[name]}"]\n\n'
    for name in API_KEYS
)


class Recorder(Sink):
    """Keeps what it is given; a name in `refusing` refuses for good, one in `failing` for now."""

    got: list[CallEvent]
    erased: list[Call]
    refusing: set[str] = set()
    failing: set[str] = set()

    async def deliver(self, delivery: Delivery) -> None:
        if self.name in self.refusing | self.failing:
            raise SinkError("not now", permanent=self.name in self.refusing)
        self.got.append(delivery.event)


class Forgetful(Recorder):
    """A sink that deletes its copy."""

    async def erase(self, call: Call) -> None:
        self.erased.append(call)


class Inside:
    """`events` is what the sink `log` was given."""

    def __init__(self, hub: Hub, records: Records, http: httpx.AsyncClient) -> None:
        self.hub = hub
        self.ledger = hub.ledger
        self.records = records
        for name, account in hub.settings.accounts.items():
            hub.providers[name] = provider_class(account.provider)(account, http)
        for sink in hub.sinks.values():
            sink._sink.got, sink._sink.erased = [], []  # type: ignore[attr-defined]

    def sink(self, name: str = "log") -> Recorder:
        return self.hub.sinks[name]._sink  # type: ignore[return-value]

    @property
    def events(self) -> list[CallEvent]:
        return self.sink().got

    def of(self, call_id: str, *types: str) -> list[CallEvent]:
        return [event for event in self.events if event.subject == call_id and (not types or event.type in types)]

    async def receive(self, call: SimulatedCall, webhook: SimulatedWebhook) -> list[Accepted]:
        """A webhook arrives, and the vendor's record is as far as that."""
        self.records.show(call, webhook)
        body = json.dumps(webhook.payload, ensure_ascii=False, separators=(",", ":")).encode()
        return await self.accept(call.provider, body)

    async def accept(self, account: str, body: bytes) -> list[Accepted]:
        provider = self.hub.providers[account]
        return [
            await self.ledger.accept(one, body, provider=provider.name, account=account, received_at=AT)
            for one in provider.decode(body)
        ]

    async def work(self) -> None:
        """Do all that is due, and what becomes due by that."""
        tasks: dict[str, asyncio.Task[Any]] = {}
        lanes = Lanes(dict.fromkeys(self.hub.sinks, 0.0), tasks)
        while True:
            claims = await self.ledger.claim(lanes.free, lease_s=LEASE_S)
            for claim in claims:
                lanes.free[claim.lane] -= 1
                ctx = {"hub": self.hub, "claim": claim, "lanes": lanes}
                step = sink_of(claim.lane)
                processing = step == PROCESS_STEP
                lanes.run(claim, process(ctx, claim.event_id) if processing else deliver(ctx, claim.event_id, step))
            if not tasks:
                return
            await asyncio.gather(*tasks.values())
            await asyncio.sleep(0)  # where a task's end is noted

    async def pass_time(self, *lanes: str) -> None:
        """All that waits (in these lanes) is due now."""
        for lane in lanes or self.lanes:
            key = f"aftercall:work:{lane}"
            for id_, score in await self.ledger.redis.zrange(key, 0, -1, withscores=True):
                if score % 1 == 0:
                    await self.ledger.redis.zadd(key, {id_: 1})

    async def finish(self) -> None:
        """Work and let time pass until nothing is left open."""
        for _ in range(30):
            await self.work()
            if not any(count for count, _ in (await self.ledger.open_work(self.lanes)).values()):
                return
            await self.pass_time()
        raise AssertionError("work stays open")

    @property
    def lanes(self) -> list[str]:
        return ["process", "settle", *(f"deliver:{name}" for name in self.hub.sinks)]


@asynccontextmanager
async def inside(
    redis_url: str,
    directory: Path,
    calls: Iterable[SimulatedCall],
    *,
    toml: str = "",
    sinks: str | None = None,
    faults: Faults | None = None,
) -> AsyncIterator[Inside]:
    """aftercall with an account for each provider and, unless `sinks` says otherwise, one sink `log` for everything.

    `faults` are what rules do to requests.
    """
    sinks = '[sinks.log]\ntype = "tests.inside:Recorder"\nevents = ["*"]\n' if sinks is None else sinks
    (directory / "aftercall.toml").write_text(TOML + sinks + toml)
    records = Records(calls)
    app = make_app(records, API_KEYS, faults)
    hub = Hub(load({"REDIS_URL": redis_url}, directory))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        try:
            yield Inside(hub, records, http)
        finally:
            await hub.ledger.close()
            await hub.close()
