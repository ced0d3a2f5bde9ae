"""A mail server on loopback, which keeps what it took."""

import asyncio
import contextlib
import ssl
from typing import Any, NamedTuple

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.servers import free_port


class Mail(NamedTuple):
    sender: str
    recipients: list[str]
    content: bytes


class SmtpServer:
    """aiosmtpd, in the loop of the test. It may be started again after `stop`, and has what it took before.

    With a certificate it wants TLS, from the start or by STARTTLS; with an account it wants a login.
    """

    def __init__(
        self,
        *,
        certificate: tuple[str, str] | None = None,
        by_starttls: bool = True,
        account: tuple[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.mails: list[Mail] = []
        self.answers: dict[str, str] = {}  # to MAIL, RCPT, DATA, QUIT, or to RCPT of one address
        self.takes_s = 0.0
        self.most_at_once = 0
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate[1], certificate[0])
        self._by_starttls = by_starttls
        self._account = account
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        always = None if self._by_starttls else self._tls
        self._server = await loop.create_server(self._connection, "127.0.0.1", self.port, ssl=always)

    async def stop(self) -> None:
        """As if it were killed: connections break off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            if connection.transport is not None:
                with contextlib.suppress(AttributeError):  # Python 3.11: a TLS transport that is closed already
                    connection.transport.abort()
        await asyncio.sleep(0.01)  # a transport closes its socket in a turn of its own

    def _connection(self) -> "_Connection":
        by_starttls = self._tls is not None and self._by_starttls
        return _Connection(
            self,
            hostname="mail.example.com",
            tls_context=self._tls if by_starttls else None,
            require_starttls=by_starttls,
            auth_required=self._account is not None,
            auth_require_tls=by_starttls,
            authenticator=self._authenticate,
            loop=asyncio.get_running_loop(),
        )

    def _authenticate(self, _: SMTP, __: Session, ___: Envelope, mechanism: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword), mechanism
        right = (given.login.decode(), given.password.decode()) == self._account
        return AuthResult(success=right, handled=False)  # aiosmtpd answers

    # What aiosmtpd calls.

    async def handle_MAIL(  # noqa: N802
        self, _: SMTP, __: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(  # noqa: N802
        self, _: SMTP, __: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self.answers.get(address) or self.answers.get("RCPT", "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(self.takes_s)
        answer = self.answers.get("DATA", "250 OK: queued as 4711")
        if answer.startswith("250"):
            content = envelope.content
            assert isinstance(content, bytes)
            self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), content))
        return answer

    async def handle_QUIT(self, _: SMTP, __: Session, ___: Envelope) -> str:  # noqa: N802
        return self.answers.get("QUIT", "221 Bye")


class _Connection(SMTP):
    """One of a client, which its server knows while it is open."""

    event_handler: SmtpServer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # after STARTTLS once more
        self.event_handler.connections.add(self)
        self.event_handler.most_at_once = max(self.event_handler.most_at_once, len(self.event_handler.connections))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.event_handler.connections.discard(self)
