"""The simulator keeps the vendors' manners: what it refuses, what it sends, and how it signs."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from simulator.calls import event_type, make_calls
from simulator.parts import Call, compact
from simulator.player import play
from simulator.records import Records
from tests.simulated import CARTESIA, RETELL, SECRETS, ULTRAVOX, Client, Receiver, receiving, serving, verifies

CALLS = make_calls(seed=1, now=time.time())


def the(story: str) -> Call:
    """The one call whose story holds these words."""
    [call] = [call for call in CALLS if story in call.story]
    return call


@pytest.fixture
def records() -> Records:
    return Records(CALLS)


@pytest.fixture
async def client(records: Records) -> AsyncIterator[Client]:
    async with serving(records) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


# The calls


def test_the_same_seed_makes_the_same_calls_and_another_seed_shares_no_id() -> None:
    assert make_calls(seed=5, now=1_000_000.0) == make_calls(seed=5, now=1_000_000.0)
    ids = [call.id for seed in (5, 6) for call in make_calls(seed=seed, now=1_000_000.0)]
    assert len(set(ids)) == len(ids)


def test_one_provider_alone_has_the_calls_it_has_among_all() -> None:
    now = time.time()
    alone = make_calls(seed=1, now=now, only="cartesia")
    assert alone == [call for call in make_calls(seed=1, now=now) if call.provider == "cartesia"]


def test_every_phone_number_is_of_the_range_kept_for_fiction() -> None:
    numbers = re.findall(r"\+[0-9]{6,}", compact([[call.record, call.messages] for call in CALLS]))
    assert len(numbers) > 10
    assert all(re.fullmatch(r"\+155501001[0-9]{2}", number) for number in numbers)


def test_times_are_fresh_and_none_is_in_the_future() -> None:
    now = time.time()
    for call in make_calls(seed=1, now=now, only="retell"):
        assert now - 60 < call.record["end_timestamp"] / 1000 < now


def test_the_long_transcript_is_about_200_kb_and_the_private_one_is_in_the_webhooks_alone() -> None:
    assert 180_000 < len(compact(the("200 KB").record["transcript"])) < 230_000
    private = the("only the webhooks")
    [ended] = [webhook for webhook in private.webhooks if webhook.event == "call_ended" and webhook.is_fact]
    assert "Anselm Dubois" in compact(ended.payload)
    assert "Anselm" not in compact(private.record)
    assert not {"transcript", "from_number", "metadata"} & private.record.keys()


# The record APIs


async def test_a_record_is_served_to_the_right_key(client: Client) -> None:
    for path, headers, call in (
        ("/v2/get-call/", RETELL, the("voicemail")),
        ("/agents/calls/", CARTESIA, the("200 KB")),
        ("/agents/calls/", CARTESIA | {"authorization": "", "x-api-key": "sk_car_c"}, the("200 KB")),
        ("/agents/calls/", CARTESIA, the("envelope of 2025")),  # under the request's id
        ("/api/calls/", ULTRAVOX, the("unjoined")),
    ):
        answer = await client.get(path + call.id, headers=headers)
        assert (answer.status_code, answer.json()) == (200, call.record)


async def test_a_wrong_or_missing_key_is_refused_in_the_vendors_own_shape(client: Client) -> None:
    retell, cartesia, ultravox = the("voicemail").id, the("200 KB").id, the("unjoined").id
    for path, headers, keys in (
        (f"/v2/get-call/{retell}", {"authorization": "Bearer key_x"}, {"status", "message"}),
        (f"/v2/get-call/{retell}", {"authorization": "key_r"}, {"status", "message"}),
        (f"/v2/get-call/{retell}", {}, {"status", "message"}),
        (
            f"/agents/calls/{cartesia}",
            CARTESIA | {"authorization": "Bearer key_r"},
            {"error_code", "title", "message", "request_id"},
        ),
        (f"/api/calls/{ultravox}", {"authorization": "Bearer u.x"}, {"detail"}),
        (f"/api/calls/{ultravox}/messages", {"x-api-key": "u.y"}, {"detail"}),
    ):
        answer = await client.get(path, headers=headers)
        assert (answer.status_code, answer.json().keys()) == (401, keys)


async def test_cartesia_refuses_a_request_that_names_no_version(client: Client) -> None:
    answer = await client.get(f"/agents/calls/{the('200 KB').id}", headers={"authorization": "Bearer sk_car_c"})
    assert answer.status_code == 400
    assert "Cartesia-Version" in answer.json()["message"]


async def test_an_unknown_call_is_not_found(client: Client) -> None:
    for path, headers in (
        ("/v2/get-call/call_0", RETELL),
        ("/agents/calls/ac_0", CARTESIA),
        ("/api/calls/0", ULTRAVOX),
        ("/api/calls/0/messages", ULTRAVOX),
        (f"/v2/get-call/{the('unjoined').id}", RETELL),  # another provider's
    ):
        assert (await client.get(path, headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("story", "path", "headers", "statuses"),
    [
        ("not there at first", "/v2/get-call/", RETELL, [404, 404, 200, 200]),
        ("fails once", "/agents/calls/", CARTESIA, [500, 200, 200]),
        ("one request too many", "/api/calls/", ULTRAVOX, [429, 200, 200]),
    ],
)
async def test_a_record_is_refused_at_first_and_then_served(
    client: Client, story: str, path: str, headers: dict[str, str], statuses: list[int]
) -> None:
    url = path + the(story).id
    assert (await client.get(url)).status_code == 401  # uses up none of what follows
    answers = [await client.get(url, headers=headers) for _ in statuses]
    assert [answer.status_code for answer in answers] == statuses
    assert [answer.headers.get("retry-after") for answer in answers] == [
        "1" if status == 429 else None for status in statuses
    ]
    assert answers[-1].json() == the(story).record


async def pages(client: Client, call_id: str, params: dict[str, str]) -> list[dict[str, object]]:
    found = []
    while True:
        page = (await client.get(f"/api/calls/{call_id}/messages", headers=ULTRAVOX, params=params)).json()
        found.append(page)
        if page["next"] is None:
            return found
        url = urlsplit(page["next"])
        assert (url.scheme, url.netloc, url.path) == ("https", "api.ultravox.ai", f"/api/calls/{call_id}/messages")
        params = {name: value for name, [value] in parse_qs(url.query).items()}


async def test_all_messages_come_on_several_pages_when_asked_for_the_whole_call(client: Client) -> None:
    call = the("two stages")
    found = await pages(client, call.id, {"mode": "in_call", "pageSize": "100"})
    assert len(found) >= 3
    assert [message for page in found for message in page["results"]] == call.messages  # type: ignore[attr-defined]
    assert {page["total"] for page in found} == {len(call.messages)}
    assert found[0]["previous"] is None
    assert found[1]["previous"] is not None


async def test_without_a_mode_only_the_last_stage_is_given(client: Client) -> None:
    call = the("two stages")
    last = call.messages[-1]["callStageId"]
    found = await pages(client, call.id, {})
    messages = [message for page in found for message in page["results"]]  # type: ignore[attr-defined]
    assert messages == [message for message in call.messages if message["callStageId"] == last]
    assert 0 < len(messages) < len(call.messages)


async def test_a_garbled_cursor_is_refused(client: Client) -> None:
    answer = await client.get(
        f"/api/calls/{the('two stages').id}/messages", headers=ULTRAVOX, params={"cursor": "no cursor"}
    )
    assert (answer.status_code, answer.json()) == (404, {"detail": "Invalid cursor"})


async def test_during_a_play_a_record_grows_and_is_not_set_back_by_what_is_told_late(
    client: Client, records: Records
) -> None:
    call = the("joined is told after the end")
    webhooks = {webhook.event: webhook for webhook in call.webhooks}

    async def shown() -> tuple[object, object, int]:
        record = (await client.get(f"/api/calls/{call.id}", headers=ULTRAVOX)).json()
        messages = (await client.get(f"/api/calls/{call.id}/messages", headers=ULTRAVOX)).json()
        return record["endReason"], record["billedDuration"], messages["total"]

    records.show(call, webhooks["call.started"])
    assert await shown() == (None, None, 0)
    records.show(call, webhooks["call.ended"])
    assert await shown() == ("hangup", None, 4)
    records.show(call, webhooks["call.joined"])
    assert await shown() == ("hangup", None, 4)
    records.show(call, webhooks["call.billed"])
    assert await shown() == ("hangup", call.record["billedDuration"], 4)


# The player


async def test_every_webhook_is_signed_and_only_the_forged_one_is_refused(receiver: Receiver) -> None:
    sent: list[dict[str, object]] = []
    played = await play(receiver.url, SECRETS, CALLS, speed=24, report=sent.append)

    refused = [webhook for webhook in receiver.received if not verifies(webhook)]
    assert [webhook.event for webhook in refused] == ["call_ended"]
    assert refused[0].call_id not in {call.id for call in CALLS}
    assert played["refused"] == 1
    assert played["calls"] == len(CALLS)
    assert played["webhooks"] == len(receiver.received) - 1
    assert Counter(line["status"] for line in sent) == {204: played["webhooks"], 401: 1}
    for webhook in receiver.received:
        assert webhook.body == compact(webhook.json).encode()  # compact, and other scripts as they are
        assert webhook.headers["content-type"] == "application/json"


async def test_copies_come_at_the_same_instant_and_others_again_later_with_a_new_signature(receiver: Receiver) -> None:
    calls = [the("three times at once"), the("not there at first"), the("two stages")]
    receiver.hold = lambda: time.sleep(0.3)
    await play(receiver.url, SECRETS, calls, speed=10)

    at_once = receiver.of("call_ended", the("three times at once"))
    assert len(at_once) == 3
    assert len({webhook.body for webhook in at_once}) == 1
    assert receiver.most_in_flight[at_once[0].body] >= 2

    for story, event, header in (
        ("not there at first", "call_ended", "x-retell-signature"),
        ("two stages", "call.ended", "x-ultravox-webhook-signature"),
    ):
        first, again = receiver.of(event, the(story))
        assert first.body == again.body
        assert first.headers[header] != again.headers[header]
        assert again.arrived - first.arrived > 0.1

    two_signatures = receiver.of("call.ended", the("two stages"))[0].headers["x-ultravox-webhook-signature"].split(",")
    assert len(two_signatures) == 2
    assert verifies(receiver.of("call.ended", the("two stages"))[0])


async def test_some_facts_are_told_out_of_order(receiver: Receiver) -> None:
    calls = [the("analyzed before it ended"), the("start comes after the end"), the("joined is told after the end")]
    played = await play(receiver.url, SECRETS, calls, speed=8)
    posted = {(fact["call_id"], fact["event"]): fact["at"] for fact in played["facts"]}
    for story, told_first, told_later in (
        ("analyzed before it ended", "call_analyzed", "call_ended"),
        ("start comes after the end", "call_ended", "call_started"),
        ("joined is told after the end", "call.ended", "call.joined"),
    ):
        [_], [_] = receiver.of(told_first, the(story)), receiver.of(told_later, the(story))
        assert posted[the(story).id, told_first] < posted[the(story).id, told_later]


async def test_the_facts_are_what_was_sent_each_once_without_forgeries_and_questions(receiver: Receiver) -> None:
    sent: list[dict[str, object]] = []
    before = time.time()
    played = await play(receiver.url, SECRETS, CALLS, speed=24, report=sent.append)

    facts = [(fact["account"], fact["call_id"], fact["event"]) for fact in played["facts"]]
    assert len(set(facts)) == len(facts)
    genuine = {
        (webhook.provider, webhook.call_id, webhook.event)
        for webhook in receiver.received
        if verifies(webhook) and webhook.event != "call_inbound"
    }
    assert set(facts) == genuine
    types: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for fact in played["facts"]:
        types[fact["account"]][fact["type"]] += 1
        assert before <= fact["at"] <= time.time()
    assert types["retell"] == {
        "call.started": 5,
        "call.ended": 6,
        "call.analyzed": 6,
        "call.transfer": 1,
        "call.unknown": 1,
    }
    assert types["cartesia"] == {"call.started": 3, "call.turn": 1, "call.ended": 4, "call.analyzed": 2}
    assert types["ultravox"] == {"call.started": 3, "call.connected": 2, "call.ended": 3, "call.billed": 2}

    copies = [
        line for line in sent if line["call_id"] == the("three times at once").id and line["event"] == "call_ended"
    ]
    assert sorted(line["copy"] for line in copies) == [1, 2, 3]  # type: ignore[type-var]
    assert len({line["at"] for line in copies}) == 1
    assert [line["call_id"] for line in sent if line["event"] == "call_inbound"] == [None]


async def test_what_is_not_answered_2xx_is_sent_again_with_a_fresh_signature(receiver: Receiver) -> None:
    call = the("unanswered")
    receiver.answer = lambda webhook: 503 if len(receiver.of(webhook.event, call)) == 1 else None
    sent: list[dict[str, object]] = []
    played = await play(receiver.url, SECRETS, [call], speed=20, report=sent.append)

    first, second = receiver.of("call_ended", call)
    assert first.headers["x-retell-signature"] != second.headers["x-retell-signature"]
    assert second.arrived - first.arrived > 0.4
    assert played["webhooks"] == 2
    assert [(line["status"], line["copy"]) for line in sent if line["event"] == "call_ended"] == [(503, 1), (204, 1)]


async def test_each_account_may_have_a_name_of_its_own(receiver: Receiver) -> None:
    receiver.answer = lambda webhook: 204
    played = await play(receiver.url, SECRETS, [the("unanswered")], speed=20, accounts={"retell": "acme"})
    assert {webhook.path for webhook in receiver.received} == {"/webhooks/acme"}
    assert {fact["account"] for fact in played["facts"]} == {"acme"}


def test_an_event_that_no_table_knows_is_unknown() -> None:
    assert event_type("retell", "call_rated") == "call.unknown"
    assert event_type("cartesia", "call_failed") == "call.ended"


# The command


async def test_the_command_serves_plays_tells_and_stops_with_0_at_sigterm(receiver: Receiver) -> None:
    keys = {
        "RETELL_API_KEY": "key_r",
        "CARTESIA_WEBHOOK_SECRET": "hush-c",
        "ULTRAVOX_WEBHOOK_SECRET": "hush-u",
        "ULTRAVOX_API_KEY": "u.x",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulator", "--port", "0", "--speed", "20", "--seed", "3"),
        *("--only", "ultravox", "--play", receiver.url),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | keys,
    )
    try:
        assert process.stdout is not None
        lines: list[dict[str, dict[str, object]]] = []
        async with asyncio.timeout(60):
            while not lines or "played" not in lines[-1]:
                lines.append(json.loads(await process.stdout.readline()))
        listening = str(lines[0]["listening"])
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", listening)
        assert all(line["sent"]["status"] == 204 for line in lines[1:-1])
        assert lines[-1]["played"]["webhooks"] == len(lines) - 2 == len(receiver.received)

        unjoined = next(call for call in make_calls(3, time.time(), "ultravox") if call.story == "unjoined")
        async with httpx.AsyncClient(trust_env=False) as http:  # still serving
            answer = await http.get(f"{listening}/api/calls/{unjoined.id}", headers=ULTRAVOX)
        assert (answer.status_code, answer.json()["endReason"]) == (200, "unjoined")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
