"""Sinks that are down, gone, slow or told to wait: what becomes of their deliveries, and of everybody else's."""

import asyncio
from itertools import islice

import msgspec
import pytest
from aiohttp import web

from aftercall.event import encode
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from aftercall.settings import load
from aftercall.states import Attempt, DeliveryState
from tests.samples import a_progress, an_event
from tests.servers import free_port, until
from tests.stack import ACCOUNTS, KEYS, SINK, Stack, a_retell_call
from tests.test_end_to_end import give_any_record, open_ledger
from tests.test_ledger import a_webhook, accept, let_time_pass
from workers.deliver import KEPT_ATTEMPTS
from workers.hub import Hub
from workers.sweep import sweep


@pytest.mark.long
async def test_an_outage_longer_than_the_schedule_costs_no_delivery(stack: Stack) -> None:
    # By their schedule alone these would be dead letters after 3.5 s; the circuit opens after 2 s of failures and more.
    stack.configure(ACCOUNTS + SINK.replace('["200ms", "200ms"]', '["500ms", "1s", "1s", "1s"]'))
    ids = [f"call_{number}" for number in range(40)]
    give_any_record(stack, *ids)
    stack.receiver.answers = [lambda: web.Response(status=503)] * 100_000
    await stack.start()
    for call_id in ids:
        await stack.post("clinic", a_retell_call(call_id))
    ledger = await open_ledger(stack)

    async def is_open() -> bool:
        return (await ledger.sink_health(["hook"]))["hook"].state == "open"

    await until(is_open)
    await asyncio.sleep(1)  # attempts that were claimed before it opened
    tried = stack.receiver.started
    await asyncio.sleep(4)
    assert stack.receiver.started - tried <= 4, "probes only: after 1 s, 2 s, 4 s"
    stack.receiver.answers = []
    await stack.receiver.until(len(ids), timeout_s=30)
    assert {event["subject"] for event in stack.receiver.events} == set(ids)
    assert await ledger.dead_letters() == []
    assert "circuit_opened" in stack.log("worker.log")
    assert "circuit_closed" in stack.log("worker.log")
    await ledger.close()


async def test_a_destination_that_only_asks_for_patience_uses_no_schedule_up(stack: Stack) -> None:
    stack.configure(ACCOUNTS + SINK.replace('["200ms", "200ms"]', '["100ms", "1m"]'))
    give_any_record(stack, "call_1")
    stack.receiver.answers = [lambda: web.Response(status=429, headers={"retry-after": "0.1"})] * 8
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))

    await stack.receiver.until(1)
    assert stack.receiver.started == 9


async def test_a_worker_whose_clock_is_wrong_keeps_the_schedule_all_the_same(stack: Stack) -> None:
    stack.configure(ACCOUNTS + SINK.replace('["200ms", "200ms"]', '["1s"]'))
    give_any_record(stack, "call_1")
    stack.receiver.answers = [lambda: web.Response(status=500)]
    stack.start_worker(first="import time\nreal = time.time\ntime.time = lambda: real() - 240\n")
    await stack.start_service()
    await stack.post("clinic", a_retell_call("call_1"))

    await stack.receiver.until(1)  # and not after the four minutes by which its clock is behind
    first, second = stack.receiver.started_at
    assert second - first >= 0.9


async def test_a_sink_that_answers_410_is_disabled_in_plain_sight_and_drains_when_resumed(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(6)]
    give_any_record(stack, *ids)
    stack.receiver.answers = [lambda: web.Response(status=410)]
    await stack.start()
    await stack.post("clinic", a_retell_call(ids[0]))
    ledger = await open_ledger(stack)

    async def is_disabled() -> bool:
        return (await ledger.sink_health(["hook"]))["hook"].state == "disabled"

    await until(is_disabled)
    for call_id in ids[1:]:
        await stack.post("clinic", a_retell_call(call_id))

    async def all_wait() -> bool:
        return (await ledger.open_work(["deliver:hook"]))["deliver:hook"][0] == len(ids)

    await until(all_wait)
    await stack.receiver.stays_at(0)
    assert stack.receiver.started == 1
    assert "aftercall sinks resume hook" in stack.log("worker.log")
    async with stack.http.get(f"{stack.url}/metrics") as response:
        assert 'aftercall_sink_state{sink="hook",state="disabled"} 1.0' in await response.text()
    await ledger.resume("hook")
    assert {event["subject"] for event in await stack.receiver.until(6)} == set(ids)
    assert await ledger.dead_letters() == []
    await ledger.close()


async def fill(ledger: Ledger, sink: str, count: int) -> None:
    """So many deliveries that are due at a sink."""
    body = encode(an_event())
    for start in range(0, count, 500):
        await asyncio.gather(*(accept(ledger, a_webhook(f"waiting_{start + number}")) for number in range(500)))
        claims = await ledger.claim({"process": 500}, lease_s=30)
        await asyncio.gather(*(ledger.commit(claim, body, {sink: False}, a_progress(), lease_s=30) for claim in claims))


@pytest.mark.long
async def test_ten_thousand_deliveries_waiting_for_a_dead_sink_leave_the_others_latency_as_it_was(
    stack: Stack,
) -> None:
    down = SINK.replace("[sinks.hook]", "[sinks.down]").replace(
        "%(receiver)s", f"http://127.0.0.1:{free_port()}/nobody"
    )
    stack.configure(ACCOUNTS + SINK + down.replace('["200ms", "200ms"]', '["1s", "1s", "1m", "1h"]'))
    give_any_record(stack, *(f"call_{number}" for number in range(110)))
    await stack.start_service()
    worker = stack.start_worker()
    names = (f"call_{number}" for number in range(110))

    await stack.median_s(islice(names, 3))  # the worker has started
    before = await stack.median_s(islice(names, 15))
    worker.terminate()
    worker.wait()
    ledger = await open_ledger(stack)
    await fill(ledger, "down", 10_000)
    stack.start_worker()
    await asyncio.sleep(2)  # it has met the dead sink
    assert (await ledger.open_work(["deliver:down"]))["deliver:down"][0] >= 10_000
    await ledger.close()

    best = before * 10  # the best of many, as above where a sink hangs
    while best >= 2.5 * before + 0.005 and (tried := list(islice(names, 8))):
        best = min(best, await stack.median_s(tried))
    assert best < 2.5 * before + 0.005


async def test_what_waited_for_longer_than_the_retention_becomes_a_dead_letter_and_then_goes(stack: Stack) -> None:
    stack.configure(ACCOUNTS + SINK + '\n[retention]\nevents = "3s"\n')
    hub = Hub(load({**KEYS, "REDIS_URL": stack.redis_url}, stack.directory))
    ledger = Ledger(connect(stack.redis_url), retention_s=3)
    await accept(ledger, a_webhook())
    (claim,) = await ledger.claim({"process": 1}, lease_s=1)
    await ledger.commit(claim, b"{}", {"hook": False, "removed": False}, a_progress(), lease_s=30)
    await ledger.pause("hook")
    await sweep({"hub": hub})
    assert await ledger.dead_letters() == []
    await ledger.redis.sadd("aftercall:sinks", "removed")
    await let_time_pass(ledger, 3)
    await sweep({"hub": hub})

    assert {sink for _, sink in await ledger.dead_letters()} == {"hook", "removed"}
    await let_time_pass(ledger, 3)
    await sweep({"hub": hub})
    assert await ledger.dead_letters() == []

    async def all_else_is_gone() -> bool:
        return {key.decode() for key in await ledger.redis.keys("aftercall:*")} <= {
            "aftercall:call:clinic:call_1",  # calls are remembered for longer, without content
            "aftercall:calls:clinic",
            "aftercall:counters",
            "aftercall:health:deliver:hook",
            "aftercall:sinks",
            "aftercall:wake",
        }

    await until(all_else_is_gone)
    await hub.ledger.close()
    await hub.close()
    await ledger.close()


def test_a_delivery_s_history_is_bounded() -> None:
    attempts = [Attempt(at="2026-11-20T12:00:00.000Z", duration_ms=1, outcome="retry", error="x" * 300)] * KEPT_ATTEMPTS
    assert len(msgspec.json.encode(DeliveryState(attempts=attempts))) < 10_000


async def test_a_worker_that_holds_much_takes_no_more_until_it_has_finished_some(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(32)]  # as many as one lane has places
    give_any_record(stack, *ids)
    stack.receiver.delay_s = 0.3
    await stack.start_service()
    for call_id in ids:
        await stack.post("clinic", a_retell_call(call_id))
    stack.start_worker(first="import workers.lanes\nworkers.lanes.MAX_HELD_BYTES = 1\n")

    most = 0
    while len(stack.receiver.events) < len(ids):
        most = max(most, stack.receiver.started - len(stack.receiver.events))
        await asyncio.sleep(0.01)
    assert 0 < most <= 16, "a few claims at once, made before the first of them had loaded its content"
