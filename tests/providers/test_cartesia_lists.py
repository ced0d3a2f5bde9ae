"""Cartesia's API beside the record: lists agent by agent, deletion, registration. The API is a real local server."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aftercall.client import make_client
from aftercall.errors import NotOffered, ProviderError
from aftercall.providers.base import Account, CallPage, Record
from aftercall.providers.cartesia import Cartesia

FIXTURES = Path(__file__).parents[1] / "fixtures" / "cartesia"
SECRET = "heron-basin-4471"
CALL_ID = "ac_7Rk2WmQx9T"
SINCE = datetime(2026, 9, 14, 7, 0, tzinfo=UTC)
URL = "https://calls.harbour.example/webhooks/clinic"
OURS = "agent_webhook_t8VnQ2hLs4KdYw0ZbJ3mRe"
THEIRS = "agent_webhook_p1LmX7cUe9GaTs5NwF2kYd"
HARBOUR, NIGHT, RECALL = "agent_harbour_dental", "agent_night_line", "agent_recall_dialler"


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text())


class Api:
    """Cartesia's API. `answers` by "METHOD path?query", or without the query: JSON, or a status."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.headers: list[Mapping[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        path = f"{request.method} {request.raw_path.removeprefix('/proxy')}"
        self.asked.append(path)
        self.headers.append(request.headers)
        if request.can_read_body:
            self.bodies.append(await request.json())
        answer = self.answers.get(path, self.answers.get(path.partition("?")[0], 404))
        if isinstance(answer, web.Response):
            return answer
        return web.Response(status=answer) if isinstance(answer, int) else web.json_response(answer)

    def changes(self) -> list[str]:
        return [path for path in self.asked if not path.startswith("GET ")]


@pytest.fixture
def api() -> Api:
    return Api()


@asynccontextmanager
async def provider(api: Api, secrets: tuple[str, ...] = (SECRET, "the-former-one")) -> AsyncIterator[Cartesia]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/proxy/"
    account = Account(
        name="clinic", provider="cartesia", api_key="sk_car_test", webhook_secrets=secrets, base_url=base_url
    )
    try:
        async with make_client(guarded=False, timeout_s=5) as http:
            yield Cartesia(account, http)
    finally:
        await runner.cleanup()


def agents(*ids: str, **fields: Any) -> dict[str, Any]:
    return {"summaries": [{"id": agent_id, **fields} for agent_id in ids]}


def calls_of(agent_id: str, after: str = "") -> str:
    return f"GET /agents/calls?agent_id={agent_id}&limit=100" + (f"&starting_after={after}" if after else "")


def a_call(call_id: str, start_time: Any = "2026-09-14T08:00:00Z") -> Record:
    return {"id": call_id, "status": "completed", "start_time": start_time}


def a_page(*calls: Record, next_page: str | None = None) -> dict[str, Any]:
    return {"data": list(calls), "next_page": next_page}


async def pages(api: Api, since: datetime = SINCE) -> list[CallPage]:
    """Every page of the list, each asked for by another provider object: only the cursor is handed on."""
    found: list[CallPage] = []
    while not found or found[-1].next is not None:
        async with provider(api) as cartesia:
            found.append(await cartesia.list_calls(since, found[-1].next if found else None))
    return found


async def listed(api: Api, since: datetime = SINCE) -> list[str]:
    return [call["id"] for page in await pages(api, since) for call in page.calls]


# list_calls


async def test_calls_are_listed_agent_by_agent_back_to_the_time_asked_for(api: Api) -> None:
    api.answers = {
        "GET /agents": agents(HARBOUR, NIGHT),
        calls_of(HARBOUR): fixture("rest.list_calls"),
        calls_of(HARBOUR, "ac_Yd5pC1vNbe"): fixture("rest.list_calls.last"),
        calls_of(NIGHT): a_page(a_call("ac_night")),
    }
    first, second, third = await pages(api)
    assert first.calls == fixture("rest.list_calls")["data"]
    assert second.calls == []  # both began before that
    assert [call["id"] for call in third.calls] == ["ac_night"]
    assert [path for path in api.asked if "/calls" in path] == [
        calls_of(HARBOUR),
        calls_of(HARBOUR, "ac_Yd5pC1vNbe"),
        calls_of(NIGHT),
    ]
    assert api.asked.count("GET /agents") == 1
    assert all(headers["Authorization"] == "Bearer sk_car_test" for headers in api.headers)
    assert all(headers["Cartesia-Version"] == "2026-03-01" for headers in api.headers)


async def test_older_calls_are_cut_off_the_page_and_no_other_page_of_the_agent_is_asked_for(api: Api) -> None:
    api.answers = {"GET /agents": agents(HARBOUR), calls_of(HARBOUR): fixture("rest.list_calls")}
    assert await listed(api, datetime(2026, 9, 14, 8, 0, tzinfo=UTC)) == ["ac_9Lq4TzVw2K", CALL_ID]
    assert api.asked[-1] == calls_of(HARBOUR)


async def test_a_call_that_began_at_that_very_moment_is_listed(api: Api) -> None:
    exactly, before = a_call("ac_exactly", "2026-09-14T09:00:00+02:00"), a_call("ac_before", "2026-09-14T06:59:59.999Z")
    api.answers = {"GET /agents": agents(HARBOUR), calls_of(HARBOUR): a_page(exactly, before)}
    assert await listed(api) == ["ac_exactly"]


@pytest.mark.parametrize("start_time", [None, "", "soon", {}])
async def test_a_call_without_a_readable_start_is_kept_and_ends_nothing(api: Api, start_time: Any) -> None:
    api.answers = {
        "GET /agents": agents(HARBOUR),
        calls_of(HARBOUR): a_page(a_call("ac_dialling", start_time), next_page="ac_dialling"),
        calls_of(HARBOUR, "ac_dialling"): a_page(a_call("ac_next")),
    }
    assert await listed(api) == ["ac_dialling", "ac_next"]


async def test_the_next_page_starts_after_the_last_call_of_this_one(api: Api) -> None:
    api.answers = {
        "GET /agents": agents(HARBOUR),
        calls_of(HARBOUR): a_page(a_call("ac_2"), a_call("ac_1"), next_page="whatever the vendor means by it"),
        calls_of(HARBOUR, "ac_1"): a_page(a_call("ac_0")),
    }
    assert await listed(api) == ["ac_2", "ac_1", "ac_0"]


@pytest.mark.parametrize("end", [a_page(next_page="ac_1"), a_page(a_call("ac_1"), next_page="ac_1")])
async def test_a_page_that_leads_nowhere_ends_the_agent(api: Api, end: dict[str, Any]) -> None:
    api.answers = {
        "GET /agents": agents(HARBOUR, NIGHT),
        calls_of(HARBOUR): a_page(a_call("ac_1"), next_page="ac_1"),
        calls_of(HARBOUR, "ac_1"): end,
        calls_of(NIGHT): a_page(a_call("ac_night")),
    }
    assert (await listed(api))[-1] == "ac_night"
    assert len(api.asked) == 5  # two lists of agents, three pages of calls


async def test_an_agent_that_was_deleted_meanwhile_is_passed_over(api: Api) -> None:
    api.answers = {"GET /agents": agents(HARBOUR, NIGHT), calls_of(NIGHT): a_page(a_call("ac_night"))}
    assert await listed(api) == ["ac_night"]
    assert calls_of(HARBOUR) in api.asked


async def test_only_an_agent_deleted_before_that_time_cannot_have_had_a_call(api: Api) -> None:
    deleted = agents(HARBOUR, deleted_at="2026-09-14T07:30:00Z")["summaries"]
    deleted += agents(NIGHT, deleted_at="2026-09-14T06:30:00Z")["summaries"]
    api.answers = {"GET /agents": deleted, "GET /agents/calls": a_page(a_call("ac_1"))}
    assert await listed(api) == ["ac_1"]
    assert api.asked[-1] == calls_of(HARBOUR)


async def test_an_account_without_agents_has_no_calls(api: Api) -> None:
    api.answers = {"GET /agents": {"summaries": []}}
    assert await pages(api) == [CallPage(calls=[], next=None)]


@pytest.mark.parametrize("key", ["data", "agents", "summaries", "results", None])
async def test_agents_are_found_in_whatever_the_list_is_called(api: Api, key: str | None) -> None:
    rows = [{"id": NIGHT}, {"id": None}, "odd"]
    api.answers = {
        "GET /agents": rows if key is None else {key: rows},
        calls_of(NIGHT): a_page(a_call("ac_night")),
    }
    assert await listed(api) == ["ac_night"]


@pytest.mark.parametrize("more", [{"has_more": True}, {"next_page": NIGHT}, {"has_more": True, "next_page": None}])
async def test_agents_are_listed_to_the_last_page(api: Api, more: dict[str, Any]) -> None:
    api.answers = {
        "GET /agents": {"data": [{"id": HARBOUR}, {"id": NIGHT}], **more},
        f"GET /agents?starting_after={NIGHT}": {"data": [{"id": RECALL}], "has_more": False, "next_page": RECALL},
        **{calls_of(each): a_page(a_call(f"ac_of_{each}")) for each in (HARBOUR, NIGHT, RECALL)},
    }
    assert await listed(api) == [f"ac_of_{each}" for each in (HARBOUR, NIGHT, RECALL)]


async def test_agents_of_either_list_are_walked_through_once(api: Api) -> None:
    api.answers = {
        "GET /agents": agents(HARBOUR, RECALL),
        "GET /v1/agents": fixture("rest.list_agents.v1"),
        "GET /agents/calls": a_page(),
    }
    assert await listed(api) == []
    assert [path for path in api.asked if "calls" in path] == [
        calls_of(each) for each in (HARBOUR, RECALL, "agent_managed_desk")
    ]


async def test_the_newer_list_of_agents_is_enough(api: Api) -> None:
    api.answers = {"GET /v1/agents": {"data": [{"id": NIGHT}]}, calls_of(NIGHT): a_page(a_call("ac_night"))}
    assert await listed(api) == ["ac_night"]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_account_that_may_list_no_agents_is_an_error(api: Api, status: int) -> None:
    api.answers = {"GET /agents": status}
    async with provider(api) as cartesia:
        with pytest.raises(ProviderError, match=str(status)) as caught:
            await cartesia.list_calls(SINCE)
    assert caught.value.status == status
    assert "sk_car_test" not in str(caught.value)


@pytest.mark.parametrize("path", ["GET /agents", "GET /v1/agents", "GET /agents/calls"])
@pytest.mark.parametrize("status", [429, 500])
async def test_a_list_that_fails_is_an_error_and_not_a_shorter_list(api: Api, path: str, status: int) -> None:
    refusal = web.Response(status=status, headers={"Retry-After": "9"})
    api.answers = {"GET /agents": agents(HARBOUR), "GET /agents/calls": a_page(a_call("ac_1")), path: refusal}
    with pytest.raises(ProviderError) as caught:
        await pages(api)
    assert (caught.value.status, caught.value.retry_after) == (status, 9)


@pytest.mark.parametrize("answer", [{}, None, "agents", {"data": {}}])
@pytest.mark.parametrize("path", ["GET /agents", "GET /agents/calls"])
async def test_an_answer_that_is_no_list_is_an_error(api: Api, path: str, answer: Any) -> None:
    api.answers = {"GET /agents": agents(HARBOUR), path: web.json_response(answer)}
    with pytest.raises(ProviderError, match="other than a list"):
        await pages(api)


async def test_listed_calls_tell_what_their_webhooks_would_have_told(api: Api) -> None:
    api.answers = {"GET /agents": agents(HARBOUR), calls_of(HARBOUR): fixture("rest.list_calls") | {"next_page": None}}
    async with provider(api) as cartesia:
        page = await cartesia.list_calls(SINCE)
        keys = [[cartesia.decode(fact)[0].dedupe_key for fact in cartesia.facts(call)] for call in page.calls]
        names = ("call_completed", "post_call_analysis", "call_failed")
        sent = [cartesia.decode((FIXTURES / f"{name}.json").read_bytes())[0].dedupe_key for name in names]
    assert keys == [[], sent[:2], sent[2:]]


async def test_there_is_no_list_of_deleted_calls(api: Api) -> None:
    async with provider(api) as cartesia:
        with pytest.raises(NotOffered):
            await cartesia.list_deleted(SINCE)


# delete


async def test_a_deletion_returns_what_cartesia_keeps(api: Api) -> None:
    api.answers = {f"DELETE /agents/calls/{CALL_ID}": fixture("rest.delete_call")}
    async with provider(api) as cartesia:
        kept = await cartesia.delete(CALL_ID)
        assert kept == fixture("rest.delete_call")
        assert cartesia.is_deleted(kept)
    assert api.headers[0]["Authorization"] == "Bearer sk_car_test"
    assert api.headers[0]["Cartesia-Version"] == "2026-03-01"


async def test_a_call_that_is_not_there_any_more_is_deleted(api: Api) -> None:
    async with provider(api) as cartesia:
        assert await cartesia.delete(CALL_ID) is None
    assert api.asked == [f"DELETE /agents/calls/{CALL_ID}"]


async def test_an_id_to_delete_cannot_lead_to_another_route(api: Api) -> None:
    async with provider(api) as cartesia:
        await cartesia.delete("../webhooks?x#é")
    assert api.asked == ["DELETE /agents/calls/..%2Fwebhooks%3Fx%23%C3%A9"]


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_a_deletion_that_fails_is_an_error(api: Api, status: int) -> None:
    api.answers = {f"DELETE /agents/calls/{CALL_ID}": status}
    async with provider(api) as cartesia:
        with pytest.raises(ProviderError) as caught:
            await cartesia.delete(CALL_ID)
    assert caught.value.status == status


@pytest.mark.parametrize("status", [400, 409, 422])
async def test_a_refused_deletion_says_that_the_call_may_not_be_over(api: Api, status: int) -> None:
    api.answers = {f"DELETE /agents/calls/{CALL_ID}": status}
    async with provider(api) as cartesia:
        with pytest.raises(ProviderError, match=f"{status}.*only calls that are over") as caught:
            await cartesia.delete(CALL_ID)
    assert caught.value.status == status


@pytest.mark.parametrize("answer", [{}, [], {"id": CALL_ID, "redacted_at": None}, "deleted", web.Response(status=202)])
async def test_a_deletion_that_is_not_confirmed_is_an_error(api: Api, answer: Any) -> None:
    api.answers = {f"DELETE /agents/calls/{CALL_ID}": answer}
    async with provider(api) as cartesia:
        with pytest.raises(ProviderError, match="did not confirm"):
            await cartesia.delete(CALL_ID)


# register


def account_of(api: Api) -> Api:
    """An account with the agents and webhooks of the fixtures."""
    api.answers = {
        "GET /agents": fixture("rest.list_agents"),
        "GET /agents/webhooks": fixture("rest.webhooks"),
        "POST /agents/webhooks": fixture("rest.webhook_created"),
        f"PATCH /agents/webhooks/{OURS}": OURS,
        **{f"PATCH /agents/{each}": {"id": each} for each in (HARBOUR, NIGHT, RECALL)},
    }
    return api


async def register(api: Api, url: str = URL, **options: Any) -> list[str]:
    async with provider(api) as cartesia:
        return await cartesia.register(url, **options)


async def test_a_webhook_that_is_there_gets_the_accounts_secret_and_all_agents(api: Api) -> None:
    lines = await register(account_of(api))
    assert lines == [
        f"webhook {OURS}: updated",
        f"agent {HARBOUR}: attached already",
        f"agent {NIGHT}: attached",
        f"agent {RECALL}: attached, in place of {THEIRS}",
    ]
    assert api.changes() == [
        f"PATCH /agents/webhooks/{OURS}",
        f"PATCH /agents/{NIGHT}",
        f"PATCH /agents/{RECALL}",
    ]
    assert api.bodies == [{"url": URL, "secret": SECRET}, {"webhook_id": OURS}, {"webhook_id": OURS}]
    assert {headers["Cartesia-Version"] for headers in api.headers} == {"2026-03-01"}


async def test_a_webhook_that_is_not_there_is_created(api: Api) -> None:
    made = fixture("rest.webhook_created")
    lines = await register(account_of(api), made["url"], agents=[NIGHT])
    assert lines == [f"webhook {made['id']}: created", f"agent {NIGHT}: attached"]
    assert api.changes() == ["POST /agents/webhooks", f"PATCH /agents/{NIGHT}"]
    assert api.bodies == [
        {"url": made["url"], "secret": SECRET, "display_name": "aftercall"},
        {"webhook_id": made["id"]},
    ]


async def test_only_the_agents_given_are_attached(api: Api) -> None:
    lines = await register(account_of(api), agents=[RECALL, HARBOUR, RECALL])
    assert lines[1:] == [f"agent {RECALL}: attached, in place of {THEIRS}", f"agent {HARBOUR}: attached already"]
    assert api.changes() == [f"PATCH /agents/webhooks/{OURS}", f"PATCH /agents/{RECALL}"]


async def test_registering_again_changes_nothing_but_the_secret(api: Api) -> None:
    account_of(api).answers["GET /agents"] = agents(HARBOUR, NIGHT, webhook_id=OURS)
    lines = await register(api)
    assert lines == [
        f"webhook {OURS}: updated",
        f"agent {HARBOUR}: attached already",
        f"agent {NIGHT}: attached already",
    ]
    assert api.changes() == [f"PATCH /agents/webhooks/{OURS}"]


async def test_a_dry_run_says_the_same_and_sends_no_change(api: Api) -> None:
    assert await register(account_of(api), dry_run=True) == [
        f"webhook {OURS}: would be updated",
        f"agent {HARBOUR}: attached already",
        f"agent {NIGHT}: would be attached",
        f"agent {RECALL}: would be attached, in place of {THEIRS}",
    ]
    assert await register(api, "https://calls.harbour.example/webhooks/second", agents=[NIGHT], dry_run=True) == [
        "webhook to this URL: would be created",
        f"agent {NIGHT}: would be attached",
    ]
    assert api.changes() == []


async def test_the_webhook_is_found_on_a_later_page(api: Api) -> None:
    first, second = fixture("rest.webhooks")["data"]
    account_of(api).answers |= {
        "GET /agents/webhooks?limit=100": {"data": [first], "has_more": True, "next_page": first["id"]},
        f"GET /agents/webhooks?limit=100&starting_after={first['id']}": {"data": [second], "has_more": False},
    }
    assert (await register(api))[0] == f"webhook {OURS}: updated"


async def test_an_agent_that_only_the_newer_api_knows_is_attached_there(api: Api) -> None:
    account_of(api).answers |= {
        "GET /v1/agents": fixture("rest.list_agents.v1"),
        "PATCH /v1/agents/agent_managed_desk": {"id": "agent_managed_desk"},
    }
    lines = await register(api, agents=["agent_managed_desk"])
    assert lines[1:] == ["agent agent_managed_desk: attached"]
    assert api.changes()[1:] == ["PATCH /agents/agent_managed_desk", "PATCH /v1/agents/agent_managed_desk"]
    assert api.bodies[-1] == {"webhook_id": OURS}


async def test_an_agent_in_both_lists_has_the_webhook_that_the_fuller_one_shows(api: Api) -> None:
    account_of(api).answers["GET /v1/agents"] = {"data": [{"id": HARBOUR, "name": "Harbour Dental"}]}
    assert (await register(api, agents=[HARBOUR]))[1:] == [f"agent {HARBOUR}: attached already"]


async def test_an_agent_that_is_not_there_is_named_before_anything_is_changed(api: Api) -> None:
    with pytest.raises(ProviderError, match="no agent agent_nowhere to"):
        await register(account_of(api), agents=[NIGHT, "agent_nowhere"])
    with pytest.raises(ProviderError, match="no agent agent_spring_offers to"):  # which was deleted
        await register(api, agents=["agent_spring_offers"])
    assert api.changes() == []


@pytest.mark.parametrize("url", ["http://calls.harbour.example/hook", "calls.harbour.example", "", "ftp://x.example"])
@pytest.mark.parametrize("dry_run", [True, False])
async def test_an_address_without_https_is_refused_before_anything_is_sent(api: Api, url: str, dry_run: bool) -> None:
    with pytest.raises(ProviderError, match="https"):
        await register(account_of(api), url, dry_run=dry_run)
    assert api.asked == []


@pytest.mark.parametrize("secrets", [(), ("",)])
async def test_an_account_without_a_secret_is_refused_before_anything_is_sent(
    api: Api, secrets: tuple[str, ...]
) -> None:
    async with provider(account_of(api), secrets) as cartesia:
        with pytest.raises(ProviderError, match="clinic has no webhook_secrets"):
            await cartesia.register(URL)
    assert api.asked == []


@pytest.mark.parametrize(
    "path",
    ["GET /agents", "GET /agents/webhooks", f"PATCH /agents/webhooks/{OURS}", f"PATCH /agents/{NIGHT}"],
)
async def test_a_registration_that_fails_is_an_error_that_tells_no_secret(api: Api, path: str) -> None:
    account_of(api).answers[path] = web.json_response({"message": f"bad secret {SECRET}"}, status=500)
    with pytest.raises(ProviderError, match="500") as caught:
        await register(api)
    assert caught.value.status == 500
    assert SECRET not in str(caught.value)
    assert ("register again" in str(caught.value)) is path.endswith(NIGHT)


async def test_an_agent_that_cannot_be_attached_is_named(api: Api) -> None:
    del account_of(api).answers[f"PATCH /agents/{NIGHT}"]
    with pytest.raises(ProviderError, match=f"agent {NIGHT}: .*404"):
        await register(api)


async def test_a_webhook_made_without_an_id_is_an_error(api: Api) -> None:
    account_of(api).answers["POST /agents/webhooks"] = {"url": URL, "secret": SECRET}
    with pytest.raises(ProviderError, match="without saying its id") as caught:
        await register(api, "https://calls.harbour.example/webhooks/second")
    assert SECRET not in str(caught.value)
    assert api.changes() == ["POST /agents/webhooks"]


@pytest.mark.parametrize("dry_run", [True, False])
async def test_no_line_tells_the_secret(api: Api, dry_run: bool) -> None:
    for url in (URL, "https://calls.harbour.example/webhooks/second"):
        lines = await register(account_of(api), url, dry_run=dry_run)
        assert lines
        assert not any(word in line for line in lines for word in (SECRET, "the-former-one", "sk_car_test"))
