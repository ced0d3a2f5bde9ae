import asyncio
import re
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import standardwebhooks
from aiohttp import web

from aftercall.client import make_client
from aftercall.errors import ConfigurationError, SinkError
from aftercall.event import decode
from aftercall.settings import load
from aftercall.sinks.base import Delivery
from aftercall.sinks.webhook import Webhook
from aftercall.testing import HttpSinkContract
from tests.samples import a_call, a_delivery, an_event

SECRET = "whsec_c2VzYW1lLWxhbnRlcm4tcXVhcnR6LWhlcm9uLTYy"
KEY = "Bearer opal-heron-5512"
TOKEN = "sesame-7291"  # stands in the URL's path and query
PIECE = b"Mirela " * 9362


class Receiver:
    """A customer's endpoint: keeps what it is sent, and answers what the test wants."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.elsewhere = 0
        self.answer: tuple[int, dict[str, str], bytes] = (204, {}, b"")
        self.is_silent = False
        self.is_endless = False
        self.sent_bytes = 0
        self.hung_up = asyncio.Event()
        self.over = asyncio.Event()

    async def take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((headers, await request.read()))
        if self.is_silent:
            await self.over.wait()
        status, headers, body = self.answer
        if self.is_endless:
            return await self.talk_on(request, web.StreamResponse(status=status))
        return web.Response(status=status, headers=headers, body=body)

    async def talk_on(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        await response.prepare(request)
        try:
            while not self.over.is_set():
                await response.write(PIECE)
                self.sent_bytes += len(PIECE)
        except ConnectionError:
            self.hung_up.set()
        return response

    async def take_elsewhere(self, _: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post(f"/hooks/{TOKEN}", receiver.take)
    app.router.add_route("*", "/elsewhere", receiver.take_elsewhere)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/{TOKEN}?key={TOKEN}"
    yield receiver
    receiver.over.set()
    await runner.cleanup()


def sink(url: str, http: httpx.AsyncClient) -> Webhook:
    return Webhook("ops", Webhook.Config(url=url, secret=SECRET), http)


async def refused(webhook: Webhook) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await webhook.deliver(a_delivery())
    return caught.value


def verified(headers: dict[str, str], body: bytes, secret: str = SECRET) -> Any:
    """What a consumer gets that checks webhooks with the reference library."""
    return standardwebhooks.Webhook(secret).verify(body, headers)


# The request


async def test_a_consumer_verifies_the_signature_and_finds_the_event(
    receiver: Receiver, http: httpx.AsyncClient
) -> None:
    delivery = a_delivery(an_event(call=a_call(error="Grüezi, 你好 👋🏽 e\u0301 \u2028")))

    await sink(receiver.url, http).deliver(delivery)

    [(headers, body)] = receiver.requests
    assert verified(headers, body)["id"] == "evt_lantern"
    assert decode(body) == delivery.event


async def test_the_bytes_sent_are_exactly_those_of_the_delivery(receiver: Receiver, http: httpx.AsyncClient) -> None:
    exact = b'{ "odd" :\t"caf\xc3\xa9 \\u00e9",\r\n "n": 1.50 }\n'

    await sink(receiver.url, http).deliver(Delivery(event=an_event(), body=exact))

    [(headers, body)] = receiver.requests
    assert body == exact
    verified(headers, body)


async def test_a_changed_body_id_time_or_another_secret_does_not_verify(
    receiver: Receiver, http: httpx.AsyncClient
) -> None:
    await sink(receiver.url, http).deliver(a_delivery())
    [(headers, body)] = receiver.requests
    later = str(int(headers["webhook-timestamp"]) + 1)

    for forged in (
        (headers, body + b" ", SECRET),
        (headers | {"webhook-id": "evt_other"}, body, SECRET),
        (headers | {"webhook-timestamp": later}, body, SECRET),
        (headers, body, "whsec_" + "QUJD" * 8),
    ):
        with pytest.raises(standardwebhooks.webhooks.WebhookVerificationError):
            verified(*forged)
    verified(headers, body)


async def test_the_body_is_announced_as_a_cloudevent(receiver: Receiver, http: httpx.AsyncClient) -> None:
    await sink(receiver.url, http).deliver(a_delivery())

    [(headers, body)] = receiver.requests
    assert headers["content-type"] == "application/cloudevents+json"
    assert headers["content-length"] == str(len(body))


async def test_each_attempt_has_the_events_id_and_its_own_signed_time(
    receiver: Receiver, http: httpx.AsyncClient
) -> None:
    webhook = sink(receiver.url, http)
    receiver.answer = (503, {}, b"")
    began = int(time.time())
    for number in (1, 2):
        with pytest.raises(SinkError):
            await webhook.deliver(a_delivery(attempt=number))
    receiver.answer = (204, {}, b"")
    await asyncio.sleep(1.1)  # so that the last attempt is in another second
    await webhook.deliver(a_delivery(attempt=3))

    attempts = [headers for headers, _ in receiver.requests]
    assert [headers["webhook-id"] for headers in attempts] == ["evt_lantern"] * 3
    assert len({body for _, body in receiver.requests}) == 1
    times = [int(headers["webhook-timestamp"]) for headers in attempts]
    assert began <= times[0] <= times[1] < times[2] <= time.time()
    for headers, body in receiver.requests:
        verified(headers, body)


# The answer


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_delivered(receiver: Receiver, http: httpx.AsyncClient, status: int) -> None:
    receiver.answer = (status, {}, b"")

    await sink(receiver.url, http).deliver(a_delivery())

    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_passes(receiver: Receiver, http: httpx.AsyncClient, status: int) -> None:
    receiver.answer = (status, {"Location": "/elsewhere"}, b"")

    error = await refused(sink(receiver.url, http))

    assert (error.permanent, str(error)) == (False, f"HTTP {status}")
    assert (len(receiver.requests), receiver.elsewhere) == (1, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422])
async def test_a_refusal_is_for_good(receiver: Receiver, http: httpx.AsyncClient, status: int) -> None:
    receiver.answer = (status, {}, b"")

    error = await refused(sink(receiver.url, http))

    assert (error.permanent, str(error)) == (True, f"HTTP {status}")


@pytest.mark.parametrize("status", [408, 409, 423, 425, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(receiver: Receiver, http: httpx.AsyncClient, status: int) -> None:
    receiver.answer = (status, {}, b"")

    error = await refused(sink(receiver.url, http))

    patience = 0.0 if status == 429 else None
    assert (error.permanent, error.retry_after, str(error)) == (False, patience, f"HTTP {status}")


@pytest.mark.parametrize("status", [429, 503])
async def test_the_endpoint_says_how_long_to_wait(receiver: Receiver, http: httpx.AsyncClient, status: int) -> None:
    receiver.answer = (status, {"Retry-After": "120"}, b"")

    error = await refused(sink(receiver.url, http))

    assert (error.permanent, error.retry_after) == (False, 120.0)


async def test_a_refused_connection_passes(http: httpx.AsyncClient) -> None:
    error = await refused(sink("http://127.0.0.1:1/", http))  # nothing listens there

    assert (error.permanent, str(error)) == (False, "cannot connect")


async def test_an_endpoint_that_never_answers_passes(receiver: Receiver) -> None:
    receiver.is_silent = True

    async with make_client(guarded=False, timeout_s=0.6) as http:
        error = await refused(sink(receiver.url, http))

    assert (error.permanent, str(error)) == (False, "no answer in time")
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(("status", "is_delivered"), [(200, True), (500, False)])
async def test_of_an_endless_answer_no_more_is_read_than_needed(
    receiver: Receiver, http: httpx.AsyncClient, status: int, is_delivered: bool
) -> None:
    receiver.is_endless, receiver.answer = True, (status, {}, b"")

    async with asyncio.timeout(30):
        if is_delivered:
            await sink(receiver.url, http).deliver(a_delivery())
        else:
            assert str(await refused(sink(receiver.url, http))) == "HTTP 500"
        await receiver.hung_up.wait()

    assert receiver.sent_bytes < 32 * 1024 * 1024  # what was under way in the sockets' buffers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_private_address_is_refused_for_good_with_the_remedy(receiver: Receiver, host: str) -> None:
    async with make_client(guarded=True) as http:
        error = await refused(sink(receiver.url.replace("127.0.0.1", host), http))

    assert error.permanent
    assert "allow_private_network = true" in str(error)
    assert receiver.requests == []


# What must not be told


@pytest.mark.parametrize("case", ["refusal", "fault", "redirect", "silence", "no connection", "private address"])
async def test_neither_url_nor_secret_nor_answer_is_in_an_error_text(receiver: Receiver, case: str) -> None:
    told = f"{TOKEN} {SECRET} Mirela".encode()
    location = {"Location": f"/elsewhere?{TOKEN}"}
    receiver.answer = {"refusal": (404, {}, told), "redirect": (302, location, told)}.get(case, (500, {}, told))
    receiver.is_silent = case == "silence"
    url = f"http://127.0.0.1:1/hooks/{TOKEN}" if case == "no connection" else receiver.url

    async with make_client(guarded=case == "private address", timeout_s=0.5) as http:
        error = await refused(sink(url, http))

    text = "".join(traceback.format_exception(error)) + repr(error)
    for hidden in (TOKEN, SECRET, SECRET.removeprefix("whsec_"), "/hooks/", "Mirela"):
        assert hidden not in text


async def test_neither_url_nor_secret_is_in_a_repr(http: httpx.AsyncClient) -> None:
    webhook = sink(f"https://hooks.example.com/{TOKEN}", http)

    for text in (repr(webhook), repr(webhook.config), str(webhook.config), f"{webhook.config}"):
        assert TOKEN not in text
        assert SECRET.removeprefix("whsec_") not in text
    assert "secret=***" in repr(webhook.config)


# The options


@pytest.mark.parametrize("url", ["https://example.com/hook", "http://10.0.0.7:8080/", "HTTPS://EXAMPLE.COM"])
def test_a_web_address_and_a_secret_are_enough(url: str) -> None:
    config = msgspec.convert({"url": url, "secret": SECRET}, Webhook.Config)

    assert (config.url, config.secret) == (url, SECRET)


@pytest.mark.parametrize("url", ["ftp://example.com/sesame", "example.com/sesame", "https://", "https:///sesame"])
def test_a_url_that_is_no_web_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"expected http:// or https:// and a host") as caught:
        msgspec.convert({"url": url, "secret": SECRET}, Webhook.Config)

    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "secret", ["whsec_", "whsec_not base64!", "sesame-lantern", "whsec_c2VzYW1lLWxhbnRlcm4tcXVhcnR6L"]
)
def test_a_secret_that_is_none_is_refused_with_the_remedy_and_without_being_shown(secret: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="write whsec_ and 24 to 64 random bytes in base64") as caught:
        msgspec.convert({"url": "https://example.com", "secret": secret}, Webhook.Config)

    assert "sesame" not in str(caught.value)
    assert "c2VzYW1l" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["url", "secret"])
def test_both_options_are_needed(left_out: str) -> None:
    options = {"url": "https://example.com", "secret": SECRET}
    del options[left_out]

    with pytest.raises(msgspec.ValidationError, match=left_out):
        msgspec.convert(options, Webhook.Config)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="header"):
        msgspec.convert({"url": "https://example.com", "secret": SECRET, "header": "x"}, Webhook.Config)


# Headers


def with_headers(url: str, http: httpx.AsyncClient, **options: Any) -> Webhook:
    return Webhook("eval", msgspec.convert({"url": url, "headers": {"X-Key": KEY}, **options}, Webhook.Config), http)


async def test_headers_are_sent_beside_our_own_and_the_signature(receiver: Receiver, http: httpx.AsyncClient) -> None:
    webhook = with_headers(receiver.url, http, secret=SECRET, headers={"Authorization": KEY, "X-Team": "fittings"})

    await webhook.deliver(a_delivery())

    [(headers, body)] = receiver.requests
    assert (headers["authorization"], headers["x-team"]) == (KEY, "fittings")
    assert headers["content-type"] == "application/cloudevents+json"
    verified(headers, body)


async def test_with_headers_no_secret_is_needed_and_nothing_is_signed(
    receiver: Receiver, http: httpx.AsyncClient
) -> None:
    raw = b'{"event" : "call_ended"}'

    await with_headers(receiver.url, http).deliver(Delivery(event=an_event(), body=raw, format="raw"))

    [(headers, body)] = receiver.requests
    assert (headers["x-key"], headers["content-type"], body) == (KEY, "application/json", raw)
    assert headers["webhook-id"] == "evt_lantern"
    assert "webhook-signature" not in headers


@pytest.mark.parametrize("status", [401, 500])
async def test_no_value_of_a_header_is_in_an_error_text_or_a_repr(
    receiver: Receiver, http: httpx.AsyncClient, status: int
) -> None:
    receiver.answer = (status, {}, KEY.encode())
    webhook = with_headers(receiver.url, http)

    text = "".join(traceback.format_exception(await refused(webhook))) + repr(webhook.config)

    assert KEY not in text
    assert "headers=***" in text


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Content-Type": KEY}, "Content-Type cannot be set here"),
        ({"Webhook-Signature": KEY}, "Webhook-Signature cannot be set here"),
        ({"Transfer-Encoding": KEY}, "Transfer-Encoding cannot be set here"),
        ({"HOST": KEY}, "HOST cannot be set here"),
        ({f"Authorization: {KEY}": "x"}, "stands behind the ="),
        ({"": KEY}, "stands behind the ="),
        ({"X-Key": f"{KEY}\r\nHost: evil.example"}, "the value of X-Key has characters"),
        ({"X-Key": f"{KEY}é"}, "the value of X-Key has characters"),
        ({"X-Key": f" {KEY}"}, "the value of X-Key has characters"),
        ({"X-Key": ""}, "length >= 1"),
        ({}, "secret: missing"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(headers: dict[str, str], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=told) as caught:
        msgspec.convert({"url": "https://example.com", "headers": headers}, Webhook.Config)

    assert KEY not in str(caught.value)


def configured(directory: Path, options: str) -> Any:
    account = '[accounts.acme]\nprovider = "retell"\napi_key = "key_lantern"\n'
    (directory / "aftercall.toml").write_text(f'{account}[sinks.hook]\ntype = "webhook"\n{options}')
    return load({"REDIS_URL": "redis://localhost", "KEY": KEY}, directory).sinks["hook"].config


def test_in_a_table_every_missing_option_is_named_by_its_path(tmp_path: Path) -> None:
    for options, missing in (("", {"url", "secret"}), ('url = "https://example.com"\n', {"secret"})):
        with pytest.raises(ConfigurationError) as caught:
            configured(tmp_path, options)
        assert set(caught.value.problems) == {f"sinks.hook.{name}: missing" for name in missing}

    table = 'url = "https://example.com"\nheaders = { Authorization = "Bearer ${KEY}" }\n'
    assert configured(tmp_path, table).headers == {"Authorization": f"Bearer {KEY}"}


# The template


@pytest.mark.parametrize("secret", [SECRET, None])
async def test_a_template_makes_the_body_and_the_signature_covers_it(
    receiver: Receiver, http: httpx.AsyncClient, secret: str | None
) -> None:
    template = '{"provider": {{ call.provider|tojson }}, "agent": {{ call.agent.name|tojson }}, "payload": {{ raw }}}'
    webhook = with_headers(receiver.url, http, template=template, secret=secret)
    raw = '{"event": "call_ended", "said": "Grüezi \\"Zoë\\""}'.encode()

    await webhook.deliver(Delivery(event=an_event(), body=raw, format="raw"))

    [(headers, body)] = receiver.requests
    assert msgspec.json.decode(body) == {
        "provider": "retell",
        "agent": "Front desk",
        "payload": msgspec.json.decode(raw),
    }
    assert headers["content-type"] == "application/json"
    assert body == webhook.render(Delivery(event=an_event(), body=raw))
    if secret:
        verified(headers, body)


async def test_a_long_body_is_not_cut_and_one_that_is_too_long_is_refused(
    receiver: Receiver, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = msgspec.json.encode({"said": "Mirela " * 100_000})
    await with_headers(receiver.url, http, template="[{{ raw }}]").deliver(Delivery(event=an_event(), body=body))

    assert receiver.requests[0][1] == b"[%s]" % body
    monkeypatch.setattr("aftercall.sinks.webhook_body.MAX_BODY", len(body) + 1)
    with pytest.raises(SinkError, match="too long") as caught:
        await with_headers(receiver.url, http, template="[{{ raw }}]").deliver(Delivery(event=an_event(), body=body))
    assert caught.value.permanent
    assert len(receiver.requests) == 1


async def test_a_template_that_cannot_be_applied_is_refused_for_good(http: httpx.AsyncClient) -> None:
    error = await refused(with_headers("http://127.0.0.1:1/", http, template="{{ call.duration_ms / 0 }}"))

    assert (error.permanent, str(error)) == (True, "the template cannot be applied: ZeroDivisionError")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raww }}", "template: there is no raww to ask about"),
        ("{{ call.agnt }}", 'template: call has no agnt; did you mean "agent"'),
        ("{% if %}", "template: not a Jinja template"),
    ],
)
def test_a_template_that_asks_for_what_is_not_there_is_refused(template: str, told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(told)):
        msgspec.convert({"url": "https://example.com", "secret": SECRET, "template": template}, Webhook.Config)


class TestContract(HttpSinkContract):
    sink = Webhook
    idempotent = False  # the receiver dedupes on webhook-id; every attempt shows there

    async def options(self) -> dict[str, Any]:
        return {"url": f"{self.destination.url}/hooks/{TOKEN}", "secret": SECRET}


class TestContractOfATemplate(TestContract):
    async def options(self) -> dict[str, Any]:
        url = f"{self.destination.url}/hooks/{TOKEN}"
        return {"url": url, "headers": {"X-Key": KEY}, "template": '{"provider": "retell", "payload": {{ raw }}}'}
