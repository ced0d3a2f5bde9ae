"""The simulated Ultravox lists, deletes and registers as the vendor documents it."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from simulator.records import Records
from tests.simulated import DAY, NOW, ULTRAVOX, Client, Json, ids, of, serving, ultravox_walk


@pytest.fixture
def records() -> Records:
    return Records(DAY)


@pytest.fixture
async def client(records: Records) -> AsyncIterator[Client]:
    async with serving(records) as client:
        yield client


async def test_ultravox_lists_each_call_once_in_pages(client: Client) -> None:
    there = [call for call in of("ultravox") if call.story != "private"]
    for params in ({}, {"pageSize": "7"}, {"pageSize": "1000"}, {"sort": "created", "pageSize": "7"}):
        found = await ultravox_walk(client, "/api/calls", params)
        assert sorted(item["callId"] for item in found) == ids(there)
        created = [item["created"] for item in found]
        assert created == sorted(created, reverse="sort" not in params)
    assert {item["callId"]: item for item in found} == {call.id: call.record for call in there}
    assert len((await client.get("/api/calls", headers=ULTRAVOX)).json()["results"]) == 10


async def test_a_page_of_ultravox_leads_back_to_the_one_before(client: Client) -> None:
    first = (await client.get("/api/calls", headers=ULTRAVOX, params={"pageSize": "5"})).json()
    second = await client.get(urlsplit(first["next"]).path + "?" + urlsplit(first["next"]).query, headers=ULTRAVOX)
    previous = urlsplit(second.json()["previous"])
    assert first["previous"] is None
    assert (await client.get(f"{previous.path}?{previous.query}", headers=ULTRAVOX)).json() == first


async def test_ultravox_filters_by_days_and_moments_included_and_by_agent(client: Client) -> None:
    there = {call.id: call.record["created"] for call in of("ultravox") if call.story != "private"}
    today = datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%d")
    for name, holds in (("fromDate", str.__ge__), ("toDate", str.__le__)):
        for day in {today, min(there.values())[:10]}:
            found = await ultravox_walk(client, "/api/calls", {name: day})
            expected = sorted(call_id for call_id, created in there.items() if holds(created[:10], day))
            assert sorted(item["callId"] for item in found) == expected
    for name, holds in (("fromDate", str.__ge__), ("toDate", str.__le__)):
        moment = sorted(there.values())[20]  # exactly one call's
        found = await ultravox_walk(client, "/api/calls", {name: moment})
        expected = sorted(call_id for call_id, created in there.items() if holds(created, moment))
        assert sorted(item["callId"] for item in found) == expected
    agent = of("ultravox", "held")[0].record["agentId"]
    found = await ultravox_walk(client, "/api/calls", {"agentIds": agent})
    assert {item["agentId"] for item in found} == {agent}
    assert 0 < len(found) < len(there)


@pytest.mark.parametrize(
    ("params", "status", "field"),
    [
        ({"fromDate": "2026-11-20T00:00:00"}, 400, "fromDate"),
        ({"fromDate": "1795000000"}, 400, "fromDate"),
        ({"toDate": "2026-02-30"}, 400, "toDate"),
        ({"sort": "ended"}, 400, "sort"),
        ({"cursor": "no cursor"}, 404, "detail"),
        ({"pageSize": "0"}, 404, "detail"),
        ({"search": "dog"}, 400, "detail"),
    ],
)
async def test_ultravox_refuses_what_it_does_not_understand(
    client: Client, params: Json, status: int, field: str
) -> None:
    answer = await client.get("/api/calls", headers=ULTRAVOX, params=params)
    assert (answer.status_code, list(answer.json())) == (status, [field])


async def test_a_call_deleted_at_ultravox_leaves_a_tombstone(client: Client) -> None:
    call = of("ultravox", "held")[0]
    answer = await client.delete(f"/api/calls/{call.id}", headers=ULTRAVOX)
    assert (answer.status_code, answer.content) == (204, b"")
    for path in (f"/api/calls/{call.id}", f"/api/calls/{call.id}/messages"):
        assert (await client.get(path, headers=ULTRAVOX)).status_code == 404
    assert (await client.delete(f"/api/calls/{call.id}", headers=ULTRAVOX)).status_code == 404

    tombstone = (await client.get(f"/api/deleted_calls/{call.id}", headers=ULTRAVOX)).json()
    assert tombstone.keys() == {
        "callId", "accountId", "created", "deletionTime", "joined", "ended", "maxDuration", "endReason",
        "recordingEnabled", "hadSummary",
    }  # fmt: skip
    assert (tombstone["created"], tombstone["hadSummary"]) == (call.record["created"], True)
    assert tombstone in await ultravox_walk(client, "/api/deleted_calls", {})
    other = of("ultravox", "held")[1]
    assert (await client.get(f"/api/deleted_calls/{other.id}", headers=ULTRAVOX)).status_code == 404


async def test_ultravox_calls_that_delete_themselves_are_gone_once_they_are_billed(
    client: Client, records: Records
) -> None:
    private = of("ultravox", "private")
    deleted = await ultravox_walk(client, "/api/deleted_calls", {"pageSize": "3"})
    assert sorted(one["callId"] for one in deleted) == ids(private)
    path = f"/api/calls/{private[0].id}"
    assert (await client.get(path, headers=ULTRAVOX)).status_code == 404

    statuses = []
    for webhook in private[0].webhooks:  # and while it is played
        records.show(private[0], webhook)
        statuses.append((await client.get(path, headers=ULTRAVOX)).status_code)
    assert statuses == [200, 200, 200, 404]
    [tombstone] = (await client.get("/api/deleted_calls", headers=ULTRAVOX)).json()["results"]
    assert datetime.fromisoformat(tombstone["deletionTime"]).timestamp() == pytest.approx(time.time(), abs=5)


async def test_ultravox_s_webhook_is_made_changed_replaced_and_removed(client: Client) -> None:
    asked = {"url": "https://hub.example.com/webhooks/ultravox", "events": ["call.ended", "call.billed"]}
    answer = await client.post("/api/webhooks", headers=ULTRAVOX, json=asked)
    made = answer.json()
    assert answer.status_code == 201
    assert made.keys() == {
        "webhookId", "agentId", "created", "url", "secrets", "events", "status", "lastStatusChange", "recentFailures",
    }  # fmt: skip
    assert [len(secret) > 20 for secret in made["secrets"]] == [True]  # made for who gives none
    path = f"/api/webhooks/{made['webhookId']}"
    assert await ultravox_walk(client, "/api/webhooks", {}) == [made]
    assert (await client.get(path, headers=ULTRAVOX)).json() == made

    change = {"secrets": ["a", "b"], "agentId": of("ultravox")[0].record["agentId"]}
    assert (await client.patch(path, headers=ULTRAVOX, json=change)).json() == {**made, **change}
    assert (await client.put(path, headers=ULTRAVOX, json={"url": asked["url"]})).json().keys() == {"events"}
    whole = {"url": asked["url"], "events": ["call.started"], "secrets": ["c"]}
    assert (await client.put(path, headers=ULTRAVOX, json=whole)).json() == {**made, **whole}  # of no agent any more

    assert (await client.delete(path, headers=ULTRAVOX)).status_code == 204
    assert (await client.get(path, headers=ULTRAVOX)).status_code == 404
    assert (await client.patch(path, headers=ULTRAVOX, json={})).status_code == 404
    assert await ultravox_walk(client, "/api/webhooks", {}) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "hub"}, "url"),
        ({"url": f"https://hub.example.com/{'x' * 200}"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["call.analyzed"]}, "events"),
        ({"secrets": ["x" * 121]}, "secrets"),
    ],
)
async def test_ultravox_refuses_a_webhook_by_the_field_that_is_wrong(client: Client, change: Json, field: str) -> None:
    asked = {"url": "https://hub.example.com/u", "events": ["call.ended"], **change}
    answer = await client.post("/api/webhooks", headers=ULTRAVOX, json=asked)
    assert (answer.status_code, list(answer.json())) == (400, [field])
