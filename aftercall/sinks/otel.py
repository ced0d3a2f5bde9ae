"""OpenTelemetry: a call as a trace, over OTLP/HTTP in JSON, to a Collector or whatever else takes OTLP.

https://opentelemetry.io/docs/specs/otlp/#otlphttp (2026-11). Delivered means 2xx and no span rejected. The ids of the
trace and its spans are made from the call's id: what comes again is the same trace, which most places show once.
"""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from aftercall.call import Turn
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Secret, Sink, url_scheme
from aftercall.sinks.spans import SAID, SpansConfig, export, said, trace
from aftercall.sinks.text import clip

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]+")


class Otel(Sink):
    events = ("call.settled",)  # a trace is complete then, and another event of the call would send its spans again

    class Config(SpansConfig, frozen=True, kw_only=True):
        endpoint: Annotated[str, Meta(description="the OTLP/HTTP endpoint; /v1/traces is added to it")]
        headers: Annotated[
            dict[str, Secret], Meta(description="headers of every request: the vendor's API key, say")
        ] = {}

        def __post_init__(self) -> None:
            if url_scheme(self.endpoint) not in ("http", "https"):
                raise ValueError("endpoint: expected http:// or https:// and a host")
            if urlsplit(self.endpoint).username is not None:
                raise ValueError("endpoint: credentials belong in headers, which are not shown")
            if not all(_HEADER.fullmatch(name) and _VALUE.fullmatch(value) for name, value in self.headers.items()):
                raise ValueError("headers: expected names of headers, and values of printable ASCII")

    config: Config

    def render(self, delivery: Delivery) -> dict[str, Any]:
        return trace(delivery.event, self.config.service_name, _said if self.config.content else lambda _, __: {})

    async def deliver(self, delivery: Delivery) -> str:
        url = self.config.endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
        headers = {name.lower(): value for name, value in self.config.headers.items()}
        return await export(self.http, url, self.render(delivery), headers)


def _said(event: CallEvent, turn: Turn | None) -> dict[str, str]:
    call = event.data.call
    if turn is None:
        summary = call.analysis.summary if call.analysis else None
        return {"aftercall.summary": clip(summary, SAID), "aftercall.error": clip(call.error, SAID)}
    got, gave = said(turn)
    if turn.tool:
        return {"gen_ai.tool.call.arguments": got, "gen_ai.tool.call.result": gave}
    if gave:
        return {"gen_ai.output.messages": _message("assistant", gave, finish_reason="stop")}
    return {"gen_ai.input.messages": _message(turn.role, got)} if got else {}


def _message(role: str, text: str, **more: str) -> str:
    return msgspec.json.encode([{"role": role, "parts": [{"type": "text", "content": text}], **more}]).decode()
