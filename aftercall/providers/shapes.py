"""Small pure helpers that every provider's `normalize` needs: tolerant JSON, merging, units."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from aftercall.errors import UndecodableWebhook
from aftercall.event import rfc3339

MAX_DEPTH = 50  # an event puts up to eight levels around it, and common JSON readers take no more than 64 in all
MAX_ADDRESS = 512
# The user may hold ; and ? (section 25.1), and whoever forgets to escape an @ in the password has not made it public.
_SIP_PASSWORD = re.compile(r"(sips?:[^\s<>@:]*):[^\s<>]*@", re.IGNORECASE)
_MILLISECONDS = re.compile("[0-9]{13}")  # as text; `fromisoformat` takes some of them for days of the year 1795


def decode_json(body: bytes | str) -> Any:
    """The JSON of a body. What strict parsers refuse (1e999, lone surrogates) goes through a lenient one.

    What is nested deeper than `MAX_DEPTH` becomes JSON text: whatever was read can be written, and read by others.
    """
    try:
        return _shallow(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body if isinstance(body, str) else body.decode("utf-8", "replace")
        return _shallow(_encodable(json.loads(text, parse_constant=lambda _: None, parse_int=_parse_int)))


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float() if not math.isfinite(value):
            return None
        case list():
            return [_encodable(item) for item in value]
        case dict():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def _shallow(value: Any) -> Any:
    level = _nested([value])
    for _ in range(MAX_DEPTH - 1):
        if not level:
            return value
        level = _nested(item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
    for outer in level:
        for key, item in outer.items() if isinstance(outer, dict) else enumerate(outer):
            if isinstance(item, (dict, list)):
                outer[key] = msgspec.json.encode(item).decode()
    return value


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, (dict, list))]


_Routing = TypeVar("_Routing")


def decode_routing(decoder: msgspec.json.Decoder[_Routing], body: bytes) -> _Routing:
    """The little of a webhook that routing needs; raises `UndecodableWebhook`.

    The whole body must be UTF-8 and JSON, also what the decoder skips. Text cut in the middle of a character pair (an
    escaped lone surrogate, which JSON.stringify writes) is not a reason to lose a call.
    """
    try:
        str(body, "utf-8")  # msgspec does not look inside what it skips
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise undecodable(error) from None
    except msgspec.DecodeError as error:
        try:
            return decoder.decode(msgspec.json.encode(decode_json(body)))
        except (ValueError, RecursionError):
            raise undecodable(error) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise undecodable(error) from None


def undecodable(error: Exception) -> UndecodableWebhook:
    """What msgspec found wrong with a body, as the answer to it: the path, never the value."""
    if isinstance(error, RecursionError):
        return UndecodableWebhook("the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return UndecodableWebhook("the body is not valid UTF-8")
    return UndecodableWebhook(f"the body is not the JSON this provider sends: {error}")


def merge(webhook: Any, record: Any, *, levels: int = 8) -> Any:
    """Both together, key by key: the record is newer and wins, except where it is empty.

    No vendor's object is merged deeper than `levels`; what a user nests below that is taken from one side whole.
    """
    if levels and isinstance(webhook, Mapping) and isinstance(record, Mapping):
        keys = {**webhook, **record}
        return {key: merge(webhook.get(key), record.get(key), levels=levels - 1) for key in keys}
    return webhook if record in (None, "", [], {}) and not isinstance(record, bool) else record


def text(value: Any) -> str | None:
    """A non-empty string, or None."""
    return value if isinstance(value, str) and value else None


def address(value: Any) -> str | None:
    """A number or SIP URI, or None. RFC 3261 lets a URI carry a password, which is taken out."""
    found = text(value)
    if found is None or len(found) > MAX_ADDRESS:
        return None
    return _SIP_PASSWORD.sub(r"\1@", found)


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; anything else in it, or instead of it, is left out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """A finite number of a sane size, or None: no time, price or count of a call has sixteen digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -1e15 < value < 1e15 else None


def milliseconds(value: Any, *, per_unit: int = 1) -> int | None:
    """A count of units (per_unit=1000: seconds) as whole milliseconds."""
    count = number(value)
    return None if count is None else math.floor(count * per_unit + 0.5)


def duration_ms(value: Any) -> int | None:
    """A protobuf JSON duration, "66s" or "4.320s", in milliseconds."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)s", value) if isinstance(value, str) else None
    return milliseconds(float(match[1]), per_unit=1000) if match else None


def timestamp(value: Any) -> str | None:
    """A time as RFC 3339 UTC with milliseconds, from ISO 8601 text or from Unix milliseconds; None if it is neither."""
    moment = parse_time(value)
    return None if moment is None else rfc3339(moment)


def parse_time(value: Any) -> datetime | None:
    """The moment, in UTC; a text without an offset counts as UTC."""
    try:
        if isinstance(value, str) and _MILLISECONDS.fullmatch(value):
            value = int(value)
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        count = number(value)
        return None if count is None else datetime.fromtimestamp(count / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def elapsed_ms(start: Any, end: Any) -> int | None:
    """Between two times as `timestamp` takes them."""
    first, last = parse_time(start), parse_time(end)
    return None if first is None or last is None else max(0, round((last - first).total_seconds() * 1000))


def money(value: Any, *, per_unit: int = 1) -> str | None:
    """An amount as a decimal string of at least two places, from a number of 1/per_unit (100: cents)."""
    if number(value) is None and not isinstance(value, str):
        return None
    try:
        amount = Decimal(str(value)) / per_unit
    except ArithmeticError:  # InvalidOperation, and Overflow for 1e1000000
        return None
    if not amount.is_finite() or abs(amount.adjusted()) > 15:
        return None
    amount = round(amount, 10) + 0  # sums of floats carry noise behind; + 0 makes -0 plain 0
    whole, _, fraction = f"{amount:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<2}"


def json_object(value: Any) -> dict[str, Any]:
    """Arguments as an object, whether they came as one or as JSON text; other JSON is kept under `value`."""
    if isinstance(value, str):
        try:
            value = decode_json(value)
        except (ValueError, RecursionError):
            return {"value": value} if value else {}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"value": value}
