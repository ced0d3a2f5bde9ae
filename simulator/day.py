"""A day of many short calls: for lists of several pages, for webhooks that get lost, and for counting.

Each call has its own time within the last 24 hours in its record; its webhooks are sent back to back, so that the day
is played in about a minute.
"""

import random
from collections.abc import Callable
from typing import Any

from simulator import cartesia_calls, retell_calls, ultravox_calls
from simulator.parts import Call, Json, Line, Webhook, length_s, number, random_uuid, timed

DAY_S = 86_400.0
QUIET_S = 900.0  # before now, so that every call is over
PACE_S = 0.025  # from one call's first webhook to the next call's; two thousand calls take 50 s
STEP_S = 0.4  # from one webhook of a call to its next
BILL_S = 2.0  # from a call's end to its bill: so long an Ultravox call that deletes itself can still be read
RINGING_S = 20.0

# In turn, for each provider: five of seven are held, one under a privacy setting, one reaches nobody.
KINDS = ("held", "held", "private", "held", "unreached", "held", "held")
AGENTS = ("Ferry desk", "Orchard line", "Clockmaker's shop")

PEOPLE = ("Ines Abara", "Joonas Pekka", "Lucía Werth", "Tariq Holm", "Maud Ellery", "Oskar Nwosu", "Priya Dahl")
WISHES = {
    "move my visit to next week": "It is moved to Tuesday at nine.",
    "ask whether my parcel has come": "It came this morning and waits for you.",
    "cancel tomorrow's delivery": "It is cancelled, and nothing will be charged.",
    "order two boxes of pears": "Two boxes of pears will be with you on Friday.",
    "hear when you are open": "We are open from eight until six, except on Sundays.",
}
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]


def make_day(seed: int, now: float, count: int, only: str | None = None) -> list[Call]:
    """So many calls over the three providers in turn, or of one, the earliest first; the same for the same seed.

    `marker` is a word that is in a call's transcript and in no other's; None for a call without a transcript.
    """
    providers = [provider for provider in MAKERS if only in (None, provider)]
    agents = {provider: _agents(seed, provider) for provider in providers}
    markers: set[str] = set()
    calls = []
    for place in range(count):
        provider, number_there = providers[place % len(providers)], place // len(providers)
        rng = random.Random(f"{seed} day {provider} {number_there}")
        marker = _word(rng)
        while marker in markers:
            marker = _word(rng)
        markers.add(marker)
        began = now - DAY_S + (place + rng.random()) * (DAY_S - QUIET_S) / count
        kind = KINDS[number_there % len(KINDS)]
        agent_id, agent = rng.choice(agents[provider])
        calls.append(MAKERS[provider](rng, kind, began, place * PACE_S, agent_id, agent, marker))
    return calls


def _agents(seed: int, provider: str) -> list[tuple[str, str]]:
    rng = random.Random(f"{seed} agents {provider}")
    return [
        (random_uuid(rng) if provider == "ultravox" else f"agent_{rng.getrandbits(96):024x}", name) for name in AGENTS
    ]


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=6))


def _talk(rng: random.Random, agent: str, marker: str) -> tuple[list[Line], str]:
    """What is said, and what a summary of it says: not the marker."""
    person = rng.choice(PEOPLE)
    wish, answer = rng.choice(list(WISHES.items()))
    said: list[tuple[Any, ...]] = [
        ("agent", f"{agent}, good day. What can I do for you?"),
        ("user", f"This is {person}. I would like to {wish}."),
        ("agent", "With pleasure. Your reference, please?"),
        ("user", f"It is {marker}."),
        ("agent", f"Thank you. {answer}"),
        ("user", "Good, goodbye."),
    ]
    if rng.random() < 0.3:
        said.insert(4, ("tool", "look_up", {"by": "reference"}, {"found": True}))
    return timed(rng, *said), f"{person} wanted to {wish}."


def _retell(rng: random.Random, kind: str, began: float, at_s: float, agent_id: str, agent: str, marker: str) -> Call:
    direction = "outbound" if kind == "unreached" else "inbound"
    basics = retell_calls.phone_basics(rng, direction, agent, {"desk": "4"}) | {"agent_id": agent_id}
    webhook = retell_calls.make_webhook
    if kind == "unreached":
        ended, analyzed = retell_calls.not_connected(basics, ended_at=began + RINGING_S)
        webhooks = [webhook("call_ended", ended, at_s), webhook("call_analyzed", analyzed, at_s + STEP_S)]
        return _call("retell", basics["call_id"], kind, analyzed, webhooks, None)
    lines, summary = _talk(rng, agent, marker)
    views = retell_calls.make_views(
        rng,
        lines,
        ended_at=began + length_s(lines),
        basics=basics,
        reason="user_hangup",
        analysis=retell_calls.make_analysis(summary, "Positive", successful=True),
        storage="basic_attributes_only" if kind == "private" else "everything",
    )
    for view in views[1:]:
        _make_small(view)
    shown = [retell_calls.stored(view) for view in views] if kind == "private" else list(views)
    webhooks = [
        webhook(event, view, at_s + place * STEP_S, record=record)
        for place, (event, view, record) in enumerate(
            zip(("call_started", "call_ended", "call_analyzed"), views, shown, strict=True)
        )
    ]
    return _call("retell", basics["call_id"], kind, shown[-1], webhooks, marker)


def _make_small(view: Json) -> None:
    """Without the times of single words and most of the latencies: two thirds of such a record."""
    for turn in (*view["transcript_object"], *view["transcript_with_tool_calls"]):
        if "words" in turn:
            turn["words"] = []
    view["latency"] = {"e2e": view["latency"]["e2e"]}


def _cartesia(rng: random.Random, kind: str, began: float, at_s: float, agent_id: str, agent: str, marker: str) -> Call:
    envelope = cartesia_calls.make_envelope(rng, f"ac_{rng.getrandbits(88):022x}") | {"agent_id": agent_id}
    lines, summary = ([], "") if kind == "unreached" else _talk(rng, agent, marker)
    ended_at = began + (length_s(lines) or RINGING_S)
    started, completed = cartesia_calls.make_views(rng, lines, envelope, ended_at=ended_at, agent=agent)

    def webhook(event: str, moment: float, late_s: float, **details: Any) -> Webhook:
        zero = moment - at_s - late_s  # the envelope's timestamp is the call's own time
        return cartesia_calls.make_webhook(rng, event, envelope, zero, at_s + late_s, **details)

    if kind == "unreached":
        failed = cartesia_calls.not_reached(started, ended_at=ended_at)
        failed_webhooks = [webhook("call_failed", ended_at, 0.0, call=failed)]
        return _call("cartesia", envelope["call_id"], kind, failed, failed_webhooks, None)
    if kind == "private":  # without retention the webhook alone has the transcript, and there is no analysis
        started, completed = started | {"zdr_enabled": True}, completed | {"zdr_enabled": True}
        kept = [
            {name: value for name, value in view.items() if name not in ("transcript", "summary")}
            for view in (started, completed)
        ]
        webhooks = [
            webhook("call_started", began, 0.0, call=started, record=kept[0]),
            webhook("call_completed", ended_at, STEP_S, call=completed, record=kept[1]),
        ]
        return _call("cartesia", envelope["call_id"], kind, kept[1], webhooks, marker)
    final = {**completed, "summary": summary}
    webhooks = [
        webhook("call_started", began, 0.0, call=started),
        webhook("call_completed", ended_at, STEP_S, call=completed),
        webhook("post_call_analysis", ended_at + 5, 2 * STEP_S, analysis={"summary": summary}, record=final),
    ]
    return _call("cartesia", envelope["call_id"], kind, final, webhooks, marker)


def _ultravox(rng: random.Random, kind: str, began: float, at_s: float, agent_id: str, agent: str, marker: str) -> Call:
    call_id = random_uuid(rng)
    lines, summary = ([], None) if kind == "unreached" else _talk(rng, agent, marker)
    views = ultravox_calls.make_views(
        rng,
        call_id,
        agent=agent,
        ended_at=began + (length_s(lines) or RINGING_S),
        length_s=length_s(lines) or RINGING_S,
        medium={"twilio": {"incoming": {"to": number(rng), "from": number(rng)}}},
        summary=summary,
    )
    for view in views:
        view |= {"agentId": agent_id, "agent": {"agentId": agent_id, "name": agent}}
        view["retentionPolicy"] = "auto_delete" if kind == "private" else "retain"
    created, joined, ended, billed = views
    webhook = ultravox_calls.make_webhook
    if kind == "unreached":
        unjoined = ultravox_calls.not_joined(ended)
        webhooks = [webhook("call.started", created, at_s), webhook("call.ended", unjoined, at_s + STEP_S)]
        return _call("ultravox", call_id, kind, unjoined, webhooks, None)
    webhooks = [
        webhook("call.started", created, at_s),
        webhook("call.joined", joined, at_s + STEP_S),
        webhook("call.ended", ended, at_s + 2 * STEP_S),
        webhook("call.billed", billed, at_s + 2 * STEP_S + BILL_S),
    ]
    return _call("ultravox", call_id, kind, billed, webhooks, marker, ultravox_calls.make_messages(rng, lines))


def _call(
    provider: str,
    call_id: str,
    kind: str,
    record: Json,
    webhooks: list[Webhook],
    marker: str | None,
    messages: list[Json] | None = None,
) -> Call:
    return Call(
        provider=provider,
        id=call_id,
        story=kind,
        record=record,
        webhooks=webhooks,
        messages=messages or [],
        marker=marker,
    )


MAKERS: dict[str, Callable[..., Call]] = {"retell": _retell, "cartesia": _cartesia, "ultravox": _ultravox}
