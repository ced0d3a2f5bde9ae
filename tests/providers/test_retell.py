import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from aftercall.call import Call, End, EndedBy, EndReason, Percentiles, Tool, Turn
from aftercall.client import make_client
from aftercall.errors import RecordNotReady, SignatureError, UndecodableWebhook
from aftercall.providers.base import Account, Request, Webhook
from aftercall.providers.retell import Retell
from aftercall.providers.retell_tables import REASONS
from aftercall.providers.shapes import decode_json

FIXTURES = Path(__file__).parents[1] / "fixtures" / "retell"
VECTORS = json.loads((FIXTURES / "vectors.json").read_text())
ACCOUNT = Account(name="harbour", provider="retell", api_key="key_5b1e7a40c29d4f83")
CALL_ID = "call_5f0c2a9d7be14c6e"

retell = Retell(ACCOUNT)


def body(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def load(name: str) -> dict[str, Any]:
    return json.loads(body(name))


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def altered(name: str, **changes: Any) -> bytes:
    """A fixture's webhook with other values in its call; `...` takes a key away."""
    envelope = load(name)
    call = {**envelope["call"], **changes}
    return dump({**envelope, "call": {key: value for key, value in call.items() if value is not ...}})


def decode_one(webhook_body: bytes) -> Webhook:
    (webhook,) = retell.decode(webhook_body)
    return webhook


def normalized(webhook_body: bytes, record: dict[str, Any] | None = None) -> Call:
    return retell.normalize(decode_one(webhook_body), record)


# verify


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_every_signature_gets_its_verdict(vector):
    request = Request(headers=vector["headers"], body=vector["body"].encode())
    if vector["verdict"] == "valid":
        retell.verify(request, vector["secrets"], vector["now"])
    else:
        with pytest.raises(SignatureError) as refused:
            retell.verify(request, vector["secrets"], vector["now"])
        assert refused.value.cause == vector["verdict"]


def test_a_refusal_names_the_remedy_and_no_secret():
    wrong = next(vector for vector in VECTORS if vector["name"] == "wrong key")
    with pytest.raises(SignatureError) as refused:
        retell.verify(
            Request(headers=wrong["headers"], body=wrong["body"].encode()),
            wrong["secrets"],
            wrong["now"],
        )
    assert "webhook badge" in str(refused.value)
    assert wrong["secrets"][0] not in str(refused.value)
    assert CALL_ID not in str(refused.value)


# decode


@pytest.mark.parametrize(
    ("name", "event_type", "record"),
    [
        ("call_started", "call.started", "wait"),
        ("call_ended", "call.ended", "wait"),
        ("call_ended.web_call", "call.ended", "wait"),
        ("call_ended.dial_no_answer", "call.ended", "wait"),
        ("call_analyzed", "call.analyzed", "wait"),
        ("call_analyzed.basic_attributes_only", "call.analyzed", "wait"),
        ("transcript_updated", "call.turn", "skip"),
        ("transfer_started", "call.transfer", "skip"),
    ],
)
def test_each_event_is_recognised(name, event_type, record):
    webhook = decode_one(body(name))
    envelope = load(name)
    assert (webhook.event, webhook.type) == (envelope["event"], event_type)
    assert webhook.call_id == envelope["call"]["call_id"]
    assert webhook.record == record
    assert webhook.body == body(name)


@pytest.mark.parametrize("event", ["transfer_bridged", "transfer_cancelled", "transfer_ended"])
def test_every_stage_of_a_transfer_is_a_transfer(event):
    assert decode_one(dump({"event": event, "call": {"call_id": CALL_ID}})).type == "call.transfer"


@pytest.mark.parametrize("name", ["call_inbound", "chat_ended"])
def test_what_is_not_about_a_call_is_not_for_us(name):
    assert retell.decode(body(name)) == []
    assert retell.decode(dump({**load(name), "call": {"call_id": CALL_ID}})) == [], "also with a call beside it"


@pytest.mark.parametrize("call", [None, {}, {"call_id": ""}])
def test_an_unknown_event_without_a_call_id_is_not_for_us(call):
    assert retell.decode(dump({"event": "agent_published", "call": call, "data": call})) == []


@pytest.mark.parametrize("data", [[], "x", 3, {"call_id": 7}])
def test_what_else_may_stand_where_the_call_once_stood_does_not_matter(data):
    assert retell.decode(dump({"event": "agent_published", "data": data})) == []


@pytest.mark.parametrize("call", [[], "x", 3, {"call_id": 7}])
def test_a_call_that_is_no_call_is_not_what_retell_sends(call):
    with pytest.raises(UndecodableWebhook):
        retell.decode(dump({"event": "agent_published", "call": call}))


def test_an_unknown_event_of_a_call_is_kept():
    webhook = decode_one(dump({"event": "call_scored", "call": {"call_id": CALL_ID, "call_status": "ended"}}))
    assert (webhook.event, webhook.type, webhook.record) == ("call_scored", "call.unknown", "once")
    assert retell.normalize(webhook, None).status == "ended"


def test_the_envelope_of_2024_is_still_read():
    envelope = load("call_ended")
    call = normalized(dump({"event": "call_ended", "data": envelope["call"]}))
    assert call == normalized(body("call_ended"))


@pytest.mark.parametrize(
    "webhook_body",
    [
        b"",
        b"null",
        b"[]",
        b'"call_ended"',
        b"{}",
        b'{"event":"call_ended"',
        b'{"event":null,"call":{"call_id":"call_1"}}',
        b'{"call":{"call_id":"call_1"}}',
        b'{"event":"call_ended"}',
        b'{"event":"call_ended","call":null}',
        b'{"event":"call_ended","call":[]}',
        b'{"event":"call_ended","call":{}}',
        b'{"event":"call_ended","call":{"call_id":""}}',
        b'{"event":"call_ended","call":{"call_id":5}}',
        b'{"event":"call_ended","call":{"call_id":"call_1","transcript":"\xff"}}',
        b'{"event":"call_ended","call":{"call_id":"call_1","transcript":"\x01"}}',
        b'{"event":"call_ended","call":{"call_id":"call_1","metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
    ids=lambda webhook_body: webhook_body[:70],
)
def test_a_body_that_is_not_retells_is_undecodable(webhook_body):
    with pytest.raises(UndecodableWebhook):
        retell.decode(webhook_body)


def test_the_reason_why_a_body_is_undecodable_keeps_the_values_to_itself():
    with pytest.raises(UndecodableWebhook) as refused:
        retell.decode(b'{"event":["+15550100123"],"call":{"call_id":"call_1"}}')
    assert "$.event" in str(refused.value)
    assert "+15550100123" not in str(refused.value)


def test_half_an_emoji_or_a_number_out_of_range_costs_no_webhook():
    webhook_body = (
        b'{"event":"call_ended","call":{"call_id":"call_1","duration_ms":1e999,'
        b'"transcript_object":[{"role":"user","content":"bye \\ud83d"}]}}'
    )
    call = normalized(webhook_body)
    assert call.duration_ms is None
    assert call.transcript == [Turn(role="user", text="bye \ufffd")]
    assert msgspec.json.decode(msgspec.json.encode(call), type=Call) == call


@settings(deadline=None)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.text(max_size=9), st.lists).map(dump))
def test_no_body_breaks_decode(webhook_body):
    try:
        webhooks = retell.decode(webhook_body)
    except UndecodableWebhook:
        return
    assert webhooks == []


# dedupe keys


def key(webhook_body: bytes) -> str:
    return decode_one(webhook_body).dedupe_key


@pytest.mark.parametrize("name", ["call_started", "call_ended"])
def test_one_start_and_one_end_per_call_whatever_their_content(name):
    assert key(altered(name, agent_name="Renamed")) == key(body(name))
    assert key(altered(name, call_id="call_other")) != key(body(name))


def test_start_end_and_analysis_are_three_facts():
    assert len({key(body(name)) for name in ("call_started", "call_ended", "call_analyzed")}) == 3


def test_an_analysis_sent_again_is_a_copy_however_it_is_spelled():
    call = load("call_analyzed")["call"]
    analysis = dict(reversed(call["call_analysis"].items()))
    again = json.dumps({"call": {**call, "agent_name": "Renamed", "call_analysis": analysis}, "event": "call_analyzed"})
    assert key(again.encode()) == key(body("call_analyzed"))


def test_an_analysis_that_was_run_again_with_another_result_is_news():
    analysis = {**load("call_analyzed")["call"]["call_analysis"], "user_sentiment": "Negative"}
    assert key(altered("call_analyzed", call_analysis=analysis)) != key(body("call_analyzed"))
    assert key(altered("call_analyzed", call_analysis=...)) == key(altered("call_analyzed", call_analysis=None))


def test_a_call_found_by_reconciling_gets_the_keys_of_its_webhooks():
    record = load("rest.get_call")
    assert key(dump({"event": "call_ended", "call": record})) == key(body("call_ended"))
    assert key(dump({"event": "call_analyzed", "call": record})) == key(body("call_analyzed"))


@pytest.mark.parametrize("event", ["transcript_updated", "transfer_started", "call_scored"])
def test_an_event_that_may_repeat_is_told_from_its_copy_by_its_body(event):
    first = dump({"event": event, "call": {"call_id": CALL_ID, "transcript": "Agent: one"}})
    second = dump({"event": event, "call": {"call_id": CALL_ID, "transcript": "Agent: one\nUser: two"}})
    assert key(first) == key(first)
    assert key(first) != key(second)


# fetch


@asynccontextmanager
async def api(
    status: int, answer: bytes, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[Retell, list[web.Request]]]:
    """A provider whose API, on loopback, always gives the same answer; and the requests that it got."""
    requests: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        requests.append(request)
        return web.Response(status=status, body=answer, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        async with make_client(guarded=False) as http:
            account = msgspec.structs.replace(ACCOUNT, base_url=f"http://{host}:{port}/")
            yield Retell(account, http), requests
    finally:
        await runner.cleanup()


async def test_a_record_is_fetched_by_its_id_with_the_api_key():
    async with api(200, body("rest.get_call")) as (provider, requests):
        assert await provider.fetch(CALL_ID) == load("rest.get_call")
    (request,) = requests
    assert (request.method, request.path) == ("GET", f"/v2/get-call/{CALL_ID}")
    assert request.headers["authorization"] == f"Bearer {ACCOUNT.api_key}"


async def test_a_call_id_cannot_lead_to_another_path():
    async with api(200, body("rest.get_call")) as (provider, requests):
        await provider.fetch("../v2/list-agents?x#y")
    assert requests[0].raw_path == "/v2/get-call/..%2Fv2%2Flist-agents%3Fx%23y"


@pytest.mark.parametrize("status", [401, 404, 422, 500, 503])
async def test_an_error_of_the_api_means_not_ready(status):
    async with api(status, b'{"status":"error","message":"about +15550100123"}') as (provider, _):
        with pytest.raises(RecordNotReady, match=str(status)) as not_ready:
            await provider.fetch(CALL_ID)
    assert not_ready.value.retry_after is None
    assert "+15550100123" not in str(not_ready.value)
    assert ACCOUNT.api_key not in str(not_ready.value)


async def test_a_rate_limit_says_when_to_come_back():
    async with api(429, b'{"status":"error"}', {"retry-after": "17"}) as (provider, _):
        with pytest.raises(RecordNotReady) as not_ready:
            await provider.fetch(CALL_ID)
    assert not_ready.value.retry_after == 17


@pytest.mark.parametrize("answer", [b"", b"<html>maintenance</html>", b"null", b"[]", b'"call"', b'{"call_id":'])
async def test_an_answer_that_is_not_a_call_means_not_ready(answer):
    async with api(200, answer) as (provider, _):
        with pytest.raises(RecordNotReady):
            await provider.fetch(CALL_ID)


async def test_an_api_that_cannot_be_reached_means_not_ready():
    async with api(200, b"{}") as (provider, _):
        gone = msgspec.structs.replace(ACCOUNT, base_url=provider.root)
    async with make_client(guarded=False) as http:
        with pytest.raises(RecordNotReady):
            await Retell(gone, http).fetch(CALL_ID)


# is_ready


@pytest.mark.parametrize("name", ["call_ended", "call_analyzed"])
@pytest.mark.parametrize(
    ("record", "ready"),
    [
        ({"call_status": "ended"}, True),
        ({"call_status": "error"}, True),
        ({"call_status": "not_connected"}, True),
        ({"call_status": "registered", "end_timestamp": 1795176051595}, True),
        ({"call_status": "registered", "disconnection_reason": "user_hangup"}, True),
        ({"call_status": "ongoing"}, False),
        ({"call_status": "ongoing", "end_timestamp": None, "disconnection_reason": ""}, False),
        ({"call_status": ["ended"]}, False),
        ({}, False),
    ],
)
def test_the_record_of_an_ended_call_is_ready_once_it_shows_the_end(name, record, ready):
    assert retell.is_ready(decode_one(body(name)), record) is ready


def test_the_record_of_a_started_call_is_ready_at_once():
    assert retell.is_ready(decode_one(body("call_started")), {"call_status": "registered"})


# normalize: a whole call


def test_an_analyzed_call_says_everything():
    call = normalized(body("call_analyzed"), load("rest.get_call"))
    assert (call.id, call.provider, call.account) == (CALL_ID, "retell", "harbour")
    assert (call.agent.id, call.agent.name, call.agent.version) == ("agent_71c3d0a2", "Workshop desk", "7")
    assert (call.channel, call.direction) == ("phone", "inbound")
    assert (call.from_, call.to) == ("+15550100123", "+15550100177")
    assert call.status == "ended"
    assert call.end == End(reason="user_hangup", by="user", provider_reason="user_hangup")
    assert (call.started_at, call.ended_at) == ("2026-11-20T12:00:04.210Z", "2026-11-20T12:00:51.595Z")
    assert call.duration_ms == 47_385
    assert call.log_url == "https://recordings.example.com/call_5f0c2a9d7be14c6e/public.log"
    assert call.recording is not None
    assert call.recording.url == "https://recordings.example.com/call_5f0c2a9d7be14c6e/recording.wav"
    assert call.recording.expires_at is None
    assert call.privacy.storage == "full"
    assert call.metadata == {"shop": "harbour", "ticket": 2207}
    assert call.variables == {"caller": "Mirela Okafor", "pickup_day": "saturday"}
    assert call.error is None
    assert call.metrics is None


def test_the_transcript_has_words_tools_and_what_happened_between():
    transcript = normalized(body("call_analyzed")).transcript
    assert transcript is not None
    assert [turn.role for turn in transcript] == [
        *("agent", "user", "system", "agent", "tool", "agent", "system", "user", "tool", "agent")
    ]
    assert transcript[1] == Turn(
        role="user",
        text="Hola, my name is Mirela Okafor — is my bike ready? 🚲",
        start_ms=4_120,
        end_ms=7_920,
    )
    assert transcript[2] == Turn(role="system", text="node_transition: Greeting → Repair status", start_ms=8_800)
    assert transcript[6] == Turn(role="system", text="dtmf: 4")
    assert transcript[4].tool == Tool(
        id="tool_9d41e2",
        name="find_repair",
        arguments={"customer": "Mirela Okafor", "limit": 1},
        result='{"repair":"R-2207","state":"ready"}',
        ok=True,
    )
    assert transcript[8].tool is not None
    assert (transcript[8].tool.result, transcript[8].tool.ok) == ("calendar timed out", False)


def test_the_analysis_is_normalized():
    analysis = normalized(body("call_analyzed")).analysis
    assert analysis is not None
    assert analysis.summary == "Mirela Okafor asked whether her bike is ready and will collect it on Saturday."
    assert (analysis.sentiment, analysis.successful, analysis.voicemail) == ("positive", True, False)
    assert analysis.custom == {"pickup": "2026-11-21", "satisfaction": 4.5, "new_customer": False}


def test_cents_become_dollars():
    cost = normalized(body("call_ended")).cost
    assert cost is not None
    assert (cost.currency, cost.total) == ("USD", "0.10265")
    assert [(item.name, item.amount) for item in cost.items] == [
        ("voice_engine", "0.05525"),
        ("llm_standard", "0.0474"),
    ]


def test_latencies_are_whole_milliseconds():
    latency = normalized(body("call_ended")).latency
    assert latency is not None
    assert set(latency) == {"e2e", "llm", "tts"}
    assert latency["e2e"] == Percentiles(p50=812, p90=1105, p95=1290, p99=1401, min=640, max=1433, count=5)


def test_a_started_call_is_under_way_and_has_no_end():
    call = normalized(body("call_started"))
    assert (call.status, call.end, call.ended_at, call.duration_ms) == ("ongoing", None, None, None)
    assert (call.transcript, call.analysis, call.cost, call.latency, call.recording) == (None,) * 5


def test_a_web_call_has_no_numbers_and_its_duration_is_counted():
    call = normalized(body("call_ended.web_call"))
    assert (call.channel, call.direction, call.from_, call.to) == ("web", None, None, None)
    assert call.duration_ms == 12_640
    assert call.agent.version == "0"


def test_a_call_that_nobody_answered_has_failed():
    for name in ("call_ended.dial_no_answer", "call_analyzed.dial_no_answer"):
        call = normalized(body(name))
        assert call.status == "failed"
        assert call.end == End(reason="no_answer", by="system", provider_reason="dial_no_answer")
        assert (call.started_at, call.duration_ms, call.transcript) == (None, 0, None)
    assert call.analysis is not None
    assert (call.analysis.summary, call.analysis.sentiment) == (None, "unknown")


def test_a_live_turn_shows_the_call_so_far():
    call = normalized(body("transcript_updated"))
    assert (call.status, call.end) == ("ongoing", None)
    assert call.transcript is not None
    assert [turn.role for turn in call.transcript] == ["agent", "user", "system", "agent", "tool"]
    assert call.transcript[-1].tool == Tool(
        id="tool_9d41e2", name="find_repair", arguments={"customer": "Mirela Okafor", "limit": 1}
    )


def test_a_transcript_beside_the_call_is_found_too():
    call = normalized(body("transfer_started"))
    assert call.transcript is not None
    assert [turn.role for turn in call.transcript] == ["agent", "user"]


def test_a_call_found_by_reconciling_is_normalized_from_its_record_alone():
    found = Webhook(event="call_analyzed", type="call.analyzed", call_id=CALL_ID, dedupe_key="x")
    assert retell.normalize(found, load("rest.get_call")) == normalized(body("call_analyzed"))


@pytest.mark.parametrize("name", ["call_analyzed", "call_analyzed.basic_attributes_only", "call_ended.web_call"])
def test_secrets_and_internals_stay_behind(name):
    envelope = load(name)
    call = msgspec.json.encode(normalized(body(name), envelope["call"])).decode()
    for private in ("kept-private", "scrubbed", "CA0000", "multichannel", "llm_token_usage"):
        assert private not in call


def test_an_analysis_that_was_run_again_is_told_as_its_webhook_says_also_while_the_record_has_the_first():
    first = load("call_analyzed")["call"]["call_analysis"]
    again = {**first, "call_summary": "He asked twice.", "user_sentiment": "Negative", "custom_analysis_data": {"b": 2}}
    record = load("rest.get_call") | {"call_analysis": {**first, "custom_analysis_data": {"a": 1}}}
    told = normalized(altered("call_analyzed", call_analysis=again), record).analysis
    assert told is not None
    assert (told.summary, told.sentiment, told.custom) == ("He asked twice.", "negative", {"b": 2})
    assert told.successful is first["call_successful"]


def test_an_analysis_that_only_the_record_has_is_told_too():
    record = load("rest.get_call")
    assert normalized(altered("call_analyzed", call_analysis=...), record) == normalized(body("call_analyzed"), record)


# normalize: status and end


@pytest.mark.parametrize("said", ["registered", "ongoing", "ended", "a_new_word", None, 3, ...])
def test_an_ended_call_has_ended_whatever_its_status_says(said):
    assert normalized(altered("call_ended", call_status=said)).status == "ended"


@pytest.mark.parametrize("said", ["not_connected", "error"])
def test_a_call_with_a_failed_status_has_failed(said):
    assert normalized(altered("call_ended", call_status=said)).status == "failed"


@pytest.mark.parametrize("said", ["registered", "ongoing", "a_new_word", None])
def test_a_started_call_is_under_way_whatever_its_status_says(said):
    assert normalized(altered("call_started", call_status=said)).status == "ongoing"


def test_a_record_that_is_further_on_than_the_webhook_wins():
    call = normalized(body("call_started"), load("rest.get_call"))
    assert call.status == "ended"
    assert call.end is not None


def test_a_registered_call_of_an_unknown_event_is_only_created():
    webhook = dump({"event": "call_queued", "call": {"call_id": CALL_ID, "call_status": "registered"}})
    assert normalized(webhook).status == "created"


@pytest.mark.parametrize("word", REASONS)
def test_every_reason_leads_to_a_valid_end(word):
    reason, by, status = REASONS[word]
    call = normalized(altered("call_ended", disconnection_reason=word))
    assert call.end == End(reason=reason, by=by, provider_reason=word)
    assert call.end.reason in get_args(EndReason)
    assert call.end.by in get_args(EndedBy)
    assert call.end.reason != "unknown"
    assert call.status == status
    assert call.error == (word if word.startswith("error_") else None)


@pytest.mark.parametrize(
    ("word", "reason", "by", "status"),
    [
        ("agent_hangup", "agent_hangup", "agent", "ended"),
        ("call_transfer", "transferred", "agent", "ended"),
        ("voicemail_reached", "voicemail", "agent", "ended"),
        ("max_duration_reached", "max_duration", "system", "ended"),
        ("dial_busy", "busy", "system", "failed"),
        ("user_declined", "declined", "user", "failed"),
        ("no_valid_payment", "limit_reached", "system", "failed"),
        ("error_user_not_joined", "unjoined", "system", "failed"),
        ("error_llm_websocket_open", "agent_error", "system", "failed"),
        ("sip_routing_error", "telephony_error", "system", "failed"),
    ],
)
def test_reasons_mean_what_retell_says(word, reason, by, status):
    call = normalized(altered("call_ended", disconnection_reason=word))
    assert call.end == End(reason=reason, by=by, provider_reason=word)
    assert call.status == status


def test_a_new_reason_is_unknown_and_kept():
    call = normalized(altered("call_ended", disconnection_reason="abducted"))
    assert call.end == End(reason="unknown", provider_reason="abducted")


@pytest.mark.parametrize("nothing", [..., None, "", 3, ["user_hangup"]])
def test_an_end_without_a_reason_is_an_end(nothing):
    assert normalized(altered("call_ended", disconnection_reason=nothing)).end == End(reason="unknown")


# normalize: privacy


def test_under_basic_attributes_only_the_webhook_is_the_copy_that_remains():
    record = load("rest.get_call.basic_attributes_only")
    call = normalized(body("call_analyzed.basic_attributes_only"), record)
    full = normalized(body("call_analyzed"))
    assert "transcript" not in record
    assert call.privacy.storage == "basic"
    assert call.transcript == full.transcript
    assert call.analysis == full.analysis
    assert (call.from_, call.to) == (full.from_, full.to)
    assert (call.metadata, call.variables) == (full.metadata, full.variables)
    assert call.recording is not None
    assert call.cost == full.cost


def test_without_personal_data_the_webhooks_transcript_survives():
    record = {**load("rest.get_call"), "data_storage_setting": "everything_except_pii"}
    for gone in ("transcript", "transcript_object", "transcript_with_tool_calls"):
        del record[gone]
    call = normalized(altered("call_analyzed", data_storage_setting="everything_except_pii"), record)
    assert call.privacy.storage == "no_pii"
    assert call.transcript == normalized(body("call_analyzed")).transcript


def test_with_everything_stored_the_record_has_the_last_word():
    record = load("rest.get_call")
    record["transcript_with_tool_calls"] = [{"role": "agent", "content": "Corrected."}]
    call = normalized(body("call_analyzed"), record)
    assert call.privacy.storage == "full"
    assert call.transcript == [Turn(role="agent", text="Corrected.")]


@pytest.mark.parametrize(
    ("settings", "storage"),
    [
        ({"data_storage_setting": ...}, "full"),
        ({"data_storage_setting": ..., "opt_out_sensitive_data_storage": True}, "basic"),
        ({"data_storage_setting": ..., "opt_out_sensitive_data_storage": False}, "full"),
        ({"data_storage_setting": "everything", "opt_out_sensitive_data_storage": True}, "full"),
        ({"data_storage_setting": "a_new_setting"}, "basic"),
    ],
)
def test_the_deprecated_and_the_unknown_privacy_settings_are_understood(settings, storage):
    assert normalized(altered("call_ended", **settings)).privacy.storage == storage


# normalize: transcripts of other shapes


def turns(**transcripts: Any) -> list[Turn] | None:
    return normalized(dump({"event": "call_ended", "call": {"call_id": CALL_ID, **transcripts}})).transcript


def test_without_tool_calls_the_plain_objects_do():
    said = [{"role": "transfer_target", "content": "Workshop.", "words": [{"word": "Workshop.", "start": 1, "end": 2}]}]
    expected = [Turn(role="user", text="Workshop.", start_ms=1000, end_ms=2000)]
    assert turns(transcript_object=said) == expected
    assert turns(transcript_object=said, transcript_with_tool_calls=[]) == expected


def test_without_objects_the_text_is_taken_apart():
    assert turns(
        transcript="Agent: Open until six.\nNote: not on Sunday.\n\nUser: Thanks: bye\nTransfer Target: Hi\n"
    ) == [
        Turn(role="agent", text="Open until six.\nNote: not on Sunday.\n"),
        Turn(role="user", text="Thanks: bye"),
        Turn(role="user", text="Hi"),
    ]


def test_text_without_a_speaker_is_nobodys():
    assert turns(transcript="(music)\nUser: Hello?") == [
        Turn(role="system", text="(music)"),
        Turn(role="user", text="Hello?"),
    ]


@pytest.mark.parametrize("nothing", ["", "\n", None, [], {}, 7])
def test_no_words_make_no_transcript(nothing):
    assert turns(transcript=nothing, transcript_object=nothing, transcript_with_tool_calls=nothing) is None


def test_a_result_without_its_invocation_is_a_tool_turn_of_its_own():
    result = {"role": "tool_call_result", "tool_call_id": "t1", "content": "done", "successful": True}
    alone = Turn(role="tool", tool=Tool(id="t1", result="done", ok=True))
    assert turns(transcript_with_tool_calls=[result]) == [alone]
    invocation = {"role": "tool_call_invocation", "tool_call_id": "t1", "name": "fix", "arguments": "{}"}
    joined = Turn(role="tool", tool=Tool(id="t1", name="fix", result="done", ok=True))
    assert turns(transcript_with_tool_calls=[invocation, result, result]) == [joined, alone]


def test_tools_without_an_id_are_not_joined():
    said = [{"role": "tool_call_invocation", "name": "fix"}, {"role": "tool_call_result", "content": "done"}]
    assert turns(transcript_with_tool_calls=said) == [
        Turn(role="tool", tool=Tool(name="fix")),
        Turn(role="tool", tool=Tool(result="done")),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"day":"saturday"}', {"day": "saturday"}),
        ({"day": "saturday"}, {"day": "saturday"}),
        ("saturday", {"value": "saturday"}),
        ("[1]", {"value": [1]}),
        ("", {}),
        (None, {}),
    ],
)
def test_arguments_are_an_object_however_they_came(arguments, expected):
    (turn,) = turns(transcript_with_tool_calls=[{"role": "tool_call_invocation", "arguments": arguments}]) or []
    assert turn.tool is not None
    assert turn.tool.arguments == expected


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"role": "sms", "content": "Your code is 4471", "time_sec": 2.5}, "sms: Your code is 4471"),
        ({"role": "injected", "content": "The shop closes soon", "time_sec": 2.5}, "injected: The shop closes soon"),
        ({"role": "dtmf", "digit": 9, "time_sec": 2.5}, "dtmf: 9"),
        ({"role": "node_transition", "new_node_name": "Goodbye", "time_sec": 2.5}, "node_transition: Goodbye"),
        ({"role": "whisper", "time_sec": 2.5}, "whisper"),
    ],
)
def test_what_nobody_said_is_a_remark_of_the_system(entry, text):
    assert turns(transcript_with_tool_calls=[entry]) == [Turn(role="system", text=text, start_ms=2500)]


# normalize: whatever comes


@pytest.mark.parametrize(
    ("value", "expected"), [({"a": 1}, {"a": 1}), ("vip", {"value": "vip"}), ([1], {"value": [1]}), (None, {})]
)
def test_free_data_of_any_shape_is_kept_as_an_object(value, expected):
    call = normalized(altered("call_analyzed", metadata=value, call_analysis={"custom_analysis_data": value, "x": 1}))
    assert call.metadata == expected
    assert call.analysis is not None
    assert call.analysis.custom == expected


def test_a_new_sentiment_is_unknown_and_a_missing_one_is_not_known():
    for word, expected in (("Ecstatic", "unknown"), (None, None), (1, None), ("Neutral", "neutral")):
        call = normalized(altered("call_analyzed", call_analysis={"user_sentiment": word, "call_successful": True}))
        assert call.analysis is not None
        assert call.analysis.sentiment == expected


text = st.text(st.characters(), max_size=12)  # half emoji too: JSON can spell them
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
    | st.sampled_from(["agent", "tool_call_result", "2026-11-20", "1e5", "9"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, *path: Any) -> list[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inside for found in ((*path, key), *places(item, *path, key))]


def mutated(data: st.DataObject, call: dict[str, Any]) -> dict[str, Any]:
    """The call with up to four of its values replaced by something else."""
    call = copy.deepcopy(call)
    for _ in range(data.draw(st.integers(1, 4))):
        *parents, last = data.draw(st.sampled_from([path for path in places(call) if path != ("call_id",)]))
        target: Any = call
        for step in parents:
            target = target[step]
        target[last] = data.draw(any_json)
    return call


@pytest.mark.parametrize("name", ["call_started", "call_analyzed", "call_ended.dial_no_answer", "transcript_updated"])
@settings(deadline=None)
@given(data=st.data())
def test_no_value_of_another_kind_breaks_normalize(name, data):
    envelope = load(name)
    webhook = decode_one(dump({"event": envelope["event"], "call": mutated(data, envelope["call"])}))
    record = decode_json(dump(mutated(data, load("rest.get_call")))) if data.draw(st.booleans()) else None
    call = retell.normalize(webhook, record)
    assert call.id == envelope["call"]["call_id"]
    assert msgspec.json.decode(msgspec.json.encode(call), type=Call) == call
