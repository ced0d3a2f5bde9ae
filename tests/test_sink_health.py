"""A sink's health is one for all workers: its circuit, a pause, a disablement. Against Valkey and Redis."""

import asyncio
import time
from typing import Any

import pytest

from aftercall.errors import LedgerUnavailable, SinkError
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from aftercall.states import Attempt, Claim, DeliveryState, Outcome, Verdict
from tests import test_ledger
from tests.samples import a_progress
from tests.servers import RedisServer
from tests.test_ledger import LEASE_S, a_webhook, accept
from workers.deliver import judge, what_next

HOOK = "deliver:hook"


async def open_deliveries(ledger: Ledger, count: int, *, first: int = 0) -> list[str]:
    """So many events whose delivery to `hook` is due."""
    for number in range(first, first + count):
        await accept(ledger, a_webhook(f"call_{number}"))
    claims = await ledger.claim({"process": count}, lease_s=LEASE_S)
    for claim in claims:
        await ledger.commit(claim, b"{}", {"hook": False}, a_progress(), lease_s=LEASE_S)
    return [claim.event_id for claim in claims]


async def claim_all(ledger: Ledger, count: int = 100) -> list[Claim]:
    return await ledger.claim({HOOK: count}, lease_s=LEASE_S)


async def finish(
    ledger: Ledger, claim: Claim, outcome: Outcome, verdict: Verdict, *, took_ms: int = 4, delay_s: float = 0.0
) -> str | None:
    last = Attempt(at="2026-11-20T12:00:01.000Z", duration_ms=took_ms, outcome=outcome)
    state: Any = {"retry": "open"}.get(outcome, outcome)
    return await ledger.finish(
        claim, "hook", DeliveryState(state=state, attempts=[last]), verdict=verdict, delay_s=delay_s, reason="HTTP 410"
    )


async def open_the_circuit(ledger: Ledger, *, waiting: int = 5) -> None:
    """Ten failures that lasted; `waiting` deliveries are due behind it."""
    await open_deliveries(ledger, 10 + waiting)
    claims = await claim_all(ledger, 10)
    changes = [await finish(ledger, claim, "retry", "failed", took_ms=2500, delay_s=60) for claim in claims]
    assert changes == ["unchanged"] * 9 + ["opened"]


async def let_time_pass(ledger: Ledger, seconds: float) -> None:
    """As if the circuit had been opened, probed or closed so much earlier, and all work been claimed."""
    await test_ledger.let_time_pass(ledger, seconds)
    for field in ("probe_at", "ramp_at"):
        if known := await ledger.redis.hget("aftercall:health:deliver:hook", field):
            await ledger.redis.hset("aftercall:health:deliver:hook", field, int(known) - int(seconds * 1000))
    if known := await ledger.redis.hget("aftercall:rate:deliver:hook", "at"):
        await ledger.redis.hset("aftercall:rate:deliver:hook", "at", int(known) - int(seconds * 1000))


async def state(ledger: Ledger) -> str:
    return (await ledger.sink_health(["hook"]))["hook"].state


async def test_failures_in_a_row_open_the_circuit_and_deliveries_wait_unclaimed(ledger: Ledger) -> None:
    await open_the_circuit(ledger)

    assert await state(ledger) == "open"
    assert await claim_all(ledger) == []
    assert (await ledger.open_work([HOOK]))[HOOK][0] == 15


async def test_a_success_in_between_keeps_the_circuit_closed(ledger: Ledger) -> None:
    await open_deliveries(ledger, 40)
    for number, claim in enumerate(await claim_all(ledger)):
        good = number % 8 == 7
        await finish(ledger, claim, "delivered" if good else "retry", "ok" if good else "failed", took_ms=2500)

    assert await state(ledger) in ("ok", "failing")


async def test_many_failures_at_one_instant_do_not_open_it(ledger: Ledger) -> None:
    await open_deliveries(ledger, 30)
    for claim in await claim_all(ledger):
        await finish(ledger, claim, "retry", "failed")

    assert await state(ledger) == "failing"


async def test_exactly_one_probe_goes_out_however_many_workers_ask(any_redis_url: str, ledger: Ledger) -> None:
    await open_the_circuit(ledger)
    await let_time_pass(ledger, 1)
    workers = [Ledger(connect(any_redis_url), retention_s=60) for _ in range(4)]
    claimed = await asyncio.gather(*(claim_all(worker) for worker in workers for _ in range(3)))
    for worker in workers:
        await worker.close()

    (probe,) = [claim for claims in claimed for claim in claims]
    assert probe.probe


async def test_a_probe_that_succeeds_closes_the_circuit_and_what_waited_goes_out_gently(ledger: Ledger) -> None:
    await open_the_circuit(ledger, waiting=55)
    await let_time_pass(ledger, 1)
    (probe,) = await claim_all(ledger)

    began = time.monotonic()
    assert await finish(ledger, probe, "delivered", "ok") == "closed"
    assert await state(ledger) == "ok"
    taken, most = [len(await claim_all(ledger))], [8 * 2 ** (time.monotonic() - began)]
    for second in range(1, 4):
        await let_time_pass(ledger, 1)
        taken.append(len(await claim_all(ledger)))
        most.append(8 * 2 ** (second + time.monotonic() - began))
    assert 8 <= taken[0] <= most[0]
    assert 16 <= taken[1] <= most[1]
    assert sum(taken) == 54, "and in the end all of it"


async def test_a_probe_that_fails_keeps_it_open_for_longer(ledger: Ledger) -> None:
    await open_the_circuit(ledger)
    await let_time_pass(ledger, 1)
    (probe,) = await claim_all(ledger)
    await finish(ledger, probe, "retry", "failed", delay_s=60)

    assert await state(ledger) == "open"
    await let_time_pass(ledger, 1.5)
    assert await claim_all(ledger) == [], "the second pause is twice the first"
    await let_time_pass(ledger, 0.5)
    assert len(await claim_all(ledger)) == 1


async def test_a_probe_whose_worker_died_is_followed_by_another(ledger: Ledger) -> None:
    await open_the_circuit(ledger)
    await let_time_pass(ledger, 1)
    (lost,) = await claim_all(ledger, 5)
    assert await claim_all(ledger) == []
    await let_time_pass(ledger, LEASE_S)

    (second,) = await claim_all(ledger)
    assert lost.probe
    assert second.probe


async def test_a_refusal_is_an_answer_and_closes_the_circuit_too(ledger: Ledger) -> None:
    await open_the_circuit(ledger)
    await let_time_pass(ledger, 1)
    (probe,) = await claim_all(ledger)

    assert await finish(ledger, probe, "dead", "ok") == "closed"


async def test_a_replay_counts_neither_for_nor_against_its_sink(ledger: Ledger) -> None:
    await open_deliveries(ledger, 30)
    for claim in await claim_all(ledger):
        await finish(ledger, claim, "retry", "unchanged", took_ms=2500)

    assert await state(ledger) == "ok"


async def test_at_once_nothing_is_delivered_to_a_sink_behind_an_open_circuit(ledger: Ledger) -> None:
    await open_the_circuit(ledger)
    await accept(ledger, a_webhook("later"))
    (claim,) = await ledger.claim({"process": 1}, lease_s=LEASE_S)

    assert await ledger.commit(claim, b"{}", {"hook": True, "other": True}, a_progress(), lease_s=LEASE_S) == [
        Claim("deliver:other", claim.event_id, pytest.approx(claim.token, abs=10_000), claim.now_ms)
    ]
    assert (await ledger.open_work([HOOK]))[HOOK][0] == 16


async def test_a_sink_that_is_gone_is_disabled_and_drains_after_it_is_resumed(ledger: Ledger) -> None:
    await open_deliveries(ledger, 5)
    (claim,) = await claim_all(ledger, 1)

    assert await finish(ledger, claim, "retry", "gone") == "disabled"
    health = (await ledger.sink_health(["hook"]))["hook"]
    assert (health.state, health.reason) == ("disabled", "HTTP 410")
    assert await claim_all(ledger) == []
    await ledger.resume("hook")
    assert len(await claim_all(ledger)) == 5


async def test_a_paused_sink_waits_and_drains_and_others_do_not_wait_with_it(ledger: Ledger) -> None:
    ids = await open_deliveries(ledger, 3)
    await ledger.pause("hook")

    assert await state(ledger) == "paused"
    assert await claim_all(ledger) == []
    await accept(ledger, a_webhook("other"))
    assert len(await ledger.claim({HOOK: 10, "process": 10}, lease_s=LEASE_S)) == 1
    await ledger.resume("hook")
    assert {claim.event_id for claim in await claim_all(ledger)} == set(ids)


async def test_what_waits_at_a_sink_nobody_may_attempt_is_found_after_the_retention(any_redis_url: str) -> None:
    ledger = Ledger(connect(any_redis_url), retention_s=60)
    ids = await open_deliveries(ledger, 3)
    assert await ledger.parked_too_long(["hook"]) == []
    await let_time_pass(ledger, 60)

    assert await ledger.parked_too_long(["hook"]) == [], "a sink that works is only behind"
    await ledger.pause("hook")
    paused = await ledger.parked_too_long(["hook"])
    assert {claim.event_id for claim in paused} == set(ids)
    await ledger.redis.delete("aftercall:health:deliver:hook")
    removed = await ledger.parked_too_long([])
    assert {claim.event_id for claim in removed} == set(ids), "it is not configured any more"
    for claim in removed:
        assert await finish(ledger, claim, "dead", "unchanged")
    assert await ledger.dead_count() == 3
    assert await ledger.parked_too_long([]) == []
    await ledger.close()


# Replays


async def test_a_manual_and_an_automatic_attempt_never_both_run(ledger: Ledger) -> None:
    (event,) = await open_deliveries(ledger, 1)
    (claim,) = await claim_all(ledger)
    assert await ledger.replay(event, "hook", only_dead=False) == "under_way"

    await finish(ledger, claim, "retry", "failed", delay_s=60)
    assert await ledger.replay(event, "hook", only_dead=False) == "brought_forward"
    (again,) = await claim_all(ledger)
    assert await claim_all(ledger) == []
    await finish(ledger, again, "delivered", "ok")
    assert (await ledger.open_work([HOOK]))[HOOK][0] == 0


async def test_what_was_delivered_is_delivered_again_and_then_done_again(ledger: Ledger) -> None:
    (event,) = await open_deliveries(ledger, 1)
    (claim,) = await claim_all(ledger)
    await finish(ledger, claim, "delivered", "ok")

    answers = await asyncio.gather(*(ledger.replay(event, "hook", only_dead=False) for _ in range(5)))
    assert sorted(answers) == ["brought_forward"] * 4 + ["due"]
    (again,) = await claim_all(ledger)
    loaded = await ledger.load_delivery(event, "hook")
    assert loaded is not None
    assert loaded[1].replayed
    await finish(ledger, again, "delivered", "ok")
    assert (await ledger.events())[0]["state"] == "done"
    assert await ledger.redis.ttl(f"aftercall:event:{event}") > 0


async def test_an_outcome_that_comes_late_does_not_swallow_a_replay(ledger: Ledger) -> None:
    (event,) = await open_deliveries(ledger, 1)
    (claim,) = await claim_all(ledger)
    await finish(ledger, claim, "delivered", "ok")
    await ledger.replay(event, "hook", only_dead=False)

    assert await finish(ledger, claim, "delivered", "ok") is None, "its answer was lost, and it is written once more"
    assert len(await claim_all(ledger)) == 1


async def test_a_sink_that_never_had_the_event_can_be_given_it(ledger: Ledger) -> None:
    (event,) = await open_deliveries(ledger, 1)

    assert await ledger.replay(event, "new", only_dead=False) == "due"
    assert len(await ledger.claim({"deliver:new": 5}, lease_s=LEASE_S)) == 1
    assert await ledger.replay("evt_none", "new", only_dead=False) == "content_gone"


async def test_events_are_walked_through_in_batches_oldest_first(ledger: Ledger) -> None:
    for number in range(25):
        await accept(ledger, a_webhook(f"call_{number}"))
    now_ms = int(time.time() * 1000) + 1000
    batches = [ids async for ids in ledger.events_between(now_ms - 60_000, now_ms, batch=10)]

    ids = [id_ for batch in batches for id_ in batch]
    assert len(ids) == len(set(ids)) == 25 == await ledger.count_events(now_ms - 60_000, now_ms)
    assert max(map(len, batches)) <= 25
    assert [ids async for ids in ledger.events_between(0, 1, batch=10)] == []


# Deaths


async def test_a_lease_that_ends_without_an_outcome_is_a_death_and_an_outcome_forgets_it(ledger: Ledger) -> None:
    await open_deliveries(ledger, 1)
    for deaths in range(3):
        (claim,) = await claim_all(ledger)
        assert claim.deaths == deaths
        await let_time_pass(ledger, LEASE_S)
    (claim,) = await claim_all(ledger)
    assert await ledger.defer(claim, 0, unbegun=True)
    (claim,) = await claim_all(ledger)
    assert claim.deaths == 3, "it was put back without having been begun"
    await finish(ledger, claim, "retry", "failed")
    (claim,) = await claim_all(ledger)
    assert claim.deaths == 0
    assert await ledger.redis.exists("aftercall:deaths") == 0


async def test_what_a_frozen_server_hands_out_after_the_thaw_is_not_lost_for_a_lease(redis_server: RedisServer) -> None:
    ledger = Ledger(connect(redis_server.url), retention_s=60)
    ids = await open_deliveries(ledger, 5)
    redis_server.freeze()
    with pytest.raises(LedgerUnavailable):
        await ledger.claim({HOOK: 3}, lease_s=LEASE_S)
    redis_server.thaw()
    await asyncio.sleep(0.3)  # it does what it was asked long ago, and nobody hears the answer

    again = await ledger.claim({"process": 4, HOOK: 1}, lease_s=LEASE_S)
    rest = await ledger.claim({HOOK: 10}, lease_s=LEASE_S)
    await ledger.close()
    assert sorted(one.event_id for one in again + rest) == sorted(ids)
    assert [one.lane for one in again] == [HOOK] * 3


async def test_a_commit_whose_answer_was_lost_can_be_repeated(ledger: Ledger) -> None:
    await accept(ledger, a_webhook())
    (claim,) = await ledger.claim({"process": 1}, lease_s=LEASE_S)
    first = await ledger.commit(claim, b"{}", {"hook": True}, a_progress(), lease_s=LEASE_S)
    again = await ledger.commit(claim, b"{}", {"hook": True}, a_progress(), lease_s=LEASE_S)

    assert first == again
    assert (await ledger.counters())["processed", ""] == 1


async def test_who_lost_the_lease_may_say_delivered_and_nothing_else(ledger: Ledger) -> None:
    await open_deliveries(ledger, 1)
    (late,) = await ledger.claim({HOOK: 1}, lease_s=20)
    await let_time_pass(ledger, 20)
    (holder,) = await claim_all(ledger)

    assert await finish(ledger, late, "dead", "ok") is None
    assert await finish(ledger, late, "retry", "failed") is None
    assert await finish(ledger, late, "delivered", "ok") is not None
    assert await finish(ledger, holder, "delivered", "ok") is None


# What follows an attempt


@pytest.mark.parametrize(
    ("error", "spent", "age_s", "probe", "outcome", "spends", "least_s", "most_s"),
    [
        (None, 0, 0, False, "delivered", 0, 0, 0),
        (SinkError("HTTP 500"), 0, 0, False, "retry", 1, 4.5, 5.5),
        (SinkError("HTTP 500"), 1, 5, False, "retry", 2, 27, 33),
        (SinkError("HTTP 500"), 2, 35, False, "dead", 3, 0, 0),
        (SinkError("HTTP 400", permanent=True), 0, 0, False, "dead", 1, 0, 0),
        (SinkError("HTTP 410", permanent=True, gone=True), 0, 0, False, "retry", 0, 0, 0),
        (SinkError("HTTP 500"), 0, 0, True, "retry", 0, 4.5, 5.5),
        (SinkError("HTTP 500"), 2, 99, True, "retry", 2, 27, 33),
        (SinkError("HTTP 400", permanent=True), 0, 0, True, "dead", 0, 0, 0),
        (SinkError("HTTP 429", retry_after=12), 0, 0, False, "retry", 0, 12, 13.2),
        (SinkError("HTTP 429", retry_after=0), 2, 34, False, "retry", 2, 27, 33),
        (SinkError("HTTP 429", retry_after=12), 2, 36, False, "dead", 3, 0, 0),
        (SinkError("HTTP 503", retry_after=1e9), 0, 0, False, "retry", 0, 86400, 95040),
    ],
)
def test_what_follows_an_attempt(
    error: SinkError | None,
    spent: int,
    age_s: float,
    probe: bool,
    outcome: str,
    spends: int,
    least_s: float,
    most_s: float,
) -> None:
    for _ in range(50):
        next_ = what_next((5.0, 30.0), error, spent=spent, age_s=age_s, probe=probe)
        assert (next_.outcome, next_.spent) == (outcome, spends)
        assert least_s <= next_.delay_s <= most_s


def test_without_a_schedule_the_first_failure_is_the_last() -> None:
    assert what_next((), SinkError("HTTP 429", retry_after=1), spent=0, age_s=0).outcome == "dead"


def test_waits_are_not_the_same_twice() -> None:
    assert len({what_next((30.0,), SinkError("x"), spent=0, age_s=0).delay_s for _ in range(20)}) > 10


@pytest.mark.parametrize(
    ("error", "replayed", "verdict"),
    [
        (None, False, "ok"),
        (None, True, "unchanged"),
        (SinkError("HTTP 500"), False, "failed"),
        (SinkError("HTTP 500"), True, "unchanged"),
        (SinkError("HTTP 400", permanent=True), False, "ok"),
        (SinkError("HTTP 410", permanent=True, gone=True), True, "gone"),
    ],
)
def test_what_an_attempt_tells_of_its_sink(error: SinkError | None, replayed: bool, verdict: str) -> None:
    assert judge(error, replayed=replayed) == verdict
