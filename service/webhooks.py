"""`POST /webhooks/{account}`: verify → decode → accept → 204. The one hot path.

A plain ASGI handler that Litestar owns and routes to: without Litestar's parameter machinery it answers a third more
webhooks. Nothing is answered 2xx before the ledger has the webhook.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from aftercall.errors import LedgerUnavailable, SignatureError, UndecodableWebhook
from aftercall.ledger import Ledger
from aftercall.providers.base import Provider, Request
from service.metrics import WebhookFigures
from service.problems import problem

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_HELD_BYTES = 256 * 1024 * 1024  # of all bodies being read or stored; beyond it, providers are asked to come back

log = structlog.get_logger("service.webhooks")

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
_STORED: Answer = (204, [], b"")


class BodyTooLargeError(Exception):
    """The body is over `MAX_BODY_BYTES`."""


class OverloadedError(Exception):
    """The bodies under way are over `MAX_HELD_BYTES` together."""


class DisconnectedError(Exception):
    """The provider went away before its request was complete."""


class Intake:
    """Reads bodies, and knows how many bytes of them this process holds."""

    def __init__(self) -> None:
        self.held_bytes = 0

    async def read(self, receive: Receive) -> bytes:
        """A whole body, to be given back with `release`. Raises `BodyTooLargeError`, `OverloadedError` or
        `DisconnectedError`.

        A body over the limit is still read to its end (within reason) and thrown away: a client that is cut off while
        it sends would never see the 413.
        """
        chunks: list[bytes] = []
        size = kept = 0
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise DisconnectedError
                chunk = message["body"]
                size += len(chunk)
                if size <= MAX_BODY_BYTES:
                    chunks.append(chunk)
                    kept += len(chunk)
                    self.held_bytes += len(chunk)
                    if self.held_bytes > MAX_HELD_BYTES:
                        raise OverloadedError
                else:
                    chunks.clear()
                if not message["more_body"] or size > 4 * MAX_BODY_BYTES:
                    break
            if size > MAX_BODY_BYTES:
                raise BodyTooLargeError
        except BaseException:
            self.held_bytes -= kept
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, body: bytes) -> None:
        self.held_bytes -= len(body)


def webhook_route(providers: Mapping[str, Provider], ledger: Ledger, figures: WebhookFigures) -> ASGIRouteHandler:
    """The route for these accounts (name → provider)."""

    intake = Intake()

    # Mounted, because Litestar (2.25) finds no path parameter for a plain ASGI route.
    @asgi("/webhooks", is_mount=True, copy_scope=False)
    async def receive_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        account = scope["path"].strip("/").removeprefix("webhooks/")
        provider = providers.get(account)
        try:
            body = await intake.read(receive)
            try:
                outcome, answer = await answer_webhook(scope, body, provider, ledger)
            finally:
                intake.release(body)
        except OverloadedError:
            outcome, answer = "overloaded", problem(503, "too much is coming in at once; send this one again later")
        except BodyTooLargeError:
            outcome, answer = "too_large", problem(413, f"the body is over the limit of {MAX_BODY_BYTES} bytes")
        except DisconnectedError:
            outcome, answer = "disconnected", None
        figures.count(account if provider else "", outcome, time.perf_counter() - started)
        if answer is not None:
            status, headers, content = answer
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content, "more_body": False})

    return receive_webhook


async def answer_webhook(scope: Scope, body: bytes, provider: Provider | None, ledger: Ledger) -> tuple[str, Answer]:
    """What happened to a request, in one word, and the answer to it."""
    if scope["method"] != "POST":  # type: ignore[typeddict-item]
        return "wrong_method", problem(405, "webhooks are posted")
    if provider is None:
        detail = "no such account: the last part of the webhook URL must be the name of a configured account"
        return "unknown_account", problem(404, detail)
    return await take(scope, body, provider, ledger)


async def take(scope: Scope, body: bytes, provider: Provider, ledger: Ledger) -> tuple[str, Answer]:
    """Verify, decode and accept one webhook; what happened, in one word, and the answer to it."""
    account = provider.account
    now = time.time()
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        provider.verify(Request(headers=headers, body=body, url=scope["path"]), account.webhook_secrets, now)
    except SignatureError as error:
        log.warning("webhook_refused", account=account.name, cause=error.cause, detail=str(error))
        return f"signature_{error.cause}", problem(401, str(error), cause=error.cause)
    try:
        webhooks = provider.decode(body)
    except UndecodableWebhook as error:
        log.warning("webhook_undecodable", account=account.name, detail=str(error))
        return "undecodable", problem(400, str(error))
    if not webhooks:
        return "ignored", _STORED
    received_at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    try:
        accepted = [
            await ledger.accept(webhook, body, provider=provider.name, account=account.name, received_at=received_at)
            for webhook in webhooks
        ]
    except LedgerUnavailable as error:
        log.error("webhook_not_stored", account=account.name, detail=str(error))
        return "unavailable", problem(503, "the ledger cannot store webhooks now; send this one again later")
    return "stored" if any(one.sequence for one in accepted) else "duplicate", _STORED
