"""`POST /webhooks/{account}`: verify → decode → accept → 204. The one hot path.

A plain ASGI handler that Litestar owns and routes to: without Litestar's parameter machinery it answers a third more
webhooks. Nothing is answered 2xx before the ledger has the webhook.
"""

import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath

import structlog
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from aftercall.errors import LedgerUnavailable, SignatureError, UndecodableWebhook
from aftercall.event import event_id, rfc3339
from aftercall.ledger import Ledger
from aftercall.providers.base import Provider, Request
from aftercall.states import ERASED
from service.limits import FREE_PER_HELD, MAX_BODY_BYTES, MAX_DRAINED_BYTES, MAX_HELD_BYTES
from service.metrics import WebhookFigures
from service.problems import problem
from service.protocol import REFUSED

log = structlog.get_logger("service.webhooks")

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
STORED: Answer = (204, [], b"")
TOO_LARGE = ("too_large", problem(413, f"the body is over the limit of {MAX_BODY_BYTES} bytes"))
REPLAYED = (
    "this very webhook was accepted before, and this copy's timestamp is too far from now: the provider's late retry "
    "after an answer that it did not get, or a recorded request that somebody sends again; nothing is lost"
)


class BodyTooLargeError(Exception):
    """The body is over `MAX_BODY_BYTES`."""


class OverloadedError(Exception):
    """The bodies under way leave no room for this one."""


class DisconnectedError(Exception):
    """The request ended before it was complete."""


class Intake:
    """Reads bodies, and knows how many bytes of them this process holds."""

    def __init__(self) -> None:
        self.held_bytes = 0

    async def read(self, receive: Receive) -> bytes:
        """A whole body, to be given back with `release`. Raises `BodyTooLargeError`, `OverloadedError` or
        `DisconnectedError`.
        """
        chunks: list[bytes] = []
        size, more, fits = 0, True, True
        try:
            while more and fits:
                message = await receive()
                if message["type"] != "http.request":
                    raise DisconnectedError
                chunk, more = message["body"], message["more_body"]
                chunks.append(chunk)
                size += len(chunk)
                self.held_bytes += len(chunk)
                fits = size <= MAX_BODY_BYTES and MAX_HELD_BYTES - self.held_bytes >= FREE_PER_HELD * size
        except BaseException:
            self.held_bytes -= size
            raise
        if not fits:
            self.held_bytes -= size
            chunks.clear()
            if more:
                await drain(receive)
            raise BodyTooLargeError if size > MAX_BODY_BYTES else OverloadedError
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, body: bytes) -> None:
        self.held_bytes -= len(body)


async def drain(receive: Receive) -> None:
    """Read a body and keep nothing of it: a client that is cut off while it sends would never see its answer.

    Ends at `MAX_DRAINED_BYTES` too. Raises `DisconnectedError`.
    """
    size, more = 0, True
    while more and size <= MAX_DRAINED_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            raise DisconnectedError
        size += len(message["body"])
        more = message["more_body"]


def webhook_route(providers: Mapping[str, Provider], ledger: Ledger, figures: WebhookFigures) -> ASGIRouteHandler:
    """The route for these accounts (name → provider)."""

    intake = Intake()

    # Mounted, because Litestar (2.25) finds no path parameter for a plain ASGI route.
    @asgi("/webhooks", is_mount=True, copy_scope=False)
    async def receive_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        account = scope["path"].strip("/").removeprefix("webhooks/")
        provider = providers.get(account)
        label = account if provider else ""  # what is logged and counted is never of a stranger's choice
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer: Answer | None
        try:
            judged = judge_head(scope["method"], headers, provider)  # type: ignore[typeddict-item]
            if isinstance(judged, tuple):
                outcome, answer = judged
                await drain(receive)
            else:
                body = await intake.read(receive)
                try:
                    outcome, answer = await take(scope["path"], headers, body, judged, ledger)
                finally:
                    intake.release(body)
        except OverloadedError:
            outcome, answer = "overloaded", problem(503, "too much is coming in at once; send this one again later")
        except BodyTooLargeError:
            outcome, answer = TOO_LARGE
        except DisconnectedError:
            outcome, answer = scope["state"].get(REFUSED, "disconnected"), None
        except Exception as error:  # a plug-in's own; its words may quote the body, so they are not repeated
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{PurePath(where.filename).name}:{where.lineno}"
            log.error("webhook_failed", account=label, error=type(error).__name__, at=at)
            outcome, answer = "failed", problem(500, "this webhook made the service fail; its log says where")
        figures.count(label, outcome, time.perf_counter() - started)
        if answer is not None:
            status, answer_headers, content = answer
            await send({"type": "http.response.start", "status": status, "headers": answer_headers})
            await send({"type": "http.response.body", "body": content, "more_body": False})

    return receive_webhook


def judge_head(method: str, headers: Mapping[str, str], provider: Provider | None) -> Provider | tuple[str, Answer]:
    """The provider whose body is wanted; or where the head alone tells, what happened and the answer."""
    if method != "POST":
        return "wrong_method", problem(405, "webhooks are posted")
    if provider is None:
        detail = "no such account: the last part of the webhook URL must be the name of a configured account"
        return "unknown_account", problem(404, detail)
    encoded = headers.get("content-encoding", "").strip().lower() not in ("", "identity")
    if encoded or headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
        detail = (
            "the body came compressed (Content-Encoding), as no provider sends it: a proxy on the way compressed it, "
            "and the signature holds for other bytes; have it pass the body on as it is"
        )
        log.warning("webhook_refused", account=provider.account.name, cause="compressed", detail=detail)
        return "compressed", problem(400, detail, cause="compressed")
    if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
        return TOO_LARGE
    return provider


async def take(
    path: str, headers: Mapping[str, str], body: bytes, provider: Provider, ledger: Ledger
) -> tuple[str, Answer]:
    """Verify, decode and accept one webhook; what happened, in one word, and the answer to it."""
    account = provider.account
    now = time.time()
    try:
        provider.verify(Request(headers=headers, body=body, url=path), account.webhook_secrets, now)
    except SignatureError as error:
        cause, detail = error.cause, str(error)
        if cause == "stale" and await is_known(body, provider, ledger):
            cause, detail = "replayed", REPLAYED
        log.warning("webhook_refused", account=account.name, cause=cause, detail=detail)
        return f"signature_{cause}", problem(401, detail, cause=cause)
    try:
        webhooks = provider.decode(body)
    except UndecodableWebhook as error:
        log.warning("webhook_undecodable", account=account.name, detail=str(error))
        return "undecodable", problem(400, str(error))
    if not webhooks:
        return "ignored", STORED
    received_at = rfc3339(datetime.fromtimestamp(now, UTC))
    try:
        accepted = [
            await ledger.accept(webhook, body, provider=provider.name, account=account.name, received_at=received_at)
            for webhook in webhooks
        ]
    except LedgerUnavailable as error:
        log.error("webhook_not_stored", account=account.name, detail=str(error))
        return "unavailable", problem(503, "the ledger cannot store webhooks now; send this one again later")
    if any(one.sequence > 0 for one in accepted):
        return "stored", STORED
    return "erased" if all(one.sequence == ERASED for one in accepted) else "duplicate", STORED


async def is_known(body: bytes, provider: Provider, ledger: Ledger) -> bool:
    """Whether all that a genuine body tells was accepted before."""
    try:
        webhooks = provider.decode(body)
        ids = [event_id(provider.name, provider.account.name, webhook.dedupe_key) for webhook in webhooks]
        return bool(ids) and all([await ledger.known(id_) for id_ in ids])
    except (UndecodableWebhook, LedgerUnavailable):
        return False
