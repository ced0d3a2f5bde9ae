"""What the record APIs know: which call has begun, what its record shows, and what was deleted."""

import time
from collections.abc import Iterable

from simulator.parts import Call, Json, Webhook, iso

Key = tuple[str, str]  # provider, call id

# What Cartesia keeps of a call whose data was deleted: https://docs.cartesia.ai/api-reference/agents/calls/delete-call
# (2026-11). Of the telephony no number remains.
CARTESIA_KEEPS = (
    "id",
    "agent_id",
    "agent_name",
    "zdr_enabled",
    "redacted_at",
    "start_time",
    "end_time",
    "telephony_params",
    "status",
    "end_reason",
    "deployment_id",
    "deployment_version_id",
    "deployment_region",
)
CARTESIA_KEEPS_OF_TELEPHONY = ("call_sid", "connection_type")
ULTRAVOX_ACCOUNT = "5d0a3c1e-74b2-4c7e-9a55-0c6f1e2b8d40"


class Records:
    """The calls of all providers.

    A call shows its final record until a play sets it back to its beginning. Lists show a call once it has begun: with
    the first of its records that a play shows, or from the outset where nothing is played (`played` says that a play is
    to come).
    """

    def __init__(self, calls: Iterable[Call], *, played: bool = False) -> None:
        self._calls = {(call.provider, call.id): call for call in calls}
        self._records = {key: call.record for key, call in self._calls.items()}
        self._faults = {key: list(call.faults) for key, call in self._calls.items()}
        self._reached: dict[Key, int] = {}
        self._played = played
        self._deleted: dict[Key, str] = {}  # RFC 3339: when

    def show(self, call: Call, webhook: Webhook) -> None:
        """From now on the record is as this webhook tells it; what is told late does not set it back."""
        self._played = True
        key, position = (call.provider, call.id), call.webhooks.index(webhook)
        if webhook.record is not None and position >= self._reached.get(key, 0):
            self._reached[key] = position
            self._records[key] = webhook.record
            if key not in self._deleted and deletes_itself(webhook.record):
                self._deleted[key] = iso(time.time(), digits=6)

    def find(self, provider: str, call_id: str) -> tuple[int, Json]:
        """The status to answer with, and the record if that is 200. Uses up one of the call's own faults."""
        key = (provider, call_id)
        if not self._is_there(key):
            return 404, {}
        if self._faults[key]:
            return self._faults[key].pop(0), {}
        return 200, self._record(key)

    def messages(self, call_id: str) -> list[Json] | None:
        """The messages of an Ultravox call, none before its end; None if there is no such call."""
        key = ("ultravox", call_id)
        if not self._is_there(key):
            return None
        return self._calls[key].messages if self._records[key]["ended"] else []

    def listed(self, provider: str) -> list[Json]:
        """The records of the provider's calls that have begun and were not deleted, in no particular order."""
        return [self._record(key) for key in self._begun(provider) if self._is_there(key)]

    def tombstones(self) -> list[Json]:
        """What Ultravox tells of its deleted calls."""
        return [self._tombstone(key) for key in self._begun("ultravox") if not self._is_there(key)]

    def delete(self, provider: str, call_id: str) -> Json | None:
        """What is left of the call, which Cartesia alone still shows afterwards; None if there is no such call."""
        key = (provider, call_id)
        if not self._is_there(key):
            return None
        self._deleted.setdefault(key, iso(time.time(), digits=6 if provider == "ultravox" else 0))
        return self._record(key)

    def agents(self, provider: str) -> dict[str, str]:
        """The names of the provider's agents, by id; those of calls to come too."""
        fields = ("agentId", "agent") if provider == "ultravox" else ("agent_id", "agent_name")
        named = {
            call.record[fields[0]]: call.record[fields[1]] for call in self._calls.values() if call.provider == provider
        }
        return {agent_id: str(name["name"] if isinstance(name, dict) else name) for agent_id, name in named.items()}

    def _begun(self, provider: str) -> list[Key]:
        keys = self._reached if self._played else self._calls
        return [key for key in keys if key[0] == provider]

    def _is_there(self, key: Key) -> bool:
        if key not in self._calls:
            return False
        return key[0] == "cartesia" or not (key in self._deleted or deletes_itself(self._records[key]))

    def _record(self, key: Key) -> Json:
        record = self._records[key]
        return redacted(record, self._deleted[key]) if key[0] == "cartesia" and key in self._deleted else record

    def _tombstone(self, key: Key) -> Json:
        """https://docs.ultravox.ai/api-reference/calls/calls-deleted-calls-get (2026-11)."""
        record = self._records[key]
        kept = ("callId", "created", "joined", "ended", "maxDuration", "endReason", "recordingEnabled")
        return {
            **{name: record[name] for name in kept},
            "accountId": ULTRAVOX_ACCOUNT,
            "deletionTime": self._deleted.get(key) or record["ended"],  # it deleted itself before anybody looked
            "hadSummary": record["summary"] is not None,
        }


def deletes_itself(record: Json) -> bool:
    """Ultravox's `auto_delete`: the call is gone as soon as it is billed, or free. Others' records have no such field.

    https://docs.ultravox.ai/api-reference/calls/calls-get (2026-11): "Auto-delete after billing".
    """
    return record.get("retentionPolicy") == "auto_delete" and record["billingStatus"] != "BILLING_STATUS_PENDING"


def redacted(record: Json, at: str) -> Json:
    """Cartesia's record without what is sensitive; the fields are left out, not null."""
    left = {name: record[name] for name in CARTESIA_KEEPS if name in record} | {"redacted_at": at}
    telephony = record.get("telephony_params") or {}
    left["telephony_params"] = {name: telephony[name] for name in CARTESIA_KEEPS_OF_TELEPHONY if name in telephony}
    return left
