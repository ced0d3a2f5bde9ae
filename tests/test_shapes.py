"""Tolerant JSON, merging and units: what vendors send in many forms becomes one."""

import contextlib
import json
import math
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aftercall.errors import UndecodableWebhook
from aftercall.providers import shapes

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MONEY = re.compile(r"-?\d+\.\d{2,}")


# decode_json


def test_plain_json_is_plain_json() -> None:
    assert shapes.decode_json(b'{"a": [1, 2.5, null, true, "\xc3\xa9"]}') == {"a": [1, 2.5, None, True, "é"]}
    assert shapes.decode_json('["é"]') == ["é"]


def test_half_a_character_pair_becomes_the_replacement_character() -> None:
    assert shapes.decode_json(rb'{"said": "ok \ud83d", "\udc00": 1}') == {"said": "ok \ufffd", "\ufffd": 1}
    assert shapes.decode_json(rb'["\ud83d\ude00", "\ud83d", "\ude00\ud83d"]') == ["😀", "\ufffd", "\ufffd\ufffd"]


def test_bytes_that_are_not_utf8_become_the_replacement_character() -> None:
    assert shapes.decode_json(b'{"said": "caf\xe9"}') == {"said": "caf\ufffd"}


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", "9" * 5000])
def test_a_number_that_is_none_becomes_null_and_the_rest_stays(number: str) -> None:
    assert shapes.decode_json(f'{{"cost": {number}, "id": "c"}}'.encode()) == {"cost": None, "id": "c"}


@pytest.mark.parametrize("body", [b"", b"{", b"hello", b"[1,]", b"{'a': 1}", b'{"a": 1} x', b'"tab\there"'])
def test_what_is_no_json_at_all_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        shapes.decode_json(body)


@given(JSON, st.booleans())
@example({"n": 10**30, "bad": [math.nan, "\ud800"]}, True)
def test_whatever_json_comes_can_be_written_again_and_reads_the_same(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    decoded = shapes.decode_json(body)
    written = msgspec.json.encode(decoded)
    assert shapes.decode_json(written) == decoded


@given(st.binary())
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_whatever_bytes_come_are_json_or_one_of_two_errors(body: bytes) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        msgspec.json.encode(shapes.decode_json(body))


# decode_routing


class Envelope(msgspec.Struct):
    event: str
    call: msgspec.Raw = msgspec.Raw(b"null")


ENVELOPE = msgspec.json.Decoder(Envelope)


def routed(body: bytes) -> tuple[str, bytes]:
    envelope = shapes.decode_routing(ENVELOPE, body)
    return envelope.event, bytes(envelope.call)


def test_routing_reads_what_it_needs_and_keeps_the_rest_raw() -> None:
    assert routed(b'{"x": 1, "event": "ended", "call": {"id": "a"}}') == ("ended", b'{"id": "a"}')


@pytest.mark.parametrize(
    "body",
    [
        rb'{"event": "ended", "note": "\ud83d", "call": {"id": "a"}}',
        rb'{"event": "ended", "call": {"id": "a"}, "\udc00": {"deep": ["\ud800"]}}',
        b'{"event": "ended", "call": {"id": "a"}, "cost": 1e999}',
    ],
)
def test_half_a_character_or_a_wild_number_in_what_is_skipped_costs_no_call(body: bytes) -> None:
    event, call = routed(body)
    assert event == "ended"
    assert json.loads(call) == {"id": "a"}


def test_half_a_character_in_what_is_read_costs_no_call_either() -> None:
    assert routed(rb'{"event": "end\ud83d", "call": {"said": "\ud83d"}}')[0] == "end\ufffd"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"event": "ended", "note": "caf\xe9"}', "not valid UTF-8"),
        (b'{"event": "ended", "call": {"said": ["\xff\xfe"]}}', "not valid UTF-8"),
        (b"\xff", "not valid UTF-8"),
        (b'{"event": "ended", "call": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"event": "ended", "call": {"id": "a"', "truncated"),
        (b'{"event": "end', "truncated"),
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b'{"call": {}}', "missing required field `event`"),
        (b'{"event": 5}', r"\$\.event"),
        (rb'{"event": 5, "note": "\ud800"}', r"\$\.event"),
        (b'{"event": "ended"} {}', "trailing"),
        (b"call=1&event=ended", "malformed"),
    ],
)
def test_what_cannot_be_routed_says_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(UndecodableWebhook, match=reason):
        shapes.decode_routing(ENVELOPE, body)


def test_a_refusal_holds_nothing_of_what_was_said() -> None:
    for body in (
        b'{"event": ["swordfish"]}',
        b'{"swordfish": 1}',
        b'{"event": "swordfish',
        b"swordfish",
        b'"swordfish"',
    ):
        with pytest.raises(UndecodableWebhook) as caught:
            shapes.decode_routing(ENVELOPE, body)
        assert "swordfish" not in str(caught.value)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@example(rb'{"a":"\ud800","event":5}')
@example(rb'{"event":"\ud800","call":' + b"[" * 100_000)
def test_whatever_comes_is_routed_or_undecodable(body: bytes) -> None:
    with contextlib.suppress(UndecodableWebhook):
        assert isinstance(routed(body)[0], str)


@given(st.integers(0, 60), st.binary(min_size=1, max_size=3))
def test_a_spoilt_webhook_is_routed_or_undecodable(at: int, spoilt: bytes) -> None:
    body = rb'{"event": "ended", "call": {"id": "a", "said": "\ud83d\ude00"}}'
    with contextlib.suppress(UndecodableWebhook):
        routed(body[:at] + spoilt + body[at + len(spoilt) :])


# merge


def test_the_record_wins_where_it_says_something() -> None:
    webhook = {"id": "a", "cost": 1, "end": {"reason": "busy", "by": "user"}, "turns": [1, 2], "ok": True, "n": 5}
    record = {"cost": 2, "end": {"reason": "hangup"}, "turns": [3], "ok": False, "n": 0}
    assert shapes.merge(webhook, record) == {
        "id": "a",
        "cost": 2,
        "end": {"reason": "hangup", "by": "user"},
        "turns": [3],
        "ok": False,
        "n": 0,
    }


def test_what_is_nested_as_deep_as_a_body_may_be_is_merged_without_falling_over() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"down": deep}
    assert shapes.merge({"call": deep, "a": 1}, {"call": deep, "b": 2}) == {"call": deep, "a": 1, "b": 2}


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_what_only_the_webhook_carried_stays_where_the_record_is_empty(empty: Any) -> None:
    assert shapes.merge({"a": {"b": "said once"}}, {"a": {"b": empty}}) == {"a": {"b": "said once"}}
    assert shapes.merge({"a": [1]}, {"a": empty}) == {"a": [1]}
    assert shapes.merge({"a": 1}, empty) == {"a": 1}


def test_neither_side_is_changed() -> None:
    webhook, record = {"a": {"b": 1}}, {"a": {"c": 2}}
    shapes.merge(webhook, record)["a"]["d"] = 3
    assert (webhook, record) == ({"a": {"b": 1}}, {"a": {"c": 2}})


TABLES = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


@given(TABLES, TABLES)
def test_no_key_is_lost_and_merging_again_changes_nothing(webhook: dict[str, Any], record: dict[str, Any]) -> None:
    merged = shapes.merge(webhook, record)
    assert set(merged) == set(webhook) | set(record)
    assert repr(shapes.merge(merged, record)) == repr(merged)  # repr: nan is not equal to itself
    for key, value in record.items():
        if not isinstance(value, dict) and value not in (None, "", []):
            assert merged[key] is value


@given(JSON.filter(lambda value: value not in ("", [], {})))
def test_one_side_alone_is_itself(value: Any) -> None:
    assert shapes.merge(value, None) is value
    assert shapes.merge(None, value) is value


# small readers


def test_text_is_a_string_with_something_in_it() -> None:
    assert [shapes.text(value) for value in ("a", " ", "", None, 5, b"a", ["a"])] == ["a", " ", *[None] * 5]


def test_mapping_items_and_flag_leave_out_what_does_not_fit() -> None:
    assert [shapes.mapping(value) for value in ({"a": 1}, None, [], "x")] == [{"a": 1}, {}, {}, {}]
    assert shapes.items([{"a": 1}, None, "x", [], {}]) == [{"a": 1}, {}]
    assert [shapes.items(value) for value in (None, "ab", {"a": 1}, 5)] == [[]] * 4
    assert [shapes.flag(value) for value in (True, False, 1, 0, "true", None)] == [True, False, *[None] * 4]


@pytest.mark.parametrize("value", [0, -1, 2.5, 999_999_999_999_999])
def test_a_number_of_sane_size_is_itself(value: float) -> None:
    assert shapes.number(value) == value


@pytest.mark.parametrize("value", [True, False, None, "5", [], math.nan, math.inf, -math.inf, 10**15, -1e15, 10**400])
def test_what_is_no_number_of_sane_size_is_none(value: Any) -> None:
    assert shapes.number(value) is None


# units


@pytest.mark.parametrize(
    ("value", "per_unit", "expected"),
    [
        (1500, 1, 1500),
        (1499.5, 1, 1500),
        (2.5, 1, 3),
        (-2.5, 1, -2),
        (1.2345, 1000, 1235),
        (0, 1000, 0),
        (0.0004, 1000, 0),
        ("1500", 1, None),
        (True, 1, None),
        (None, 1000, None),
        (math.nan, 1, None),
        (1e300, 1000, None),
    ],
)
def test_a_count_of_units_becomes_whole_milliseconds(value: Any, per_unit: int, expected: int | None) -> None:
    found = shapes.milliseconds(value, per_unit=per_unit)
    assert found == expected
    assert found is None or type(found) is int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("66s", 66_000),
        ("4.320s", 4320),
        ("0s", 0),
        ("-0.5s", -500),
        ("0.0005s", 1),
        ("66", None),
        ("1m", None),
        ("1e3s", None),
        ("66s\n", None),
        (".5s", None),
        ("s", None),
        ("9" * 400 + "s", None),
        (66, None),
        (None, None),
    ],
)
def test_a_protobuf_duration_becomes_milliseconds(value: Any, expected: int | None) -> None:
    assert shapes.duration_ms(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-20T12:05:00Z", "2026-11-20T12:05:00.000Z"),
        ("2026-11-20T12:05:00.1Z", "2026-11-20T12:05:00.100Z"),
        ("2026-11-20T12:05:00.123456789Z", "2026-11-20T12:05:00.123Z"),
        ("2026-11-20T14:05:00+02:00", "2026-11-20T12:05:00.000Z"),
        ("2026-11-20T00:05:00-11:30", "2026-11-20T11:35:00.000Z"),
        ("2026-11-20T12:05:00", "2026-11-20T12:05:00.000Z"),
        ("2026-11-20 12:05:00", "2026-11-20T12:05:00.000Z"),
        (1_795_176_300_123, "2026-11-20T12:05:00.123Z"),
        (1_795_176_300_123.0, "2026-11-20T12:05:00.123Z"),
        ("1795176300123", "2026-11-20T12:05:00.123Z"),
        ("1795111500123", "2026-11-19T18:05:00.123Z"),  # and no day of the year 1795
        (0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_a_time_becomes_rfc_3339_utc_with_milliseconds(value: Any, expected: str) -> None:
    assert shapes.timestamp(value) == expected


@pytest.mark.parametrize(
    "value",
    [None, "", "soon", True, "1795176300", "2026-13-01T00:00:00Z", "2026-11-20T12:05:61Z", 1e20, math.nan, [], {}],
)
def test_what_is_no_time_is_none(value: Any) -> None:
    assert shapes.timestamp(value) is None


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", 9 * 10**14, -9 * 10**14])
def test_a_time_beyond_the_calendar_is_none(value: Any) -> None:
    assert shapes.timestamp(value) is None


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),  # noqa: DTZ001 - hypothesis wants them naive
    st.integers(-23 * 60, 23 * 60),
)
def test_a_moment_survives_to_the_millisecond_whatever_its_offset(moment: datetime, offset_minutes: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    stamp = shapes.timestamp(zoned.isoformat())
    assert stamp is not None
    assert STAMP.fullmatch(stamp)
    assert timedelta(0) <= zoned - datetime.fromisoformat(stamp) < timedelta(milliseconds=1)


@given(SCALARS)
def test_whatever_stands_for_a_time_is_a_time_or_none(value: Any) -> None:
    stamp = shapes.timestamp(value)
    assert stamp is None or STAMP.fullmatch(stamp)


def test_parsed_times_are_in_utc() -> None:
    assert shapes.parse_time("2026-11-20T14:05:00+02:00") == datetime(2026, 11, 20, 12, 5, tzinfo=UTC)
    parsed = shapes.parse_time("2026-11-20T14:05:00")
    assert parsed is not None
    assert parsed.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2026-11-20T12:00:00Z", "2026-11-20T12:05:00.250Z", 300_250),
        (1000, 2500, 1500),
        ("1970-01-01T00:00:01Z", 2500, 1500),
        (2500, 1000, 0),
        (None, 1000, None),
        (1000, "later", None),
    ],
)
def test_between_two_times_there_are_milliseconds_and_never_less_than_none(
    start: Any, end: Any, expected: int | None
) -> None:
    assert shapes.elapsed_ms(start, end) == expected


@pytest.mark.parametrize(
    ("value", "per_unit", "expected"),
    [
        (24, 100, "0.24"),
        (12.5, 100, "0.125"),
        (0, 100, "0.00"),
        (7, 1, "7.00"),
        (0.1, 1, "0.10"),
        ("0.0650", 1, "0.065"),
        ("12.00", 1, "12.00"),
        (-5, 100, "-0.05"),
        (1e-7, 1, "0.0000001"),
        (1234567.891, 1, "1234567.891"),
    ],
)
def test_money_becomes_a_decimal_string_in_the_main_unit(value: Any, per_unit: int, expected: str) -> None:
    assert shapes.money(value, per_unit=per_unit) == expected


@pytest.mark.parametrize(
    "value",
    [None, True, [], "", "free", "1,50", "NaN", "sNaN", "Infinity", math.nan, math.inf, 1e15, "1e16", "1e1000000",
     "-1e999999999", "1e-999999999"],
)  # fmt: skip
def test_what_is_no_sane_amount_is_none(value: Any) -> None:
    assert shapes.money(value) is None


@given(SCALARS, st.sampled_from([1, 100]))
def test_whatever_stands_for_money_is_a_decimal_string_or_none(value: Any, per_unit: int) -> None:
    amount = shapes.money(value, per_unit=per_unit)
    assert amount is None or MONEY.fullmatch(amount)


@given(st.decimals(-(10**9), 10**9, places=6))
def test_no_fraction_of_a_cent_is_lost(amount: Decimal) -> None:
    found = shapes.money(str(amount))
    assert found is not None
    assert Decimal(found) == amount


# json_object


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ('{"said": "\\ud83d"}', {"said": "\ufffd"}),
        ("[1]", {"value": [1]}),
        ("5", {"value": 5}),
        ("", {}),
        ("null", {}),
        (None, {}),
        ({}, {}),
        ("not json", {"value": "not json"}),
        ("{'a': 1}", {"value": "{'a': 1}"}),
        ([1], {"value": [1]}),
        (0, {"value": 0}),
        (False, {"value": False}),
        ("[" * 100_000, {"value": "[" * 100_000}),
    ],
    ids=repr,
)
def test_arguments_become_an_object_and_nothing_of_them_is_lost(value: Any, expected: dict[str, Any]) -> None:
    assert shapes.json_object(value) == expected


@given(st.text() | JSON)
def test_whatever_the_arguments_they_become_an_object(value: Any) -> None:
    assert isinstance(shapes.json_object(value), dict)
