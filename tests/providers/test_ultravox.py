import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from aftercall.call import Agent, Call, End, Tool
from aftercall.client import make_client
from aftercall.errors import RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.providers import shapes
from aftercall.providers.base import Account, Record, Request, Signature, Webhook
from aftercall.providers.ultravox import MAX_PAGES, Ultravox
from aftercall.signing import hmac_sha256

FIXTURES = Path(__file__).parent.parent / "fixtures" / "ultravox"
VECTORS = json.loads((FIXTURES / "vectors.json").read_text("utf-8"))
WEBHOOKS = sorted(path.stem for path in FIXTURES.glob("call.*.json"))
CALL_ID = "5f0d7a52-8c1e-4b39-9d64-2e7b1c90aa01"

PROVIDER = Ultravox(Account(name="workshop", provider="ultravox", api_key="key.one", webhook_secrets=("one",)))


def body_of(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def payload(name: str) -> dict[str, Any]:
    return json.loads(body_of(name))


def webhook_of(name: str, **changes: Any) -> Webhook:
    """The fixture's webhook, with changes to its call object."""
    envelope = payload(name)
    envelope["call"] |= changes
    [webhook] = PROVIDER.decode(json.dumps(envelope).encode())
    return webhook


def full_record(**changes: Any) -> Record:
    pages = payload("rest.messages.page1")["results"] + payload("rest.messages.page2")["results"]
    return {"call": payload("rest.get_call") | changes, "messages": pages}


def normalized(name: str, record: Record | None = None, **changes: Any) -> Call:
    return PROVIDER.normalize(webhook_of(name, **changes), record)


# verify


def verdict(headers: dict[str, str], body: str, secrets: list[str], now: str) -> str:
    request = Request(headers={name.lower(): value for name, value in headers.items()}, body=body.encode())
    try:
        PROVIDER.verify(request, secrets, datetime.fromisoformat(now).timestamp())
    except SignatureError as error:
        return error.cause
    return "valid"


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_signature_gets_the_verdict_of_its_vector(vector: dict[str, Any]) -> None:
    assert verdict(vector["headers"], vector["body"], vector["secrets"], vector["now"]) == vector["verdict"]


@pytest.mark.parametrize("header", ["X-Ultravox-Webhook-Timestamp", "X-Ultravox-Webhook-Signature"])
def test_a_request_without_one_of_its_headers_is_refused_by_the_headers_name(header: str) -> None:
    vector = VECTORS[0]
    headers = {name.lower(): value for name, value in vector["headers"].items() if name != header}
    with pytest.raises(SignatureError, match=header) as refused:
        PROVIDER.verify(Request(headers=headers, body=vector["body"].encode()), vector["secrets"], 0)
    assert refused.value.cause == "missing"


def test_a_mismatch_names_what_to_check_and_neither_secret_nor_body() -> None:
    vector = next(vector for vector in VECTORS if vector["verdict"] == "mismatch" and vector["secrets"])
    headers = {name.lower(): value for name, value in vector["headers"].items()}
    with pytest.raises(SignatureError, match="webhook_secrets") as refused:
        PROVIDER.verify(Request(headers=headers, body=vector["body"].encode()), vector["secrets"], 0)
    assert vector["secrets"][0] not in str(refused.value)
    assert CALL_ID not in str(refused.value)


def test_a_calls_own_callback_is_verified_with_its_own_secret() -> None:
    now = datetime.fromisoformat("2026-10-05T08:15:20+00:00")
    stamp = now.isoformat()
    signed = hmac_sha256("callback-secret", body_of("call.ended"), stamp.encode()).hex()
    headers = {"x-ultravox-webhook-timestamp": stamp, "x-ultravox-webhook-signature": signed}
    request = Request(headers=headers, body=body_of("call.ended"))
    PROVIDER.verify(request, ["webhook-secret", "callback-secret"], now.timestamp())
    with pytest.raises(SignatureError, match="webhook_secrets"):
        PROVIDER.verify(request, ["webhook-secret"], now.timestamp())


# signature


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if vector["verdict"] in ("valid", "stale")])
def test_the_parts_of_a_signature_make_it_again(vector: dict[str, Any]) -> None:
    headers = {name.lower(): value for name, value in vector["headers"].items()}
    signature = PROVIDER.signature(Request(headers=headers, body=vector["body"].encode()))
    assert signature is not None
    assert signature.timestamp == vector["headers"]["X-Ultravox-Webhook-Timestamp"]
    made = [hmac_sha256(s, vector["body"].encode(), signature.timestamp.encode()) for s in vector["secrets"] if s]
    assert set(made) & set(signature.digests)


def test_every_digest_of_a_signature_is_told() -> None:
    headers = {
        "x-ultravox-webhook-timestamp": "2026-10-05T08:15:20Z",
        "x-ultravox-webhook-signature": f"{'0a' * 32}, nonsense,{'FF' * 32}",
    }
    expected = Signature(digests=[b"\x0a" * 32, b"\xff" * 32], timestamp="2026-10-05T08:15:20Z")
    assert PROVIDER.signature(Request(headers=headers, body=b"")) == expected


@pytest.mark.parametrize(
    ("timestamp", "digests"),
    [
        (None, "0a" * 32),
        ("", "0a" * 32),
        ("yesterday", "0a" * 32),
        ("2026-10-05T08:15:20Z", None),
        ("2026-10-05T08:15:20Z", ""),
        ("2026-10-05T08:15:20Z", "v1=0a"),
        (None, None),
    ],
)
def test_a_request_without_a_whole_signature_has_none(timestamp: str | None, digests: str | None) -> None:
    sent = {"x-ultravox-webhook-timestamp": timestamp, "x-ultravox-webhook-signature": digests}
    headers = {name: value for name, value in sent.items() if value is not None}
    assert PROVIDER.signature(Request(headers=headers, body=b"{}")) is None


# decode


@pytest.mark.parametrize(
    ("name", "event", "kind", "record"),
    [
        ("call.started", "call.started", "call.started", "wait"),
        ("call.joined", "call.joined", "call.connected", "wait"),
        ("call.ended", "call.ended", "call.ended", "wait"),
        ("call.ended.unjoined", "call.ended", "call.ended", "wait"),
        ("call.ended.auto_delete", "call.ended", "call.ended", "wait"),
        ("call.billed", "call.billed", "call.billed", "wait"),
        ("call.billed.sip", "call.billed", "call.billed", "wait"),
    ],
)
def test_an_event_is_one_fact_about_its_call(name: str, event: str, kind: str, record: str) -> None:
    call_id = payload(name)["call"]["callId"]
    happened_at = {"call.started": "2026-10-05T08:14:20.250Z", "call.joined": "2026-10-05T08:14:31.500Z"}.get(event)
    assert PROVIDER.decode(body_of(name)) == [
        Webhook(
            event=event,
            type=kind,
            call_id=call_id,
            dedupe_key=f"{event}:{call_id}",
            body=body_of(name),
            record=record,
            happened_at=happened_at,
        )
    ]


def test_a_billed_call_that_is_deleted_after_billing_is_fetched_once_only() -> None:
    assert webhook_of("call.billed", retentionPolicy="auto_delete").record == "once"
    assert webhook_of("call.billed", retentionPolicy="a policy to come").record == "wait"
    assert webhook_of("call.billed", retentionPolicy=None).record == "wait"


def test_a_callback_and_a_webhook_for_the_same_event_are_one_fact() -> None:
    assert webhook_of("call.ended").dedupe_key == webhook_of("call.ended", billingStatus="other bytes").dedupe_key
    assert webhook_of("call.ended").dedupe_key != webhook_of("call.billed").dedupe_key


def unnamed(name: str, **changes: Any) -> list[Webhook]:
    """What the fixture's webhook decodes to without its `event`, as the oldest webhooks and perhaps callbacks come."""
    return PROVIDER.decode(json.dumps({"call": payload(name)["call"] | changes}).encode())


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("call.started", ["call.started"]),
        ("call.joined", ["call.joined"]),
        ("call.ended", ["call.ended"]),
        ("call.ended.unjoined", ["call.ended", "call.billed"]),
        ("call.billed", ["call.ended", "call.billed"]),
    ],
)
def test_a_body_without_its_event_tells_the_facts_that_its_call_shows(name: str, events: list[str]) -> None:
    call = payload(name)["call"]
    assert [webhook.event for webhook in unnamed(name)] == events
    for webhook in unnamed(name):
        [named] = PROVIDER.decode(json.dumps({"event": webhook.event, "call": call}).encode())
        assert msgspec.structs.replace(webhook, body=b"") == msgspec.structs.replace(named, body=b"")
        assert PROVIDER.normalize(webhook, None) == PROVIDER.normalize(named, None)


def test_a_body_without_its_event_is_over_by_its_end_or_by_the_reason_of_it() -> None:
    assert [w.event for w in unnamed("call.joined", ended="2026-10-05T08:15:13Z")] == ["call.ended"]
    assert [w.event for w in unnamed("call.joined", endReason="timeout")] == ["call.ended"]


def test_an_event_that_is_null_is_none() -> None:
    body = json.dumps(payload("call.ended") | {"event": None}).encode()
    assert [webhook.event for webhook in PROVIDER.decode(body)] == ["call.ended"]


def test_a_name_counts_for_more_than_what_the_call_shows() -> None:
    for name in ("call.joined", "call.billed", "call.muted"):
        body = json.dumps(payload("call.ended") | {"event": name}).encode()
        assert [webhook.event for webhook in PROVIDER.decode(body)] == [name]


def test_a_new_kind_of_event_is_kept_as_unknown_and_deduped_by_its_content() -> None:
    first = PROVIDER.decode(b'{"event":"call.muted","call":{"callId":"c1","muted":true}}')
    again = PROVIDER.decode(b'{"event":"call.muted","call":{"callId":"c1","muted":true}}')
    other = PROVIDER.decode(b'{"event":"call.muted","call":{"callId":"c1","muted":false}}')
    assert [(w.event, w.type, w.call_id, w.record) for w in first] == [("call.muted", "call.unknown", "c1", "once")]
    assert first[0].dedupe_key == again[0].dedupe_key != other[0].dedupe_key


@pytest.mark.parametrize("body", [b'{"event":"agent.created"}', b'{"event":"agent.created","call":{"callId":""}}'])
def test_a_new_kind_of_event_about_no_call_is_not_for_us(body: bytes) -> None:
    assert PROVIDER.decode(body) == []


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b'{"event":"call.ended"', "JSON"),
        (b"{}", "event"),
        (b'{"call":{}}', "event"),
        (b'{"callId":"c1","ended":"2026-10-05T08:15:13Z"}', "event"),
        (b'{"call":{"callId":"c1"}}', "event"),
        (b'{"call":{"callId":"c1","billingStatus":"BILLING_STATUS_BILLED"}}', "event"),
        (b'{"event":7,"call":{"callId":"c1"}}', "event"),
        (b'{"event":"call.ended"}', "callId"),
        (b'{"event":"call.ended","call":null}', "callId"),
        (b'{"event":"call.ended","call":{}}', "callId"),
        (b'{"event":"call.ended","call":{"callId":""}}', "callId"),
        (b'{"event":"call.ended","call":{"callId":12}}', "callId"),
        (b'{"event":"call.ended","call":{"callId":"c1","summary":"\xff"}}', "UTF-8"),
        (b'{"event":"call.ended","call":{"callId":"c1","x":' + b"[" * 100_000, "nested"),
    ],
)
def test_a_body_that_is_not_ultravoxs_is_refused_by_what_is_wrong(body: bytes, names: str) -> None:
    with pytest.raises(UndecodableWebhook, match=names):
        PROVIDER.decode(body)


# fetch


class Vendor:
    """A loopback stand-in for the API: answers `messages` page by page and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.answers_at_once: asyncio.Barrier | None = None
        self.call: Callable[[], web.Response] = lambda: web.json_response(payload("rest.get_call"))
        self.pages: dict[str | None, Any] = {
            None: payload("rest.messages.page1"),
            "cD0yJm49Mw==": payload("rest.messages.page2"),
        }

    async def note(self, request: web.Request) -> None:
        self.asked.append(request)
        if self.answers_at_once and "cursor" not in request.query:
            await asyncio.wait_for(self.answers_at_once.wait(), 5)

    async def answer_call(self, request: web.Request) -> web.Response:
        await self.note(request)
        return self.call()

    async def answer_messages(self, request: web.Request) -> web.Response:
        await self.note(request)
        return web.json_response(self.pages[request.query.get("cursor")])

    def asked_messages(self) -> list[web.Request]:
        return [request for request in self.asked if request.path.endswith("/messages")]


@pytest.fixture
def vendor() -> Vendor:
    return Vendor()


@pytest.fixture
async def fetch(vendor: Vendor) -> AsyncIterator[Callable[[], Awaitable[Record]]]:
    app = web.Application()
    app.router.add_get("/proxy/api/calls/{id}", vendor.answer_call)
    app.router.add_get("/proxy/api/calls/{id}/messages", vendor.answer_messages)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    root = f"http://127.0.0.1:{runner.addresses[0][1]}/proxy/"
    account = Account(name="workshop", provider="ultravox", api_key="key.one", base_url=root)
    async with make_client(guarded=False) as http:
        yield lambda: Ultravox(account, http).fetch(CALL_ID)
    await runner.cleanup()


async def test_fetch_gets_the_call_and_every_page_of_its_messages_from_our_own_root(vendor: Vendor, fetch: Any) -> None:
    assert await fetch() == full_record()
    assert sorted(request.path for request in vendor.asked) == [
        f"/proxy/api/calls/{CALL_ID}",
        f"/proxy/api/calls/{CALL_ID}/messages",
        f"/proxy/api/calls/{CALL_ID}/messages",
    ]
    assert {request.headers["X-API-Key"] for request in vendor.asked} == {"key.one"}


async def test_fetch_asks_for_the_messages_of_all_stages_on_each_page(vendor: Vendor, fetch: Any) -> None:
    await fetch()
    assert [dict(request.query) for request in vendor.asked_messages()] == [
        {"mode": "in_call", "pageSize": "100"},
        {"mode": "in_call", "pageSize": "100", "cursor": "cD0yJm49Mw=="},
    ]


async def test_the_call_and_its_messages_are_asked_for_side_by_side(vendor: Vendor, fetch: Any) -> None:
    vendor.answers_at_once = asyncio.Barrier(2)
    assert await fetch() == full_record()


async def test_a_cursor_that_comes_back_does_not_loop(vendor: Vendor, fetch: Any) -> None:
    to_a = payload("rest.messages.page1") | {"next": "https://api.ultravox.ai/x?cursor=a"}
    to_b = payload("rest.messages.page2") | {"next": "https://api.ultravox.ai/x?cursor=b"}
    vendor.pages = {None: to_a, "a": to_b, "b": to_a}
    await fetch()
    assert [request.query.get("cursor") for request in vendor.asked_messages()] == [None, "a", "b"]


async def test_pages_without_an_end_are_not_followed_for_ever(vendor: Vendor, fetch: Any) -> None:
    class Endless(dict[str | None, Any]):
        def __getitem__(self, cursor: str | None) -> Any:
            return {"results": [], "next": f"https://api.ultravox.ai/x?cursor={int(cursor or 0) + 1}"}

    vendor.pages = Endless()
    assert (await fetch())["messages"] == []
    assert len(vendor.asked_messages()) == MAX_PAGES


@pytest.mark.parametrize(
    ("status", "headers", "retry_after"),
    [
        (404, {}, None),
        (425, {}, None),
        (429, {"Retry-After": "7"}, 7.0),
        (503, {"Retry-After": "30"}, 30.0),
        (500, {}, None),
        (401, {}, None),
    ],
)
async def test_a_record_that_cannot_be_had_now_is_not_ready(
    vendor: Vendor, fetch: Any, status: int, headers: dict[str, str], retry_after: float | None
) -> None:
    vendor.call = lambda: web.json_response({"detail": "no"}, status=status, headers=headers)
    with pytest.raises(RecordNotReady, match=str(status)) as waiting:
        await fetch()
    assert waiting.value.retry_after == retry_after


@pytest.mark.parametrize("answer", [b"[]", b"null", b'"late"', b"<html>"])
async def test_an_answer_that_is_no_object_is_not_a_record(vendor: Vendor, fetch: Any, answer: bytes) -> None:
    vendor.call = lambda: web.Response(body=answer)
    with pytest.raises(RecordNotReady, match="something other than"):
        await fetch()


@pytest.mark.parametrize("page", [[], {}, {"results": None}, {"results": {}, "next": None}])
async def test_messages_that_are_no_list_are_not_an_empty_transcript(vendor: Vendor, fetch: Any, page: Any) -> None:
    vendor.pages[None] = page
    with pytest.raises(RecordNotReady):
        await fetch()


async def test_a_provider_that_cannot_be_reached_is_not_ready(unused_tcp_port: int) -> None:
    root = f"http://127.0.0.1:{unused_tcp_port}"
    async with make_client(guarded=False) as http:
        account = Account(name="workshop", provider="ultravox", api_key="key.one", base_url=root)
        with pytest.raises(RecordNotReady):
            await Ultravox(account, http).fetch(CALL_ID)


async def test_a_call_id_cannot_lead_to_another_path(vendor: Vendor) -> None:
    asked: list[httpx.URL] = []

    def remember(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(404)

    async with httpx.AsyncClient(transport=httpx.MockTransport(remember)) as http:
        with pytest.raises(RecordNotReady):
            await Ultravox(PROVIDER.account, http).fetch("c1/../../webhooks?x=1#y")
    assert {url.raw_path.split(b"/")[:3][-1] for url in asked} == {b"calls"}
    assert all(b"?x" not in url.raw_path for url in asked)


# is_ready


def test_a_record_is_ready_once_it_shows_what_the_webhook_told() -> None:
    pending = full_record(billingStatus="BILLING_STATUS_PENDING")
    ongoing = full_record(ended=None, endReason=None)
    ended, billed = webhook_of("call.ended"), webhook_of("call.billed", billingStatus=None)
    assert PROVIDER.is_ready(webhook_of("call.started"), ongoing)
    assert PROVIDER.is_ready(webhook_of("call.joined"), ongoing)
    assert PROVIDER.is_ready(ended, pending)
    assert not PROVIDER.is_ready(ended, ongoing)
    assert PROVIDER.is_ready(billed, full_record())
    assert not PROVIDER.is_ready(billed, ongoing)
    assert not PROVIDER.is_ready(billed, pending)


def test_a_webhook_that_carries_the_bill_need_not_wait_for_the_record_to_show_it() -> None:
    pending = full_record(billingStatus="BILLING_STATUS_PENDING")
    assert PROVIDER.is_ready(webhook_of("call.billed"), pending)
    assert not PROVIDER.is_ready(webhook_of("call.billed", billingStatus="BILLING_STATUS_PENDING"), pending)


def test_a_record_that_is_no_call_is_not_ready() -> None:
    assert not PROVIDER.is_ready(webhook_of("call.ended"), {"call": "soon"})
    assert not PROVIDER.is_ready(webhook_of("call.ended"), {})


# awaits


@pytest.mark.parametrize("name", ["call.ended", "call.ended.auto_delete", "call.joined", "call.started"])
def test_a_call_will_be_billed(name: str) -> None:
    assert list(PROVIDER.awaits(webhook_of(name), None)) == ["call.billed"]


def test_a_call_that_somebody_joined_is_waited_for_also_when_the_record_shows_the_bill() -> None:
    assert list(PROVIDER.awaits(webhook_of("call.ended"), full_record())) == ["call.billed"]
    assert list(PROVIDER.awaits(webhook_of("call.ended", joined=None), full_record())) == ["call.billed"]
    assert list(PROVIDER.awaits(webhook_of("call.ended"), full_record(joined=None))) == ["call.billed"]


@pytest.mark.parametrize("record", [None, full_record(), {}])
def test_after_the_bill_nothing_comes(record: Record | None) -> None:
    assert not PROVIDER.awaits(webhook_of("call.billed"), record)
    assert not PROVIDER.awaits(webhook_of("call.billed", billingStatus="BILLING_STATUS_PENDING"), record)


UNJOINED = payload("call.ended.unjoined")["call"]


@pytest.mark.parametrize(
    ("carried", "recorded", "awaited"),
    [
        ("BILLING_STATUS_FREE_ZERO_EFFECTIVE_DURATION", None, []),
        ("BILLING_STATUS_FREE_OTHER", "BILLING_STATUS_PENDING", []),
        ("BILLING_STATUS_PENDING", "BILLING_STATUS_FREE_OTHER", []),
        (None, "BILLING_STATUS_A_NEW_WORD", []),
        ("BILLING_STATUS_PENDING", "BILLING_STATUS_PENDING", ["call.billed"]),
        ("BILLING_STATUS_UNSPECIFIED", None, ["call.billed"]),
        (None, "", ["call.billed"]),
        (None, None, ["call.billed"]),
        (3, ["BILLING_STATUS_BILLED"], ["call.billed"]),
    ],
)
def test_a_call_that_nobody_joined_may_be_billed_already(carried: Any, recorded: Any, awaited: list[str]) -> None:
    webhook = webhook_of("call.ended.unjoined", billingStatus=carried)
    assert list(PROVIDER.awaits(webhook, {"call": UNJOINED | {"billingStatus": recorded}})) == awaited


# normalize


def test_a_finished_call_tells_who_when_and_how_it_ended() -> None:
    call = normalized("call.billed", full_record())
    assert (call.id, call.provider, call.account) == (CALL_ID, "ultravox", "workshop")
    assert call.agent == Agent(id="e8a90b17-62d4-4f5e-8b0a-3c4d5e6f7a80", name="Workshop desk")
    assert (call.channel, call.direction, call.from_, call.to) == ("phone", "outbound", "+15550100177", "+15550100123")
    assert call.status == "ended"
    assert call.end == End(reason="user_hangup", by="user", provider_reason="hangup")
    assert (call.started_at, call.ended_at) == ("2026-10-05T08:14:31.500Z", "2026-10-05T08:15:13.750Z")
    assert call.duration_ms == 42_250
    assert call.analysis is not None
    assert call.analysis.summary == "Mirela Okafor booked a brake service for BX-204 on Thursday at nine."
    assert call.metadata == {"bicycle": "BX-204", "owner": "Mirela Okafor"}
    assert call.privacy.storage == "full"
    assert (call.cost, call.recording, call.error, call.variables) == (None, None, None, {})


def test_a_call_goes_from_created_through_ongoing_to_ended() -> None:
    started, joined, ended = (normalized(name) for name in ("call.started", "call.joined", "call.ended"))
    assert [call.status for call in (started, joined, ended)] == ["created", "ongoing", "ended"]
    assert [call.started_at for call in (started, joined)] == ["2026-10-05T08:14:20.250Z", "2026-10-05T08:14:31.500Z"]
    assert [call.duration_ms for call in (started, joined, ended)] == [None, None, 42_250]
    assert [call.end is None for call in (started, joined, ended)] == [True, True, False]


def test_a_call_nobody_joined_has_failed_and_lasted_no_time() -> None:
    call = normalized("call.ended.unjoined")
    assert call.status == "failed"
    assert call.end == End(reason="unjoined", by=None, provider_reason="unjoined")
    assert (call.started_at, call.duration_ms) == ("2026-10-05T08:14:20.250Z", 0)
    assert call.error is None


@pytest.mark.parametrize(
    ("word", "reason", "by", "status", "error"),
    [
        ("hangup", "user_hangup", "user", "ended", None),
        ("agent_hangup", "agent_hangup", "agent", "ended", None),
        ("timeout", "max_duration", "system", "ended", None),
        ("connection_error", "telephony_error", "system", "failed", "connection_error"),
        ("system_error", "provider_error", "system", "failed", "system_error"),
        ("eaten_by_a_bear", "unknown", None, "ended", None),
        (None, "unknown", None, "ended", None),
    ],
)
def test_an_end_keeps_the_vendors_word_beside_ours(
    word: str | None, reason: Any, by: Any, status: str, error: str | None
) -> None:
    call = normalized("call.ended", endReason=word)
    assert call.end == End(reason=reason, by=by, provider_reason=word)
    assert (call.status, call.error) == (status, error)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("SIP_TERMINATION_BUSY", "busy"),
        ("SIP_TERMINATION_REJECTED", "declined"),
        ("SIP_TERMINATION_TIMEOUT", "no_answer"),
        ("SIP_TERMINATION_CANCELED", "cancelled"),
        ("SIP_TERMINATION_INVALID_NUMBER", "dial_failed"),
        ("SIP_TERMINATION_DESTINATION_UNAVAILABLE", "dial_failed"),
    ],
)
def test_a_sip_call_nobody_joined_tells_why(word: str, reason: Any) -> None:
    details = {"billedDuration": None, "terminationReason": word}
    call = normalized("call.billed.sip", endReason="unjoined", joined=None, sipDetails=details)
    assert call.end == End(reason=reason, by=None, provider_reason=word)
    assert call.status == "failed"


@pytest.mark.parametrize("word", ["SIP_TERMINATION_NORMAL", "SIP_TERMINATION_UNKNOWN", "SIP_TERMINATION_NEW", None])
def test_a_sip_word_that_explains_nothing_leaves_the_call_unjoined(word: str | None) -> None:
    call = normalized("call.billed.sip", endReason="unjoined", joined=None, sipDetails={"terminationReason": word})
    assert call.end == End(reason="unjoined", by=None, provider_reason="unjoined")


def test_a_sip_call_that_was_joined_ended_by_its_end_reason() -> None:
    call = normalized("call.billed.sip", sipDetails={"terminationReason": "SIP_TERMINATION_CANCELED"})
    assert call.end == End(reason="user_hangup", by="user", provider_reason="hangup")


@pytest.mark.parametrize(
    ("medium", "expected"),
    [
        ({"telnyx": {"outgoing": {"to": "b", "from": "a"}}}, ("phone", "outbound", "a", "b")),
        ({"plivo": {"outgoing": {"to": "b", "from": "a"}}}, ("phone", "outbound", "a", "b")),
        ({"twilio": {}}, ("phone", None, None, None)),
        ({"exotel": {}}, ("phone", None, None, None)),
        ({"sip": {"incoming": {}}}, ("sip", "inbound", None, None)),
        ({"sip": {"incoming": {"to": "sip:b@x", "from": "sip:a@x"}}}, ("sip", "inbound", "sip:a@x", "sip:b@x")),
        ({"webRtc": {}}, ("web", None, None, None)),
        ({"twilio": None, "webRtc": {}}, ("web", None, None, None)),
        ({"serverWebSocket": {"inputSampleRate": 8000}}, ("other", None, None, None)),
        ({"carrierPigeon": {"outgoing": {"to": "b"}}}, ("other", "outbound", None, "b")),
        ({}, ("other", None, None, None)),
        (None, ("other", None, None, None)),
    ],
)
def test_the_medium_tells_channel_direction_and_numbers(medium: Any, expected: tuple[str | None, ...]) -> None:
    call = normalized("call.ended", medium=medium)
    assert (call.channel, call.direction, call.from_, call.to) == expected


def test_a_password_in_a_sip_address_is_taken_out_and_a_port_is_not() -> None:
    call = normalized("call.billed.sip")
    assert (call.from_, call.to) == ("sip:workshop@pbx.example.com", "sip:front-desk@pbx.example.com")
    medium = {"sip": {"outgoing": {"to": "sip:pbx.example.com:5060;transport=tls", "from": "sips:a@pbx:5061"}}}
    call = normalized("call.billed.sip", medium=medium)
    assert (call.from_, call.to) == ("sips:a@pbx:5061", "sip:pbx.example.com:5060;transport=tls")


def test_the_transcript_holds_all_stages_in_order_with_times() -> None:
    transcript = normalized("call.ended", full_record()).transcript
    assert transcript is not None
    assert [(turn.role, turn.text, turn.start_ms, turn.end_ms) for turn in transcript] == [
        ("agent", "Spoke and Chain, good morning!", 0, 2_100),  # no start: zero, which protobuf leaves out
        ("user", "Hej, Mirela Okafor här. My brakes squeal.", 3_200, 5_750),  # by the wall clock
        ("tool", None, 5_800, 6_950),
        ("agent", "Thursday at nine?", 7_100, 8_300),  # by the audio's clock, the only one there is
        ("tool", None, None, None),
        ("tool", None, None, None),
        ("system", "The caller went silent.", None, None),
    ]


def test_a_tool_call_and_its_result_are_one_turn() -> None:
    transcript = normalized("call.ended", full_record()).transcript or []
    worked, failed, unanswered = (turn.tool for turn in transcript if turn.role == "tool")
    assert worked == Tool(
        id="inv-free-slots",
        name="freeSlots",
        arguments={"bicycle": "BX-204", "service": "brakes"},
        result='{"slots":["Thu 09:00"]}',
        ok=True,
    )
    assert failed == Tool(
        id="inv-book",
        name="bookSlot",
        arguments={"slot": "Thu 09:00"},
        result="The diary did not answer.",
        ok=False,
    )
    assert unanswered == Tool(id="inv-hang-up", name="hangUp", arguments={}, result=None, ok=None)


def test_a_tool_result_without_its_call_is_kept() -> None:
    messages = [
        {"role": "MESSAGE_ROLE_TOOL_RESULT", "invocationId": "inv-lost", "toolName": "freeSlots", "text": "none"},
        {"role": "MESSAGE_ROLE_TOOL_RESULT", "toolName": "bookSlot", "text": "booked"},
        {"role": "MESSAGE_ROLE_TOOL_CALL", "toolName": "hangUp", "text": "now"},
    ]
    transcript = normalized("call.ended", {"call": {}, "messages": messages}).transcript or []
    assert [turn.tool for turn in transcript] == [
        Tool(id="inv-lost", name="freeSlots", result="none", ok=True),
        Tool(name="bookSlot", result="booked", ok=True),
        Tool(name="hangUp", arguments={"value": "now"}),
    ]


def test_without_the_record_the_transcript_is_not_known_and_the_rest_is() -> None:
    call = normalized("call.ended.auto_delete")
    assert call.transcript is None
    assert call.analysis is not None
    assert call.analysis.summary == "Opening hours asked."
    assert call.end == End(reason="agent_hangup", by="agent", provider_reason="agent_hangup")
    assert (call.channel, call.agent, call.duration_ms) == ("web", Agent(), 30_125)


def test_a_call_in_which_nothing_was_said_has_an_empty_transcript() -> None:
    assert normalized("call.ended.unjoined", {"call": {}, "messages": []}).transcript == []


def test_a_call_without_a_summary_has_no_analysis() -> None:
    assert normalized("call.ended").analysis is None


def test_what_the_record_no_longer_holds_stays_from_the_webhook() -> None:
    emptied = full_record(summary=None, shortSummary="", metadata={}, medium=None, agent=None, endReason=None)
    assert normalized("call.billed", emptied) == normalized("call.billed", full_record())


def test_the_record_adds_what_the_webhook_did_not_know_yet() -> None:
    assert normalized("call.started", full_record()) == normalized("call.billed", full_record())


def test_a_call_that_is_deleted_after_billing_is_marked_as_not_stored() -> None:
    assert normalized("call.ended.auto_delete").privacy.storage == "none"
    assert normalized("call.ended", retentionPolicy=None).privacy.storage == "full"


@pytest.mark.parametrize("kind", ["call.settled", "call.erased"])
def test_a_webhook_that_aftercall_made_itself_gives_the_call_of_the_record_alone(kind: Any) -> None:
    made = Webhook(event="", type=kind, call_id=CALL_ID, dedupe_key=f"{kind}:{CALL_ID}", body=b"")
    call = PROVIDER.normalize(made, full_record())
    assert call == normalized("call.billed", full_record())
    assert (call.status, call.end) == ("ended", End(reason="user_hangup", by="user", provider_reason="hangup"))
    ongoing = PROVIDER.normalize(made, full_record(ended=None, endReason=None, joined=None))
    assert (ongoing.status, ongoing.end, ongoing.ended_at) == ("created", None, None)
    unjoined = PROVIDER.normalize(made, {"call": UNJOINED, "messages": []})
    assert (unjoined.status, unjoined.duration_ms, unjoined.transcript) == ("failed", 0, [])
    assert PROVIDER.normalize(made, None).id == CALL_ID
    assert PROVIDER.is_ready(made, full_record())


def marked(value: Any) -> Any:
    """The value with a mark on every text in it, and a secret under every name that secrets go by."""
    if isinstance(value, dict):
        names = ("secrets", "headers", "password", "username", "token", "url", "auth")
        return {key: marked(item) for key, item in value.items()} | dict.fromkeys(names, "planted")
    if isinstance(value, list):
        return [marked(item) for item in value]
    return f"planted-{value}" if isinstance(value, str) else value


OUTGOING = {"from": "sip:b:planted@pbx", "to": "sip:a@pbx", "username": "planted", "password": "planted"}
SECRET_PLACES: list[dict[str, Any]] = [
    {"callbacks": {event: {"url": "u", "secrets": ["s", "t"]} for event in ("joined", "ended", "billed")}},
    {"medium": {"sip": {"outgoing": OUTGOING}}},
    {"medium": {"sip": {"incoming": OUTGOING}}},
    {"medium": {"sip": {"outgoing": {"to": "sips:a:planted;x@pbx", "headers": {"Authorization": "planted"}}}}},
    {"medium": {"twilio": {"outgoing": {"to": "+15550100123", "additionalParams": {"sendDigits": "planted"}}}}},
    {"medium": {"serverWebSocket": {"url": "wss://planted.example.com", "headers": {"X-Key": "planted"}}}},
    {"joinUrl": "wss://voice.ultravox.example/planted"},
    {"externalVoice": {"generic": {"url": "u", "headers": {"Authorization": "s"}, "body": {"key": "s"}}}},
    {"externalVoice": {"elevenLabs": {"voiceId": "s"}, "google": {"voiceId": "s"}}},
    {"voiceOverrides": {"generic": {"headers": {"Authorization": "s"}}}},
    {"dataConnectionConfig": {"websocketUrl": "wss://s", "audioConfig": {"x": "s"}}},
    {"systemPrompt": "s"},
    {"initialState": {"code": "s", "nested": [{"deep": "s"}]}},
    {"requestContext": {"ip": "s", "headers": {"Cookie": "s"}}},
    {"requestContext": "s"},
    {"selectedTools": [{"authTokens": {"a": "s"}, "temporaryTool": {"http": {"baseUrlPattern": "s"}}}]},
    {"firstSpeakerSettings": {"agent": {"prompt": "s", "text": "s"}}},
    {"experimentalSettings": {"key": "s"}},
]


@pytest.mark.parametrize(
    "place", SECRET_PLACES, ids=[f"{number}-{next(iter(p))}" for number, p in enumerate(SECRET_PLACES)]
)
@pytest.mark.parametrize("name", ["call.started", "call.ended", "call.billed"])
def test_no_secret_reaches_the_call_from_any_of_its_places(name: str, place: dict[str, Any]) -> None:
    secrets = place if "planted" in json.dumps(place) else marked(place)
    for webhook, record in (
        (webhook_of(name, **secrets), None),
        (webhook_of(name), full_record(**secrets)),
        (webhook_of(name, **secrets), full_record(**secrets)),
    ):
        encoded = msgspec.json.encode(PROVIDER.normalize(webhook, record))
        assert b"planted" not in encoded
        assert b"Okafor" in encoded  # metadata is kept


def test_no_secret_reaches_the_call_from_its_messages() -> None:
    record = full_record()
    for message in record["messages"]:
        message |= {
            "callState": {"code": "planted"},
            "metadata": {"token": "planted"},
            "errorDetails": "planted",
            "definition": {"http": {"headers": {"Authorization": "planted"}}},
        }
    call = normalized("call.billed", record)
    assert call.transcript is not None
    assert len(call.transcript) == 7
    assert b"planted" not in msgspec.json.encode(call)


@pytest.mark.parametrize("name", WEBHOOKS)
def test_no_secret_of_the_record_reaches_the_call(name: str) -> None:
    envelope = payload(name)
    record = full_record(**envelope["call"])
    assert json.dumps(record).count("planted") >= 9
    for call in (normalized(name), normalized(name, record), normalized(name, {"call": {}, **record})):
        assert b"planted" not in msgspec.json.encode(call)


# whatever comes

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["", "call.ended", "unjoined", "3.5s", f"{'9' * 30}s", "2026-10-05T08:15:13Z", "sip:a:b@c", "{}"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a JSON value is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def through_json(value: Any) -> Any:
    return shapes.decode_json(json.dumps(value))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(WEBHOOKS), st.data())
def test_whatever_stands_in_a_field_the_call_is_a_call(name: str, data: st.DataObject) -> None:
    [webhook] = PROVIDER.decode(body_of(name))
    envelope, record = payload(name), full_record()
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(paths(envelope["call"])[1:] if envelope["call"] else [()]))
        envelope = replaced(envelope, ("call", *path), data.draw(json_values))
        record = replaced(record, data.draw(st.sampled_from(paths(record)[1:])), data.draw(json_values))
        if not isinstance(envelope["call"], dict) or not envelope["call"]:
            break
    webhook = msgspec.structs.replace(webhook, body=json.dumps(envelope).encode())
    for fetched in (through_json(record), None):
        call = PROVIDER.normalize(webhook, fetched)
        assert call.id == webhook.call_id
        assert msgspec.json.decode(msgspec.json.encode(call), type=Call) == call
        assert isinstance(PROVIDER.is_ready(webhook, fetched or {}), bool)
        assert set(PROVIDER.awaits(webhook, fetched)) <= {"call.billed"}
    for body in PROVIDER.facts(through_json(record["call"]) if isinstance(record["call"], dict) else {}):
        [fact] = PROVIDER.decode(body)
        assert fact.dedupe_key in (f"call.ended:{fact.call_id}", f"call.billed:{fact.call_id}")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"call":7}', b"\xff"])
def test_a_body_that_cannot_be_read_again_still_makes_a_call(body: bytes) -> None:
    webhook = Webhook(event="call.ended", type="call.ended", call_id=CALL_ID, dedupe_key="k", body=body)
    call = PROVIDER.normalize(webhook, None)
    assert (call.id, call.status, call.end) == (CALL_ID, "ended", End(reason="unknown"))
