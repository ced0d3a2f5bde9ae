import re
import traceback
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Call, Cost, Direction, End, EndReason, Recording, Sentiment, Status, Turn
from aftercall.errors import SinkError
from aftercall.event import CallEvent, EventData, EventType, encode
from aftercall.sinks.base import Delivery
from aftercall.sinks.slack import Slack
from aftercall.sinks.slack_blocks import message as message_for
from aftercall.testing import Answer, HttpSinkContract, Sent
from tests.slack import problems, units

TOKEN = "T0FICTION/B0FICTION/sesame-7291"


class StubSlack:
    """Takes a message as Slack does: `ok`, or 400 `invalid_blocks` for one that breaks a limit."""

    def __init__(self) -> None:
        self.url = ""
        self.messages: list[dict[str, Any]] = []
        self.answer: tuple[int, str, dict[str, str]] | None = None

    async def take(self, request: web.Request) -> web.Response:
        if self.answer:
            status, text, headers = self.answer
            return web.Response(status=status, text=text, headers=headers)
        if request.content_type != "application/json":
            return web.Response(status=400, text="invalid_payload")
        message = await request.json()
        if problems(message):
            return web.Response(status=400, text="invalid_blocks")
        self.messages.append(message)
        return web.Response(text="ok")


@pytest.fixture
async def stub() -> AsyncIterator[StubSlack]:
    slack = StubSlack()
    app = web.Application()
    app.router.add_post(f"/services/{TOKEN}", slack.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    slack.url = f"http://127.0.0.1:{runner.addresses[0][1]}/services/{TOKEN}"
    yield slack
    await runner.cleanup()


def event(call: Call | None = None, *, type_: EventType = "call.analyzed", **data: Any) -> CallEvent:
    call = call or Call(id="call_7f3", provider="retell", account="acme", status="ended")
    return CallEvent(
        id="evt_lantern",
        source=f"/{call.provider}/{call.account}",
        type=type_,
        subject=call.id,
        time="2026-11-20T12:05:00.000Z",
        data=EventData(call=call, received_at="2026-11-20T12:05:01.120Z", sequence=2, **data),
    )


def call(**known: Any) -> Call:
    return Call(**({"id": "call_7f3", "provider": "retell", "account": "acme", "status": "ended"} | known))


def full_call() -> Call:
    return call(
        agent=Agent(id="agent_1", name="Front desk"),
        direction="inbound",
        from_="+15550100123",
        to="+15550100177",
        end=End(reason="user_hangup"),
        duration_ms=185_400,
        analysis=Analysis(summary="Mirela Okafor moved her fitting to Tuesday.", sentiment="positive", successful=True),
        cost=Cost(total="0.2140"),
        recording=Recording(url="https://media.example.com/7f3.wav?expires=60&key=a|b"),
        log_url="https://media.example.com/7f3.log",
        transcript=[
            Turn(role="agent", text="Okafor Tailors, good morning."),
            Turn(role="user", text="Could I come\nTuesday instead?"),
            Turn(role="tool", text='{"slot": "tue"}'),
            Turn(role="agent", text="Tuesday at ten it is."),
        ],
    )


def render(event: CallEvent) -> dict[str, Any]:
    return message_for(event, None)


def delivery(event: CallEvent) -> Delivery:
    return Delivery(event=event, body=encode(event))


def sink(url: str, http: httpx.AsyncClient) -> Slack:
    return Slack("team", Slack.Config(url=url), http)


def texts(message: dict[str, Any], kind: str) -> list[str]:
    """Every text of one kind in the message, in its order."""
    found = []
    for block in message["blocks"]:
        objects = [block["text"]] if "text" in block else block.get("fields", block.get("elements"))
        found += [text["text"] for text in objects if text["type"] == kind]
    return found


def unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


async def refused(slack: Slack, message: CallEvent) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await slack.deliver(delivery(message))
    return caught.value


# The message


def test_a_message_tells_what_is_known_of_the_call() -> None:
    message = render(event(full_call()))

    assert message["blocks"][0]["text"]["text"] == "Call analyzed: successful · Front desk"
    mrkdwn = texts(message, "mrkdwn")
    for expected in (
        "*From → to*\n+15550100123 → +15550100177",
        "*Direction*\ninbound",
        "*Duration*\n3:05",
        "*End*\nuser hangup",
        "*Sentiment*\npositive",
        "*Cost*\n0.2140 USD",
        "Mirela Okafor moved her fitting to Tuesday.",
        "<https://media.example.com/7f3.wav?expires=60&amp;key=a%7Cb|Recording>",
        "<https://media.example.com/7f3.log|Log>",
        "retell/acme",
        "call_7f3",
        "call.analyzed",
        "<!date^1795176300^{date_short_pretty} {time}|2026-11-20T12:05:00.000Z>",
    ):
        assert expected in mrkdwn
    assert message["text"] == ("Call analyzed: successful · Front desk\nMirela Okafor moved her fitting to Tuesday.")
    assert (message["unfurl_links"], message["unfurl_media"]) == (False, False)
    assert problems(message) == []


def test_a_call_of_which_nothing_is_known_still_makes_a_message() -> None:
    message = render(event())

    assert [block["type"] for block in message["blocks"]] == ["header", "context"]
    assert problems(message) == []


def test_a_failed_call_is_called_failed_with_its_error() -> None:
    message = render(event(call(status="failed", error="no route to <sip:desk@example.com>"), type_="call.ended"))

    assert texts(message, "plain_text") == ["Call ended: failed"]
    assert "*Error*\nno route to &lt;sip:desk@example.com&gt;" in texts(message, "mrkdwn")


def test_an_unknown_end_is_told_in_the_providers_word() -> None:
    told = render(event(call(end=End(reason="unknown", provider_reason="line_fell_asleep"))))
    untold = render(event(call(end=End(reason="unknown"))))

    assert "*End*\nline_fell_asleep" in texts(told, "mrkdwn")
    assert not any("*End*" in text for text in texts(untold, "mrkdwn"))


def test_an_incomplete_event_says_so_and_a_complete_one_does_not() -> None:
    notice = "incomplete: the record could not be fetched"

    assert notice in texts(render(event(complete=False)), "mrkdwn")
    assert notice not in texts(render(event(complete=True)), "mrkdwn")


def test_the_excerpt_is_the_last_things_said_a_line_a_turn() -> None:
    turns = [Turn(role="user", text=f"line {number}") for number in range(20)]

    assert texts(render(event(full_call())), "plain_text")[1] == (
        "Agent: Okafor Tailors, good morning.\nUser: Could I come Tuesday instead?\nAgent: Tuesday at ten it is."
    )
    assert texts(render(event(call(transcript=turns))), "plain_text")[1].splitlines() == [
        f"User: line {number}" for number in range(14, 20)
    ]


def test_a_mention_in_the_transcript_stays_plain_text() -> None:
    message = render(event(call(transcript=[Turn(role="user", text="<!channel> <@U012> everyone")])))

    assert texts(message, "plain_text")[1] == "User: <!channel> <@U012> everyone"
    assert not any("channel" in text for text in [*texts(message, "mrkdwn"), message["text"]])


@pytest.mark.parametrize("url", ["javascript:alert(1)", "ftp://example.com/a", "/a.wav", "https://", "https://a b", ""])
def test_only_web_addresses_become_links(url: str) -> None:
    message = render(event(call(recording=Recording(url=url), log_url="https://media.example.com/kept.log")))

    assert [text for text in texts(message, "mrkdwn") if "|Recording>" in text] == []
    assert "<https://media.example.com/kept.log|Log>" in texts(message, "mrkdwn")
    assert problems(message) == []


def test_a_link_is_whole_or_left_out() -> None:
    url = "https://media.example.com/" + "a" * 1900

    assert f"<{url}|Recording>" in texts(render(event(call(recording=Recording(url=url)))), "mrkdwn")
    assert not any(
        "Recording" in text for text in texts(render(event(call(recording=Recording(url=url * 2)))), "mrkdwn")
    )


@pytest.mark.parametrize("tail", [">", "|x><!channel", "<!channel>", "&gt;<@U012>", "?a=1&b=2"])
def test_a_link_ends_where_the_sink_ends_it(tail: str) -> None:
    message = render(event(call(recording=Recording(url="https://media.example.com/" + tail))))

    link = next(text for text in texts(message, "mrkdwn") if text.endswith("|Recording>"))
    assert (link.count("<"), link.count(">"), link.count("|")) == (1, 1, 1)
    assert problems(message) == []


@pytest.mark.parametrize("blank", ["", " ", "\0", "\0 \x1b\n", "\u00a0"])
def test_a_blank_text_is_left_out(blank: str) -> None:
    message = render(event(call(analysis=Analysis(summary=blank), error=blank, agent=Agent(name=blank))))

    assert [block["type"] for block in message["blocks"]] == ["header", "context"]
    assert problems(message) == []


@pytest.mark.parametrize(
    "text", ["<!channel> & <@U012|boss>", "&amp;", "&lt;!here&gt;", "שלום <!here>", "\u202e<#C01>"]
)
def test_a_summary_is_escaped_so_that_it_reads_as_it_was(text: str) -> None:
    message = render(event(call(analysis=Analysis(summary=text))))

    assert text in [unescape(shown) for shown in texts(message, "mrkdwn")]
    assert problems(message) == []


def test_a_long_text_is_cut_between_characters_and_says_so() -> None:
    summary = texts(render(event(call(analysis=Analysis(summary="&😀" * 3000)))), "mrkdwn")[0]

    assert re.fullmatch("(&amp;😀)+(&amp;)?…", summary)
    assert 2990 <= units(summary) <= 3000


def test_too_much_for_all_blocks_costs_the_excerpt_before_the_summary() -> None:
    wordy = call(
        analysis=Analysis(summary='\n"\\' * 900),
        transcript=[Turn(role="agent", text='"\\' * 400)] * 9,
        recording=Recording(url="https://media.example.com/" + "r" * 1900),
        log_url="https://media.example.com/" + "l" * 1900,
    )
    message = render(event(wordy))

    assert texts(message, "plain_text") == ["Call analyzed"]
    assert any(text.startswith('"\\') for text in texts(message, "mrkdwn"))
    assert problems(message) == []


nasty = st.sampled_from(
    ["<!channel>", "&amp;", "<http://evil.example|x>", "😀", "👩‍👩‍👧", "مرحبا", "\u202e", "\0", " ", "|", '"']
)
any_text = st.none() | st.text() | st.builds(lambda text, times: text * times, st.text() | nasty, st.integers(0, 9000))
some_text = any_text.map(lambda text: text or "")
any_url = any_text | some_text.map("https://media.example.com/".__add__)
any_call = st.builds(
    Call,
    id=some_text,
    provider=some_text,
    account=some_text,
    status=st.sampled_from(get_args(Status)),
    agent=st.builds(Agent, name=any_text, id=any_text),
    direction=st.none() | st.sampled_from(get_args(Direction)),
    from_=any_text,
    to=any_text,
    end=st.none() | st.builds(End, reason=st.sampled_from(get_args(EndReason)), provider_reason=any_text),
    duration_ms=st.none() | st.integers(0, 10**12),
    transcript=st.none() | st.lists(st.builds(Turn, role=st.sampled_from(["agent", "user", "tool"]), text=any_text)),
    analysis=st.none()
    | st.builds(
        Analysis,
        summary=any_text,
        sentiment=st.none() | st.sampled_from(get_args(Sentiment)),
        successful=st.none() | st.booleans(),
    ),
    cost=st.none() | st.builds(Cost, total=some_text),
    recording=st.none() | st.builds(Recording, url=any_url.map(lambda url: url or "")),
    log_url=any_url,
    error=any_text,
)
any_event = st.builds(
    lambda call, type_, time, complete: msgspec.structs.replace(event(call, type_=type_, complete=complete), time=time),
    any_call,
    st.sampled_from(get_args(EventType)),
    some_text | st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.booleans(),
)


@settings(deadline=None)
@given(any_event)
def test_no_call_breaks_a_limit_or_lets_a_control_sequence_through(anything: CallEvent) -> None:
    assert problems(render(anything)) == []


# The delivery


async def test_slack_takes_the_message(stub: StubSlack, http: httpx.AsyncClient) -> None:
    await sink(stub.url, http).deliver(delivery(event(full_call())))

    assert stub.messages == [render(event(full_call()))]


async def test_a_transcript_of_200_kb_fits(stub: StubSlack, http: httpx.AsyncClient) -> None:
    long = call(transcript=[Turn(role="user", text="Could you say that again? <!here> ☎️ " * 50)] * 100)
    assert len(encode(event(long))) > 200_000

    await sink(stub.url, http).deliver(delivery(event(long)))

    assert len(stub.messages) == 1


async def test_too_many_requests_waits_as_long_as_slack_asks(stub: StubSlack, http: httpx.AsyncClient) -> None:
    stub.answer = (429, "rate_limited", {"Retry-After": "30"})

    error = await refused(sink(stub.url, http), event())

    assert (error.permanent, error.retry_after) == (False, 30.0)


@pytest.mark.parametrize(("status", "permanent"), [(400, True), (403, True), (404, True), (410, True), (500, False)])
async def test_a_refusal_is_final_and_a_fault_of_slack_passes(
    stub: StubSlack, http: httpx.AsyncClient, status: int, permanent: bool
) -> None:
    stub.answer = (status, "no_service", {})

    error = await refused(sink(stub.url, http), event())

    assert error.permanent is permanent
    assert str(status) in str(error)


async def test_an_error_word_in_a_200_answer_is_a_refusal_that_is_told(
    stub: StubSlack, http: httpx.AsyncClient
) -> None:
    stub.answer = (200, "channel_is_archived", {})

    error = await refused(sink(stub.url, http), event())

    assert error.permanent
    assert "channel_is_archived" in str(error)


@pytest.mark.parametrize("answer", ["<html>Sign in, Mirela</html>", "", "okay", "OK"])
async def test_an_answer_that_is_not_slacks_is_refused_and_not_repeated(
    stub: StubSlack, http: httpx.AsyncClient, answer: str
) -> None:
    stub.answer = (200, answer, {})

    error = await refused(sink(stub.url, http), event())

    assert error.permanent
    assert str(error) == "the answer is not Slack's; check that url is an incoming webhook"


@pytest.mark.parametrize("answer", [(200, TOKEN, {}), (404, TOKEN, {}), (429, TOKEN, {}), (500, TOKEN, {}), None])
async def test_the_webhook_url_is_in_no_error_text(
    stub: StubSlack, http: httpx.AsyncClient, answer: tuple[int, str, dict[str, str]] | None
) -> None:
    stub.answer = answer
    nobody = f"http://127.0.0.1:1/services/{TOKEN}"  # nothing listens there

    error = await refused(sink(stub.url if answer else nobody, http), event())

    assert "sesame" not in "".join(traceback.format_exception(error)) + repr(error)


async def test_the_webhook_url_is_in_no_repr(http: httpx.AsyncClient) -> None:
    slack = sink(f"https://hooks.slack.com/services/{TOKEN}", http)

    assert "sesame" not in repr(slack) + repr(slack.config) + str(slack.config)


@pytest.mark.parametrize("url", ["hooks.slack.com/services/sesame", "https://", "xoxb-sesame", "https://a b/sesame"])
def test_a_url_that_is_no_web_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="Incoming Webhooks") as caught:
        msgspec.convert({"url": url}, Slack.Config)

    assert "sesame" not in str(caught.value)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="channel"):
        msgspec.convert({"url": f"https://hooks.slack.com/services/{TOKEN}", "channel": "#calls"}, Slack.Config)


async def test_a_refusal_is_told_in_slacks_word_and_in_no_other(stub: StubSlack, http: httpx.AsyncClient) -> None:
    for answer, told in (("invalid_blocks", "HTTP 400 invalid_blocks"), ("no Mirela", "HTTP 400")):
        stub.answer = (400, answer, {})
        assert str(await refused(sink(stub.url, http), event())) == told


async def test_a_webhook_that_was_removed_disables_the_sink_and_says_why(
    stub: StubSlack, http: httpx.AsyncClient
) -> None:
    stub.answer = (404, "no_service", {})

    error = await refused(sink(stub.url, http), event())

    assert (error.gone, str(error)) == (True, "HTTP 404 no_service")


async def test_a_receipt_says_that_slack_took_it(stub: StubSlack, http: httpx.AsyncClient) -> None:
    assert await sink(stub.url, http).deliver(delivery(event())) == "HTTP 200"


# The user's own wording


def worded(template: str, event: CallEvent) -> dict[str, Any]:
    sink = Slack("team", Slack.Config(url=f"https://hooks.slack.com/services/{TOKEN}", template=template), None)  # type: ignore[arg-type]
    return sink.render(delivery(event))


def test_a_template_replaces_the_blocks_and_may_use_mrkdwn_while_values_may_not() -> None:
    said = call(analysis=Analysis(summary="<!channel> & *all*"), agent=Agent(name="Front desk"))

    message = worded("*{{ call.agent.name }}* <!here>\n{{ call.analysis.summary }}", event(said))

    assert message["text"] == "*Front desk* <!here>\n&lt;!channel&gt; &amp; *all*"
    assert message["blocks"] == [
        {"type": "section", "text": {"type": "mrkdwn", "text": message["text"], "verbatim": True}}
    ]


def test_a_long_text_of_a_template_becomes_sections_that_end_with_their_lines() -> None:
    lines = "\n".join(f"line {number} " + "x" * 90 for number in range(50))
    message = worded("{{ call.analysis.summary }}", event(call(analysis=Analysis(summary=lines))))

    sections = [block["text"]["text"] for block in message["blocks"]]
    assert "\n".join(sections) == lines
    assert len(sections) == 2
    assert problems(message) == []


@pytest.mark.parametrize(
    "summary", ["&" * 20_000, "<>&" * 9000, "\U0001f9f5" * 9000, "x" * 90_000, '"\\' * 9000, "\n" * 9000]
)
def test_a_text_of_a_template_that_is_too_long_is_cut_where_slack_takes_it(summary: str) -> None:
    message = worded("begins {{ call.analysis.summary }}", event(call(analysis=Analysis(summary=summary))))

    assert problems(message) == []
    assert message["text"].startswith("begins")


def test_a_link_of_a_template_is_not_cut() -> None:
    message = worded("x" * 2990 + "<https://example.com/a|the record>", event())

    assert [block["text"]["text"] for block in message["blocks"]] == ["x" * 2990, "<https://example.com/a|the record>"]


@pytest.mark.parametrize("template", ["", " \n", "{{ call.error }}", "\x00"])
def test_a_template_that_says_nothing_gives_our_title(template: str) -> None:
    message = worded(template, event(call(agent=Agent(name="<Front desk>"))))

    assert message["text"] == "Call analyzed · &lt;Front desk&gt;"
    assert problems(message) == []


def test_a_template_that_is_none_is_refused_where_it_stands() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"template: .*did you mean"):
        msgspec.convert({"url": "https://hooks.slack.com/x", "template": "{{ call.agnt }}"}, Slack.Config)


@settings(deadline=None)
@given(any_event)
def test_no_call_breaks_a_limit_through_a_template(anything: CallEvent) -> None:
    template = (
        "*{{ call.agent.name }}*\n{{ call.analysis.summary }}{{ call.error }}"
        "{% for turn in call.transcript %}{{ turn.text }}{% endfor %}"
    )
    assert problems(worded(template, anything)) == []


class TestContract(HttpSinkContract):
    sink = Slack
    idempotent = False  # Slack gives no id, and takes none

    async def options(self) -> dict[str, Any]:
        self.destination.answers = self.take
        return {"url": f"{self.destination.url}/services/{TOKEN}"}

    @staticmethod
    def take(sent: Sent) -> Answer:
        if sent.path != f"/services/{TOKEN}":
            return Answer(404, "no_service")
        if sent.headers["content-type"] != "application/json":
            return Answer(400, "invalid_payload")
        return Answer(400, "invalid_blocks") if problems(sent.json()) else Answer(200, "ok")
