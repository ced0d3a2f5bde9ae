"""Faults by rule are seen from outside, hit what the rule says, and come again with the same seed."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.calls import make_calls
from simulator.day import make_day
from simulator.faults import FaultError, Faults, Rule, parse_rule
from simulator.parts import Call
from simulator.player import play
from simulator.records import Records
from tests.simulated import CARTESIA, RETELL, SECRETS, ULTRAVOX, Client, Receiver, receiving, serving

CALLS = make_day(seed=3, now=time.time(), count=21)
MANY = make_day(seed=3, now=time.time(), count=600)


def faults(*rules: str, seed: int = 1) -> Faults:
    return Faults([parse_rule(rule) for rule in rules], seed)


def first(provider: str) -> Call:
    return next(call for call in CALLS if call.provider == provider and call.story == "held")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


async def played(receiver: Receiver, calls: list[Call], *rules: str, speed: float = 10.0) -> dict[str, Any]:
    return await play(receiver.url, SECRETS, calls, speed=speed, faults=faults(*rules))


def names(facts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((fact["call_id"], fact["event"]) for fact in facts)


# The rules


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("webhook retell drop 20%", Rule(kind="webhook", provider="retell", action="drop", probability=0.2)),
        ("webhook * double", Rule(kind="webhook", provider="*", action="double")),
        (
            "webhook ultravox call.billed delay 2.5s first 10",
            Rule(kind="webhook", provider="ultravox", event="call.billed", action="delay", seconds=2.5, first=10),
        ),
        (
            "webhook retell call_ended reorder 0.5%",
            Rule(kind="webhook", provider="retell", event="call_ended", action="reorder", probability=0.005),
        ),
        ("get * 429 first 2", Rule(kind="get", provider="*", action="error", status=429, first=2)),
        ("delete cartesia 503", Rule(kind="delete", provider="cartesia", action="error", status=503)),
        ("list retell 5xx 1%", Rule(kind="list", provider="retell", action="error", status=500, probability=0.01)),
        ("get retell slow 3 100%", Rule(kind="get", provider="retell", action="slow", seconds=3.0)),
        ("list ultravox truncated 5%", Rule(kind="list", provider="ultravox", action="truncated", probability=0.05)),
    ],
)
def test_a_rule_is_read_as_it_is_written(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "a kind"),
        ("post retell 429", '"post"'),
        ("webhook vapi drop", '"vapi"'),
        ("webhook retell", "what happens"),
        ("webhook retell 429", '"429"'),
        ("get retell drop", '"drop"'),
        ("get retell 404", '"404"'),
        ("get retell call_ended slow 3", '"call_ended"'),
        ("webhook retell delay", "seconds"),
        ("webhook retell delay soon", '"soon"'),
        ("webhook retell drop 20", '"20"'),
        ("webhook retell drop 101%", "100%"),
        ("webhook retell drop first", "first"),
        ("webhook retell drop first some", '"some"'),
        ("webhook retell drop 20% often", '"often"'),
    ],
)
def test_a_wrong_rule_is_refused_by_the_word_that_is_wrong(text: str, word: str) -> None:
    with pytest.raises(FaultError) as refused:
        parse_rule(text)
    assert str(refused.value).startswith(f'fault "{text}": ')
    assert word in str(refused.value).removeprefix(f'fault "{text}": ')


def test_the_same_seed_hits_the_same_webhooks_and_another_seed_others() -> None:
    def hit(seed: int, calls: list[Call]) -> set[tuple[str, str]]:
        rules = faults("webhook retell drop 20%", seed=seed)
        return {(call.id, told.event) for call in calls for told in call.webhooks if rules.of_webhook(call, told)}

    assert hit(1, MANY) == hit(1, list(reversed(MANY)))
    assert hit(1, MANY) != hit(2, MANY)
    webhooks = sum(len(call.webhooks) for call in MANY if call.provider == "retell")
    assert 0.15 < len(hit(1, MANY)) / webhooks < 0.25


def test_the_same_seed_hits_the_same_requests() -> None:
    def hits(seed: int) -> list[bool]:
        rules = faults("list ultravox truncated 30%", seed=seed)
        return [bool(rules.of_request("list", "ultravox")) for _ in range(200)]

    assert hits(1) == hits(1)
    assert hits(1) != hits(2)
    assert 40 < sum(hits(1)) < 80


# Webhooks


async def test_a_dropped_webhook_is_not_sent_and_named_apart_from_the_facts(receiver: Receiver) -> None:
    result = await played(receiver, CALLS, "webhook retell drop", "webhook ultravox call.ended drop first 2")
    due = names([{"call_id": told.call_id, "event": told.event} for call in CALLS for told in call.webhooks])
    assert sorted(names(result["facts"]) + names(result["dropped"])) == due
    assert names(result["facts"]) == sorted((str(got.call_id), got.event) for got in receiver.received)
    assert {fact["account"] for fact in result["facts"]} == {"cartesia", "ultravox"}
    ended = [told for call in CALLS for told in call.webhooks if told.event == "call.ended"]
    earliest = [told.call_id for told in sorted(ended, key=lambda told: told.at_s)[:2]]
    assert [fact["call_id"] for fact in result["dropped"] if fact["account"] == "ultravox"] == earliest
    assert result["dropped"][0].keys() == result["facts"][0].keys()
    assert abs(result["dropped"][0]["at"] - time.time()) < 60


async def test_without_rules_nothing_is_dropped(receiver: Receiver) -> None:
    result = await play(receiver.url, SECRETS, CALLS[:3], speed=20)
    assert result["dropped"] == []
    assert len(result["facts"]) == len(receiver.received) == sum(len(call.webhooks) for call in CALLS[:3])


async def test_a_dropped_webhook_is_in_the_record_all_the_same(receiver: Receiver) -> None:
    call = first("retell")
    records = Records(CALLS, played=True)
    await play(receiver.url, SECRETS, [call], speed=20, show=records.show, faults=faults("webhook * drop"))
    assert receiver.received == []
    assert records.find("retell", call.id) == (200, call.record)
    assert records.listed("retell") == [call.record]


async def test_a_delayed_webhook_comes_later_by_its_seconds(receiver: Receiver) -> None:
    call = first("cartesia")
    await played(receiver, [call], "webhook cartesia call_started delay 8", speed=20)
    arrived = {got.event: got.arrived for got in receiver.received}
    assert list(arrived) == ["call_completed", "post_call_analysis", "call_started"]
    assert arrived["call_started"] - arrived["call_completed"] == pytest.approx((8 - 0.4) / 20, abs=0.15)


async def test_a_doubled_webhook_comes_twice_and_is_one_fact(receiver: Receiver) -> None:
    call = first("ultravox")
    result = await played(receiver, [call], "webhook ultravox call.ended double")
    assert len(receiver.of("call.ended", call)) == 2
    assert len({got.body for got in receiver.of("call.ended", call)}) == 1
    assert len(receiver.of("call.joined", call)) == 1
    assert len(result["facts"]) == len(call.webhooks)


async def test_a_reordered_webhook_changes_places_with_its_call_s_next(receiver: Receiver) -> None:
    call = first("retell")
    await played(receiver, [call], "webhook retell call_ended reorder", speed=4)
    assert [got.event for got in receiver.received] == ["call_started", "call_analyzed", "call_ended"]


async def test_a_forged_webhook_is_none_of_the_vendor_s_and_none_of_the_rules(receiver: Receiver) -> None:
    [call] = [call for call in make_calls(1, time.time()) if "only the webhooks" in call.story]
    result = await played(receiver, [call], "webhook * drop", speed=20)
    assert [got.call_id == call.id for got in receiver.received] == [False]
    assert result["refused"] == 1
    assert len(result["dropped"]) == 3


# Requests


async def each(client: Client) -> dict[tuple[str, str], Any]:
    """One request of each kind to each provider."""
    retell, cartesia, ultravox = first("retell"), first("cartesia"), first("ultravox")
    listing = {"agent_id": cartesia.record["agent_id"]}
    return {
        ("get", "retell"): await client.get(f"/v2/get-call/{retell.id}", headers=RETELL),
        ("get", "cartesia"): await client.get(f"/agents/calls/{cartesia.id}", headers=CARTESIA),
        ("get", "ultravox"): await client.get(f"/api/calls/{ultravox.id}", headers=ULTRAVOX),
        ("list", "retell"): await client.post("/v3/list-calls", headers=RETELL),
        ("list", "cartesia"): await client.get("/agents/calls", headers=CARTESIA, params=listing),
        ("list", "ultravox"): await client.get("/api/calls", headers=ULTRAVOX),
        ("delete", "retell"): await client.delete(f"/v2/delete-call/{retell.id}", headers=RETELL),
        ("delete", "cartesia"): await client.delete(f"/agents/calls/{cartesia.id}", headers=CARTESIA),
        ("delete", "ultravox"): await client.delete(f"/api/calls/{ultravox.id}", headers=ULTRAVOX),
    }


@pytest.mark.parametrize("kind", ["get", "list", "delete"])
@pytest.mark.parametrize("provider", ["retell", "cartesia", "ultravox"])
async def test_a_rule_hits_requests_of_its_kind_and_provider_alone(kind: str, provider: str) -> None:
    async with serving(Records(CALLS), faults(f"{kind} {provider} 503")) as client:
        answers = await each(client)
        assert [name for name, answer in answers.items() if not answer.is_success] == [(kind, provider)]
        assert answers[kind, provider].status_code == 503


async def test_429_says_when_to_come_back_in_the_vendor_s_own_shape() -> None:
    shapes = {
        "retell": {"status", "message"},
        "cartesia": {"error_code", "title", "message", "request_id"},
        "ultravox": {"detail"},
    }
    async with serving(Records(CALLS), faults("get * 429 first 3")) as client:
        answers, again = await each(client), await each(client)
        for (kind, provider), answer in answers.items():
            if kind == "get":
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert answer.json().keys() == shapes[provider]
        assert again["get", "cartesia"].status_code == 200


async def test_a_deletion_that_is_refused_deletes_nothing() -> None:
    async with serving(Records(CALLS), faults("delete retell 500 first 1")) as client:
        path = f"/v2/delete-call/{first('retell').id}"
        assert [(await client.delete(path, headers=RETELL)).status_code for _ in range(3)] == [500, 204, 404]


async def test_a_truncated_answer_has_the_right_type_and_half_its_json() -> None:
    async with serving(Records(CALLS), faults("list ultravox truncated first 1")) as client:
        cut = await client.get("/api/calls", headers=ULTRAVOX)
        whole = await client.get("/api/calls", headers=ULTRAVOX)
    assert cut.status_code == 200
    assert cut.headers["content-type"] == whole.headers["content-type"] == "application/json"
    assert cut.content == whole.content[: len(whole.content) // 2]
    with pytest.raises(json.JSONDecodeError):
        cut.json()


async def test_a_slow_answer_is_right_and_late() -> None:
    async with serving(Records(CALLS), faults("get retell slow 0.3")) as client:
        begin = time.monotonic()
        answer = await client.get(f"/v2/get-call/{first('retell').id}", headers=RETELL)
        assert answer.json() == first("retell").record
        assert 0.3 <= time.monotonic() - begin < 20


async def test_whoever_has_no_key_uses_up_no_fault() -> None:
    async with serving(Records(CALLS), faults("get retell 500 first 1")) as client:
        path = f"/v2/get-call/{first('retell').id}"
        assert (await client.get(path)).status_code == 401
        assert [(await client.get(path, headers=RETELL)).status_code for _ in range(2)] == [500, 200]


# The command


async def test_the_command_refuses_a_wrong_rule_and_says_what_it_meant() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulator", "--fault", "get * 429 first 2", "--fault", "get * 444"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b'fault "get * 444": "444" is not what happens: one of 429, 5xx, slow, truncated' in said
