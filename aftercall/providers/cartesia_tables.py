"""Cartesia's words and ours: https://docs.cartesia.ai/agents/webhooks (2026-11) and what each table names."""

from typing import Literal

from aftercall.call import Channel, Direction, EndedBy, EndReason, Role, Status
from aftercall.event import EventType

# https://docs.cartesia.ai/agents/webhooks (2026-11). The third column is what tells two facts of a kind apart: a call
# starts and ends once, its analysis may be made again, and turns have no id.
Apart = Literal["call", "analysis", "body"]
Kind = tuple[EventType, Literal["wait", "once", "skip"], Apart]
EVENTS: dict[str, Kind] = {
    "call_started": ("call.started", "wait", "call"),
    "call_turn": ("call.turn", "skip", "body"),
    "call_completed": ("call.ended", "wait", "call"),
    "call_failed": ("call.ended", "wait", "call"),
    "post_call_analysis": ("call.analyzed", "wait", "analysis"),
}
UNKNOWN: Kind = ("call.unknown", "once", "body")

# https://docs.cartesia.ai/api-reference/agents/calls/get-call (2026-11); `active` and `cancelled` are the words of
# versions up to 2025-04-16.
STATUSES: dict[str, Status] = {
    "created": "created",
    "started": "ongoing",
    "active": "ongoing",
    "completed": "ended",
    "cancelled": "ended",
    "failed": "failed",
}
OVER = ("completed", "failed", "cancelled")
# What the event itself tells, where the record is behind: how the call ended, or the least that must be true.
ENDED: dict[str, Status] = {"call_completed": "ended", "call_failed": "failed"}
AT_LEAST: dict[str, Status] = {"call_started": "ongoing", "call_turn": "ongoing", "post_call_analysis": "ended"}
PROGRESS: dict[Status, int] = {"created": 0, "ongoing": 1, "ended": 2, "failed": 2}

# https://docs.cartesia.ai/api-reference/agents/calls/get-call, `end_reason` (2026-11). `error` does not say whether the
# agent's own code or the platform failed; both run at Cartesia, hence provider_error.
ENDS: dict[str, tuple[EndReason, EndedBy | None]] = {
    "agent_hangup": ("agent_hangup", "agent"),
    "client_hangup": ("user_hangup", "user"),
    "client_disconnected": ("user_hangup", "user"),
    "api_cancelled": ("cancelled", "system"),
    "cancelled": ("cancelled", "system"),  # the old `status`, where it stands in for a reason
    "max_duration": ("max_duration", "system"),
    "inactivity": ("inactivity", "system"),
    "dial_busy": ("busy", None),
    "dial_failed": ("dial_failed", None),
    "dial_no_answer": ("no_answer", None),
    "error": ("provider_error", "system"),
}

# `telephony_account_type`, same page (2026-11): cartesia, twilio or sip_trunk.
CHANNELS: dict[str, Channel] = {"sip_trunk": "sip"}
DIRECTIONS: dict[str, Direction] = {"inbound": "inbound", "outbound": "outbound"}

# A transcript's `role` and `end_reason`, same page (2026-11). `system` rows are log_event and log_metric, not speech.
ROLES: dict[str, Role] = {"user": "user", "assistant": "agent", "system": "system"}
INTERRUPTED: dict[str, bool] = {"interrupted": True, "call_ended": False, "tts_completed": False}
# Field, our name, milliseconds per unit: times to first byte come in seconds.
LATENCIES = (
    ("tts_ttfb", "tts_ttfb_ms", 1000),
    ("stt_ttfb", "stt_ttfb_ms", 1000),
    ("vad_buffer_ms", "vad_buffer_ms", 1),
)

# What the array is called in the answers that hold a list: agents of 2026-03-01 are `summaries`, all others `data`.
LISTS = ("data", "summaries", "agents", "results")
