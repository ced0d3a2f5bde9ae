"""Email: a message in plain text, handed to a mail server by SMTP.

Delivered means that the server took the message for every recipient (250 to DATA: RFC 5321 §4.2.5, 2026-11), which says
nothing of a mailbox. An event that comes again has the same Message-ID and Date, by which mail systems may know it; few
do. A connection each, also to private addresses, and three at once: more Exchange Online refuses
(https://learn.microsoft.com/en-us/exchange/troubleshoot/send-emails/smtp-submission-improvements, 2026-11).
"""

import asyncio
import re
import ssl
from contextlib import suppress
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP as LINES_OF_SMTP
from email.utils import format_datetime
from typing import Annotated, Literal

import aiosmtplib
import httpx
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink
from aftercall.sinks.text import MessageConfig, clip, message_of, plain, title
from aftercall.templates import MAX_CHARACTERS, Template

SUBJECT = 200  # our own
CONNECTIONS = 3
# About who sends, which an operator mends: https://www.rfc-editor.org/rfc/rfc4954 §6 (2026-11).
AUTHENTICATION = frozenset({530, 534, 535, 538})
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")


class Email(Sink):
    events = ("call.settled",)  # one message a call

    class Config(MessageConfig, frozen=True, kw_only=True):
        host: Annotated[str, Meta(pattern=r"^[^\s/@]+\Z", description="the mail server")]
        port: Annotated[
            Annotated[int, Meta(ge=1, le=65_535)] | None, Meta(description="default: 587; with tls 465, with none 25")
        ] = None
        security: Annotated[
            Literal["tls", "starttls", "none"], Meta(description="tls from the start, starttls after it, or none")
        ] = "starttls"
        verify: Annotated[bool, Meta(description="whether the server's certificate must be valid for host")] = True
        username: Annotated[str | None, Meta(description="to log in with, together with password")] = None
        password: Annotated[Secret | None, Meta(description="to log in with")] = None
        sender: Annotated[str, Meta(description="whom it is from: calls@example.com")]
        to: Annotated[list[str], Meta(min_length=1, description="whom it goes to: addresses, which see each other")]
        subject: Annotated[str | None, Meta(description="a Jinja template, as template is; default: our own")] = None

        def __post_init__(self) -> None:
            MessageConfig.__post_init__(self)
            try:
                Template(self.subject or "")
            except ValueError as error:
                raise ValueError(f"subject: {error}") from None
            if not all(_ADDRESS.fullmatch(address) for address in (self.sender, *self.to)):
                raise ValueError("sender and to: expected addresses like calls@example.com, without a name")
            if (self.username is None) != (self.password is None):
                raise ValueError("username and password: both or neither")
            if self.password is not None and self.security == "none":
                raise ValueError('password: it would cross the network in clear; set security = "starttls" or "tls"')

    config: Config

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._template = message_of(config)
        self._subject = None if config.subject is None else Template(config.subject)
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._tls = None if config.security == "none" else _tls(config.verify)

    def render(self, delivery: Delivery) -> bytes:
        event, config = delivery.event, self.config
        subject = self._subject.render(event) if self._subject else title(event)
        body = self._template.render(event) if self._template else plain(event)
        message = EmailMessage(policy=LINES_OF_SMTP)
        message["From"], message["To"] = config.sender, ", ".join(config.to)
        message["Subject"] = clip(" ".join(subject.split()), SUBJECT)
        message["Date"] = format_datetime(datetime.fromisoformat(event.time))
        message["Message-ID"] = f"<{event.id}.aftercall@{_domain(config.sender)}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation notice comes back
        message.set_content(clip(body, MAX_CHARACTERS), cte="quoted-printable")
        return message.as_bytes()

    async def deliver(self, delivery: Delivery) -> str:
        try:
            message = self.render(delivery)
        except ValueError as error:
            raise SinkError(str(error), permanent=True) from None
        async with self._free:
            refused = await self._send(message)
        if refused:  # it went to the others, and would go to them again
            raise SinkError(f"the mail server refused {refused} of {len(self.config.to)} recipients", permanent=True)
        return "250"

    async def _send(self, message: bytes) -> int:
        """Hand it over; how many of the recipients were refused, of whom some were not."""
        config = self.config
        client = aiosmtplib.SMTP(
            hostname=config.host,
            port=config.port,
            username=config.username,
            password=config.password,
            local_hostname=_domain(config.sender),  # the machine's own may take a slow look-up, and be no domain
            use_tls=config.security == "tls",
            start_tls=config.security == "starttls",
            tls_context=self._tls,
            timeout=None,  # the worker's
        )
        try:
            await client.connect()
            refused, _ = await client.sendmail(config.sender, config.to, message)
            with suppress(aiosmtplib.SMTPException):
                await client.quit(timeout=1)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise _failure(error) from None
        finally:
            client.close()
        return len(refused)


def _failure(error: Exception) -> SinkError:
    """What the server says may quote addresses and the message, so its code alone is told."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        codes = {refusal.code for refusal in error.recipients}
        return SinkError(f"the mail server refused the recipients: {sorted(codes)}", permanent=all(map(_final, codes)))
    if isinstance(error, aiosmtplib.SMTPSenderRefused | aiosmtplib.SMTPDataError):
        return SinkError(f"the mail server refused the message: {error.code}", permanent=_final(error.code))
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return SinkError(f"the mail server refused username and password: {error.code}")
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return SinkError(f"the mail server answered {error.code}")
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return SinkError("no TLS with the mail server; check security, and that its certificate is valid for host")
    return SinkError(f"no connection to the mail server ({type(error).__name__}); check host, port and security")


def _final(code: int) -> bool:
    return code >= 500 and code not in AUTHENTICATION


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


def _tls(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
