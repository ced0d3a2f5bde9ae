"""The normalized call: what every provider's record becomes.

How these structs may evolve: a field may be added, with a default; none is ever renamed, removed or given another
meaning. `null` says "not known"; no field is ever absent. Times are RFC 3339 UTC with milliseconds, durations integer
milliseconds, money decimal strings in the currency's main unit (never cents).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339, UTC, milliseconds")]
Money = Annotated[str, Meta(pattern=r"^-?\d+(\.\d+)?$", description="decimal, in the currency's main unit")]

Channel = Literal["phone", "web", "sip", "other"]
Direction = Literal["inbound", "outbound"]
Status = Literal["created", "ongoing", "ended", "failed"]
Role = Literal["user", "agent", "tool", "system"]
EndedBy = Literal["user", "agent", "system"]
Sentiment = Literal["positive", "neutral", "negative", "unknown"]
Storage = Literal["full", "no_pii", "basic", "none"]
EndReason = Literal[
    "user_hangup",
    "agent_hangup",
    "transferred",
    "voicemail",
    "inactivity",
    "max_duration",
    "no_answer",
    "busy",
    "declined",
    "dial_failed",
    "unjoined",
    "cancelled",
    "limit_reached",
    "blocked",
    "agent_error",
    "provider_error",
    "telephony_error",
    "unknown",
]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable and made by keyword, so that a misspelt field is an error and not a silent loss."""


class Agent(Model, frozen=True, kw_only=True):
    id: str | None = None
    name: str | None = None
    version: str | None = None


class End(Model, frozen=True, kw_only=True):
    """Why the call is over. `provider_reason` is the provider's own word, also where `reason` is `unknown`."""

    reason: EndReason
    by: EndedBy | None = None
    provider_reason: str | None = None


class Tool(Model, frozen=True, kw_only=True):
    """One tool call of the agent. `ok` is null where the provider does not say whether it worked."""

    id: str | None = None
    name: str | None = None
    arguments: dict[str, Any] = {}
    result: str | None = None
    ok: bool | None = None


class Turn(Model, frozen=True, kw_only=True):
    """One line of the transcript. `start_ms` and `end_ms` count from the start of the call."""

    role: Role
    text: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    interrupted: bool | None = None
    tool: Tool | None = None
    latency: dict[str, int] | None = None  # keys end in _ms: tts_ttfb_ms, stt_ttfb_ms …


class Analysis(Model, frozen=True, kw_only=True):
    summary: str | None = None
    sentiment: Sentiment | None = None
    successful: bool | None = None
    voicemail: bool | None = None
    custom: dict[str, Any] = {}


class CostItem(Model, frozen=True, kw_only=True):
    name: str
    amount: Money


class Cost(Model, frozen=True, kw_only=True):
    currency: Literal["USD"] = "USD"
    total: Money | None = None
    items: list[CostItem] = []


class Percentiles(Model, frozen=True, kw_only=True):
    """Milliseconds, except `count`, which is how many measurements there were."""

    p50: int | None = None
    p90: int | None = None
    p95: int | None = None
    p99: int | None = None
    min: int | None = None
    max: int | None = None
    count: int | None = None


class ResponseTime(Model, frozen=True, kw_only=True):
    """From the end of the user's turn to the start of the agent's, in milliseconds."""

    p50: int
    p95: int
    max: int


class Metrics(Model, frozen=True, kw_only=True):
    """Counted from the transcript by `aftercall/enrich.py`; null where the transcript lacks what it takes."""

    turns: int
    user_words: int
    agent_words: int
    talk_ratio: float | None = None  # the agent's share of the time spoken, 0 to 1
    interruptions: int | None = None
    longest_silence_ms: int | None = None
    response_ms: ResponseTime | None = None
    tool_calls: int
    tool_failures: int


class Recording(Model, frozen=True, kw_only=True):
    url: str
    expires_at: Timestamp | None = None


class Privacy(Model, frozen=True, kw_only=True):
    """What the provider was told to keep: everything, no personal data, basic attributes only, or nothing."""

    storage: Storage = "full"
    redacted_at: Timestamp | None = None


class Call(Model, frozen=True, kw_only=True):
    id: str  # the provider's
    provider: str
    account: str
    agent: Agent = Agent()
    channel: Channel = "other"
    direction: Direction | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    status: Status
    end: End | None = None
    started_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    duration_ms: int | None = None
    transcript: list[Turn] | None = None
    analysis: Analysis | None = None
    cost: Cost | None = None
    latency: dict[str, Percentiles] | None = None  # keys: e2e, llm, tts, asr …
    metrics: Metrics | None = None
    recording: Recording | None = None
    log_url: str | None = None
    error: str | None = None
    privacy: Privacy = Privacy()
    metadata: dict[str, Any] = {}
    variables: dict[str, Any] = {}
