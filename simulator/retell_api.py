"""Retell's API: a call's record, the list of calls, deletion, and agents with their webhook URL.

https://docs.retellai.com/api-references/list-calls, /delete-call, /list-agents, /update-agent (2026-11).
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from simulator.answers import Answer, Api, HttpRequest, has_bearer, parameters, read_object, refuse, whole_number
from simulator.faults import Faults
from simulator.parts import Json
from simulator.records import Records

PAGE, MOST = 50, 1000  # `limit`, by default and at most; of calls and of agents
MODIFIED_MS = 1_790_000_000_000

# Not in a list's items: https://docs.retellai.com/api-references/list-calls (2026-11)
NOT_LISTED = {
    "transcript",
    "transcript_object",
    "transcript_with_tool_calls",
    "pre_session_transcript_with_tool_calls",
    "post_session_transcript_with_tool_calls",
    "access_token",
}

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda there, asked: there == asked,
    "ne": lambda there, asked: there != asked,
    "gt": lambda there, asked: there > asked,
    "ge": lambda there, asked: there >= asked,
    "lt": lambda there, asked: there < asked,
    "le": lambda there, asked: there <= asked,
}
NUMBERS = ("start_timestamp", "end_timestamp", "duration_ms")
WORDS = ("call_status", "call_type", "disconnection_reason", "data_storage_setting")


class BadRequest(Exception):
    """What Retell would not understand."""


def retell_handlers(records: Records, key: str, faults: Faults) -> list[HTTPRouteHandler]:
    """The API over these records, for this key."""
    api = Api("retell", lambda request: None if has_bearer(request, key) else refuse("retell", 401), faults)
    agents = {agent_id: _agent(agent_id, name) for agent_id, name in records.agents("retell").items()}

    @get("/v2/get-call/{call_id:str}")
    async def get_call(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            status, record = records.find("retell", call_id)
            return Answer(body=record) if status == 200 else refuse("retell", status)

        return await api.answer(request, make, "get")

    @post("/v3/list-calls")
    async def list_calls(request: HttpRequest) -> Response[Any]:
        asked = await read_object(request)
        return await api.answer(request, lambda: _answer(_calls, records, asked), "list")

    @delete("/v2/delete-call/{call_id:str}", status_code=200)
    async def delete_call(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            gone = records.delete("retell", call_id)
            return refuse("retell", 404) if gone is None else Answer(status=204)

        return await api.answer(request, make, "delete")

    @post("/v2/list-agents")
    async def list_agents(request: HttpRequest) -> Response[Any]:
        asked = await read_object(request)
        query = parameters(request)
        if asked is not None:
            limit = whole_number(query.get("limit", ""), PAGE)
            asked = {**asked, **query, "limit": limit}
        return await api.answer(request, lambda: _answer(_agents, agents, asked))

    @get("/get-agent/{agent_id:str}")
    async def get_agent(agent_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        return await api.answer(
            request, lambda: Answer(body=agents[agent_id]) if agent_id in agents else refuse("retell", 404)
        )

    @patch("/update-agent/{agent_id:str}")
    async def update_agent(agent_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        changes = await read_object(request)

        def make() -> Answer:
            if agent_id not in agents:
                return refuse("retell", 404)
            return _answer(_updated, agents[agent_id], changes)

        return await api.answer(request, make)

    return [get_call, list_calls, delete_call, list_agents, get_agent, update_agent]


def _answer(make: Callable[[Any, Json], Json], state: Any, asked: Json | None) -> Answer:
    try:
        if asked is None:
            raise BadRequest("the body is not a JSON object")
        return Answer(body=make(state, asked))
    except BadRequest as error:
        return refuse("retell", 400, f"Invalid request format, please check API reference: {error}")


def _calls(records: Records, asked: Json) -> Json:
    """A page of `POST /v3/list-calls`, newest first unless asked otherwise."""
    matches = _filter(asked.get("filter_criteria") or {})
    found = [record for record in records.listed("retell") if all(match(record) for match in matches)]
    skip = asked.get("skip") or 0
    if not isinstance(skip, int) or skip < 0:
        raise BadRequest("skip is no number of calls")
    page, key = _page(asked, [(began(record), record["call_id"], record) for record in found], skip)
    items = [
        {name: value for name, value in record.items() if name not in NOT_LISTED and not name.startswith("scrubbed_")}
        for record in page
    ]
    answer: Json = {"items": items, "has_more": key is not None}
    if key is not None:
        answer["pagination_key"] = key
    if asked.get("include_total"):
        answer["total"] = len(found)
    return answer


def began(record: Json) -> int:
    """What calls are sorted and filtered by, in Unix ms.

    A call that never connected has no `start_timestamp`. How Retell lists it is not documented; here its end stands in,
    so that it is in the list at all.
    """
    return int(record.get("start_timestamp") or record["end_timestamp"])


def _page(asked: Json, rows: list[tuple[int, str, Json]], skip: int = 0) -> tuple[list[Json], str | None]:
    """The rows from the place that `pagination_key` says, and the key of the next page if there is one."""
    limit, order = asked.get("limit", PAGE), asked.get("sort_order", "descending")
    if not isinstance(limit, int) or not 1 <= limit <= MOST:
        raise BadRequest(f"limit is a number from 1 to {MOST}")
    if order not in ("ascending", "descending"):
        raise BadRequest("sort_order is ascending or descending")
    rows.sort(key=lambda row: row[:2], reverse=order == "descending")
    if asked.get("pagination_key"):
        place = _decode_key(asked["pagination_key"])
        rows = [row for row in rows if (row[:2] < place if order == "descending" else row[:2] > place)]
    rows = rows[skip:]
    more = len(rows) > limit
    return [row for _, _, row in rows[:limit]], _encode_key(rows[limit - 1][:2]) if more else None


def _encode_key(place: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _decode_key(text: Any) -> tuple[int, str]:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text), type=tuple[int, str])
    except (TypeError, ValueError, binascii.Error):
        raise BadRequest("the pagination_key is none of ours") from None


def _filter(criteria: Any) -> list[Callable[[Json], bool]]:
    """What every record must fulfil. A filter that is not simulated is refused, rather than passed over."""
    if not isinstance(criteria, dict):
        raise BadRequest("filter_criteria is no object")
    matches = []
    for field, wanted in criteria.items():
        if field == "agent" and isinstance(wanted, list):
            matches.append(_is_of_agents(wanted))
        elif field in NUMBERS and isinstance(wanted, dict):
            matches.append(_is_number(field, wanted))
        elif field in WORDS and isinstance(wanted, dict):
            matches.append(_is_word(field, wanted))
        else:
            raise BadRequest(f"no such filter: {field}")
    return matches


def _is_of_agents(wanted: list[Any]) -> Callable[[Json], bool]:
    ids = {agent.get("agent_id") for agent in wanted if isinstance(agent, dict)}
    return lambda record: record["agent_id"] in ids


def _is_number(field: str, wanted: Json) -> Callable[[Json], bool]:
    """`{"type": "number", "op": "ge", "value": …}`, or `{"type": "range", "op": "bt", "value": [from, to]}`."""

    def value(record: Json) -> Any:
        return began(record) if field == "start_timestamp" else record.get(field)

    form, op, asked = wanted.get("type"), wanted.get("op"), wanted.get("value")
    if form == "number" and op in COMPARE and isinstance(asked, int | float):
        compare = COMPARE[op]
        return lambda record: value(record) is not None and compare(value(record), asked)
    bounds = asked if isinstance(asked, list) and len(asked) == 2 else []
    if form == "range" and op == "bt" and bounds and all(isinstance(bound, int | float) for bound in bounds):
        return lambda record: value(record) is not None and bounds[0] <= value(record) <= bounds[1]
    raise BadRequest(f"{field} is filtered by type number with eq, ne, gt, ge, lt, le, or type range with bt")


def _is_word(field: str, wanted: Json) -> Callable[[Json], bool]:
    asked = wanted.get("value")
    if wanted.get("type") != "enum" or wanted.get("op") != "in" or not isinstance(asked, list):
        raise BadRequest(f"{field} is filtered by type enum with op in and a list of words")
    return lambda record: record.get(field) in asked


def _agent(agent_id: str, name: str) -> Json:
    return {
        "agent_id": agent_id,
        "version": 3,
        "is_published": True,
        "agent_name": name,
        "channel": "voice",
        "voice_id": "voice-nora",
        "response_engine": {"type": "retell-llm", "llm_id": f"llm_{agent_id[-12:]}", "version": 3},
        "webhook_url": None,
        "webhook_events": None,
        "webhook_timeout_ms": 10_000,
        "last_modification_timestamp": MODIFIED_MS,
    }


def _agents(agents: dict[str, Json], asked: Json) -> Json:
    """A page of `POST /v2/list-agents`: no webhook URL in it."""
    criteria = asked.get("filter_criteria") or {}
    if (
        not isinstance(criteria, dict)
        or not isinstance(criteria.get("channel", {}), dict)
        or set(criteria) - {"channel"}
    ):
        raise BadRequest("agents are filtered by channel alone")
    has_voice = criteria.get("channel", {"value": "voice"}).get("value") == "voice"
    rows = [
        (
            agent["last_modification_timestamp"],
            agent_id,
            {
                "agent_id": agent_id,
                "agent_name": agent["agent_name"],
                "channel": "voice",
                "is_suspended": False,
                "tags": {},
                "user_modified_timestamp": agent["last_modification_timestamp"],
            },
        )
        for agent_id, agent in agents.items()
        if has_voice
    ]
    page, key = _page(asked, rows)
    return {"items": page, "has_more": key is not None} | ({} if key is None else {"pagination_key": key})


def _updated(agent: Json, changes: Json) -> Json:
    """Of an agent only where its webhooks go can be changed here. `webhook_url: null` removes the URL."""
    for name, value in changes.items():
        if name not in ("webhook_url", "webhook_events", "webhook_timeout_ms"):
            raise BadRequest(f"not simulated: {name}")
        is_url = isinstance(value, str) and value.startswith(("http://", "https://"))
        if name == "webhook_url" and value is not None and not is_url:
            raise BadRequest("webhook_url is no URL")
    agent |= changes
    return agent
