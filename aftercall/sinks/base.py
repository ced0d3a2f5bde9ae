"""What a sink is: one class, its `Config` and one verb, `deliver`.

A sink object belongs to one `[sinks.<name>]` table and lives as long as the worker. It never retries, sleeps, logs a
payload or catches cancellation: `workers/deliver.py` does that for all of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_args
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call
from aftercall.event import CONTENT_TYPE, CallEvent

# A str option that is a credential: never empty, masked wherever options are shown.
Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]

Format = Literal["event", "raw"]


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

    @classmethod
    def needed(cls, given: Collection[str]) -> Collection[str]:
        """Options that may be left out as the types go, and may not beside (or without) those that are given."""
        return ()

    def __repr__(self) -> str:
        options = (
            f"{field.name}={'***' if is_secret(field.type) else repr(getattr(self, field.name))}"
            for field in msgspec.structs.fields(self)
        )
        return f"{type(self).__qualname__}({', '.join(options)})"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one sink.

    `body` is what to send where the destination takes any text: the event's JSON, the same bytes at every attempt. With
    `format = "raw"` in the sink's table it is the provider's own webhook, as it arrived.
    """

    event: CallEvent
    body: bytes
    attempt: int = 1
    format: Format = "event"

    @property
    def content_type(self) -> str:
        return CONTENT_TYPE if self.format == "event" else "application/json"


class Memory(Protocol):
    """A sink's own notes, short texts that all workers share: the id that a destination gave to a call, say.

    They are forgotten after `for_s` seconds, and may be lost with Redis. No content of a call belongs here.
    """

    async def get(self, key: str) -> str | None:
        """The note of that name, or None."""

    async def set(self, key: str, value: str, *, for_s: float = 7 * 86400) -> None:
        """Write a note, over what is there."""

    async def add(self, key: str, value: str, *, for_s: float = 7 * 86400) -> bool:
        """Write a note if there is none of that name; whether it was written. Of several at once, one succeeds."""
        ...

    async def delete(self, key: str) -> None:
        """Forget a note; one that is not there does no harm."""


class LocalMemory:
    """Notes of this process alone: what a sink has outside of a worker."""

    def __init__(self) -> None:
        self._notes: dict[str, tuple[float, str]] = {}

    async def get(self, key: str) -> str | None:
        until, value = self._notes.get(key, (0.0, ""))
        return value if time.monotonic() < until else None

    async def set(self, key: str, value: str, *, for_s: float = 7 * 86400) -> None:
        self._notes[key] = (time.monotonic() + for_s, value)

    async def add(self, key: str, value: str, *, for_s: float = 7 * 86400) -> bool:
        if await self.get(key) is not None:
            return False
        await self.set(key, value, for_s=for_s)
        return True

    async def delete(self, key: str) -> None:
        self._notes.pop(key, None)


class Sink(ABC):
    """Base of all sinks.

    `http` is the shared client. It refuses private addresses unless the sink's table allows them, follows no redirects,
    and applies the sink's `timeout`. `memory` keeps short notes that outlive the process.
    """

    Config: ClassVar[type[SinkConfig]] = SinkConfig
    events: ClassVar[tuple[str, ...]] = ("*",)  # which event types it gets when its table does not say
    raw: ClassVar[bool] = False  # whether it passes `delivery.body` on as it is, so that `format = "raw"` has a sense

    def __init__(self, name: str, config: SinkConfig, http: httpx.AsyncClient) -> None:
        self.name = name
        self.config = config
        self.http = http
        self.memory: Memory = LocalMemory()  # a worker puts the one in its place that all workers share

    async def open(self) -> None:  # noqa: B027 - optional
        """Connect; called once before the first delivery."""

    async def close(self) -> None:  # noqa: B027 - optional
        """Disconnect; called once after the last."""

    @abstractmethod
    async def deliver(self, delivery: Delivery) -> str | None:
        """Return when the destination has it; raise `SinkError` when it has not.

        What is returned is the receipt, if the destination gives one: its id for the message, or its status. It is kept
        and shown, so it holds no secret and nothing of the call. The same event may come again (with the same
        `event.id`): be idempotent where the destination can be.
        """

    def render(self, delivery: Delivery) -> Any:
        """What `deliver` would send: bytes, or what JSON can hold. It connects to nothing, and sends nothing."""
        return delivery.body

    async def erase(self, call: Call) -> None:  # noqa: B027 - optional
        """Delete what the destination has of a call that was erased; `call` says no more than which one it was.

        A sink that defines it gets every `call.erased` of its accounts this way, and `deliver` besides only if its
        `events` name that type. Return when it is done, also if there was nothing; raise `SinkError` like `deliver`.
        """

    async def migrate(self) -> list[str]:
        """Prepare the destination for this version before the first delivery: its tables, say. What was done, in words.

        `aftercall sinks migrate` calls it, opened. It may be repeated, and is safe while older versions deliver.
        """
        return []
