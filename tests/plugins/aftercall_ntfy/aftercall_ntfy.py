"""ntfy: a notification on phones for each call, through ntfy.sh or a server of your own.

Delivered means that the server answered 200; the receipt is its id of the message. It knows no message again, so an
attempt that is repeated after a lost answer notifies twice. https://docs.ntfy.sh/publish/#publish-as-json (2026-11).
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aftercall import Delivery, Secret, Sink, SinkConfig
from aftercall.sinks.http import post
from aftercall.sinks.text import clip, facts, source, title

# A longer message becomes an attachment: https://docs.ntfy.sh/publish/#limitations (2026-11), 4,096 bytes.
SUMMARY, FACT = 600, 60


class Published(msgspec.Struct):
    id: str = ""


class Ntfy(Sink):
    events = ("call.settled",)

    class Config(SinkConfig, frozen=True):
        # "the topic is essentially a password": https://docs.ntfy.sh/publish/ (2026-11)
        topic: Annotated[Secret, Meta(description="the topic, which is as good as a password")]
        url: Annotated[str, Meta(description="the server")] = "https://ntfy.sh"
        token: Annotated[Secret | None, Meta(description="an access token, where the topic is protected")] = None
        urgent: Annotated[bool, Meta(description="whether calls that failed or made somebody unhappy ring louder")] = (
            True
        )

    config: Config

    async def deliver(self, delivery: Delivery) -> str | None:
        headers = {"content-type": "application/json"}
        if self.config.token:
            headers["authorization"] = f"Bearer {self.config.token}"
        answer = await post(self.http, self.config.url, msgspec.json.encode(self.render(delivery)), headers)
        try:
            return msgspec.json.decode(answer.body, type=Published).id or None
        except msgspec.DecodeError:
            return None  # it was taken; who answers is a proxy, maybe

    def render(self, delivery: Delivery) -> dict[str, Any]:
        event = delivery.event
        call = event.data.call
        bad = call.status == "failed" or (call.analysis is not None and call.analysis.sentiment == "negative")
        lines = [f"{label}: {clip(fact, FACT)}" for label, fact in facts(call).items()]
        lines += [clip(call.analysis.summary, SUMMARY)] if call.analysis else []
        return {
            "topic": self.config.topic,
            "title": clip(title(event), 200),
            "message": "\n".join([*filter(None, lines), " · ".join(source(event))]),
            "tags": ["telephone_receiver", event.type],
            "priority": 4 if bad and self.config.urgent else 3,
        }
