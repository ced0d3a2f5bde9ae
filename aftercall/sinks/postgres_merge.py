"""One call of what its events told, whichever of them came first. Plain functions over what JSON holds.

Each field remembers how well it was told, and by which event: so every order, and every repetition, ends in the same
call, although no event is read again. Null says "not known", and takes nothing away that an event before or after knew.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from aftercall.call import Analysis, Call, Cost

# How much an event knows of the call, the least first. Of those that know as much, the one accepted last knows better:
# call.settled puts together what came before it, and a second analysis after that is later knowledge still.
KNOWLEDGE = {
    "call.started": 1,
    "call.connected": 2,
    "call.transfer": 3,
    "call.ended": 4,
    "call.billed": 5,
    "call.analyzed": 5,
    "call.settled": 5,
    "call.erased": 5,
}
_OVER = 4
# What a provider that keeps no personal data takes out of its record some time after the call: told first, it is whole.
SCRUBBED = ("from", "to", "transcript", "metrics", "recording", "log_url", "metadata", "variables")
# Of these each part is a fact of its own. The others go together: an amount and its items, a link and its end.
_IN_PARTS = ("agent", "analysis", "latency", "privacy", "metadata", "variables")
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_SAYS_NOTHING = {"channel": "other", "privacy.storage": "full", "cost": msgspec.to_builtins(Cost())}


def merge(call: dict[str, Any], told: dict[str, Any], event: dict[str, Any]) -> set[str]:
    """Put into `call` and `told` what the event knows better; the names of the fields that it did."""
    data = event["data"]
    new = {**data["call"], "tags": data["tags"]}
    if event["type"] == "call.turn":  # it tells one turn: the transcript comes when the call is over
        new |= {"transcript": None, "metrics": None}
    unknown = Call(id=new["id"], provider=new["provider"], account=new["account"], status="created")
    call.update({**msgspec.to_builtins(unknown), **call})
    changed = set()
    for name, part, value in _facts(new):
        key = name if part is None else f"{name}.{part}"
        rank = _rank(event, name, value)
        if value in _NOTHING or value == _SAYS_NOTHING.get(key) or rank <= told.get(key, []):
            continue
        told[key] = rank
        changed.add(name)
        whole = msgspec.to_builtins(Analysis()) if name == "analysis" else {}
        call[name] = value if part is None else {**whole, **(call[name] or {}), part: value}
    return changed


def _facts(call: dict[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    for name, value in call.items():
        if name not in _IN_PARTS:
            yield name, None, value
        else:
            yield from ((name, part, inner) for part, inner in (value or {}).items())


def _rank(event: dict[str, Any], name: str, value: Any) -> list[int]:
    """How good the event is as a witness of this: the greater list knows better."""
    knowledge, order = KNOWLEDGE.get(event["type"], 0), event["data"]["sequence"]
    if event["data"]["call"]["privacy"]["storage"] == "no_pii" and name in SCRUBBED:
        knowledge, order = min(knowledge, _OVER), -order
    if name == "status":  # a call that is over is not so no more
        return [int(value in ("ended", "failed")), knowledge, order]
    return [int(name != "end" or value is None or value["reason"] != "unknown"), knowledge, order]


def without_nul(value: Any) -> Any:
    """The same without U+0000, the one character that Postgres cannot keep, neither in text nor in jsonb."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    return {without_nul(key): without_nul(item) for key, item in value.items()} if isinstance(value, dict) else value
