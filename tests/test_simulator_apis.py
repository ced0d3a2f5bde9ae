"""The simulator's lists, deletions and registrations answer as the vendors document it."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from simulator.calls import make_calls
from simulator.day import make_day
from simulator.parts import Call
from simulator.records import Records
from tests.simulated import CARTESIA, RETELL, ULTRAVOX, Client, serving

NOW = time.time()
DAY = make_day(seed=7, now=NOW, count=210)
CALLS = make_calls(seed=1, now=NOW)

Json = dict[str, Any]


def of(provider: str, story: str = "") -> list[Call]:
    return [call for call in DAY if call.provider == provider and story in call.story]


def ids(calls: list[Call]) -> list[str]:
    return sorted(call.id for call in calls)


@pytest.fixture
def records() -> Records:
    return Records(DAY)


@pytest.fixture
async def client(records: Records) -> AsyncIterator[Client]:
    async with serving(records) as client:
        yield client


# Retell


async def retell_list(client: Client, **body: Any) -> Json:
    answer = await client.post("/v3/list-calls", headers=RETELL, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def retell_walk(client: Client, **body: Any) -> list[Json]:
    """The items of all pages."""
    page = await retell_list(client, **body)
    items = list(page["items"])
    while page["has_more"]:
        page = await retell_list(client, **{**body, "pagination_key": page["pagination_key"]})
        items += page["items"]
    assert "pagination_key" not in page
    return items


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
        (lambda at: {"type": "number", "op": "ge", "value": at}, lambda start, at: start >= at),
        (lambda at: {"type": "number", "op": "gt", "value": at}, lambda start, at: start > at),
        (lambda at: {"type": "number", "op": "le", "value": at}, lambda start, at: start <= at),
        (lambda at: {"type": "number", "op": "lt", "value": at}, lambda start, at: start < at),
        (
            lambda at: {"type": "range", "op": "bt", "value": [at, at + 7_200_000]},
            lambda start, at: at <= start <= at + 7_200_000,
        ),
    ],
)
async def test_retell_filters_by_start(client: Client, condition: Any, holds: Any) -> None:
    begun = {call.id: call.record["start_timestamp"] for call in of("retell") if "start_timestamp" in call.record}
    at = sorted(begun.values())[20]  # exactly one call's start
    found = await retell_walk(client, filter_criteria={"start_timestamp": condition(at)}, limit=9)
    expected = {call_id for call_id, start in begun.items() if holds(start, at)}
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

    path, url = f"/update-agent/{agents[0]}", "https://hub.example.com/webhooks/retell"
    assert (await client.get(f"/get-agent/{agents[0]}", headers=RETELL)).json()["webhook_url"] is None
    assert (await client.patch(path, headers=RETELL, json={"webhook_url": url})).json()["webhook_url"] == url
    assert (await client.get(f"/get-agent/{agents[0]}", headers=RETELL)).json()["webhook_url"] == url
    assert (await client.get(f"/get-agent/{agents[1]}", headers=RETELL)).json()["webhook_url"] is None
    assert (await client.patch(path, headers=RETELL, json={"webhook_url": None})).json()["webhook_url"] is None
    assert (await client.patch(path, headers=RETELL, json={"webhook_url": "hub"})).status_code == 400
    assert (await client.patch("/update-agent/agent_0", headers=RETELL, json={})).status_code == 404
    assert (await client.get("/get-agent/agent_0", headers=RETELL)).status_code == 404


# Cartesia


async def cartesia_walk(client: Client, agent: str, **params: str) -> list[Json]:
    found: list[Json] = []
    while True:
        query = {"agent_id": agent, **params}
        page = (await client.get("/agents/calls", headers=CARTESIA, params=query)).json()
        found += page["data"]
        if page["next_page"] is None:
            return found
        assert page["next_page"] == page["data"][-1]["id"]
        params["starting_after"] = page["next_page"]


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


# Ultravox


async def ultravox_walk(client: Client, path: str, params: Json) -> list[Json]:
    found: list[Json] = []
    while True:
        page = (await client.get(path, headers=ULTRAVOX, params=params)).json()
        assert page.keys() == {"next", "previous", "total", "results"}
        found += page["results"]
        if page["next"] is None:
            assert len(found) == page["total"]
            return found
        url = urlsplit(page["next"])
        assert (url.scheme, url.netloc, url.path) == ("https", "api.ultravox.ai", path)
        params = dict(parse_qs(url.query))


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


async def test_ultravox_filters_by_days_both_included_and_by_agent(client: Client) -> None:
    there = {call.id: call.record["created"] for call in of("ultravox") if call.story != "private"}
    today = datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%d")
    for name, holds in (("fromDate", str.__ge__), ("toDate", str.__le__)):
        for day in {today, min(there.values())[:10]}:
            found = await ultravox_walk(client, "/api/calls", {name: day})
            expected = sorted(call_id for call_id, created in there.items() if holds(created[:10], day))
            assert sorted(item["callId"] for item in found) == expected
    agent = of("ultravox", "held")[0].record["agentId"]
    found = await ultravox_walk(client, "/api/calls", {"agentIds": agent})
    assert {item["agentId"] for item in found} == {agent}
    assert 0 < len(found) < len(there)


@pytest.mark.parametrize(
    ("params", "status", "field"),
    [
        ({"fromDate": "2026-11-20T00:00:00Z"}, 400, "fromDate"),
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

    changed = (await client.patch(path, headers=ULTRAVOX, json={"secrets": ["a", "b"]})).json()
    assert changed == {**made, "secrets": ["a", "b"]}
    assert (await client.put(path, headers=ULTRAVOX, json={"url": asked["url"]})).json().keys() == {"events"}
    whole = {"url": asked["url"], "events": ["call.started"], "secrets": ["c"]}
    assert (await client.put(path, headers=ULTRAVOX, json=whole)).json() == {**made, **whole}

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


# All of them


async def test_every_request_needs_its_key_and_changes_nothing_without(client: Client) -> None:
    retell, cartesia, ultravox = of("retell")[0], of("cartesia")[0], of("ultravox", "held")[0]
    versioned = {"cartesia-version": "2026-03-01"}
    for method, path, headers in (
        ("POST", "/v3/list-calls", {}),
        ("DELETE", f"/v2/delete-call/{retell.id}", {"authorization": "Bearer sk_car_c"}),
        ("POST", "/v2/list-agents", {}),
        ("PATCH", f"/update-agent/{retell.record['agent_id']}", {}),
        ("GET", f"/get-agent/{retell.record['agent_id']}", {}),
        ("GET", "/agents", versioned),
        ("GET", f"/agents/calls?agent_id={cartesia.record['agent_id']}", versioned),
        ("DELETE", f"/agents/calls/{cartesia.id}", versioned),
        ("POST", "/agents/webhooks", versioned),
        ("GET", "/agents/webhooks", versioned),
        ("PATCH", f"/agents/{cartesia.record['agent_id']}", versioned),
        ("GET", "/api/calls", {"x-api-key": "u.y"}),
        ("DELETE", f"/api/calls/{ultravox.id}", {"authorization": "Bearer u.x"}),
        ("GET", "/api/deleted_calls", {}),
        ("GET", "/api/webhooks", {}),
        ("POST", "/api/webhooks", {}),
    ):
        assert (await client.request(method, path, headers=headers)).status_code == 401, path
    for path, headers in (
        (f"/v2/get-call/{retell.id}", RETELL),
        (f"/agents/calls/{cartesia.id}", CARTESIA),
        (f"/api/calls/{ultravox.id}", ULTRAVOX),
    ):
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 200
        assert "redacted_at" not in answer.json()


async def listed(client: Client) -> set[str]:
    agents = (await client.get("/agents", headers=CARTESIA)).json()["summaries"]
    of_cartesia = [item["id"] for agent in agents for item in await cartesia_walk(client, agent["id"])]
    of_retell = [item["call_id"] for item in await retell_walk(client)]
    return {*of_cartesia, *of_retell, *(item["callId"] for item in await ultravox_walk(client, "/api/calls", {}))}


async def test_while_calls_are_played_those_that_have_not_begun_are_in_no_list() -> None:
    records = Records(DAY, played=True)
    async with serving(records) as client:
        assert await listed(client) == set()
        begun = [of("retell")[0], of("cartesia")[0], of("ultravox")[0]]
        for call in begun:
            records.show(call, call.webhooks[0])
        assert await listed(client) == {call.id for call in begun}


async def test_without_a_play_every_call_is_in_a_list_as_it_is_in_the_end(client: Client) -> None:
    assert await listed(client) == {call.id for call in DAY} - set(ids(of("ultravox", "private")))
