"""What the simulated APIs have in common: keys, and which calls are in a list."""

from collections.abc import AsyncIterator

import pytest

from simulator.records import Records
from tests.simulated import (
    CARTESIA,
    DAY,
    RETELL,
    ULTRAVOX,
    Client,
    cartesia_walk,
    ids,
    of,
    retell_walk,
    serving,
    ultravox_walk,
)


@pytest.fixture
def records() -> Records:
    return Records(DAY)


@pytest.fixture
async def client(records: Records) -> AsyncIterator[Client]:
    async with serving(records) as client:
        yield client


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
