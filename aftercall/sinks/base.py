"""What a sink is: one class, its `Config` and one verb, `deliver`.

A sink object belongs to one `[sinks.<name>]` table and lives as long as the worker. It never retries, sleeps, logs a
payload or catches cancellation: `workers/deliver.py` does that for all of them.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, get_args
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call
from aftercall.event import CallEvent

# A str option that is a credential: never empty, masked wherever options are shown.
Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]


def is_secret(option: Any) -> bool:
    """Whether a Config field was declared with `Secret`, also as `Secret | None` or `list[Secret]`."""
    marks = (mark for mark in getattr(option, "__metadata__", ()) if isinstance(mark, Meta))
    return any((mark.extra or {}).get("secret") for mark in marks) or any(map(is_secret, get_args(option)))


def url_scheme(url: str) -> str:
    """A URL's scheme, or nothing if it cannot be a URL. Does not raise: urlsplit's own words quote passwords."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return ""
    return parts.scheme if parts.hostname or parts.scheme not in ("http", "https") else ""


class SinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a sink's own options. A field is an option; `Annotated[…, Meta(description=…)]` describes it.

    Mark a secret with `Secret` instead of `str`: it is masked wherever options are shown. `__post_init__` may raise
    ValueError with the remedy for what the types cannot say.
    """

    def __repr__(self) -> str:
        options = (
            f"{field.name}={'***' if is_secret(field.type) else repr(getattr(self, field.name))}"
            for field in msgspec.structs.fields(self)
        )
        return f"{type(self).__qualname__}({', '.join(options)})"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one sink. `body` is the event's JSON, the same bytes at every attempt."""

    event: CallEvent
    body: bytes
    attempt: int = 1


class Sink(ABC):
    """Base of all sinks.

    `http` is the shared client. It refuses private addresses unless the sink's table allows them, follows no redirects,
    and applies the sink's `timeout`.
    """

    Config: ClassVar[type[SinkConfig]] = SinkConfig
    events: ClassVar[tuple[str, ...]] = ("*",)  # which event types it gets when its table does not say

    def __init__(self, name: str, config: SinkConfig, http: httpx.AsyncClient) -> None:
        self.name = name
        self.config = config
        self.http = http

    async def open(self) -> None:  # noqa: B027 - optional
        """Connect; called once before the first delivery."""

    async def close(self) -> None:  # noqa: B027 - optional
        """Disconnect; called once after the last."""

    @abstractmethod
    async def deliver(self, delivery: Delivery) -> None:
        """Return when the destination has it; raise `SinkError` when it has not.

        The same event may come again (with the same `event.id`): be idempotent where the destination can be.
        """

    async def erase(self, call: Call) -> None:  # noqa: B027 - optional
        """Delete what the destination has of a call that was erased; `call` says no more than which one it was.

        A sink that defines it gets every `call.erased` of its accounts this way, and `deliver` besides only if its
        `events` name that type. Return when it is done, also if there was nothing; raise `SinkError` like `deliver`.
        """
