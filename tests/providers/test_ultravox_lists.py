"""Lists, deletion and registration at Ultravox: what its API has beside the record."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aftercall.client import make_client
from aftercall.errors import ProviderError, RecordNotReady
from aftercall.providers.base import Account, Record, Webhook
from aftercall.providers.ultravox import MAX_PAGES, Ultravox

FIXTURES = Path(__file__).parent.parent / "fixtures" / "ultravox"
SINCE = datetime(2026, 10, 6, 9, 30, tzinfo=UTC)
ID = "5f0d7a52-8c1e-4b39-9d64-2e7b1c90aa{}"
ONGOING, BILLED, PENDING, UNJOINED, OLD = (ID.format(number) for number in (11, 12, 13, 14, 15))
HUB = "https://hub.example.com/webhooks/workshop"
AGENT = "e8a90b17-62d4-4f5e-8b0a-3c4d5e6f7a80"
OTHER_AGENT = "a17c3d90-4b6e-4f02-9c88-51d2e60f3b29"
EVENTS = ["call.started", "call.joined", "call.ended", "call.billed"]
WEBHOOK = "0d9e4f6a-77b2-4c38-8a15-6f2c1e80bb{}"
SECRETS = ("planted-first", "planted-second")


def payload(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text("utf-8"))


def listed(call_id: str) -> Record:
    rows = payload("rest.list_calls.page1")["results"] + payload("rest.list_calls.page2")["results"]
    return next(row for row in rows if row["callId"] == call_id)


class Vendor:
    """A loopback stand-in for the API: `answer` comes first, then pages; webhooks can be made and changed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.keys: set[str | None] = set()
        self.answer: Callable[[web.Request], web.Response | None] = lambda _: None
        self.pages: dict[tuple[str, str | None], Any] = {
            ("/api/calls", None): payload("rest.list_calls.page1"),
            ("/api/calls", "bD0xMiZ4PTc="): payload("rest.list_calls.page2"),
            ("/api/deleted_calls", None): payload("rest.deleted_calls.page1"),
            ("/api/deleted_calls", "cD1kZWxldGVk"): payload("rest.deleted_calls.page2"),
            ("/api/webhooks", None): payload("rest.webhooks.page1"),
            ("/api/webhooks", "cD13ZWI="): payload("rest.webhooks.page2"),
        }

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/proxy")
        body = json.loads(await request.read() or b"null")
        self.asked.append((request.method, path, dict(request.query), body))
        self.keys.add(request.headers.get("X-API-Key"))
        answer = self.answer(request)
        if answer is not None:
            return answer
        if request.method == "GET":
            return web.json_response(self.pages[path, request.query.get("cursor")])
        if request.method == "DELETE":
            return web.Response(status=204)
        if request.method == "PATCH":
            [webhook] = [webhook for webhook in self.webhooks() if path.endswith(f"/{webhook['webhookId']}")]
            webhook |= body
            return web.json_response(webhook)
        new = {"webhookId": WEBHOOK.format(90 + len(self.webhooks())), "agentId": None, "status": "normal", **body}
        self.pages["/api/webhooks", "cD13ZWI="]["results"].append(new)
        return web.json_response(new, status=201)

    def webhooks(self) -> list[Record]:
        """Those that are registered now."""
        return [row for (path, _), page in self.pages.items() if path == "/api/webhooks" for row in page["results"]]

    def queries(self, path: str) -> list[dict[str, str]]:
        return [query for _, asked, query, _ in self.asked if asked == path]

    def written(self) -> list[tuple[str, str, Any]]:
        return [(method, path, body) for method, path, _, body in self.asked if method != "GET"]


@pytest.fixture
def vendor() -> Vendor:
    return Vendor()


@pytest.fixture
async def provider(vendor: Vendor) -> AsyncIterator[Ultravox]:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", vendor.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    root = f"http://127.0.0.1:{runner.addresses[0][1]}/proxy/"
    account = Account(
        name="workshop", provider="ultravox", api_key="planted-key", webhook_secrets=SECRETS, base_url=root
    )
    async with make_client(guarded=False) as http:
        yield Ultravox(account, http)
    await runner.cleanup()


async def every_call(provider: Ultravox, since: datetime = SINCE) -> list[str]:
    found: list[str] = []
    cursor = None
    async with asyncio.timeout(20):
        while True:
            page = await provider.list_calls(since, cursor)
            found += [call["callId"] for call in page.calls]
            cursor = page.next
            if cursor is None:
                return found


# list_calls


async def test_a_page_of_calls_is_as_the_vendor_writes_it(provider: Ultravox) -> None:
    page = await provider.list_calls(SINCE)
    assert page.calls == payload("rest.list_calls.page1")["results"]


async def test_every_page_is_asked_for_at_our_own_root_with_the_same_filters(
    vendor: Vendor, provider: Ultravox
) -> None:
    assert await every_call(provider) == [ONGOING, BILLED, PENDING, UNJOINED]
    filters = {"fromDate": "2026-10-05", "pageSize": "100", "sort": "-created"}
    assert vendor.queries("/api/calls") == [filters, {**filters, "cursor": "bD0xMiZ4PTc="}]
    assert vendor.keys == {"planted-key"}


async def test_a_call_created_at_since_is_listed_and_one_just_before_it_is_not(provider: Ultravox) -> None:
    created = datetime.fromisoformat(listed(BILLED)["created"])
    assert await every_call(provider, created) == [ONGOING, BILLED]
    assert await every_call(provider, created + timedelta(microseconds=1)) == [ONGOING]


async def test_a_call_that_does_not_tell_when_it_was_created_is_listed(vendor: Vendor, provider: Ultravox) -> None:
    for page, created in ((None, None), ("bD0xMiZ4PTc=", "lately")):
        vendor.pages["/api/calls", page]["results"][0]["created"] = created
    assert await every_call(provider) == [ONGOING, BILLED, PENDING, UNJOINED]


@pytest.mark.parametrize("offset_h", [-12, 0, 5.5, 14])
@pytest.mark.parametrize("since", [SINCE, SINCE.replace(hour=0, minute=0), SINCE.replace(hour=23, minute=59)])
async def test_no_call_is_lost_in_whichever_time_zone_the_vendors_days_begin(
    vendor: Vendor, provider: Ultravox, offset_h: float, since: datetime
) -> None:
    def from_midnight(request: web.Request) -> web.Response:
        day = datetime.fromisoformat(request.query["fromDate"]).replace(tzinfo=timezone(timedelta(hours=offset_h)))
        moments = [since + timedelta(minutes=minutes) for minutes in (5, 0, -1, -60)]
        rows = [{"callId": f"c{index}", "created": moment.isoformat()} for index, moment in enumerate(moments)]
        kept = [row for row in rows if datetime.fromisoformat(row["created"]) >= day]
        return web.json_response({"results": kept, "next": None})

    vendor.answer = from_midnight
    assert await every_call(provider, since) == ["c0", "c1"]


async def test_the_pages_before_since_are_not_asked_for(vendor: Vendor, provider: Ultravox) -> None:
    vendor.pages["/api/calls", "bD0xMiZ4PTc="]["next"] = "https://api.ultravox.ai/api/calls?cursor=older"
    vendor.pages["/api/calls", "older"] = {
        "results": [listed(OLD), listed(OLD)],
        "next": "https://api.ultravox.ai/api/calls?cursor=oldest",
    }
    assert await every_call(provider) == [ONGOING, BILLED, PENDING, UNJOINED]
    assert [query.get("cursor") for query in vendor.queries("/api/calls")] == [None, "bD0xMiZ4PTc=", "older"]


async def test_an_empty_page_does_not_end_the_list(vendor: Vendor, provider: Ultravox) -> None:
    vendor.pages["/api/calls", None]["results"] = []
    assert await every_call(provider) == [UNJOINED]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"results": None},
        {"results": {}},
        {"results": ["c1"]},
        {"results": [{"created": "2026-10-07T09:00:00Z"}]},
        {"results": [{"callId": ""}]},
        {"results": [{"callId": 7}]},
        {"results": [], "next": "https://api.ultravox.ai/api/calls?page=2"},
        {"results": [], "next": 2},
        {"results": [], "next": "https://api.ultravox.ai/api/calls?cursor=here"},
    ],
)
@pytest.mark.parametrize("verb", ["list_calls", "list_deleted"])
async def test_a_page_that_is_none_is_an_error_and_not_the_end_of_the_list(
    vendor: Vendor, provider: Ultravox, verb: str, answer: Any
) -> None:
    vendor.answer = lambda _: web.json_response(answer)
    with pytest.raises(ProviderError, match="calls with") as failed:
        await getattr(provider, verb)(SINCE, "here")
    assert failed.value.status is None
    assert "planted" not in str(failed.value)


@pytest.mark.parametrize("verb", ["list_calls", "list_deleted"])
async def test_a_list_that_is_refused_is_an_error_with_its_status(
    vendor: Vendor, provider: Ultravox, verb: str
) -> None:
    vendor.answer = lambda _: web.json_response({"detail": "planted"}, status=429, headers={"Retry-After": "3"})
    with pytest.raises(ProviderError, match="429") as failed:
        await getattr(provider, verb)(SINCE)
    assert not isinstance(failed.value, RecordNotReady)
    assert (failed.value.status, failed.value.retry_after) == (429, 3.0)
    assert "planted" not in str(failed.value)


# list_deleted


async def test_deleted_calls_are_told_by_their_ids_page_by_page(vendor: Vendor, provider: Ultravox) -> None:
    first = await provider.list_deleted(SINCE)
    assert (first.call_ids, first.next) == ([ID.format(21)], "cD1kZWxldGVk")
    second = await provider.list_deleted(SINCE, first.next)
    assert (second.call_ids, second.next) == ([ID.format(23)], None)
    filters = {"fromDate": "2026-10-05", "pageSize": "100"}
    assert vendor.queries("/api/deleted_calls") == [filters, {**filters, "cursor": "cD1kZWxldGVk"}]


async def test_a_page_of_old_deletions_does_not_end_the_list_whose_order_nobody_knows(provider: Ultravox) -> None:
    page = await provider.list_deleted(datetime(2026, 10, 7, tzinfo=UTC))
    assert (page.call_ids, page.next) == ([], "cD1kZWxldGVk")


def test_what_the_vendor_deletes_by_policy_is_known_as_such() -> None:
    assert Ultravox.deletes_by_itself == {"none"}


# facts


PROVIDER = Ultravox(Account(name="workshop", provider="ultravox", api_key="key.one", webhook_secrets=SECRETS))


def facts_of(record: Record) -> list[Webhook]:
    """What a listed call decodes to: one webhook for each of its facts."""
    decoded = [PROVIDER.decode(body) for body in PROVIDER.facts(record)]
    assert [len(webhooks) for webhooks in decoded] == [1] * len(decoded)
    return [webhook for [webhook] in decoded]


@pytest.mark.parametrize(
    ("call_id", "events"),
    [
        (ONGOING, []),
        (BILLED, ["call.ended", "call.billed"]),
        (PENDING, ["call.ended"]),
        (UNJOINED, ["call.ended", "call.billed"]),
    ],
)
def test_a_listed_call_has_the_facts_that_it_shows(call_id: str, events: list[str]) -> None:
    told = facts_of(listed(call_id))
    assert [webhook.event for webhook in told] == [webhook.type for webhook in told] == events
    assert {webhook.call_id for webhook in told} <= {call_id}


@pytest.mark.parametrize("event", ["call.ended", "call.billed"])
def test_a_fact_of_a_listed_call_is_the_very_fact_of_the_webhook(event: str) -> None:
    sent = json.dumps({"event": event, "call": listed(BILLED)}).encode()
    [webhook] = PROVIDER.decode(sent)
    [found] = [fact for fact in facts_of(listed(BILLED)) if fact.event == event]
    assert (found.dedupe_key, found.type, found.record, found.happened_at) == (
        webhook.dedupe_key,
        webhook.type,
        webhook.record,
        webhook.happened_at,
    )
    assert found.dedupe_key == f"{event}:{BILLED}"


@pytest.mark.parametrize("status", ["BILLING_STATUS_PENDING", "BILLING_STATUS_UNSPECIFIED", "", None, 3])
def test_a_call_that_may_be_pending_for_ever_has_ended_only(status: Any) -> None:
    assert [fact.event for fact in facts_of(listed(BILLED) | {"billingStatus": status})] == ["call.ended"]


@pytest.mark.parametrize("status", ["BILLING_STATUS_FREE_MINUTES", "BILLING_STATUS_REFUNDED", "BILLING_STATUS_NEW"])
def test_whatever_else_the_bill_says_it_is_there(status: str) -> None:
    assert [fact.event for fact in facts_of(listed(BILLED) | {"billingStatus": status})][1:] == ["call.billed"]


def test_either_of_the_end_and_its_reason_makes_a_call_over() -> None:
    assert len(facts_of(listed(BILLED) | {"ended": None})) == 2
    assert len(facts_of(listed(BILLED) | {"endReason": None})) == 2
    assert facts_of(listed(BILLED) | {"ended": None, "endReason": None}) == []


def test_the_bill_of_a_call_that_is_deleted_after_it_is_fetched_once_only() -> None:
    told = facts_of(listed(BILLED) | {"retentionPolicy": "auto_delete"})
    assert [webhook.record for webhook in told] == ["wait", "once"]


@pytest.mark.parametrize("record", [{}, {"ended": "2026-10-07T09:07:02Z"}, {"callId": 7, "ended": "x"}])
def test_a_row_that_is_no_call_has_no_facts(record: Record) -> None:
    assert PROVIDER.facts(record) == []


MEDIUMS: list[Any] = [
    {"twilio": {"outgoing": {"to": "+15550100123", "from": "+15550100177", "additionalParams": {"x": "planted"}}}},
    {"sip": {"outgoing": {"to": "sip:a:planted@pbx", "username": "planted-user", "password": "planted"}}},
    {"sip": {"incoming": {"to": "sip:a@pbx", "from": "sip:b@pbx", "password": "planted"}}},
    {"sip": {"incoming": {}, "outgoing": None}},
    {"twilio": None, "webRtc": {"dataMessages": {"x": "planted"}}},
    {"serverWebSocket": {"url": "wss://planted"}},
    {"twilio": "planted"},
    "planted",
    None,
]  # fmt: skip


@pytest.mark.parametrize("medium", MEDIUMS)
@pytest.mark.parametrize("call_id", [BILLED, PENDING, UNJOINED])
def test_a_fact_keeps_all_that_makes_the_call_and_no_secret(call_id: str, medium: Any) -> None:
    row = listed(call_id) | {"medium": medium}
    [sent] = PROVIDER.decode(json.dumps({"event": "call.ended", "call": row}).encode())
    found = facts_of(row)[0]
    assert PROVIDER.normalize(found, None) == PROVIDER.normalize(sent, None)
    assert PROVIDER.normalize(found, None).metadata == row["metadata"]
    assert PROVIDER.awaits(found, None) == PROVIDER.awaits(sent, None)
    assert b"planted" in sent.body
    assert b"planted" not in found.body


def test_a_fact_tells_why_a_sip_call_was_never_joined() -> None:
    details = {"billedDuration": None, "terminationReason": "SIP_TERMINATION_BUSY"}
    told = facts_of(listed(PENDING) | {"joined": None, "endReason": "unjoined", "sipDetails": details})
    end = PROVIDER.normalize(told[0], None).end
    assert end is not None
    assert (end.reason, end.provider_reason) == ("busy", "SIP_TERMINATION_BUSY")


@pytest.mark.parametrize("key", [
    "joinUrl", "callbacks", "systemPrompt", "externalVoice", "dataConnectionConfig", "requestContext", "initialState",
])  # fmt: skip
def test_what_holds_secrets_of_the_calls_owner_is_not_in_a_fact(key: str) -> None:
    assert key in listed(BILLED)
    for body in PROVIDER.facts(listed(BILLED)):
        assert key not in json.loads(body)["call"]


# delete


async def test_a_call_is_deleted_by_its_id_and_nothing_is_said_to_be_kept(vendor: Vendor, provider: Ultravox) -> None:
    assert await provider.delete(BILLED) is None
    assert vendor.written() == [("DELETE", f"/api/calls/{BILLED}", None)]
    assert vendor.keys == {"planted-key"}


async def test_a_call_that_is_not_there_any_more_is_deleted(vendor: Vendor, provider: Ultravox) -> None:
    vendor.answer = lambda _: web.json_response({"detail": "Not found."}, status=404)
    await provider.delete(BILLED)


@pytest.mark.parametrize("status", [200, 202, 400, 401, 409, 500, 503])
async def test_a_call_that_may_still_be_there_is_not_called_deleted(
    vendor: Vendor, provider: Ultravox, status: int
) -> None:
    vendor.answer = lambda _: web.json_response({"detail": "planted"}, status=status)
    with pytest.raises(ProviderError, match=str(status)) as failed:
        await provider.delete(BILLED)
    assert failed.value.status == status
    assert "planted" not in str(failed.value)


async def test_an_id_cannot_lead_a_deletion_to_something_else(vendor: Vendor, provider: Ultravox) -> None:
    seen: list[str] = []
    vendor.answer = lambda request: seen.append(request.raw_path)
    await provider.delete("c1/../../webhooks?x#y")
    assert seen == ["/proxy/api/calls/c1%2F..%2F..%2Fwebhooks%3Fx%23y"]


# register


async def test_an_account_without_our_webhook_gets_one_for_all_its_calls(vendor: Vendor, provider: Ultravox) -> None:
    url = "https://new.example.com/webhooks/workshop"
    lines = await provider.register(url)
    assert vendor.written() == [("POST", "/api/webhooks", {"url": url, "events": EVENTS, "secrets": list(SECRETS)})]
    assert lines == ["created the webhook for the whole account"]


async def test_each_agent_gets_a_webhook_of_its_own(vendor: Vendor, provider: Ultravox) -> None:
    url = "https://new.example.com/webhooks/workshop"
    lines = await provider.register(url, agents=[AGENT, OTHER_AGENT, AGENT])
    sent = {"url": url, "events": EVENTS, "secrets": list(SECRETS)}
    assert vendor.written() == [
        ("POST", "/api/webhooks", {**sent, "agentId": AGENT}),
        ("POST", "/api/webhooks", {**sent, "agentId": OTHER_AGENT}),
    ]
    assert lines == [f"created the webhook for agent {AGENT}", f"created the webhook for agent {OTHER_AGENT}"]


async def test_a_webhook_that_is_as_it_should_be_is_left_alone(vendor: Vendor, provider: Ultravox) -> None:
    lines = await provider.register(HUB)  # on the second page, in another order
    assert vendor.written() == []
    assert lines[0] == f"the webhook {WEBHOOK.format('03')} for the whole account is up to date"


async def test_a_webhook_of_another_day_is_brought_up_to_date(vendor: Vendor, provider: Ultravox) -> None:
    lines = await provider.register(HUB, agents=[AGENT])
    path = f"/api/webhooks/{WEBHOOK.format('02')}"
    assert vendor.written() == [("PATCH", path, {"events": EVENTS, "secrets": list(SECRETS)})]
    assert lines[0] == f"set events and secrets of the webhook {WEBHOOK.format('02')} for agent {AGENT}"


@pytest.mark.parametrize(
    ("there", "changes"),
    [
        ({"events": EVENTS}, {"secrets": list(SECRETS)}),
        ({"events": EVENTS, "secrets": [*SECRETS, "planted-leaked"]}, {"secrets": list(SECRETS)}),
        ({"secrets": list(SECRETS)}, {"events": EVENTS}),
        ({"secrets": list(SECRETS), "events": None}, {"events": EVENTS}),
    ],
)
async def test_only_what_differs_is_set(
    vendor: Vendor, provider: Ultravox, there: dict[str, Any], changes: dict[str, Any]
) -> None:
    vendor.webhooks()[1].update(there)
    lines = await provider.register(HUB, agents=[AGENT])
    assert [body for _, _, body in vendor.written()] == [changes]
    assert lines[0].startswith(f"set {next(iter(changes))} of the webhook")


async def test_registering_again_changes_nothing(vendor: Vendor, provider: Ultravox) -> None:
    await provider.register(HUB, agents=[AGENT, OTHER_AGENT])
    assert [method for method, _, _ in vendor.written()] == ["PATCH", "POST"]
    lines = await provider.register(HUB, agents=[AGENT, OTHER_AGENT])
    assert len(vendor.written()) == 2
    assert [line.endswith("is up to date") for line in lines[:2]] == [True, True]


@pytest.mark.parametrize("agents", [(), (AGENT,), (OTHER_AGENT,)])
async def test_a_dry_run_says_what_it_would_do_and_does_not_do_it(
    vendor: Vendor, provider: Ultravox, agents: tuple[str, ...]
) -> None:
    would = await provider.register(HUB, agents=agents, dry_run=True)
    assert vendor.written() == []
    did = await provider.register(HUB, agents=agents)
    assert [line.replace("would create", "created").replace("would set", "set") for line in would] == did
    assert any(line.startswith("would ") for line in would) == bool(agents)


async def test_our_unhealthy_webhooks_are_named_and_those_of_others_are_not(provider: Ultravox) -> None:
    for agents in ([], [AGENT]):
        lines = await provider.register(HUB, agents=agents)
        [complaint] = [line for line in lines if "unhealthy" in line]
        assert WEBHOOK.format("02") in complaint
        assert f"agent {AGENT}" in complaint
        assert "2 recent failures" in complaint


async def test_no_line_holds_a_secret(vendor: Vendor, provider: Ultravox) -> None:
    for agents in ([], [AGENT], [OTHER_AGENT]):
        assert "planted" not in "\n".join(await provider.register(HUB, agents=agents))
    assert SECRETS[0] in json.dumps(vendor.written())


async def test_a_url_that_is_too_long_is_refused_before_anything_is_sent(vendor: Vendor, provider: Ultravox) -> None:
    longest = "https://hub.example.com/webhooks/".ljust(200, "a")
    await provider.register(longest)
    assert vendor.written()[0][2]["url"] == longest
    vendor.asked.clear()
    with pytest.raises(ProviderError, match=r"201 characters.*200.*shorter"):
        await provider.register(longest + "a")
    assert vendor.asked == []


@pytest.mark.parametrize("secrets", [(), ("",), ("planted-" + "s" * 113,)])
async def test_secrets_that_cannot_be_registered_are_refused_before_anything_is_sent(
    vendor: Vendor, provider: Ultravox, secrets: tuple[str, ...]
) -> None:
    account = Account(
        name="workshop", provider="ultravox", api_key="k", webhook_secrets=secrets, base_url=provider.root
    )
    with pytest.raises(ProviderError, match="webhook_secrets") as failed:
        await Ultravox(account, provider.http).register(HUB)
    assert vendor.asked == []
    assert "planted" not in str(failed.value)


@pytest.mark.parametrize("agents", [(AGENT,), (OTHER_AGENT,)])
async def test_a_refused_registration_names_the_agent_and_no_secret(
    vendor: Vendor, provider: Ultravox, agents: tuple[str, ...]
) -> None:
    vendor.answer = lambda request: None if request.method == "GET" else web.Response(status=400, text="planted")
    with pytest.raises(ProviderError, match=f"agent {agents[0]}.*HTTP 400") as failed:
        await provider.register(HUB, agents=agents)
    assert failed.value.status == 400
    assert "planted" not in str(failed.value)


async def test_an_empty_agent_id_does_not_become_the_whole_account(vendor: Vendor, provider: Ultravox) -> None:
    await provider.register("https://new.example.com/webhooks/workshop", agents=[""])
    assert vendor.written()[0][2]["agentId"] == ""


async def test_webhooks_without_an_end_are_an_error(vendor: Vendor, provider: Ultravox) -> None:
    def endless(request: web.Request) -> web.Response:
        cursor = int(request.query.get("cursor", 0)) + 1
        return web.json_response({"results": [], "next": f"https://api.ultravox.ai/x?cursor={cursor}"})

    vendor.answer = endless
    with pytest.raises(ProviderError, match=str(MAX_PAGES)):
        await provider.register(HUB)
    assert vendor.written() == []
