"""Ultravox's words, and what they are called here: https://docs.ultravox.ai (2026-11)."""

from aftercall.call import Channel, Direction, EndedBy, EndReason, Role, Storage
from aftercall.event import EventType

# https://docs.ultravox.ai/webhooks/available-webhooks (2026-11)
EVENTS: dict[str, EventType] = {
    "call.started": "call.started",  # created; nobody is connected yet
    "call.joined": "call.connected",
    "call.ended": "call.ended",  # also for a call that nobody joined
    "call.billed": "call.billed",
}

# endReason: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11)
END_REASONS: dict[str, tuple[EndReason, EndedBy | None]] = {
    "unjoined": ("unjoined", None),  # nobody came, so nobody ended it
    "hangup": ("user_hangup", "user"),
    "agent_hangup": ("agent_hangup", "agent"),
    "timeout": ("max_duration", "system"),
    "connection_error": ("telephony_error", "system"),  # the client's connection, whichever medium carried it
    "system_error": ("provider_error", "system"),
}
ERRORS = frozenset({"connection_error", "system_error"})
FAILURES = ERRORS | {"unjoined"}

# sipDetails.terminationReason: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11). Why a SIP call was
# never joined; NORMAL and UNKNOWN say no more about that than `unjoined` does.
SIP_REASONS: dict[str, EndReason] = {
    "SIP_TERMINATION_BUSY": "busy",
    "SIP_TERMINATION_REJECTED": "declined",
    "SIP_TERMINATION_TIMEOUT": "no_answer",
    "SIP_TERMINATION_CANCELED": "cancelled",
    "SIP_TERMINATION_INVALID_NUMBER": "dial_failed",
    "SIP_TERMINATION_DESTINATION_UNAVAILABLE": "dial_failed",
}

# medium, of which at most one key is set: https://docs.ultravox.ai/api-reference/calls/calls-post (2026-11)
CHANNELS: dict[str, Channel] = {
    "twilio": "phone",
    "telnyx": "phone",
    "plivo": "phone",
    "exotel": "phone",
    "sip": "sip",
    "webRtc": "web",
    "serverWebSocket": "other",
}
DIRECTIONS: dict[str, Direction] = {"outgoing": "outbound", "incoming": "inbound"}

# role: https://docs.ultravox.ai/api-reference/calls/calls-messages-list (2026-11). Other words count as `system`.
TOOL_CALL, TOOL_RESULT = "MESSAGE_ROLE_TOOL_CALL", "MESSAGE_ROLE_TOOL_RESULT"
ROLES: dict[str, Role] = {"MESSAGE_ROLE_USER": "user", "MESSAGE_ROLE_AGENT": "agent"}

# retentionPolicy: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11): deleted once the call is billed.
AUTO_DELETE = "auto_delete"
STORAGE: dict[str, Storage] = {"retain": "full", AUTO_DELETE: "none"}

# billingStatus: ibid. Calls from before 2025-05-28 may be pending for ever. All other words are bills, also of nothing.
BILLING_PENDING = "BILLING_STATUS_PENDING"
UNBILLED = frozenset({BILLING_PENDING, "BILLING_STATUS_UNSPECIFIED"})

# What is kept of a listed call, which is all that is read of it; `medium` is copied field by field beside it. The rest
# may hold secrets: https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11).
KEPT = (
    "callId",
    "created",
    "deletionTime",
    "joined",
    "ended",
    "endReason",
    "billingStatus",
    "billedDuration",
    "retentionPolicy",
    "agent",
    "agentId",
    "sipDetails",
    "summary",
    "shortSummary",
    "metadata",
)
