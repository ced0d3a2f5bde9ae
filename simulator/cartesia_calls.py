"""Cartesia's calls.

Cartesia: https://docs.cartesia.ai/api-reference/agents/calls/get-call (2026-11). Seconds, RFC 3339, nanoseconds.
"""

import random
from datetime import UTC, datetime
from typing import Any

from simulator.parts import Call, Json, Line, Webhook, compact, iso, length_s, number, timed

LONG_TRANSCRIPT_BYTES = 200_000


def calls(rng: random.Random, zero: float) -> list[Call]:
    return [
        _tools(rng, zero),
        _long(rng, zero),
        _failed(rng, zero),
        _legacy(rng, zero),
    ]


def _tools(rng: random.Random, zero: float) -> Call:
    lines = timed(
        rng,
        ("agent", "Fern & Fig Catering, hello! What are we cooking for?"),
        ("user", "A wedding for sixty people, on the fifth. Aurélie Nkemelu is the name."),
        ("tool", "find_date", {"day": "05", "guests": 60}, {"available": True}),
        ("agent", "The fifth is free. Shall I pencil you in, Aurélie?"),
        ("user", "Yes, please do."),
        ("agent", "It's pencilled in. You'll hear from us tomorrow."),
    )
    envelope = make_envelope(rng, f"ac_{rng.getrandbits(88):022x}")
    started, completed = make_views(rng, lines, envelope, ended_at=zero + 4.2, agent="Fern & Fig")
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
            make_webhook(rng, "call_started", envelope, zero, 0.6, call=started),
            make_webhook(rng, "call_turn", envelope, zero, 2.0, turn=turn),
            make_webhook(rng, "call_completed", envelope, zero, 4.2, call=completed, again_at_s=9.0),
            make_webhook(rng, "post_call_analysis", envelope, zero, 6.0, analysis={"summary": summary}, record=final),
        ],
    )


def _long(rng: random.Random, zero: float) -> Call:
    lines = _long_talk(rng)
    envelope = make_envelope(rng, f"ac_{rng.getrandbits(88):022x}")
    started, completed = make_views(rng, lines, envelope, ended_at=zero + 7.2, agent="Beekeeping helpline")
    summary = "A very long talk about bees, from the first swarm to the last jar."
    final = {**completed, "summary": summary}
    return Call(
        provider="cartesia",
        id=envelope["call_id"],
        story="a transcript of 200 KB; the record is behind the webhook",
        record=final,
        webhooks=[
            make_webhook(rng, "call_started", envelope, zero, 2.4, call=started),
            make_webhook(rng, "call_completed", envelope, zero, 7.2, call=completed, record_lag_s=0.8),
            make_webhook(rng, "post_call_analysis", envelope, zero, 9.8, analysis={"summary": summary}, record=final),
        ],
    )


def _failed(rng: random.Random, zero: float) -> Call:
    """Dialled and not reached: `call_failed` and nothing else, no transcript."""
    envelope = make_envelope(rng, f"ac_{rng.getrandbits(88):022x}")
    started, _ = make_views(rng, [], envelope, ended_at=zero + 3.4, agent="Renewals")
    failed = not_reached(started, ended_at=zero + 3.4)
    return Call(
        provider="cartesia",
        id=envelope["call_id"],
        story="failed to reach anyone",
        record=failed,
        webhooks=[make_webhook(rng, "call_failed", envelope, zero, 3.4, call=failed)],
    )


def _legacy(rng: random.Random, zero: float) -> Call:
    """The envelope of 2025: the turns under `body`, no call object, and the request's id is all there is."""
    lines = timed(
        rng,
        ("agent", "Northwind Parcel, what's your tracking number?"),
        ("user", "It's eight eight four one."),
        ("agent", "It arrives this afternoon, between two and four."),
    )
    envelope = make_envelope(rng, None)
    request_id = envelope["request_id"]
    started, completed = make_views(rng, lines, envelope, ended_at=zero + 5.2, agent="Northwind Parcel")
    started["status"] = "active"
    known = ("role", "start_timestamp", "end_timestamp", "text", "tts_ttfb")  # in a turn, that year
    body = [{name: turn[name] for name in known if name in turn} for turn in completed["transcript"]]
    return Call(
        provider="cartesia",
        id=request_id,
        story="an envelope of 2025",
        record=completed,
        webhooks=[
            make_webhook(rng, "call_started", envelope, zero, 1.8, body=[], record=started),
            make_webhook(rng, "call_completed", envelope, zero, 5.2, body=body, record=completed),
        ],
    )


def make_envelope(rng: random.Random, call_id: str | None) -> Json:
    envelope = {
        "request_id": f"MZ{rng.getrandbits(128):032x}",
        "agent_id": f"agent_{rng.getrandbits(64):016x}",
        "webhook_id": f"agent_webhook_{rng.getrandbits(88):022x}",
    }
    return envelope if call_id is None else {**envelope, "call_id": call_id}


def make_webhook(
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
        call_id=_call_id(envelope),
        payload=payload,
        at_s=at_s,
        again_at_s=again_at_s,
        record=record or details.get("call"),
        record_lag_s=record_lag_s,
    )


def _call_id(envelope: Json) -> str:
    return str(envelope.get("call_id") or envelope["request_id"])


def make_views(
    rng: random.Random, lines: list[Line], envelope: Json, *, ended_at: float, agent: str
) -> tuple[Json, Json]:
    """The call as it was at the start, and at the end before its analysis."""
    started = {
        "id": _call_id(envelope),
        "agent_id": envelope["agent_id"],
        "agent_name": agent,
        "zdr_enabled": False,
        "status": "started",
        "start_time": iso(ended_at - length_s(lines)),
        "end_time": None,
        "end_reason": None,
        "transcript": None,
        "telephony_params": {
            "to": number(rng),
            "from": number(rng),
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
        "end_time": iso(ended_at),
        "end_reason": "client_hangup",
        "transcript": _transcript(rng, lines),
    }
    return started, completed


def not_reached(started: Json, *, ended_at: float) -> Json:
    """The call as it was after dialling in vain."""
    return {
        **started,
        "status": "failed",
        "end_time": iso(ended_at),
        "end_reason": "dial_busy",
        "error_message": "the line is busy",
        "telephony_params": {**started["telephony_params"], "direction": "outbound"},
    }


def _transcript(rng: random.Random, lines: list[Line]) -> list[Json]:
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
    return timed(rng, *said)
