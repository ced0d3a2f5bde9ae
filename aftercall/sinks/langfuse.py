"""Langfuse: a call as a trace, through its OpenTelemetry endpoint (in the cloud, or self-hosted from 3.22 on).

https://langfuse.com/integrations/native/opentelemetry (2026-11): Basic authentication with the project's keys; without
ingestion version 4 a trace shows after about ten minutes; attributes of the trace belong on every span. Delivered means
2xx and no span rejected; Langfuse works it off afterwards. What comes again has the same ids, and replaces the trace.
"""

import base64
from typing import Annotated, Any

from msgspec import Meta

from aftercall.call import Call, Turn
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Secret, Sink, url_scheme
from aftercall.sinks.http import request
from aftercall.sinks.spans import SpansConfig, conversation, export, said, trace, trace_id
from aftercall.sinks.text import clip

NAME = 200  # our own
ID = 199  # https://langfuse.com/docs/observability/features/sessions (2026-11): less than 200 characters, or dropped


class Langfuse(Sink):
    events = ("call.settled",)

    class Config(SpansConfig, frozen=True, kw_only=True):
        public_key: Annotated[str, Meta(min_length=1, description="the project's public key: pk-lf-…")]
        secret_key: Annotated[Secret, Meta(description="the project's secret key: sk-lf-…")]
        host: Annotated[str, Meta(description="https://us.cloud.langfuse.com, or your own")] = (
            "https://cloud.langfuse.com"
        )

        def __post_init__(self) -> None:
            if url_scheme(self.host) not in ("http", "https") or "@" in self.host:
                raise ValueError("host: expected http:// or https:// and a host")

    config: Config

    def render(self, delivery: Delivery) -> dict[str, Any]:
        return trace(delivery.event, self.config.service_name, self._attributes)

    async def deliver(self, delivery: Delivery) -> str:
        url = f"{self.config.host.rstrip('/')}/api/public/otel/v1/traces"
        headers = {**self._authorization(), "x-langfuse-ingestion-version": "4"}
        return await export(self.http, url, self.render(delivery), headers)

    async def erase(self, call: Call) -> None:
        """Langfuse takes the order, and deletes within minutes: https://langfuse.com/docs/data-deletion (2026-11)."""
        url = f"{self.config.host.rstrip('/')}/api/public/traces/{trace_id(call)}"
        await request(self.http, "DELETE", url, headers=self._authorization(), accept=(404,))

    def _authorization(self) -> dict[str, str]:
        keys = f"{self.config.public_key}:{self.config.secret_key}".encode()
        return {"authorization": "Basic " + base64.b64encode(keys).decode()}

    def _attributes(self, event: CallEvent, turn: Turn | None) -> dict[str, Any]:
        """https://langfuse.com/integrations/native/opentelemetry#property-mapping (2026-11)"""
        call = event.data.call
        kind = "agent" if turn is None else "tool" if turn.tool else "generation" if turn.role == "agent" else "span"
        cost = call.cost.total if call.cost and turn is None else None
        got, gave = (said(turn) if turn else conversation(call)) if self.config.content else ("", "")
        return {
            "langfuse.trace.name": clip(call.agent.name or call.agent.id or "call", NAME),
            "langfuse.session.id": call.id[:ID],
            "langfuse.trace.tags": [f"{name}:{value}" for name, value in event.data.tags.items()] or None,
            "langfuse.observation.type": kind,
            "langfuse.observation.cost_details": f'{{"total":{float(cost)}}}' if cost else None,
            "langfuse.observation.input": got,
            "langfuse.observation.output": gave,
        }
