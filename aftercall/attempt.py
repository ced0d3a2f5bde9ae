"""One attempt to bring one event to one sink, as the worker makes it and `aftercall sinks test` too."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aftercall.errors import SinkError
from aftercall.event import CallEvent, encode
from aftercall.routing import redact
from aftercall.sink_settings import SinkSettings
from aftercall.sinks.base import Delivery, Sink


class Outcome(NamedTuple):
    """The destination's receipt, if it took the event; else why not."""

    receipt: str | None = None
    error: SinkError | None = None


async def try_once(
    settings: SinkSettings,
    opened: Callable[[], Awaitable[Sink]],
    event: CallEvent,
    body: bytes | None = None,
    *,
    number: int = 1,
) -> Outcome:
    """Open the sink, if that is to be done, and deliver, all within its timeout. Only cancellation gets out of it."""
    try:
        delivery = prepare(settings, event, body, number=number)
        async with asyncio.timeout(settings.timeout_s):
            sink = await opened()
            if event.type == "call.erased" and settings.erases:
                await sink.erase(event.data.call)
                if event.type not in settings.events:
                    return Outcome()
            receipt = await sink.deliver(delivery)
            return Outcome(receipt=receipt if isinstance(receipt, str) else None)  # a plug-in may return anything
    except Exception as error:
        return Outcome(error=sink_error(settings, error))


def prepare(settings: SinkSettings, event: CallEvent, body: bytes | None = None, *, number: int = 1) -> Delivery:
    """What the sink is given of the event. `body`: its JSON, where that is at hand; the provider's for `raw`."""
    if settings.redact:
        event = redact(event, settings.redact)
        body = None
    if body is None:
        body = encode(event)
    return Delivery(event=event, body=body, attempt=number, format=settings.format)


def sink_error(settings: SinkSettings, error: Exception) -> SinkError:
    """What went wrong in the sink, in words that may be stored and shown."""
    if isinstance(error, SinkError):
        if error.retry_after is None or isinstance(error.retry_after, int | float):
            return error
        return SinkError(str(error), permanent=error.permanent, gone=error.gone)  # a plug-in's header, say, as text
    if isinstance(error, TimeoutError):
        return SinkError(f"no answer within {settings.timeout_s:g} s")
    # Its message may hold anything, also what was said in the call; its type and place do not.
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where else "?"
    return SinkError(f"{type(error).__name__} in {settings.sink_type} at {place}")
