"""What Retell's API has beside the record of a call: lists, deletion, and where each agent sends its webhooks."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from aftercall.errors import ProviderError
from aftercall.providers.base import CallPage, Provider, Record
from aftercall.providers.http import request_json
from aftercall.providers.shapes import items, number, text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PAGE = 1000  # the most that Retell gives at once
LIST_TIMEOUT_S = 120  # a slow request: Retell's own SDK (6.2.13, 2026-11) waits 300 s for it

# Answers that are about one agent; after any other there is no point in asking for the next.
ABOUT_ONE_AGENT = (400, 404, 409, 422)


async def list_calls(provider: Provider, since: datetime, cursor: str | None) -> CallPage:
    """POST /v3/list-calls, https://docs.retellai.com/api-references/list-calls (2026-11): rows without transcripts."""
    since_ms = (since - EPOCH) // timedelta(milliseconds=1)
    asked: dict[str, Any] = {
        "filter_criteria": {"start_timestamp": {"type": "number", "op": "ge", "value": since_ms}},
        "sort_order": "descending",
        "limit": PAGE,
    }
    if cursor:
        asked["pagination_key"] = cursor
    answer = await _ask(provider, "POST", "/v3/list-calls", body=asked, timeout_s=LIST_TIMEOUT_S)
    calls, following = _page("list-calls", answer, cursor)
    return CallPage(calls=calls, next=following)


async def delete_call(provider: Provider, call_id: str) -> None:
    """DELETE /v2/delete-call/{call_id}, https://docs.retellai.com/api-references/delete-call (2026-11)."""
    try:
        await _ask(provider, "DELETE", f"/v2/delete-call/{quote(call_id, safe='')}")
    except ProviderError as error:
        if error.status not in provider.not_found:
            raise


async def register(provider: Provider, url: str, agents: Sequence[str], dry_run: bool) -> list[str]:
    """Have each agent send its webhooks to `url`; its own `webhook_url` replaces the account's one.

    What one agent refuses does not keep the others from it: the error that is raised then has every line.
    """
    lines: list[str] = []
    failure: ProviderError | None = None
    for agent_id in dict.fromkeys(agents) if agents else await _list_agents(provider):
        try:
            lines.append(await _register_agent(provider, agent_id, url, dry_run))
        except ProviderError as error:
            failure = error
            lines.append(f"agent {agent_id}: {error}")
            if error.status not in ABOUT_ONE_AGENT:
                break
    if failure is not None:
        raise ProviderError("\n".join(lines), status=failure.status, retry_after=failure.retry_after)
    return [
        *(lines or ["there are no voice agents to register"]),
        f"events are taken if the webhook_secrets of account {provider.account.name} have the API key with the webhook "
        "badge in Retell's dashboard: Retell signs with that one",
    ]


async def _list_agents(provider: Provider) -> list[str]:
    """The ids of all voice agents, each once: POST /v2/list-agents.

    https://docs.retellai.com/api-references/list-agents (2026-11). Its rows do not have the webhook's URL.
    """
    asked = {"filter_criteria": {"channel": {"type": "string", "op": "eq", "value": "voice"}}}
    found: dict[str, Record] = {}
    cursor: str | None = None
    while True:
        params = {"limit": str(PAGE)} | ({"pagination_key": cursor} if cursor else {})
        answer = await _ask(provider, "POST", "/v2/list-agents", params=params, body=asked)
        rows, cursor = _page("list-agents", answer, cursor)
        known = len(found)
        found |= {agent_id: row for row in rows if (agent_id := text(row.get("agent_id")))}
        if cursor is None or len(found) == known:  # a page that adds nothing: cursors that go round in a circle
            return [agent_id for agent_id, row in found.items() if row.get("channel") != "chat"]


async def _register_agent(provider: Provider, agent_id: str, url: str, dry_run: bool) -> str:
    """GET /get-agent and PATCH /update-agent, both about the newest version of the agent.

    https://docs.retellai.com/api-references/update-agent (2026-11); published versions cannot be changed:
    https://docs.retellai.com/agent/version (2026-11).
    """
    path = quote(agent_id, safe="")
    agent = await _ask(provider, "GET", f"/get-agent/{path}")
    if not isinstance(agent, dict):
        raise ProviderError(f"get-agent answered with {_kind(agent)}, not with an agent")
    named = f"agent {agent_id}" + (f" ({agent['agent_name']})" if text(agent.get("agent_name")) else "")
    version = number(agent.get("version"))
    if agent.get("is_published") is False and version is not None:
        draft = f" (version {version:.0f}, a draft: publish it if its calls use published versions)"
    else:
        draft = ""
    there = text(agent.get("webhook_url"))
    if there == url:
        return f"{named} already sends to {url}{draft}"
    instead = f"instead of to {_host(there)}" if there else "instead of to the account's webhook"
    if dry_run:
        return f"{named} would send to {url} {instead}{draft}"
    try:
        await _ask(provider, "PATCH", f"/update-agent/{path}", body={"webhook_url": url})
    except ProviderError as error:
        if agent.get("is_published") is not True or error.status not in ABOUT_ONE_AGENT:
            raise
        remedy = "its newest version is published and cannot be changed: make a draft of it in Retell's dashboard"
        raise ProviderError(f"{error}; {remedy}", status=error.status, retry_after=error.retry_after) from None
    return f"{named} now sends to {url} {instead}{draft}"


def _host(url: str) -> str:
    """No more of a stranger's webhook URL than this: the rest may be a secret."""
    try:
        return urlsplit(url).hostname or "another URL"
    except ValueError:
        return "another URL"


def _page(what: str, answer: Any, cursor: str | None) -> tuple[list[Record], str | None]:
    """The rows of an answer, and the cursor of the page after it; None after the last.

    Past the last page `has_more` may stay true, with cursors that were there before: an empty page is always the end.
    """
    rows = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise ProviderError(f"{what} answered with {_kind(answer)}, where an object with a list of items was due")
    following, has_more = text(answer.get("pagination_key")), answer.get("has_more")
    if not rows or has_more is False:
        return items(rows), None
    if has_more is True and following is None:
        raise ProviderError(f"{what} says that there is more, but not where: its answer has no pagination_key")
    return items(rows), None if following == cursor else following


def _kind(answer: Any) -> str:
    kinds = {dict: "an object without one", list: "an array", str: "a text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(answer), "a number")


async def _ask(
    provider: Provider,
    method: str,
    path: str,
    *,
    params: dict[str, str] | None = None,
    body: Any = None,
    timeout_s: float | None = None,
) -> Any:
    return await request_json(
        provider.http,
        method,
        f"{provider.root}{path}",
        headers={"authorization": f"Bearer {provider.account.api_key}"},
        params=params,
        body=body,
        timeout_s=timeout_s,
    )
