"""Retell's words and constants, each under the page that it was read on; data only, used by `retell.py`."""

import re
from typing import Literal

from aftercall.call import Channel, Direction, EndedBy, EndReason, Role, Sentiment, Status, Storage
from aftercall.event import EventType

# https://docs.retellai.com/features/secure-webhook (2026-11)
HEADER = "x-retell-signature"
SIGNATURE = re.compile(r"v=([0-9]{1,16}),d=([0-9a-fA-F]{64})")
TOLERANCE_S = 300

# https://docs.retellai.com/features/webhook-overview (2026-11)
EVENTS: dict[str, EventType] = {
    "call_started": "call.started",
    "call_ended": "call.ended",
    "call_analyzed": "call.analyzed",
    "transcript_updated": "call.turn",
    "transfer_started": "call.transfer",
    "transfer_bridged": "call.transfer",
    "transfer_cancelled": "call.transfer",
    "transfer_ended": "call.transfer",
}
# Chats have webhooks of their own, and an inbound one waits to be told which agent takes the call; neither is an event
# of a call: https://docs.retellai.com/features/inbound-call-webhook (2026-11)
NOT_CALLS = frozenset({"call_inbound", "chat_inbound", "chat_started", "chat_ended", "chat_analyzed"})
LIVE: frozenset[EventType] = frozenset({"call.started", "call.turn", "call.transfer"})
OVER: frozenset[EventType] = frozenset({"call.ended", "call.analyzed"})
AWAITED: frozenset[EventType] = frozenset({"call.analyzed"})
# What may come many times for one call, and what to do about the record then.
REPEATED: dict[EventType, Literal["once", "skip"]] = {
    "call.turn": "skip",
    "call.transfer": "skip",
    "call.unknown": "once",
}

# https://docs.retellai.com/api-references/get-call (2026-11), for this and the next six tables
STATUSES: dict[str, Status] = {
    "registered": "created",
    "ongoing": "ongoing",
    "ended": "ended",
    "not_connected": "failed",
    "error": "failed",
}
CHANNELS: dict[str, Channel] = {"phone_call": "phone", "web_call": "web"}
DIRECTIONS: dict[str, Direction] = {"inbound": "inbound", "outbound": "outbound"}
SENTIMENTS: dict[str, Sentiment] = {
    "Positive": "positive",
    "Neutral": "neutral",
    "Negative": "negative",
    "Unknown": "unknown",
}
ROLES: dict[str, Role] = {
    "agent": "agent",
    "user": "user",
    "transfer_target": "user",
    "tool_call_invocation": "tool",
    "tool_call_result": "tool",
}  # whatever else is there (node_transition, dtmf, sms, injected …) is nobody's speech: system
SPEAKERS: dict[str, Role] = {"Agent": "agent", "User": "user", "Transfer Target": "user"}  # in the plain transcript
STORAGE: dict[str, Storage] = {
    "everything": "full",
    "everything_except_pii": "no_pii",
    "basic_attributes_only": "basic",
}
TRANSCRIPTS = ("transcript_with_tool_calls", "transcript_object", "transcript")
# What `everything_except_pii` scrubs where it stands: https://docs.retellai.com/accounts/privacy-disable (2026-11)
SCRUBBED = (
    *TRANSCRIPTS,
    "from_number",
    "to_number",
    "recording_url",
    "public_log_url",
    "metadata",
    "retell_llm_dynamic_variables",
    "collected_dynamic_variables",
    "call_analysis",
)

# https://docs.retellai.com/reliability/debug-call-disconnect (2026-11), with the call status that it gives each reason
REASONS: dict[str, tuple[EndReason, EndedBy, Status]] = {
    "user_hangup": ("user_hangup", "user", "ended"),
    "agent_hangup": ("agent_hangup", "agent", "ended"),
    "user_requested_dnc": ("agent_hangup", "agent", "ended"),
    "user_requested_callback": ("agent_hangup", "agent", "ended"),
    "call_transfer": ("transferred", "agent", "ended"),
    "transfer_bridged": ("transferred", "agent", "ended"),
    "transfer_cancelled": ("cancelled", "agent", "ended"),
    "call_take_over": ("transferred", "system", "ended"),
    "manual_stopped": ("cancelled", "system", "ended"),
    "voicemail_reached": ("voicemail", "agent", "ended"),
    "ivr_reached": ("agent_hangup", "agent", "ended"),
    "inactivity": ("inactivity", "system", "ended"),
    "max_duration_reached": ("max_duration", "system", "ended"),
    "credit_exhausted": ("limit_reached", "system", "ended"),
    "budget_reached": ("limit_reached", "system", "ended"),
    "concurrency_limit_reached": ("limit_reached", "system", "failed"),
    "no_concurrency_fallback": ("limit_reached", "system", "failed"),
    "no_valid_payment": ("limit_reached", "system", "failed"),
    "scam_detected": ("blocked", "system", "failed"),
    "marked_as_spam": ("blocked", "system", "failed"),
    "network_blocked": ("blocked", "system", "failed"),
    "dial_busy": ("busy", "system", "failed"),
    "dial_failed": ("dial_failed", "system", "failed"),
    "dial_no_answer": ("no_answer", "system", "failed"),
    "invalid_destination": ("dial_failed", "system", "failed"),
    "user_declined": ("declined", "user", "failed"),
    "telephony_provider_permission_denied": ("telephony_error", "system", "failed"),
    "telephony_provider_unavailable": ("telephony_error", "system", "failed"),
    "sip_routing_error": ("telephony_error", "system", "failed"),
    "error_llm_websocket_open": ("agent_error", "system", "failed"),
    "error_llm_websocket_lost_connection": ("agent_error", "system", "failed"),
    "error_llm_websocket_runtime": ("agent_error", "system", "failed"),
    "error_llm_websocket_corrupt_payload": ("agent_error", "system", "failed"),
    "error_no_audio_received": ("telephony_error", "system", "failed"),
    "error_asr": ("provider_error", "system", "failed"),
    "error_retell": ("provider_error", "system", "failed"),
    "error_unknown": ("provider_error", "system", "failed"),
    "error_user_not_joined": ("unjoined", "system", "failed"),
    "registered_call_timeout": ("unjoined", "system", "failed"),
    # no longer in the list, still in old records
    "machine_detected": ("voicemail", "agent", "ended"),
    "error_inbound_webhook": ("agent_error", "system", "failed"),
    "error_frontend_corrupted_payload": ("agent_error", "system", "failed"),
    "error_twilio": ("telephony_error", "system", "failed"),
}
UNKNOWN_REASON: tuple[EndReason, EndedBy | None, Status] = ("unknown", None, "ended")
