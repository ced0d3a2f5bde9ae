"""The simulated Retell lists, deletes and registers as the vendor documents it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from simulator.calls import make_calls
from simulator.parts import Call
from simulator.records import Records
from tests.simulated import DAY, NOW, RETELL, Client, Json, ids, of, retell_list, retell_walk, serving

CALLS = make_calls(seed=1, now=NOW)


@pytest.fixture
def records() -> Records:
    return Records(DAY)


@pytest.fixture
async def client(records: Records) -> AsyncIterator[Client]:
    async with serving(records) as client:
        yield client


async def test_retell_lists_each_call_once_whatever_the_limit_and_the_order(client: Client) -> None:
    for body in ({}, {"limit": 7}, {"limit": 1000}, {"limit": 7, "sort_order": "ascending"}):
        items = await retell_walk(client, **body)
        assert sorted(item["call_id"] for item in items) == ids(of("retell"))
        starts = [item["start_timestamp"] for item in items if "start_timestamp" in item]
        assert starts == sorted(starts, reverse="sort_order" not in body)
    assert len((await retell_list(client))["items"]) == 50
    assert (await retell_list(client, include_total=True))["total"] == len(of("retell"))


async def test_a_call_that_comes_or_goes_meanwhile_shifts_no_page(client: Client, records: Records) -> None:
    page = await retell_list(client, limit=10)
    for item in page["items"][:5]:
        records.delete("retell", item["call_id"])
    following = await retell_walk(client, limit=10, pagination_key=page["pagination_key"])
    assert sorted(item["call_id"] for item in (*page["items"], *following)) == ids(of("retell"))


async def test_an_item_of_retell_s_list_has_what_the_record_has_but_no_transcript_and_no_token(client: Client) -> None:
    hidden = {"transcript", "transcript_object", "transcript_with_tool_calls"}
    items = {item["call_id"]: item for item in await retell_walk(client)}
    for call in of("retell"):
        assert items[call.id] == {name: value for name, value in call.record.items() if name not in hidden}
    [web] = [call for call in CALLS if "web call" in call.story]
    scrubbed = {**web.record, "call_id": "call_s", "scrubbed_transcript_with_tool_calls": []}
    calls = [web, Call(provider="retell", id="call_s", story="", record=scrubbed, webhooks=[])]
    async with serving(Records(calls)) as other:
        for item in (await retell_list(other))["items"]:
            assert not (hidden | {"access_token", "scrubbed_transcript_with_tool_calls"}) & item.keys()


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (lambda at, to: {"type": "number", "op": "ge", "value": at}, lambda start, at, to: start >= at),
        (lambda at, to: {"type": "number", "op": "gt", "value": at}, lambda start, at, to: start > at),
        (lambda at, to: {"type": "number", "op": "le", "value": at}, lambda start, at, to: start <= at),
        (lambda at, to: {"type": "number", "op": "lt", "value": at}, lambda start, at, to: start < at),
        (lambda at, to: {"type": "range", "op": "bt", "value": [at, to]}, lambda start, at, to: at <= start <= to),
    ],
)
async def test_retell_filters_by_start(client: Client, condition: Any, holds: Any) -> None:
    begun = {call.id: call.record["start_timestamp"] for call in of("retell") if "start_timestamp" in call.record}
    starts = sorted(begun.values())
    at, to = starts[20], starts[40]  # exactly two calls' starts
    found = await retell_walk(client, filter_criteria={"start_timestamp": condition(at, to)}, limit=9)
    expected = {call_id for call_id, start in begun.items() if holds(start, at, to)}
    assert 0 < len(expected) < len(begun)
    assert {item["call_id"] for item in found} & begun.keys() == expected


async def test_retell_filters_by_status_and_by_agent(client: Client) -> None:
    status = {"type": "enum", "op": "in", "value": ["not_connected"]}
    found = await retell_walk(client, filter_criteria={"call_status": status})
    assert sorted(item["call_id"] for item in found) == ids(of("retell", "unreached"))
    agent = of("retell")[0].record["agent_id"]
    found = await retell_walk(client, filter_criteria={"agent": [{"agent_id": agent}]})
    assert sorted(item["call_id"] for item in found) == ids(
        [call for call in of("retell") if call.record["agent_id"] == agent]
    )


@pytest.mark.parametrize(
    "body",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "50"},
        {"sort_order": "newest"},
        {"pagination_key": "call_1"},
        {"filter_criteria": {"start_timestamp": {"type": "range", "op": "ge", "value": 1}}},
        {"filter_criteria": {"start_timestamp": {"lower_threshold": 1}}},
        {"filter_criteria": {"call_status": ["ended"]}},
        {"filter_criteria": {"no_such_field": {"type": "number", "op": "ge", "value": 1}}},
    ],
)
async def test_retell_refuses_what_it_does_not_understand(client: Client, body: Json) -> None:
    answer = await client.post("/v3/list-calls", headers=RETELL, json=body)
    assert (answer.status_code, answer.json()["status"]) == (400, "error")


async def test_a_call_deleted_at_retell_is_gone(client: Client) -> None:
    gone, *others = of("retell", "held")
    answer = await client.delete(f"/v2/delete-call/{gone.id}", headers=RETELL)
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get(f"/v2/get-call/{gone.id}", headers=RETELL)).status_code == 404
    assert gone.id not in {item["call_id"] for item in await retell_walk(client)}
    assert (await client.get(f"/v2/get-call/{others[0].id}", headers=RETELL)).status_code == 200
    for unknown in (gone.id, "call_0", of("ultravox", "held")[0].id):
        assert (await client.delete(f"/v2/delete-call/{unknown}", headers=RETELL)).status_code == 404


async def test_retell_s_agents_are_listed_in_pages_and_told_where_their_webhooks_go(client: Client) -> None:
    found: list[Json] = []
    params = {"limit": "2"}
    while True:
        page = (await client.post("/v2/list-agents", headers=RETELL, params=params)).json()
        found += page["items"]
        if not page["has_more"]:
            break
        params["pagination_key"] = page["pagination_key"]
    agents = sorted(item["agent_id"] for item in found)
    assert agents == sorted({call.record["agent_id"] for call in of("retell")})
    assert found[0].keys() == {
        "agent_id", "agent_name", "channel", "is_suspended", "tags", "user_modified_timestamp",
    }  # fmt: skip

    for criteria, count in (
        ({"channel": {"type": "string", "op": "eq", "value": "voice"}}, len(agents)),
        ({"channel": {"type": "string", "op": "eq", "value": "chat"}}, 0),
    ):
        page = (await client.post("/v2/list-agents", headers=RETELL, json={"filter_criteria": criteria})).json()
        assert len(page["items"]) == count
    refused = await client.post("/v2/list-agents", headers=RETELL, json={"filter_criteria": {"name": "x"}})
    assert refused.status_code == 400

    path, url = f"/update-agent/{agents[0]}", "https://hub.example.com/webhooks/retell"
    assert (await client.get(f"/get-agent/{agents[0]}", headers=RETELL)).json()["webhook_url"] is None
    assert (await client.patch(path, headers=RETELL, json={"webhook_url": url})).json()["webhook_url"] == url
    assert (await client.get(f"/get-agent/{agents[0]}", headers=RETELL)).json()["webhook_url"] == url
    assert (await client.get(f"/get-agent/{agents[1]}", headers=RETELL)).json()["webhook_url"] is None
    assert (await client.patch(path, headers=RETELL, json={"webhook_url": None})).json()["webhook_url"] is None
    assert (await client.patch(path, headers=RETELL, json={"webhook_url": "hub"})).status_code == 400
    assert (await client.patch("/update-agent/agent_0", headers=RETELL, json={})).status_code == 404
    assert (await client.get("/get-agent/agent_0", headers=RETELL)).status_code == 404
