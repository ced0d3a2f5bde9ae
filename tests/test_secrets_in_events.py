"""What a provider's record and webhooks have of keys, passwords and prompts is in no event, of no type."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from aftercall.erasure import erase_call
from aftercall.event import encode
from simulator.calls import event_type
from simulator.day import make_day
from simulator.parts import Call as SimulatedCall
from simulator.parts import Json, Webhook
from tests.inside import Inside, inside

MARK = "hush-7c1e"  # is part of every secret
DAY = make_day(seed=12, now=1_790_000_000.0, count=9)


def retell(view: Json) -> Json:
    return {
        **view,
        "access_token": f"join-{MARK}",
        "from_number": f"sip:desk:{MARK}@pbx.example.com",
        "custom_sip_headers": {"Authorization": MARK},
        "public_log_url": f"https://logs.example.com/1.txt?X-Amz-Signature={MARK}",
        "knowledge_base_retrieved_contents_url": f"https://kb.example.com/1.txt?X-Amz-Signature={MARK}",
        "agent_override": {"retell_llm": {"general_prompt": f"Never say {MARK}.", "tools": [{"headers": {"k": MARK}}]}},
        "webhook_secret": MARK,
    }


def cartesia(view: Json) -> Json:
    logged = [
        {"role": "system", "log_event": {"event": "paid", "metadata": {"token": MARK}}, "start_timestamp": 1.0},
        {"role": "system", "log_metric": {"name": "price", "value": MARK}, "start_timestamp": 1.1},
    ]
    return {
        **view,
        "telephony_params": {
            **view["telephony_params"],
            "from": f"sips:desk:{MARK}@pbx.example.com;transport=tls",
            "headers": {"Authorization": MARK, "X-Password": MARK},
            "parameters": {"sip_password": MARK},
        },
        "transcript": [*view["transcript"], *logged] if view.get("transcript") else view.get("transcript"),
        "access_token": MARK,
        "system_prompt": f"Never say {MARK}.",
        "webhook": {"secret": MARK},
    }


def ultravox(view: Json) -> Json:
    leg = {"to": "sip:+15550100123@pbx.example.com", "from": f"sip:desk:{MARK}@pbx.example.com"}
    return {
        **view,
        "joinUrl": f"wss://voice.example.com/{MARK}",
        "systemPrompt": f"Never say {MARK}.",
        "medium": {"sip": {"outgoing": {**leg, "username": "desk", "password": MARK}}},
        "callbacks": {"ended": {"url": f"https://desk.example.com/{MARK}", "secrets": [MARK]}},
        "externalVoice": {"generic": {"url": "https://tts.example.com", "headers": {"Authorization": MARK}}},
        "selectedTools": [{"toolName": "pay", "authTokens": {"key": MARK}, "headerParameters": {"X-Key": MARK}}],
        "initialState": {"token": MARK},
        "requestContext": {"token": MARK},
        "experimentalSettings": {"key": MARK},
        "sipDetails": {"headers": {"Authorization": MARK}},
    }


PLANT: dict[str, Callable[[Json], Json]] = {"retell": retell, "cartesia": cartesia, "ultravox": ultravox}
every_provider = pytest.mark.parametrize("provider", PLANT)


def unheard_of(provider: str, view: Json) -> Webhook:
    """An event of a kind that does not exist today."""
    if provider == "ultravox":
        payload, call_id = {"event": "call.poked", "call": view}, view["callId"]
    elif provider == "retell":
        payload, call_id = {"event": "call_poked", "call": view, "token": MARK}, view["call_id"]
    else:
        payload, call_id = {"type": "call_poked", "call_id": view["id"], "call": view, "token": MARK}, view["id"]
    return Webhook(event="call_poked", call_id=call_id, payload=payload, at_s=9.0)


def with_secrets(provider: str) -> SimulatedCall:
    """A call whose record and webhooks, the beginning too, are full of secrets."""
    plant = PLANT[provider]
    call = next(call for call in DAY if call.provider == provider and call.story == "held")
    webhooks = []
    for webhook in call.webhooks:
        about = {"call": plant(webhook.payload["call"])} if "call" in webhook.payload else {}
        payload = {**webhook.payload, "secret": MARK, **about}
        webhooks.append(
            msgspec.structs.replace(webhook, payload=payload, record=webhook.record and plant(webhook.record))
        )
    view = plant(call.record)
    webhooks.append(unheard_of(provider, view))
    if provider == "cartesia":
        first = webhooks[0].payload
        turn = {**cartesia({**view, "transcript": [view["transcript"][0]]})["transcript"][1], "text": "Good day."}
        payload = {**first, "type": "call_turn", "turn": turn}
        webhooks.append(Webhook(event="call_turn", call_id=call.id, payload=payload, at_s=9.1))
    if provider == "retell":
        payload = {"event": "transfer_bridged", "call": view, "transfer_option": {"token": MARK}}
        webhooks.append(Webhook(event="transfer_bridged", call_id=call.id, payload=payload, at_s=9.1))
    return msgspec.structs.replace(call, webhooks=webhooks, record=view)


def no_secret_is_in(aftercall: Inside, call: SimulatedCall, *types: str) -> None:
    _, record = aftercall.records.find(call.provider, call.id)
    assert MARK in json.dumps(record)
    assert {event.type for event in aftercall.events} >= set(types)
    for event in aftercall.events:
        assert MARK not in encode(event).decode(), event.type


async def erase(aftercall: Inside, call: SimulatedCall) -> None:
    provider, sinks = aftercall.hub.providers[call.provider], aftercall.hub.settings.sinks
    await erase_call(aftercall.ledger, provider, call.id, sinks=sinks, at_provider=True)
    await aftercall.finish()
    (erased,) = aftercall.of(call.id, "call.erased")
    assert MARK not in encode(erased).decode()


@every_provider
async def test_no_event_has_a_secret_of_a_call_that_was_told_whole(
    provider: str, valkey_url: str, tmp_path: Path
) -> None:
    call = with_secrets(provider)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        for webhook in call.webhooks:
            assert MARK in json.dumps(webhook.payload)
            await aftercall.receive(call, webhook)
            await aftercall.work()
        await aftercall.finish()

        types = {event_type(provider, webhook.event) for webhook in call.webhooks}
        assert "call.unknown" in types
        no_secret_is_in(aftercall, call, *types, "call.settled")
        await erase(aftercall, call)


@every_provider
async def test_no_event_has_a_secret_of_a_call_that_was_completed_from_its_record(
    provider: str, valkey_url: str, tmp_path: Path
) -> None:
    call = with_secrets(provider)
    end = next(one for one in call.webhooks if event_type(provider, one.event) == "call.ended")
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        await aftercall.receive(call, end)
        await aftercall.finish()
        no_secret_is_in(aftercall, call, "call.ended", "call.settled")
        await erase(aftercall, call)


@every_provider
async def test_no_event_has_a_secret_of_a_call_whose_record_is_not_to_be_had(
    provider: str, valkey_url: str, tmp_path: Path
) -> None:
    call = with_secrets(provider)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        vendor = aftercall.hub.providers[provider]
        for webhook in call.webhooks:
            (one,) = vendor.decode(msgspec.json.encode(webhook.payload))
            assert MARK not in msgspec.json.encode(vendor.normalize(one, None)).decode()


@every_provider
async def test_no_event_has_a_secret_of_a_call_that_was_found_in_a_list(
    provider: str, valkey_url: str, tmp_path: Path
) -> None:
    call = with_secrets(provider)
    async with inside(valkey_url, tmp_path, [call]) as aftercall:
        for body in aftercall.hub.providers[provider].facts(call.record):
            await aftercall.accept(provider, body)
        await aftercall.finish()
        no_secret_is_in(aftercall, call, "call.ended", "call.settled")
        await erase(aftercall, call)
