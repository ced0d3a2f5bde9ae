"""Console: every event on standard output, for people on a terminal, as NDJSON everywhere else.

It prints what was said in a call. So it is never a default; `aftercall demo` and `aftercall dev` use it. Delivered
means that standard output took it. An event that comes again is printed again.
"""

import errno
import sys
from typing import Annotated, Literal

import httpx
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Sink, SinkConfig
from aftercall.sinks.console_lines import render


class Console(Sink):
    class Config(SinkConfig, frozen=True):
        format: Annotated[
            Literal["auto", "text", "json"],
            Meta(description="auto: text on a terminal, one JSON object a line elsewhere"),
        ] = "auto"

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self.as_text = config.format == "text" or (config.format == "auto" and _on_terminal())

    async def deliver(self, delivery: Delivery) -> None:
        line = self.render(delivery) + b"\n"
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except OSError as error:
            why = errno.errorcode.get(error.errno or 0, type(error).__name__)
            raise SinkError(f"standard output does not take it: {why}") from None
        except (ValueError, AttributeError):  # it was closed, and is None where it was so from the start
            raise SinkError("standard output is closed") from None

    def render(self, delivery: Delivery) -> bytes:
        return render(delivery.event).encode() if self.as_text else delivery.body


def _on_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()
