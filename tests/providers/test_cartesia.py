"""Cartesia: a fixed secret for a signature, two envelopes, transcripts that only the webhook may carry."""

import copy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Call, End, Privacy, Tool, Turn
from aftercall.client import make_client
from aftercall.errors import RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.providers.base import Account, Request, Webhook
from aftercall.providers.cartesia import Cartesia
from aftercall.providers.cartesia_tables import EVENTS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "cartesia"
SECRET = "heron-basin-4471"
CALL_ID = "ac_7Rk2WmQx9T"
WEBHOOKS = sorted(path.stem for path in FIXTURES.glob("*.json") if not path.stem.startswith("rest."))

cartesia = Cartesia(Account(name="clinic", provider="cartesia", api_key="sk_car_test", webhook_secrets=(SECRET,)))


def body(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def record(name: str = "rest.get_call") -> dict[str, Any]:
    found = json.loads(body(name))
    assert isinstance(found, dict)
    return found


def changed(name: str, **fields: Any) -> bytes:
    """The fixture with some top-level fields replaced, or removed where the value is `...`."""
    envelope = {**record(name), **fields}
    return msgspec.json.encode({key: value for key, value in envelope.items() if value is not ...})


def with_call(name: str, **fields: Any) -> bytes:
    return changed(name, call={**record(name)["call"], **fields})


def decoded(raw: bytes) -> Webhook:
    [webhook] = cartesia.decode(raw)
    return webhook


def normalized(raw: bytes, of: dict[str, Any] | None = None) -> Call:
    return cartesia.normalize(decoded(raw), of)


# verify


def verify(headers: dict[str, str], *secrets: str, raw: bytes = b"{}") -> None:
    cartesia.verify(Request(headers=headers, body=raw), secrets, now=1_789_374_618.0)


def test_the_configured_secret_is_accepted() -> None:
    verify({"x-webhook-secret": SECRET}, SECRET)


def test_any_of_several_secrets_is_accepted_while_they_are_rotated() -> None:
    verify({"x-webhook-secret": SECRET}, "the-next-one", SECRET)


def test_a_secret_beyond_ascii_is_accepted_as_servers_decode_it() -> None:
    verify({"x-webhook-secret": "grüß-4471".encode().decode("latin-1")}, "grüß-4471")


@pytest.mark.parametrize("sent", [SECRET + "x", SECRET[:-1], SECRET.upper(), " " + SECRET, "\u2603", "é"])
def test_another_secret_is_refused_with_the_remedy_and_without_either_secret(sent: str) -> None:
    with pytest.raises(SignatureError, match="X-Webhook-Secret is another one than configured") as caught:
        verify({"x-webhook-secret": sent}, SECRET)
    assert caught.value.cause == "mismatch"
    assert SECRET not in str(caught.value)
    assert sent not in str(caught.value)


@pytest.mark.parametrize("headers", [{}, {"x-webhook-secret": ""}, {"authorization": SECRET}])
def test_a_request_without_the_secret_is_refused_as_unsigned(headers: dict[str, str]) -> None:
    with pytest.raises(SignatureError, match="X-Webhook-Secret header is missing") as caught:
        verify(headers, SECRET)
    assert caught.value.cause == "missing"


@pytest.mark.parametrize("secrets", [(), ("",), ("", "")])
@pytest.mark.parametrize("sent", ["", "anything"])
def test_an_empty_configured_secret_matches_nothing(secrets: tuple[str, ...], sent: str) -> None:
    with pytest.raises(SignatureError):
        verify({"x-webhook-secret": sent}, *secrets)


def test_the_body_alone_is_never_believed() -> None:
    assert Cartesia.believes_body is False


# decode


@pytest.mark.parametrize(
    ("name", "event_type", "call_id", "fetching"),
    [
        ("call_started", "call.started", CALL_ID, "wait"),
        ("call_turn", "call.turn", CALL_ID, "skip"),
        ("call_completed", "call.ended", CALL_ID, "wait"),
        ("call_failed", "call.ended", "ac_Yd5pC1vNbe", "wait"),
        ("post_call_analysis", "call.analyzed", CALL_ID, "wait"),
        ("legacy.call_started", "call.started", "MZ8b1f60c2d7e34a90b5c4412fa0d96e77", "wait"),
        ("legacy.call_completed", "call.ended", "MZ8b1f60c2d7e34a90b5c4412fa0d96e77", "wait"),
    ],
)
def test_every_event_is_decoded(name: str, event_type: str, call_id: str, fetching: str) -> None:
    webhook = decoded(body(name))
    assert (webhook.type, webhook.call_id, webhook.record) == (event_type, call_id, fetching)
    assert webhook.event == name.removeprefix("legacy.")
    assert webhook.body == body(name)


def test_every_documented_event_has_a_fixture() -> None:
    assert set(EVENTS) <= set(WEBHOOKS)


def test_the_call_id_is_taken_from_the_first_place_that_has_one() -> None:
    assert decoded(changed("call_completed", call_id="ac_outer")).call_id == "ac_outer"
    assert decoded(changed("call_completed", call_id=...)).call_id == CALL_ID
    assert decoded(changed("call_completed", call_id="", call={"id": "ac_inner"})).call_id == "ac_inner"
    assert decoded(changed("call_completed", call_id=None, call=None, request_id="MZ1")).call_id == "MZ1"


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_a_known_event_without_any_call_id_is_refused_naming_where_it_could_be(event: str) -> None:
    with pytest.raises(UndecodableWebhook, match=r"call_id, call\.id and request_id"):
        cartesia.decode(msgspec.json.encode({"type": event, "call": {"status": "completed"}, "request_id": ""}))


def test_a_new_kind_of_event_about_a_call_is_kept_as_unknown() -> None:
    webhook = decoded(changed("call_started", type="call_transferred"))
    assert (webhook.type, webhook.event, webhook.record) == ("call.unknown", "call_transferred", "once")


def test_a_new_kind_of_event_about_no_call_is_not_for_us() -> None:
    assert cartesia.decode(b'{"type":"agent_deployed","agent_id":"agent_harbour_dental"}') == []


def test_the_same_fact_has_the_same_dedupe_key_even_when_sent_again_later() -> None:
    assert decoded(body("call_started")).dedupe_key == f"call_started:{CALL_ID}"
    assert decoded(body("call_completed")).dedupe_key == f"call_ended:{CALL_ID}"
    again = changed("call_completed", timestamp="2026-09-14T08:31:00Z", request_id="MZother")
    assert decoded(again).dedupe_key == decoded(body("call_completed")).dedupe_key


def test_different_facts_about_a_call_have_different_dedupe_keys() -> None:
    names = ("call_started", "call_turn", "call_completed", "post_call_analysis")
    keys = {decoded(body(name)).dedupe_key for name in names}
    keys.add(decoded(changed("call_completed", call_id="ac_other")).dedupe_key)
    keys.add(decoded(changed("call_completed", type="call_ended")).dedupe_key)  # which Cartesia does not send so far
    assert len(keys) == len(names) + 2


def test_a_call_ends_once_whether_it_completed_or_failed() -> None:
    completed, failed = decoded(body("call_completed")), decoded(changed("call_completed", type="call_failed"))
    assert completed.dedupe_key == failed.dedupe_key


def analysis_key(**fields: Any) -> str:
    return decoded(changed("post_call_analysis", **fields)).dedupe_key


def test_an_analysis_made_again_is_another_fact_but_one_sent_again_is_not() -> None:
    first = analysis_key(analysis={"summary": "Moved."})
    assert analysis_key(timestamp="2026-09-15T00:00:00Z", analysis={"summary": "Moved."}) == first
    assert analysis_key(analysis={"summary": "Cancelled."}) != first
    assert analysis_key(analysis=...) != first


def test_an_analysis_is_known_by_its_summary_since_the_record_shows_no_more_of_it() -> None:
    assert analysis_key(analysis={"summary": "Moved.", "topics": ["a"]}) == analysis_key(analysis={"summary": "Moved."})


def test_an_analysis_without_a_summary_is_known_by_all_that_it_has() -> None:
    first = changed("post_call_analysis", analysis={"score": 3, "topics": ["a", "b"]})
    again = changed("post_call_analysis", analysis={"topics": ["a", "b"], "score": 3})
    assert decoded(first).dedupe_key == decoded(again.replace(b'":', b'" : ')).dedupe_key
    assert decoded(first).dedupe_key != analysis_key(analysis={"score": 4, "topics": ["a", "b"]})


@pytest.mark.parametrize("event", ["call_turn", "call_transferred"])
def test_two_turns_or_unknown_events_of_a_call_are_different_facts(event: str) -> None:
    first = changed("call_turn", type=event)
    second = changed("call_turn", type=event, turn={"role": "user", "text": "Hello?"})
    assert decoded(first).dedupe_key == decoded(first).dedupe_key
    assert decoded(first).dedupe_key != decoded(second).dedupe_key


def test_a_timestamp_with_nanoseconds_is_cut_to_milliseconds() -> None:
    stamps = {"2025-07-03T19:14:12.360473878Z": "2025-07-03T19:14:12.360Z"}
    stamps["2026-09-14T10:30:11.999999999+02:00"] = "2026-09-14T08:30:11.999Z"
    for sent, expected in stamps.items():
        assert decoded(changed("call_turn", timestamp=sent)).happened_at == expected


def test_when_a_call_started_or_ended_is_told_by_the_call_and_not_by_the_envelope() -> None:
    assert decoded(body("call_started")).happened_at is None
    assert decoded(body("call_completed")).happened_at is None
    assert decoded(body("post_call_analysis")).happened_at is not None


@pytest.mark.parametrize("stamp", [..., None, "yesterday", {}, [1]])
def test_a_webhook_without_a_readable_timestamp_is_still_decoded(stamp: Any) -> None:
    assert decoded(changed("post_call_analysis", timestamp=stamp)).happened_at is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not the JSON"),
        (b"<html>", "not the JSON"),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b'{"call_id":"ac_1"}', "type"),
        (b'{"type":7,"call_id":"ac_1"}', r"\$\.type"),
        (b'{"type":"call_started","call_id":31337}', r"\$\.call_id"),
        (b'{"type":"call_started","call_id":"ac_1","note":"\xff"}', "UTF-8"),
        (b'{"type":"call_started","call_id":"ac_1","note":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"type":"post_call_analysis","call_id":"ac_1","analysis":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nest"),
    ],
)
def test_a_body_that_is_not_cartesias_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(UndecodableWebhook, match=reason) as caught:
        cartesia.decode(raw)
    assert "31337" not in str(caught.value)


@given(st.binary())
def test_no_bytes_make_decode_fail_in_an_unforeseen_way(raw: bytes) -> None:
    for hostile in (raw, b'{"type":"call_turn","call_id":"ac_1","turn":' + raw + b"}"):
        try:
            webhooks = cartesia.decode(hostile)
        except UndecodableWebhook:
            continue
        assert all(webhook.call_id for webhook in webhooks)


# fetch


@asynccontextmanager
async def vendor(handler: Any) -> AsyncIterator[Cartesia]:
    """A provider whose API is a real server on loopback."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    account = Account(
        name="clinic", provider="cartesia", api_key="sk_car_test", base_url=f"http://127.0.0.1:{port}/proxy/"
    )
    try:
        async with make_client(guarded=False, timeout_s=5) as http:
            yield Cartesia(account, http)
    finally:
        await runner.cleanup()


def answering(status: int, raw: bytes, **headers: str) -> Any:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=raw, headers=headers)

    return handler


async def test_a_record_is_fetched_with_key_and_version() -> None:
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(body=body("rest.get_call"))

    async with vendor(handler) as provider:
        assert await provider.fetch(CALL_ID) == record()
    [request] = seen
    assert request.path == f"/proxy/agents/calls/{CALL_ID}"
    assert request.headers["Authorization"] == "Bearer sk_car_test"
    assert request.headers["Cartesia-Version"] == "2026-03-01"


async def test_an_id_cannot_lead_to_another_route() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response(body=body("rest.get_call"))

    async with vendor(handler) as provider:
        await provider.fetch("../agents?x#é")
    assert seen == ["/proxy/agents/calls/..%2Fagents%3Fx%23%C3%A9"]


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (404, b'{"error_code":null,"title":"Not found","message":"No such call","request_id":"r"}'),
        (401, b"Unauthorized: bad key"),
        (500, b"<html>"),
        (302, b""),
        (200, b"<html>"),
        (200, b""),
        (200, b"[]"),
        (200, b"null"),
        (200, b"{}"),
        (200, b'{"data":[{"id":"ac_7Rk2WmQx9T"}],"next_page":null}'),
    ],
)
async def test_an_answer_that_is_no_call_confirms_nothing_and_may_be_asked_again(status: int, raw: bytes) -> None:
    async with vendor(answering(status, raw)) as provider:
        with pytest.raises(RecordNotReady) as caught:
            await provider.fetch(CALL_ID)
    assert caught.value.retry_after is None
    assert "sk_car_test" not in str(caught.value)


async def test_a_rate_limit_says_how_long_to_wait() -> None:
    async with vendor(answering(429, body("rest.error_429"), **{"Retry-After": "17"})) as provider:
        with pytest.raises(RecordNotReady, match="429") as caught:
            await provider.fetch(CALL_ID)
    assert caught.value.retry_after == 17


async def test_a_rate_limit_without_a_time_is_left_to_the_schedule() -> None:
    async with vendor(answering(429, body("rest.error_429"))) as provider:
        with pytest.raises(RecordNotReady, match="429") as caught:
            await provider.fetch(CALL_ID)
    assert caught.value.retry_after is None


# is_ready


@pytest.mark.parametrize("name", ["call_completed", "call_failed"])
@pytest.mark.parametrize(
    ("shown", "ready"),
    [
        ({"status": "started", "end_time": None, "end_reason": None}, False),
        ({"status": "created"}, False),
        ({"status": ["completed"]}, False),
        ({}, False),
        ({"status": "completed"}, True),
        ({"status": "failed"}, True),
        ({"status": "cancelled"}, True),
        ({"status": "started", "end_time": "2026-09-14T08:30:17Z"}, True),
        ({"status": "started", "end_reason": "inactivity"}, True),
    ],
)
def test_an_ended_call_is_ready_once_its_record_shows_the_end(name: str, shown: dict[str, Any], ready: bool) -> None:
    assert cartesia.is_ready(decoded(body(name)), shown) is ready


@pytest.mark.parametrize("name", ["call_started", "post_call_analysis"])
def test_a_start_or_an_analysis_does_not_wait_for_the_end(name: str) -> None:
    assert cartesia.is_ready(decoded(body(name)), {"status": "started", "summary": None})


# awaits


def test_the_analysis_of_a_call_with_a_transcript_is_awaited() -> None:
    ended = decoded(body("call_completed"))
    assert cartesia.awaits(ended, {**record(), "summary": None}) == ("call.analyzed",)
    assert cartesia.awaits(ended, {**record(), "transcript": None}) == ("call.analyzed",)  # the webhook had it
    assert cartesia.awaits(decoded(with_call("call_completed", transcript=None)), record()) == ("call.analyzed",)


def test_nothing_is_awaited_after_the_analysis() -> None:
    assert cartesia.awaits(decoded(body("post_call_analysis")), record()) == ()
    assert cartesia.awaits(decoded(body("post_call_analysis")), None) == ()


def test_no_analysis_is_awaited_of_a_call_that_failed() -> None:
    failed = decoded(body("call_failed"))
    assert cartesia.awaits(failed, record("call_failed")["call"]) == ()
    assert cartesia.awaits(failed, None) == ()
    assert cartesia.awaits(decoded(body("call_completed")), {**record(), "status": "failed"}) == ()


@pytest.mark.parametrize("transcript", [None, [], "", ["odd"]])
def test_no_analysis_is_awaited_where_nobody_said_anything(transcript: Any) -> None:
    silent = decoded(with_call("call_completed", transcript=None))
    assert cartesia.awaits(silent, {**record(), "transcript": transcript}) == ()
    assert cartesia.awaits(silent, {**record(), "status": "cancelled", "transcript": transcript}) == ()


def test_an_analysis_may_still_come_under_zero_retention() -> None:
    silent = decoded(with_call("call_completed", transcript=None))
    assert cartesia.awaits(silent, record("rest.get_call.zdr")) == ("call.analyzed",)
    assert cartesia.awaits(silent, {**record("rest.get_call.zdr"), "status": "failed"}) == ()


def test_the_analysis_is_awaited_where_nothing_tells() -> None:
    assert cartesia.awaits(decoded(with_call("call_completed", transcript=None)), None) == ("call.analyzed",)


def test_nothing_is_awaited_of_a_call_that_was_deleted() -> None:
    assert cartesia.awaits(decoded(body("call_completed")), record("rest.get_call.redacted")) == ()
    redacted = {**record("rest.get_call.redacted"), "zdr_enabled": True}
    assert cartesia.awaits(decoded(body("call_completed")), redacted) == ()


# facts


def listed(**fields: Any) -> dict[str, Any]:
    """A listed call: its record without a transcript."""
    return {**{key: value for key, value in record().items() if key != "transcript"}, **fields}


def facts(of: dict[str, Any]) -> list[Webhook]:
    return [decoded(raw) for raw in cartesia.facts(of)]


def test_the_facts_of_a_listed_call_are_the_webhooks_that_should_have_come() -> None:
    summary = record("post_call_analysis")["analysis"]["summary"]
    end, analysis = facts(listed(summary=summary))
    assert (end.event, analysis.event) == ("call_completed", "post_call_analysis")
    for fact, name in ((end, "call_completed"), (analysis, "post_call_analysis")):
        sent = decoded(body(name))
        assert (fact.dedupe_key, fact.call_id, fact.type, fact.record) == (
            sent.dedupe_key,
            sent.call_id,
            sent.type,
            sent.record,
        )
        assert cartesia.normalize(fact, record()) == cartesia.normalize(sent, record())


def test_the_fact_of_a_failed_call_is_its_failure() -> None:
    [fact] = facts(record("call_failed")["call"])
    assert fact.event == "call_failed"
    assert fact.dedupe_key == decoded(body("call_failed")).dedupe_key
    assert cartesia.normalize(fact, None).end == End(reason="no_answer", provider_reason="dial_no_answer")


def test_a_call_found_cancelled_is_the_same_fact_as_whatever_webhook_told_of_its_end() -> None:
    [fact] = facts(listed(status="cancelled", summary=None, end_reason=None))
    assert fact.event == "call_completed"
    assert fact.dedupe_key == decoded(body("call_completed")).dedupe_key
    assert cartesia.normalize(fact, None).end == End(reason="cancelled", by="system", provider_reason="cancelled")


def test_a_summary_with_half_a_character_is_the_same_fact_from_the_list_as_from_the_webhook() -> None:
    cut = changed("post_call_analysis", analysis={"summary": "Moved XX"}).replace(b"XX", b"\\ud83e")
    [_, fact] = facts(listed(summary="Moved \N{REPLACEMENT CHARACTER}"))
    assert fact.dedupe_key == decoded(cut).dedupe_key


@pytest.mark.parametrize("status", ["created", "started", "active", "a new word", None])
def test_a_call_that_is_not_over_has_no_facts(status: str | None) -> None:
    assert cartesia.facts(listed(status=status, end_time=None, end_reason=None)) == []


def test_a_call_in_a_new_word_that_has_an_end_is_over() -> None:
    assert [fact.event for fact in facts(listed(status="archived", summary=None))] == ["call_completed"]


def test_a_redacted_call_has_no_facts() -> None:
    assert cartesia.facts(record("rest.get_call.redacted")) == []
    assert cartesia.facts(listed(redacted_at="2026-09-20T06:00:00Z")) == []


@pytest.mark.parametrize("call_id", [None, "", 7])
def test_a_listed_call_without_an_id_has_no_facts(call_id: Any) -> None:
    assert cartesia.facts(listed(id=call_id)) == []


def test_a_call_is_deleted_once_it_is_redacted() -> None:
    assert cartesia.is_deleted(record("rest.get_call.redacted"))
    assert not cartesia.is_deleted(record())
    assert not cartesia.is_deleted(listed(redacted_at=None))


# normalize


def test_a_completed_call_is_normalized_whole() -> None:
    call = normalized(body("call_completed"), record())
    assert call == Call(
        id=CALL_ID,
        provider="cartesia",
        account="clinic",
        status="ended",
        agent=Agent(id="agent_harbour_dental", name="Harbour Dental reception", version="av_12"),
        channel="phone",
        direction="inbound",
        from_="+15550100177",
        to="+15550100123",
        end=End(reason="user_hangup", by="user", provider_reason="client_hangup"),
        started_at="2026-09-14T08:30:02.125Z",
        ended_at="2026-09-14T08:30:17.400Z",
        duration_ms=15_275,
        transcript=[
            Turn(
                role="agent",
                text="Harbour Dental, good morning. How can I help?",
                start_ms=420,
                end_ms=3918,
                interrupted=False,
                latency={"tts_ttfb_ms": 187},
            ),
            Turn(
                role="user",
                text="Mirela Okafor here – can I move my cleaning to Friday?",
                start_ms=4350,
                end_ms=7100,
                latency={"vad_buffer_ms": 240, "stt_ttfb_ms": 92},
            ),
            Turn(
                role="agent",
                text="Let me look at Friday",
                start_ms=7800,
                end_ms=9050,
                interrupted=True,
                latency={"tts_ttfb_ms": 221},
            ),
            Turn(
                role="tool",
                tool=Tool(
                    id="tc_free_slots",
                    name="free_slots",
                    arguments={"day": "2026-09-18", "minutes": 30},
                    result='{"slots":["09:15","16:40"]}',
                ),
            ),
            Turn(role="tool", tool=Tool(id="tc_note", name="add_note")),
            Turn(role="system", text="slots_offered", start_ms=9100, end_ms=9100),
            Turn(role="user", text="A quarter past nine suits Zoë and me.", start_ms=9600, end_ms=11_240),
            Turn(role="agent", text="Booked. Goodbye!", start_ms=11_900, end_ms=14_000, interrupted=False),
            Turn(role="system", text="slots_shown", start_ms=14_100, end_ms=14_100),
        ],
        analysis=Analysis(summary="Cleaning moved to Friday morning."),
        metadata={"clinic": "harbour-3", "campaign": None},
    )


def test_neither_sip_credentials_nor_log_data_leave_through_the_call() -> None:
    raw = msgspec.json.encode(normalized(body("call_completed"), record()))
    for secret in (b"quartz-lantern-62", b"tok_9f2c77", b"P-20731", b"CA58d1f0"):
        assert secret in body("call_completed")
        assert secret not in raw


SECRETS = {
    "telephony_params": {
        "to": "sip:desk:MARK-to@trunk.example",
        "from": "+15550100177",
        "call_sid": "MARK-sid",
        "direction": "inbound",
        "headers": {"Authorization": "Digest MARK-header", "X-Token": "MARK-token"},
        "parameters": {"sip_password": "MARK-parameter", "deeper": {"auth": ["MARK-deeper"]}},
        "connection_type": "websocket",
        "auth": "MARK-auth",
    },
    "deployment": {"env": {"OPENAI_API_KEY": "MARK-env"}, "secrets": ["MARK-secrets"]},
    "deployment_id": "MARK-deployment",
    "access_token": "MARK-access",
    "websocket_url": "wss://api.cartesia.ai/?access_token=MARK-url",
    "agent": {"system_prompt": "MARK-prompt"},
    "webhook": {"secret": "MARK-webhook"},
    "transcript": [
        {"role": "system", "log_event": {"event": "seen", "metadata": {"key": "MARK-log"}}},
        {"role": "system", "log_metric": {"name": "tries", "value": "MARK-metric"}},
        {"role": "assistant", "text": "Good morning.", "llm_request": "MARK-request"},
    ],
}


@pytest.mark.parametrize("name", WEBHOOKS)
def test_no_secret_of_webhook_or_record_is_in_the_call(name: str) -> None:
    envelope = {**record(name), "secret": "MARK-top", "headers": {"x-webhook-secret": "MARK-top-header"}}
    envelope["call"] = {**envelope.get("call", record()), **SECRETS}
    webhook = msgspec.structs.replace(decoded(body(name)), body=msgspec.json.encode(envelope))
    for fetched in (None, {**record(), **SECRETS}, {**record("rest.get_call.zdr"), **SECRETS}):
        raw = msgspec.json.encode(cartesia.normalize(webhook, fetched))
        assert b"Good morning." in raw
        assert b"MARK" not in raw


def test_under_zero_retention_the_webhooks_summary_survives_a_record_without_one() -> None:
    call = normalized(body("post_call_analysis"), record("rest.get_call.zdr"))
    assert call.analysis == Analysis(summary="A patient moved a cleaning to Friday, 09:15.")
    assert call.privacy == Privacy(storage="none")


def test_under_zero_retention_the_webhooks_transcript_survives_a_record_without_one() -> None:
    call = normalized(body("call_completed"), record("rest.get_call.zdr"))
    assert call.transcript is not None
    assert call.transcript[1].text == "Mirela Okafor here – can I move my cleaning to Friday?"
    assert call.privacy == Privacy(storage="none")


@pytest.mark.parametrize("word", [False, None, "no"])
def test_a_call_without_zero_retention_is_kept_in_full(word: Any) -> None:
    assert normalized(with_call("call_completed", zdr_enabled=word)).privacy == Privacy(storage="full")


def test_a_redacted_record_says_when_and_nothing_is_made_up() -> None:
    call = normalized(body("post_call_analysis"), record("rest.get_call.redacted"))
    assert call.privacy == Privacy(storage="full", redacted_at="2026-09-20T06:00:00.000Z")
    assert (call.transcript, call.from_, call.to, call.metadata) == (None, None, None, {})


@pytest.mark.parametrize("name", WEBHOOKS)
def test_what_was_deleted_does_not_come_back_by_a_webhook_from_before(name: str) -> None:
    call = normalized(body(name), record("rest.get_call.redacted"))
    assert (call.transcript, call.analysis, call.from_, call.to, call.metadata) == (None, None, None, None, {})
    assert (call.status, call.error) == ("ended", None)


def test_what_a_deletion_leaves_is_a_call_without_anything_sensitive() -> None:
    erased = Webhook(event="", type="call.erased", call_id=CALL_ID, dedupe_key="call.erased:1")
    assert cartesia.normalize(erased, record("rest.delete_call")) == Call(
        id=CALL_ID,
        provider="cartesia",
        account="clinic",
        status="ended",
        agent=Agent(id="agent_harbour_dental", name="Harbour Dental reception", version="av_12"),
        channel="phone",
        end=End(reason="user_hangup", by="user", provider_reason="client_hangup"),
        started_at="2026-09-14T08:30:02.125Z",
        ended_at="2026-09-14T08:30:17.400Z",
        duration_ms=15_275,
        privacy=Privacy(storage="full", redacted_at="2026-09-21T10:42:07.318Z"),
    )


def test_a_completed_call_is_whole_without_its_record() -> None:
    with_record = normalized(body("call_completed"), record())
    without = normalized(body("call_completed"))
    assert without == msgspec.structs.replace(with_record, analysis=None)


def test_a_failed_call_tells_why_it_never_connected() -> None:
    call = normalized(body("call_failed"))
    assert (call.status, call.channel, call.direction) == ("failed", "sip", "outbound")
    assert call.end == End(reason="no_answer", provider_reason="dial_no_answer")
    assert call.error == "the callee did not pick up"
    assert call.transcript is None
    assert call.duration_ms == 30_500


def test_a_started_call_is_ongoing_and_has_no_end() -> None:
    call = normalized(body("call_started"))
    assert (call.status, call.end, call.ended_at, call.duration_ms) == ("ongoing", None, None, None)


def test_an_analysis_brings_its_summary_where_the_record_has_none_yet() -> None:
    said = "A patient moved a cleaning to Friday, 09:15."
    for summary in (None, ""):
        call = normalized(body("post_call_analysis"), {**record(), "summary": summary})
        assert call.analysis == Analysis(summary=said)
        assert call.transcript is not None
    assert normalized(body("post_call_analysis")).analysis == Analysis(summary=said)
    assert normalized(body("post_call_analysis")).status == "ended"


def test_what_an_analysis_has_beside_its_summary_does_not_leave() -> None:
    for summary, shown in ((None, "A patient moved a cleaning to Friday, 09:15."), ("Moved.", "Moved.")):
        call = normalized(body("post_call_analysis.more"), {**record(), "summary": summary})
        assert call.analysis == Analysis(summary=shown)
    assert normalized(changed("post_call_analysis", analysis={"topics": []})).analysis is None


def test_the_records_own_summary_wins() -> None:
    call = normalized(body("post_call_analysis"), record())
    assert call.analysis == Analysis(summary="Cleaning moved to Friday morning.")


def test_a_turn_is_a_call_with_that_turn_alone() -> None:
    call = normalized(body("call_turn"))
    assert (call.status, call.channel, call.agent.id) == ("ongoing", "other", "agent_harbour_dental")
    assert call.transcript == [
        Turn(role="agent", text="Let me look at Friday", start_ms=7800, end_ms=9050, interrupted=True),
        Turn(
            role="tool",
            tool=Tool(
                name="free_slots",
                arguments={"day": "2026-09-18", "minutes": 30},
                result='{"slots":["09:15","16:40"]}',
            ),
        ),
    ]


def test_the_envelope_of_2025_carries_the_transcript_in_its_body() -> None:
    call = normalized(body("legacy.call_completed"))
    assert (call.status, call.agent.id, call.channel) == ("ended", "agent_night_line", "other")
    assert call.end == End(reason="unknown")
    assert call.transcript == [
        Turn(role="agent", text="Night line, this is Tomas.", start_ms=600, end_ms=2750, latency={"tts_ttfb_ms": 242}),
        Turn(role="user", text="Wrong number, sorry.", start_ms=3100, end_ms=5313),
    ]
    assert normalized(body("legacy.call_started")).status == "ongoing"


def test_the_end_reason_beside_the_call_counts_too() -> None:
    raw = changed("call_completed", end_reason="max_duration", call={**record(), "end_reason": None})
    assert normalized(raw).end == End(reason="max_duration", by="system", provider_reason="max_duration")


@pytest.mark.parametrize(
    ("event", "word", "status"),
    [
        ("call_started", "created", "ongoing"),
        ("call_started", "started", "ongoing"),
        ("call_started", "active", "ongoing"),
        ("call_started", "completed", "ended"),
        ("call_completed", "started", "ended"),
        ("call_completed", "failed", "failed"),  # the record is believed, the unsigned webhook is not
        ("call_failed", "completed", "ended"),
        ("call_failed", "a new word", "failed"),
        ("post_call_analysis", "failed", "failed"),
        ("post_call_analysis", "started", "ended"),
        ("call_transferred", "created", "created"),
        ("call_transferred", "cancelled", "ended"),
        ("call_transferred", None, "created"),
    ],
)
def test_the_status_is_the_records_but_never_behind_the_event(event: str, word: str | None, status: str) -> None:
    raw = changed("call_started", type=event, call={"id": CALL_ID, "status": word})
    assert normalized(raw).status == status


def test_a_call_whose_status_is_a_new_word_has_ended_if_it_has_an_end() -> None:
    raw = changed("call_completed", type="call_transferred", call={**record(), "status": "archived"})
    assert normalized(raw).status == "ended"


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("agent_hangup", End(reason="agent_hangup", by="agent", provider_reason="agent_hangup")),
        ("client_hangup", End(reason="user_hangup", by="user", provider_reason="client_hangup")),
        ("client_disconnected", End(reason="user_hangup", by="user", provider_reason="client_disconnected")),
        ("api_cancelled", End(reason="cancelled", by="system", provider_reason="api_cancelled")),
        ("max_duration", End(reason="max_duration", by="system", provider_reason="max_duration")),
        ("inactivity", End(reason="inactivity", by="system", provider_reason="inactivity")),
        ("dial_busy", End(reason="busy", provider_reason="dial_busy")),
        ("dial_failed", End(reason="dial_failed", provider_reason="dial_failed")),
        ("dial_no_answer", End(reason="no_answer", provider_reason="dial_no_answer")),
        ("error", End(reason="provider_error", by="system", provider_reason="error")),
        ("moonrise", End(reason="unknown", provider_reason="moonrise")),
        (None, End(reason="unknown")),
    ],
)
def test_every_reason_for_the_end_is_mapped_and_a_new_word_is_kept(word: str | None, end: End) -> None:
    raw = changed("call_completed", end_reason=word, call={"id": CALL_ID, "end_reason": word})
    assert normalized(raw).end == end


def test_a_call_cancelled_in_the_words_of_2025_has_that_as_its_reason() -> None:
    call = normalized(body("legacy.call_completed"), {"id": "ac_1", "status": "cancelled"})
    assert call.end == End(reason="cancelled", by="system", provider_reason="cancelled")


@pytest.mark.parametrize(
    ("fields", "channel"),
    [
        ({"telephony_params": None}, "web"),
        ({"telephony_params": {}}, "web"),
        ({"telephony_account_type": "sip_trunk"}, "sip"),
        ({"telephony_account_type": "twilio"}, "phone"),
        ({"telephony_account_type": "cartesia"}, "phone"),
        ({"telephony_account_type": "a new word"}, "phone"),
        ({"telephony_account_type": None}, "phone"),
    ],
)
def test_the_channel_follows_the_telephony(fields: dict[str, Any], channel: str) -> None:
    assert normalized(with_call("call_started", **fields)).channel == channel


@pytest.mark.parametrize("word", [None, "sideways", "", 3, ["inbound"]])
def test_a_direction_that_is_neither_is_not_known(word: Any) -> None:
    assert normalized(with_call("call_started", telephony_params={"direction": word, "to": "x"})).direction is None


@pytest.mark.parametrize(
    ("row", "interrupted"),
    [
        ({"role": "assistant"}, None),
        ({"role": "assistant", "was_interrupted": True}, True),
        ({"role": "assistant", "was_interrupted": False}, False),
        ({"role": "assistant", "was_interrupted": False, "end_reason": "interrupted"}, True),
        ({"role": "assistant", "was_interrupted": "yes"}, None),
        ({"role": "assistant", "end_reason": "interrupted"}, True),
        ({"role": "assistant", "end_reason": "tts_completed"}, False),
        ({"role": "assistant", "end_reason": "call_ended"}, False),
        ({"role": "assistant", "end_reason": "a new word"}, None),
        ({"role": "user", "was_interrupted": True, "end_reason": "interrupted"}, None),
    ],
)
def test_only_an_agents_turn_can_be_interrupted(row: dict[str, Any], interrupted: bool | None) -> None:
    [turn] = normalized(changed("call_turn", turn={"text": "Well", **row})).transcript or []
    assert turn.interrupted is interrupted


@pytest.mark.parametrize(
    ("result", "kept"),
    [("done", "done"), ("", ""), (None, None), ({"ok": [1, "é"]}, '{"ok":[1,"é"]}'), (7, "7"), (False, "false")],
)
def test_a_tools_result_is_text(result: Any, kept: str | None) -> None:
    turn = {
        "role": "assistant",
        "text": "Well",
        "tool_calls": [{"name": "f", "arguments": '{"a":1}', "result": result}],
    }
    [_, tool_turn] = normalized(changed("call_turn", turn=turn)).transcript or []
    assert tool_turn.tool == Tool(name="f", arguments={"a": 1}, result=kept)


def test_a_turn_that_only_calls_a_tool_says_nothing() -> None:
    raw = changed("call_turn", turn={"role": "assistant", "text": "", "tool_calls": [{"name": "f"}]})
    assert normalized(raw).transcript == [Turn(role="tool", tool=Tool(name="f"))]


@pytest.mark.parametrize("role", ["narrator", None, 5, ["user"]])
def test_a_new_role_is_the_systems(role: Any) -> None:
    [turn] = normalized(changed("call_turn", turn={"role": role, "text": "Beep"})).transcript or []
    assert (turn.role, turn.text) == ("system", "Beep")


def test_times_beyond_reason_are_not_known() -> None:
    raw = changed("call_turn", turn={"role": "user", "text": "Hi", "start_timestamp": 1e308, "end_timestamp": "4.2"})
    [turn] = normalized(raw).transcript or []
    assert (turn.start_ms, turn.end_ms) == (None, None)


SETTLED = Webhook(event="", type="call.settled", call_id=CALL_ID, dedupe_key="call.settled:1", body=b"")


def test_a_settled_call_is_normalized_from_its_record_alone() -> None:
    assert cartesia.normalize(SETTLED, record()) == normalized(body("call_completed"), record())
    assert cartesia.normalize(SETTLED, record("call_failed")["call"]).status == "failed"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"status": "completed"}, "ended"),
        ({"status": "cancelled"}, "ended"),
        ({"status": "failed"}, "failed"),
        ({"status": "started"}, "ended"),  # it has an end, which `is_ready` believes too
        ({"status": "started", "end_time": None, "end_reason": None}, "ongoing"),
        ({"status": "a new word"}, "ended"),
        ({"status": "a new word", "end_time": None, "end_reason": None}, "created"),
    ],
)
def test_a_settled_call_is_over_if_its_record_says_so(fields: dict[str, Any], status: str) -> None:
    call = cartesia.normalize(SETTLED, {**record(), **fields})
    assert call.status == status
    assert (call.end is not None) is (status in ("ended", "failed"))


def test_a_settled_call_whose_record_is_gone_is_still_a_call() -> None:
    assert cartesia.normalize(SETTLED, None).id == CALL_ID


# whatever the vendor sends


odd_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "id", "summary", "event", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
IDS = ("type", "call_id", "id", "request_id")


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each node that may be replaced: all but the ids that decode needs."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if key == "call" or key not in IDS:
            yield (*path, key)
        yield from nodes(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, name: str) -> dict[str, Any]:
    document = copy.deepcopy(record(name))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(nodes(document))))
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = draw(odd_json)
    return document


@given(st.data())
def test_normalize_never_fails_and_always_makes_a_valid_call(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(WEBHOOKS))
    envelope = data.draw(mutated(name))
    fetched = data.draw(st.none() | st.sampled_from(["rest.get_call", "rest.get_call.zdr"]).flatmap(mutated))
    original = decoded(body(name))
    webhook = msgspec.structs.replace(original, body=msgspec.json.encode(envelope))
    call = cartesia.normalize(webhook, fetched)
    assert call.id == original.call_id
    assert msgspec.json.decode(msgspec.json.encode(call), type=Call, strict=True) == call
    assert isinstance(cartesia.is_ready(webhook, fetched or {}), bool)
    assert set(cartesia.awaits(webhook, fetched)) <= {"call.analyzed"}
    for fact in cartesia.facts(fetched or {}):
        assert decoded(fact).type in ("call.ended", "call.analyzed")


@given(odd_json)
def test_normalize_takes_any_json_for_a_body(value: Any) -> None:
    webhook = msgspec.structs.replace(decoded(body("call_completed")), body=msgspec.json.encode(value))
    assert cartesia.normalize(webhook, None).id == CALL_ID
