"""A call as HubSpot's properties: https://developers.hubspot.com/docs/api-reference/crm-calls-v3/guide (2026-11)."""

import re

from aftercall.event import CallEvent
from aftercall.sinks.text import clip, title

BODY, TITLE = 65_536, 250  # of a property: HubSpot's, and our own
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\n": "<br>"}  # hs_call_body is shown as HTML
HTTPS = re.compile(r"https://[^\s/?#]+\S*", re.IGNORECASE)  # "Only HTTPS, secure URLs will be accepted"
STATUSES = {
    **dict.fromkeys(("no_answer", "unjoined", "declined"), "NO_ANSWER"),
    **dict.fromkeys(("dial_failed", "limit_reached", "blocked"), "FAILED"),
    **dict.fromkeys(("agent_error", "provider_error", "telephony_error"), "FAILED"),
    "busy": "BUSY",
    "cancelled": "CANCELED",
}
OTHERWISE = {"created": "QUEUED", "ongoing": "IN_PROGRESS", "ended": "COMPLETED", "failed": "FAILED"}


def properties(event: CallEvent, body: str) -> dict[str, str]:
    """What is known of the call. What is not is left out, so that an upsert leaves alone what people wrote there."""
    call = event.data.call
    recording = call.recording.url if call.recording else ""
    known = {
        "hs_timestamp": call.started_at or event.time,  # required
        "hs_call_title": clip(title(event), TITLE),
        "hs_call_body": body,
        "hs_call_status": STATUSES.get(call.end.reason if call.end else "", OTHERWISE[call.status]),
        "hs_call_direction": (call.direction or "").upper(),
        "hs_call_duration": "" if call.duration_ms is None else str(max(0, call.duration_ms)),  # milliseconds
        "hs_call_from_number": clip(call.from_, TITLE),
        "hs_call_to_number": clip(call.to, TITLE),
        "hs_call_recording_url": recording if HTTPS.fullmatch(recording) else "",
    }
    return {name: value for name, value in known.items() if value}
