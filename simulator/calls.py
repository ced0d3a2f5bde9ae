"""The calls that are played: thirteen invented ones over the three providers, the same for the same seed.

Shapes follow the vendors' documentation (2026-11): https://docs.retellai.com/features/webhook-overview,
https://docs.cartesia.ai/agents/webhooks and https://docs.ultravox.ai/webhooks/available-webhooks. People, words and
numbers are made up; the numbers are of the range that is kept for fiction.
"""

import random
from collections.abc import Iterable

from simulator import cartesia_calls, retell_calls, ultravox_calls
from simulator.parts import PLAY_S, Call, Webhook

MAKERS = {"retell": retell_calls.calls, "cartesia": cartesia_calls.calls, "ultravox": ultravox_calls.calls}
PROVIDERS = tuple(MAKERS)

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


def make_calls(seed: int, now: float, only: str | None = None) -> list[Call]:
    """The calls of all providers, or of one; ids follow from the seed, times from `now` (Unix seconds)."""
    made = []
    for provider, make in MAKERS.items():
        if only in (None, provider):
            made.extend(make(random.Random(f"{seed} {provider}"), now - PLAY_S - 3))  # so that no time is in the future
    return made


def event_type(provider: str, event: str) -> str:
    """aftercall's type word for a provider's event."""
    return TYPES[provider].get(event, "call.unknown")


def facts_of(calls: Iterable[Call]) -> list[tuple[Call, Webhook]]:
    """Every distinct fact that must come out of aftercall exactly once, with its call."""
    return [(call, webhook) for call in calls for webhook in call.webhooks if webhook.is_fact]
