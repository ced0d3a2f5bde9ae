"""Calls going through: from a signed webhook at the real service, by the real worker, out of the webhook sink."""

import asyncio
import json
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from aftercall.event import CallEvent
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from tests.servers import RedisServer, until
from tests.stack import ACCOUNTS, KEYS, SECRET, SINK, Stack, a_retell_call, fixture

RETELL = "/v2/get-call/"
CARTESIA = "/agents/calls/"
ULTRAVOX = "/api/calls/"


def status(code: int, **headers: str) -> Any:
    return lambda: web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def open_ledger(stack: Stack) -> Ledger:
    ledger = Ledger(connect(stack.redis_url), retention_s=3600)
    stack.ledgers.append(ledger)
    return ledger


async def until_dead(ledger: Ledger) -> None:
    """When there is a dead letter."""
    await until(ledger.dead_count)


async def until_done(ledger: Ledger) -> None:
    """When each event was delivered, and that is noted: a receiver has an event a moment earlier."""

    async def is_done() -> bool:
        return {event["state"] for event in await ledger.events()} == {"done"}

    await until(is_done)


def give_records(stack: Stack) -> tuple[str, str, str]:
    """The records of one call at each vendor; their ids."""
    retell, cartesia = fixture("retell", "rest.get_call"), fixture("cartesia", "rest.get_call")
    ultravox = fixture("ultravox", "rest.get_call")
    stack.vendor.records |= {
        RETELL + retell["call_id"]: retell,
        CARTESIA + cartesia["id"]: cartesia,
        ULTRAVOX + ultravox["callId"]: ultravox,
        f"{ULTRAVOX}{ultravox['callId']}/messages": {**fixture("ultravox", "rest.messages.page1"), "next": None},
    }
    return retell["call_id"], cartesia["id"], ultravox["callId"]


async def test_calls_of_all_three_providers_come_out_once_each_as_the_contract_says(
    tmp_path: Path, any_redis_url: str
) -> None:
    async with Stack(tmp_path, any_redis_url) as stack:
        retell_id, cartesia_id, ultravox_id = give_records(stack)
        await stack.start()
        webhooks = [("clinic", fixture("retell", name)) for name in ("call_started", "call_ended", "call_analyzed")]
        webhooks += [
            ("parcel", fixture("cartesia", name)) for name in ("call_started", "call_completed", "post_call_analysis")
        ]
        webhooks += [
            ("ferry", fixture("ultravox", name))
            for name in ("call.started", "call.joined", "call.ended", "call.billed")
        ]
        for account, payload in webhooks:
            answers = await asyncio.gather(*(stack.post(account, payload) for _ in range(3)))
            assert {answer[0] for answer in answers} == {204}

        events = await stack.receiver.until(len(webhooks) + 3)  # each call settles
        await stack.receiver.stays_at(len(webhooks) + 3)
        assert len({event["id"] for event in events}) == len(events)
        by_source = {
            source: {event["type"]: event for event in events if event["source"] == source}
            for source in ("/retell/clinic", "/cartesia/parcel", "/ultravox/ferry")
        }
        assert set(by_source["/retell/clinic"]) == {"call.started", "call.ended", "call.analyzed", "call.settled"}
        assert set(by_source["/cartesia/parcel"]) == {"call.started", "call.ended", "call.analyzed", "call.settled"}
        assert set(by_source["/ultravox/ferry"]) == {
            *("call.started", "call.connected", "call.ended", "call.billed", "call.settled")
        }
        for event in events:
            msgspec.convert(event, CallEvent, strict=True)
            assert event["specversion"] == "1.0"
            assert event["data"]["complete"] is True
            assert event["data"]["via"] == ("settle" if event["type"] == "call.settled" else "webhook")
        assert by_source["/retell/clinic"]["call.ended"]["data"]["tags"] == {"client": "clinic"}
        for source, call_id, count in (
            ("/retell/clinic", retell_id, 4),
            ("/cartesia/parcel", cartesia_id, 4),
            ("/ultravox/ferry", ultravox_id, 5),
        ):
            found = by_source[source].values()
            assert (
                {event["subject"] for event in found} == {event["data"]["call"]["id"] for event in found} == {call_id}
            )
            assert sorted(event["data"]["sequence"] for event in found) == list(range(1, count + 1))
        ended = by_source["/retell/clinic"]["call.ended"]["data"]["call"]
        assert ended["metrics"]["turns"] > 0
        assert ended["cost"]["currency"] == "USD"
        headers = stack.receiver.headers[0]
        assert headers["content-type"] == "application/cloudevents+json"
        assert headers["webhook-id"] == events[0]["id"]
        assert stack.vendor.headers[RETELL + retell_id]["authorization"] == f"Bearer {KEYS['RETELL_KEY']}"
        assert stack.vendor.headers[CARTESIA + cartesia_id]["cartesia-version"] == "2026-03-01"
        assert stack.vendor.headers[ULTRAVOX + ultravox_id]["x-api-key"] == KEYS["ULTRAVOX_KEY"]


async def test_nothing_secret_of_a_record_leaves_and_nothing_private_is_logged(stack: Stack) -> None:
    give_records(stack)
    await stack.start()
    for name in ("call.started", "call.joined", "call.ended", "call.billed"):
        await stack.post("ferry", fixture("ultravox", name))
    await stack.post("clinic", fixture("retell", "call_ended.web_call"))
    events = await stack.receiver.until(4)
    sent = json.dumps(events)
    carried = fixture("ultravox", "call.ended")["call"]

    for secret in (carried["joinUrl"], carried["systemPrompt"], carried["callbacks"]["ended"]["secrets"][0]):
        assert secret not in sent
    logs = stack.log("worker.log") + stack.log("service.log")
    numbers = [number for number in (events[0]["data"]["call"]["from"], events[0]["data"]["call"]["to"]) if number]
    for private in (*KEYS.values(), *numbers):
        assert private not in logs


async def test_what_goes_wrong_is_logged_without_what_was_said(stack: Stack) -> None:
    record = fixture("retell", "rest.get_call")
    path = RETELL + "call_1"
    stack.vendor.records[path] = {**record, "call_id": "call_1"}
    stack.vendor.faults[path] = [status(404), status(500)]
    stack.receiver.answers = [status(500), status(400)]
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1", from_number="+15550100144", transcript="User: saffron\n"))
    ledger = await open_ledger(stack)
    await until_dead(ledger)
    await ledger.close()

    logs = stack.log("worker.log")
    for words in ("record_deferred", "delivery_failed", "HTTP 500", "HTTP 400"):
        assert words in logs
    said = [turn["content"] for turn in record["transcript_object"]]
    for private in (*KEYS.values(), SECRET, "+15550100144", record["from_number"], "saffron", *said):
        assert private not in logs


async def test_a_sink_may_not_reach_a_private_address_unless_its_table_says_so(stack: Stack) -> None:
    stack.configure(ACCOUNTS + SINK.replace("allow_private_network = true\n", ""))
    give_any_record(stack, "call_1")
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))
    ledger = await open_ledger(stack)
    await until_dead(ledger)
    ((event_id, sink),) = await ledger.dead_letters()
    found = await ledger.event(event_id)
    await ledger.close()

    assert found is not None
    assert "allow_private_network = true" in (found.deliveries[sink].attempts[0].error or "")
    assert stack.receiver.started == 0


@pytest.mark.parametrize(
    "fault", [status(404), status(425), status(422), status(429, retry_after="1"), status(500), status(503)]
)
async def test_a_record_that_is_not_there_yet_is_fetched_again(stack: Stack, fault: Any) -> None:
    record = fixture("retell", "rest.get_call")
    path = RETELL + record["call_id"]
    stack.vendor.records[path] = record
    stack.vendor.faults[path] = [fault]
    await stack.start()
    await stack.post("clinic", fixture("retell", "call_ended"))

    (event,) = await stack.receiver.until(1)
    assert event["data"]["complete"] is True
    assert stack.vendor.asked[path] == 2


async def test_retry_after_is_waited_for_and_holds_no_one_else_up(stack: Stack) -> None:
    record = fixture("retell", "rest.get_call")
    for call_id in ("slow", "quick"):
        stack.vendor.records[RETELL + call_id] = {**record, "call_id": call_id}
    stack.vendor.faults[RETELL + "slow"] = [status(429, retry_after="2")]
    await stack.start()
    await stack.post("clinic", a_retell_call("slow"))
    await stack.post("clinic", a_retell_call("quick"))

    assert [event["subject"] for event in await stack.receiver.until(2)] == ["quick", "slow"]
    first, second = stack.vendor.asked_at[RETELL + "slow"]
    assert stack.receiver.arrived[0] - first < 2 <= second - first


async def test_a_record_that_does_not_show_the_end_yet_is_fetched_again(stack: Stack) -> None:
    record = fixture("retell", "rest.get_call")
    path = RETELL + "call_1"
    unfinished = {"call_id": "call_1", "call_status": "ongoing", "call_type": "phone_call"}
    stack.vendor.records[path] = {**record, "call_id": "call_1"}
    stack.vendor.faults[path] = [lambda: web.json_response(unfinished)]
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))

    (event,) = await stack.receiver.until(1)
    assert event["data"]["call"]["cost"]["total"] is not None
    assert stack.vendor.asked[path] == 2


async def make_old(stack: Stack, seconds: int) -> None:
    """Let the one event in the ledger look as if it had been accepted so long ago."""
    redis = connect(stack.redis_url)
    (key,) = await redis.keys("aftercall:event:*")
    await redis.hincrby(key, "accepted", -seconds * 1000)
    await redis.aclose(close_connection_pool=True)


async def test_after_ten_minutes_without_a_record_the_event_goes_out_with_what_the_webhook_carried(
    stack: Stack,
) -> None:
    await stack.start_service()
    await stack.post("clinic", a_retell_call("call_1"))
    await make_old(stack, 601)
    stack.start_worker()

    (event,) = await stack.receiver.until(1)
    assert event["data"]["complete"] is False
    assert event["data"]["call"]["transcript"]
    assert event["data"]["call"]["end"]["reason"] == "user_hangup"


async def test_within_the_ten_minutes_nothing_incomplete_goes_out(stack: Stack) -> None:
    await stack.start_service()
    await stack.post("clinic", a_retell_call("call_1"))
    await make_old(stack, 540)
    stack.start_worker()

    async def was_asked_twice() -> bool:
        return stack.vendor.asked[RETELL + "call_1"] >= 2

    await until(was_asked_twice)
    await stack.receiver.stays_at(0)


async def test_an_unsigned_webhook_whose_call_nobody_confirms_is_a_dead_letter_and_never_an_event(stack: Stack) -> None:
    await stack.start_service()
    await stack.post("parcel", fixture("cartesia", "call_completed"))
    await make_old(stack, 601)
    stack.start_worker()
    ledger = await open_ledger(stack)
    await until_dead(ledger)

    dead = await ledger.dead_letters()
    assert dead[0][1] == "@process"
    found = await ledger.event(dead[0][0])
    assert found is not None
    assert "did not confirm" in (found.deliveries["@process"].attempts[-1].error or "")
    await stack.receiver.stays_at(0)
    await ledger.close()


async def test_the_transcript_that_only_the_webhook_carried_survives_the_record(stack: Stack) -> None:
    record = fixture("retell", "rest.get_call.basic_attributes_only")
    webhook = fixture("retell", "call_analyzed.basic_attributes_only")
    stack.vendor.records[RETELL + webhook["call"]["call_id"]] = {**record, "call_id": webhook["call"]["call_id"]}
    await stack.start()
    await stack.post("clinic", webhook)

    (event,) = await stack.receiver.until(1)
    call = event["data"]["call"]
    assert call["transcript"]
    assert call["from"] == webhook["call"]["from_number"]
    assert call["privacy"]["storage"] == "basic"


async def test_what_a_provider_must_not_keep_is_gone_from_redis_after_the_deliveries(stack: Stack) -> None:
    webhook = fixture("retell", "call_analyzed.basic_attributes_only")
    stack.vendor.records[RETELL + webhook["call"]["call_id"]] = fixture("retell", "rest.get_call.basic_attributes_only")
    await stack.start()
    await stack.post("clinic", webhook)
    (event,) = await stack.receiver.until(1)
    ledger = await open_ledger(stack)
    (settling,) = await ledger.redis.zrange("aftercall:work:settle", 0, -1)

    async def is_delivered() -> bool:
        return (await ledger.open_work(["deliver:hook"]))["deliver:hook"][0] == 0

    await until(is_delivered)
    assert await ledger.load_webhook(event["id"]) is not None, "the call is to settle with it"

    await ledger.redis.zadd("aftercall:work:settle", {settling: 1})  # its ten minutes are over
    _, settled = await stack.receiver.until(2)
    assert settled["type"] == "call.settled"
    assert settled["data"]["call"]["transcript"]

    async def is_gone() -> bool:
        left = [await ledger.load_webhook(one["id"]) for one in (event, settled)]
        left += [await ledger.load_delivery(one["id"], "hook") for one in (event, settled)]
        return left == [None] * 4

    await until(is_gone)
    assert (await stack.post("clinic", webhook))[0] == 204
    await stack.receiver.stays_at(2)
    await ledger.close()


def give_any_record(stack: Stack, *call_ids: str) -> None:
    record = fixture("retell", "rest.get_call")
    stack.vendor.records |= {RETELL + call_id: {**record, "call_id": call_id} for call_id in call_ids}


async def test_a_sink_that_fails_is_tried_again_with_the_same_id_and_the_same_bytes(stack: Stack) -> None:
    give_any_record(stack, "call_1")
    stack.receiver.answers = [status(500), status(429, retry_after="0")]
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))

    (event,) = await stack.receiver.until(1)
    assert stack.receiver.started == 3
    ledger = await open_ledger(stack)
    await until_done(ledger)
    found = await ledger.event(event["id"])
    assert found is not None
    assert msgspec.json.decode(found.body or b"") == event
    attempts = found.deliveries["hook"].attempts
    assert [attempt.outcome for attempt in attempts] == ["retry", "retry", "delivered"]
    assert attempts[0].error == "HTTP 500"
    await ledger.close()


@pytest.mark.parametrize(("answers", "attempts"), [([status(400)], 1), ([status(500)] * 3, 3)])
async def test_a_refusal_or_a_used_up_schedule_is_a_dead_letter(stack: Stack, answers: Any, attempts: int) -> None:
    give_any_record(stack, "call_1")
    stack.receiver.answers = answers
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))
    ledger = await open_ledger(stack)
    await until_dead(ledger)

    assert stack.receiver.started == attempts
    ((event_id, sink),) = await ledger.dead_letters()
    found = await ledger.event(event_id)
    assert sink == "hook"
    assert found is not None
    assert found.body is not None, "its content is kept"
    await stack.receiver.stays_at(0)
    await ledger.close()


async def test_a_replayed_dead_letter_arrives_with_its_id_and_gets_its_whole_schedule_again(stack: Stack) -> None:
    give_any_record(stack, "call_1")
    stack.receiver.answers = [status(500)] * 3
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))
    ledger = await open_ledger(stack)
    await until_dead(ledger)
    ((event_id, sink),) = await ledger.dead_letters()
    stack.receiver.answers = [status(500)] * 2
    assert await ledger.replay(event_id, sink)

    (event,) = await stack.receiver.until(1)
    assert event["id"] == event_id
    assert stack.receiver.started == 6
    await until_done(ledger)
    assert await ledger.dead_count() == 0
    await ledger.close()


async def test_a_replayed_event_that_could_not_be_processed_is_fetched_again(stack: Stack) -> None:
    await stack.start_service()
    await stack.post("parcel", fixture("cartesia", "call_completed"))
    await make_old(stack, 601)
    stack.start_worker()
    ledger = await open_ledger(stack)
    await until_dead(ledger)
    record = fixture("cartesia", "rest.get_call")
    stack.vendor.records[CARTESIA + record["id"]] = record
    assert await ledger.replay(*(await ledger.dead_letters())[0])

    (event,) = await stack.receiver.until(1)
    assert event["data"]["complete"] is True
    await ledger.close()


async def test_a_sink_that_hangs_leaves_the_others_latency_as_it_was(stack: Stack) -> None:
    hanging = (
        SINK.replace("[sinks.hook]", "[sinks.slow]").replace("%(receiver)s", "%(vendor)s/hang").replace('"2s"', '"20s"')
    )
    stack.configure(ACCOUNTS + SINK + hanging)
    give_any_record(stack, *(f"call_{number}" for number in range(260)))
    await stack.start()
    names = (f"call_{number}" for number in range(260))

    await stack.median_s(islice(names, 3))  # the worker has started
    before = await stack.median_s(islice(names, 15))
    await asyncio.gather(*(stack.post("clinic", a_retell_call(name)) for name in islice(names, 182)))
    await stack.receiver.until(200)

    # The best of many: the machine may be busy with something else, but a worker that waits for the sink always is.
    best = before * 10
    while best >= 2.5 * before + 0.005 and (tried := list(islice(names, 6))):
        best = min(best, await stack.median_s(tried))
    assert best < 2.5 * before + 0.005


async def test_a_rate_spreads_deliveries_and_loses_none(stack: Stack) -> None:
    stack.configure(ACCOUNTS + SINK + 'rate = "5/s"\n')
    ids = [f"call_{number}" for number in range(12)]
    give_any_record(stack, *ids)
    for _ in range(2):
        stack.start_worker()
    await stack.start_service()
    await asyncio.gather(*(stack.post("clinic", a_retell_call(call_id)) for call_id in ids))

    await stack.receiver.until(len(ids))
    assert stack.receiver.arrived[-1] - stack.receiver.arrived[0] > 1.0, "five at once, and then five a second"
    assert {event["subject"] for event in stack.receiver.events} == set(ids)


async def test_events_accounts_and_redact_decide_what_a_sink_gets(stack: Stack) -> None:
    give_any_record(stack, "call_1")
    give_records(stack)
    stack.configure(
        ACCOUNTS + SINK + 'events = ["call.ended"]\naccounts = ["clinic"]\nredact = ["transcript", "numbers"]\n'
    )
    await stack.start()
    await stack.post("clinic", fixture("retell", "call_started"))
    await stack.post("ferry", fixture("ultravox", "call.ended"))
    await stack.post("clinic", a_retell_call("call_1", from_number="+15550100188"))

    (event,) = await stack.receiver.until(1)
    await stack.receiver.stays_at(1)
    assert event["subject"] == "call_1"
    assert event["data"]["call"]["transcript"] is None
    assert "+15550100188" not in json.dumps(event)


async def test_a_killed_worker_s_work_comes_back_and_costs_at_most_a_repeated_attempt(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(30)]
    give_any_record(stack, *ids)
    await stack.start_service()
    stack.receiver.delay_s = 0.4
    victim = stack.start_worker(lease_s=1.5)
    for call_id in ids:
        await stack.post("clinic", a_retell_call(call_id))
    while stack.receiver.started < 5:
        await asyncio.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    await asyncio.sleep(0.5)  # what it had sent is answered, to nobody
    ledger = await open_ledger(stack)
    under_way = stack.receiver.started - (await ledger.counters()).get(("delivered", "hook"), 0)
    await ledger.close()
    stack.receiver.delay_s = 0
    stack.start_worker(lease_s=1.5)

    async def all_came() -> bool:
        return {event["subject"] for event in stack.receiver.events} == set(ids)

    await until(all_came)
    await asyncio.sleep(2)
    assert len({event["id"] for event in stack.receiver.events}) == len(ids)
    assert len(stack.receiver.events) <= len(ids) + under_way


async def test_a_worker_killed_while_it_fetches_loses_nothing_and_repeats_nothing(stack: Stack) -> None:
    give_any_record(stack, "call_1")
    stack.vendor.delay_s = 1.0
    await stack.start_service()
    victim = stack.start_worker(lease_s=1.5)
    await stack.post("clinic", a_retell_call("call_1"))
    while not stack.vendor.asked:
        await asyncio.sleep(0.005)
    victim.kill()
    stack.vendor.delay_s = 0
    stack.start_worker(lease_s=1.5)

    await stack.receiver.until(1)
    await stack.receiver.stays_at(1)


TELLS_THAT_IT_STOPS = """
from arq.worker import Worker
real = Worker.handle_sig_wait_for_completion
def told(self, signum):
    real(self, signum)
    open("stops", "w").close()
Worker.handle_sig_wait_for_completion = told
"""


async def test_a_worker_told_to_stop_finishes_its_attempts_and_spends_none(stack: Stack) -> None:
    give_any_record(stack, "call_1", "call_2")
    stack.receiver.delay_s = 1.0
    await stack.start_service()
    worker = stack.start_worker(first=TELLS_THAT_IT_STOPS)
    await stack.post("clinic", a_retell_call("call_1"))
    while not stack.receiver.started:
        await asyncio.sleep(0.005)
    worker.send_signal(signal.SIGTERM)

    async def has_heard() -> bool:
        return (stack.directory / "stops").exists()

    await until(has_heard)
    await stack.post("clinic", a_retell_call("call_2"))

    assert await asyncio.to_thread(worker.wait, 30) == 0
    assert [event["subject"] for event in stack.receiver.events] == ["call_1"]
    stack.receiver.delay_s = 0
    stack.start_worker()
    assert [event["subject"] for event in await stack.receiver.until(2)] == ["call_1", "call_2"]
    assert stack.receiver.started == 2


async def test_a_killed_service_has_lost_nothing_that_it_answered(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(60)]
    give_any_record(stack, *ids)
    service = await stack.start_service()
    accepted = []

    async def post(call_id: str) -> None:
        try:
            if (await stack.post("clinic", a_retell_call(call_id)))[0] == 204:
                accepted.append(call_id)
        except aiohttp.ClientError:
            pass  # it was killed: this one was never answered

    posting = [asyncio.create_task(post(call_id)) for call_id in ids]
    while len(accepted) < 10:
        await asyncio.sleep(0)
    service.kill()
    await asyncio.gather(*posting)
    stack.start_worker()

    async def all_came() -> bool:
        return set(accepted) <= {event["subject"] for event in stack.receiver.events}

    await until(all_came)


async def test_a_worker_survives_a_restart_of_redis(tmp_path: Path, redis_server: RedisServer) -> None:
    redis_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    redis_server.kill()
    redis_server.start()
    async with Stack(tmp_path, redis_server.url) as stack:
        give_any_record(stack, "call_1", "call_2")
        await stack.start()
        await stack.post("clinic", a_retell_call("call_1"))
        await stack.receiver.until(1)
        redis_server.kill()
        await asyncio.sleep(2)
        redis_server.start()

        async def is_taken() -> bool:
            return (await stack.post("clinic", a_retell_call("call_2")))[0] == 204

        await until(is_taken)
        assert [event["subject"] for event in await stack.receiver.until(2)] == ["call_1", "call_2"]
        assert [process.poll() for process in stack.processes] == [None, None]


async def test_while_memory_is_full_workers_finish_what_fills_it(tmp_path: Path, redis_server: RedisServer) -> None:
    ids = [f"call_{number}" for number in range(5)]
    async with Stack(tmp_path, redis_server.url) as stack:
        give_any_record(stack, *ids, "call_late")
        stack.receiver.answers = [status(500)]
        await stack.start_service()
        for call_id in ids:
            await stack.post("clinic", a_retell_call(call_id))
        admin = connect(redis_server.url)
        await admin.config_set("maxmemory", 1)
        assert (await stack.post("clinic", a_retell_call("call_late")))[0] == 503
        worker = stack.start_worker()
        await stack.receiver.until(len(ids))
        assert (await stack.post("clinic", a_retell_call("call_late")))[0] == 503
        await admin.config_set("maxmemory", 0)
        await admin.aclose(close_connection_pool=True)
        assert (await stack.post("clinic", a_retell_call("call_late")))[0] == 204

        assert {event["subject"] for event in await stack.receiver.until(len(ids) + 1)} == {*ids, "call_late"}
        assert worker.poll() is None


async def test_several_workers_deliver_each_event_once(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(150)]
    give_any_record(stack, *ids)
    for _ in range(3):
        stack.start_worker()
    await stack.start_service()
    await asyncio.gather(*(stack.post("clinic", a_retell_call(call_id)) for call_id in ids))

    await stack.receiver.until(len(ids))
    await stack.receiver.stays_at(len(ids))
    assert {event["subject"] for event in stack.receiver.events} == set(ids)
