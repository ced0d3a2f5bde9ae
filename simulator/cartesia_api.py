"""Cartesia's API: a call's record, an agent's calls, deletion, and webhooks that are attached to agents.

https://docs.cartesia.ai/api-reference/agents/calls/list-calls, /agents/calls/delete-call, /agents/webhooks/create,
/agents/agents/list (2026-11).
"""

import itertools
import time
from typing import Any
from urllib.parse import urlsplit

from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from simulator.answers import Answer, Api, HttpRequest, has_bearer, parameters, read_object, refuse, whole_number
from simulator.faults import Faults
from simulator.parts import Json, iso
from simulator.records import Records

PAGE, MOST = 10, 100  # `limit`, by default and at most
DELETES_FROM = "2026-03-01"  # the version of the API that knows deletion
MADE_AT = "2026-09-01T08:00:00Z"


def cartesia_handlers(records: Records, key: str, faults: Faults) -> list[HTTPRouteHandler]:
    """The API over these records, for this key."""

    def admit(request: HttpRequest) -> Answer | None:
        if not has_bearer(request, key) and request.headers.get("x-api-key") != key:  # either is documented
            return refuse("cartesia", 401)
        if not request.headers.get("cartesia-version"):
            return refuse("cartesia", 400, "The Cartesia-Version header is required")
        return None

    api = Api("cartesia", admit, faults)
    agents = {agent_id: _agent(agent_id, name) for agent_id, name in records.agents("cartesia").items()}
    webhooks: dict[str, Json] = {}  # by id, without their secrets: nothing gives those back
    numbers = itertools.count(1)

    @get("/agents/calls/{call_id:str}")
    async def get_call(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            status, record = records.find("cartesia", call_id)
            return Answer(body=record) if status == 200 else refuse("cartesia", status)

        return await api.answer(request, make, "get")

    @get("/agents/calls")
    async def list_calls(request: HttpRequest) -> Response[Any]:
        return await api.answer(request, lambda: _calls(records, request), "list")

    @delete("/agents/calls/{call_id:str}", status_code=200)
    async def delete_call(call_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            if request.headers["cartesia-version"] < DELETES_FROM:
                return refuse("cartesia", 404)
            return _deleted(records, call_id)

        return await api.answer(request, make, "delete")

    @get("/agents")
    async def list_agents(request: HttpRequest) -> Response[Any]:
        return await api.answer(request, lambda: Answer(body={"summaries": list(agents.values())}))

    @patch("/agents/{agent_id:str}")
    async def update_agent(agent_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        changes = await read_object(request)

        def make() -> Answer:
            if agent_id not in agents:
                return refuse("cartesia", 404)
            if changes is None or set(changes) - {"webhook_id"}:
                return refuse("cartesia", 400, "Of an agent only webhook_id can be changed here")
            if changes.get("webhook_id") is not None and changes["webhook_id"] not in webhooks:
                return refuse("cartesia", 400, "webhook_id names no webhook")
            agents[agent_id] |= changes
            return Answer(body=agents[agent_id])

        return await api.answer(request, make)

    @post("/agents/webhooks")
    async def create_webhook(request: HttpRequest) -> Response[Any]:
        asked = await read_object(request)

        def make() -> Answer:
            why = _is_wrong(asked)
            if asked is None or why or not asked.get("secret"):
                return refuse("cartesia", 400, why or "secret is required")
            now = iso(time.time())
            made = {
                "id": f"agent_webhook_{next(numbers):022x}",
                "url": asked["url"],
                "created_at": now,
                "updated_at": now,
                "display_name": asked.get("display_name"),
            }
            webhooks[made["id"]] = made
            return Answer(body={**made, "secret": asked["secret"]})  # here, and never again

        return await api.answer(request, make)

    @get("/agents/webhooks")
    async def list_webhooks(request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            page = _page(request, list(webhooks.values()))
            if isinstance(page, Answer):
                return page
            return Answer(body={**page, "has_more": page["next_page"] is not None})

        return await api.answer(request, make)

    @get("/agents/webhooks/{webhook_id:str}")
    async def get_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        return await api.answer(
            request, lambda: Answer(body=webhooks[webhook_id]) if webhook_id in webhooks else refuse("cartesia", 404)
        )

    @patch("/agents/webhooks/{webhook_id:str}")
    async def update_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        asked = await read_object(request)

        def make() -> Answer:
            if webhook_id not in webhooks:
                return refuse("cartesia", 404)
            why = _is_wrong(asked)
            if asked is None or why:
                return refuse("cartesia", 400, why)
            shown: Json = {name: asked[name] for name in ("url", "display_name") if name in asked}
            webhooks[webhook_id] |= {**shown, "updated_at": iso(time.time())}
            return Answer(body=webhook_id)

        return await api.answer(request, make)

    @delete("/agents/webhooks/{webhook_id:str}", status_code=200)
    async def delete_webhook(webhook_id: FromPath[str], request: HttpRequest) -> Response[Any]:
        def make() -> Answer:
            return refuse("cartesia", 404) if webhooks.pop(webhook_id, None) is None else Answer(body=webhook_id)

        return await api.answer(request, make)

    of_calls: list[HTTPRouteHandler] = [get_call, list_calls, delete_call]
    of_agents: list[HTTPRouteHandler] = [list_agents, update_agent]
    return [*of_calls, *of_agents, create_webhook, list_webhooks, get_webhook, update_webhook, delete_webhook]


def _calls(records: Records, request: HttpRequest) -> Answer:
    """A page of one agent's calls, the latest first; with their transcripts only if asked to."""
    asked = parameters(request)
    if not asked.get("agent_id"):
        return refuse("cartesia", 400, "agent_id is required")
    found = [record for record in records.listed("cartesia") if record["agent_id"] == asked["agent_id"]]
    found.sort(key=lambda record: (record["start_time"], record["id"]), reverse=True)
    page = _page(request, found)
    if isinstance(page, Answer):
        return page
    if asked.get("expand") != "transcript":
        page["data"] = [{name: record[name] for name in record if name != "transcript"} for record in page["data"]]
    return Answer(body=page)


def _page(request: HttpRequest, rows: list[Json]) -> Json | Answer:
    """`next_page` is the id to pass as `starting_after`, that is the last one's; null on the last page."""
    asked = parameters(request)
    limit = whole_number(asked.get("limit", ""), PAGE)
    if not 1 <= limit <= MOST:
        return refuse("cartesia", 400, f"limit is a number from 1 to {MOST}")
    if "ending_before" in asked:
        return refuse("cartesia", 400, "ending_before is not simulated")
    if after := asked.get("starting_after"):
        places = [place for place, row in enumerate(rows, start=1) if row["id"] == after]
        if not places:
            return refuse("cartesia", 400, "starting_after names nothing in this list")
        rows = rows[places[0] :]
    return {"data": rows[:limit], "next_page": rows[limit - 1]["id"] if len(rows) > limit else None}


def _deleted(records: Records, call_id: str) -> Answer:
    status = next((record["status"] for record in records.listed("cartesia") if record["id"] == call_id), None)
    if status is None:
        return refuse("cartesia", 404)
    if status not in ("completed", "failed"):
        return refuse("cartesia", 400, "Only completed or failed calls can be deleted")
    return Answer(body=records.delete("cartesia", call_id))


def _is_wrong(asked: Json | None) -> str | None:
    """Why a webhook cannot be so; its URL is required in a change, too."""
    if asked is None or not isinstance(asked.get("url"), str):
        return "url is required"
    url = urlsplit(asked["url"])
    # Cartesia takes https alone. Plain http to this machine is allowed here, since tests have no certificate.
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname == "127.0.0.1"):
        return "url must be https"
    return None


def _agent(agent_id: str, name: str) -> Json:
    """An agent in a list: https://docs.cartesia.ai/api-reference/agents/agents/list (2026-11)."""
    return {
        "id": agent_id,
        "name": name,
        "created_at": MADE_AT,
        "updated_at": MADE_AT,
        "tts_voice": "1f4c8a0e-5b7d-4c1a-8e7a-0d9b2c3e4f50",
        "tts_language": "en",
        "has_text_to_agent_run": False,
        "deployment_count": 1,
        "description": None,
        "webhook_id": None,
        "deleted_at": None,
        "git_repository": None,
        "git_deploy_branch": None,
        "phone_numbers": [],
    }
