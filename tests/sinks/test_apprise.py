import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Iterable
from functools import cache
from typing import Any

import httpx
import msgspec
import pytest

from aftercall.errors import SinkError
from aftercall.sinks.apprise import Apprise
from aftercall.sinks.base import Sink
from aftercall.testing import SinkContract
from aftercall.testing.destination import Destination
from tests.samples import a_call, a_delivery, an_event

TOKEN = "sesame-7291"


def json_url(destination: Destination, more: str = "") -> str:
    """Apprise posts its messages as JSON there."""
    return f"json://127.0.0.1:{destination.port}/{TOKEN}{more}"


unused = cache(httpx.AsyncClient)  # Apprise has its own


def sink(*urls: str, **options: Any) -> Apprise:
    config = msgspec.convert({"urls": list(urls), **options}, Apprise.Config)
    return Apprise("people", config, unused())


async def failure(apprise: Sink) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await apprise.deliver(a_delivery())
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return caught.value


class TestContract(SinkContract):
    sink = Apprise
    idempotent = False  # Apprise sends, and asks nobody whether they have it

    async def start(self) -> None:
        self.destination = Destination()
        await self.destination.start()

    async def stop(self) -> None:
        await self.destination.stop()

    async def options(self) -> dict[str, Any]:
        return {"urls": [json_url(self.destination)]}

    async def received(self) -> Iterable[bytes]:
        return [sent.body for sent in self.destination.sent]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        async with self.destination.down():
            yield

    refusal = "Apprise says no more of a refusal than of an outage, so all of them are tried again"


@pytest.mark.parametrize("status", [400, 401, 404, 410, 500])
async def test_whatever_a_destination_answers_is_tried_again(destination: Destination, status: int) -> None:
    async with destination.answering(status, b"no"):
        error = await failure(sink(json_url(destination)))

    assert (error.permanent, error.gone) == (False, False)


# The message


async def test_a_message_has_a_title_and_a_body_in_plain_text(destination: Destination) -> None:
    await sink(json_url(destination)).deliver(a_delivery())

    (sent,) = destination.sent
    assert sent.path == f"/{TOKEN}"
    assert sent.json()["title"] == "Call ended: successful · Front desk"
    assert "Mirela Okafor moved her fitting to Tuesday." in sent.json()["message"]
    assert "retell/acme · call_7f3 · call.ended" in sent.json()["message"]


async def test_a_template_words_the_body(destination: Destination) -> None:
    apprise = sink(json_url(destination), template="{{ call.agent.name }} spoke for {{ call.duration_ms|minutes }}")

    await apprise.deliver(a_delivery())

    assert destination.sent[0].json()["message"] == "Front desk spoke for 3:05"
    assert apprise.render(a_delivery())["body"] == "Front desk spoke for 3:05"


async def test_a_template_that_cannot_be_applied_is_for_good(destination: Destination) -> None:
    apprise = sink(json_url(destination), template="{{ call.duration_ms / call.metadata.none }}")

    error = await failure(apprise)

    assert error.permanent
    assert destination.sent == []


async def test_markup_in_what_was_said_is_text_to_a_service_that_takes_html(destination: Destination) -> None:
    spoken = an_event(call=a_call(error="<b>loud</b> & <a href='https://evil.example'>here</a>"))

    await sink(json_url(destination, "?format=html")).deliver(a_delivery(spoken))

    assert "&lt;b&gt;loud&lt;/b&gt; &amp; &lt;a" in destination.sent[0].json()["message"].replace("&nbsp;", " ")


async def test_what_is_too_long_for_a_service_is_cut_and_not_refused() -> None:
    services = list(
        sink("tgram://123456789:abcdefg_hijklmnop/12315544/", "tgram://123456789:abc/1/?overflow=split")._apprise
    )

    calls = [list(service._build_send_calls(body="word " * 3_000, title="Call ended")) for service in services]

    assert [len(messages) > 1 for messages in calls] == [False, True]
    assert len(calls[0][0]["body"]) <= 4_096  # Telegram's limit


# Several addresses


async def test_one_address_that_fails_fails_the_delivery_and_all_get_it_again(destination: Destination) -> None:
    nobody = "json://127.0.0.1:1/nobody"
    apprise = sink(json_url(destination), nobody)

    error = await failure(apprise)
    assert not error.permanent
    assert str(error) == "Apprise: 1 of 2 did not take the message"
    await failure(apprise)

    assert len(destination.sent) == 2


async def test_messages_in_a_row_do_not_wait_for_each_other(destination: Destination) -> None:
    """Apprise holds a thread for 5.5 s after a message to most services: an attempt would time out, and come again."""
    apprise = sink(json_url(destination), "ntfy://127.0.0.1:1/topic")

    assert [service.request_rate_per_sec for service in apprise._apprise] == [0, 0]


# The options


@pytest.mark.parametrize("url", [f"nosuch://{TOKEN}", TOKEN, f"tgram://{TOKEN}", "json://", " "])
def test_a_url_that_apprise_cannot_use_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="urls: number 2 is no URL that Apprise can use") as caught:
        sink("json://127.0.0.1:1/", url)

    assert TOKEN not in str(caught.value)


def test_urls_are_masked() -> None:
    assert TOKEN not in repr(sink(f"json://127.0.0.1/{TOKEN}").config)


def test_there_must_be_one() -> None:
    with pytest.raises(msgspec.ValidationError, match="length"):
        sink()


def test_a_wrong_template_is_refused_at_the_start() -> None:
    with pytest.raises(msgspec.ValidationError, match="template: "):
        sink("json://127.0.0.1:1/", template="{{ caller }}")


# Logs


async def test_apprise_logs_nothing(destination: Destination, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with destination.answering(500, b"no"):
        await failure(sink(json_url(destination)))
    await failure(sink(f"json://127.0.0.1:1/{TOKEN}"))
    with pytest.raises(msgspec.ValidationError):
        sink(f"tgram://{TOKEN}")

    assert caplog.records == []
    assert not logging.getLogger("apprise").isEnabledFor(logging.CRITICAL)
    assert json.loads(destination.refused[0].body)["title"]  # it was tried
