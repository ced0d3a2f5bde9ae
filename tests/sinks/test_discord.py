import asyncio
import re
import traceback
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Cost, End, Recording, Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import LocalMemory
from aftercall.sinks.discord import Discord
from aftercall.testing import Answer, Destination, HttpSinkContract, Sent
from tests.samples import a_call, a_delivery, an_event
from tests.slack import units

TOKEN = "sesame-7291_FICTION"
WEBHOOK = f"/webhooks/223704706495545344/{TOKEN}"
NONE: Any = None  # for a client that is not used


def form_errors(message: dict[str, Any]) -> list[str]:
    """What Discord would hold against a message: https://discord.com/developers/docs/resources/message (2026-11)."""
    found = []
    content, embeds = message.get("content", ""), message.get("embeds", [])
    if not content.strip() and not embeds:
        found.append("an empty message")
    if units(content) > 2000:
        found.append("content over 2000")
    total = 0
    for embed in embeds:
        texts = [(embed.get("title", ""), 256), (embed.get("description", ""), 4096)]
        texts += [(embed.get("footer", {"text": "-"})["text"], 2048)]
        for field in embed.get("fields", []):
            texts += [(field["name"], 256), (field["value"], 1024)]
            if not field["name"].strip() or not field["value"].strip():
                found.append("an empty field")
        total += sum(units(text) for text, _ in texts)
        found += [f"over {limit}" for text, limit in texts if units(text) > limit]
        if len(embed.get("fields", [])) > 25:
            found.append("over 25 fields")
        if "timestamp" in embed and not re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d(:\d\d(\.\d+)?)?", embed["timestamp"]
        ):
            found.append("not a timestamp")
    if total > 6000:
        found.append("embeds over 6000")
    if message.get("allowed_mentions") != {"parse": []}:
        found.append("somebody could be called")
    return found


class Channel:
    """One webhook of Discord's, in version 10 of its API."""

    def __init__(self) -> None:
        self.messages: dict[str, dict[str, Any]] = {}
        self.is_there = True
        self._posted = 1_000_000_000_000_000_000

    def answer(self, sent: Sent) -> Answer:
        path, _, query = sent.path.partition("?")
        method, rest = sent.method, path.removeprefix(f"/api/v10{WEBHOOK}")
        if not (rest == "" or rest.startswith("/messages/")):
            return Answer(401, {"message": "Invalid Webhook Token", "code": 50027})
        if not self.is_there:
            return Answer(404, {"message": "Unknown Webhook", "code": 10015})
        if not re.match(r"DiscordBot \(https?://\S+, \S+\)", sent.headers["user-agent"]):
            return Answer(403, "error code: 1010")
        if method == "DELETE":
            if self.messages.pop(rest.removeprefix("/messages/"), None) is None:
                return Answer(404, {"message": "Unknown Message", "code": 10008})
            return Answer(204)
        if form_errors(sent.json()):
            return Answer(400, {"message": "Invalid Form Body", "code": 50035})
        self._posted += 1
        self.messages[str(self._posted)] = sent.json()
        if "wait=true" not in query.split("&"):
            return Answer(204)
        return Answer(200, {"id": str(self._posted), **sent.json()})


class Server:
    def __init__(self, destination: Destination, http: httpx.AsyncClient) -> None:
        self.destination, self.http = destination, http
        self.channel = Channel()
        destination.answers = self.channel.answer

    def sink(self, path: str = f"/api{WEBHOOK}", **options: Any) -> Discord:
        return Discord("team", Discord.Config(url=self.destination.url + path, **options), self.http)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    destination = Destination()
    await destination.start()
    async with make_client(guarded=False, timeout_s=5) as http:
        yield Server(destination, http)
    await destination.stop()


def render(event: CallEvent, template: str | None = None) -> dict[str, Any]:
    config = Discord.Config(url=f"https://discord.com/api{WEBHOOK}", template=template)
    return Discord("team", config, NONE).render(a_delivery(event))


def embed(event: CallEvent) -> dict[str, Any]:
    [only] = render(event)["embeds"]
    return only


async def failure(sink: Discord) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery())
    return caught.value


# The message


def test_a_message_tells_what_is_known_of_the_call() -> None:
    shown = embed(an_event(call=a_call(recording=Recording(url="https://media.example.com/7f3.wav?a=1&b=(2)"))))

    assert shown["title"] == "Call ended: successful · Front desk"
    assert {field["name"]: field["value"] for field in shown["fields"]} == {
        "From → to": "+15550100123 → +15550100177",
        "Direction": "inbound",
        "Duration": "3:05",
        "End": "user hangup",
        "Sentiment": "positive",
        "Cost": "0.2140 USD",
    }
    assert shown["description"].split("\n\n") == [
        "Mirela Okafor moved her fitting to Tuesday.",
        "[Recording](https://media.example.com/7f3.wav?a=1&b=%282%29)",
        "Agent: Okafor Tailors, good morning.\n"
        "User: Grüezi, could I come Tuesday instead?\n"
        "Agent: Tuesday at ten it is.",
    ]
    assert shown["footer"] == {"text": "retell/acme · call_7f3 · call.ended"}
    assert shown["timestamp"] == "2026-11-20T12:05:00+00:00"


def test_a_call_of_which_nothing_is_known_still_makes_a_message() -> None:
    known = {"agent": Agent(), "direction": None, "from_": None, "to": None, "end": None, "duration_ms": None}
    bare = a_call(**known, transcript=None, analysis=None, cost=None, recording=None)

    assert embed(an_event(call=bare, time="in the evening")) == {
        "title": "Call ended",
        "fields": [],
        "footer": {"text": "retell/acme · call_7f3 · call.ended"},
    }


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("*bold* _it_ ~~no~~ `code` ||spoiler||", r"\*bold\* \_it\_ \~\~no\~\~ \`code\` \|\|spoiler\|\|"),
        ("# big\n- list\n> quote", "\\# big\n\\- list\n\\> quote"),
        ("[free](https://evil.example)", r"\[free\]\(https://evil.example\)"),
        ("<@123> <#4> <t:0>", r"\<@123\> \<\#4\> \<t:0\>"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_what_was_said_is_never_markup(said: str, shown: str) -> None:
    event = an_event(call=a_call(analysis=Analysis(summary=said), transcript=None, recording=None, error=said))

    assert embed(event)["description"] == shown
    assert embed(event)["fields"][-1]["value"] == shown
    assert render(event, "**{{ call.analysis.summary }}**")["content"] == f"**{shown}**"


def test_nobody_is_called_whatever_the_message_says() -> None:
    for template in (None, "@everyone {{ call.id }}"):
        assert render(an_event(), template)["allowed_mentions"] == {"parse": []}


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "ftp://example.com/a", "/a.wav", "https://a b", "https://e.x/" + "a" * 900]
)
def test_only_web_addresses_that_can_be_shown_whole_become_links(url: str) -> None:
    shown = embed(an_event(call=a_call(recording=Recording(url=url), log_url="https://media.example.com/kept.log")))

    assert "Recording" not in shown["description"]
    assert "[Log](https://media.example.com/kept.log)" in shown["description"]


def test_of_a_long_call_the_older_words_go_and_the_last_stay() -> None:
    long = a_call(
        analysis=Analysis(summary="*" * 5000),
        error="_" * 500,
        agent=Agent(name="`" * 500),
        from_="+" * 500,
        end=End(reason="unknown", provider_reason="e" * 500),
        cost=Cost(total="1" * 500),
        id="i" * 500,
        account="a" * 500,
        transcript=[*[Turn(role="user", text="#" * 500)] * 9, Turn(role="user", text="the last words")],
    )
    event = an_event(call=long, complete=False)
    shown = embed(event)

    assert form_errors(render(event)) == []
    beside = [shown["title"], shown["footer"]["text"], *(f["name"] + f["value"] for f in shown["fields"])]
    assert 1400 < sum(map(units, beside)) < 1900
    summary, link, said = shown["description"].split("\n\n")
    assert (units(summary) > 1490, link.startswith("[Recording]")) == (True, True)
    spoken = said.splitlines()
    assert (len(spoken), spoken[-1]) == (5, "User: the last words")


def test_a_text_of_a_template_is_cut_where_discord_takes_it() -> None:
    content = render(an_event(), "\U0001f9f5" * 3000)["content"]

    assert (units(content), content[-1]) == (1999, "…")


def test_a_template_that_says_nothing_gives_our_title() -> None:
    assert render(an_event(call=a_call(agent=Agent(name="*"))), "{{ call.error }}")["content"] == (
        "Call ended: successful · \\*"
    )


any_text = st.none() | st.text() | st.builds(lambda text, times: text * times, st.text(), st.integers(0, 3000))


@settings(deadline=None, max_examples=60)
@given(any_text, any_text, any_text, any_text, st.none() | st.text() | st.datetimes().map(str))
def test_no_call_breaks_a_limit(
    summary: str | None, name: str | None, error: str | None, said: str | None, time: str | None
) -> None:
    call = a_call(
        analysis=Analysis(summary=summary),
        agent=Agent(name=name),
        error=error,
        transcript=[Turn(role="agent", text=said)] * 7,
        recording=Recording(url=f"https://media.example.com/{said}"),
    )
    event = an_event(call=call, time=time or "")
    assert form_errors(render(event)) == []
    assert form_errors(render(event, "{{ call.analysis.summary }}{{ call.error }}")) == []


# The delivery


async def test_the_receipt_is_the_id_of_the_message(server: Server) -> None:
    receipt = await server.sink().deliver(a_delivery())

    assert list(server.channel.messages) == [receipt]
    assert list(server.channel.messages.values()) == [render(an_event())]


@pytest.mark.parametrize(
    "path", [f"/api{WEBHOOK}", f"/api/v6{WEBHOOK}", f"/api/v10{WEBHOOK}/", f"/api/v12{WEBHOOK}?wait=true"]
)
async def test_the_version_of_the_api_is_ours_whatever_the_url_says(server: Server, path: str) -> None:
    await server.sink(path).deliver(a_delivery())

    assert server.destination.sent[0].path.startswith(f"/api/v10{WEBHOOK}?")


async def test_a_thread_of_the_url_is_kept_for_the_message_and_its_erasure(server: Server) -> None:
    sink = server.sink(f"/api{WEBHOOK}?thread_id=42")
    receipt = await sink.deliver(a_delivery())
    await sink.erase(a_call())

    assert [sent.path for sent in server.destination.sent] == [
        f"/api/v10{WEBHOOK}?thread_id=42&wait=true",
        f"/api/v10{WEBHOOK}/messages/{receipt}?thread_id=42",
    ]


@pytest.mark.parametrize("status", [401, 404])
async def test_a_webhook_that_was_deleted_disables_the_sink(server: Server, status: int) -> None:
    server.channel.is_there = False
    sink = server.sink(f"/api{WEBHOOK}" if status == 404 else f"/api{WEBHOOK}x")
    error = await failure(sink)

    assert (error.gone, error.permanent) == (True, True)
    assert str(error) == f"HTTP {status}: there is no such webhook any more"


async def test_too_many_requests_waits_as_long_as_discord_asks(server: Server) -> None:
    body = {"message": "You are being rate limited.", "retry_after": 64.57, "global": False}
    server.destination.answers = lambda _: Answer(429, body, {"retry-after": "65", "x-ratelimit-scope": "user"})
    error = await failure(server.sink())

    assert (error.permanent, error.retry_after) == (False, 65)


async def test_a_refused_form_is_for_good(server: Server) -> None:
    server.destination.answers = lambda _: Answer(400, {"message": "Invalid Form Body", "code": 50035})
    error = await failure(server.sink())

    assert (error.permanent, error.gone, str(error)) == (True, False, "HTTP 400")


@pytest.mark.parametrize("body", ["<html>Sign in, Mirela</html>", "", b"\xff", "[]", "{}", {"id": 7}, {"id": "Mirela"}])
async def test_an_answer_that_is_not_discords_is_refused_and_not_repeated(server: Server, body: Any) -> None:
    server.destination.answers = lambda _: Answer(200, body)
    error = await failure(server.sink())

    assert error.permanent
    assert str(error) == "the answer is not Discord's; check that url is a webhook's"


async def test_an_erasure_minds_neither_a_message_that_is_gone_nor_a_second_time(server: Server) -> None:
    sink = server.sink()
    for number in range(3):
        await sink.deliver(a_delivery(an_event(id=f"evt_{number}")))
    server.channel.messages.popitem()
    await sink.deliver(a_delivery(an_event(id="evt_theirs", call=a_call(account="quay"))))

    await sink.erase(a_call())
    await sink.erase(a_call())
    assert len(server.channel.messages) == 1


async def test_what_was_posted_is_erased_also_where_the_attempt_was_cut_off_before_all_was_noted(
    server: Server,
) -> None:
    sink = server.sink()

    class CutOff(LocalMemory):
        async def add(self, key: str, value: str, *, for_s: float = 60) -> bool:
            raise asyncio.CancelledError

    sink.memory = cut_off = CutOff()
    with pytest.raises(asyncio.CancelledError):
        await sink.deliver(a_delivery())
    sink.memory = LocalMemory()
    vars(sink.memory).update(vars(cut_off))
    receipt = await sink.deliver(a_delivery(attempt=2))

    await sink.erase(a_call())
    assert receipt not in server.channel.messages


async def test_an_erasure_through_a_webhook_that_was_deleted_is_not_said_to_be_done(server: Server) -> None:
    sink = server.sink()
    await sink.deliver(a_delivery())
    server.channel.is_there = False

    with pytest.raises(SinkError, match="no such webhook") as caught:
        await sink.erase(a_call())
    assert caught.value.gone


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429, 500, 0])
async def test_the_webhooks_url_is_in_no_error_text(server: Server, status: int) -> None:
    server.destination.answers = lambda sent: Answer(status, sent.path)
    if not status:
        await server.destination.stop()
    sink = server.sink()
    error = await failure(sink)

    assert "sesame" not in "".join(traceback.format_exception(error)) + repr(error) + repr(sink.config)


# The options


@pytest.mark.parametrize(
    "url",
    [
        f"https://discord.com/api{WEBHOOK}",
        f"https://canary.discord.com/api/v9{WEBHOOK}",
        f"http://proxy.example.com:8080/discord/api{WEBHOOK}?thread_id=7",
    ],
)
def test_the_address_that_discord_copies_is_enough(url: str) -> None:
    assert msgspec.convert({"url": url}, Discord.Config).url == url


@pytest.mark.parametrize(
    "url",
    [
        f"discord.com/api{WEBHOOK}",
        f"https://discord.com{WEBHOOK}",
        f"https://discord.com/api{WEBHOOK}/slack",
        f"https://discord.com/api/webhooks/x/{TOKEN}",
        "https://discord.com/api/webhooks/223704706495545344",
        f"https://discord.com/api{WEBHOOK} sesame",
        "https://sesame",
        f"ftp://discord.com/api{WEBHOOK}",
    ],
)
def test_a_url_that_is_no_webhooks_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="the whole address that Discord copies") as caught:
        msgspec.convert({"url": url}, Discord.Config)

    assert "sesame" not in str(caught.value)


def test_a_template_that_is_none_is_refused_where_it_stands() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"template: .*did you mean"):
        msgspec.convert({"url": f"https://discord.com/api{WEBHOOK}", "template": "{{ call.agnt }}"}, Discord.Config)


class TestContract(HttpSinkContract):
    sink = Discord

    async def options(self) -> dict[str, Any]:
        self.channel = Channel()
        self.destination.answers = self.channel.answer
        return {"url": f"{self.destination.url}/api{WEBHOOK}"}

    async def received(self) -> list[bytes]:
        return [msgspec.json.encode(message) for message in self.channel.messages.values()]
