import json
import re
import traceback
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Recording, Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.teams import Teams, escape
from aftercall.testing import Answer, Destination, HttpSinkContract, Sent
from tests.samples import a_call, a_delivery, an_event

FLOW = (
    "/workflows/3f1c/triggers/manual/paths/invoke?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sig=sesame-7291"
)
NONE: Any = None  # for a client that is not used


def card_of(message: dict[str, Any]) -> dict[str, Any]:
    [attachment] = message["attachments"]
    return attachment["content"]


def text_of(block: dict[str, Any]) -> str:
    return block["text"] if block["type"] == "TextBlock" else "".join(run["text"] for run in block["inlines"])


def flow_errors(message: dict[str, Any]) -> list[str]:
    """What a flow, or Teams behind it, would hold against a message."""
    found = []
    if message.get("type") != "message" or len(message.get("attachments", [])) != 1:
        return ["the flow looks for `attachments` of a message"]
    if message["attachments"][0]["contentType"] != "application/vnd.microsoft.card.adaptive":
        found.append("not a card")
    card = card_of(message)
    if card["type"] != "AdaptiveCard" or float(card["version"]) > 1.5 or not card["body"]:
        found.append("not a card that Teams shows")
    if not all(block["type"] in ("TextBlock", "RichTextBlock") and text_of(block).strip() for block in card["body"]):
        found.append("not a block with text")
    actions = card.get("actions", [])
    if not all(one["type"] == "Action.OpenUrl" and re.match("https?://[^/]", one["url"], re.I) for one in actions):
        found.append("not an action")
    # The card stands in Teams' message as a string; the envelope around it counts as well.
    if len(json.dumps(json.dumps(card, ensure_ascii=False), ensure_ascii=False).encode()) + 2_000 > 28_672:
        found.append("MessageSizeExceeded")
    return found


def flow(sent: Sent) -> Answer:
    if unquote(sent.path) != unquote(FLOW):  # a client may write `/` for %2F in a query; the flow decodes it
        return Answer(401, {"error": {"code": "DirectApiAuthorizationRequired"}})
    if sent.headers["content-type"] != "application/json" or flow_errors(sent.json()):
        return Answer(400, {"error": {"code": "InvalidRequestContent"}})
    return Answer(202)


def render(event: CallEvent, template: str | None = None) -> dict[str, Any]:
    config = Teams.Config(url=f"https://prod-1.westeurope.logic.azure.com{FLOW}", template=template)
    return Teams("team", config, NONE).render(a_delivery(event))


def lines(message: dict[str, Any]) -> list[str]:
    return [text_of(block) for block in card_of(message)["body"]]


@pytest.fixture
async def destination() -> AsyncIterator[Destination]:
    destination = Destination()
    destination.answers = flow
    await destination.start()
    yield destination
    await destination.stop()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(guarded=False, timeout_s=5) as client:
        yield client


def sink(destination: Destination, http: httpx.AsyncClient) -> Teams:
    return Teams("team", Teams.Config(url=destination.url + FLOW), http)


async def failure(teams: Teams) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await teams.deliver(a_delivery())
    return caught.value


# The card


def test_a_card_tells_what_is_known_of_the_call() -> None:
    message = render(an_event())

    assert lines(message) == [
        "Call ended: successful · Front desk",
        "From → to: +15550100123 → +15550100177",
        "Direction: inbound",
        "Duration: 3:05",
        "End: user hangup",
        "Sentiment: positive",
        "Cost: 0.2140 USD",
        "Mirela Okafor moved her fitting to Tuesday.",
        "Agent: Okafor Tailors, good morning.",
        "User: Grüezi, could I come Tuesday instead?",
        "Agent: Tuesday at ten it is.",
        "retell/acme · call_7f3 · call.ended · 2026-11-20T12:05:00.000Z",
    ]
    assert card_of(message)["actions"] == [
        {"type": "Action.OpenUrl", "title": "Recording", "url": "https://media.example.com/7f3.wav"}
    ]
    assert flow_errors(message) == []


def test_what_was_said_stands_where_no_markdown_is_read() -> None:
    said = "**bold** [free](https://evil.example) - list <at>all</at>"
    call = a_call(analysis=Analysis(summary=said), error=said, agent=Agent(name=said))
    message = render(an_event(call=call))

    assert {block["type"] for block in card_of(message)["body"]} == {"RichTextBlock"}
    assert said in lines(message)


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "ftp://example.com/a", "/a.wav", "https://a b", "https://e.x/" + "a" * 2000]
)
def test_only_web_addresses_become_buttons(url: str) -> None:
    card = card_of(render(an_event(call=a_call(recording=Recording(url=url)))))

    assert "actions" not in card


def test_a_long_call_loses_what_was_said_before_its_summary() -> None:
    def shown(said: str, summary: str, **links: Any) -> list[str]:
        call = a_call(transcript=[Turn(role="user", text=said)] * 9, analysis=Analysis(summary=summary), **links)
        message = render(an_event(call=call))
        assert flow_errors(message) == []
        return lines(message)

    assert len([line for line in shown("x" * 900, "s" * 900) if line.startswith("User: x")]) == 6
    fewer = shown('"' * 900, '"' * 3900)
    assert 0 < len([line for line in fewer if line.startswith("User: ")]) < 6
    assert '"' * 3900 in fewer
    url = "https://media.example.com/" + "r" * 1900
    none = shown('"' * 900, '"' * 3900, recording=Recording(url=url), log_url=url)
    assert '"' * 3900 in none
    assert [line for line in none if line.startswith("User: ")] == []


@pytest.mark.parametrize("filling", ["x", '"', "\\", "ü", "好", "\U0001f9f5", "\n", "x\n", "*", "- a\n"])
def test_whatever_fills_a_card_it_is_shortened_and_not_refused(filling: str) -> None:
    full = filling * 90_000
    call = a_call(
        transcript=[Turn(role="user", text=full)] * 9,
        analysis=Analysis(summary=full),
        agent=Agent(name=full),
        error=full,
        id=full,
        recording=Recording(url="https://media.example.com/" + "r" * 1900),
        log_url="https://media.example.com/" + "l" * 1900,
    )
    event = an_event(call=call)

    assert flow_errors(render(event)) == []
    assert flow_errors(render(event, "begins {{ call.analysis.summary }}")) == []
    assert lines(render(event, "begins {{ call.analysis.summary }}"))[0].startswith("begins")


any_text = st.none() | st.text() | st.builds(lambda text, times: text * times, st.text(), st.integers(0, 3000))


@settings(deadline=None, max_examples=60)
@given(any_text, any_text, any_text, any_text)
def test_no_call_breaks_a_card(summary: str | None, name: str | None, error: str | None, said: str | None) -> None:
    call = a_call(
        analysis=Analysis(summary=summary),
        agent=Agent(name=name),
        error=error,
        transcript=[Turn(role="agent", text=said)] * 7,
        recording=Recording(url=f"https://media.example.com/{said}"),
    )
    event = an_event(call=call)
    assert flow_errors(render(event)) == []
    assert flow_errors(render(event, "{{ call.analysis.summary }}\n- {{ call.error }}")) == []


# The user's own wording


def test_a_template_may_use_markdown_while_values_may_not() -> None:
    call = a_call(analysis=Analysis(summary="**all** [here](https://evil.example)\n- one\n  2. two"))
    message = render(an_event(call=call), "**{{ call.agent.name }}**\n- {{ call.analysis.summary }}")

    assert lines(message) == [
        "**Front desk**",
        "- \\*\\*all\\*\\* \\[here\\](https://evil.example)",
        "\\- one",
        "  2\\. two",
    ]
    assert {block["type"] for block in card_of(message)["body"]} == {"TextBlock"}


def test_a_template_that_says_nothing_gives_our_title() -> None:
    assert lines(render(an_event(call=a_call(agent=Agent(name="*"))), "{{ call.error }}")) == [
        "Call ended: successful · \\*"
    ]


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("a_b*c", "a\\_b\\*c"),
        ("+15550100123", "+15550100123"),
        ("-5 and 3.5", "-5 and 3.5"),
        ("- a\n12) b", "\\- a\n12\\) b"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_only_what_is_markup_is_escaped(value: str, escaped: str) -> None:
    assert escape(value) == escaped


# The delivery


async def test_the_flow_accepts_the_card(destination: Destination, http: httpx.AsyncClient) -> None:
    assert await sink(destination, http).deliver(a_delivery()) == "HTTP 202"

    [sent] = destination.sent
    assert sent.json() == render(an_event())


@pytest.mark.parametrize("status", [404, 410])
async def test_a_flow_that_was_deleted_disables_the_sink(
    destination: Destination, http: httpx.AsyncClient, status: int
) -> None:
    destination.answers = lambda _: Answer(status, {"error": {"code": "WorkflowNotFound"}})
    error = await failure(sink(destination, http))

    assert (error.permanent, error.gone) == (True, True)


@pytest.mark.parametrize("status", [202, 401, 404, 429, 500, 0])
async def test_the_flows_url_is_in_no_error_text(
    destination: Destination, http: httpx.AsyncClient, status: int
) -> None:
    destination.answers = lambda sent: Answer(status, sent.path)
    teams = sink(destination, http)
    if not status:
        await destination.stop()
    if status == 202:
        assert "sesame" not in str(await teams.deliver(a_delivery()))
        return
    error = await failure(teams)

    assert "sesame" not in "".join(traceback.format_exception(error)) + repr(error) + repr(teams.config)


# The options


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("prod-1.westeurope.logic.azure.com/sesame", "the whole https:// address"),
        ("https://", "the whole https:// address"),
        ("https://a:b:c/sesame", "the whole https:// address"),
        ("ftp://example.com/sesame", "the whole https:// address"),
        ("https://okafor.webhook.office.com/webhookb2/sesame", "Office 365 connector"),
    ],
)
def test_a_url_that_is_no_flows_is_refused_without_being_shown(url: str, why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why) as caught:
        msgspec.convert({"url": url}, Teams.Config)

    assert "sesame" not in str(caught.value)


def test_a_template_that_is_none_is_refused_where_it_stands() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"template: .*did you mean"):
        msgspec.convert({"url": "https://example.com", "template": "{{ call.agnt }}"}, Teams.Config)


class TestContract(HttpSinkContract):
    sink = Teams
    idempotent = False  # the flow gives no id, and takes none

    async def options(self) -> dict[str, Any]:
        self.destination.answers = flow
        return {"url": self.destination.url + FLOW}
