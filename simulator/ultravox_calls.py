"""Ultravox's calls.

Ultravox: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11). RFC 3339, protobuf durations.
"""

import random
from typing import Any

from simulator.parts import PLAY_S, Call, Json, Line, Webhook, compact, iso, length_s, number, random_uuid, timed


def calls(rng: random.Random, zero: float) -> list[Call]:
    return [_stages(rng, zero), _unjoined(rng, zero), _sip(rng, zero)]


def _stages(rng: random.Random, zero: float) -> Call:
    reception = timed(
        rng,
        ("agent", "Welcome to Tidewater Ferries. Tickets or timetable?"),
        ("user", "Both, I think. I'm Ravi Lindqvist."),
        ("tool", "find_sailings", {"to": "Holm", "day": "saturday"}, {"sailings": ["09:10", "14:40"]}),
        ("agent", "On Saturday there are two sailings to Holm, at ten past nine and twenty to three."),
        ("user", "The early one."),
        ("agent", "I'll pass you to ticketing."),
    )
    ticketing = timed(
        rng,
        ("agent", "Ticketing here. How many of you are there, Ravi?"),
        ("user", "Two adults and a dog."),
        ("tool", "sell_ticket", {"adults": 2, "dogs": 1}, {"ticket": "TF-5521"}),
        ("agent", "Two adults and a dog, ten past nine. Your ticket is TF-5521."),
        ("user", "Does the dog need a seat?"),
        ("agent", "The dog travels free, and standing."),
        ("user", "He'll manage. Goodbye!"),
        from_s=length_s(reception),
    )
    call_id = random_uuid(rng)
    messages = make_messages(rng, reception) + make_messages(rng, ticketing)
    created, joined, ended, billed = make_views(
        rng,
        call_id,
        agent="Tidewater reception",
        ended_at=zero + 5.8,
        length_s=length_s(ticketing),
        medium={"twilio": {"outgoing": {"to": number(rng), "from": number(rng)}}},
        summary="Ravi Lindqvist bought the early ferry for two adults and a dog.",
    )
    return Call(
        provider="ultravox",
        id=call_id,
        story="two stages on several pages; one request too many",
        record=billed,
        messages=messages,
        faults=(429,),
        webhooks=[
            make_webhook("call.started", created, 0.3),
            make_webhook("call.joined", joined, 1.2),
            make_webhook("call.ended", ended, 5.8, again_at_s=10.5, two_signatures=True),
            make_webhook("call.billed", billed, 8.4),
        ],
    )


def _unjoined(rng: random.Random, zero: float) -> Call:
    """Nobody came before the join timeout: no `call.joined`, no messages, and nothing to bill."""
    call_id = random_uuid(rng)
    created, _, ended, _ = make_views(
        rng, call_id, agent="Orchard survey", ended_at=zero + 6.2, length_s=0, medium={"webRtc": {}}, summary=None
    )
    unjoined = not_joined(ended)
    return Call(
        provider="ultravox",
        id=call_id,
        story="unjoined",
        record=unjoined,
        webhooks=[make_webhook("call.started", created, 2.8), make_webhook("call.ended", unjoined, 6.2)],
    )


def _sip(rng: random.Random, zero: float) -> Call:
    lines = timed(
        rng,
        ("agent", "مكتبة الزيتون، أهلاً بك. كيف أساعدك؟"),
        ("user", "هل وصل الكتاب الذي طلبته؟ اسمي سلمى حداد."),
        ("agent", "نعم يا سلمى، وصل هذا الصباح."),
        ("user", "شكراً جزيلاً."),
    )
    call_id = random_uuid(rng)
    created, joined, ended, billed = make_views(
        rng,
        call_id,
        agent="مكتبة الزيتون",
        ended_at=zero + 7.6,
        length_s=length_s(lines),
        medium={
            "sip": {
                "outgoing": {
                    "to": f"sip:{number(rng)}@sip.example.com",
                    "from": "sip:books@sip.example.com",
                    "username": "books",
                    "password": "sip-password-that-must-not-leave",
                }
            }
        },
        summary="سألت سلمى حداد عن كتابها، وقد وصل.",
    )
    billed["sipDetails"] = {"billedDuration": "31s", "terminationReason": "SIP_TERMINATION_NORMAL"}
    return Call(
        provider="ultravox",
        id=call_id,
        story="SIP, in Arabic; joined is told after the end, and the bill is late",
        record=billed,
        messages=make_messages(rng, lines),
        webhooks=[
            make_webhook("call.started", created, 3.9),
            make_webhook("call.joined", joined, 8.0),
            make_webhook("call.ended", ended, 7.6),
            make_webhook("call.billed", billed, PLAY_S),
        ],
    )


def make_webhook(event: str, view: Json, at_s: float, **options: Any) -> Webhook:
    payload = {"event": event, "call": view}
    return Webhook(event=event, call_id=view["callId"], payload=payload, at_s=at_s, record=view, **options)


def make_views(
    rng: random.Random, call_id: str, *, agent: str, ended_at: float, length_s: float, medium: Json, summary: str | None
) -> tuple[Json, Json, Json, Json]:
    """The call as it was when created, joined, ended and billed."""
    agent_id = random_uuid(rng)
    joined_at = ended_at - length_s
    created: Json = {
        "callId": call_id,
        "clientVersion": None,
        "created": iso(joined_at - 4.25, digits=6),
        "joined": None,
        "ended": None,
        "endReason": None,
        "billedDuration": None,
        "billedSideInputTokens": None,
        "billedSideOutputTokens": None,
        "billingStatus": "BILLING_STATUS_PENDING",
        "firstSpeaker": "FIRST_SPEAKER_AGENT",
        "firstSpeakerSettings": {"agent": {}},
        "inactivityMessages": [],
        "initialOutputMedium": "MESSAGE_MEDIUM_VOICE",
        "joinTimeout": "30s",
        "joinUrl": f"wss://voice.example.com/calls/{call_id}/join-url-that-must-not-leave",
        "languageHint": "en",
        "maxDuration": "3600s",
        "medium": medium,
        "model": "ultravox-v0.7",
        "recordingEnabled": True,
        "retentionPolicy": "retain",
        "systemPrompt": "A prompt that must not leave.",
        "temperature": 0.0,
        "timeExceededMessage": None,
        "voice": "Jessica",
        "transcriptOptional": True,
        "vadSettings": None,
        "shortSummary": None,
        "summary": None,
        "agent": {"agentId": agent_id, "name": agent},
        "agentId": agent_id,
        "experimentalSettings": None,
        "metadata": {"desk": "4"},
        "initialState": {},
        "requestContext": {},
        "callbacks": {
            "ended": {"url": "https://desk.example.com/ended", "secrets": ["callback-secret-that-must-not-leave"]}
        },
        "sipDetails": None,
    }
    joined = {**created, "clientVersion": next(iter(medium)), "joined": iso(joined_at, digits=6)}
    ended = {
        **joined,
        "ended": iso(ended_at, digits=6),
        "endReason": "hangup",
        "shortSummary": summary,
        "summary": summary,
    }
    billed = {
        **ended,
        "billedDuration": f"{length_s:.1f}s",
        "billedSideInputTokens": 0,
        "billedSideOutputTokens": 0,
        "billingStatus": "BILLING_STATUS_BILLED",
    }
    return created, joined, ended, billed


def not_joined(ended: Json) -> Json:
    """The ended call if nobody had come."""
    return {
        **ended,
        "clientVersion": None,
        "joined": None,
        "endReason": "unjoined",
        "billingStatus": "BILLING_STATUS_FREE_ZERO_EFFECTIVE_DURATION",
    }


def make_messages(rng: random.Random, lines: list[Line]) -> list[Json]:
    """The messages of one stage."""
    stage = random_uuid(rng)
    messages: list[Json] = []

    def add(role: str, text: str, **fields: Any) -> None:
        place = {"callStageMessageIndex": len(messages), "callStageId": stage}
        messages.append({"role": f"MESSAGE_ROLE_{role}", "text": text, **fields, **place})

    for line in lines:
        if line.role == "tool":
            call = {"invocationId": f"inv-{rng.getrandbits(32):08x}", "toolName": line.text}
            add("TOOL_CALL", compact(line.arguments), **call)
            add("TOOL_RESULT", compact(line.result), **call)
        else:
            audio = {"start": f"{line.start_s:g}s", "end": f"{line.end_s:g}s"}
            clock = {"start": f"{line.start_s + 0.1:.3f}s", "end": f"{line.end_s + 0.1:.3f}s"}
            add(line.role.upper(), line.text, medium="MESSAGE_MEDIUM_VOICE", timespan=audio, wallClockTimespan=clock)
    return messages
