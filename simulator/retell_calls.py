"""Retell's calls.

Retell: https://docs.retellai.com/api-references/get-call (2026-11). Times in Unix ms, money in cents.
"""

import random
from typing import Any

from simulator.parts import Call, Json, Line, Webhook, compact, length_s, ms, number, timed

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


def calls(rng: random.Random, zero: float) -> list[Call]:
    return [
        _answered(rng, zero),
        _unanswered(rng, zero),
        _voicemail(rng, zero),
        _transferred(rng, zero),
        _web_call(rng, zero),
        _basic(rng, zero),
    ]


def _answered(rng: random.Random, zero: float) -> Call:
    lines = timed(
        rng,
        ("agent", "Good morning, Lindenhof Dental, this is Nora. How can I help?"),
        ("user", "Hi, it's Mirela Okafor. I'd like to move my cleaning to next week."),
        ("agent", "Of course, Mirela. Would Tuesday at nine suit you?"),
        ("user", "Tuesday at nine is perfect."),
        ("agent", "Done. You'll get a text in a minute. See you on Tuesday!"),
        ("user", "Thanks, bye."),
    )
    started, ended, analyzed = make_views(
        rng,
        lines,
        ended_at=zero + 2.2,
        basics=phone_basics(rng, "inbound", "Lindenhof reception", {"patient": "P-2204"}),
        reason="user_hangup",
        analysis=make_analysis("Mirela Okafor moved her cleaning to Tuesday at nine.", "Positive", successful=True),
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
            make_webhook("call_started", started, 0.2),
            make_webhook("call_ended", ended, 2.2, again_at_s=8.0),
            make_webhook("call_analyzed", analyzed, 4.0),
            Webhook(event="call_rated", call_id=call_id, payload=rated, at_s=9.5),  # not a kind that exists today
        ],
    )


def _unanswered(rng: random.Random, zero: float) -> Call:
    """Never connected: no `call_started`, and yet `call_ended` and `call_analyzed`."""
    ended, analyzed = not_connected(phone_basics(rng, "outbound", "Reminder line", None), ended_at=zero + 1.0)
    return Call(
        provider="retell",
        id=ended["call_id"],
        story="unanswered",
        record=analyzed,
        webhooks=[make_webhook("call_ended", ended, 1.0), make_webhook("call_analyzed", analyzed, 2.5)],
    )


def _voicemail(rng: random.Random, zero: float) -> Call:
    lines = timed(
        rng,
        ("user", "You've reached Tomasz. Leave a message after the tone."),
        ("agent", "Hello Tomasz, your bicycle is repaired and ready to be picked up until six today."),
    )
    started, ended, analyzed = make_views(
        rng,
        lines,
        ended_at=zero + 3.0,
        basics=phone_basics(rng, "outbound", "Workshop calls", {"order": "B-118"}),
        reason="voicemail_reached",
        analysis=make_analysis(
            "Left a message that the bicycle is ready.", "Neutral", successful=False, voicemail=True
        ),
    )
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="voicemail, analyzed before it ended",
        record=analyzed,
        webhooks=[
            make_webhook("call_started", started, 0.8),
            make_webhook("call_ended", ended, 4.4),
            make_webhook("call_analyzed", analyzed, 3.2),
        ],
    )


def _transferred(rng: random.Random, zero: float) -> Call:
    lines = timed(
        rng,
        ("agent", "Kestrel Insurance, you're speaking with an assistant. What happened?"),
        ("user", "A branch fell on my car last night. I want to talk to a person, please."),
        ("agent", "I'm sorry to hear that. I'll connect you with a claims handler right away."),
    )
    basics = phone_basics(rng, "inbound", "Claims intake", {"policy": "KI-40917"})
    started, ended, analyzed = make_views(
        rng,
        lines,
        ended_at=zero + 3.6,
        basics=basics,
        reason="call_transfer",
        analysis=make_analysis("Reported storm damage; handed to a claims handler.", "Negative", successful=True),
    )
    inbound = {name: basics[name] for name in ("agent_id", "agent_version", "from_number", "to_number")}
    transfer = {
        "event": "transfer_bridged",
        "call": started,
        "transfer_destination": {"type": "predefined", "number": number(rng)},
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
            make_webhook("call_started", started, 0.9),
            Webhook(event="transfer_bridged", call_id=analyzed["call_id"], payload=transfer, at_s=3.0),
            make_webhook("call_ended", ended, 3.6, copies=3),
            make_webhook("call_analyzed", analyzed, 5.5),
        ],
    )


def _web_call(rng: random.Random, zero: float) -> Call:
    lines = timed(
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
        "call_id": _id(rng),
        "agent_id": f"agent_{rng.getrandbits(96):024x}",
        "agent_version": 7,
        "agent_name": "旅館ほしの",
        "call_status": "ended",
        "metadata": {"site": "hoshino"},
    }
    started, ended, analyzed = make_views(
        rng,
        lines,
        ended_at=zero + 4.8,
        basics=basics,
        reason="agent_hangup",
        analysis=make_analysis("佐久間様が二名で梅の間を予約した。", "Positive", successful=True, guests=2),
    )
    for view in (started, ended, analyzed):
        view["access_token"] = "join-token-that-must-not-leave"  # noqa: S105
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="web call, in Japanese, with tool calls",
        record=analyzed,
        webhooks=[
            make_webhook("call_started", started, 1.5),
            make_webhook("call_ended", ended, 4.8),
            make_webhook("call_analyzed", analyzed, 6.5, copies=2),
        ],
    )


def _basic(rng: random.Random, zero: float) -> Call:
    lines = timed(
        rng,
        ("agent", "Harbour Clinic, this call is private. What can I do for you?"),
        ("user", "I'm calling for my test results. My name is Anselm Dubois."),
        ("agent", "They are in, Anselm, and everything is as it should be."),
        ("user", "That's a relief. Thank you."),
    )
    started, ended, analyzed = make_views(
        rng,
        lines,
        ended_at=zero + 5.0,
        basics=phone_basics(rng, "inbound", "Harbour Clinic", {"case": "HC-77"}),
        reason="user_hangup",
        analysis=make_analysis("Test results were passed on.", "Positive", successful=True),
        storage="basic_attributes_only",
    )

    stranger = {**ended, "call_id": _id(rng), "disconnection_reason": "error_unknown"}
    return Call(
        provider="retell",
        id=analyzed["call_id"],
        story="only the webhooks hold the transcript; the start comes after the end",
        record=stored(analyzed),
        webhooks=[
            make_webhook("call_started", started, 5.6, record=stored(started)),
            make_webhook("call_ended", ended, 5.0, record=stored(ended)),
            make_webhook("call_analyzed", analyzed, 7.0, record=stored(analyzed)),
            Webhook(
                event="call_ended",
                call_id=stranger["call_id"],
                payload={"event": "call_ended", "call": stranger},
                at_s=6.0,
                forged=True,
            ),
        ],
    )


def make_webhook(event: str, view: Json, at_s: float, *, record: Json | None = None, **options: Any) -> Webhook:
    payload = {"event": event, "call": view}
    return Webhook(event=event, call_id=view["call_id"], payload=payload, at_s=at_s, record=record or view, **options)


def _id(rng: random.Random) -> str:
    return f"call_{rng.getrandbits(108):027x}"


def phone_basics(rng: random.Random, direction: str, agent: str, metadata: Json | None) -> Json:
    basics = {
        "call_type": "phone_call",
        "from_number": number(rng),
        "to_number": number(rng),
        "direction": direction,
        "telephony_identifier": {"twilio_call_sid": f"CA{rng.getrandbits(128):032x}"},
        "call_id": _id(rng),
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


def not_connected(basics: Json, *, ended_at: float) -> tuple[Json, Json]:
    """A call that nobody answered, at its end and once analyzed: it has no start."""
    ended = {
        **basics,
        "call_status": "not_connected",
        "data_storage_setting": "everything",
        "opt_in_signed_url": False,
        "disconnection_reason": "dial_no_answer",
        "end_timestamp": ms(ended_at),
        "duration_ms": 0,
    }
    return ended, {**ended, "call_analysis": make_analysis("", "Unknown", successful=False)}


def stored(view: Json) -> Json:
    """What the record API shows of a call under `basic_attributes_only`."""
    return {name: value for name, value in view.items() if name not in RETELL_SENSITIVE}


def make_analysis(summary: str, sentiment: str, *, successful: bool, voicemail: bool = False, **custom: Any) -> Json:
    return {
        "call_summary": summary,
        "in_voicemail": voicemail,
        "user_sentiment": sentiment,
        "call_successful": successful,
        "custom_analysis_data": custom,
    }


def make_views(
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
    duration_ms = int(length_s(lines) * 1000)
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
        "start_timestamp": ms(ended_at) - duration_ms,
    }
    ended = {
        **started,
        "call_status": "ended",
        "end_timestamp": ms(ended_at),
        "duration_ms": duration_ms,
        "disconnection_reason": reason,
        "collected_dynamic_variables": {"last_node_name": "Goodbye"},
        "transcript": "".join(f"{line.role.title()}: {line.text}\n" for line in spoken),
        "transcript_object": [_utterance(line) for line in spoken],
        "transcript_with_tool_calls": [entry for line in lines for entry in _entries(rng, line)],
        "recording_url": f"{files}/recording.wav",
        "recording_multi_channel_url": f"{files}/recording_multichannel.wav",
        "public_log_url": f"{files}/public_log.txt",
        "latency": {part: _latency(rng, base) for part, base in (("e2e", 900), ("llm", 450), ("tts", 160))},
        "call_cost": {
            "product_costs": [{"product": name, "unit_price": price, "cost": price * seconds} for name, price in costs],
            "total_duration_seconds": seconds,
            "total_duration_unit_price": sum(price for _, price in costs),
            "combined_cost": sum(price * seconds for _, price in costs),
        },
        "llm_token_usage": {"values": tokens, "average": sum(tokens) / len(tokens), "num_requests": len(tokens)},
    }
    return started, ended, {**ended, "call_analysis": analysis}


def _utterance(line: Line) -> Json:
    words = line.text.split(" ")
    step = (line.end_s - line.start_s) / len(words)
    edges = [round(line.start_s + step * i, 3) for i in range(len(words) + 1)]
    timed = [{"word": word, "start": edges[i], "end": edges[i + 1]} for i, word in enumerate(words)]
    return {"role": line.role, "content": line.text, "words": timed}


def _entries(rng: random.Random, line: Line) -> list[Json]:
    if line.role != "tool":
        return [_utterance(line)]
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


def _latency(rng: random.Random, base: int) -> Json:
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
