"""What Retell's API offers beside the record: lists, deletion, registration; and what may not leave through a call."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from aftercall.call import Call, End, Turn
from aftercall.client import make_client
from aftercall.errors import NotOffered, ProviderError
from aftercall.event import EventType
from aftercall.providers import retell_api
from aftercall.providers.base import Account, Request, Signature, Webhook
from aftercall.providers.retell import Retell
from aftercall.providers.shapes import decode_json

FIXTURES = Path(__file__).parents[1] / "fixtures" / "retell"
ACCOUNT = Account(name="harbour", provider="retell", api_key="key_5b1e7a40c29d4f83")
CALL_ID = "call_5f0c2a9d7be14c6e"
SINCE = datetime(2026, 11, 20, 12, 0, 0, 250_999, tzinfo=UTC)
URL = "https://hooks.example.com/webhooks/harbour"

retell = Retell(ACCOUNT)


def body(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def load(name: str) -> dict[str, Any]:
    return json.loads(body(name))


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def decode_one(webhook_body: bytes) -> Webhook:
    (webhook,) = retell.decode(webhook_body)
    return webhook


def sent(event: str, call: dict[str, Any]) -> Webhook:
    return decode_one(dump({"event": event, "call": call}))


def without(call: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key not in keys}


class Asked(msgspec.Struct):
    """A request as the provider's API got it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


Answer = tuple[int, Any]


@asynccontextmanager
async def api(answer: Callable[[Asked], Answer]) -> AsyncIterator[tuple[Retell, list[Asked]]]:
    """A provider whose API is on loopback: what `answer` says, bytes as they are and all else as JSON."""
    requests: list[Asked] = []

    async def handle(request: web.Request) -> web.Response:
        content = await request.read()
        asked = Asked(
            method=request.method,
            path=request.raw_path.partition("?")[0],
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=json.loads(content) if content else None,
        )
        requests.append(asked)
        status, said = answer(asked)
        return web.Response(status=status, body=said if isinstance(said, bytes) else dump(said))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        async with make_client(guarded=False) as http:
            yield Retell(msgspec.structs.replace(ACCOUNT, base_url=f"http://{host}:{port}/"), http), requests
    finally:
        await runner.cleanup()


def always(status: int, said: Any) -> Callable[[Asked], Answer]:
    return lambda _: (status, said)


# list_calls


async def test_calls_since_a_moment_are_asked_for_newest_first_a_thousand_at_once() -> None:
    async with api(always(200, body("rest.v3_list_calls"))) as (provider, requests):
        page = await provider.list_calls(SINCE)
    (asked,) = requests
    assert (asked.method, asked.path, asked.query) == ("POST", "/v3/list-calls", {})
    assert asked.headers["authorization"] == f"Bearer {ACCOUNT.api_key}"
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {
        "filter_criteria": {"start_timestamp": {"type": "number", "op": "ge", "value": 1795176000250}},
        "sort_order": "descending",
        "limit": 1000,
    }
    assert page.calls == load("rest.v3_list_calls")["items"]
    assert page.next == "bGFudGVybi0wMDA0"


async def test_the_next_page_is_asked_for_by_its_key() -> None:
    async with api(always(200, {"items": [], "has_more": False})) as (provider, requests):
        page = await provider.list_calls(SINCE, "bGFudGVybi0wMDA0")
    assert requests[0].body["pagination_key"] == "bGFudGVybi0wMDA0"
    assert (page.calls, page.next) == ([], None)


ROW = {"call_id": CALL_ID}


@pytest.mark.parametrize(
    ("answer", "following"),
    [
        ({"items": [ROW], "has_more": True, "pagination_key": "k2"}, "k2"),
        ({"items": [ROW], "pagination_key": "k2"}, "k2"),
        ({"items": [ROW], "has_more": None, "pagination_key": "k2"}, "k2"),
        ({"items": ["x"], "has_more": True, "pagination_key": "k2"}, "k2"),
        ({"items": [ROW], "has_more": False, "pagination_key": "k2"}, None),
        ({"items": [ROW], "has_more": False}, None),
        ({"items": [ROW]}, None),
        ({"items": [ROW], "pagination_key": ""}, None),
        ({"items": [ROW], "has_more": True, "pagination_key": "k1"}, None),  # the page that was asked for
        ({"items": [], "has_more": True, "pagination_key": "k2"}, None),
        ({"items": [], "has_more": True}, None),
    ],
)
async def test_a_page_says_whether_there_is_another(answer: dict[str, Any], following: str | None) -> None:
    async with api(always(200, answer)) as (provider, _):
        assert (await provider.list_calls(SINCE, "k1")).next == following


async def test_what_is_no_call_in_a_list_is_left_out() -> None:
    async with api(always(200, {"items": [None, "x", 3, [ROW], ROW, {}]})) as (provider, _):
        assert (await provider.list_calls(SINCE)).calls == [ROW, {}]


@pytest.mark.parametrize(
    ("answer", "instead"),
    [
        ([ROW], "an array"),
        (None, "null"),
        ("calls", "a text"),
        (17, "a number"),
        (True, "a boolean"),
        ({}, "an object without one"),
        ({"items": None, "has_more": False}, "an object without one"),
        ({"items": {"0": ROW}}, "an object without one"),
    ],
)
async def test_an_answer_that_is_no_list_is_an_error_that_says_what_came(answer: Any, instead: str) -> None:
    async with api(always(200, answer)) as (provider, _):
        with pytest.raises(ProviderError, match=f"list-calls answered with {instead}") as failed:
            await provider.list_calls(SINCE)
    assert CALL_ID not in str(failed.value)


async def test_a_list_that_goes_on_without_saying_where_is_not_taken_for_its_end() -> None:
    async with api(always(200, {"items": [ROW], "has_more": True})) as (provider, _):
        with pytest.raises(ProviderError, match="no pagination_key"):
            await provider.list_calls(SINCE)


@pytest.mark.parametrize("status", [401, 422, 429, 500])
async def test_a_list_that_is_refused_is_an_error_with_its_status(status: int) -> None:
    async with api(always(status, {"status": "error", "message": "about +15550100123"})) as (provider, _):
        with pytest.raises(ProviderError, match=str(status)) as failed:
            await provider.list_calls(SINCE)
    assert failed.value.status == status
    assert "+15550100123" not in str(failed.value)
    assert ACCOUNT.api_key not in str(failed.value)


async def test_a_list_may_take_longer_than_other_requests() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.json_response({"items": [ROW]})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", slow)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with make_client(guarded=False, timeout_s=0.1) as http:
            provider = Retell(msgspec.structs.replace(ACCOUNT, base_url=f"http://{host}:{port}"), http)
            assert (await provider.list_calls(SINCE)).calls == [ROW]
            with pytest.raises(ProviderError, match="in time"):
                await provider.delete(CALL_ID)
    finally:
        await runner.cleanup()
    assert retell_api.LIST_TIMEOUT_S == 120


async def test_retell_has_no_list_of_deleted_calls_but_lists_every_other() -> None:
    with pytest.raises(NotOffered):
        await retell.list_deleted(SINCE)
    assert retell.unlisted_is_deleted
    assert not retell.is_deleted(load("rest.get_call"))
    assert retell.not_found == (404, 422)


# facts


def keys(bodies: list[bytes]) -> list[str]:
    return [decode_one(fact).dedupe_key for fact in bodies]


def listed(call_id: str) -> dict[str, Any]:
    (row,) = [row for row in load("rest.v3_list_calls")["items"] if row["call_id"] == call_id]
    return row


def test_a_listed_call_has_the_keys_of_its_webhooks() -> None:
    row = listed(CALL_ID)
    assert "transcript" not in row
    assert keys(retell.facts(row)) == [decode_one(body(name)).dedupe_key for name in ("call_ended", "call_analyzed")]


def test_a_listed_call_that_never_connected_has_the_keys_of_its_webhooks() -> None:
    names = ("call_ended.dial_no_answer", "call_analyzed.dial_no_answer")
    assert keys(retell.facts(listed("call_2d98b1f640aa4c33"))) == [decode_one(body(name)).dedupe_key for name in names]


@pytest.mark.parametrize("analysis", [..., None, {}, [], "pending"])
def test_without_an_analysis_only_the_end_is_a_fact(analysis: Any) -> None:
    row = without(listed(CALL_ID), "call_analysis") | ({} if analysis is ... else {"call_analysis": analysis})
    assert keys(retell.facts(row)) == [decode_one(body("call_ended")).dedupe_key]


@pytest.mark.parametrize(
    "changes",
    [
        {"call_status": "ongoing"},
        {"call_status": "registered", "call_analysis": {"call_summary": "early"}},
        {"call_status": "ended", "call_id": ""},
        {"call_status": "ended", "call_id": None},
    ],
)
def test_a_call_that_is_not_over_has_no_facts_nor_has_one_without_an_id(changes: dict[str, Any]) -> None:
    assert retell.facts({**listed("call_9e27b4d0a1c8435f"), **changes}) == []


@pytest.mark.parametrize(
    "analysis",
    [
        '{"custom_analysis_data":{"score":1.0,"count":1,"share":0.1,"big":12345678901234567890,"far":1e21,"none":null}}',
        '{"call_summary":"Grüße, Žofie — 自転車は? 🚲 \\u00e9 \\/ \\u2028","user_sentiment":"Positive"}',
        '{"call_summary":"cut in the middle \\ud83d"}',
        '{"custom_analysis_data":{"nested":{"b":[1,{"d":4,"c":3}],"a":""}},"call_successful":true,"in_voicemail":false}',
    ],
)
def test_an_analysis_has_the_same_key_in_the_list_as_in_the_webhook(analysis: str) -> None:
    call = '{"call_id":"call_1","call_status":"ended","call_analysis":' + analysis + "}"
    webhook = decode_one(f'{{"event":"call_analyzed","call":{call}}}'.encode())
    (row,) = decode_json(f'{{"items":[{call}],"has_more":false}}'.encode())["items"]
    fact = retell.facts(row)[1]
    assert decode_one(fact).dedupe_key == webhook.dedupe_key
    told = retell.normalize(decode_one(fact), None)
    assert told.analysis is not None
    assert told.analysis == retell.normalize(webhook, None).analysis


def test_one_and_one_point_nought_are_carried_as_they_are() -> None:
    row = decode_json(b'{"call_id":"call_1","call_status":"ended","call_analysis":{"a":1.0,"b":1,"c":"\xc3\xa9"}}')
    assert retell.facts(row)[1] == (
        b'{"event":"call_analyzed","call":'
        b'{"call_id":"call_1","call_status":"ended","call_analysis":{"a":1.0,"b":1,"c":"\xc3\xa9"}}}'
    )


def test_facts_are_told_apart_and_hold_no_access_token() -> None:
    row = {**listed(CALL_ID), "access_token": "web-join-token-kept-private"}
    ended, analyzed = retell.facts(row)
    assert [decode_one(fact).type for fact in (ended, analyzed)] == ["call.ended", "call.analyzed"]
    assert b"kept-private" not in (ended + analyzed).replace(b"sip-route-kept-private", b"")
    assert "access_token" in row


def test_a_listed_call_and_its_record_make_the_call_that_the_webhook_makes() -> None:
    _, analyzed = retell.facts(listed(CALL_ID))
    assert retell.normalize(decode_one(analyzed), load("rest.get_call")) == retell.normalize(
        decode_one(body("call_analyzed")), load("rest.get_call")
    )


# awaits


@pytest.mark.parametrize("name", ["call_ended", "call_ended.web_call", "call_ended.dial_no_answer"])
def test_a_call_that_is_over_awaits_its_analysis_also_when_it_never_connected(name: str) -> None:
    assert set(retell.awaits(decode_one(body(name)), None)) == {"call.analyzed"}
    assert set(retell.awaits(decode_one(body(name)), load("rest.get_call"))) == {"call.analyzed"}


def test_an_analyzed_call_awaits_nothing() -> None:
    assert not retell.awaits(decode_one(body("call_analyzed")), None)


# delete


async def test_a_call_is_deleted_by_its_id() -> None:
    async with api(always(204, b"")) as (provider, requests):
        await provider.delete("call/1?x")
    (asked,) = requests
    assert (asked.method, asked.path, asked.body) == ("DELETE", "/v2/delete-call/call%2F1%3Fx", None)
    assert asked.headers["authorization"] == f"Bearer {ACCOUNT.api_key}"


@pytest.mark.parametrize("status", [404, 422])
async def test_a_call_that_is_not_there_any_more_is_deleted(status: int) -> None:
    async with api(always(status, {"status": "error", "message": "no such call"})) as (provider, requests):
        await provider.delete(CALL_ID)
    assert len(requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
async def test_a_deletion_that_is_refused_is_an_error(status: int) -> None:
    async with api(always(status, {"status": "error"})) as (provider, _):
        with pytest.raises(ProviderError) as failed:
            await provider.delete(CALL_ID)
    assert failed.value.status == status


# register


class Agents:
    """Retell's agents: listed two a page, read, and changed, as its API does it."""

    def __init__(self, *agents: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> None:
        self.agents = {agent["agent_id"]: agent for agent in agents}
        self.rows = [without(agent, "webhook_url", "webhook_events") for agent in agents] if rows is None else rows
        self.refused: dict[str, int] = {}

    def answer(self, asked: Asked) -> Answer:
        if asked.path == "/v2/list-agents":
            assert asked.method == "POST"
            at = int(asked.query.get("pagination_key", "0"))
            more = len(self.rows) > at + 2
            key = {"pagination_key": str(at + 2)} if more else {}
            return 200, {"items": self.rows[at : at + 2], "has_more": more, **key}
        verb, agent_id = asked.path.strip("/").split("/")
        if agent_id in self.refused and asked.method == "PATCH":
            return self.refused[agent_id], {"status": "error"}
        if agent_id not in self.agents:
            return 422, {"status": "error"}
        if asked.method == "PATCH":
            assert verb == "update-agent"
            self.agents[agent_id].update(asked.body)
        else:
            assert (asked.method, verb) == ("GET", "get-agent")
        return 200, self.agents[agent_id]

    def urls(self) -> dict[str, str | None]:
        return {agent_id: agent.get("webhook_url") for agent_id, agent in self.agents.items()}


def agent(agent_id: str, **changes: Any) -> dict[str, Any]:
    return {**load("rest.get_agent"), "agent_id": agent_id, "agent_name": f"Desk {agent_id}", **changes}


def changes(requests: list[Asked]) -> list[tuple[str, Any]]:
    return [(asked.path, asked.body) for asked in requests if asked.method == "PATCH"]


def three() -> Agents:
    return Agents(
        agent("a1", webhook_url=None),
        agent("a2", webhook_url=URL),
        agent("a3", webhook_url="https://user:kept-private@old.example.com/kept-private?kept-private"),
    )


async def test_every_agent_is_registered_once_and_what_is_there_already_stays() -> None:
    there = three()
    async with api(there.answer) as (provider, requests):
        lines = await provider.register(URL)
    assert there.urls() == {"a1": URL, "a2": URL, "a3": URL}
    assert changes(requests) == [
        ("/update-agent/a1", {"webhook_url": URL}),
        ("/update-agent/a3", {"webhook_url": URL}),
    ]
    assert {asked.headers["authorization"] for asked in requests} == {f"Bearer {ACCOUNT.api_key}"}
    assert len(lines) == 4
    assert lines[0].startswith(f"agent a1 (Desk a1) now sends to {URL} instead of to the account's webhook")
    assert lines[1].startswith(f"agent a2 (Desk a2) already sends to {URL}")
    assert lines[2].startswith(f"agent a3 (Desk a3) now sends to {URL} instead of to old.example.com")
    assert "kept-private" not in "".join(lines)
    assert ACCOUNT.api_key not in "".join(lines)


async def test_the_last_line_says_which_key_must_be_in_webhook_secrets() -> None:
    async with api(three().answer) as (provider, _):
        *_, last = await provider.register(URL)
    for word in ("webhook_secrets", "harbour", "webhook badge"):
        assert word in last


async def test_registering_again_changes_nothing() -> None:
    async with api(three().answer) as (provider, requests):
        await provider.register(URL)
        done = len(changes(requests))
        lines = await provider.register(URL)
    assert len(changes(requests)) == done
    assert all("already sends" in line for line in lines[:3])


async def test_a_dry_run_says_what_it_would_do_and_does_nothing() -> None:
    there = three()
    async with api(there.answer) as (provider, requests):
        lines = await provider.register(URL, dry_run=True)
    assert changes(requests) == []
    assert there.urls()["a1"] is None
    assert lines[0].startswith(f"agent a1 (Desk a1) would send to {URL} instead of to the account's webhook")
    assert "already sends" in lines[1]
    assert "old.example.com" in lines[2]


async def test_only_the_agents_that_were_named_are_registered() -> None:
    there = three()
    async with api(there.answer) as (provider, requests):
        lines = await provider.register(URL, agents=["a3", "a3"])
    assert there.urls()["a1"] is None
    assert [asked.path for asked in requests] == ["/get-agent/a3", "/update-agent/a3"]
    assert len(lines) == 2


async def test_all_agents_are_listed_by_pages_the_voices_only_and_each_once() -> None:
    rows = [{"agent_id": name} for name in ("a1", "a1", "a1", "a2")]
    rows += [{"agent_id": "c1", "channel": "chat"}, {"agent_id": None}, {"agent_id": "a2"}, {"agent_id": "a3"}]
    there = three()
    there.rows = rows
    async with api(there.answer) as (provider, requests):
        lines = await provider.register(URL, dry_run=True)
    assert [asked.path for asked in requests if asked.method == "GET"] == [f"/get-agent/a{n}" for n in (1, 2, 3)]
    assert len(lines) == 4
    lists = [asked for asked in requests if asked.path == "/v2/list-agents"]
    assert [asked.query.get("pagination_key") for asked in lists] == [None, "2", "4", "6"]
    assert all(asked.query["limit"] == "1000" for asked in lists)
    assert lists[0].body == {"filter_criteria": {"channel": {"type": "string", "op": "eq", "value": "voice"}}}


async def test_retells_own_list_is_read_without_its_chat_agents() -> None:
    there = Agents(agent("agent_71c3d0a2"), agent("agent_40be9f15"), rows=load("rest.list_agents")["items"])
    async with api(there.answer) as (provider, _):
        lines = await provider.register(URL)
    assert there.urls() == {"agent_71c3d0a2": URL, "agent_40be9f15": URL}
    assert len(lines) == 3


async def test_cursors_that_go_round_in_a_circle_end_the_list() -> None:
    turns = iter("abcdefghijklmnop")

    def circle(asked: Asked) -> Answer:
        if asked.path != "/v2/list-agents":
            return 200, agent("a1")
        return 200, {"items": [{"agent_id": "a1"}], "has_more": True, "pagination_key": next(turns)}

    async with api(circle) as (provider, requests):
        await provider.register(URL, dry_run=True)
    assert len([asked for asked in requests if asked.path == "/v2/list-agents"]) == 2


async def test_an_account_without_agents_is_told_so() -> None:
    async with api(Agents().answer) as (provider, _):
        first, _ = await provider.register(URL)
    assert "no voice agents" in first


async def test_an_agent_that_refuses_keeps_the_others_from_nothing_and_is_named() -> None:
    there = three()
    there.refused["a1"] = 400
    async with api(there.answer) as (provider, _):
        with pytest.raises(ProviderError, match=r"agent a1: .*400") as failed:
            await provider.register(URL)
    assert there.urls() == {"a1": None, "a2": URL, "a3": URL}
    assert failed.value.status == 400
    assert "agent a3 (Desk a3) now sends to" in str(failed.value)
    assert "make a draft" not in str(failed.value)  # it is one
    assert "kept-private" not in str(failed.value)


async def test_an_agent_that_is_not_there_is_named() -> None:
    async with api(three().answer) as (provider, _):
        with pytest.raises(ProviderError, match=r"agent a9: .*422"):
            await provider.register(URL, agents=["a9"])


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_a_failure_that_is_not_the_agents_ends_the_registration(status: int) -> None:
    there = three()
    there.refused["a1"] = status
    async with api(there.answer) as (provider, requests):
        with pytest.raises(ProviderError, match=f"agent a1: .*{status}") as failed:
            await provider.register(URL)
    assert failed.value.status == status
    assert requests[-1].path == "/update-agent/a1"


async def test_a_draft_is_said_to_need_publishing() -> None:
    there = Agents(agent("a1", version=8, is_published=False), agent("a2", version=3, is_published=True))
    async with api(there.answer) as (provider, _):
        first, second, _ = await provider.register(URL)
    assert "version 8, a draft: publish it" in first
    assert "publish" not in second


async def test_a_published_version_that_cannot_be_changed_is_said_to_need_a_draft() -> None:
    there = Agents(agent("a1", is_published=True))
    there.refused["a1"] = 400
    async with api(there.answer) as (provider, _):
        with pytest.raises(ProviderError, match="published and cannot be changed: make a draft"):
            await provider.register(URL)


@pytest.mark.parametrize("answer", [[], None, "agent"])
async def test_an_answer_that_is_no_agent_is_an_error(answer: Any) -> None:
    async with api(always(200, answer)) as (provider, requests):
        with pytest.raises(ProviderError, match="agent a1: get-agent answered with"):
            await provider.register(URL, agents=["a1"])
    assert len(requests) == 1


async def test_a_list_of_agents_of_another_shape_is_an_error() -> None:
    async with api(always(200, [{"agent_id": "a1"}])) as (provider, _):
        with pytest.raises(ProviderError, match="list-agents answered with an array"):
            await provider.register(URL)


# signature


def test_the_parts_of_a_signature_are_told_as_they_were_sent() -> None:
    header = f"v=0001795176004210,d={'aB' * 32}"
    assert retell.signature(Request(headers={"x-retell-signature": header}, body=b"{}")) == Signature(
        digests=[b"\xab" * 32], timestamp="0001795176004210"
    )


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "v=1795176004210",
        f"d={'ab' * 32}",
        f"v=,d={'ab' * 32}",
        f"v=1795176004210,d={'ab' * 31}",
        f"v=1795176004210,d={'ab' * 32} ",
        f"v=1795176004210,d={'gg' * 32}",
        f"v=١٢٣,d={'ab' * 32}",
    ],
)
def test_a_signature_that_is_none_is_none(header: str | None) -> None:
    headers = {} if header is None else {"x-retell-signature": header}
    assert retell.signature(Request(headers=headers, body=b"{}")) is None


# Events and where their parts stand


@pytest.mark.parametrize(
    "name", ["chat_started", "chat_ended", "chat_analyzed", "call_inbound", "chat_inbound"], ids=lambda name: name
)
def test_chats_and_calls_that_wait_for_an_answer_are_never_queued(name: str) -> None:
    path = FIXTURES / f"{name}.json"
    envelope = load(name) if path.exists() else {"event": name, "chat_inbound": {"from_number": "+15550100123"}}
    assert retell.decode(dump(envelope)) == []
    assert retell.decode(dump({**envelope, "call": {"call_id": CALL_ID}})) == []


@pytest.mark.parametrize(
    ("event", "event_type"),
    [
        ("transfer_started", "call.transfer"),
        ("transfer_bridged", "call.transfer"),
        ("transfer_cancelled", "call.transfer"),
        ("transfer_ended", "call.transfer"),
        ("transcript_updated", "call.turn"),
    ],
)
def test_the_parts_of_an_opt_in_event_may_stand_beside_the_call_or_in_it(event: str, event_type: EventType) -> None:
    envelope = load("transfer_started")
    parts = without(envelope, "event", "call")
    assert set(parts) == {"transcript_with_tool_calls", "transfer_destination", "transfer_option"}
    beside = decode_one(dump({**envelope, "event": event}))
    inside = sent(event, {**envelope["call"], **parts})
    emptied = {name: type(part)() for name, part in parts.items()}
    both = decode_one(dump({"event": event, "call": {**envelope["call"], **emptied}, **parts}))
    for webhook in (beside, inside, both):
        assert (webhook.type, webhook.record, webhook.call_id) == (event_type, "skip", CALL_ID)
        call = retell.normalize(webhook, None)
        assert call == retell.normalize(beside, None)
        assert call.transcript is not None
        assert [turn.role for turn in call.transcript] == ["agent", "user"]
        assert (call.status, call.end) == ("ongoing", None)


def test_the_transcript_in_the_call_wins_over_the_one_beside_it() -> None:
    envelope = {
        "event": "transcript_updated",
        "call": {"call_id": CALL_ID, "transcript_with_tool_calls": [{"role": "agent", "content": "inside"}]},
        "transcript_with_tool_calls": [{"role": "agent", "content": "beside"}],
    }
    assert retell.normalize(decode_one(dump(envelope)), None).transcript == [Turn(role="agent", text="inside")]


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def test_an_analysis_sent_again_is_a_copy_in_whatever_order_its_keys_come() -> None:
    envelope = load("call_analyzed")
    envelope["call"]["call_analysis"]["custom_analysis_data"] = {"b": {"z": 1, "a": [{"y": 1, "x": 2}]}, "a": 2}
    again = json.dumps(reordered(envelope), indent=1, ensure_ascii=True).encode()
    assert again.index(b'"call"') < again.index(b'"event"')
    assert decode_one(again).dedupe_key == decode_one(dump(envelope)).dedupe_key
    envelope["call"]["call_analysis"]["custom_analysis_data"]["b"]["a"][0]["x"] = 3
    assert decode_one(again).dedupe_key != decode_one(dump(envelope)).dedupe_key


# An event that aftercall made itself


def settled(body: bytes = b"") -> Webhook:
    return Webhook(event="", type="call.settled", call_id=CALL_ID, dedupe_key=f"settled:{CALL_ID}", body=body)


def test_a_settled_call_is_its_record() -> None:
    call = retell.normalize(settled(), load("rest.get_call"))
    assert call == retell.normalize(decode_one(body("call_analyzed")), load("rest.get_call"))
    assert (call.status, call.end) == ("ended", End(reason="user_hangup", by="user", provider_reason="user_hangup"))


def test_a_settled_call_is_over_only_if_its_record_says_so() -> None:
    record = without(load("rest.get_call"), "end_timestamp", "disconnection_reason") | {"call_status": "ongoing"}
    call = retell.normalize(settled(), record)
    assert (call.status, call.end) == ("ongoing", None)
    assert retell.is_ready(settled(), record)


def test_a_settled_call_without_a_record_is_still_a_call() -> None:
    call = retell.normalize(settled(), None)
    assert (call.id, call.account, call.end, call.transcript) == (CALL_ID, "harbour", None, None)
    assert msgspec.json.decode(msgspec.json.encode(call), type=Call) == call


# Privacy


def test_where_only_the_scrubbed_is_left_it_is_used() -> None:
    record = load("rest.get_call.no_pii")
    for webhook in (settled(), sent("call_ended", {"call_id": CALL_ID, "call_status": "ended"})):
        call = retell.normalize(webhook, record)
        assert call.privacy.storage == "no_pii"
        assert call.transcript is not None
        assert [turn.role for turn in call.transcript] == ["agent", "user", "tool", "agent"]
        assert call.transcript[1].text == "Hola, my name is [PERSON_NAME] — is my bike ready? 🚲"
        assert call.transcript[2].tool is not None
        assert call.transcript[2].tool.ok is True
        assert call.recording is not None
        assert call.recording.url == "https://recordings.example.com/call_5f0c2a9d7be14c6e/scrubbed.wav"


@pytest.mark.parametrize("event", ["call_ended", "call_analyzed"])
def test_what_the_webhook_carried_before_the_scrubbing_stays(event: str) -> None:
    carried = load("call_analyzed")["call"]
    call = retell.normalize(sent(event, carried), load("rest.get_call.no_pii"))
    whole = retell.normalize(decode_one(body("call_analyzed")), None)
    assert call.transcript == whole.transcript
    assert call.recording == whole.recording
    assert call.analysis == whole.analysis
    assert (call.variables, call.metadata) == (whole.variables, whole.metadata)
    assert "[PERSON_NAME]" not in msgspec.json.encode(call).decode()


def test_a_record_scrubbed_where_it_stands_does_not_replace_what_the_webhook_carried() -> None:
    carried = without(load("call_ended")["call"], "transcript_object", "transcript_with_tool_calls")
    record = load("rest.get_call.no_pii")
    record["transcript_with_tool_calls"] = record["scrubbed_transcript_with_tool_calls"]
    record["recording_url"] = record["scrubbed_recording_url"]
    record["from_number"] = "[PHONE_NUMBER]"
    call = retell.normalize(sent("call_ended", carried), record)
    assert call.transcript is not None
    assert call.transcript[1].text == "Hola, my name is Mirela Okafor — is my bike ready? 🚲"
    assert call.recording is not None
    assert call.recording.url.endswith("/recording.wav")
    assert call.from_ == "+15550100123"
    assert call.variables == {"caller": "Mirela Okafor", "pickup_day": "saturday"}
    assert call.analysis is not None  # the webhook had none: the record's
    assert call.analysis.summary is not None
    assert "[PERSON_NAME]" in call.analysis.summary


def test_with_everything_stored_the_plain_is_used_and_not_the_scrubbed() -> None:
    record = load("rest.get_call") | {"scrubbed_recording_url": "https://recordings.example.com/scrubbed.wav"}
    call = retell.normalize(settled(), record)
    assert "scrubbed" not in msgspec.json.encode(call).decode()


def test_an_early_webhook_does_not_hold_back_what_the_scrubbed_record_knows_later() -> None:
    early = sent("call_started", {"call_id": CALL_ID, "retell_llm_dynamic_variables": {"caller": "?"}})
    assert retell.normalize(early, load("rest.get_call.no_pii")).variables["caller"] == "[PERSON_NAME]"


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("https://logs.example.com/call_5f0c/public.log", "https://logs.example.com/call_5f0c/public.log"),
        ("https://logs.example.com/call_5f0c/public.log?signature=kept-private", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_a_log_that_a_signature_opens_is_not_passed_on(link: Any, kept: str | None) -> None:
    assert retell.normalize(settled(), {**load("rest.get_call"), "public_log_url": link}).log_url == kept


SECRET = "kept-private-9b31"
SIGNED = f"https://files.example.com/object?signature={SECRET}"
UTTERANCE = {"role": "agent", "content": "Hello.", "metadata": {"response_id": SECRET}}
SECRETS: dict[str, Any] = {
    "access_token": SECRET,
    "custom_sip_headers": {"X-Auth": SECRET, SECRET: "x"},
    "telephony_identifier": {"twilio_call_sid": SECRET},
    "from_number": f"sip:desk:{SECRET}@pbx.example.com",
    "to_number": f"sips:desk:{SECRET}@pbx.example.com;transport=tls",
    "public_log_url": SIGNED,
    "recording_url": "https://files.example.com/recording.wav?signature=the-link-itself",
    "recording_multi_channel_url": SIGNED,
    "scrubbed_recording_url": SIGNED,
    "scrubbed_recording_multi_channel_url": SIGNED,
    "knowledge_base_retrieved_contents_url": SIGNED,
    "transfer_destination": f"sip:desk:{SECRET}@pbx.example.com",
    "transfer_option": {"type": "warm_transfer", "custom_sip_headers": {"X-Auth": SECRET}},
    "pre_session_transcript_with_tool_calls": [{"role": "tool_call_result", "content": SECRET}],
    "post_session_transcript_with_tool_calls": [{"role": "tool_call_result", "content": SECRET}],
    "scrubbed_pre_session_transcript_with_tool_calls": [{"role": "tool_call_result", "content": SECRET}],
    "scrubbed_post_session_transcript_with_tool_calls": [{"role": "tool_call_result", "content": SECRET}],
    "transcript_with_tool_calls": [
        UTTERANCE,
        {"role": "tool_call_invocation", "tool_call_id": "t1", "name": "look", "thought_signature": SECRET},
        {"role": "sms", "content": "A picture", "multimedia": [{"url": SIGNED}]},
        {"role": "a_new_role", "content": "said", "secret": SECRET},
    ],
    "llm_token_usage": {"values": [1], "secret": SECRET},
    "a_new_field": {"token": SECRET},
}


@pytest.mark.parametrize("event", ["call_started", "call_ended", "call_analyzed", "transfer_started", "call_scored"])
@pytest.mark.parametrize("storage", ["everything", "everything_except_pii", "basic_attributes_only"])
def test_no_secret_of_a_record_or_a_webhook_leaves_through_the_call(event: str, storage: str) -> None:
    whole = {**load("rest.get_call"), **SECRETS, "data_storage_setting": storage}
    carried = decode_one(dump({"event": event, "call": whole, **SECRETS}))
    for webhook, record in ((carried, None), (sent(event, {"call_id": CALL_ID}), whole), (carried, whole)):
        call = retell.normalize(webhook, record)
        assert SECRET not in msgspec.json.encode(call).decode()
        assert call.from_ == "sip:desk@pbx.example.com"
        assert call.recording is not None
        assert call.recording.url.endswith("the-link-itself")
        assert call.transcript is not None
        assert call.transcript[0].text == "Hello."
