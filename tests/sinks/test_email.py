import asyncio
import contextlib
import email
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from email.message import EmailMessage
from email.policy import default
from functools import cache
from typing import Any, ClassVar

import httpx
import msgspec
import pytest

from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.email import Email
from aftercall.testing import SinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import a_certificate, until
from tests.servers.smtp import SmtpServer

SENDER, TEAM, BOSS = "calls@okafor.example", "team@okafor.example", "boss@okafor.example"
ACCOUNT = ("calls", "sesame-7291")
LOGIN = {"username": ACCOUNT[0], "password": ACCOUNT[1], "verify": False}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return a_certificate(tmp_path_factory.mktemp("mail"))


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    server = SmtpServer()
    await server.start()
    yield server
    await server.stop()


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[SmtpServer]:
    server = SmtpServer(**options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


unused = cache(httpx.AsyncClient)  # no sink of mail asks it for anything


def options(server: SmtpServer | None = None, **more: Any) -> dict[str, Any]:
    port = server.port if server else 25
    return {"host": "127.0.0.1", "port": port, "security": "none", "sender": SENDER, "to": [TEAM], **more}


def sink(server: SmtpServer | None = None, **more: Any) -> Email:
    return Email("mail", msgspec.convert(options(server, **more), Email.Config), unused())


def read(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    return message


def rendered(event: CallEvent | None = None, **more: Any) -> EmailMessage:
    return read(sink(**more).render(a_delivery(event)))


def body(message: EmailMessage) -> str:
    return str(message.get_content()).replace("\r\n", "\n")


async def failure(sink: Email) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery())
    told = "".join(traceback.format_exception(caught.value))
    assert not [private for private in ("sesame", TEAM, BOSS, SENDER, "Mirela") if private in told]
    return caught.value


class TestContract(SinkContract):
    sink = Email
    idempotent = False  # a mail server takes whatever it is handed
    server_options: ClassVar[dict[str, Any]] = {}
    security: ClassVar[dict[str, Any]] = {}

    async def start(self) -> None:
        self.server = SmtpServer(**self.server_options)
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()

    async def options(self) -> dict[str, Any]:
        return options(self.server, **self.security)

    async def received(self) -> Iterable[bytes]:
        return [mail.content for mail in self.server.mails]

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await self.server.stop()
        yield
        await self.server.start()

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        self.server.answers["DATA"] = "554 5.7.1 your sesame-7291 is spam"
        yield
        self.server.answers.clear()


class TestContractWithStarttls(TestContract):
    security: ClassVar[dict[str, Any]] = {"security": "starttls", **LOGIN}

    @pytest.fixture(autouse=True)
    def with_certificate(self, certificate: tuple[str, str]) -> Iterator[None]:
        type(self).server_options = {"certificate": certificate, "account": ACCOUNT}
        return iter([None])


# The message


def test_it_is_a_message_in_plain_text_from_no_person() -> None:
    message = rendered(to=[TEAM, BOSS])

    assert message["From"] == SENDER
    assert message["To"] == f"{TEAM}, {BOSS}"
    assert message["Subject"] == "Call ended: successful · Front desk"
    assert message["Date"] == "Fri, 20 Nov 2026 12:05:00 +0000"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"
    assert "Mirela Okafor moved her fitting to Tuesday." in message.get_content()
    assert "User: Grüezi, could I come Tuesday instead?" in message.get_content()
    assert sink().render(a_delivery()).isascii()  # for servers without 8BITMIME


async def test_a_message_that_comes_again_is_the_same_byte_for_byte(server: SmtpServer) -> None:
    for attempt in (1, 2):
        await sink(server).deliver(a_delivery(attempt=attempt))

    first, second = (mail.content for mail in server.mails)
    assert first.split(b"Message-ID: ")[1] == second.split(b"Message-ID: ")[1]
    assert read(first)["Message-ID"] == "<evt_lantern.aftercall@okafor.example>"
    assert sink(server).render(a_delivery()) == sink(server).render(a_delivery(attempt=2))
    assert rendered(an_event(id="evt_other"))["Message-ID"] != rendered()["Message-ID"]


def test_templates_word_subject_and_body() -> None:
    message = rendered(
        subject="{{ call.agent.name }}: {{ call.end.reason }}", template="{{ call.analysis.summary }}\n.\n"
    )

    assert message["Subject"] == "Front desk: user_hangup"
    assert body(message) == "Mirela Okafor moved her fitting to Tuesday.\n.\n"


@pytest.mark.parametrize("ends", ["\r\n", "\n", "\r", "\x85", "\u2028", "\x0b", "\x1c"])
@pytest.mark.parametrize("own", [{}, {"subject": "Call: {{ call.agent.name }}"}])
def test_nothing_in_a_call_makes_a_header(ends: str, own: dict[str, str]) -> None:
    evil = a_call()
    evil = msgspec.structs.replace(
        evil, agent=msgspec.structs.replace(evil.agent, name=f"x{ends}Bcc: eve@evil.example")
    )

    content = sink(**own).render(a_delivery(an_event(call=evil)))

    head = content.split(b"\r\n\r\n")[0]
    assert not [line for line in head.splitlines() if line.lower().startswith(b"bcc")]
    assert read(content)["Bcc"] is None
    assert "Bcc: eve@evil.example" in read(content)["Subject"]


def test_lines_are_short_and_ascii_whatever_was_said() -> None:
    long = a_call(error="ü" * 5_000 + "\x00\x1b[31m", analysis=None)

    content = sink(subject="{{ call.error }}", template="{{ call.error }}").render(a_delivery(an_event(call=long)))

    assert content.isascii()
    assert max(map(len, content.split(b"\r\n"))) <= 78
    assert len(read(content)["Subject"]) == 200
    assert read(content).get_content().strip() == "ü" * 5_000 + "[31m"


async def test_a_line_with_a_dot_is_no_end(server: SmtpServer) -> None:
    await sink(server, template=".\n..\nafter").deliver(a_delivery())

    assert body(read(server.mails[0].content)) == ".\n..\nafter\n"


async def test_a_template_that_cannot_be_applied_is_for_good(server: SmtpServer) -> None:
    error = await failure(sink(server, subject="{{ call.duration_ms / call.metadata.none }}"))

    assert error.permanent
    assert server.mails == []


# The delivery


async def test_all_recipients_get_it_in_one_go(server: SmtpServer) -> None:
    assert await sink(server, to=[TEAM, BOSS]).deliver(a_delivery()) == "250"

    (mail,) = server.mails
    assert (mail.sender, mail.recipients) == (SENDER, [TEAM, BOSS])


async def test_a_recipient_refused_among_others_is_told_by_number(server: SmtpServer) -> None:
    server.answers[BOSS] = f"550 no {BOSS} here"

    error = await failure(sink(server, to=[TEAM, BOSS]))

    assert error.permanent  # or the others would get it at every attempt
    assert str(error) == "the mail server refused 1 of 2 recipients"
    assert server.mails[0].recipients == [TEAM]


@pytest.mark.parametrize(
    ("answers", "permanent", "told"),
    [
        ({"MAIL": f"550 {SENDER} may not"}, True, "the mail server refused the message: 550"),
        ({"MAIL": "530 5.7.0 sesame first"}, False, "the mail server refused the message: 530"),
        ({"MAIL": "451 later"}, False, "the mail server refused the message: 451"),
        ({"RCPT": f"550 no {TEAM} here"}, True, "the mail server refused the recipients: [550]"),
        ({"RCPT": "450 greylisted"}, False, "the mail server refused the recipients: [450]"),
        ({TEAM: "550 no", BOSS: "450 full"}, False, "the mail server refused the recipients: [450, 550]"),
        ({"DATA": "552 5.3.4 too much of Mirela"}, True, "the mail server refused the message: 552"),
        ({"DATA": "452 no space"}, False, "the mail server refused the message: 452"),
        ({"DATA": "421 closing"}, False, "the mail server refused the message: 421"),
    ],
)
async def test_what_the_server_answers_is_told_by_its_code(
    server: SmtpServer, answers: dict[str, str], permanent: bool, told: str
) -> None:
    server.answers |= answers

    error = await failure(sink(server, to=[TEAM, BOSS]))

    assert (str(error), error.permanent) == (told, permanent)
    assert server.mails == []
    await until(lambda: not server.connections)


async def test_three_connections_are_open_at_most(server: SmtpServer) -> None:
    server.takes_s = 0.02
    mail = sink(server)

    await asyncio.gather(*(mail.deliver(a_delivery(an_event(id=f"evt_{n}"))) for n in range(12)))

    assert len(server.mails) == 12
    assert server.most_at_once == 3


async def test_what_the_server_says_to_the_farewell_changes_nothing(server: SmtpServer) -> None:
    server.answers["QUIT"] = "421 sesame"

    assert await sink(server).deliver(a_delivery()) == "250"
    assert len(server.mails) == 1


async def test_a_server_that_turns_everybody_away_may_change_its_mind() -> None:
    async def rude(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"554 5.7.1 sesame: your address is listed\r\n")
        writer.close()

    nobody = SmtpServer()
    async with await asyncio.start_server(rude, "127.0.0.1", nobody.port):
        error = await failure(sink(nobody))

    assert (str(error), error.permanent) == ("the mail server answered 554", False)


async def test_a_server_that_says_nothing_holds_up_no_cancelling() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    nobody = SmtpServer()
    async with await asyncio.start_server(silent, "127.0.0.1", nobody.port):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink(nobody).deliver(a_delivery()), 0.2)
        over.set()
        await asyncio.sleep(0.01)


# TLS and logging in


@pytest.mark.parametrize("by_starttls", [True, False])
async def test_tls_begins_as_it_is_asked_for(certificate: tuple[str, str], by_starttls: bool) -> None:
    async with running(certificate=certificate, by_starttls=by_starttls) as server:
        await sink(server, security="starttls" if by_starttls else "tls", verify=False).deliver(a_delivery())

        assert len(server.mails) == 1


@pytest.mark.parametrize("by_starttls", [True, False])
async def test_a_certificate_of_somebody_else_is_not_trusted(certificate: tuple[str, str], by_starttls: bool) -> None:
    async with running(certificate=certificate, by_starttls=by_starttls) as server:
        error = await failure(sink(server, security="starttls" if by_starttls else "tls"))

        assert not error.permanent
        assert "certificate" in str(error)
        assert server.mails == []


async def test_a_server_without_starttls_gets_nothing_in_clear(server: SmtpServer) -> None:
    error = await failure(sink(server, security="starttls", **LOGIN))

    assert not error.permanent
    assert "check host, port and security" in str(error)
    assert server.mails == []


async def test_a_wrong_password_waits_for_the_operator(certificate: tuple[str, str]) -> None:
    async with running(certificate=certificate, account=("calls", "another")) as server:
        error = await failure(sink(server, security="starttls", **LOGIN))

    assert not error.permanent
    assert str(error) == "the mail server refused username and password: 535"


# The options


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": []},
        {"to": ["sesame"]},
        {"to": [f"{TEAM}\r\nRCPT TO:<sesame@evil.example>"]},
        {"to": ["Sesame <sesame@okafor.example>"]},
        {"sender": "sesame@"},
        {"host": "sesame@mail.example.com"},
        {"host": "mail.example.com\n"},
        {"username": "sesame"},
        {"password": "sesame"},
        {"username": "calls", "password": "sesame"},  # in clear
        {"security": "sesame"},
        {"subject": "{{ caller }}"},
        {"template": "{{ caller }}"},
        {"port": 0},
    ],
)
def test_options_that_cannot_work_are_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        sink(**wrong)

    assert "sesame@" not in str(caught.value)


def test_the_password_is_masked() -> None:
    assert "sesame" not in repr(sink(security="tls", **LOGIN).config)


def test_certificates_are_checked_and_a_server_has_to_start_tls_unless_told_otherwise() -> None:
    config = msgspec.convert({"host": "mail.example.com", "sender": SENDER, "to": [TEAM]}, Email.Config)

    assert (config.security, config.verify, config.port) == ("starttls", True, None)
