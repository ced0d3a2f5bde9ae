"""Real processes, killed for real at each seam; an event that kills whoever touches it."""

import asyncio
import json
import signal
import subprocess
import time
from contextlib import suppress

import aiohttp
import pytest
from aiohttp import web

from tests.servers import until
from tests.stack import ACCOUNTS, SINK, Stack, a_retell_call
from tests.test_end_to_end import give_any_record, open_ledger, until_done
from workers import lanes, main

pytestmark = pytest.mark.long

LEASE_S = 1.5
POISON_LEASE_S = 6.0  # over the start of the process that has it alone
DIE = "import os, signal\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"


def dies_around(method: str, *, done: bool) -> str:
    """Code that kills the process before it calls a method of the ledger, or when that has answered."""
    return f"""{DIE}
from aftercall.ledger import Ledger
real = Ledger.{method}
async def deadly(self, *arguments, **options):
    answer = await real(self, *arguments, **options) if {done} else True
    if answer: die()
    return answer
Ledger.{method} = deadly
"""


WORKER_SEAMS = {
    "claimed": dies_around("claim", done=True),
    "fetched": f"{DIE}import workers.process\nworkers.process._normalize = die\n",
    "before it is committed": dies_around("commit", done=False),
    "committed": dies_around("commit", done=True),
    "sink answered": dies_around("finish", done=False),
    "outcome recorded": dies_around("finish", done=True),
}


@pytest.mark.parametrize("seam", WORKER_SEAMS)
async def test_a_worker_killed_at_any_seam_loses_nothing_and_repeats_at_most_its_attempt(
    stack: Stack, seam: str
) -> None:
    give_any_record(stack, "call_1")
    await stack.start_service()
    victim = stack.start_worker(lease_s=LEASE_S, first=WORKER_SEAMS[seam])
    await stack.post("clinic", a_retell_call("call_1"))
    assert await asyncio.to_thread(victim.wait, 60) == -signal.SIGKILL
    stack.start_worker(lease_s=LEASE_S)

    await stack.receiver.until(1, timeout_s=60)
    repeated = seam == "sink answered"
    if repeated:
        await stack.receiver.until(2, timeout_s=60)
    await stack.receiver.stays_at(2 if repeated else 1, for_s=LEASE_S + 0.7)
    assert len({event["id"] for event in stack.receiver.events}) == 1
    ledger = await open_ledger(stack)
    await until_done(ledger)
    assert await ledger.dead_letters() == []
    await ledger.close()


@pytest.mark.parametrize("accepted", [False, True], ids=["verified", "accepted"])
async def test_a_service_killed_around_the_acceptance_takes_the_provider_s_next_try(
    stack: Stack, accepted: bool
) -> None:
    give_any_record(stack, "call_1")
    victim = await stack.start_service(first=dies_around("accept", done=accepted))
    with suppress(aiohttp.ClientError):
        await stack.post("clinic", a_retell_call("call_1"))
        pytest.fail("it was answered")
    assert await asyncio.to_thread(victim.wait, 60) == -signal.SIGKILL
    await stack.start()

    assert (await stack.post("clinic", a_retell_call("call_1")))[0] == 204
    await stack.receiver.until(1)
    await stack.receiver.stays_at(1)
    ledger = await open_ledger(stack)
    assert (await ledger.counters()).get(("duplicate", "clinic"), 0) == int(accepted)
    await ledger.close()


GLITCHES = """
from aftercall.errors import LedgerUnavailable
from aftercall.ledger import Ledger

def make_glitchy(method):
    real, left = getattr(Ledger, method), [1, 2]
    async def glitchy(self, *arguments, **options):
        answer = await real(self, *arguments, **options) if DONE else None
        if left and (answer or not DONE):
            left.pop()
            raise LedgerUnavailable("Redis does not answer in time")
        return answer if DONE else await real(self, *arguments, **options)
    setattr(Ledger, method, glitchy)

for method in ("claim", "load_webhook", "commit", "finish", "defer"):
    make_glitchy(method)
"""


@pytest.mark.parametrize("done", [False, True], ids=["refused", "done but the answer was lost"])
async def test_failures_of_redis_at_every_step_cost_no_second_delivery(stack: Stack, done: bool) -> None:
    # An outcome is kept in memory until Redis takes it, and may be written twice.
    give_any_record(stack, "call_1")
    stack.vendor.faults["/v2/get-call/call_1"] = [lambda: web.Response(status=404)]
    await stack.start_service()
    stack.start_worker(lease_s=LEASE_S, first=f"DONE = {done}\n{GLITCHES}")
    await stack.post("clinic", a_retell_call("call_1"))

    await stack.receiver.until(1, timeout_s=60)
    await stack.receiver.stays_at(1, for_s=LEASE_S + 0.7)
    ledger = await open_ledger(stack)
    await until_done(ledger)
    await ledger.close()


POISON = """
import os, signal
from aftercall import Sink

class Poison(Sink):
    async def deliver(self, delivery):
        with open("starts.txt", "a") as file:
            file.write(delivery.event.subject + "\\n")
        if delivery.event.subject == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
"""


def keep_a_worker_running(stack: Stack) -> "asyncio.Task[int]":
    """What a platform does: start it again when it ends. The task's result, when cancelled, is how often it died."""

    async def run() -> int:
        deaths = 0
        worker: subprocess.Popen[bytes] = stack.start_worker(lease_s=POISON_LEASE_S)
        try:
            while True:
                await asyncio.sleep(0.05)
                if worker.poll() is not None:
                    deaths += 1
                    worker = stack.start_worker(lease_s=POISON_LEASE_S)
        except asyncio.CancelledError:
            return deaths

    return asyncio.create_task(run())


async def test_an_event_that_kills_its_process_is_parked_after_three_deaths_and_no_other_is(stack: Stack) -> None:
    (stack.directory / "poison.py").write_text(POISON)
    stack.configure(ACCOUNTS + SINK + '\n[sinks.deadly]\ntype = "poison:Poison"\n')
    ids = ["poison", *(f"call_{number}" for number in range(20))]
    give_any_record(stack, *ids)
    await stack.start_service()
    for call_id in ids:
        await stack.post("clinic", a_retell_call(call_id))
    running = keep_a_worker_running(stack)
    ledger = await open_ledger(stack)
    deadline = time.monotonic() + 90
    while not await ledger.dead_count():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    while {event["subject"] for event in stack.receiver.events} != set(ids):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    while (await ledger.open_work(["deliver:deadly"]))["deliver:deadly"][0]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    running.cancel()

    assert await running == 2, "the third death was that of a process that had it alone"
    ((event_id, sink),) = await ledger.dead_letters()
    found = await ledger.event(event_id)
    assert sink == "deadly"
    assert found is not None
    assert json.loads(found.body or b"")["subject"] == "poison"
    assert "parked after 3 deaths" in (found.deliveries["deadly"].attempts[-1].error or "")
    assert "SIGKILL" in (found.deliveries["deadly"].attempts[-1].error or "")
    starts = (stack.directory / "starts.txt").read_text().split()
    assert starts.count("poison") == 3
    assert set(starts) == set(ids), "the others were delivered there"
    await ledger.close()


async def test_a_record_that_kills_the_provider_s_code_is_parked_too(stack: Stack) -> None:
    # A plug-in's `normalize` may end the process as well, here by leaving it with status 0.
    (stack.directory / "leaving.py").write_text(
        "import sys\nfrom aftercall.providers.retell import Retell\n"
        "class Leaving(Retell):\n    def normalize(self, webhook, record):\n        sys.exit(0)\n"
    )
    stack.configure((ACCOUNTS + SINK).replace('provider = "retell"', 'provider = "leaving:Leaving"'))
    give_any_record(stack, "call_1")
    await stack.start_service()
    await stack.post("clinic", a_retell_call("call_1"))
    running = keep_a_worker_running(stack)
    ledger = await open_ledger(stack)
    async with asyncio.timeout(90):
        while not await ledger.dead_count():
            await asyncio.sleep(0.1)
    running.cancel()

    assert await running == 2
    ((_, step),) = await ledger.dead_letters()
    assert step == "@process"
    await ledger.close()


async def test_a_work_whose_workers_are_killed_from_outside_is_not_taken_for_poison(stack: Stack) -> None:
    give_any_record(stack, "call_1")
    stack.receiver.delay_s = 1.5
    await stack.start_service()
    await stack.post("clinic", a_retell_call("call_1"))
    for number in range(1, 5):
        worker = stack.start_worker(lease_s=LEASE_S)
        async with asyncio.timeout(60):
            while stack.receiver.started < number:
                await asyncio.sleep(0.02)
        worker.kill()
        worker.wait()
    stack.receiver.delay_s = 0
    stack.start_worker(lease_s=LEASE_S)

    await stack.receiver.until(1, timeout_s=60)
    ledger = await open_ledger(stack)
    assert await ledger.dead_letters() == []
    await ledger.close()


def test_a_killed_worker_s_work_is_back_within_a_minute_with_production_s_lease() -> None:
    assert lanes.LEASE_S + main.POLL_S < 60


async def test_an_event_whose_workers_always_die_is_parked_even_if_nobody_sees_the_proof(stack: Stack) -> None:
    # A host that runs out of memory takes the worker and the process beside it at once.
    give_any_record(stack, "call_1")
    await stack.start_service()
    await stack.post("clinic", a_retell_call("call_1"))
    ledger = await open_ledger(stack)
    (claim,) = await ledger.claim({"process": 1}, lease_s=0.1)
    await ledger.redis.hset("aftercall:deaths", f"process|{claim.event_id}", 9)
    await asyncio.sleep(0.2)
    stack.start_worker()

    await until(ledger.dead_count)
    found = await ledger.event(claim.event_id)
    assert found is not None
    assert "parked after 10 deaths" in (found.deliveries["@process"].attempts[-1].error or "")
    assert stack.vendor.asked["/v2/get-call/call_1"] == 0
    await ledger.close()
