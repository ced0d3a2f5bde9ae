"""The calls that are played: thirteen invented ones over the three providers, the same for the same seed.

Shapes follow the vendors' documentation (2026-11): https://docs.retellai.com/features/webhook-overview,
https://docs.cartesia.ai/agents/webhooks and https://docs.ultravox.ai/webhooks/available-webhooks. People, words and
numbers are made up; the numbers are of the range that is kept for fiction.
"""

import json
import random
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

PROVIDERS = ("retell", "cartesia", "ultravox")
PLAY_S = 12.0  # no webhook is first due later than this

# aftercall's word for each event of the providers; whatever is not here is `call.unknown`.
TYPES: dict[str, dict[str, str]] = {
    "retell": {
        "call_started": "call.started",
        "transfer_bridged": "call.transfer",
        "call_ended": "call.ended",
        "call_analyzed": "call.analyzed",
    },
    "cartesia": {
        "call_started": "call.started",
        "call_turn": "call.turn",
        "call_completed": "call.ended",
        "call_failed": "call.ended",
        "post_call_analysis": "call.analyzed",
    },
    "ultravox": {
        "call.started": "call.started",
        "call.joined": "call.connected",
        "call.ended": "call.ended",
        "call.billed": "call.billed",
    },
}

Json = dict[str, Any]


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook of a call. Times are seconds from the start of the play."""

    event: str
    call_id: str | None  # None: it is about no call and becomes no event
    payload: Json
    at_s: float
    copies: int = 1  # posted at the same instant, byte for byte the same
    again_at_s: float | None = None  # sent once more then, although it was answered 2xx
    record: Json | None = None  # what the record API shows from now on; None: as before
    record_lag_s: float = 0.0  # the record API is this late in showing it
    two_signatures: bool = False
    forged: bool = False  # signed with a wrong key: to be refused

    @property
    def is_fact(self) -> bool:
        return self.call_id is not None and not self.forged


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call: what its record API answers and which webhooks are sent, in the order in which things happened."""

    provider: str
    id: str
    story: str  # what this call is here for
    record: Json  # as it is in the end
    webhooks: list[Webhook]
    messages: list[Json] = []  # Ultravox alone keeps the transcript apart from the call
    faults: tuple[int, ...] = ()  # HTTP statuses that the first requests for the record get, in this order


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing said, or one tool called. Seconds from the start of the call."""

    role: str  # agent | user | tool
    text: str
    start_s: float
    end_s: float
    arguments: Json = {}
    result: Json = {}


def make_calls(seed: int, now: float, only: str | None = None) -> list[Call]:
    """The calls of all providers, or of one; ids follow from the seed, times from `now` (Unix seconds)."""
    made = []
    for provider, make in (("retell", _retell_calls), ("cartesia", _cartesia_calls), ("ultravox", _ultravox_calls)):
        if only in (None, provider):
            made.extend(make(random.Random(f"{seed} {provider}"), now - PLAY_S - 3))  # so that no time is in the future
    return made


def event_type(provider: str, event: str) -> str:
    """aftercall's type word for a provider's event."""
    return TYPES[provider].get(event, "call.unknown")


# Retell: https://docs.retellai.com/api-references/get-call (2026-11). Times in Unix ms, money in cents.

# Under `basic_attributes_only` these are in the webhooks and nowhere else:
# https://docs.retellai.com/accounts/privacy-disable (2026-11)
RETELL_SENSITIVE = {
    "from_number",
    "to_number",
    "metadata",
    "retell_llm_dynamic_variables",
    "collected_dynamic_variables",
    "transcript",
    "transcript_object",
    "transcript_with_tool_calls",
    "recording_url",
    "recording_multi_channel_url",
    "public_log_url",
}


def _retell_calls(rng: random.Random, zero: float) -> list[Call]:
    return [
        _retell_answered(rng, zero),
        _retell_unanswered(rng, zero),
        _retell_voicemail(rng, zero),
        _retell_transferred(rng, zero),
        _retell_web_call(rng, zero),
        _retell_basic(rng, zero),
    ]


def _retell_answered(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("agent", "Good morning, Lindenhof Dental, this is Nora. How can I help?"),
        ("user", "Hi, it's Mirela Okafor. I'd like to move my cleaning to next week."),
        ("agent", "Of course, Mirela. Would Tuesday at nine suit you?"),
        ("user", "Tuesday at nine is perfect."),
        ("agent", "Done. You'll get a text in a minute. See you on Tuesday!"),
        ("user", "Thanks, bye."),
    )
    started, ended, analyzed = _retell_views(
        rng,
        lines,
        ended_at=zero + 2.2,
        basics=_retell_phone(rng, "inbound", "Lindenhof reception", {"patient": "P-2204"}),
        reason="user_hangup",
        analysis=_retell_analysis("Mirela Okafor moved her cleaning to Tuesday at nine.", "Positive", successful=True),
    )
    call_id = analyzed["call_id"]
    rated = {"event": "call_rated", "call": analyzed, "rating": {"stars": 5}}
    return Call(
        provider="retell",
        id=call_id,
        story="answered, not there at first",
        record=analyzed,
        faults=(404, 404),
        webhooks=[
            _retell_webhook("call_started", started, 0.2),
            _retell_webhook("call_ended", ended, 2.2, again_at_s=8.0),
            _retell_webhook("call_analyzed", analyzed, 4.0),
            Webhook(event="call_rated", call_id=call_id, payload=rated, at_s=9.5),  # not a kind that exists today
        ],
    )


def _retell_unanswered(rng: random.Random, zero: float) -> Call:
    """Never connected: no `call_started`, and yet `call_ended` and `call_analyzed`."""
    ended = {
        **_retell_phone(rng, "outbound", "Reminder line", None),
        "call_status": "not_connected",
        "data_storage_setting": "everything",
        "opt_in_signed_url": False,
        "disconnection_reason": "dial_no_answer",
        "end_timestamp": _ms(zero + 1.0),
        "duration_ms": 0,
    }
    analyzed = {**ended, "call_analysis": _retell_analysis("", "Unknown", successful=False)}
    return Call(
        provider="retell",
        id=ended["call_id"],
        story="unanswered",
        record=analyzed,
        webhooks=[_retell_webhook("call_ended", ended, 1.0), _retell_webhook("call_analyzed", analyzed, 2.5)],
    )


def _retell_voicemail(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("user", "You've reached Tomasz. Leave a message after the tone."),
        ("agent", "Hello Tomasz, your bicycle is repaired and ready to be picked up until six today."),
    )
    started, ended, analyzed = _retell_views(
        rng,
        lines,
        ended_at=zero + 3.0,
        basics=_retell_phone(rng, "outbound", "Workshop calls", {"order": "B-118"}),
        reason="voicemail_reached",
        analysis=_retell_analysis(
            "Left a message that the bicycle is ready.", "Neutral", successful=False, voicemail=True
        ),
    )
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="voicemail, analyzed before it ended",
        record=analyzed,
        webhooks=[
            _retell_webhook("call_started", started, 0.8),
            _retell_webhook("call_ended", ended, 4.4),
            _retell_webhook("call_analyzed", analyzed, 3.2),
        ],
    )


def _retell_transferred(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("agent", "Kestrel Insurance, you're speaking with an assistant. What happened?"),
        ("user", "A branch fell on my car last night. I want to talk to a person, please."),
        ("agent", "I'm sorry to hear that. I'll connect you with a claims handler right away."),
    )
    basics = _retell_phone(rng, "inbound", "Claims intake", {"policy": "KI-40917"})
    started, ended, analyzed = _retell_views(
        rng,
        lines,
        ended_at=zero + 3.6,
        basics=basics,
        reason="call_transfer",
        analysis=_retell_analysis("Reported storm damage; handed to a claims handler.", "Negative", successful=True),
    )
    inbound = {name: basics[name] for name in ("agent_id", "agent_version", "from_number", "to_number")}
    transfer = {
        "event": "transfer_bridged",
        "call": started,
        "transfer_destination": {"type": "predefined", "number": _number(rng)},
        "transfer_option": {"type": "warm_transfer"},
    }
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="transferred, the end three times at once",
        record=analyzed,
        webhooks=[
            # Asks what to do with a call that is coming in, and is none yet: answered, and no event.
            Webhook(
                event="call_inbound", call_id=None, payload={"event": "call_inbound", "call_inbound": inbound}, at_s=0.4
            ),
            _retell_webhook("call_started", started, 0.9),
            Webhook(event="transfer_bridged", call_id=analyzed["call_id"], payload=transfer, at_s=3.0),
            _retell_webhook("call_ended", ended, 3.6, copies=3),
            _retell_webhook("call_analyzed", analyzed, 5.5),
        ],
    )


def _retell_web_call(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("agent", "お電話ありがとうございます。旅館ほしのです。"),
        ("user", "来月の三日、二名で予約できますか。"),
        ("tool", "check_rooms", {"date": "03", "guests": 2, "note": "禁煙"}, {"free": 1, "room": "梅の間"}),
        ("agent", "はい、梅の間が空いております。お取りしますか。"),
        ("user", "お願いします。名前は佐久間ユキです🙂"),
        ("tool", "book_room", {"room": "梅の間", "name": "佐久間ユキ"}, {"error": "timeout"}),
        ("agent", "確認のメールをお送りします。お待ちしております。"),
    )
    basics = {
        "call_type": "web_call",
        "call_id": _retell_id(rng),
        "agent_id": f"agent_{rng.getrandbits(96):024x}",
        "agent_version": 7,
        "agent_name": "旅館ほしの",
        "call_status": "ended",
        "metadata": {"site": "hoshino"},
    }
    started, ended, analyzed = _retell_views(
        rng,
        lines,
        ended_at=zero + 4.8,
        basics=basics,
        reason="agent_hangup",
        analysis=_retell_analysis("佐久間様が二名で梅の間を予約した。", "Positive", successful=True, guests=2),
    )
    for view in (started, ended, analyzed):
        view["access_token"] = "join-token-that-must-not-leave"  # noqa: S105
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="web call, in Japanese, with tool calls",
        record=analyzed,
        webhooks=[
            _retell_webhook("call_started", started, 1.5),
            _retell_webhook("call_ended", ended, 4.8),
            _retell_webhook("call_analyzed", analyzed, 6.5, copies=2),
        ],
    )


def _retell_basic(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("agent", "Harbour Clinic, this call is private. What can I do for you?"),
        ("user", "I'm calling for my test results. My name is Anselm Dubois."),
        ("agent", "They are in, Anselm, and everything is as it should be."),
        ("user", "That's a relief. Thank you."),
    )
    started, ended, analyzed = _retell_views(
        rng,
        lines,
        ended_at=zero + 5.0,
        basics=_retell_phone(rng, "inbound", "Harbour Clinic", {"case": "HC-77"}),
        reason="user_hangup",
        analysis=_retell_analysis("Test results were passed on.", "Positive", successful=True),
        storage="basic_attributes_only",
    )

    def stored(view: Json) -> Json:
        return {name: value for name, value in view.items() if name not in RETELL_SENSITIVE}

    stranger = {**ended, "call_id": _retell_id(rng), "disconnection_reason": "error_unknown"}
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="only the webhooks hold the transcript; the start comes after the end",
        record=stored(analyzed),
        webhooks=[
            _retell_webhook("call_started", started, 5.6, record=stored(started)),
            _retell_webhook("call_ended", ended, 5.0, record=stored(ended)),
            _retell_webhook("call_analyzed", analyzed, 7.0, record=stored(analyzed)),
            Webhook(
                event="call_ended",
                call_id=stranger["call_id"],
                payload={"event": "call_ended", "call": stranger},
                at_s=6.0,
                forged=True,
            ),
        ],
    )


def _retell_webhook(event: str, view: Json, at_s: float, *, record: Json | None = None, **options: Any) -> Webhook:
    payload = {"event": event, "call": view}
    return Webhook(event=event, call_id=view["call_id"], payload=payload, at_s=at_s, record=record or view, **options)


def _retell_id(rng: random.Random) -> str:
    return f"call_{rng.getrandbits(108):027x}"


def _retell_phone(rng: random.Random, direction: str, agent: str, metadata: Json | None) -> Json:
    basics = {
        "call_type": "phone_call",
        "from_number": _number(rng),
        "to_number": _number(rng),
        "direction": direction,
        "telephony_identifier": {"twilio_call_sid": f"CA{rng.getrandbits(128):032x}"},
        "call_id": _retell_id(rng),
        "agent_id": f"agent_{rng.getrandbits(96):024x}",
        "agent_version": 3,
        "agent_name": agent,
        "call_status": "ended",
    }
    if metadata is not None:  # left out, not empty, where there is none
        basics |= {
            "metadata": metadata,
            "retell_llm_dynamic_variables": {"office_hours": "8-18"},
            "custom_sip_headers": {"X-Branch": "north"},
        }
    return basics


def _retell_analysis(summary: str, sentiment: str, *, successful: bool, voicemail: bool = False, **custom: Any) -> Json:
    return {
        "call_summary": summary,
        "in_voicemail": voicemail,
        "user_sentiment": sentiment,
        "call_successful": successful,
        "custom_analysis_data": custom,
    }


def _retell_views(
    rng: random.Random,
    lines: list[Line],
    *,
    ended_at: float,
    basics: Json,
    reason: str,
    analysis: Json,
    storage: str = "everything",
) -> tuple[Json, Json, Json]:
    """The call object as it was at the start, at the end, and once analyzed."""
    duration_ms = int(_length_s(lines) * 1000)
    seconds = round(duration_ms / 1000)
    files = f"https://recordings.example.com/{basics['call_id']}"
    spoken = [line for line in lines if line.role != "tool"]
    costs = [("elevenlabs_tts", 0.1166667), ("gpt_4_1", 0.075), ("twilio_telephony", 0.025)]
    tokens = [rng.randrange(900, 2400) for _ in spoken]
    started = {
        **basics,
        "call_status": "ongoing",
        "data_storage_setting": storage,
        "opt_in_signed_url": False,
        "start_timestamp": _ms(ended_at) - duration_ms,
    }
    ended = {
        **started,
        "call_status": "ended",
        "end_timestamp": _ms(ended_at),
        "duration_ms": duration_ms,
        "disconnection_reason": reason,
        "collected_dynamic_variables": {"last_node_name": "Goodbye"},
        "transcript": "".join(f"{line.role.title()}: {line.text}\n" for line in spoken),
        "transcript_object": [_retell_utterance(line) for line in spoken],
        "transcript_with_tool_calls": [entry for line in lines for entry in _retell_entries(rng, line)],
        "recording_url": f"{files}/recording.wav",
        "recording_multi_channel_url": f"{files}/recording_multichannel.wav",
        "public_log_url": f"{files}/public_log.txt",
        "latency": {part: _retell_latency(rng, base) for part, base in (("e2e", 900), ("llm", 450), ("tts", 160))},
        "call_cost": {
            "product_costs": [{"product": name, "unit_price": price, "cost": price * seconds} for name, price in costs],
            "total_duration_seconds": seconds,
            "total_duration_unit_price": sum(price for _, price in costs),
            "combined_cost": sum(price * seconds for _, price in costs),
        },
        "llm_token_usage": {"values": tokens, "average": sum(tokens) / len(tokens), "num_requests": len(tokens)},
    }
    return started, ended, {**ended, "call_analysis": analysis}


def _retell_utterance(line: Line) -> Json:
    words = line.text.split(" ")
    step = (line.end_s - line.start_s) / len(words)
    edges = [round(line.start_s + step * i, 3) for i in range(len(words) + 1)]
    timed = [{"word": word, "start": edges[i], "end": edges[i + 1]} for i, word in enumerate(words)]
    return {"role": line.role, "content": line.text, "words": timed}


def _retell_entries(rng: random.Random, line: Line) -> list[Json]:
    if line.role != "tool":
        return [_retell_utterance(line)]
    tool_call_id = f"tool_call_{rng.getrandbits(32):08x}"
    return [
        {
            "role": "tool_call_invocation",
            "tool_call_id": tool_call_id,
            "name": line.text,
            "arguments": compact(line.arguments),  # JSON text inside the JSON
            "type": "custom",
        },
        {
            "role": "tool_call_result",
            "tool_call_id": tool_call_id,
            "content": compact(line.result),
            "successful": "error" not in line.result,
        },
        {
            "role": "node_transition",
            "former_node_id": "n1",
            "former_node_name": "Greeting",
            "new_node_id": "n2",
            "new_node_name": "Booking",
            "transition_type": "normal",
        },
    ]


def _retell_latency(rng: random.Random, base: int) -> Json:
    values = sorted(base + rng.randrange(base) for _ in range(9))
    return {
        "p50": values[4],
        "p90": values[7],
        "p95": values[8] - 1.5,
        "p99": values[8] - 0.25,
        "max": values[8],
        "min": values[0],
        "num": len(values),
        "values": values,
    }


# Cartesia: https://docs.cartesia.ai/api-reference/agents/calls/get-call (2026-11). Seconds, RFC 3339, nanoseconds.

LONG_TRANSCRIPT_BYTES = 200_000


def _cartesia_calls(rng: random.Random, zero: float) -> list[Call]:
    return [
        _cartesia_tools(rng, zero),
        _cartesia_long(rng, zero),
        _cartesia_failed(rng, zero),
        _cartesia_legacy(rng, zero),
    ]


def _cartesia_tools(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("agent", "Fern & Fig Catering, hello! What are we cooking for?"),
        ("user", "A wedding for sixty people, on the fifth. Aurélie Nkemelu is the name."),
        ("tool", "find_date", {"day": "05", "guests": 60}, {"available": True}),
        ("agent", "The fifth is free. Shall I pencil you in, Aurélie?"),
        ("user", "Yes, please do."),
        ("agent", "It's pencilled in. You'll hear from us tomorrow."),
    )
    envelope = _cartesia_envelope(rng, f"ac_{rng.getrandbits(88):022x}")
    started, completed = _cartesia_views(rng, lines, envelope, ended_at=zero + 4.2, agent="Fern & Fig")
    summary = "Aurélie Nkemelu pencilled in a wedding for sixty people on the fifth."
    final = {**completed, "summary": summary}
    turn = {
        "role": "user",
        "text": lines[1].text,
        "start_timestamp": lines[1].start_s,
        "end_timestamp": lines[1].end_s,
        "was_interrupted": False,
    }
    return Call(
        provider="cartesia",
        id=envelope["call_id"],
        story="with a tool call; the record API fails once",
        record=final,
        faults=(500,),
        webhooks=[
            _cartesia_webhook(rng, "call_started", envelope, zero, 0.6, call=started),
            _cartesia_webhook(rng, "call_turn", envelope, zero, 2.0, turn=turn),
            _cartesia_webhook(rng, "call_completed", envelope, zero, 4.2, call=completed, again_at_s=9.0),
            _cartesia_webhook(
                rng, "post_call_analysis", envelope, zero, 6.0, analysis={"summary": summary}, record=final
            ),
        ],
    )


def _cartesia_long(rng: random.Random, zero: float) -> Call:
    lines = _long_talk(rng)
    envelope = _cartesia_envelope(rng, f"ac_{rng.getrandbits(88):022x}")
    started, completed = _cartesia_views(rng, lines, envelope, ended_at=zero + 7.2, agent="Beekeeping helpline")
    summary = "A very long talk about bees, from the first swarm to the last jar."
    final = {**completed, "summary": summary}
    return Call(
        provider="cartesia",
        id=envelope["call_id"],
        story="a transcript of 200 KB; the record is behind the webhook",
        record=final,
        webhooks=[
            _cartesia_webhook(rng, "call_started", envelope, zero, 2.4, call=started),
            _cartesia_webhook(rng, "call_completed", envelope, zero, 7.2, call=completed, record_lag_s=0.8),
            _cartesia_webhook(
                rng, "post_call_analysis", envelope, zero, 9.8, analysis={"summary": summary}, record=final
            ),
        ],
    )


def _cartesia_failed(rng: random.Random, zero: float) -> Call:
    """Dialled and not reached: `call_failed` and nothing else, no transcript."""
    envelope = _cartesia_envelope(rng, f"ac_{rng.getrandbits(88):022x}")
    started, _ = _cartesia_views(rng, [], envelope, ended_at=zero + 3.4, agent="Renewals")
    failed = {
        **started,
        "status": "failed",
        "end_time": _iso(zero + 3.4),
        "end_reason": "dial_busy",
        "error_message": "the line is busy",
        "telephony_params": {**started["telephony_params"], "direction": "outbound"},
    }
    return Call(
        provider="cartesia",
        id=envelope["call_id"],
        story="failed to reach anyone",
        record=failed,
        webhooks=[_cartesia_webhook(rng, "call_failed", envelope, zero, 3.4, call=failed)],
    )


def _cartesia_legacy(rng: random.Random, zero: float) -> Call:
    """The envelope of 2025: the turns under `body`, no call object, and the request's id is all there is."""
    lines = _timed(
        rng,
        ("agent", "Northwind Parcel, what's your tracking number?"),
        ("user", "It's eight eight four one."),
        ("agent", "It arrives this afternoon, between two and four."),
    )
    envelope = _cartesia_envelope(rng, None)
    request_id = envelope["request_id"]
    started, completed = _cartesia_views(rng, lines, envelope, ended_at=zero + 5.2, agent="Northwind Parcel")
    started["status"] = "active"
    known = ("role", "start_timestamp", "end_timestamp", "text", "tts_ttfb")  # in a turn, that year
    body = [{name: turn[name] for name in known if name in turn} for turn in completed["transcript"]]
    return Call(
        provider="cartesia",
        id=request_id,
        story="an envelope of 2025",
        record=completed,
        webhooks=[
            _cartesia_webhook(rng, "call_started", envelope, zero, 1.8, body=[], record=started),
            _cartesia_webhook(rng, "call_completed", envelope, zero, 5.2, body=body, record=completed),
        ],
    )


def _cartesia_envelope(rng: random.Random, call_id: str | None) -> Json:
    envelope = {
        "request_id": f"MZ{rng.getrandbits(128):032x}",
        "agent_id": f"agent_{rng.getrandbits(64):016x}",
        "webhook_id": f"agent_webhook_{rng.getrandbits(88):022x}",
    }
    return envelope if call_id is None else {**envelope, "call_id": call_id}


def _cartesia_webhook(
    rng: random.Random,
    event: str,
    envelope: Json,
    zero: float,
    at_s: float,
    *,
    record: Json | None = None,
    again_at_s: float | None = None,
    record_lag_s: float = 0.0,
    **details: Any,
) -> Webhook:
    second = datetime.fromtimestamp(zero + at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    timestamp = f"{second}.{rng.randrange(10**9):09d}Z"
    payload = {"type": event, **envelope, "timestamp": timestamp, **details}
    if event in ("call_completed", "call_failed") and "call" in details:
        payload["end_reason"] = details["call"]["end_reason"]
    return Webhook(
        event=event,
        call_id=_cartesia_call_id(envelope),
        payload=payload,
        at_s=at_s,
        again_at_s=again_at_s,
        record=record or details.get("call"),
        record_lag_s=record_lag_s,
    )


def _cartesia_call_id(envelope: Json) -> str:
    return str(envelope.get("call_id") or envelope["request_id"])


def _cartesia_views(
    rng: random.Random, lines: list[Line], envelope: Json, *, ended_at: float, agent: str
) -> tuple[Json, Json]:
    """The call as it was at the start, and at the end before its analysis."""
    started = {
        "id": _cartesia_call_id(envelope),
        "agent_id": envelope["agent_id"],
        "agent_name": agent,
        "zdr_enabled": False,
        "status": "started",
        "start_time": _iso(ended_at - _length_s(lines)),
        "end_time": None,
        "end_reason": None,
        "transcript": None,
        "telephony_params": {
            "to": _number(rng),
            "from": _number(rng),
            "call_sid": f"sid_{rng.getrandbits(48):012x}",
            "direction": "inbound",
            "connection_type": "websocket",
        },
        "telephony_account_type": "cartesia",
        "summary": None,
        "error_message": None,
        "deployment_id": f"ad_{rng.getrandbits(48):012x}",
        "deployment_version_id": f"av_{rng.getrandbits(48):012x}",
        "deployment_region": "EU",
        "metadata": {"campaign": "autumn"},
    }
    completed = {
        **started,
        "status": "completed",
        "end_time": _iso(ended_at),
        "end_reason": "client_hangup",
        "transcript": _cartesia_transcript(rng, lines),
    }
    return started, completed


def _cartesia_transcript(rng: random.Random, lines: list[Line]) -> list[Json]:
    """A tool call hangs on the turn of the agent that follows it; a log event is a turn of the system."""
    turns: list[Json] = []
    tools: list[Json] = []
    for line in lines:
        times = {"start_timestamp": line.start_s, "end_timestamp": line.end_s}
        if line.role == "tool":
            tools.append(
                {
                    "id": f"tc_{rng.getrandbits(32):08x}",
                    "name": line.text,
                    "arguments": line.arguments,  # an object here
                    "result": compact(line.result),
                }
            )
            log = {"event": f"{line.text}_done", "metadata": {"ok": "yes"}, "timestamp": line.end_s}
            turns.append({"role": "system", **times, "log_event": log})
        elif line.role == "user":
            turns.append({"role": "user", **times, "text": line.text, "vad_buffer_ms": 300, "stt_ttfb": 0.118})
        else:
            first, _, _ = line.text.partition(" ")
            turn = {
                "role": "assistant",
                **times,
                "text": line.text,
                "text_chunks": [{"text": first, "start_timestamp": line.start_s}],
                "end_reason": "tts_completed",
                "tts_ttfb": 0.1 + rng.random() / 5,
            }
            turns.append({**turn, "tool_calls": tools} if tools else turn)
            tools = []
    return turns


def _long_talk(rng: random.Random) -> list[Line]:
    who = ("The queen", "My neighbour", "An old drone", "The whole swarm", "Every forager", "Grandfather Idris")
    does = ("came back to", "circled", "quietly left", "rebuilt", "would not go near", "made honey beside")
    what = ("the lime tree", "the blue hive", "the frost-covered box", "the heather", "the smoker", "the church tower")
    when = ("before dawn", "all through May", "after the storm", "when it was too warm", "the year it never rained")
    said: list[tuple[Any, ...]] = []
    size = 0
    while size < LONG_TRANSCRIPT_BYTES:
        count = rng.randrange(2, 9)
        text = " ".join(
            f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)} {rng.choice(when)}." for _ in range(count)
        )
        said.append(("agent" if len(said) % 2 else "user", text))
        size += len(text) + 165  # what is around a turn's text in JSON
    return _timed(rng, *said)


# Ultravox: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11). RFC 3339, protobuf durations.


def _ultravox_calls(rng: random.Random, zero: float) -> list[Call]:
    return [_ultravox_stages(rng, zero), _ultravox_unjoined(rng, zero), _ultravox_sip(rng, zero)]


def _ultravox_stages(rng: random.Random, zero: float) -> Call:
    reception = _timed(
        rng,
        ("agent", "Welcome to Tidewater Ferries. Tickets or timetable?"),
        ("user", "Both, I think. I'm Ravi Lindqvist."),
        ("tool", "find_sailings", {"to": "Holm", "day": "saturday"}, {"sailings": ["09:10", "14:40"]}),
        ("agent", "On Saturday there are two sailings to Holm, at ten past nine and twenty to three."),
        ("user", "The early one."),
        ("agent", "I'll pass you to ticketing."),
    )
    ticketing = _timed(
        rng,
        ("agent", "Ticketing here. How many of you are there, Ravi?"),
        ("user", "Two adults and a dog."),
        ("tool", "sell_ticket", {"adults": 2, "dogs": 1}, {"ticket": "TF-5521"}),
        ("agent", "Two adults and a dog, ten past nine. Your ticket is TF-5521."),
        ("user", "Does the dog need a seat?"),
        ("agent", "The dog travels free, and standing."),
        ("user", "He'll manage. Goodbye!"),
        from_s=_length_s(reception),
    )
    call_id = _uuid(rng)
    messages = _ultravox_messages(rng, reception) + _ultravox_messages(rng, ticketing)
    created, joined, ended, billed = _ultravox_views(
        rng,
        call_id,
        agent="Tidewater reception",
        ended_at=zero + 5.8,
        length_s=_length_s(ticketing),
        medium={"twilio": {"outgoing": {"to": _number(rng), "from": _number(rng)}}},
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
            _ultravox_webhook("call.started", created, 0.3),
            _ultravox_webhook("call.joined", joined, 1.2),
            _ultravox_webhook("call.ended", ended, 5.8, again_at_s=10.5, two_signatures=True),
            _ultravox_webhook("call.billed", billed, 8.4),
        ],
    )


def _ultravox_unjoined(rng: random.Random, zero: float) -> Call:
    """Nobody came before the join timeout: no `call.joined`, no messages, and nothing to bill."""
    call_id = _uuid(rng)
    created, _, ended, _ = _ultravox_views(
        rng, call_id, agent="Orchard survey", ended_at=zero + 6.2, length_s=0, medium={"webRtc": {}}, summary=None
    )
    unjoined = {
        **ended,
        "clientVersion": None,
        "joined": None,
        "endReason": "unjoined",
        "billingStatus": "BILLING_STATUS_FREE_ZERO_EFFECTIVE_DURATION",
    }
    return Call(
        provider="ultravox",
        id=call_id,
        story="unjoined",
        record=unjoined,
        webhooks=[_ultravox_webhook("call.started", created, 2.8), _ultravox_webhook("call.ended", unjoined, 6.2)],
    )


def _ultravox_sip(rng: random.Random, zero: float) -> Call:
    lines = _timed(
        rng,
        ("agent", "مكتبة الزيتون، أهلاً بك. كيف أساعدك؟"),
        ("user", "هل وصل الكتاب الذي طلبته؟ اسمي سلمى حداد."),
        ("agent", "نعم يا سلمى، وصل هذا الصباح."),
        ("user", "شكراً جزيلاً."),
    )
    call_id = _uuid(rng)
    created, joined, ended, billed = _ultravox_views(
        rng,
        call_id,
        agent="مكتبة الزيتون",
        ended_at=zero + 7.6,
        length_s=_length_s(lines),
        medium={
            "sip": {
                "outgoing": {
                    "to": f"sip:{_number(rng)}@sip.example.com",
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
        messages=_ultravox_messages(rng, lines),
        webhooks=[
            _ultravox_webhook("call.started", created, 3.9),
            _ultravox_webhook("call.joined", joined, 8.0),
            _ultravox_webhook("call.ended", ended, 7.6),
            _ultravox_webhook("call.billed", billed, PLAY_S),
        ],
    )


def _ultravox_webhook(event: str, view: Json, at_s: float, **options: Any) -> Webhook:
    payload = {"event": event, "call": view}
    return Webhook(event=event, call_id=view["callId"], payload=payload, at_s=at_s, record=view, **options)


def _ultravox_views(
    rng: random.Random, call_id: str, *, agent: str, ended_at: float, length_s: float, medium: Json, summary: str | None
) -> tuple[Json, Json, Json, Json]:
    """The call as it was when created, joined, ended and billed."""
    agent_id = _uuid(rng)
    joined_at = ended_at - length_s
    created: Json = {
        "callId": call_id,
        "clientVersion": None,
        "created": _iso(joined_at - 4.25, digits=6),
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
    joined = {**created, "clientVersion": next(iter(medium)), "joined": _iso(joined_at, digits=6)}
    ended = {
        **joined,
        "ended": _iso(ended_at, digits=6),
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


def _ultravox_messages(rng: random.Random, lines: list[Line]) -> list[Json]:
    """The messages of one stage."""
    stage = _uuid(rng)
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


# What all three need.


def compact(value: Any) -> str:
    """JSON as the vendors write it: without spaces, other scripts as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _timed(rng: random.Random, *said: tuple[Any, ...], from_s: float = 0.0) -> list[Line]:
    """Lines (role, text) and tool calls (tool, name, arguments, result), one after the other with small pauses."""
    lines = []
    clock = from_s
    for role, text, *tool in said:
        start = clock + rng.uniform(0.3, 1.1)
        clock = start + (0.4 if role == "tool" else 0.6 + 0.06 * len(text))
        arguments, result = tool or ({}, {})
        lines.append(
            Line(
                role=role, text=text, start_s=round(start, 3), end_s=round(clock, 3), arguments=arguments, result=result
            )
        )
    return lines


def _length_s(lines: Sequence[Line]) -> float:
    return lines[-1].end_s + 0.5 if lines else 0.0


def _number(rng: random.Random) -> str:
    return f"+1555010{rng.randrange(100, 200):04d}"


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _ms(moment: float) -> int:
    return int(moment * 1000)


def _iso(moment: float, *, digits: int = 0) -> str:
    text = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text[: 20 + digits].rstrip(".") + "Z"


def facts_of(calls: Iterable[Call]) -> list[tuple[Call, Webhook]]:
    """Every distinct fact that must come out of aftercall exactly once, with its call."""
    return [(call, webhook) for call in calls for webhook in call.webhooks if webhook.is_fact]
