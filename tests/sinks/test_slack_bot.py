import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from aftercall.call import Analysis
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import LocalMemory
from aftercall.sinks.notes import CLAIM_S
from aftercall.sinks.slack_bot import SlackBot
from aftercall.testing import Answer, Destination, HttpSinkContract, Sent
from tests.samples import a_call, a_delivery, an_event
from tests.slack import SlackApi


class Workspace:
    """Slack, and as many workers' sinks as are wanted, which share one memory."""

    def __init__(self, destination: Destination, http: httpx.AsyncClient) -> None:
        self.destination, self.http = destination, http
        self.slack = SlackApi()
        self.memory = LocalMemory()
        destination.answers = self.slack.answer

    def sink(self, **options: Any) -> SlackBot:
        given = {"token": SlackApi.token, "channel": SlackApi.name, "base_url": f"{self.destination.url}/api/"}
        sink = SlackBot("team", SlackBot.Config(**{**given, **options}), self.http)
        sink.memory = self.memory
        return sink


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    destination = Destination()
    await destination.start()
    async with make_client(guarded=False, timeout_s=5) as http:
        yield Workspace(destination, http)
    await destination.stop()


def ended(**changes: Any) -> CallEvent:
    return an_event(**{"id": "evt_ended", "sequence": 1, **changes})


def settled(**changes: Any) -> CallEvent:
    return an_event(**{"id": "evt_settled", "type": "call.settled", "sequence": 2, **changes})


async def failure(sink: SlackBot, event: CallEvent) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery(event))
    return caught.value


def headings(workspace: Workspace) -> list[str]:
    return [message["blocks"][0]["text"]["text"] for message in workspace.slack.messages.values()]


# A call's messages


async def test_a_later_event_is_a_reply_in_the_thread_of_the_first(workspace: Workspace) -> None:
    sink = workspace.sink()
    first = await sink.deliver(a_delivery(ended()))
    second = await sink.deliver(a_delivery(settled()))

    assert list(workspace.slack.messages) == [first, second]
    parent, reply = workspace.slack.messages.values()
    assert (parent.get("thread_ts"), reply["thread_ts"]) == (None, first)
    assert reply["channel"] == SlackApi.channel  # the id that Slack answered, not the name that was configured


async def test_a_later_event_updates_the_first_message_where_that_is_wanted(workspace: Workspace) -> None:
    sink = workspace.sink(later_events="update")
    first = await sink.deliver(a_delivery(ended()))
    second = await sink.deliver(a_delivery(settled()))

    assert first == second
    assert headings(workspace) == ["Call settled: successful · Front desk"]


async def test_an_event_that_comes_late_does_not_undo_an_update(workspace: Workspace) -> None:
    sink = workspace.sink(later_events="update")
    first = await sink.deliver(a_delivery(settled()))
    assert await sink.deliver(a_delivery(ended())) == first

    assert headings(workspace) == ["Call settled: successful · Front desk"]
    assert workspace.slack.asked == ["chat.postMessage"]


@pytest.mark.parametrize("word", ["message_not_found", "edit_window_closed", "cant_update_message", "is_inactive"])
async def test_a_message_that_can_no_longer_be_updated_is_posted_anew(workspace: Workspace, word: str) -> None:
    sink = workspace.sink(later_events="update")
    first = await sink.deliver(a_delivery(ended()))
    workspace.slack.errors = [word]
    second = await sink.deliver(a_delivery(settled()))
    third = await sink.deliver(a_delivery(an_event(id="evt_third", sequence=3)))

    assert first != second == third


async def test_calls_have_messages_of_their_own(workspace: Workspace) -> None:
    sink = workspace.sink()
    for number, call in enumerate((a_call(), a_call(id="other"), a_call(account="quay"), a_call(provider="ultravox"))):
        await sink.deliver(a_delivery(ended(id=f"evt_{number}", call=call)))

    assert [message.get("thread_ts") for message in workspace.slack.messages.values()] == [None] * 4


# Two workers


@pytest.mark.parametrize("mode", ["thread", "update"])
async def test_two_events_at_once_post_one_first_message(workspace: Workspace, mode: str) -> None:
    one, other = workspace.sink(later_events=mode), workspace.sink(later_events=mode)
    results = await asyncio.gather(
        one.deliver(a_delivery(ended())), other.deliver(a_delivery(settled())), return_exceptions=True
    )

    [error] = [result for result in results if isinstance(result, SinkError)]
    assert (error.permanent, error.gone, error.retry_after) == (False, False, 1)
    assert len(workspace.slack.messages) == 1

    again = settled() if isinstance(results[1], SinkError) else ended()
    await other.deliver(a_delivery(again, attempt=2))
    firsts = [message for message in workspace.slack.messages.values() if "thread_ts" not in message]
    assert len(firsts) == 1
    assert len(workspace.slack.messages) == (2 if mode == "thread" else 1)


async def test_replies_do_not_wait_for_each_other(workspace: Workspace) -> None:
    sink = workspace.sink()
    await sink.deliver(a_delivery(ended()))
    await asyncio.gather(*(sink.deliver(a_delivery(an_event(id=f"evt_{n}", sequence=n))) for n in range(2, 12)))

    assert len(workspace.slack.messages) == 11


async def test_an_attempt_that_failed_makes_room_at_once(workspace: Workspace) -> None:
    sink = workspace.sink()
    workspace.slack.errors = ["internal_error"]
    await failure(sink, ended())

    await sink.deliver(a_delivery(settled()))
    assert len(workspace.slack.messages) == 1


async def test_an_attempt_that_was_cut_off_keeps_others_waiting_but_not_itself(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = workspace.sink()
    silent = asyncio.Event()

    async def never(*_: Any, **__: Any) -> None:
        silent.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr("aftercall.sinks.slack_bot.request", never)
        attempt = asyncio.create_task(sink.deliver(a_delivery(ended())))
        await silent.wait()
        attempt.cancel()
        await asyncio.wait([attempt])

    assert (await failure(sink, settled())).retry_after == 1
    first = await sink.deliver(a_delivery(ended(), attempt=2))
    assert list(workspace.slack.messages) == [first]
    await sink.deliver(a_delivery(settled(), attempt=2))


async def test_a_claim_of_a_worker_that_died_expires(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = workspace.sink()
    claimed: list[float] = []

    class Watched(LocalMemory):
        async def add(self, key: str, value: str, *, for_s: float = 0) -> bool:
            if key.endswith(":claim"):
                claimed.append(for_s)
            return await super().add(key, value, for_s=for_s)

        def expire(self) -> None:
            self._notes = {key: (0.0, value) for key, (_, value) in self._notes.items()}

    async def dies(*_: Any) -> str:
        raise asyncio.CancelledError

    sink.memory = memory = Watched()
    with monkeypatch.context() as patch:
        patch.setattr(sink, "_write", dies)
        with pytest.raises(asyncio.CancelledError):
            await sink.deliver(a_delivery(ended()))
    assert (await failure(sink, settled())).retry_after == 1
    memory.expire()

    await sink.deliver(a_delivery(settled(), attempt=2))
    assert len(workspace.slack.messages) == 1
    assert set(claimed) == {CLAIM_S}
    assert CLAIM_S == 60


# An event that comes again


async def test_an_event_that_comes_again_to_another_worker_gets_the_same_receipt(workspace: Workspace) -> None:
    first = await workspace.sink().deliver(a_delivery(ended()))
    reply = await workspace.sink().deliver(a_delivery(settled()))

    assert await workspace.sink().deliver(a_delivery(ended(), attempt=2)) == first
    assert await workspace.sink().deliver(a_delivery(settled(), attempt=2)) == reply
    assert list(workspace.slack.messages) == [first, reply]


# Slack's answers


@pytest.mark.parametrize(
    ("word", "permanent", "gone", "retry_after"),
    [
        ("ratelimited", False, False, 1),
        ("rate_limited", False, False, 1),
        ("message_limit_exceeded", False, False, 1),
        ("internal_error", False, False, None),
        ("fatal_error", False, False, None),
        ("not_in_channel", False, False, None),
        ("channel_not_found", False, False, None),
        ("invalid_auth", False, False, None),
        ("missing_scope", False, False, None),
        ("token_expired", False, False, None),
        ("team_not_found", False, False, None),
        ("update_failed", False, False, None),
        ("external_channel_migrating", False, False, None),
        ("token_revoked", True, True, None),
        ("account_inactive", True, True, None),
        ("is_archived", True, True, None),
        ("invalid_blocks", True, False, None),
        ("msg_blocks_too_long", True, False, None),
        ("no_text", True, False, None),
        ("cannot_reply_to_message", True, False, None),
        ("restricted_action_thread_locked", True, False, None),
    ],
)
async def test_what_an_error_word_means(
    workspace: Workspace, word: str, permanent: bool, gone: bool, retry_after: float | None
) -> None:
    workspace.slack.errors = [word]
    error = await failure(workspace.sink(), ended())

    assert str(error) == f"Slack refused: {word}"
    assert (error.permanent, error.gone, error.retry_after) == (permanent, gone, retry_after)


@pytest.mark.parametrize("word", ["Mirela", "invalid_sesame", 7, None, ["no_text"], {"a": 1}])
async def test_a_word_that_slack_does_not_have_may_pass_and_is_not_repeated(workspace: Workspace, word: Any) -> None:
    workspace.slack.errors = [word] if word else []
    if not word:
        workspace.destination.answers = lambda _: Answer(200, {"ok": False})
    error = await failure(workspace.sink(), ended())

    assert (error.permanent, error.gone) == (False, False)
    assert str(error) == "Slack refused with a word that its documentation does not have"


async def test_too_many_requests_waits_as_long_as_slack_asks(workspace: Workspace) -> None:
    workspace.destination.answers = lambda _: Answer(429, {"ok": False, "error": "ratelimited"}, {"retry-after": "30"})
    error = await failure(workspace.sink(), ended())

    assert (error.permanent, error.retry_after) == (False, 30)


@pytest.mark.parametrize(
    "body",
    ["<html>Sign in, Mirela</html>", "", b"\xff", "[]", '"ok"', {"ok": "true"}, {"ok": True}, {"ok": True, "ts": 1},
     {"ok": True, "channel": "Mirela Okafor", "ts": "1795176300.000001"}],
)  # fmt: skip
async def test_an_answer_that_is_not_slacks_is_refused_and_not_repeated(workspace: Workspace, body: Any) -> None:
    workspace.destination.answers = lambda _: Answer(200, body)
    error = await failure(workspace.sink(), ended())

    assert error.permanent
    assert str(error) == "the answer is not Slack's; check that base_url leads to its Web API"


@pytest.mark.parametrize("status", [200, 403, 429, 500])
async def test_the_token_is_in_no_error_text(workspace: Workspace, status: int) -> None:
    workspace.destination.answers = lambda sent: Answer(status, str(sent.headers))
    sink = workspace.sink()
    error = await failure(sink, ended())

    assert "sesame" not in "".join(traceback.format_exception(error)) + repr(error) + repr(sink.config)


async def test_an_answer_that_repeats_a_long_message_is_read_to_its_end(workspace: Workspace) -> None:
    def escaped(sent: Sent) -> Answer:
        answer = workspace.slack.answer(sent)
        return Answer(200, json.dumps({**answer.body, "message": sent.json()}))  # \u0645 for each character

    workspace.destination.answers = escaped
    sink = workspace.sink(template="{{ call.analysis.summary }}")
    long = a_call(analysis=Analysis(summary="م" * 10_000))

    assert await sink.deliver(a_delivery(ended(call=long))) in workspace.slack.messages


# Erasing


@pytest.mark.parametrize("mode", ["thread", "update"])
async def test_all_messages_of_an_erased_call_are_deleted_the_replies_first(workspace: Workspace, mode: str) -> None:
    sink = workspace.sink(later_events=mode)
    for event in (ended(), settled(), ended(id="evt_theirs", call=a_call(account="quay"))):
        await sink.deliver(a_delivery(event))
    deleted: list[str] = []

    def watch(sent: Sent) -> Answer:
        deleted.append(sent.json()["ts"])
        return workspace.slack.answer(sent)

    workspace.destination.answers = watch
    await workspace.sink().erase(a_call())

    assert deleted == (["1795176300.000002", "1795176300.000001"] if mode == "thread" else ["1795176300.000001"])
    assert len(workspace.slack.messages) == 1


async def test_nothing_replies_to_a_message_that_was_erased(workspace: Workspace) -> None:
    sink = workspace.sink()
    await sink.deliver(a_delivery(ended()))
    await sink.erase(a_call())

    await sink.deliver(a_delivery(an_event(id="evt_erased", type="call.erased", sequence=3)))
    [message] = workspace.slack.messages.values()
    assert "thread_ts" not in message


async def test_an_erasure_that_failed_goes_on_where_it_was(workspace: Workspace) -> None:
    sink = workspace.sink()
    for event in (ended(), settled()):
        await sink.deliver(a_delivery(event))
    refusals = iter([None, "internal_error"])

    def once(sent: Sent) -> Answer:
        error = next(refusals, None)
        return Answer(200, {"ok": False, "error": error}) if error else workspace.slack.answer(sent)

    workspace.destination.answers = once
    with pytest.raises(SinkError, match="internal_error"):
        await sink.erase(a_call())
    assert len(workspace.slack.messages) == 1
    await sink.erase(a_call())
    await sink.erase(a_call())
    assert workspace.slack.messages == {}


async def test_a_message_that_someone_deleted_does_not_hinder_an_erasure(workspace: Workspace) -> None:
    sink = workspace.sink()
    await sink.deliver(a_delivery(ended()))
    workspace.slack.messages.clear()

    await sink.erase(a_call())
    assert workspace.slack.asked == ["chat.postMessage", "chat.delete"]


# The options and the wording


async def test_a_template_words_the_message(workspace: Workspace) -> None:
    sink = workspace.sink(template="*{{ call.agent.name }}* {{ call.id }}")
    await sink.deliver(a_delivery(ended()))

    [message] = workspace.slack.messages.values()
    assert message["text"] == "*Front desk* call_7f3"
    assert message["channel"] == SlackApi.name


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"base_url": "slack.com/api"}, "base_url: expected http"),
        ({"token": "sesame\nx: y"}, "token: expected"),
        ({"token": ""}, "token"),
        ({"channel": ""}, "channel"),
        ({"later_events": "edit"}, "later_events"),
        ({"template": "{{ call.agnt }}"}, "did you mean"),
    ],
)
def test_an_option_that_cannot_be_is_refused_without_being_shown(option: dict[str, str], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why) as caught:
        msgspec.convert({"token": "xoxb-1", "channel": "C1", **option}, SlackBot.Config)

    assert "sesame" not in str(caught.value)


class TestContract(HttpSinkContract):
    sink = SlackBot
    later_events = "thread"

    async def options(self) -> dict[str, Any]:
        self.slack = SlackApi()
        self.destination.answers = self.slack.answer
        return {
            "token": SlackApi.token,
            "channel": SlackApi.channel,
            "base_url": f"{self.destination.url}/api",
            "later_events": self.later_events,
        }

    async def received(self) -> list[bytes]:
        return [msgspec.json.encode(message) for message in self.slack.messages.values()]


class TestUpdatingContract(TestContract):
    later_events = "update"
