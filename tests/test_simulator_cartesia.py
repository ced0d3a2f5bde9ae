"""The simulated Cartesia lists, deletes and registers as the vendor documents it."""

import time
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from simulator.records import Records
from tests.simulated import CARTESIA, DAY, Client, Json, cartesia_walk, ids, of, serving


@pytest.fixture
def records() -> Records:
    return Records(DAY)


@pytest.fixture
async def client(records: Records) -> AsyncIterator[Client]:
    async with serving(records) as client:
        yield client


async def test_cartesia_lists_each_agent_s_calls_once_the_latest_first(client: Client) -> None:
    summaries = (await client.get("/agents", headers=CARTESIA)).json()["summaries"]
    assert {"id", "name", "created_at", "updated_at", "tts_voice", "webhook_id"} < summaries[0].keys()
    found: list[Json] = []
    for agent in summaries:
        for limit in ({}, {"limit": "100"}, {"limit": "3"}):
            there = await cartesia_walk(client, agent["id"], **limit)
            starts = [item["start_time"] for item in there]
            assert starts == sorted(starts, reverse=True)
        assert {item["agent_id"] for item in there} == {agent["id"]}
        found += there
    assert sorted(item["id"] for item in found) == ids(of("cartesia"))
    assert not any("transcript" in item for item in found)
    page = (await client.get("/agents/calls", headers=CARTESIA, params={"agent_id": summaries[0]["id"]})).json()
    assert len(page["data"]) == 10
    assert page.keys() == {"data", "next_page"}


async def test_cartesia_lists_transcripts_when_asked_to(client: Client) -> None:
    call = of("cartesia", "held")[0]
    items = await cartesia_walk(client, call.record["agent_id"], expand="transcript")
    [item] = [item for item in items if item["id"] == call.id]
    assert item == call.record


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"agent_id": ""},
        {"agent_id": "a", "limit": "0"},
        {"agent_id": "a", "limit": "101"},
        {"agent_id": "a", "limit": "x"},
        {"agent_id": "a", "starting_after": "ac_0"},
    ],
)
async def test_cartesia_refuses_a_list_without_an_agent_or_beyond_its_limits(client: Client, params: Json) -> None:
    answer = await client.get("/agents/calls", headers=CARTESIA, params=params)
    assert (answer.status_code, answer.json().keys()) == (400, {"error_code", "title", "message", "request_id"})


async def test_a_call_deleted_at_cartesia_stays_without_what_was_said(client: Client) -> None:
    call = of("cartesia", "held")[0]
    path = f"/agents/calls/{call.id}"
    early = await client.delete(path, headers=CARTESIA | {"cartesia-version": "2025-04-16"})
    assert early.status_code == 404
    answer = await client.delete(path, headers=CARTESIA)
    assert answer.status_code == 200
    left = answer.json()
    assert left.keys() == {
        "id", "agent_id", "agent_name", "zdr_enabled", "redacted_at", "start_time", "end_time", "telephony_params",
        "status", "end_reason", "deployment_id", "deployment_version_id", "deployment_region",
    }  # fmt: skip
    assert left["telephony_params"].keys() == {"call_sid", "connection_type"}
    assert datetime.fromisoformat(left["redacted_at"]).timestamp() == pytest.approx(time.time(), abs=5)
    assert call.marker not in answer.text
    assert (await client.get(path, headers=CARTESIA)).json() == left
    assert (await client.delete(path, headers=CARTESIA)).json() == left
    assert left in await cartesia_walk(client, call.record["agent_id"])
    assert (await client.delete("/agents/calls/ac_0", headers=CARTESIA)).status_code == 404


async def test_a_call_that_goes_on_cannot_be_deleted_at_cartesia(client: Client, records: Records) -> None:
    call = of("cartesia", "held")[0]
    records.show(call, call.webhooks[0])
    assert (await client.delete(f"/agents/calls/{call.id}", headers=CARTESIA)).status_code == 400
    records.show(call, call.webhooks[1])
    assert (await client.delete(f"/agents/calls/{call.id}", headers=CARTESIA)).status_code == 200
    records.show(call, call.webhooks[2])  # what is told late brings nothing back
    assert "transcript" not in (await client.get(f"/agents/calls/{call.id}", headers=CARTESIA)).json()


async def test_cartesia_s_webhook_is_made_changed_and_attached_and_its_secret_told_once(client: Client) -> None:
    asked = {"url": "https://hub.example.com/webhooks/cartesia", "secret": "hush", "display_name": "hub"}
    made = (await client.post("/agents/webhooks", headers=CARTESIA, json=asked)).json()
    assert made.keys() == {"id", "url", "secret", "created_at", "updated_at", "display_name"}
    assert made["secret"] == "hush"

    path = f"/agents/webhooks/{made['id']}"
    listed = (await client.get("/agents/webhooks", headers=CARTESIA)).json()
    assert (listed["has_more"], listed["next_page"]) == (False, None)
    assert listed["data"] == [(await client.get(path, headers=CARTESIA)).json()]
    assert "secret" not in listed["data"][0]

    new = {"url": "http://127.0.0.1:8000/webhooks/cartesia", "secret": "new"}
    changed = await client.patch(path, headers=CARTESIA, json=new)
    assert (changed.status_code, changed.json()) == (200, made["id"])
    shown = (await client.get(path, headers=CARTESIA)).json()
    assert (shown["url"], shown["display_name"], "secret" in shown) == (new["url"], "hub", False)

    agent = of("cartesia")[0].record["agent_id"]
    attached = await client.patch(f"/agents/{agent}", headers=CARTESIA, json={"webhook_id": made["id"]})
    assert attached.json()["webhook_id"] == made["id"]
    summaries = (await client.get("/agents", headers=CARTESIA)).json()["summaries"]
    assert {one["id"]: one["webhook_id"] for one in summaries}[agent] == made["id"]
    assert sum(one["webhook_id"] is not None for one in summaries) == 1


async def test_a_webhook_removed_at_cartesia_is_gone_and_its_id_is_nobody_s(client: Client) -> None:
    asked = {"url": "https://hub.example.com/webhooks/cartesia", "secret": "hush"}
    made = [(await client.post("/agents/webhooks", headers=CARTESIA, json=asked)).json()["id"] for _ in range(2)]
    removed = await client.delete(f"/agents/webhooks/{made[0]}", headers=CARTESIA)
    assert (removed.status_code, removed.json()) == (200, made[0])
    assert (await client.get(f"/agents/webhooks/{made[0]}", headers=CARTESIA)).status_code == 404
    new = (await client.post("/agents/webhooks", headers=CARTESIA, json=asked)).json()["id"]
    assert new not in made
    page = (await client.get("/agents/webhooks", headers=CARTESIA, params={"limit": "1"})).json()
    assert (page["has_more"], page["next_page"]) == (True, made[1])
    params = {"limit": "1", "starting_after": made[1]}
    page = (await client.get("/agents/webhooks", headers=CARTESIA, params=params)).json()
    assert ([webhook["id"] for webhook in page["data"]], page["has_more"]) == ([new], False)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/agents/webhooks", {"url": "http://hub.example.com/x", "secret": "s"}, 400),
        ("POST", "/agents/webhooks", {"secret": "s"}, 400),
        ("POST", "/agents/webhooks", {"url": "https://hub.example.com/x"}, 400),
        ("PATCH", "/agents/webhooks/agent_webhook_0", {"url": "https://hub.example.com/x"}, 404),
        ("GET", "/agents/webhooks/agent_webhook_0", None, 404),
        ("PATCH", "/agents/agent_0", {"webhook_id": None}, 404),
    ],
)
async def test_cartesia_refuses_a_webhook_that_it_cannot_serve(
    client: Client, method: str, path: str, body: Json | None, status: int
) -> None:
    assert (await client.request(method, path, headers=CARTESIA, json=body)).status_code == status
    agent = of("cartesia")[0].record["agent_id"]
    unknown = await client.patch(f"/agents/{agent}", headers=CARTESIA, json={"webhook_id": "agent_webhook_0"})
    assert unknown.status_code == 400
